"""`qk_rope` against float64, for every backend that runs here. The tolerance is that of `test_linear_logprob`."""

import pytest
import torch
from helpers.kernels import DEVICE, assert_close
from torch.utils.checkpoint import checkpoint

from vdengine.kernels.rope import qk_rope, qk_rope_reference

BACKENDS = ["triton", "reference"]
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
SHAPES = [(1, 1, 1, 2), (5, 6, 2, 16), (7, 9, 3, 64), (3, 5, 1, 80), (4, 20, 4, 96), (3, 17, 1, 128)]  # T, Hq, Hk, D
NAMES = ("q", "k", "grad_q", "grad_k", "grad_q_weight", "grad_k_weight")


def problem(tokens, q_heads, k_heads, dim, dtype, seed=0):
    """q, k, cos, sin, two weights and the upstream gradients; a third of the tokens has none."""
    g = torch.Generator().manual_seed(seed)
    q, up_q = (torch.randn(tokens, q_heads, dim, generator=g) for _ in range(2))
    k, up_k = (torch.randn(tokens, k_heads, dim, generator=g) for _ in range(2))
    up_q[::3] = 0.0
    q_weight, k_weight = (torch.rand(dim, generator=g) + 0.5 for _ in range(2))
    angles = torch.randn(tokens, dim // 2, generator=g) * 10
    q, k, q_weight, k_weight, up_q, up_k = (
        t.to(DEVICE, dtype) for t in (q, k, q_weight, k_weight, up_q, up_k)
    )  # fmt: skip
    return [q, k, angles.cos().to(DEVICE), angles.sin().to(DEVICE), q_weight, k_weight, up_q, up_k]


def run(fn, q, k, cos, sin, q_weight, k_weight, up_q, up_k, norm=(True, True), **options):
    """Both results and the gradients of q, k and those weights that are used."""
    q, k, q_weight, k_weight = (t.detach().requires_grad_() for t in (q, k, q_weight, k_weight))
    weights = [w if on else None for w, on in zip((q_weight, k_weight), norm, strict=True)]
    out = fn(q, k, cos, sin, q_weight=weights[0], k_weight=weights[1], eps=EPS, **options)
    inputs = [q, k, *(w for w in weights if w is not None)]
    return *(t.detach() for t in out), *torch.autograd.grad(out, inputs, (up_q, up_k))


def plain(q, k, cos, sin, *, q_weight, k_weight, eps):
    """The formula as models usually have it, in the dtype of its operands between steps."""

    def turned(x, weight):
        if weight is not None:
            wide = x.float()
            x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
        a, b = x.chunk(2, dim=-1)
        c, s = (torch.cat((t, t), -1)[:, None].to(x.dtype) for t in (cos, sin))
        return x * c + torch.cat((-b, a), dim=-1) * s

    return turned(q, q_weight), turned(k, k_weight)


def doubles(arguments):
    return [t.double() for t in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", [(True, True), (False, False)], ids=["norm", "bare"])
def test_values_and_gradients_against_float64(backend, dtype, shape, norm):
    """Guards the rotation's sense both ways, the norm's backward, and heads or halves mixed up or lost in padding."""
    arguments = problem(*shape, dtype)
    exact = run(qk_rope_reference, *doubles(arguments), norm)
    peer = run(plain, *arguments, norm)
    got = run(qk_rope, *arguments, norm, backend=backend)
    for name, *values in zip(NAMES, got, peer, exact, strict=False):
        assert values[0].dtype == dtype
        assert_close(name, *values, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [(True, False), (False, True)], ids=["q", "k"])
def test_one_norm_alone(backend, norm):
    """Guards weights that are taken for each other's."""
    arguments = problem(5, 6, 2, 16, torch.float32)
    got, exact = run(qk_rope, *arguments, norm, backend=backend), run(qk_rope_reference, *doubles(arguments), norm)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_reference_has_the_bits_of_the_usual_formula():
    """Guards fp32 on a CPU: halves turned apart give what the whole head turned at once gives."""
    for shape in SHAPES:
        q, k, cos, sin, *_ = problem(*shape, torch.float32)
        full_cos, full_sin = torch.cat((cos, cos), -1)[:, None], torch.cat((sin, sin), -1)[:, None]
        for x, got in zip((q, k), qk_rope(q, k, cos, sin, backend="reference"), strict=True):
            a, b = x.chunk(2, dim=-1)
            assert torch.equal(got, torch.addcmul(x * full_cos, torch.cat((-b, a), dim=-1), full_sin))


def test_reference_is_rounded_once():
    """Guards bf16 models on a CPU: values are float64 ones rounded, though norm and rotation follow each other."""
    q, k, cos, sin, q_weight, k_weight, *_ = problem(40, 6, 2, 16, torch.bfloat16)
    exact = qk_rope_reference(*doubles((q, k, cos, sin, q_weight, k_weight)), EPS)
    for a, b in zip(qk_rope_reference(q, k, cos, sin, q_weight, k_weight, EPS), exact, strict=True):
        assert (a != b.to(torch.bfloat16)).double().mean() < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_are_relative(backend):
    """Guards the pairing of halves: scores depend on the distance of two tokens alone."""
    q, k, *_ = problem(1, 1, 1, 16, torch.float32)
    positions = torch.arange(12.0, device=DEVICE)[:, None] * 0.7 ** torch.arange(8.0, device=DEVICE)
    q, k = (x.expand(12, 1, 16) for x in (q, k))
    a, b = qk_rope(q, k, positions.cos(), positions.sin(), backend=backend)
    scores = a[:, 0] @ b[:, 0].t()
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_and_non_contiguous_heads(backend):
    """Guards empty packs, slices of a fused projection, and upstreams as attention gives them, heads first."""
    arguments = problem(5, 6, 2, 16, torch.float32)
    q, k, cos, sin, q_weight, k_weight, up_q, up_k = arguments
    none = run(
        qk_rope, q[:0], k[:0], cos[:0], sin[:0], q_weight, k_weight, up_q[:0], up_k[:0], backend=backend
    )  # fmt: skip
    assert [t.shape for t in none[:4]] == [(0, 6, 16), (0, 2, 16)] * 2
    assert all(torch.equal(t, torch.zeros_like(t)) for t in none[4:])
    fused = torch.cat((q, k, k), 1)
    heads_first = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (up_q, up_k)]
    across = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k)]  # elements apart: copied
    expected = run(qk_rope, *arguments, backend=backend)
    for views in (fused.split([6, 2, 2], 1)[:2], across):
        got = run(qk_rope, *views, cos, sin, q_weight, k_weight, *heads_first, backend=backend)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0 if backend == "triton" else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_weights_and_frozen_heads(backend):
    """Guards LoRA: frozen norms cost nothing and change nothing; frozen q and k get no gradient."""
    q, k, cos, sin, q_weight, k_weight, up_q, up_k = arguments = problem(5, 6, 2, 16, torch.float32)
    _, _, grad_q, grad_k, grad_qw, grad_kw = run(qk_rope, *arguments, backend=backend)
    options = {"q_weight": q_weight, "k_weight": k_weight, "eps": EPS, "backend": backend}
    a, b = q.clone().requires_grad_(), k.clone().requires_grad_()
    torch.autograd.backward(qk_rope(a, b, cos, sin, **options), (up_q, up_k))
    assert torch.equal(a.grad, grad_q) and torch.equal(b.grad, grad_k)
    q_weight.requires_grad_()
    k_weight.requires_grad_()
    torch.autograd.backward(qk_rope(q, k, cos, sin, **options), (up_q, up_k))
    assert q.grad is None and torch.equal(q_weight.grad, grad_qw) and torch.equal(k_weight.grad, grad_kw)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_result_is_used(backend):
    """Guards a caller that needs the queries alone."""
    q, k, cos, sin, q_weight, k_weight, up_q, _ = problem(5, 6, 2, 16, torch.float32)
    k.requires_grad_()
    q.requires_grad_()
    out, _ = qk_rope(q, k, cos, sin, q_weight=q_weight, k_weight=k_weight, backend=backend)
    out.backward(up_q)
    expected = q.detach().clone().requires_grad_()
    qk_rope(expected, k.detach(), cos, sin, q_weight=q_weight, k_weight=k_weight, backend="reference")[0].backward(up_q)
    # a sum over a head of 16 and a rotation, in fp32, in another order
    assert torch.allclose(q.grad, expected.grad, atol=1e-5) and (k.grad is None or not k.grad.any())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_twice_the_same_bits(backend):
    """Guards determinism: the weights' gradients are sums over tokens and heads in a fixed order."""
    arguments = problem(37, 6, 2, 16, torch.bfloat16)
    first, second = run(qk_rope, *arguments, backend=backend), run(qk_rope, *arguments, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [(True, True), (False, False)], ids=["norm", "bare"])
