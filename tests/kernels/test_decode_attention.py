"""`decode_attention` against float64, on every backend that runs here; tolerances as in `test_linear_logprob`."""

import pytest
import torch
from helpers.kernels import DEVICE, assert_close

from vdengine import _native
from vdengine.kernels.decode_attention import decode_attention, decode_attention_reference

BACKENDS = ["triton", "reference"] if DEVICE == "cuda" else ["triton", "native", "reference"]
DTYPES = [torch.float32, torch.bfloat16]


# heads, kv_heads, D, keys to a block, and the rows' lengths: none, one, blocks that are full and not, chunks of 64
SHAPES = [
    (6, 2, 16, 16, [33, 0, 1, 64]),
    (9, 3, 64, 4, [65, 7, 4]),
    (4, 4, 7, 3, [1, 129]),
    (7, 1, 80, 16, [16, 200, 15]),
    (16, 2, 128, 8, [130]),
]


def problem(heads, kv_heads, dim, block, lengths, dtype, seed=0, scale=1.0):
    """q, caches, table and lengths. Blocks lie in no order, and all that no row has a key in is NaN."""
    g = torch.Generator().manual_seed(seed)
    most = max(-(-n // block) for n in lengths) + 1
    q = torch.randn(len(lengths), heads, dim, generator=g) * scale
    table = (torch.randperm(len(lengths) * most, generator=g) + 1).view(-1, most).int()
    caches = [torch.full((len(lengths) * most + 2, block, kv_heads, dim), torch.nan) for _ in range(2)]
    for s, n in enumerate(lengths):
        for at in range(n):
            for cache in caches:
                cache[table[s, at // block], at % block] = torch.randn(kv_heads, dim, generator=g)
    tensors = [q.to(DEVICE, dtype), *(c.to(DEVICE, dtype) for c in caches)]
    return [*tensors, table.to(DEVICE), torch.tensor(lengths, dtype=torch.int32, device=DEVICE)]


def plain(q, k_cache, v_cache, table, lengths, scale=None, window=None):
    """Row by row, in the dtype of the operands between steps: what a bound for errors is made of."""
    out = torch.zeros_like(q)
    for s, n in enumerate(lengths.tolist()):
        if n:
            first = 0 if window is None else max(0, n - window)
            k, v = (c[table[s].long()].flatten(0, 1)[first:n].repeat_interleave(q.shape[1] // c.shape[2], 1)
                    for c in (k_cache, v_cache))  # fmt: skip
            scores = torch.einsum("hd,khd->hk", q[s], k) * (q.shape[2] ** -0.5 if scale is None else scale)
            out[s] = torch.einsum("hk,khd->hd", scores.softmax(-1), v)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: str(s[:4]))
def test_values_against_float64(backend, dtype, shape):
    """Guards the grouping of heads, the running maximum, the ends of blocks and chunks, and against reading beyond a
    row's keys: there is NaN."""
    arguments = problem(*shape, dtype)
    q, k, v, *index = arguments
    exact = plain(q.double(), k.double(), v.double(), *index)
    got = decode_attention(*arguments, backend=backend)
    assert got.dtype == dtype and got.shape == q.shape
    assert_close("out", got, plain(*arguments), exact, dtype)
    assert not got[index[1] == 0].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("window", [1, 5, 64, 70, 1000])
def test_window_and_scale(backend, dtype, window):
    """Guards sliding windows: within a block, over several, of one key, longer than a row; and a scale that is given.
    A wrong edge by one key shows."""
    for shape in SHAPES[:4]:
        arguments, options = problem(*shape, dtype), {"scale": 0.3, "window": window}
        q, k, v, *index = arguments
        exact = plain(q.double(), k.double(), v.double(), *index, **options)
        got = decode_attention(*arguments, backend=backend, **options)
        assert_close("out", got, plain(*arguments, **options), exact, dtype)
    q, k, v, table, lengths = problem(6, 2, 16, 16, [33, 200], dtype)
    whole = decode_attention(q, k, v, table, lengths, backend=backend)
    assert torch.equal(decode_attention(q, k, v, table, lengths, window=200, backend=backend), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_far_apart(backend):
    """Guards the softmax: scores in the hundreds, of both signs, overflow nothing, and the largest comes late."""
    arguments = problem(6, 2, 16, 16, [150, 70], torch.float32, scale=300.0)
    q, k, v, *index = arguments
    exact = plain(q.double(), k.double(), v.double(), *index)
    assert_close("out", decode_attention(*arguments, backend=backend), plain(*arguments), exact, torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="native code is for a CPU")
@pytest.mark.parametrize("simd", _native.simd_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_every_instruction_set(simd, dtype):
    """Guards machines that have fewer vectors than this one."""
    for shape in SHAPES:
        q, k, v, table, lengths = problem(*shape, dtype)
        out = torch.empty_like(q)
        _native.decode_attention(
            q.data_ptr(), "float32" if dtype == torch.float32 else "bfloat16", *q.shape[:2], k.shape[2], q.shape[2],
            q.stride(0), k.data_ptr(), v.data_ptr(), *k.shape[:2], table.data_ptr(), table.shape[1], table.stride(0),
            lengths.data_ptr(), q.shape[2] ** -0.5, out.data_ptr(), 2, simd,
        )  # fmt: skip
        exact = plain(q.double(), k.double(), v.double(), table, lengths)
        assert_close("out", out, plain(q, k, v, table, lengths), exact, dtype)


@pytest.mark.parametrize("backend", ["triton"] if DEVICE == "cuda" else ["triton", "native"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_a_row_has_the_same_bits_anywhere(backend, dtype):
    """Guards samples: not the rows beside it, nor where its blocks lie, nor the table's width, nor a second run may
    change a row."""
    q, k, v, table, lengths = problem(9, 3, 64, 16, [70, 33, 200], dtype)
    together = decode_attention(q, k, v, table, lengths, backend=backend)
    assert torch.equal(together, decode_attention(q, k, v, table, lengths, backend=backend))
    moved = torch.randperm(len(k), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    at = torch.empty_like(moved)
    at[moved] = torch.arange(len(k), device=DEVICE)
    for s in range(3):
        one = slice(s, s + 1)
        alone = decode_attention(q[one], k, v, table[one], lengths[one], backend=backend)
        assert torch.equal(alone[0], together[s])
        used = -(-int(lengths[s]) // 16)
        there = at[table[one, :used].long()].int()
        assert torch.equal(decode_attention(q[one], k[moved], v[moved], there, lengths[one], backend=backend), alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_and_no_rows(backend):
    """Guards queries that are a slice of one fused projection, a table that is part of a larger one, and idle steps."""
    q, k, v, table, lengths = problem(6, 2, 16, 16, [33, 5], torch.float32)
    fused = torch.cat((q.flatten(1), torch.ones(2, 40, device=DEVICE)), 1)
    wide = torch.cat((table, torch.full((2, 3), -7, dtype=torch.int32, device=DEVICE)), 1)
    expected = decode_attention(q, k, v, table, lengths, backend=backend)
    views = fused[:, :96].unflatten(1, (6, 16)), q.transpose(1, 2).contiguous().transpose(1, 2)
    for view in views:
        got = decode_attention(view, k, v, wide[:, : table.shape[1]], lengths, backend=backend)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 if backend == "reference" else 0)
    assert decode_attention(q[:0], k, v, table[:0], lengths[:0], backend=backend).shape == (0, 6, 16)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_compiled_is_one_graph_and_equal(backend):
    """Guards torch.compile: no graph break."""
    arguments = problem(6, 2, 16, 16, [33, 5], torch.float32)
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    expected = decode_attention(*arguments, backend=backend)
    assert torch.equal(compiled(*arguments, backend=backend), expected)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(16, 8, 128), (32, 8, 128), (9, 3, 64)], ids=str)
def test_model_shapes(shape):
    """Guards real heads and long rows, on tensor cores."""
    arguments = problem(*shape, 16, [1, 700, 16, 257], torch.bfloat16)
    q, k, v, *index = arguments
    exact = decode_attention_reference(q.double(), k.double(), v.double(), *index)
    got = decode_attention(*arguments, backend="triton")
    assert_close("out", got, decode_attention_reference(*arguments), exact, torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 4, 9)}, "q must be [S, heads, D], both caches [num_blocks, block, kv_heads, D]; got q"),
        ({"q": torch.zeros(2, 3, 8)}, "heads must be a multiple of kv_heads"),
        ({"q": torch.zeros(2, 4, 8).bfloat16()}, "must share one floating dtype; got torch.bfloat16, torch.float32"),
        ({"k_cache": torch.zeros(5, 2, 4, 8).transpose(1, 2)}, "k_cache and v_cache must be contiguous"),
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, "lengths [S]; got q [2, 4, 8], block_table [2, 3]"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, "block_table and lengths must be int32; got"),
        ({"block_table": torch.zeros(2, 3, dtype=torch.int32, device="meta")}, "block_table is on meta, q on cpu"),
        ({"lengths": torch.tensor([0, 13], dtype=torch.int32)}, "row 1: length 13 is outside 0..12, what its blocks"),
        ({"lengths": torch.tensor([-1, 1], dtype=torch.int32)}, "row 0: length -1 is outside 0..12"),
        ({"block_table": torch.full((2, 3), 5, dtype=torch.int32)}, "row 0: block 5 is outside 0..4"),
        ({"window": 0}, "window must be at least 1; got 0"),
        ({"backend": "cuda"}, "unknown backend 'cuda'; allowed: auto, triton, native, reference"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_arguments_that_do_not_fit(change, message, backend):
    """Guards embedders, and memory: a wrong call names the argument, and nothing outside the cache is read."""
    arguments = {
        "q": torch.zeros(2, 4, 8), "k_cache": torch.zeros(5, 4, 2, 8), "v_cache": torch.zeros(5, 4, 2, 8),
        "block_table": torch.zeros(2, 3, dtype=torch.int32), "lengths": torch.ones(2, dtype=torch.int32),
        "backend": backend,
    } | change  # fmt: skip
    with pytest.raises(ValueError) as error:
        decode_attention(**arguments)
    assert message in str(error.value)


def test_what_the_kernels_cannot_take():
    """Guards float64 and float16 on a CPU: "auto" falls back to torch, asking for native code is an error."""
    for dtype in (torch.float64, torch.float16):
        arguments = problem(6, 2, 16, 16, [5], dtype)
        assert decode_attention(*arguments).dtype == dtype
        with pytest.raises(ValueError, match="backend 'native' takes float32 and bfloat16 CPU tensors"):
            decode_attention(*arguments, backend="native")
