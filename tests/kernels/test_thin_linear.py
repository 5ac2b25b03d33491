"""`thin_linear` against float64. The tolerance is that of `test_linear_logprob`."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import DEVICE, assert_close

from vdengine import _native
from vdengine.kernels.thin_linear import MAX_ROWS, thin_linear

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1, (1,)), (3, 7, (5, 2)), (16, 83, (37, 4, 6)), (13, 64, (16,)), (64, 200, (19, 33))]  # M, K, N of each


def problem(m, k, sizes, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, k, generator=g) for n in (m, *sizes)]
    return [t.to(DEVICE, dtype) for t in tensors]


@pytest.mark.skipif(DEVICE == "cuda", reason="native code is for a CPU")
@pytest.mark.parametrize("simd", _native.simd_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_against_float64(simd, dtype, shape):
    """Guards every instruction set, tiles that are not full, and the end of a row that is no whole vector."""
    x, *weights = problem(*shape, dtype)
    wide = x.float()
    out = torch.full((shape[0], sum(shape[2])), torch.nan)
    _native.thin_linear(
        wide.data_ptr(), shape[0], shape[1], wide.stride(0), [(w.data_ptr(), len(w), w.stride(0)) for w in weights],
        "float32" if dtype == torch.float32 else "bfloat16", out.data_ptr(), 2, simd,
    )  # fmt: skip
    exact = torch.cat([x.double() @ w.double().t() for w in weights], 1)
    assert_close("out", out, torch.cat([x.float() @ w.float().t() for w in weights], 1), exact, torch.float32)


@pytest.mark.parametrize("backend", ["reference"] if DEVICE == "cuda" else ["native", "onednn", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_results_of_each_weight(backend, dtype):
    """Guards the order of the results, their dtype, and a bf16 result's one rounding."""
    if backend == "onednn" and dtype != torch.float32:
        pytest.skip("oneDNN is asked for float32 alone")
    x, *weights = problem(16, 83, (37, 4, 6), dtype)
    for wanted in (None, torch.float32):
        got = thin_linear(x, *weights, dtype=wanted, backend=backend)
        assert [y.shape for y in got] == [(16, 37), (16, 4), (16, 6)]
        for y, w in zip(got, weights, strict=True):
            assert y.dtype == (wanted or dtype)
            assert_close("y", y, F.linear(x, w), x.double() @ w.double().t(), y.dtype)


@pytest.mark.parametrize("backend", ["reference"] if DEVICE == "cuda" else ["native", "onednn", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_biases(backend, dtype):
    """Guards layers with a bias beside layers without, and against a second rounding when it is added."""
    if backend == "onednn" and dtype != torch.float32:
        pytest.skip("oneDNN is asked for float32 alone")
    x, *weights = problem(16, 83, (37, 4, 6), dtype)
    biases = [torch.randn(37, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype) * 9, None, weights[2][:, 0]]
    for wanted in (None, torch.float32):
        got = thin_linear(x, *weights, biases=biases, dtype=wanted, backend=backend)
        for y, w, b in zip(got, weights, biases, strict=True):
            exact = F.linear(x.double(), w.double(), None if b is None else b.double())
            assert y.dtype == (wanted or dtype)
            assert_close("y", y, F.linear(x, w, b), exact, y.dtype)
    with pytest.raises(ValueError, match="2 biases for 3 weights"):
        thin_linear(x, *weights, biases=biases[:2])
    with pytest.raises(ValueError, match=r"biases must be \[N\].*got weight \[37, 83\], bias \[4\]"):
        thin_linear(x, *weights, biases=[weights[1][:, 0], None, None])


@pytest.mark.skipif(DEVICE == "cuda", reason="native code is for a CPU")
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_a_row_has_the_same_bits_anywhere(dtype):
    """Guards samples: a row's bits depend neither on the other rows, nor on other weights, nor on threads."""
    x, *weights = problem(13, 200, (37, 4, 6), dtype)
    together = torch.cat(thin_linear(x, *weights, dtype=torch.float32), 1)
    for rows in (slice(4, 5), slice(2, 9), slice(0, 12)):
        apart = [thin_linear(x[rows], w, dtype=torch.float32)[0] for w in weights]
        assert torch.equal(torch.cat(apart, 1), together[rows])
    torch.set_num_threads(1)
    assert torch.equal(torch.cat(thin_linear(x, *weights, dtype=torch.float32), 1), together)


def test_slices_and_no_rows():
    """Guards an x that is part of a wider buffer, weights that are not contiguous, and a step without rows."""
    x, w = problem(5, 32, (9,))
    expected = thin_linear(x, w)[0]
    wide = torch.cat((x, x), 1)[:, 32:]
    across = w.t().contiguous().t()
    for a, b in ((wide, w), (x, across)):
        torch.testing.assert_close(thin_linear(a, b)[0], expected, rtol=0, atol=0 if DEVICE == "cpu" else 1e-5)
    assert thin_linear(x[:0], w)[0].shape == (0, 9)


@pytest.mark.skipif(DEVICE == "cuda", reason="native code is for a CPU")
def test_compiled_is_one_graph_and_equal():
    """Guards torch.compile: no graph break."""
    x, *weights = problem(5, 32, (9, 4))
    compiled = torch.compile(thin_linear, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, *weights), thin_linear(x, *weights), strict=True):
        assert torch.equal(a, b)


def test_many_rows_are_left_to_a_library():
    """Guards packs of prompts: beyond a few rows "auto" is a GEMM that blocks its operands."""
    x, w = problem(MAX_ROWS + 1, 32, (9,))
    torch.testing.assert_close(thin_linear(x, w)[0], F.linear(x, w), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="backend 'native' cannot take torch.float64"):
        thin_linear(x.double(), w.double(), backend="native")
    assert thin_linear(x.double(), w.double())[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, "x must be [M, K], and there must be a weight; got x [3]"),
        ({"w": torch.zeros(4, 7)}, "weights must be [N, K]; got x [2, 8], weight [4, 7]"),
        ({"w": torch.zeros(4, 8).bfloat16()}, "weights must have x's dtype and device; got x torch.float32 on cpu"),
        ({"dtype": torch.float64}, "dtype must be x's, or float32; got torch.float64"),
        ({"backend": "triton"}, "unknown backend 'triton'; allowed: auto, native, onednn, reference"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument."""
    arguments = {"x": torch.zeros(2, 8), "w": torch.zeros(4, 8)} | change
    with pytest.raises(ValueError) as error:
        thin_linear(arguments.pop("x"), arguments.pop("w"), **arguments)
    assert message in str(error.value)