def test_compiled_is_one_graph_and_equal(backend, norm):
    """Guards torch.compile: no graph break, forward or backward, and the same results."""
    arguments = problem(5, 6, 2, 16, torch.float32)
    compiled = torch.compile(qk_rope, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        run(qk_rope, *arguments, norm, backend=backend), run(compiled, *arguments, norm, backend=backend), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_activation_checkpointing(backend):
    """Guards the backward against looking twice at what it saved, which recomputation forbids; the same bits."""
    arguments = problem(5, 6, 2, 16, torch.float32)

    def recomputed(*args, **options):
        return checkpoint(qk_rope, *args, use_reentrant=False, **options)

    expected = run(qk_rope, *arguments, backend=backend)
    for a, b in zip(run(recomputed, *arguments, backend=backend), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize(
    "shape", [(2500, 32, 8, 128), (1031, 9, 3, 64), (1031, 64, 8, 128), (300, 40, 40, 80)], ids=str
)
def test_model_shapes(shape):
    """Guards programs of several tokens, at the heads of real models."""
    arguments = problem(*shape, torch.bfloat16)
    exact, peer = run(qk_rope_reference, *doubles(arguments)), run(plain, *arguments)
    for name, *values in zip(NAMES, run(qk_rope, *arguments, backend="triton"), peer, exact, strict=True):
        assert_close(name, *values, torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 1, 8)}, "q must be [T, Hq, D] and k [T, Hk, D]; got q [3, 2, 8], k [2, 1, 8]"),
        ({"k": torch.zeros(3, 1, 8, dtype=torch.bfloat16)}, "q and k must share one floating dtype"),
        ({"sin": torch.zeros(3, 8)}, "sin must be [T, D/2]; got q [3, 2, 8], sin [3, 8]"),
        ({"cos": torch.zeros(3, 4, dtype=torch.bfloat16)}, "cos and sin must be float32"),
        ({"q_weight": torch.zeros(4)}, "q_weight must be [D]; got q [3, 2, 8], q_weight [4]"),
        ({"k_weight": torch.zeros(8, dtype=torch.bfloat16)}, "k_weight must have q's dtype, or float32"),
        ({"sin": torch.zeros(3, 4, device="meta")}, "qk_rope: sin is on meta, q on cpu"),
        ({"q": torch.zeros(3, 2, 7), "k": torch.zeros(3, 1, 7)}, "of an even number D of elements"),
        ({"backend": "cuda"}, "qk_rope: unknown backend 'cuda'; allowed: auto, triton, reference"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument and the shapes."""
    arguments = {
        "q": torch.zeros(3, 2, 8), "k": torch.zeros(3, 1, 8), "cos": torch.zeros(3, 4), "sin": torch.zeros(3, 4),
    } | change  # fmt: skip
    with pytest.raises(ValueError) as error:
        qk_rope(**arguments)
    assert message in str(error.value)


def test_what_the_kernel_cannot_take():
    """Guards float64: "auto" falls back to torch, asking for Triton is an error."""
    x, table = torch.ones(2, 1, 8, dtype=torch.float64, device=DEVICE), torch.ones(2, 4, device=DEVICE)
    assert qk_rope(x, x, table, table)[0].dtype == torch.float64
    with pytest.raises(ValueError, match="backend 'triton' takes"):
        qk_rope(x, x, table, table, backend="triton")
