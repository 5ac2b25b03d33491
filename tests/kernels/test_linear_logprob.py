"""`linear_logprob` against float64, for every backend that runs here.

Tolerances are not constants: an error may be at most twice that of the plain torch formula in the same dtypes
(that formula is what a user would otherwise run), plus a few units in the last place of the largest value.
"""

import sys

import pytest
import torch
from helpers.kernels import BACKENDS, DEVICE, DTYPES, assert_close, problem

from vdengine.kernels import LinearLogprob, linear_logprob, linear_logprob_reference
from vdengine.kernels.linear_logprob import Scored
from vdengine.kernels.rows import NativeRowKernel, RowKernel, Transform, TritonRowKernel

# N, V, H: odd, not multiples of any block
SHAPES = [(1, 7, 3), (5, 33, 16), (77, 517, 40), pytest.param((130, 1031, 72), marks=pytest.mark.slow)]


def run(fn, hidden, weight, targets, upstream, entropy_upstream=None, **options):
    """logp, entropy and the two gradients of `fn`."""
    hidden, weight = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    if weight.dtype == torch.bfloat16:  # errors are those of the sum, not of a last rounding
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


@pytest.mark.parametrize("backend", BACKENDS)
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
        linear_logprob, hidden, weight, targets, upstream, temperature=0.7, saved_bytes=saved_bytes, backend=backend,
        chunk_rows=32,
    )  # fmt: skip
    for name, *values in zip(("logp", "entropy", "grad_hidden", "grad_weight"), got, peer, exact, strict=True):
        assert_close(name, *values, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("peaked", [False, True])
def test_gradient_through_the_entropy(dtype, backend, peaked):
    """Guards the recomputing backward: both upstreams at once, and entropy alone."""
    hidden, weight, targets, upstream = problem(70, 301, 24, dtype, peaked=peaked)
    entropy_upstream = torch.linspace(-1, 1, 70, device=DEVICE)
    for logp_upstream in (upstream, torch.zeros(70, device=DEVICE)):
        exact = run(
            reference, hidden.double(), weight.double(), targets, logp_upstream.double(), entropy_upstream.double()
        )
        peer = run(plain, hidden, weight, targets, logp_upstream, entropy_upstream)
        got = run(
            linear_logprob, hidden, weight, targets, logp_upstream, entropy_upstream, backend=backend, chunk_rows=32
        )
        for name, *values in zip(("logp", "entropy", "grad_hidden", "grad_weight"), got, peer, exact, strict=True):
            assert_close(name, *values, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_kept_recomputed_and_no_grad_give_the_same_bits(backend):
    """Guards the promise that saving memory, or asking for no gradient, changes nothing."""
    hidden, weight, targets, upstream = problem(130, 517, 40, torch.float32)  # three chunks, one short
    options = {"chunk_rows": 50, "backend": backend}
    one_chunk = 50 * 517 * 4
    runs = [
        run(linear_logprob, hidden, weight, targets, upstream, saved_bytes=s, **options)
        for s in (0, one_chunk, one_chunk * 2 + 4, None)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    with torch.no_grad():
        assert torch.equal(linear_logprob(hidden, weight, targets, **options), runs[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_twice_the_same_bits(backend):
    """Guards determinism: fixed-order accumulation of the weight's gradient."""
    args = problem(200, 1031, 72, torch.float32)
    first, second = (run(linear_logprob, *args, chunk_rows=64, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_of_n_by_v_is_kept_beyond_the_allowance():
    """Guards memory: what autograd holds between forward and backward, seen through its saved-tensor hooks."""
    hidden, weight, targets, _ = problem(120, 517, 40, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    for saved_bytes, rows in ((0, 0), (517 * 4 * 75, 50), (None, 120)):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t) or t, lambda t: t):
            linear_logprob(hidden, weight, targets, saved_bytes=saved_bytes, chunk_rows=50)
        assert sum(t.shape[0] for t in held if t.shape[1:] == (517,)) == rows
        assert all(t.numel() <= max(rows * 517, weight.numel()) for t in held)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        held.clear()
        linear_logprob(hidden, weight.detach(), targets)
    assert not any(t.numel() for t in held if t.shape[1:] == (517,))  # a frozen head keeps no P


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
    """Guards against autograd rounding the accumulated gradient to the weight's dtype, where that is asked for; and an
    ordinary bf16 optimizer, which wants it rounded."""
    hidden, weight, targets, upstream = problem(77, 517, 40, torch.bfloat16)
    for asked, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        w = weight.clone().requires_grad_()
        (linear_logprob(hidden, w, targets, fp32_weight_grad=asked) * upstream).sum().backward()
        assert w.grad.dtype == dtype
    torch.optim.AdamW([w]).step()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_entropy", [False, True])
def test_weight_gradient_is_summed_over_chunks_in_fp32(backend, with_entropy):
    """Guards the accumulator: one rounded to bf16 after each chunk is 2^-9 off, chunks that overwrite it far more."""
    hidden, weight, targets, upstream = problem(96, 517, 40, torch.bfloat16)
    entropy_upstream = upstream.flip(0) if with_entropy else None
    one, many = (
        run(linear_logprob, hidden, weight, targets, upstream, entropy_upstream, backend=backend, chunk_rows=size)[3]
        for size in (96, 8)
    )
    # the same bf16 products but for rows whose logits another GEMM shape has rounded otherwise; sums of 96 in fp32
    assert (one - many).norm() <= 2**-14 * one.norm()


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
    for backend in BACKENDS:
        sliced = linear_logprob(hidden[::2], weight, targets[::2], backend=backend)
        assert torch.equal(
            sliced, linear_logprob(hidden[::2].contiguous(), weight, targets[::2].clone(), backend=backend)
        )
        same = linear_logprob(hidden, weight, targets[3].expand(80), backend=backend)
        assert torch.equal(same, linear_logprob(hidden, weight, targets[3].repeat(80), backend=backend))
    wide = torch.randn(80, 20)[:, 2:18]
    assert torch.equal(linear_logprob(wide, weight, targets), linear_logprob(wide.contiguous(), weight, targets))


@pytest.mark.parametrize("kernel", [TritonRowKernel, RowKernel] + [NativeRowKernel] * (DEVICE == "cpu"))
def test_a_row_does_not_depend_on_its_neighbours(kernel):
    """Guards batch invariance of the row pass: the kernel gives one row the same bits alone and in company."""
    hidden, weight, targets, _ = problem(64, 517, 40, torch.float32)
    logits = hidden @ weight.t()
    out = []
    for rows in (slice(0, 64), slice(20, 21)):
        logp = torch.empty(len(targets[rows]), device=DEVICE)
        kernel().rows(logits[rows].clone(), targets[rows], Transform(1.0), logp, None, None)
        out.append(logp)
    assert torch.equal(out[0][20:21], out[1])


def test_extreme_logits_of_the_triton_row_pass():
    """Guards the running maximum: rows that rise, fall, hold -inf, or hide a peak in the last block."""
    vocab = 3 * 4096 + 5
    ramp = torch.linspace(-80, 80, vocab)
    rows = torch.stack([ramp, ramp.flip(0), torch.full((vocab,), -1e4), ramp * 0 - 3, ramp])
    rows[2, -1] = 1e4
    rows[4, ::2] = -torch.inf
    targets = torch.tensor([vocab - 1, 5, vocab - 1, 0, vocab - 2])
    exact = torch.log_softmax(0.5 * rows.double(), -1)
    logp, entropy = torch.empty(5, device=DEVICE), torch.empty(5, device=DEVICE)
    TritonRowKernel().rows(rows.to(DEVICE), targets.to(DEVICE), Transform(0.5), logp, entropy, None)
    # exp and log of fp32 arguments up to 1e4 * 2^-24, and a sum of 12k positive terms in a tree
    assert torch.allclose(logp.double().cpu(), exact.gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-5)
    assert torch.allclose(entropy.double().cpu(), -torch.special.xlogy(exact.exp(), exact.exp()).sum(-1), atol=1e-4)


def test_a_target_out_of_range_is_nan_on_the_device():
    """Guards the process: a device assert would end it, and looking would make every step wait."""
    targets = torch.tensor([7, -1], device=DEVICE)
    for kernel in (TritonRowKernel(), RowKernel()):
        logp = torch.empty(2, device=DEVICE)
        kernel.rows(torch.zeros(2, 7, device=DEVICE), targets, Transform(1.0), logp, None, None)
        assert logp.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_one_graph(backend):
    """Guards torch.compile: the op is one node, forward and backward, with the same bits as eager."""
    hidden, weight, targets, upstream = problem(30, 133, 16, torch.float32)

    def loss(h, w):
        out = linear_logprob(2 * h, w, targets, entropy=True, backend=backend, chunk_rows=16)
        return (out.logp * upstream).sum() + out.entropy.sum()

    got = []
    for fn in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = fn(h, w)
        value.backward()
        got.append((value.detach(), h.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


# What a head may have besides its weight: bias, scale and soft cap, of the sizes that models have.
HEADS = {
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 5.0},
    "all": {"bias": True, "scale": 2.0, "softcap": 5.0, "temperature": 0.7},
}
FORMATS = {  # hidden, weight
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "bf16 and fp32": (torch.bfloat16, torch.float32),
}


def head_problem(dtypes, options, *, peaked=False, shape=(77, 517, 40)):
    """As `problem`, in two dtypes; and the options with a bias in place of True."""
    hidden, weight, targets, upstream = problem(*shape, torch.float32, peaked=peaked)
    options = dict(options)
    if options.get("bias"):
        options["bias"] = torch.randn(shape[1], generator=torch.Generator().manual_seed(1)).to(DEVICE, dtypes[1])
    return hidden.to(dtypes[0]), weight.to(dtypes[1]), targets, upstream, options


def run_head(fn, hidden, weight, targets, upstream, entropy_upstream=None, *, bias=None, **options):
    """logp, entropy, and the gradients by name."""
    inputs = {"grad_hidden": hidden, "grad_weight": weight} | ({} if bias is None else {"grad_bias": bias})
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    for name in leaves.keys() - {"grad_hidden"}:
        if leaves[name].dtype != torch.float32:
            leaves[name].grad_dtype = None  # errors are those of the sum, not of a last rounding
    given = {} if bias is None else {"bias": leaves["grad_bias"]}
    out = fn(leaves["grad_hidden"], leaves["grad_weight"], targets, entropy=True, **given, **options)
    loss = (out.logp * upstream).sum()
    if entropy_upstream is not None:
        loss = loss + (out.entropy * entropy_upstream).sum()
    loss.backward()
    return {"logp": out.logp.detach(), "entropy": out.entropy.detach()} | {n: x.grad for n, x in leaves.items()}


def plain_head(hidden, weight, targets, *, bias=None, scale=1.0, softcap=None, temperature=1.0, entropy=False):
    """The formula as models of transformers have it, the GEMM in the dtype of `hidden`."""
    logits = torch.nn.functional.linear(
        hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    )
    logits = logits.float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = torch.log_softmax(logits / temperature, -1)
    return Scored(logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1))


def exact_head(hidden, weight, targets, *, entropy=False, temperature=1.0, **options):
    return linear_logprob_reference(hidden, weight, targets, temperature, **options)


def check_head_against_float64(backend, dtypes, options, entropy_upstream=None, *, peaked=False):
    """What is rounded on the way in is not an error of the kernel: float64 starts from the operands as they are
    multiplied."""
    hidden, weight, targets, upstream, options = head_problem(dtypes, options, peaked=peaked)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    wide_entropy = None if entropy_upstream is None else entropy_upstream.double()
    multiplied = weight.to(hidden.dtype)
    exact = run_head(exact_head, hidden.double(), multiplied.double(), targets, upstream.double(), wide_entropy, **wide)
    peer = run_head(plain_head, hidden, weight, targets, upstream, entropy_upstream, **options)
    got = run_head(
        linear_logprob, hidden, weight, targets, upstream, entropy_upstream, backend=backend, chunk_rows=32, **options
    )
    assert got.keys() == exact.keys()
    for name in exact:
        assert (
            name in ("logp", "entropy")
            or got[name].dtype == (hidden if name == "grad_hidden" else weight).dtype
            or (got[name].dtype == torch.float32)
        )
        assert_close(name, got[name], peer[name], exact[name], hidden.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtypes", ["fp32", "bf16"])
def test_bias_scale_and_softcap_against_float64(backend, head, dtypes):
    """Guards the order of bias, scale, cap and temperature, and the gradient through each, of the bias too."""
    check_head_against_float64(backend, FORMATS[dtypes], HEADS[head])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head", ["bias", "all"])
@pytest.mark.parametrize("dtypes", FORMATS)
@pytest.mark.parametrize("peaked", [False, True])
def test_every_head_in_every_format_against_float64(backend, head, dtypes, peaked):
    """Guards the same where logits saturate the cap, through the entropy, and with a weight of another dtype."""
    entropy_upstream = torch.linspace(-1, 1, 77, device=DEVICE)
    check_head_against_float64(backend, FORMATS[dtypes], HEADS[head], entropy_upstream, peaked=peaked)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", ["fp16", "bf16 and fp32"])
@pytest.mark.parametrize("peaked", [False, True])
def test_other_formats_against_float64(backend, dtypes, peaked):
    """Guards fp16, and a weight that is kept in fp32 under activations in bf16."""
    check_head_against_float64(backend, FORMATS[dtypes], {}, peaked=peaked)


def test_a_loss_scale_does_not_overflow_fp16():
    """Guards mixed precision with a GradScaler: hidden states times a scale of 2^16 are no fp16 numbers."""
    hidden, weight, targets, upstream, _ = head_problem(FORMATS["fp16"], {})
    weight.requires_grad_()
    gradients = []
    for loss_scale in (1.0, 2.0**16):
        weight.grad_dtype, weight.grad = None, None
        (linear_logprob(hidden, weight, targets) * upstream * loss_scale).sum().backward()
        gradients.append(weight.grad / loss_scale)
    assert gradients[1].isfinite().all()
    assert torch.equal(*gradients)  # powers of two are exact


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_a_linear_layer(backend, autocast):
    """Guards autocast: the operands are rounded as those of F.linear, each gradient has its input's dtype, and the
    weight's is not rounded on its way to fp32."""
    hidden, weight, targets, upstream, options = head_problem(FORMATS["fp32"], HEADS["all"])
    rounded = [x.to(autocast) for x in (hidden, weight)]
    expected = run_head(linear_logprob, *rounded, targets, upstream, backend=backend, **options)
    with torch.autocast(DEVICE, autocast):
        got = run_head(linear_logprob, hidden, weight, targets, upstream, backend=backend, **options)
    assert all(x.dtype == torch.float32 for x in got.values())
    assert all(torch.equal(got[name].to(expected[name].dtype), expected[name]) for name in expected)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_any_leading_shape(backend):
    """Guards hidden states of a padded batch: [B, L, H], one row, and a row without a batch."""
    hidden, weight, targets, upstream, options = head_problem(FORMATS["fp32"], HEADS["all"], shape=(78, 517, 40))
    flat = run_head(linear_logprob, hidden, weight, targets, upstream, backend=backend, **options)
    shape = (2, 3, 13)
    cut = (x.view(*shape, *x.shape[1:]) for x in (hidden, targets, upstream))
    got = run_head(linear_logprob, *[next(cut), weight, next(cut), next(cut)], backend=backend, **options)
    assert got["logp"].shape == got["entropy"].shape == shape and got["grad_hidden"].shape == (*shape, 40)
    assert all(torch.equal(got[name].view(flat[name].shape), flat[name]) for name in flat)
    one = linear_logprob(hidden[3], weight, targets[3], backend=backend, **options)
    assert one.shape == () and torch.allclose(one, flat["logp"][3], rtol=0, atol=1e-5)  # another GEMM shape
    transposed = hidden.view(shape[0], -1, 40).transpose(0, 1)
    again = linear_logprob(transposed, weight, targets.view(2, -1).t(), backend=backend, **options)
    assert torch.allclose(again.t().flatten(), flat["logp"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_with_everything_keeps_the_promises(backend):
    """Guards memory and determinism with bias and cap: recomputed, kept and repeated results have the same bits; no
    rows; a frozen weight under a bias that is trained."""
    hidden, weight, targets, upstream, options = head_problem(FORMATS["fp32"], HEADS["all"])
    options |= {"backend": backend, "chunk_rows": 50}
    kept, recomputed, again = (
        run_head(linear_logprob, hidden, weight, targets, upstream, saved_bytes=s, **options) for s in (None, 0, None)
    )
    assert all(torch.equal(kept[name], other[name]) for other in (recomputed, again) for name in kept)
    bias = options.pop("bias").requires_grad_()
    (linear_logprob(hidden, weight, targets, bias=bias, **options) * upstream).sum().backward()
    assert torch.equal(bias.grad, kept["grad_bias"])
    bias.grad = None
    linear_logprob(hidden[:0], weight, targets[:0], bias=bias, **options).sum().backward()
    assert torch.equal(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("head", [None, "all"])
def test_stats_of_the_logits(backend, head):
    """Guards the metrics of other trainers: the most likely token (the first of equals), the mean logit, and the
    collision probability, in the order asked for, without a gradient; log-probs have the bits they have without."""
    hidden, weight, targets, _, options = head_problem(FORMATS["fp32"], HEADS[head] if head else {})
    weight[300], options["bias"] = weight[200], None  # a tie
    options.pop("bias")
    logits = torch.nn.functional.linear(hidden.double(), weight.double())
    targets[0] = targets[1] = logits[:2].argmax(-1)[0]
    targets[2] = logits[2].argmax()
    logits = logits * options.get("scale", 1.0)
    if cap := options.get("softcap"):
        logits = cap * torch.tanh(logits / cap)
    logits = logits / options.get("temperature", 1.0)
    p = logits.softmax(-1)
    names = ("log_sum_sq_probs", "is_top1", "mean_logits")
    out = linear_logprob(
        hidden.requires_grad_(), weight, targets, stats=names, chunk_rows=32, backend=backend, **options
    )
    assert list(out.stats) == list(names) and out.entropy is None
    assert not any(x.requires_grad for x in out.stats.values())
    assert torch.equal(out.logp, linear_logprob(hidden, weight, targets, chunk_rows=32, backend=backend, **options))
    assert torch.equal(out.stats["is_top1"].bool(), logits.argmax(-1) == targets) and out.stats["is_top1"].any()
    # sums of 517 fp32 numbers of size 10
    assert torch.allclose(out.stats["mean_logits"].double(), logits.mean(-1), rtol=0, atol=1e-5)
    assert torch.allclose(out.stats["log_sum_sq_probs"].double(), p.square().sum(-1).log(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_with_everything_compiles_in_one_graph(backend):
    """Guards torch.compile with an optional bias, under autocast, in [B, L, H]."""
    hidden, weight, targets, upstream, options = head_problem(FORMATS["fp32"], HEADS["all"], shape=(30, 133, 16))
    bias = options.pop("bias")

    def loss(h, w, b):
        with torch.autocast(DEVICE, torch.bfloat16):
            out = linear_logprob(
                2 * h.view(2, 15, 16), w, targets.view(2, 15), bias=b, backend=backend, chunk_rows=16, **options
            )
        return (out.flatten() * upstream).sum()

    got = []
    for fn in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        value = fn(*leaves)
        value.backward()
        got.append((value.detach(), *(x.grad for x in leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


def test_module_is_a_linear_layer_in_a_checkpoint():
    """Guards embedders: a state dict of nn.Linear loads into the module, whose output is the function's."""
    linear, head = torch.nn.Linear(16, 33, bias=False), LinearLogprob(16, 33)
    head.load_state_dict(linear.state_dict())
    hidden, targets = torch.randn(5, 16), torch.arange(5)
    assert torch.equal(head(hidden, targets), linear_logprob(hidden, linear.weight, targets))


def test_buffers_of_rows_come_in_few_sizes():
    """Guards a caching allocator: buffers of ever other numbers of rows take memory of a few sizes, and look no
    different (no views, rows one after another)."""
    from vdengine.kernels.rows import ROUND_ROWS, row_buffer

    like = torch.empty(0, dtype=torch.bfloat16)
    held = set()
    for n in (0, 1, 77, 511, 512, 513, 900, 1024):
        buffer = row_buffer(like, n, 33, torch.float32)
        assert buffer.shape == (n, 33) and buffer.is_contiguous() and buffer.dtype == torch.float32
        assert not buffer._is_view()
        held.add(buffer.untyped_storage().nbytes() // (4 * 33))
    assert held == {0, ROUND_ROWS, 2 * ROUND_ROWS}


def test_what_is_kept_by_default(monkeypatch):
    """Guards the default of `saved_bytes`: a twentieth of a GPU's memory, whatever its size."""
    from types import SimpleNamespace

    module = sys.modules["vdengine.kernels.linear_logprob"]
    sizes = {0: 80 << 30, 1: 141 << 30}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d: SimpleNamespace(total_memory=sizes[d.index])
    )  # fmt: skip
    module.default_saved_bytes.cache_clear()
    for index, total in sizes.items():
        device = torch.device("cuda", index)
        assert module.default_saved_bytes(device) == total // 20
        weight = SimpleNamespace(device=device, shape=(151_936, 4096), element_size=lambda: 2)
        rows = module._kept_rows(8192, weight, None, 4096)
        assert rows == 8192  # 6NVH at Qwen-3's vocabulary, where 2 GiB would keep half
        assert module._kept_rows(8192, weight, 2 << 30, 4096) == 4096
    module.default_saved_bytes.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: 34 GB of logits")
def test_offsets_beyond_2_to_31():
    """Guards 32-bit offsets: row 16000 of a 152k vocabulary starts beyond element 2^31."""
    n, vocab = 16384, 151936
    logits = torch.empty(n, vocab, device="cuda").normal_(generator=torch.Generator("cuda").manual_seed(0))
    p = torch.empty(n, vocab, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(0, vocab, (n,), device="cuda")
    logp = torch.empty(n, device="cuda")
    last = logits[-1:].double().cpu()
    TritonRowKernel().rows(logits, targets, Transform(1.0), logp, None, p)
    exact = torch.log_softmax(last, -1)
    assert abs(logp[-1].item() - exact[0, int(targets[-1])].item()) < 1e-5
    want = exact.exp()[0]
    want[int(targets[-1])] -= 1
    assert torch.allclose(p[-1].double().cpu(), want, rtol=2**-8, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, "hidden must be [..., H] and weight [V, H]; got hidden [3, 5], weight [7, 4]"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, "targets must be [...], one per row of hidden"),
        ({"targets": torch.zeros(3, dtype=torch.int32)}, "targets must be int64; got torch.int32"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.int64)}, "hidden must be of a floating dtype; got torch.int64"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.float64)}, "must be float32, bfloat16 or float16; got torch.float64"),
        ({"bias": torch.zeros(4)}, "bias must be [V], weight is [V, H]; got [4], [7, 4]"),
        ({"softcap": 0.0}, "softcap must be a number in [1e-6, 1e6]; got 0.0"),
        ({"stats": ("entropy",)}, "unknown stats ['entropy']; allowed: is_top1, mean_logits, log_sum_sq_probs"),
        ({"scale": -1.0}, "scale must be a number in [1e-6, 1e6]; got -1.0"),
        ({"targets": torch.tensor([0, 7, 1])}, "7"),
        ({"temperature": 0.0}, "temperature must be a number in [1e-6, 1e6]; got 0.0"),
        ({"temperature": torch.tensor(1.0)}, "temperature must be a number"),
        ({"chunk_rows": 0}, "chunk_rows must be >= 1; got 0"),
        ({"saved_bytes": -1}, "saved_bytes must be >= 0; got -1"),
        ({"targets": torch.tensor([0, -1, 1]), "backend": "reference"}, "targets must be in [0, 7); got -1"),
        ({"backend": "cuda"}, "unknown backend 'cuda'; allowed: auto, triton, native, torch, reference"),
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
