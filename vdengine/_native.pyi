"""Packing, batch assembly, CPU row kernels and CPU decoding (csrc/). Every call releases the GIL and is deterministic.

Pointers are addresses as `Tensor.data_ptr()` or `ndarray.ctypes.data` give them; strides are in elements; the
innermost dimension is contiguous; bfloat16 is stored as uint16. The caller keeps the memory alive and sized as
stated: that alone is not checked. `threads = 0` means the number given to `set_num_threads`, or OpenMP's default; at
most 1024. ValueError: no memory where some is touched, or memory that is not aligned to its dtype; a size or a stride
that is negative; indexes outside what they index.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_DType = Literal["float32", "bfloat16"]

def plan_packs(
    num_tokens: NDArray[np.int64],  # [n]
    cost: NDArray[np.float64],  # [n]
    ranks: int,
    budget: int,
) -> tuple[NDArray[np.int32], int]:
    """Deals n trees to packs of at most `budget` tokens: (bin of each tree [n], micro steps).

    Bin b is the pack of rank `b % ranks` in micro step `b // ranks`: every rank runs the same number of packs. There
    are as few micro steps as the heuristics can fit (the minimum in all but contrived cases). The bins of a micro
    step have about equal cost, as ranks wait for one another there; the costliest micro step comes first.

    No bin is empty when n >= ranks * micro_steps. With fewer trees some are, and those ranks run an empty pack; n = 0
    gives 0 micro steps. Time is O(n log n).

    ValueError: a tree above the budget or without tokens, a cost that is negative, costs whose sum is not finite, ranks
    or budget below 1, a budget above 2^31 - 1.
    """

def assemble(
    tokens: NDArray[np.int32],  # [L]
    scored: NDArray[np.uint8],  # [L]
    tree_start: NDArray[np.int64],  # [n+1]
    prompt_start: NDArray[np.int64],  # [n]
    prompt_len: NDArray[np.int64],  # [n]
    branch_start: NDArray[np.int64],  # [B]
    branch_len: NDArray[np.int64],  # [B]
    select: NDArray[np.int64],  # [k]
) -> dict[str, Any]:
    """The arrays of one pack of the trees `select`: see `vdengine.trees.pack_store`, which wraps it."""

def log_softmax_rows(
    logits_ptr: int,  # [n, v] logits_dtype
    logits_dtype: _DType,
    n: int,
    v: int,
    row_stride: int,
    targets_ptr: int,  # [n] int64
    inv_temperature: float,
    logp_ptr: int,  # [n] float32
    lse_ptr: int,  # [n] float32, or 0
    entropy_ptr: int = 0,  # [n] float32, or 0
    p_ptr: int = 0,  # [n, v] p_dtype, or 0
    p_dtype: _DType = "float32",
    p_row_stride: int = 0,
    threads: int = 0,
    simd: str = "auto",
) -> None:
    """Per row, with z = logits * inv_temperature: lse = log sum exp z, logp = z[target] - lse, entropy of softmax(z).

    With p_ptr also P = softmax(z) - onehot(target), rounded to nearest even; p_ptr may be logits_ptr where dtype and
    row stride agree. fp32 arithmetic, sums ended in fp64: within about 1e-6 of the fp64 formula, relative to
    max(1, |result|). Probabilities below 2^-126 are 0. A NaN or +inf logit makes its row NaN; -inf is a
    probability of 0. A row's result does not depend on the other rows, n or threads.

    `simd` names one of `simd_levels()`, for tests. ValueError: a target outside 0..v-1, an inv_temperature outside
    1e-30..1e30, strides below v.
    """

def gather_sum(
    src_ptr: int,  # [rows, width] src_dtype
    src_dtype: _DType,
    src_rows: int,
    width: int,
    src_row_stride: int,
    order_ptr: int,  # [num_order] int64, rows of src
    num_order: int,
    offsets_ptr: int,  # [m+1] int64
    m: int,
    out_ptr: int,  # [m, width] out_dtype
    out_dtype: _DType,
    out_row_stride: int,
    threads: int = 0,
) -> None:
    """out[j] = sum of src[order[i]] for i in offsets[j] .. offsets[j+1], added in that order in fp32; 0 for none.

    The same bits for every number of threads. ValueError: offsets that decrease or end after `order`, an entry of
    `order` that is no row of src.
    """

def thin_linear(
    x_ptr: int,  # [rows, width] float32
    rows: int,
    width: int,
    x_row_stride: int,
    weights: list[tuple[int, int, int]],  # address of [columns, width] weight_dtype, columns, row stride
    weight_dtype: _DType,
    y_ptr: int,  # [rows, columns of all weights] float32
    threads: int = 0,
    simd: str = "auto",
) -> None:
    """y = x @ weight.T of every weight, side by side. fp32 sums in a fixed order: the bits of an element depend on its
    row of x and of the weight alone, not on `rows`, the other weights or threads."""

def decode_attention(
    q_ptr: int,  # [rows, heads, dim] dtype; heads and dim contiguous
    dtype: _DType,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    q_row_stride: int,
    keys_ptr: int,  # [num_blocks, block, kv_heads, dim] dtype
    values_ptr: int,  # [num_blocks, block, kv_heads, dim] dtype
    num_blocks: int,
    block: int,
    table_ptr: int,  # [rows, max_blocks] int32: the blocks of each row's keys
    max_blocks: int,
    table_row_stride: int,
    lengths_ptr: int,  # [rows] int32: keys of each row
    scale: float,
    out_ptr: int,  # [rows, heads, dim] dtype
    threads: int = 0,
    simd: str = "auto",
    window: int = 0,  # attend to the last `window` of the row's keys; 0: to all
) -> None:
    """out[s, h] = softmax(scale * q[s, h] . keys) @ values over the first lengths[s] keys of row s, of key head
    h // (heads / kv_heads); zeros where there are none. fp32 inside, rounded once. A row's bits depend on its own
    keys alone. ValueError: a length or a block outside the table or the cache."""

def set_num_threads(n: int) -> None:
    """The number of threads of calls with `threads = 0`; n = 0 goes back to OpenMP's default."""

def simd_levels() -> list[str]:
    """Instruction sets the row kernel can use on this machine, best first: "avx512", "avx2", "baseline"."""

def has_openmp() -> bool:
    """Whether the extension was built with OpenMP. Without it every call runs on one thread."""
