"""Cross-entropy fused with the output head, for a loss whose gradient is known before backward: nothing is kept.

With P = softmax(z) - onehot(y), z = W h, and a weight s for each row (1, or 1/denominator, or 0):

    loss     = - sum s logp
    d hidden =   s * (P @ W)
    d weight = P^T @ (s * hidden)

Both gradients are computed chunk by chunk in forward, 6NVH FLOPs, where P exists anyway; backward multiplies them by
the loss's own upstream gradient, out of place, so that it may run twice. A loss that is no fixed weighting of the rows'
log-probs (DPO, PPO) needs `linear_logprob`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdengine.kernels.gather import accept_fp32_grad
from vdengine.kernels.linear_logprob import (
    check_head,
    check_rows,
    check_targets,
    chunks,
    linear_logprob_reference,
    softmax_chunk,
    weight_gradient,
)
from vdengine.kernels.rows import head_backend, row_buffer, row_kernel


def linear_cross_entropy(
    hidden: Tensor,  # [N, H] float32 or bfloat16
    weight: Tensor,  # [V, H] same dtype
    targets: Tensor,  # [N] int64 in [0, V), or ignore_index
    *,
    denominator: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:  # [] fp32
    """-log softmax(hidden @ weight.T)[targets], summed or averaged over the rows whose target is not `ignore_index`.

    Args:
        denominator: divide the sum by this instead: the scored tokens of a global batch, over ranks and
            accumulation steps; a number, or a 0-dim tensor on the rows' device. Only with reduction "mean".
        reduction: "mean" or "sum". A mean over no rows is 0.
        fp32_weight_grad, chunk_rows, backend: as in `linear_logprob`.

    The weight's gradient is accumulated in fp32. Rows left out still take part in the GEMMs:
    drop them beforehand where their number is known on the host.

    Raises:
        ValueError: as `linear_logprob`; an unknown reduction, or a denominator beside "sum".
    """
    check_head("linear_cross_entropy", hidden, weight, targets)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"linear_cross_entropy: unknown reduction {reduction!r}; allowed: mean, sum")
    if reduction == "sum" and denominator is not None:
        raise ValueError("linear_cross_entropy: denominator goes with reduction 'mean'; got 'sum'")
    if isinstance(denominator, Tensor) and denominator.ndim:
        raise ValueError(f"linear_cross_entropy: denominator must be one number; got {list(denominator.shape)}")
    denominator = denominator.detach() if isinstance(denominator, Tensor) else denominator
    backend = head_backend("linear_cross_entropy", backend, hidden.device)
    counts = targets != ignore_index
    inside = torch.where(counts, targets, 0)
    check_targets("linear_cross_entropy", inside, weight.shape[0])
    scale = counts.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)  # [N]
    if reduction == "mean":
        scale = scale / (counts.sum().clamp(min=1) if denominator is None else denominator)
    if backend == "reference":
        logp = linear_logprob_reference(hidden, weight, inside).logp
        return -(torch.where(counts, logp, 0.0) * scale).sum()
    kernel = check_rows("linear_cross_entropy", hidden, chunk_rows, backend)
    if fp32_weight_grad:
        accept_fp32_grad(weight)
    grad = torch.is_grad_enabled()
    loss, _, _ = _forward_op(
        hidden, weight, inside, scale, chunk_rows or kernel.chunk_rows(weight.shape[0]), backend,
        grad and hidden.requires_grad, grad and weight.requires_grad,
    )  # fmt: skip
    return loss


class LinearCrossEntropy(torch.nn.Module):
    """`linear_cross_entropy` for a head that lives elsewhere: `LinearCrossEntropy()(lm_head.weight, hidden, targets)`.

    hidden [..., H] and targets [...] may have batch dimensions.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(self, weight: Tensor, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """The loss, [] fp32; `options` are the function's."""
        options.setdefault("reduction", self.reduction)
        options.setdefault("ignore_index", self.ignore_index)
        return linear_cross_entropy(hidden.flatten(0, -2), weight, targets.flatten(), **options)


@torch.library.custom_op(
    "vdengine::linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor targets, Tensor scale, int chunk_rows, str backend, "
    "bool need_hidden, bool need_weight) -> (Tensor, Tensor, Tensor)",
)
def _forward_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, chunk_rows: int, backend: str, need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """loss [], d loss / d hidden [N, H] or [0], d loss / d weight [V, H] fp32 or [0]."""
    kernel = row_kernel("linear_cross_entropy", hidden.device, backend)
    hidden, n = hidden.contiguous(), hidden.shape[0]
    logp = hidden.new_empty(n, dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = weight_gradient(weight, n) if need_weight else weight.new_empty(0, dtype=torch.float32)
    scaled = (scale[:, None] * hidden).to(weight.dtype) if need_weight else hidden
    operand = kernel.logit_operand(weight)
    p = row_buffer(weight, min(n, chunk_rows), weight.shape[0], weight.dtype) if need_hidden or need_weight else None
    for rows in chunks(n, chunk_rows):
        part = None if p is None else p[: rows.stop - rows.start]
        softmax_chunk(kernel, hidden[rows], operand, targets[rows], 1.0, logp[rows], None, part)
        if need_hidden and part is not None:
            torch.mm(part, weight, out=grad_hidden[rows])
        if need_weight and part is not None:
            kernel.add_grad_weight(grad_weight, part, scaled[rows], rows.start == 0)
    if need_hidden:
        grad_hidden.mul_(scale[:, None])
    return -torch.where(scale == 0, 0.0, logp * scale).sum(), grad_hidden, grad_weight


@_forward_op.register_fake
def _(hidden, weight, targets, scale, chunk_rows, backend, need_hidden, need_weight):
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0, dtype=torch.float32),
    )


@torch.library.custom_op(
    "vdengine::linear_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_hidden, Tensor grad_weight) -> (Tensor, Tensor)",
)
def _backward_op(grad: Tensor, grad_hidden: Tensor, grad_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both times the loss's own gradient. An op that has no backward: a second derivative is an error."""
    return grad_hidden * grad, grad_weight * grad


@_backward_op.register_fake
def _(grad, grad_hidden, grad_weight):
    return torch.empty_like(grad_hidden), torch.empty_like(grad_weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.needs = inputs[-2:]


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    found = zip(_backward_op(grad, *ctx.saved_tensors), ctx.needs, strict=True)
    return (*(x if need else None for x, need in found), *(None,) * 6)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
