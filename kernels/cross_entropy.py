"""Cross-entropy fused with the output head. The gradient of this loss is known in forward, so no softmax is kept.

With logits z = W h of N rows, P = softmax(z) - onehot(y), and a weight s of each row (1, 1/denominator, or 0):

    loss     = - sum s logp
    d hidden =   s * (P @ W)
    d weight = P^T @ (s * hidden)

The gradients are computed in forward, chunk by chunk of rows, where P is computed anyway: 6NVH FLOPs together.
Backward multiplies them by the upstream gradient of the loss, out of place, so that it may run twice. A loss that is
not a fixed weighting of the log-probs (DPO, PPO) needs `linear_logprob`, which has the formulas with bias, scale and
soft cap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdengine.kernels.gather import accept_fp32_grad
from vdengine.kernels.head_chunks import (
    HeadGradient,
    check_head,
    check_rows,
    check_targets,
    chunks,
    gathered,
    head_transform,
    no_head_gradient,
    operand_dtype,
    softmax_chunk,
)
from vdengine.kernels.linear_logprob import linear_logprob_reference
from vdengine.kernels.rows import Transform, head_backend, row_buffer, row_kernel


def linear_cross_entropy(
    hidden: Tensor,  # [..., H] float32, bfloat16 or float16
    weight: Tensor,  # [V, H], its dtype may be another
    targets: Tensor,  # [...] int64 in [0, V), or ignore_index
    *,
    bias: Tensor | None = None,  # [V]
    scale: float = 1.0,
    softcap: float | None = None,
    denominator: Tensor | float | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:  # [] fp32
    """-log softmax(hidden @ weight.T)[targets], summed or averaged over the rows whose target is not `ignore_index`.

    The gradient of the weight is accumulated in fp32. Ignored rows still take part in the GEMMs, so remove them
    beforehand if the host knows them.

    Args:
        denominator: divide the sum by this instead of by the number of rows, e.g. by the scored tokens of a global
            batch over ranks and accumulation steps. A number, or a tensor [] on the rows' device. Only for "mean".
        reduction: "mean" or "sum". A mean over no rows is 0.
        bias, scale, softcap, fp32_weight_grad, chunk_rows, backend: as in `linear_logprob`, and so are dtypes and
            DTensors.

    Raises:
        ValueError: as `linear_logprob`; an unknown reduction, or a denominator with "sum".
    """
    op = "linear_cross_entropy"
    check_head(op, hidden, weight, targets, bias)
    transform = head_transform(op, scale, softcap, 1.0)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"linear_cross_entropy: unknown reduction {reduction!r}; allowed: mean, sum")
    if reduction == "sum" and denominator is not None:
        raise ValueError("linear_cross_entropy: denominator goes with reduction 'mean'; got 'sum'")
    if isinstance(denominator, Tensor) and denominator.ndim:
        raise ValueError(f"linear_cross_entropy: denominator must be one number; got {list(denominator.shape)}")
    denominator = denominator.detach() if isinstance(denominator, Tensor) else denominator
    backend = head_backend(op, backend, hidden.device)
    dtype = operand_dtype(hidden)
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    is_scored = targets != ignore_index  # [N]
    valid_targets = torch.where(is_scored, targets, 0)  # [N]
    check_targets(op, valid_targets, weight.shape[0])
    weight, bias = gathered(weight), None if bias is None else gathered(bias)
    row_weight = is_scored.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)  # [N]
    if reduction == "mean":
        row_weight = row_weight / (is_scored.sum().clamp(min=1) if denominator is None else denominator)
    if backend == "reference":
        with torch.autocast(hidden.device.type, enabled=False):
            logp = linear_logprob_reference(
                hidden.to(dtype), weight.to(dtype), valid_targets, bias=bias, scale=scale, softcap=softcap
            ).logp
        return -(torch.where(is_scored, logp, 0.0) * row_weight).sum()
    kernel = check_rows(op, dtype, hidden.device, chunk_rows, backend)
    if fp32_weight_grad:
        accept_fp32_grad(weight)
    grad = torch.is_grad_enabled()
    loss, _, _, _ = _forward_op(
        hidden,
        weight,
        bias,
        valid_targets,
        row_weight,
        transform.c,
        transform.r,
        dtype,
        chunk_rows or kernel.chunk_rows(weight.shape[0]),
        backend,
        grad and hidden.requires_grad,
        grad and (weight.requires_grad or (bias is not None and bias.requires_grad)),
    )
    return loss


class LinearCrossEntropy(torch.nn.Module):
    """`linear_cross_entropy` as a module without parameters: `LinearCrossEntropy()(lm_head.weight, hidden, targets)`.

    weight [V, H]; hidden [..., H] and targets [...] may have batch dimensions.
    """

    def __init__(self, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(
        self,
        weight: Tensor,  # [V, H]
        hidden: Tensor,  # [..., H]
        targets: Tensor,  # [...] int64
        **options: Any,
    ) -> Tensor:  # [] fp32
        """The loss, [] fp32; `options` are keyword arguments of the function."""
        options.setdefault("reduction", self.reduction)
        options.setdefault("ignore_index", self.ignore_index)
        return linear_cross_entropy(hidden, weight, targets, **options)


@torch.library.custom_op(
    "vdengine::linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor row_weight, float c, float? r, "
    "ScalarType dtype, int chunk_rows, str backend, bool need_hidden, bool need_head) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    targets: Tensor,  # [N] int64
    row_weight: Tensor,  # [N] fp32, s
    c: float,  # of Transform
    r: float | None,  # of Transform
    dtype: torch.dtype,  # of the operands
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss [] fp32, d loss / d hidden [N, H] or [0], d weight [V, H] fp32 or [0], d bias [V] fp32 or [0]."""
    kernel, transform = row_kernel("linear_cross_entropy", hidden.device, backend), Transform(c, r, bias)
    input_dtype, hidden, weight, n = hidden.dtype, hidden.to(dtype).contiguous(), weight.to(dtype), hidden.shape[0]
    logp = hidden.new_empty(n, dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    gradient = HeadGradient(kernel, weight, bias, n) if need_head else None
    upstream = (transform.slope * row_weight)[:, None]  # [N, 1] fp32
    scaled = (upstream * hidden).to(dtype) if need_head else hidden
    operand = kernel.logit_operand(weight)
    p = row_buffer(weight, min(n, chunk_rows), weight.shape[0], dtype) if need_hidden or need_head else None
    for rows in chunks(n, chunk_rows):
        p_chunk = None if p is None else p[: rows.stop - rows.start]  # [rows, V]
        softmax_chunk(kernel, hidden[rows], operand, targets[rows], transform, logp[rows], None, p_chunk)
        if need_hidden and p_chunk is not None:
            torch.mm(p_chunk, weight, out=grad_hidden[rows])
        if gradient is not None and p_chunk is not None:
            gradient.add(p_chunk, scaled[rows], upstream[rows])
    if need_hidden:
        grad_hidden.mul_(upstream)
    loss = -torch.where(row_weight == 0, 0.0, logp * row_weight).sum()
    if gradient is None:
        return loss, grad_hidden.to(input_dtype), *no_head_gradient(weight)
    return loss, grad_hidden.to(input_dtype), gradient.weight, gradient.bias


@_forward_op.register_fake
def _(hidden, weight, bias, targets, row_weight, c, r, dtype, chunk_rows, backend, need_hidden, need_head):
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_head else 0, dtype=torch.float32),
        weight.new_empty(bias.shape if need_head and bias is not None else 0, dtype=torch.float32),
    )


@torch.library.custom_op(
    "vdengine::linear_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias) -> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor,  # [] fp32
    grad_hidden: Tensor,  # [N, H] or [0]
    grad_weight: Tensor,  # [V, H] fp32, or [0]
    grad_bias: Tensor,  # [V] fp32, or [0]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients times the upstream gradient of the loss. The op has no backward, so a second derivative is an
    error."""
    return grad_hidden * grad, grad_weight * grad, grad_bias * grad


@_backward_op.register_fake
def _(grad, grad_hidden, grad_weight, grad_bias):
    return torch.empty_like(grad_hidden), torch.empty_like(grad_weight), torch.empty_like(grad_bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    *_, need_hidden, need_head = inputs
    ctx.needs = need_hidden, need_head, need_head and inputs[2] is not None


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    gradients = zip(_backward_op(grad, *ctx.saved_tensors), ctx.needs, strict=True)
    return (*(gradient if need else None for gradient, need in gradients), *(None,) * 9)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
