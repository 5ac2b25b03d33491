"""`rms_norm` against float64, for every backend that runs here. The tolerance is that of `test_linear_logprob`."""

import pytest
import torch
from helpers.kernels import DEVICE, assert_close
from torch.utils.checkpoint import checkpoint

from vdengine.kernels.rms_norm import RMSNorm, rms_norm, rms_norm_reference

BACKENDS = ["triton", "reference"]
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
SHAPES = [(1, 3), (5, 40), (67, 33), (3, 7, 130), (300, 16), (2, 1100)]  # [..., H]: odd, around and above a block


def problem(shape, dtype, seed=0):
    """x, residual, weight and the upstream gradients of both results; a third of the rows has none."""
    g = torch.Generator().manual_seed(seed)
    x, residual, up_y, up_s = (torch.randn(shape, generator=g) for _ in range(4))
    up_y[..., ::3, :] = 0.0
    weight = torch.rand(shape[-1], generator=g) + 0.5
    return [t.to(DEVICE, dtype) for t in (x, residual, weight, up_y, up_s)]


def run(fn, x, residual, weight, up_y, up_s, **options):
    """y, s and the gradients of x, residual and weight."""
    x, residual, weight = (t.detach().clone().requires_grad_() for t in (x, residual, weight))
    y, s = fn(x, weight, EPS, residual=residual, **options)
    torch.autograd.backward((y, s), (up_y.to(y.dtype), up_s.to(s.dtype)))
    return y.detach(), s.detach(), x.grad, residual.grad, weight.grad


