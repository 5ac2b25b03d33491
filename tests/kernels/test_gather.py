"""The gather whose backward adds in a fixed order."""

import pytest
import torch

from vdengine.kernels.gather import embedding_rows, gather_rows, gather_sum, gather_sum_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inverse(index, m):
    order = torch.argsort(index, stable=True)
    return order, torch.searchsorted(index[order], torch.arange(m + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(9, 1), (40, 3, 5), (1, 33)])
def test_gather_rows_equals_indexing(dtype, shape):
    """Guards values and gradients, for rows used never, once and often."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g).to(dtype).requires_grad_()
    index = torch.randint(0, max(1, shape[0] // 2), (50,), generator=g)
    upstream = torch.randn(50, *shape[1:], generator=g).to(dtype)
    y = gather_rows(x, index, *inverse(index, shape[0]))
    assert torch.equal(y, x[index])
    y.backward(upstream)
    exact = torch.zeros(shape, dtype=torch.float64).index_add_(0, index, upstream.double())
    # fp32 accumulation of at most 50 terms, then one rounding to dtype
    assert torch.allclose(x.grad.double(), exact, rtol=torch.finfo(dtype).eps, atol=50 * 2**-23 * 4)
    first = x.grad.clone()
    x.grad = None
    gather_rows(x, index, *inverse(index, shape[0])).backward(upstream)
    assert torch.equal(first, x.grad)


def test_gather_sum_matches_its_reference_and_gives_zeros_for_empty_groups():
    """Guards the native kernel against the torch one."""
    src = torch.randn(30, 17)
    index = torch.randint(0, 5, (30,))
    index[index == 3] = 2
    order, offsets = inverse(index, 5)
    got = gather_sum(src, order, offsets)
    assert torch.allclose(got, gather_sum_reference(src, order, offsets), atol=1e-5)
    assert torch.equal(got[3], torch.zeros(17))


def test_embedding_gradient_is_fp32_and_equals_the_library():
    """Guards the embedding: a repeated token's rows add up in fp32 even under bf16."""
    tokens = torch.tensor([4, 1, 4, 4, 0])
    unique = tokens.unique()
    order, offsets = inverse(torch.searchsorted(unique, tokens), len(unique))
    weight = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(5, 8, dtype=torch.bfloat16)
    out = embedding_rows(weight, tokens, unique, order, offsets, fp32_weight_grad=True)
    assert torch.equal(out, torch.nn.functional.embedding(tokens, weight))
    out.backward(upstream)
    exact = torch.zeros(6, 8, dtype=torch.float64).index_add_(0, tokens, upstream.double())
    assert weight.grad.dtype == torch.float32
    assert torch.allclose(weight.grad.double(), exact, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=["to fp32", "to bf16"])
def test_triton_gather_sum(dtype, out):
    """Guards the kernel against float64: empty groups, groups longer than a tile, widths that are no block, slices."""
    g = torch.Generator().manual_seed(0)
    index = torch.randint(0, 9, (61,), generator=g)
    index[index == 3] = 2
    order, offsets = inverse(index, 9)
    src = torch.randn(61, 2 * 37, generator=g).to(dtype)[:, ::2]  # not contiguous
    args = [t.to(DEVICE) for t in (src, order, offsets)]
    got = gather_sum(*args, dtype=out, backend="triton")
    exact = gather_sum_reference(src.double(), order, offsets)
    assert got.dtype == out
    # fp32 sums of at most 20 terms below 4, then one rounding to the result's dtype
    assert torch.allclose(got.double().cpu(), exact, rtol=torch.finfo(out).eps, atol=20 * 2**-22)
    assert torch.equal(got, gather_sum(*args, dtype=out, backend="triton"))
    assert torch.equal(got[3].cpu(), torch.zeros(37, dtype=out))


def test_compiles_in_one_graph():
    """Guards torch.compile: a gather and an embedding, forward and backward, with the bits of eager."""
    index, tokens = torch.tensor([2, 0, 2, 1]), torch.tensor([4, 1, 4])
    by_row, unique = inverse(index, 3), tokens.unique()
    by_token = inverse(torch.searchsorted(unique, tokens), len(unique))

    def fn(weight):
        x = embedding_rows(weight, tokens, unique, *by_token)
        return gather_rows(x, index, *by_row).square().sum()

    got = []
    for f in (fn, torch.compile(fn, fullgraph=True, backend="aot_eager")):
        weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        f(weight).backward()
        got.append(weight.grad)
    assert torch.equal(*got)


@pytest.mark.parametrize("backend", ["triton", "native", "reference"] if DEVICE == "cpu" else ["triton", "reference"])
def test_strided_and_empty_arguments(backend):
    """Guards an index that is a column of a table, and a gather of no rows."""
    index = torch.tensor([2, 0, 2, 1], device=DEVICE)
    src = torch.randn(4, 5, device=DEVICE)
    order, offsets = (t.to(DEVICE) for t in inverse(index.cpu(), 3))
    strided = [torch.stack([t, t], 1)[:, 1] for t in (order, offsets)]
    assert torch.equal(gather_sum(src, *strided, backend=backend), gather_sum(src, order, offsets, backend=backend))
    x = torch.randn(3, 5, device=DEVICE, requires_grad=True)
    gather_rows(x, index[:0], order[:0], torch.zeros(4, dtype=torch.int64, device=DEVICE)).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": torch.tensor([0, 4])}, "order must be in [0, 3); got 0 to 4"),
        (
            {"order": torch.tensor([0, 1], dtype=torch.int32)},
            "order must be one-dimensional int64; got [2] torch.int32",
        ),
        ({"offsets": torch.tensor([0, 3])}, "offsets must ascend from 0 to 2; got 0 to 3"),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, "offsets must be [M+1]"),
        ({"order": torch.tensor([0, 1], device="meta")}, "order is on meta, src on cpu"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards the process: the kernels follow these indexes wherever they point."""
    arguments = {"src": torch.zeros(3, 4), "order": torch.tensor([0, 1]), "offsets": torch.tensor([0, 2])} | change
    with pytest.raises(ValueError) as error:
        gather_sum(**arguments)
    assert message in str(error.value)
