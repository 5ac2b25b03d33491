"""Attention of one query per row over a paged key-value cache (arXiv 2309.06180), for decoding. The keys of row s are
in the blocks that row s of the table names. The query attends to the first lengths[s] of them:

    out[s, h] = softmax(q[s, h] . k / sqrt(D)) @ v        k and v of key head h // (heads / kv_heads)

With a window (sliding-window attention, arXiv 2310.06825) only to the last `window` of those.

The time is that of reading the cache. All queries of a key head read it once and together, with a running maximum and
fp32 sums. The bits of a row depend on its own keys alone, and not on their place in the cache or on other rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdengine import _native
from vdengine.kernels._triton import arch, device_of, jit, resolve, tl
from vdengine.kernels.table import launch, power_of_two

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@jit
def decode_attention_kernel(
    q,  # [S, HEADS, DIM]
    k_cache,  # [num_blocks, PAGE, KV_HEADS, DIM]
    v_cache,  # [num_blocks, PAGE, KV_HEADS, DIM]
    block_table,  # [S, max_blocks] int32
    lengths,  # [S] int32
    out,  # [S, HEADS, DIM], out
    stride_q,
    stride_table,
    scale,  # of the scores, times log2(e)
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,  # queries of a key head, padded to what tensor cores take
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,  # DIM, padded
    WINDOW: tl.constexpr,  # keys that are attended to, the last ones; 0: all
    PRECISION: tl.constexpr,  # of products: "tf32" holds 16-bit operands exactly, and more of a weight than they would
):
    """One program per row and key head, KEYS keys at a time."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + row)
    group = tl.arange(0, GROUP)
    cols = tl.arange(0, BLOCK)
    heads = head * (HEADS // KV_HEADS) + group
    mine = (group < HEADS // KV_HEADS)[:, None] & (cols < DIM)[None, :]
    queries = tl.load(q + row * stride_q + heads[:, None] * DIM + cols[None, :], mask=mine, other=0.0).to(tl.float32)
    high = tl.full([GROUP], -1e30, tl.float32)  # running maximum; finite, because -inf minus -inf is NaN
    total = tl.zeros([GROUP], tl.float32)
    sums = tl.zeros([GROUP, BLOCK], tl.float32)
    first = tl.maximum(length - WINDOW, 0) if WINDOW else 0
    for start in range(first, length, KEYS):
        at = start + tl.arange(0, KEYS)
        used = at < length
        page = tl.load(block_table + row * stride_table + at // PAGE, mask=used, other=0).to(tl.int64)
        where = (((page * PAGE + at % PAGE) * KV_HEADS + head) * DIM)[:, None] + cols[None, :]
        inside = used[:, None] & (cols < DIM)[None, :]
        keys = tl.load(k_cache + where, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(v_cache + where, mask=inside, other=0.0).to(tl.float32)
        z = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        z = tl.where(used[None, :], z, -1e30)
        new = tl.maximum(high, tl.max(z, 1))
        p = tl.where(used[None, :], tl.exp2(z - new[:, None]), 0.0)
        keep = tl.exp2(high - new)
        total = total * keep + tl.sum(p, 1)
        sums = tl.dot(p, values, sums * keep[:, None], input_precision=PRECISION)
        high = new
    y = sums / tl.where(total > 0, total, 1.0)[:, None]  # zeros for a row without keys
    to = out + row * (HEADS * DIM) + heads[:, None] * DIM + cols[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=mine)


def decode_attention(
    q: Tensor,  # [S, heads, D] float32, bfloat16 or float16 (float64 with the reference)
    k_cache: Tensor,  # [num_blocks, block, kv_heads, D], same dtype
    v_cache: Tensor,  # [num_blocks, block, kv_heads, D]
    block_table: Tensor,  # [S, max_blocks] int32: the blocks that hold row s's keys, in order
    lengths: Tensor,  # [S] int32: keys of each row
    *,
    scale: float | None = None,  # of the scores; default: D**-0.5
    window: int | None = None,  # attend to the last `window` of a row's keys; None: to all
    backend: str = "auto",  # triton | native (CPU; float32, bfloat16) | reference
) -> Tensor:  # [S, heads, D]
    """The attention of each row over its first `lengths[s]` keys, or the last `window` of them; zeros for a row without
    keys. The rest of the cache is not read. Computed in fp32 and rounded once; equal input gives equal bits. Not
    differentiable.

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit, a window below 1; the message names the
            argument. On a CPU also a length outside the table or a block outside the cache.
    """
    _check(q, k_cache, v_cache, block_table, lengths)
    if window is not None and window < 1:
        raise ValueError(f"decode_attention: window must be at least 1; got {window}")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    cpu = "native" if q.dtype in _NAMES else "reference"
    backend = "reference" if backend == "auto" and q.dtype not in DTYPES else backend
    backend = resolve("decode_attention", backend, q.device, cpu=cpu, more=("native",))
    if backend == "reference":
        if q.device.type == "cpu":
            _check_range(k_cache, block_table, lengths)
        return decode_attention_reference(q, k_cache, v_cache, block_table, lengths, scale=scale, window=window)
    if backend == "native" and (q.device.type != "cpu" or q.dtype not in _NAMES):
        raise ValueError(
            f"decode_attention: backend 'native' takes float32 and bfloat16 CPU tensors; got {q.dtype} on {q.device}"
        )
    if backend == "triton" and q.dtype not in DTYPES:
        raise ValueError(f"decode_attention: backend 'triton' takes float32, bfloat16 and float16; got {q.dtype}")
    return _decode_attention_op(q, k_cache, v_cache, block_table, lengths, scale, window or 0, backend)


def decode_attention_reference(
    q: Tensor,  # [S, heads, D]
    k_cache: Tensor,  # [num_blocks, block, kv_heads, D]
    v_cache: Tensor,  # [num_blocks, block, kv_heads, D]
    block_table: Tensor,  # [S, max_blocks] int32
    lengths: Tensor,  # [S] int32
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:  # [S, heads, D]
    """`decode_attention` in plain torch: the keys are gathered into rows, padded to the longest, for SDPA with a
    mask."""
    s = len(q)
    page = k_cache.shape[1]  # keys of a block
    num_blocks = -(-int(lengths.max()) // page) if s else 0  # of the longest row
    if num_blocks == 0:
        return torch.zeros_like(q)
    inside = torch.arange(num_blocks * page, device=q.device) < lengths[:, None]  # [S, L], L = num_blocks * page
    index = torch.where(inside[:, ::page], block_table[:, :num_blocks], 0)  # [S, num_blocks]
    seen = inside  # [S, L]
    if window is not None:
        seen = inside & (torch.arange(num_blocks * page, device=q.device) >= lengths[:, None] - window)
    # Beyond the row's keys the cache may have any values, and a weight of 0 does not remove a NaN: [S, L, kv_heads, D]
    k, v = (x[index].flatten(1, 2).masked_fill(~inside[:, :, None, None], 0) for x in (k_cache, v_cache))
    out = F.scaled_dot_product_attention(
        q[:, :, None],
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=seen[:, None, None],
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[2],
    )[:, :, 0]
    return torch.where((lengths > 0)[:, None, None], out, 0.0).to(q.dtype)


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: Tensor) -> None:
    op, shapes = "decode_attention", f"q {list(q.shape)}, k_cache {list(k_cache.shape)}, v_cache {list(v_cache.shape)}"
    if q.ndim != 3 or k_cache.ndim != 4 or k_cache.shape != v_cache.shape or q.shape[2] != k_cache.shape[3]:
        raise ValueError(f"{op}: q must be [S, heads, D], both caches [num_blocks, block, kv_heads, D]; got {shapes}")
    if 0 in (*q.shape[1:], *k_cache.shape) or q.shape[1] % k_cache.shape[2]:
        raise ValueError(f"{op}: heads must be a multiple of kv_heads, and nothing but S may be 0; got {shapes}")
    if not q.dtype == k_cache.dtype == v_cache.dtype or not q.is_floating_point():
        raise ValueError(
            f"{op}: q and the caches must share one floating dtype; got {q.dtype}, {k_cache.dtype}, {v_cache.dtype}"
        )
    if not k_cache.is_contiguous() or not v_cache.is_contiguous():
        raise ValueError(f"{op}: k_cache and v_cache must be contiguous: they are too large to copy")
    index = f"block_table {list(block_table.shape)} {block_table.dtype}, lengths {list(lengths.shape)} {lengths.dtype}"
    if block_table.ndim != 2 or lengths.ndim != 1 or not len(q) == len(block_table) == len(lengths):
        raise ValueError(f"{op}: block_table must be [S, max_blocks] and lengths [S]; got q {list(q.shape)}, {index}")
    if not block_table.dtype == lengths.dtype == torch.int32:
        raise ValueError(f"{op}: block_table and lengths must be int32; got {index}")
    others = {"k_cache": k_cache, "v_cache": v_cache, "block_table": block_table, "lengths": lengths}
    for name, x in others.items():
        if x.device != q.device:
            raise ValueError(f"{op}: {name} is on {x.device}, q on {q.device}")


def _check_range(
    k_cache: Tensor,  # [num_blocks, block, kv_heads, D]
    block_table: Tensor,  # [S, max_blocks] int32
    lengths: Tensor,  # [S] int32
) -> None:
    """Check that every row's keys are within its blocks, and its blocks within the cache. (The native backend checks it
    by itself.)

    Raises:
        ValueError: they are not.
    """
    num_blocks, page = k_cache.shape[:2]
    is_used = torch.arange(block_table.shape[1]) * page < lengths[:, None]  # [S, max_blocks]
    for s in range(len(lengths)):
        if not 0 <= (length := int(lengths[s])) <= block_table.shape[1] * page:
            raise ValueError(
                f"decode_attention: row {s}: length {length} is outside 0..{block_table.shape[1] * page}, what its "
                "blocks hold"
            )
        for block in block_table[s, is_used[s]].tolist():
            if not 0 <= block < num_blocks:
                raise ValueError(f"decode_attention: row {s}: block {block} is outside 0..{num_blocks - 1}")


@torch.library.custom_op(
    "vdengine::decode_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor lengths, float scale, int window, "
    "str backend) -> Tensor",
)
def _decode_attention_op(
    q: Tensor,  # [S, heads, D]
    k_cache: Tensor,  # [num_blocks, block, kv_heads, D]
    v_cache: Tensor,  # [num_blocks, block, kv_heads, D]
    block_table: Tensor,  # [S, max_blocks] int32
    lengths: Tensor,  # [S] int32
    scale: float,
    window: int,  # 0: all keys
    backend: str,
) -> Tensor:  # [S, heads, D]
    s, heads, d = q.shape
    num_blocks, page, kv_heads, _ = k_cache.shape
    out = torch.empty((s, heads, d), dtype=q.dtype, device=q.device)
    if s == 0:
        return out
    q = q if q.stride(2) == 1 and q.stride(1) == d else q.contiguous()
    block_table, lengths = block_table if block_table.stride(1) == 1 else block_table.contiguous(), lengths.contiguous()
    if backend == "native":
        name: Any = _NAMES[q.dtype]
        _native.decode_attention(
            q.data_ptr(),
            name,
            s,
            heads,
            kv_heads,
            d,
            q.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            num_blocks,
            page,
            block_table.data_ptr(),
            block_table.shape[1],
            block_table.stride(0),
            lengths.data_ptr(),
            scale,
            out.data_ptr(),
            torch.get_num_threads(),
            window=window,
        )
        return out
    config, block = launch("decode", q.dtype, d, arch(q.device)), power_of_two(d)
    keys = max(16, 2 * config.block // (q.element_size() * block))  # the table's blocks are for 16-bit keys
    with device_of(q):
        decode_attention_kernel[(s, kv_heads)](
            q,
            k_cache,
            v_cache,
            block_table,
            lengths,
            out,
            q.stride(0),
            block_table.stride(0),
            scale * math.log2(math.e),
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=d,
            PAGE=page,
            GROUP=power_of_two(heads // kv_heads),
            KEYS=keys,
            BLOCK=block,
            WINDOW=window,
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=config.warps,
        )
    return out


@_decode_attention_op.register_fake
def _(q, k_cache, v_cache, block_table, lengths, scale, window, backend):
    return q.new_empty(q.shape)


_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