def plain(x, weight, eps, *, residual):
    """The formula as models usually have it: rounded before the weight and after it."""
    s = x + residual
    wide = s.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(s.dtype) * weight, s


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_against_float64(backend, dtype, shape):
    """Guards the algebra, both gradient paths into the sum, and rows or columns lost or added at a block's end."""
    arguments = problem(shape, dtype)
    exact = run(rms_norm_reference, *(t.double() for t in arguments))
    peer = run(plain, *arguments)
    got = run(rms_norm, *arguments, backend=backend)
    names = ("y", "s", "grad_x", "grad_residual", "grad_weight")
    for name, *values in zip(names, got, peer, exact, strict=True):
        assert values[0].dtype == dtype
        assert_close(name, *values, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_residual_is_the_norm_of_the_sum(backend):
    """Guards against two code paths that differ: the pair's y is the plain norm of the pair's s, to the bit."""
    x, residual, weight, *_ = problem((67, 33), torch.bfloat16)
    y, s = rms_norm(x, weight, EPS, residual=residual, backend=backend)
    assert torch.equal(y, rms_norm(s, weight, EPS, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_offset_of_the_weight(backend, dtype):
    """Guards Gemma's norm: 1 + weight is a sum in fp32 (in bf16 small weights are lost beside a 1), and the weight has
    a gradient of its own dtype."""
    x, residual, weight, up_y, up_s = problem((67, 33), dtype)
    weight = weight * 0.01  # of which the sum in bf16 would keep one bit
    norm = RMSNorm(33, EPS, offset=1.0, backend=backend, dtype=dtype, device=DEVICE)
    assert not norm.weight.any()  # a new norm has the scale 1
    norm.weight.data.copy_(weight)
    exact = run(rms_norm_reference, x.double(), residual.double(), weight.double() + 1, up_y.double(), up_s.double())
    peer = run(plain, x, residual, weight.float() + 1, up_y.float(), up_s)
    a, r = x.clone().requires_grad_(), residual.clone().requires_grad_()
    y, s = norm(a, residual=r)
    torch.autograd.backward((y, s), (up_y, up_s))
    got = y.detach(), s.detach(), a.grad, r.grad, norm.weight.grad
    for name, *values in zip(("y", "s", "grad_x", "grad_residual", "grad_weight"), got, peer, exact, strict=True):
        assert values[0].dtype == dtype
        assert_close(name, *values, dtype)


def test_reference_is_rounded_once():
    """Guards bf16 models on a CPU: every value is the float64 one rounded, not one rounded twice."""
    x, _, weight, *_ = problem((67, 40), torch.bfloat16)
    exact = rms_norm_reference(x.double(), weight.double(), EPS)
    assert (rms_norm_reference(x, weight, EPS) != exact.to(torch.bfloat16)).double().mean() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("only", ["y", "s"])
def test_gradient_through_one_result(backend, only):
    """Guards a pair of which one result is not used: the other's gradient alone is right."""
    x, residual, weight, up_y, up_s = problem((5, 40), torch.float32)
    grads = []
    for fn, options in ((rms_norm, {"backend": backend}), (rms_norm_reference, {})):
        a, r, w = (t.clone().requires_grad_() for t in (x, residual, weight))
        y, s = fn(a, w, EPS, residual=r, **options)
        (y * up_y if only == "y" else s * up_s).sum().backward()
        grads.append((a.grad, r.grad, torch.zeros_like(w) if w.grad is None else w.grad))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_share_no_memory(backend):
    """Guards an optimizer or a clip that works in place: x and residual have equal gradients, not one."""
    *_, grad_x, grad_residual, _ = run(rms_norm, *problem((5, 40), torch.float32), backend=backend)
    assert torch.equal(grad_x, grad_residual) and grad_x.data_ptr() != grad_residual.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_frozen_operand(backend, frozen):
    """Guards LoRA and frozen trunks: the other gradient is unchanged, the frozen one is not computed."""
    x, _, weight, up, _ = problem((300, 16), torch.float32)
    grads = {}
    for skip in ("nothing", frozen):
        a, w = x.clone().requires_grad_(skip != "x"), weight.clone().requires_grad_(skip != "weight")
        (rms_norm(a, w, EPS, backend=backend) * up).sum().backward()
        grads[skip] = a.grad, w.grad
    (full_x, full_w), (grad_x, grad_w) = grads["nothing"], grads[frozen]
    assert grad_x is None if frozen == "x" else torch.equal(grad_x, full_x)
    assert grad_w is None if frozen == "weight" else torch.equal(grad_w, full_w)


@pytest.mark.parametrize("backend", BACKENDS)
def test_twice_the_same_bits(backend):
    """Guards determinism: the weight's gradient is a sum over rows in a fixed order."""
    arguments = problem((517, 40), torch.bfloat16)
    first, second = run(rms_norm, *arguments, backend=backend), run(rms_norm, *arguments, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_its_neighbours(backend):
    """Guards the probes: a row's bits are the same alone and in company."""
    x, _, weight, *_ = problem((67, 40), torch.float32)
    together, alone = (rms_norm(rows, weight, backend=backend) for rows in (x, x[20:21]))
    assert torch.equal(together[20:21], alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_non_contiguous_rows(backend):
    """Guards empty packs, slices of a fused projection and transposed inputs and upstreams."""
    x, residual, weight, up, _ = problem((12, 40), torch.float32)
    a, w = x[:0].clone().requires_grad_(), weight.clone().requires_grad_()
    y, s = rms_norm(a, w, EPS, residual=residual[:0], backend=backend)
    (y.sum() + s.sum()).backward()
    assert y.shape == s.shape == a.grad.shape == (0, 40) and torch.equal(w.grad, torch.zeros_like(w))
    wide = torch.cat((x, residual, x), 1)  # [12, 120]
    for view in (wide[:, 40:80], wide[::2, 3:43], x.t().contiguous().t(), wide.view(12, 3, 40)[:, :2]):
        upstream = torch.randn(*view.shape[:-2], *view.shape[:-3:-1]).to(DEVICE).transpose(-1, -2)
        got, expected = (
            torch.autograd.grad(rms_norm(v, w, EPS, residual=v, backend=backend), (v, w), (u, u))
            for v, u in (
                (view.detach().requires_grad_(), upstream),
                (view.detach().contiguous().requires_grad_(), upstream.contiguous()),
            )
        )
        for a, b in zip(got, expected, strict=True):  # torch's vector and scalar loops differ in the last bits
            torch.testing.assert_close(a, b, rtol=0, atol=0 if backend == "triton" else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_weight_of_a_bf16_model(backend):
    """Guards norms kept in fp32: the result has x's dtype, the weight's gradient its own."""
    x, _, weight, up, _ = problem((67, 33), torch.bfloat16)
    grads = []
    for fn, a, w, u in (
        (lambda *args: rms_norm(*args, backend=backend), x.clone(), weight.float(), up),
        (rms_norm_reference, x.double(), weight.double(), up.double()),
    ):
        y = fn(a.requires_grad_(), w.requires_grad_(), EPS)
        grads += torch.autograd.grad(y, (a, w), u)
    assert [t.dtype for t in grads[:2]] == [torch.bfloat16, torch.float32]
    assert (grads[1] - grads[3]).abs().max() < 1e-5 * grads[3].abs().max()  # never rounded to bf16


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_is_one_graph_and_equal(backend):
    """Guards torch.compile: no graph break, forward or backward, and the same results."""
    arguments = problem((5, 40), torch.float32)
    compiled = torch.compile(rms_norm, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        run(rms_norm, *arguments, backend=backend), run(compiled, *arguments, backend=backend), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_module():
    """Guards the module: same function, same state dict as any RMSNorm."""
    x, residual, weight, *_ = problem((5, 40), torch.float32)
    norm = RMSNorm(40, EPS, device=DEVICE)
    assert norm.backend == "auto" and torch.equal(norm.weight, torch.ones_like(weight))
    norm.load_state_dict({"weight": weight})
    assert torch.equal(norm(x), rms_norm(x, weight, EPS))
    for a, b in zip(norm(x, residual), rms_norm(x, weight, EPS, residual=residual), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_activation_checkpointing(backend):
    """Guards the backward against looking twice at what it saved, which recomputation forbids; the same bits."""
    arguments = problem((5, 40), torch.float32)

    def recomputed(*args, **options):
        return checkpoint(rms_norm, *args, use_reentrant=False, **options)

    expected = run(rms_norm, *arguments, backend=backend)
    for a, b in zip(run(recomputed, *arguments, backend=backend), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("width", [4096, 5120, 8192, 16384])
def test_model_widths(width):
    """Guards the pipelined loop over many rows, at the widths of real models."""
    arguments = problem((1031, width), torch.bfloat16)
    exact, peer = run(rms_norm_reference, *(t.double() for t in arguments)), run(plain, *arguments)
    for name, *values in zip("ysxrw", run(rms_norm, *arguments, backend="triton"), peer, exact, strict=True):
        assert_close(name, *values, torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(7)}, "rms_norm: weight must be [H]; got x [3, 8], weight [7]"),
        ({"residual": torch.zeros(2, 8)}, "residual must have x's shape; got x [3, 8], residual [2, 8]"),
        ({"weight": torch.zeros(8, dtype=torch.bfloat16)}, "weight must have x's floating dtype, or float32"),
        ({"residual": torch.zeros(3, 8, dtype=torch.bfloat16)}, "residual must have x's dtype; got torch.float32"),
        ({"weight": torch.zeros(8, device="meta")}, "rms_norm: weight is on meta, x on cpu"),
        ({"backend": "cuda"}, "rms_norm: unknown backend 'cuda'; allowed: auto, triton, reference"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument and the shapes."""
    with pytest.raises(ValueError) as error:
        rms_norm(**({"x": torch.zeros(3, 8), "weight": torch.zeros(8)} | change))
    assert message in str(error.value)


def test_what_the_kernel_cannot_take():
    """Guards wide rows and float64: "auto" falls back to torch, asking for Triton is an error."""
    for x in (torch.ones(2, 16400, device=DEVICE), torch.ones(2, 8, dtype=torch.float64, device=DEVICE)):
        weight = torch.ones_like(x[0])
        assert torch.equal(rms_norm(x, weight, 0.0), x)
        with pytest.raises(ValueError, match="backend 'triton' takes"):
            rms_norm(x, weight, backend="triton")
