"""The elementwise product of SwiGLU and of GeGLU (arXiv 2002.05202). With sigma the logistic function, at u:

    y     = act(gate) * up                        act(g) = g sigma(u)
    dgate = dy * up * sigma (1 + g (1 - sigma) u')
    dup   = dy * g sigma

u = g for SiLU, u' = 1. GELU in its tanh form is g (1 + tanh(u / 2)) / 2, and that is g sigma(u), with

    u = 2 sqrt(2 / pi) (g + 0.044715 g^3)         u' = 2 sqrt(2 / pi) (1 + 3 * 0.044715 g^2)

Computed in fp32, and each result is rounded once; torch in 16 bits rounds after silu and again after the product.
Forward and backward are one pass each; backward computes sigma again and does not keep it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdengine.kernels._triton import arch, device_of, jit, resolve, tl, triton
from vdengine.kernels.table import launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("silu", "gelu_tanh")


@jit
def swiglu_kernel(
    gate,  # [N, I]
    up,  # [N, I]
    y,  # [N, I], out
    width,
    stride_gate,
    stride_up,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of a row. N * I may be above 2^31."""
    blocks = (width - 1) // BLOCK + 1  # not cdiv, because width + BLOCK may be above 2^31
    row = (tl.program_id(0) // blocks).to(tl.int64)
    cols = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    g = tl.load(gate + row * stride_gate + cols, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + cols, mask=mask, other=0.0).to(tl.float32)
    # 2 sqrt(2 / pi), and that times 0.044715
    sigma = tl.sigmoid(g * (1.5957691216057308 + 0.07135481627260025 * g * g)) if GELU else tl.sigmoid(g)
    tl.store(y + row * width + cols, (g * sigma * u).to(y.dtype.element_ty), mask=mask)


@jit
def swiglu_backward_kernel(
    grad,  # [N, I], of y
    gate,  # [N, I]
    up,  # [N, I]
    grad_gate,  # [N, I], out
    grad_up,  # [N, I], out
    width,
    stride_grad,
    stride_gate,
    stride_up,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both gradients. One program per block of a row."""
    blocks = (width - 1) // BLOCK + 1  # not cdiv, because width + BLOCK may be above 2^31
    row = (tl.program_id(0) // blocks).to(tl.int64)
    cols = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    dy = tl.load(grad + row * stride_grad + cols, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gate + row * stride_gate + cols, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + cols, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        sigma = tl.sigmoid(g * (1.5957691216057308 + 0.07135481627260025 * g * g))
        dg = dy * u * sigma * (1.0 + g * (1.0 - sigma) * (1.5957691216057308 + 3 * 0.07135481627260025 * g * g))
    else:
        sigma = tl.sigmoid(g)
        dg = dy * u * sigma * (1.0 + g * (1.0 - sigma))
    to = row * width + cols
    tl.store(grad_gate + to, dg.to(grad_gate.dtype.element_ty), mask=mask)
    tl.store(grad_up + to, (dy * g * sigma).to(grad_up.dtype.element_ty), mask=mask)


def swiglu(
    gate: Tensor,  # [..., I] float32, bfloat16 or float16 (float64 with the reference)
    up: Tensor,  # [..., I], like gate
    *,
    activation: str = "silu",  # | gelu_tanh
    backend: str = "auto",  # triton | reference
) -> Tensor:  # [..., I]
    """`activation(gate) * up`, computed in fp32 and rounded once. Differentiable in both.

    gate and up may be the halves of the output of one fused projection, which are not copied.

    Raises:
        ValueError: shapes, dtypes, devices, an activation or a backend that do not fit.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"swiglu: unknown activation {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if gate.shape != up.shape or gate.ndim == 0:
        raise ValueError(f"swiglu: gate and up must be [..., I]; got gate {list(gate.shape)}, up {list(up.shape)}")
    if gate.dtype != up.dtype or not gate.is_floating_point():
        raise ValueError(f"swiglu: gate and up must share one floating dtype; got {gate.dtype}, {up.dtype}")
    if gate.device != up.device:
        raise ValueError(f"swiglu: up is on {up.device}, gate on {gate.device}")
    fits = gate.dtype in DTYPES
    backend = resolve("swiglu", "reference" if backend == "auto" and not fits else backend, gate.device)
    if backend == "reference":
        return swiglu_reference(gate, up, activation=activation)
    if not fits:
        raise ValueError(f"swiglu: backend 'triton' takes float32, bfloat16 and float16; got {gate.dtype}")
    return _forward_op(gate, up, activation == "gelu_tanh")


def swiglu_reference(gate: Tensor, up: Tensor, *, activation: str = "silu") -> Tensor:  # [..., I] each
    """`swiglu` in plain torch; float64 stays float64."""
    dtype = torch.promote_types(gate.dtype, torch.float32)
    wide = gate.to(dtype)
    activated = F.silu(wide) if activation == "silu" else F.gelu(wide, approximate="tanh")
    return (activated * up.to(dtype)).to(gate.dtype)


# -------------------------------------------------------------------------------------------------------------- the ops


def _rows(*tensors: Tensor) -> list[Tensor]:
    """Each tensor as [N, I] with contiguous rows, copied only if necessary. If all are contiguous, as one row [1, N *
    I]: then no block of a narrow tensor is half empty, and loads are of 16 bytes if N * I is a multiple of 16."""
    if all(t.is_contiguous() for t in tensors):
        return [t.reshape(1, -1) for t in tensors]
    two_dimensional = [t.reshape(-1, t.shape[-1]) for t in tensors]
    return [t if t.stride(-1) == 1 else t.contiguous() for t in two_dimensional]


@torch.library.custom_op("vdengine::swiglu", mutates_args=(), schema="(Tensor gate, Tensor up, bool gelu) -> Tensor")
def _forward_op(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:  # [..., I] each
    y = gate.new_empty(gate.shape)
    if y.numel():
        config = launch("swiglu", gate.dtype, gate.shape[-1], arch(gate.device))
        g, u = _rows(gate, up)
        n, width = g.shape
        with device_of(gate):
            swiglu_kernel[(n * triton.cdiv(width, config.block),)](
                g, u, y, width, g.stride(0), u.stride(0), GELU=gelu, BLOCK=config.block, num_warps=config.warps
            )
    return y


@_forward_op.register_fake
def _(gate, up, gelu):
    return gate.new_empty(gate.shape)


@torch.library.custom_op(
    "vdengine::swiglu_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor gate, Tensor up, bool gelu) -> (Tensor, Tensor)",
)
def _backward_op(grad: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """d gate and d up. All tensors are [..., I]."""
    grad_gate, grad_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    if grad.numel():
        config = launch("swiglu", gate.dtype, gate.shape[-1], arch(gate.device))
        dy, g, u = _rows(grad, gate, up)
        n, width = g.shape
        with device_of(gate):
            swiglu_backward_kernel[(n * triton.cdiv(width, config.block),)](
                dy,
                g,
                u,
                grad_gate,
                grad_up,
                width,
                dy.stride(0),
                g.stride(0),
                u.stride(0),
                GELU=gelu,
                BLOCK=config.block,
                num_warps=config.warps,
            )
    return grad_gate, grad_up


@_backward_op.register_fake
def _(grad, gate, up, gelu):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.gelu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward_op(grad, *ctx.saved_tensors, ctx.gelu), None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
