"""Row gather with a deterministic backward.

`x[index]` repeats rows (a prompt's keys serve every branch, its last row predicts every branch's first
token), so its backward adds. Torch adds with atomics or unordered scatters, on CPU and CUDA alike: the last
bits then depend on thread timing. Here the caller brings the inverse index, built once per pack, and the
backward is a segmented sum in a fixed order:

    y = x[index]                    dx[j] = sum over i in order[offsets[j] : offsets[j+1]] of dy[i]
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vdengine import _native


def gather_sum(
    src: Tensor,  # [N, ...] float32 or bfloat16
    order: Tensor,  # [n] int64, rows of src, grouped by output row
    offsets: Tensor,  # [M+1] int64, group bounds in order
    *,
    dtype: torch.dtype | None = None,  # of the result; default: src.dtype
) -> Tensor:  # [M, ...]
    """Sum rows of `src` by group: `out[j] = sum(src[order[offsets[j]:offsets[j+1]]])`, in that order.

    Accumulates in fp32 and is bitwise reproducible. An empty group gives zeros.
    """
    m, dtype = offsets.numel() - 1, dtype or src.dtype
    flat = src.reshape(src.shape[0], -1)
    out = torch.empty((m, flat.shape[1]), dtype=dtype, device=src.device)
    if src.device.type == "cpu" and src.dtype in _NAMES and dtype in _NAMES:
        flat = flat if flat.stride(-1) == 1 or flat.shape[1] <= 1 else flat.contiguous()
        _native.gather_sum(
            flat.data_ptr(), _NAMES[src.dtype], flat.shape[1], flat.stride(0), order.data_ptr(),
            offsets.data_ptr(), m, out.data_ptr(), _NAMES[dtype], out.stride(0), torch.get_num_threads(),
        )  # fmt: skip
    else:
        out = gather_sum_reference(flat, order, offsets).to(dtype)
    return out.reshape(m, *src.shape[1:])


def gather_sum_reference(src: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """`gather_sum` in torch alone: [M, W], float64 for float64 input, else float32."""
    # `unsafe` skips a validation of the offsets that reads them back from the device.
    grouped = src[order].to(torch.promote_types(src.dtype, torch.float32))
    return torch.segment_reduce(grouped, "sum", offsets=offsets, axis=0, initial=0.0, unsafe=True)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(order, offsets)
        return x.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        order, offsets = ctx.saved_tensors
        return gather_sum(grad, order, offsets), None, None, None


def gather_rows(
    x: Tensor,  # [M, ...]
    index: Tensor,  # [N] int64, rows of x; may repeat and skip
    order: Tensor,  # [N] int64 \  the inverse of index:
    offsets: Tensor,  # [M+1] int64 / row j is used at order[offsets[j]:offsets[j+1]]
) -> Tensor:  # [N, ...]
    """`x[index]`, with a deterministic backward. `data.trees.pack` builds the inverse."""
    return _GatherRows.apply(x, index, order, offsets)


class _EmbeddingRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, tokens: Tensor, unique: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(unique, order, offsets)
        ctx.weight_shape = weight.shape
        return weight.index_select(0, tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        unique, order, offsets = ctx.saved_tensors
        # fp32 whatever the compute dtype: a frequent token adds thousands of rows.
        grad_weight = torch.zeros(ctx.weight_shape, dtype=torch.float32, device=grad.device)
        grad_weight[unique] = gather_sum(grad, order, offsets, dtype=torch.float32)
        return grad_weight, None, None, None, None


def embedding_rows(
    weight: Tensor,  # [V, H]
    tokens: Tensor,  # [T] int64
    unique: Tensor,  # [U] int64, the distinct tokens
    order: Tensor,  # [T] int64 \ the inverse: unique[j] stands at
    offsets: Tensor,  # [U+1] int64 / order[offsets[j]:offsets[j+1]]
) -> Tensor:  # [T, H] in weight.dtype
    """Embedding look-up whose weight gradient is fp32 and summed in a fixed order."""
    accept_fp32_grad(weight)
    return _EmbeddingRows.apply(weight, tokens, unique, order, offsets)


def accept_fp32_grad(weight: Tensor) -> None:
    """Let autograd hand an fp32 gradient to a bf16 leaf instead of rounding it to bf16 on the way.

    Called inside a module's forward: under FSDP2 that is where the gathered bf16 parameter exists.
    """
    if weight.requires_grad and weight.is_leaf and weight.dtype != torch.float32:
        weight.grad_dtype = None


_NAMES: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
