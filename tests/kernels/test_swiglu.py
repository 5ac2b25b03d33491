"""`swiglu` with both activations against float64, for every backend that runs here.

The tolerance is that of `test_linear_logprob`.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import DEVICE, assert_close
from torch.utils.checkpoint import checkpoint

from vdengine.kernels.swiglu import ACTIVATIONS, swiglu, swiglu_reference

BACKENDS = ["triton", "reference"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (5, 72), (3, 7, 33), (2, 1100)]  # [..., I]: odd, around and above a block


def problem(shape, dtype, seed=0):
    """gate, up and an upstream gradient; gates from far below to far above 0."""
    g = torch.Generator().manual_seed(seed)
    gate, up, upstream = (torch.randn(shape, generator=g) for _ in range(3))
    gate[0] *= 40
    upstream[..., ::3] = 0.0
    return [t.to(DEVICE, dtype) for t in (gate, up, upstream)]


def run(fn, gate, up, upstream, **options):
    """y and both gradients."""
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    y = fn(gate, up, **options)
    return y.detach(), *torch.autograd.grad(y, (gate, up), upstream)


def plain(gate, up, activation="silu"):
    """The formula as models usually have it: rounded after the activation and after the product."""
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_against_float64(backend, dtype, shape, activation):
    """Guards the derivatives of silu and gelu, large gates, and elements lost at a block's end."""
    arguments, options = problem(shape, dtype), {"activation": activation}
    exact = run(swiglu_reference, *(t.double() for t in arguments), **options)
    peer = run(plain, *arguments, **options)
    got = run(swiglu, *arguments, backend=backend, **options)
    for name, *values in zip(("y", "grad_gate", "grad_up"), got, peer, exact, strict=True):
        assert values[0].dtype == dtype and values[0].isfinite().all()
        assert_close(name, *values, dtype)


def test_reference_is_rounded_once():
    """Guards bf16 models on a CPU: every value is the float64 one rounded, not one rounded twice."""
    gate, up, _ = problem((67, 72), torch.bfloat16)
    exact = swiglu_reference(gate.double(), up.double())
    assert (swiglu_reference(gate, up) != exact.to(torch.bfloat16)).double().mean() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_non_contiguous_rows(backend):
    """Guards empty packs, the halves of a fused gate-and-up projection, and transposed tensors and upstreams."""
    gate, up, upstream = problem((12, 40), torch.float32)
    empty = run(swiglu, gate[:0], up[:0], upstream[:0], backend=backend)
    assert [t.shape for t in empty] == [(0, 40)] * 3
    expected = run(swiglu, gate, up, upstream, backend=backend)
    fused = torch.cat((gate, up), 1)
    across = [t.t().contiguous().t() for t in (gate, up, upstream)]
    for arguments in ((*fused.chunk(2, dim=1), upstream), across, (gate, across[1], upstream)):
        for a, b in zip(run(swiglu, *arguments, backend=backend), expected, strict=True):
            # torch's vector and scalar loops differ in the last bit
            torch.testing.assert_close(a, b, rtol=0 if backend == "triton" else 1e-6, atol=0)
    one = torch.ones((), device=DEVICE).expand(12, 40)  # the gradient of a sum: strides of 0
    for a, b in zip(
        run(swiglu, gate, up, one, backend=backend),
        run(swiglu, gate, up, one.contiguous(), backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0 if backend == "triton" else 1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["gate", "up"])
def test_frozen_operand(backend, frozen):
    """Guards a frozen branch: the other gradient is unchanged."""
    gate, up, upstream = problem((5, 72), torch.float32)
    _, grad_gate, grad_up = run(swiglu, gate, up, upstream, backend=backend)
    gate.requires_grad_(frozen != "gate")
    up.requires_grad_(frozen != "up")
    swiglu(gate, up, backend=backend).backward(upstream)
    assert gate.grad is None if frozen == "gate" else torch.equal(gate.grad, grad_gate)
    assert up.grad is None if frozen == "up" else torch.equal(up.grad, grad_up)


@pytest.mark.parametrize("backend", BACKENDS)
def test_twice_the_same_bits(backend):
    """Guards determinism."""
    arguments = problem((5, 72), torch.bfloat16)
    first, second = run(swiglu, *arguments, backend=backend), run(swiglu, *arguments, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_is_one_graph_and_equal(backend, activation):
    """Guards torch.compile: no graph break, forward or backward, and the same results."""
    arguments, options = problem((5, 72), torch.float32), {"backend": backend, "activation": activation}
    compiled = torch.compile(swiglu, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(swiglu, *arguments, **options), run(compiled, *arguments, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_activation_checkpointing(backend):
    """Guards the backward against looking twice at what it saved, which recomputation forbids; the same bits."""
    arguments = problem((5, 72), torch.float32)

    def recomputed(*args, **options):
        return checkpoint(swiglu, *args, use_reentrant=False, **options)

    expected = run(swiglu, *arguments, backend=backend)
    for a, b in zip(run(recomputed, *arguments, backend=backend), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
def test_more_than_2_to_the_31_elements():
    """Guards offsets that overflow 32 bits: the last row of a large tensor, contiguous, and halves of a fused one."""
    n, width = 75_000, 14_336  # 2 n width > 2^31
    fused = torch.zeros(n, 2 * width, dtype=torch.bfloat16, device=DEVICE)
    fused[-1] = torch.randn(2 * width, device=DEVICE)
    gate, up = fused.chunk(2, dim=1)
    assert torch.equal(swiglu(gate, up)[-1], swiglu(gate[-1], up[-1]))
    whole = fused.view(2 * n, width)
    assert torch.equal(swiglu(whole, whole)[-1], swiglu(whole[-1], whole[-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": torch.zeros(3, 7)}, "swiglu: gate and up must be [..., I]; got gate [3, 8], up [3, 7]"),
        ({"up": torch.zeros(3, 8, dtype=torch.bfloat16)}, "gate and up must share one floating dtype"),
        ({"up": torch.zeros(3, 8, device="meta")}, "swiglu: up is on meta, gate on cpu"),
        ({"activation": "gelu"}, "swiglu: unknown activation 'gelu'; allowed: silu, gelu_tanh"),
        ({"backend": "cuda"}, "swiglu: unknown backend 'cuda'; allowed: auto, triton, reference"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument and the shapes."""
    with pytest.raises(ValueError) as error:
        swiglu(**({"gate": torch.zeros(3, 8), "up": torch.zeros(3, 8)} | change))
    assert message in str(error.value)


def test_what_the_kernel_cannot_take():
    """Guards float64: "auto" falls back to torch, asking for Triton is an error."""
    x = torch.ones(2, 8, dtype=torch.float64, device=DEVICE)
    assert swiglu(x, x).dtype == torch.float64
    with pytest.raises(ValueError, match="backend 'triton' takes"):
        swiglu(x, x, backend="triton")
