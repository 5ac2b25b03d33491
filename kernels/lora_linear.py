"""A frozen linear layer with a low-rank adapter (LoRA, arXiv 2106.09685), forward and backward as one op each.

For T rows x of width K, a frozen weight W [N, K] and factors A [r, K], B [N, r], with z = d A^T and d the rows that the
adapter sees, which are x or x after dropout:

    y    = x W^T + bias + s z B^T
    g    = s dy B                       [T, r]
    d x  = dy W  (+ g A where d is x)
    d d  = g A
    d A  = g^T d,   d B = s dy^T z      and none of W: 4TKN FLOPs and not 6TKN

As one op, because of memory: selective checkpointing keeps what comes out of it, y and z, where the two products by
themselves would keep x W^T and z B^T too, twice the memory of the layer. The adapter's term is added by the GEMM that
computes it, so it is rounded once, and with B = 0 y has the bits of `F.linear(x, W, bias)`: the start of training is
the plain model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_linear(
    x: Tensor,  # [T, K]
    weight: Tensor,  # [N, K], of x's dtype; takes no gradient
    lora_A: Tensor,  # [r, K], any dtype
    lora_B: Tensor,  # [N, r], any dtype
    *,
    scale: float,
    bias: Tensor | None = None,  # [N], of x's dtype; takes no gradient
    dropped: Tensor | None = None,  # [T, K], x after dropout; default: x
) -> Tensor:  # [T, N]
    """`x @ weight.T + bias + scale * (dropped @ lora_A.T) @ lora_B.T`, in x's dtype. Differentiable in x, dropped and
    the factors, whose gradients have their own dtypes.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a weight or bias that takes a gradient.
    """
    rank = lora_A.shape[0] if lora_A.ndim == 2 else 0
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"lora_linear: weight must be [N, K]; got x {list(x.shape)}, weight {list(weight.shape)}")
    if not rank or lora_A.shape[1] != x.shape[1] or list(lora_B.shape) != [weight.shape[0], rank]:
        raise ValueError(
            f"lora_linear: lora_A must be [r, K] and lora_B [N, r]; got weight {list(weight.shape)}, lora_A "
            f"{list(lora_A.shape)}, lora_B {list(lora_B.shape)}"
        )
    if dropped is not None and (dropped.shape != x.shape or dropped.dtype != x.dtype):
        raise ValueError(f"lora_linear: dropped must be as x; got {list(dropped.shape)} {dropped.dtype}")
    for name, frozen in (("weight", weight), ("bias", bias)):
        if frozen is not None and frozen.dtype != x.dtype:
            raise ValueError(f"lora_linear: {name} must have x's dtype; got x {x.dtype}, {name} {frozen.dtype}")
        if frozen is not None and frozen.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"lora_linear: {name} takes a gradient; it must be frozen (requires_grad_(False))")
    y, _ = _forward_op(x, dropped, weight, bias, lora_A.to(x.dtype), lora_B.to(x.dtype), scale)
    return y


def lora_linear_reference(
    x: Tensor,  # [T, K]
    weight: Tensor,  # [N, K]
    lora_A: Tensor,  # [r, K]
    lora_B: Tensor,  # [N, r]
    *,
    scale: float,
    bias: Tensor | None = None,  # [N]
    dropped: Tensor | None = None,  # [T, K]
) -> Tensor:  # [T, N]
    """The definition in plain torch, all of one dtype."""
    return F.linear(x, weight, bias) + scale * F.linear(F.linear(x if dropped is None else dropped, lora_A), lora_B)


# -------------------------------------------------------------------------------------------------------------- the ops


@torch.library.custom_op(
    "vdengine::lora_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor? dropped, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scale) "
    "-> (Tensor, Tensor)",
)
def _forward_op(
    x: Tensor, dropped: Tensor | None, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """y [T, N] and z [T, r]."""
    y, z = F.linear(x, weight, bias), F.linear(x if dropped is None else dropped, a)
    return y.addmm_(z, b.t(), alpha=scale), z


@_forward_op.register_fake
def _(x, dropped, weight, bias, a, b, scale):
    return x.new_empty((x.shape[0], weight.shape[0])), x.new_empty((x.shape[0], a.shape[0]))


@torch.library.custom_op(
    "vdengine::lora_linear_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? dropped, Tensor weight, Tensor a, Tensor b, Tensor z, float scale, "
    "bool need_x) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor,  # [T, N]
    x: Tensor,
    dropped: Tensor | None,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    z: Tensor,
    scale: float,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d x [T, K] or [0], d dropped [T, K] or [0], d A [r, K], d B [N, r]."""
    g = torch.mm(grad, b).mul_(scale)  # [T, r]
    grad_x, grad_dropped = (x.new_empty(0) for _ in range(2))
    if need_x:
        grad_x = torch.mm(grad, weight)
        if dropped is None:
            grad_x.addmm_(g, a)
    if dropped is not None:
        grad_dropped = torch.mm(g, a)
    grad_a = torch.mm(g.t(), x if dropped is None else dropped)
    return grad_x, grad_dropped, grad_a, torch.mm(grad.t(), z).mul_(scale)


@_backward_op.register_fake
def _(grad, x, dropped, weight, a, b, z, scale, need_x):
    none = x.new_empty(0)
    grad_dropped = none if dropped is None else torch.empty_like(x)
    return torch.empty_like(x) if need_x else none, grad_dropped, torch.empty_like(a), torch.empty_like(b)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, dropped, weight, _, a, b, ctx.scale = inputs
    ctx.save_for_backward(x, dropped, weight, a, b, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    x, dropped, weight, a, b, z = ctx.saved_tensors
    need_x, need_dropped = ctx.needs_input_grad[:2]
    grad_x, grad_dropped, grad_a, grad_b = _backward_op(grad, x, dropped, weight, a, b, z, ctx.scale, need_x)
    return (
        grad_x if need_x else None,
        grad_dropped if need_dropped else None,
        None,
        None,
        grad_a,
        grad_b,
        None,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
