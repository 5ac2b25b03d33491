"""`linear_logprob` against float64, for every backend that runs here.

Tolerances are not constants: an error may be at most twice that of the plain torch formula in the same dtypes
(that formula is what a user would otherwise run), plus a few units in the last place of the largest value.
"""

import pytest
import torch

from vdengine.kernels import linear_logprob, linear_logprob_reference
from vdengine.kernels.rows import NativeRowKernel, RowKernel

SHAPES = [(1, 7, 3), (5, 33, 16), (77, 517, 40), (130, 1031, 72)]  # N, V, H: odd, not multiples of any block
DTYPES = [torch.float32, torch.bfloat16]


def problem(n, v, h, dtype, *, peaked=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=g)
    weight = torch.randn(v, h, generator=g) * 0.5
    targets = torch.randint(0, v, (n,), generator=g)
    if peaked:  # the target's weight row is the hidden row: p close to 1, 1 - p tiny
        weight[targets] = 3 * hidden
    upstream = torch.randn(n, generator=g)  # signed
    upstream[::3] = 0.0  # and rows without any gradient
    return hidden.to(dtype), weight.to(dtype), targets, upstream


def run(fn, hidden, weight, targets, upstream, entropy_upstream=None, **options):
    """logp, entropy and the two gradients of `fn`."""
    hidden, weight = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    if weight.dtype == torch.bfloat16:
        weight.grad_dtype = None
    out = fn(hidden, weight, targets, entropy=True, **options)
    loss = (out.logp * upstream).sum()
    if entropy_upstream is not None:
        loss = loss + (out.entropy * entropy_upstream).sum()
    loss.backward()
    return out.logp.detach(), out.entropy.detach(), hidden.grad, weight.grad


def plain(hidden, weight, targets, *, temperature=1.0, entropy=False):
    """The formula as it is usually written, in the operands' dtype: the peer of the error bound."""
    logp = torch.log_softmax((hidden @ weight.t()).float() / temperature, -1)
    return type("Out", (), {"logp": logp.gather(1, targets[:, None])[:, 0], "entropy": -(logp.exp() * logp).sum(-1)})


def reference(hidden, weight, targets, *, temperature=1.0, entropy=False):
    return linear_logprob_reference(hidden, weight, targets, temperature)


