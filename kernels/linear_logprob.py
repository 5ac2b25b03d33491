"""Output head fused with its selected log-softmax: log p of one target per row, and never an [N, V] of logits.

With z = c W h (c = 1/temperature), p = softmax(z), y the target and g the upstream gradient of logp:

    logp     = z_y - logsumexp(z)
    P        = p - onehot(y)
    d hidden = -c g * (P @ W)               P @ W does not contain g: it is computed in forward
    d weight = -c P^T @ (g * hidden)        g scales [N, H] rows, never the [N, V] matrix

So any signed per-token gradient costs 6NVH FLOPs where P is kept until backward, and 8NVH where it is
recomputed; a frozen head costs 4NVH and keeps nothing of size V; without gradient it is one GEMM and a row
pass, 2NVH. Rows go through in chunks: a chunk's logits are the only [chunk, V] buffer, and P of as many chunks
as `saved_bytes` allows is kept.

Numerics. Logits are fp32 whatever the operands' dtype: rounded to bf16, logits between 16 and 32 have a spacing
of 0.125, which puts 0.01-0.02 nats per token of noise under every log-prob. P has the weight's dtype (it is an
operand of two GEMMs). d weight is accumulated and returned in fp32, chunk by chunk in order.
A row's result does not depend on `saved_bytes` or on whether gradients are wanted.

Entropy, if asked for, costs a term in the row pass; only a gradient through it needs the recomputation
(d z = -g_H p (log p + H)).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from vdengine.kernels.gather import accept_fp32_grad
from vdengine.kernels.rows import RowKernel, row_kernel

DEFAULT_SAVED_BYTES = 1 << 31  # one 4096-row chunk of bf16 P at a vocabulary of 152k is 1.2 GB


class Scored(NamedTuple):
    """What `linear_logprob` gives when asked for the entropy."""

    logp: Tensor  # [N] fp32
    entropy: Tensor  # [N] fp32, nats


@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: Literal[False] = False,
    saved_bytes: int | None = None, backend: str = "auto",
) -> Tensor: ...  # fmt: skip


@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool,
    saved_bytes: int | None = None, backend: str = "auto",
) -> Tensor | Scored: ...  # fmt: skip


def linear_logprob(
    hidden: Tensor,  # [N, H] float32 or bfloat16 (float64 with the reference)
    weight: Tensor,  # [V, H] same dtype
    targets: Tensor,  # [N] int64 in [0, V)
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    saved_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor | Scored:
    """log softmax(hidden @ weight.T / temperature)[targets] -> [N] fp32, differentiable in hidden and weight.

    Args:
        entropy: also return the entropy of each row's distribution, as `Scored(logp, entropy)`.
        saved_bytes: memory that may hold softmax chunks until backward; 0 recomputes all. Default 1 GiB.
        backend: "auto" (by device), "native" (CPU), "torch" (any device, chunked) or "reference" (plain
            torch in one piece; float64 stays float64).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, naming the argument; a target out of range (CPU).
    """
    _check(hidden, weight, targets, temperature)
    if backend == "reference":
        out = linear_logprob_reference(hidden, weight, targets, temperature)
        return out if entropy else out.logp
    if hidden.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"linear_logprob: hidden must be float32 or bfloat16; got {hidden.dtype}")
    accept_fp32_grad(weight)
    kernel = row_kernel(hidden.device, backend)
    saved = DEFAULT_SAVED_BYTES if saved_bytes is None else saved_bytes
    logp, ent = _LinearLogprob.apply(hidden, weight, targets, 1.0 / temperature, entropy, saved, kernel)
    return Scored(logp, ent) if entropy else logp


def linear_logprob_reference(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Scored:
    """The definition, in plain torch. fp32 logits (float64 for float64 input); memory 3NV."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logp = torch.log_softmax(hidden.to(dtype) @ weight.to(dtype).t() / temperature, dim=-1)
    entropy = -torch.special.xlogy(logp.exp(), logp.exp()).sum(-1)
    return Scored(logp.gather(-1, targets[:, None])[:, 0], entropy)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> None:
    shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"linear_logprob: hidden must be [N, H] and weight [V, H]; got {shapes}")
    if targets.ndim != 1 or targets.shape[0] != hidden.shape[0]:
        raise ValueError(f"linear_logprob: targets must be [N], one per row of hidden; got {shapes}")
    if targets.dtype != torch.int64:
        raise ValueError(f"linear_logprob: targets must be int64; got {targets.dtype}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(
            f"linear_logprob: hidden and weight must share one floating dtype; got {hidden.dtype}, {weight.dtype}"
        )
    if not hidden.device == weight.device == targets.device:
        raise ValueError(
            f"linear_logprob: arguments are on different devices: {hidden.device}, {weight.device}, {targets.device}"
        )
    if not temperature > 0:
        raise ValueError(f"linear_logprob: temperature must be > 0; got {temperature}")


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, c: float, entropy: bool, saved_bytes: int,
        kernel: RowKernel,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        n, vocab = hidden.shape[0], weight.shape[0]
        hidden = hidden.contiguous()
        logp = torch.empty(n, dtype=torch.float32, device=hidden.device)
        ent = torch.empty_like(logp) if entropy else None
        u = torch.empty_like(hidden) if need_hidden else None  # U = P @ W, [N, H]
        operand = kernel.logit_operand(weight)
        p_dtype = weight.dtype if need_hidden or need_weight else None
        kept: list[Tensor] = []  # P of the first chunks
        room = saved_bytes if need_weight else 0
        for rows in kernel.chunks(n, vocab):
            logits = kernel.logits(hidden[rows], operand)  # [chunk, V] fp32
            p = kernel.rows(logits, targets[rows], c, logp[rows], None if ent is None else ent[rows], p_dtype)
            if u is not None and p is not None:
                torch.mm(p, weight, out=u[rows])
            if p is not None and p.nbytes <= room:
                kept.append(p)
                room -= p.nbytes
            else:
                room = 0  # backward recomputes from here on
            del logits, p
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, targets, ent, u, *kept)
        ctx.c, ctx.kernel = c, kernel
        return logp, ent

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        hidden, weight, targets, ent, u, *kept = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        kernel, c = ctx.kernel, ctx.c
        if grad_entropy is not None:
            grads = _backward_with_entropy(
                hidden, weight, targets, ent, grad_logp, grad_entropy, c, kernel, need_hidden, need_weight
            )
            return (*grads, None, None, None, None, None)
        if grad_logp is None:
            return (None,) * 7
        g = (-c * grad_logp)[:, None]  # [N, 1] fp32
        grad_hidden = (g * u).to(hidden.dtype) if need_hidden else None
        if not need_weight:
            return (grad_hidden, *(None,) * 6)
        scaled = (g * hidden).to(weight.dtype)  # [N, H]
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        operand: Tensor | None = None
        for i, rows in enumerate(kernel.chunks(hidden.shape[0], weight.shape[0])):
            if i < len(kept):
                p = kept[i]
            else:
                operand = kernel.logit_operand(weight) if operand is None else operand
                logits = kernel.logits(hidden[rows], operand)
                p = kernel.rows(logits, targets[rows], c, torch.empty_like(grad_logp[rows]), None, weight.dtype)
                del logits
            kernel.add_grad_weight(grad_weight, p, scaled[rows])
        return grad_hidden, grad_weight, None, None, None, None, None


def _backward_with_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ent: Tensor, grad_logp: Tensor | None, grad_entropy: Tensor,
    c: float, kernel: RowKernel, need_hidden: bool, need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Both gradients by recomputation: dz = c (g (onehot - p) - g_H p (log p + H))."""
    grad_hidden = torch.empty_like(hidden) if need_hidden else None
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
    operand = kernel.logit_operand(weight)
    for rows in kernel.chunks(hidden.shape[0], weight.shape[0]):
        p = torch.softmax(kernel.logits(hidden[rows], operand).mul_(c), dim=-1)
        # p log p is 0 in the limit p -> 0, also where a logit is -inf
        dz = torch.special.xlogy(p, p).add_(p * ent[rows, None]).mul_(-grad_entropy[rows, None])
        if grad_logp is not None:
            p.mul_(-grad_logp[rows, None]).scatter_add_(1, targets[rows, None], grad_logp[rows, None])
            dz.add_(p)
        dz = dz.mul_(c).to(weight.dtype)
        if grad_hidden is not None:
            torch.mm(dz, weight, out=grad_hidden[rows])
        if grad_weight is not None:
            kernel.add_grad_weight(grad_weight, dz, hidden[rows])
    return grad_hidden, grad_weight
