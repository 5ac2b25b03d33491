"""Row gathers and segment sums with a backward that adds in a fixed order.

`x[index]` repeats rows (the keys of a prompt are used by every branch, and its last row predicts the first token of
every branch), so its backward adds. Torch adds with atomics or unordered scatters, on CPU and CUDA alike, and the last
bits then depend on the timing of threads. Here the caller passes the inverse of the index, which is built once per
pack, and the backward is a segmented sum in a fixed order:

    y = x[index]                    dx[j] = sum over i in order[offsets[j] : offsets[j+1]] of dy[i]

The log-prob of a branch is a sum of the same kind over contiguous rows: `segment_sum`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from vdengine import _native
from vdengine.kernels._triton import arch, device_of, jit, resolve, tl, triton
from vdengine.kernels.table import launch

# Both are fixed, because the order of addition is part of the result.
TILE_ROWS = 4  # rows that `gather_sum` reads at a time
SEGMENT_BLOCK = 256  # terms that `segment_sum` adds at a time


@jit
def gather_sum_kernel(
    src,  # [N, W]
    order,  # [n] int64
    offsets,  # [M+1] int64
    out,  # [M, W]
    width,
    stride_src,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per group and block of columns. ROWS rows are read at a time, so that the thousands of rows of a
    frequent token are not one long chain of dependent loads."""
    j = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first, last = tl.load(offsets + j), tl.load(offsets + j + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        at = start + tl.arange(0, ROWS)
        rows = tl.load(order + at, mask=at < last, other=0)
        mask = (at < last)[:, None] & (cols < width)[None, :]
        part = tl.load(src + rows[:, None] * stride_src + cols[None, :], mask=mask, other=0.0)
        total += tl.sum(part.to(tl.float32), 0)
    tl.store(out + j * width + cols, total.to(out.dtype.element_ty), mask=cols < width)


@jit
def sum_segment(x, first, last, BLOCK: tl.constexpr):
    """Sum of x[first:last] fp32, in the order that all kernels use: BLOCK running sums, then a tree over them."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < last, other=0.0)
    return tl.sum(total, 0)


@jit
def segment_sum_kernel(
    x,  # [R] fp32
    offsets,  # [B+1] int64
    out,  # [B] fp32
    BLOCK: tl.constexpr,
):
    """One program per segment."""
    b = tl.program_id(0)
    tl.store(out + b, sum_segment(x, tl.load(offsets + b), tl.load(offsets + b + 1), BLOCK))


# ----------------------------------------------------------------------------------------------------------------- sums


def gather_sum(
    src: Tensor,  # [N, ...] float32 or bfloat16
    order: Tensor,  # [n] int64, rows of src, group by group
    offsets: Tensor,  # [M+1] int64, bounds of the groups in `order`
    *,
    dtype: torch.dtype | None = None,  # of the result; default: src.dtype
    backend: str = "auto",  # triton | native | reference
) -> Tensor:  # [M, ...]
    """Sum rows of `src` by group: `out[j] = sum(src[order[offsets[j]:offsets[j+1]]])`, in that order.

    It accumulates in fp32, and equal input gives equal bits. An empty group gives zeros. Not differentiable.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on a CPU also an index out of range.
    """
    dtype = dtype or src.dtype
    _check_groups("gather_sum", src, order, offsets)
    backend = resolve("gather_sum", backend, src.device, cpu="native")
    if backend == "native" and src.device.type != "cpu":
        raise ValueError(f"gather_sum: backend 'native' is for CPU tensors; got {src.device}")
    if src.dtype not in _NAMES or dtype not in _NAMES:
        backend = "reference"  # float64, in tests
    out = _gather_sum_op(src.reshape(len(src), math.prod(src.shape[1:])), order, offsets, dtype, backend)
    return out.reshape(offsets.numel() - 1, *src.shape[1:])


@torch.library.custom_op(
    "vdengine::gather_sum",
    mutates_args=(),
    schema="(Tensor src, Tensor order, Tensor offsets, ScalarType dtype, str backend) -> Tensor",
)
def _gather_sum_op(
    src: Tensor,  # [N, W]
    order: Tensor,  # [n] int64
    offsets: Tensor,  # [M+1] int64
    dtype: torch.dtype,
    backend: str,
) -> Tensor:  # [M, W]
    m, width = offsets.numel() - 1, src.shape[1]
    order, offsets = order.contiguous(), offsets.contiguous()
    if src.device.type == "cpu":
        if backend != "native":  # which checks this itself
            _check_range("gather_sum", "order", order, len(src))
        check_offsets("gather_sum", offsets, order.numel())
    if backend == "reference":
        return gather_sum_reference(src, order, offsets).to(dtype)
    out = src.new_empty((m, width), dtype=dtype)
    src = src if src.stride(-1) == 1 or width <= 1 else src.contiguous()
    if backend == "native":
        _native.gather_sum(
            src.data_ptr(),
            _NAMES[src.dtype],
            len(src),
            width,
            src.stride(0),
            order.data_ptr(),
            order.numel(),
            offsets.data_ptr(),
            m,
            out.data_ptr(),
            _NAMES[dtype],
            out.stride(0),
            torch.get_num_threads(),
        )
    elif out.numel():
        config = launch("gather", src.dtype, width, arch(src.device))
        with device_of(src):
            gather_sum_kernel[(m, triton.cdiv(width, config.block))](
                src,
                order,
                offsets,
                out,
                width,
                src.stride(0),
                ROWS=TILE_ROWS,
                BLOCK=config.block,
                num_warps=config.warps,
            )
    return out


@_gather_sum_op.register_fake
def _(src, order, offsets, dtype, backend):
    return src.new_empty((offsets.numel() - 1, src.shape[1]), dtype=dtype)


def gather_sum_reference(
    src: Tensor,  # [N, W]
    order: Tensor,  # [n] int64
    offsets: Tensor,  # [M+1] int64
) -> Tensor:  # [M, W]
    """`gather_sum` in plain torch: [M, W], float64 for float64 input, else float32."""
    # `unsafe` skips a check of the offsets that would read them from the device
    grouped = src[order].to(torch.promote_types(src.dtype, torch.float32))
    return torch.segment_reduce(grouped, "sum", offsets=offsets, axis=0, initial=0.0, unsafe=True)


def segment_sum(
    x: Tensor,  # [R] float32 (float64 with the reference)
    offsets: Tensor,  # [B+1] int64
    *,
    backend: str = "auto",  # triton | reference
) -> Tensor:  # [B]
    """`out[b] = sum(x[offsets[b]:offsets[b+1]])`, 0 for an empty segment. The offsets ascend from 0 to R.
    Differentiable; equal input gives equal bits.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on a CPU also offsets that do not end at R.
    """
    if x.ndim != 1 or offsets.ndim != 1 or not offsets.numel() or offsets.dtype != torch.int64:
        raise ValueError(
            f"segment_sum: x must be [R] and offsets [B+1] int64; got {list(x.shape)}, {list(offsets.shape)} "
            f"{offsets.dtype}"
        )
    if x.device != offsets.device:
        raise ValueError(f"segment_sum: offsets is on {offsets.device}, x on {x.device}")
    backend = resolve("segment_sum", backend, x.device)
    return _segment_sum_op(x, offsets, "reference" if x.dtype != torch.float32 else backend)


@torch.library.custom_op(
    "vdengine::segment_sum", mutates_args=(), schema="(Tensor x, Tensor offsets, str backend) -> Tensor"
)
def _segment_sum_op(
    x: Tensor,  # [R]
    offsets: Tensor,  # [B+1] int64
    backend: str,
) -> Tensor:  # [B]
    offsets = offsets.contiguous()
    if x.device.type == "cpu":
        check_offsets("segment_sum", offsets, x.numel())
    if backend == "reference":
        return torch.segment_reduce(x, "sum", offsets=offsets, initial=0, unsafe=True)
    out = x.new_empty(offsets.numel() - 1)
    if out.numel():
        with device_of(x):
            segment_sum_kernel[(out.numel(),)](x.contiguous(), offsets, out, BLOCK=SEGMENT_BLOCK, num_warps=4)
    return out


@_segment_sum_op.register_fake
def _(x, offsets, backend):
    return x.new_empty(offsets.numel() - 1)


def _segment_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offsets, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.num_rows = x.numel()


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (offsets,) = ctx.saved_tensors
    return torch.repeat_interleave(grad, offsets.diff(), output_size=ctx.num_rows), None, None


_segment_sum_op.register_autograd(_segment_sum_backward, setup_context=_segment_sum_setup)


def _check_groups(op: str, src: Tensor, order: Tensor, offsets: Tensor) -> None:
    """Raise ValueError where shapes, dtypes or devices do not fit."""
    for name, index in (("order", order), ("offsets", offsets)):
        if index.ndim != 1 or index.dtype != torch.int64:
            raise ValueError(f"{op}: {name} must be one-dimensional int64; got {list(index.shape)} {index.dtype}")
        if index.device != src.device:
            raise ValueError(f"{op}: {name} is on {index.device}, src on {src.device}")
    if not offsets.numel() or src.ndim == 0:
        raise ValueError(f"{op}: offsets must be [M+1] and src [N, ...]; got {list(offsets.shape)}, {list(src.shape)}")


def _check_range(op: str, name: str, index: Tensor, size: int) -> None:
    """Raise ValueError for an index out of range, on a CPU: there the check is cheap, and a wrong index would read
    memory of others."""
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
        raise ValueError(f"{op}: {name} must be in [0, {size}); got {int(index.min())} to {int(index.max())}")


def check_offsets(op: str, offsets: Tensor, size: int) -> None:
    """Raise ValueError unless the offsets ascend from 0 to `size`."""
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != size or bool((offsets.diff() < 0).any()):
        raise ValueError(f"{op}: offsets must ascend from 0 to {size}; got {first} to {last}")


# -------------------------------------------------------------------------------------------------------------- gathers


def gather_rows(
    x: Tensor,  # [M, ...]
    index: Tensor,  # [N] int64, rows of x; a row may be repeated or left out
    order: Tensor,  # [N] int64, with `offsets` the inverse of index: row j is used at order[offsets[j]:offsets[j+1]]
    offsets: Tensor,  # [M+1] int64
) -> Tensor:  # [N, ...]
    """`x[index]` with a deterministic backward. `vdengine.trees.pack` builds the inverse.

    Raises:
        ValueError: on a CPU, in backward, an inverse out of range.
    """
    return _gather_rows_op(x, index, order, offsets)


@torch.library.custom_op(
    "vdengine::gather_rows",
    mutates_args=(),
    schema="(Tensor x, Tensor index, Tensor order, Tensor offsets) -> Tensor",
)
def _gather_rows_op(
    x: Tensor,  # [M, ...]
    index: Tensor,  # [N] int64
    order: Tensor,  # [N] int64
    offsets: Tensor,  # [M+1] int64
) -> Tensor:  # [N, ...]
    return x.index_select(0, index)


@_gather_rows_op.register_fake
def _(x, index, order, offsets):
    return x.new_empty((index.numel(), *x.shape[1:]))


_gather_rows_op.register_autograd(
    lambda ctx, grad: (gather_sum(grad, *ctx.saved_tensors), None, None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[2:]),
)


def embedding_rows(
    weight: Tensor,  # [V, H]
    tokens: Tensor,  # [T] int64
    unique: Tensor,  # [U] int64, the distinct tokens
    order: Tensor,  # [T] int64, with `offsets` the places of each: tokens[order[offsets[j]:offsets[j+1]]] = unique[j]
    offsets: Tensor,  # [U+1] int64
    *,
    fp32_weight_grad: bool = False,
) -> Tensor:  # [T, H] in weight.dtype
    """`weight[tokens]` with a gradient of the weight that is summed in fp32 and in a fixed order. `fp32_weight_grad`:
    as in `linear_logprob`."""
    if fp32_weight_grad:
        accept_fp32_grad(weight)
    return _embedding_op(weight, tokens, unique, order, offsets)


@torch.library.custom_op(
    "vdengine::embedding_rows",
    mutates_args=(),
    schema="(Tensor weight, Tensor tokens, Tensor unique, Tensor order, Tensor offsets) -> Tensor",
)
def _embedding_op(
    weight: Tensor,  # [V, H]
    tokens: Tensor,  # [T] int64
    unique: Tensor,  # [U] int64
    order: Tensor,  # [T] int64
    offsets: Tensor,  # [U+1] int64
) -> Tensor:  # [T, H]
    return weight.index_select(0, tokens)


@_embedding_op.register_fake
def _(weight, tokens, unique, order, offsets):
    return weight.new_empty((tokens.numel(), weight.shape[1]))


def _embedding_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[2:])
    ctx.weight_shape = inputs[0].shape


def _embedding_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    unique, order, offsets = ctx.saved_tensors
    # always in fp32, because a frequent token adds thousands of rows
    grad_weight = torch.zeros(ctx.weight_shape, dtype=torch.float32, device=grad.device)
    grad_weight[unique] = gather_sum(grad, order, offsets, dtype=torch.float32)
    return grad_weight, None, None, None, None


_embedding_op.register_autograd(_embedding_backward, setup_context=_embedding_setup)


def accept_fp32_grad(weight: Tensor) -> None:
    """Let autograd give an fp32 gradient to a bf16 leaf without rounding it.

    It is called in a module's forward, where under FSDP2 the gathered bf16 parameter exists. An FSDP2 unit accepts a
    gradient of another dtype if it has no other parameter; plain optimizers and DDP do not. In a compiled graph this
    has no effect, and the gradient of a bf16 weight is rounded once, at the end.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if weight.requires_grad and weight.is_leaf and weight.dtype != torch.float32:
        weight.grad_dtype = None


_NAMES: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