def assert_close(name, got, plain_value, exact, dtype):
    eps = torch.finfo(torch.float32 if name in ("logp", "entropy") else dtype).eps
    scale = exact.abs().max().item()
    allowed = 2 * (plain_value.double() - exact).abs().max().item() + 4 * eps * scale + 1e-30
    error = (got.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("saved_bytes", [0, None], ids=["recompute", "kept"])
@pytest.mark.parametrize("peaked", [False, True])
def test_values_and_gradients_against_float64(backend, dtype, shape, saved_bytes, peaked):
    """Guards the algebra: wrong scaling by per-token gradients, rows lost at chunk ends, cancellation at p near 1."""
    hidden, weight, targets, upstream = problem(*shape, dtype, peaked=peaked)
    exact = run(reference, hidden.double(), weight.double(), targets, upstream.double(), temperature=0.7)
    peer = run(plain, hidden, weight, targets, upstream, temperature=0.7)
    got = run(
        linear_logprob, hidden, weight, targets, upstream, temperature=0.7, saved_bytes=saved_bytes, backend=backend
    )
    for name, *values in zip(("logp", "entropy", "grad_hidden", "grad_weight"), got, peer, exact, strict=True):
        assert_close(name, *values, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_gradient_through_the_entropy(dtype):
    """Guards the recomputing backward: both upstreams at once, and entropy alone."""
    hidden, weight, targets, upstream = problem(70, 301, 24, dtype)
    entropy_upstream = torch.linspace(-1, 1, 70)
    for logp_upstream in (upstream, torch.zeros(70)):
        exact = run(
            reference, hidden.double(), weight.double(), targets, logp_upstream.double(), entropy_upstream.double()
        )
        peer = run(plain, hidden, weight, targets, logp_upstream, entropy_upstream)
        got = run(linear_logprob, hidden, weight, targets, logp_upstream, entropy_upstream)
        for name, *values in zip(("logp", "entropy", "grad_hidden", "grad_weight"), got, peer, exact, strict=True):
            assert_close(name, *values, dtype)


def test_kept_recomputed_and_no_grad_give_the_same_bits():
    """Guards the promise that saving memory, or asking for no gradient, changes nothing."""
    hidden, weight, targets, upstream = problem(1300, 517, 40, torch.float32)  # three chunks
    chunk = NativeRowKernel().chunk_rows(517)
    assert 1300 > 2 * chunk
    one_chunk = chunk * 517 * 4
    runs = [run(linear_logprob, hidden, weight, targets, upstream, saved_bytes=s) for s in (0, one_chunk, None)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    with torch.no_grad():
        assert torch.equal(linear_logprob(hidden, weight, targets), runs[0][0])


def test_twice_the_same_bits():
    """Guards determinism: fixed-order accumulation of the weight's gradient."""
    args = problem(700, 1031, 72, torch.float32)
    first, second = run(linear_logprob, *args), run(linear_logprob, *args)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_operand(frozen):
    """Guards a frozen head or trunk: the other gradient is unchanged, the frozen one is not computed."""
    hidden, weight, targets, upstream = problem(77, 517, 40, torch.float32)
    _, _, grad_hidden, grad_weight = run(linear_logprob, hidden, weight, targets, upstream)
    h, w = hidden.clone().requires_grad_(frozen != "hidden"), weight.clone().requires_grad_(frozen != "weight")
    (linear_logprob(h, w, targets) * upstream).sum().backward()
    if frozen == "hidden":
        assert h.grad is None and torch.equal(w.grad, grad_weight)
    else:
        assert w.grad is None and torch.equal(h.grad, grad_hidden)


def test_weight_gradient_is_fp32_for_a_bf16_weight():
    """Guards against autograd rounding the accumulated gradient to the weight's dtype."""
    hidden, weight, targets, upstream = problem(77, 517, 40, torch.bfloat16)
    weight.requires_grad_()
    (linear_logprob(hidden, weight, targets) * upstream).sum().backward()
    assert weight.grad.dtype == torch.float32


def test_bf16_log_probs_come_from_fp32_logits():
    """Guards the noise floor of the drift figures: bf16-rounded logits would be wrong by about 0.02 nats."""
    hidden, weight, targets, _ = problem(64, 4099, 128, torch.bfloat16)
    exact = linear_logprob_reference(hidden.double(), weight.double(), targets).logp
    error = (linear_logprob(hidden, weight, targets).double() - exact).abs().max()
    rounded = (plain(hidden, weight, targets).logp.double() - exact).abs().max()
    assert error < 1e-4 < 1e-2 < rounded  # operands are the same: only fp32 summation over H = 128 differs


def test_no_rows_and_non_contiguous_rows():
    """Guards empty packs and sliced hidden states."""
    hidden, weight, targets, upstream = problem(80, 33, 16, torch.float32)
    empty = linear_logprob(hidden[:0].requires_grad_(), weight.requires_grad_(), targets[:0])
    assert empty.shape == (0,)
    empty.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    sliced = linear_logprob(hidden[::2], weight, targets[::2])
    assert torch.equal(sliced, linear_logprob(hidden[::2].contiguous(), weight, targets[::2]))
    wide = torch.randn(80, 20)[:, 2:18]
    assert torch.equal(linear_logprob(wide, weight, targets), linear_logprob(wide.contiguous(), weight, targets))


def test_a_row_does_not_depend_on_its_neighbours():
    """Guards batch invariance of the row pass: the kernel gives one row the same bits alone and in company."""
    hidden, weight, targets, _ = problem(64, 517, 40, torch.float32)
    logits = hidden @ weight.t()
    for kernel in (NativeRowKernel(), RowKernel()):
        out = []
        for rows in (slice(0, 64), slice(20, 21)):
            logp = torch.empty(len(targets[rows]))
            kernel.rows(logits[rows].clone(), targets[rows], 1.0, logp, None, None)
            out.append(logp)
        assert torch.equal(out[0][20:21], out[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, "hidden must be [N, H] and weight [V, H]; got hidden [3, 5], weight [7, 4]"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, "targets must be [N], one per row of hidden"),
        ({"targets": torch.zeros(3, dtype=torch.int32)}, "targets must be int64; got torch.int32"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.bfloat16)}, "must share one floating dtype"),
        ({"targets": torch.tensor([0, 7, 1])}, "7"),
        ({"temperature": 0.0}, "temperature must be > 0; got 0.0"),
        ({"backend": "cuda"}, "unknown backend 'cuda'; allowed: auto, native, torch, reference"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument and the shapes."""
    arguments = {
        "hidden": torch.zeros(3, 4), "weight": torch.zeros(7, 4), "targets": torch.zeros(3, dtype=torch.int64),
    } | change  # fmt: skip
    with pytest.raises(ValueError) as error:
        linear_logprob(**arguments)
    assert message in str(error.value)
