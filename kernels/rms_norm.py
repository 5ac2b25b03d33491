"""RMSNorm (arXiv 1910.07467), fused with the addition of a residual r if there is one. For each row x:

    s = x + r                            rounded to x's dtype, because the residual stream continues with it
    y = s * rstd * w                     rstd = 1 / sqrt(mean(s^2) + eps)

With u = w * dy, n = s * rstd and dot = mean(u * n) over a row, and ds the upstream gradient of s itself:

    dx = dr = rstd * (u - n * dot) + ds
    dw = sum over rows of dy * n

Everything is computed in fp32, and y is rounded once. (Hugging Face rounds n to the dtype, and again after the weight.)
Gemma's w is 1 plus the parameter: `RMSNorm(..., offset=1.0)`.

A program has whole rows in registers, so forward reads and writes each element once. So does backward: rstd is kept for
it, 4 bytes per row. dw is summed without atomics: WEIGHT_PROGRAMS programs, on any GPU, each add up a fixed range of
rows in order, and a reduction adds the partial sums.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from vdengine.kernels._triton import arch, device_of, jit, resolve, tl, triton
from vdengine.kernels.table import launch

WEIGHT_PROGRAMS = 256  # two for each SM of today's GPUs; the partial sums are 2% of the traffic at 16k rows
MAX_WIDTH = 16384  # a row must fit in the registers of a program
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@jit
def rms_norm_kernel(
    x,  # [N, H]
    residual,  # [N, H]; unread without RESIDUAL
    weight,  # [H]
    y,  # [N, H], out
    s,  # [N, H], out; unwritten without RESIDUAL
    rstd,  # [N] fp32, out
    num_rows,
    stride_x,
    stride_residual,
    eps,
    RESIDUAL: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per ROWS rows: one row of a wide tensor, several of a narrow one."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (cols < WIDTH)[None, :]
    value = tl.load(x + rows[:, None] * stride_x + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        at = residual + rows[:, None] * stride_residual + cols[None, :]
        rounded = (value + tl.load(at, mask=mask, other=0.0).to(tl.float32)).to(s.dtype.element_ty)
        tl.store(s + rows[:, None] * WIDTH + cols[None, :], rounded, mask=mask)
        value = rounded.to(tl.float32)  # the norm is that of the rounded s
    scale = tl.rsqrt(tl.sum(value * value, 1) / WIDTH + eps)
    tl.store(rstd + rows, scale, mask=rows < num_rows)
    w = tl.load(weight + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    out = value * scale[:, None] * w[None, :]
    tl.store(y + rows[:, None] * WIDTH + cols[None, :], out.to(y.dtype.element_ty), mask=mask)


@jit
def rms_norm_backward_kernel(
    grad,  # [N, H], of y
    grad_sum,  # [N, H], of s; unread without GRAD_SUM
    x,  # [N, H], what was normalised: s
    weight,  # [H]
    rstd,  # [N] fp32
    grad_x,  # [N, H], out
    partial,  # [programs, H] fp32, out
    num_rows,
    rows_each,
    stride_grad,
    stride_grad_sum,
    stride_x,
    GRAD_SUM: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program per `rows_each` rows, ROWS at a time. The loop is pipelined: the next rows are loaded meanwhile."""
    first = tl.program_id(0).to(tl.int64) * rows_each
    last = tl.minimum(first + rows_each, num_rows)
    cols = tl.arange(0, BLOCK)
    if BLOCK <= 8192:
        w = tl.load(weight + cols, mask=cols < WIDTH, other=0.0)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & (cols < WIDTH)[None, :]
        scale = tl.load(rstd + rows, mask=rows < last, other=0.0)
        dy = tl.load(grad + rows[:, None] * stride_grad + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        n = tl.load(x + rows[:, None] * stride_x + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        n = n * scale[:, None]
        if NEED_WEIGHT:
            total += dy * n
        if NEED_X:
            if BLOCK > 8192:  # loaded from the cache every time, because kept in registers it would spill
                w = tl.load(weight + cols, mask=cols < WIDTH, other=0.0)
            u = dy * w.to(tl.float32)[None, :]
            dot = tl.sum(u * n, 1) / WIDTH
            dx = scale[:, None] * (u - n * dot[:, None])
            if GRAD_SUM:
                at = grad_sum + rows[:, None] * stride_grad_sum + cols[None, :]
                dx += tl.load(at, mask=mask, other=0.0).to(tl.float32)
            to = grad_x + rows[:, None] * WIDTH + cols[None, :]
            tl.store(to, dx.to(grad_x.dtype.element_ty), mask=mask)
    if NEED_WEIGHT:
        to = partial + tl.program_id(0).to(tl.int64) * WIDTH + cols
        tl.store(to, tl.sum(total, 0), mask=cols < WIDTH)


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: None = None, backend: str = "auto"
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor,  # [..., H] float32, bfloat16 or float16 (float64 with the reference)
    weight: Tensor,  # [H] of x's dtype, or float32
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,  # [..., H], like x
    backend: str = "auto",  # triton | reference
) -> Tensor | tuple[Tensor, Tensor]:  # [..., H] (twice)
    """`y = x / rms(x) * weight`; with a residual the same of `s = x + residual`, and the pair `(y, s)`.

    Computed in fp32 and rounded once at the end. Differentiable in x, weight and residual, through both results; equal
    input gives equal bits. "auto" is Triton on CUDA, and torch on a CPU or if H is above 16384.

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit; the message names the argument.
    """
    _check(x, weight, residual)
    fits = x.dtype in DTYPES and x.shape[-1] <= MAX_WIDTH
    backend = resolve("rms_norm", "reference" if backend == "auto" and not fits else backend, x.device)
    if backend == "reference":
        return rms_norm_reference(x, weight, eps, residual=residual)
    if not fits:
        raise ValueError(
            f"rms_norm: backend 'triton' takes float32, bfloat16 and float16 rows of at most {MAX_WIDTH}; "
            f"got x {list(x.shape)} {x.dtype}"
        )
    y, s, _ = _forward_op(x, residual, weight, eps)
    return y if residual is None else (y, s)


@overload
def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, residual: None = None) -> Tensor: ...


@overload
def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor) -> tuple[Tensor, Tensor]: ...


@overload
def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]: ...


def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """`rms_norm` in plain torch: y, or (y, s), each [..., H]; float64 stays float64."""
    s = x if residual is None else x + residual
    wide = s.to(torch.promote_types(s.dtype, torch.float32))
    y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(s.dtype)
    return y if residual is None else (y, s)


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale; `norm(x)`, or `y, s = norm(x, residual=r)` with `s = x + r`.

    Args:
        offset: what is added to the weight, in fp32, to give the scale.
    """

    def __init__(
        self, size: int, eps: float = 1e-6, *, offset: float = 0.0, backend: str = "auto", **kwargs: Any
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset, **kwargs))
        self.eps, self.offset, self.backend = eps, offset, backend

    @property
    def scale(self) -> Tensor:  # [size]
        """What the normalised rows are multiplied by: the weight, or with an offset their sum in fp32."""
        if not self.offset:
            return self.weight
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)) + self.offset

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # each [..., H]
        """`rms_norm(x, self.scale, self.eps, residual=residual)`."""
        if residual is None:
            return rms_norm(x, self.scale, self.eps, backend=self.backend)
        return rms_norm(x, self.scale, self.eps, residual=residual, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}, backend={self.backend!r}"


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    """Raise ValueError where shapes, dtypes or devices do not fit."""
    if x.ndim == 0 or weight.ndim != 1 or weight.shape[0] != x.shape[-1] or x.shape[-1] == 0:
        raise ValueError(f"rms_norm: weight must be [H]; got x {list(x.shape)}, weight {list(weight.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"rms_norm: residual must have x's shape; got x {list(x.shape)}, residual {list(residual.shape)}"
        )
    if not x.is_floating_point() or weight.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"rms_norm: weight must have x's floating dtype, or float32; got {x.dtype}, {weight.dtype}")
    if residual is not None and residual.dtype != x.dtype:
        raise ValueError(f"rms_norm: residual must have x's dtype; got {x.dtype}, {residual.dtype}")
    for name, tensor in (("weight", weight), ("residual", residual)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"rms_norm: {name} is on {tensor.device}, x on {x.device}")


# -------------------------------------------------------------------------------------------------------------- the ops
# They are custom ops, so that torch.compile treats each as one node. What backward needs is an output like any other.


def _rows(x: Tensor) -> Tensor:  # [..., H] -> [N, H]
    """x as rows of stride 1 at equal distances; it is copied only if it is not of this form."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows_at_a_time(block: int) -> int:
    """Rows of a program: one, or of narrow rows as many as have 1024 elements together."""
    return max(1, 1024 // block)


@torch.library.custom_op(
    "vdengine::rms_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
)
def _forward_op(
    x: Tensor,  # [..., H]
    residual: Tensor | None,  # [..., H]
    weight: Tensor,  # [H]
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [..., H]; s [..., H], or [0] without a residual; rstd [...] fp32."""
    y, s, rstd = _forward_fake(x, residual, weight, eps)
    n, width = rstd.numel(), x.shape[-1]
    if n == 0:
        return y, s, rstd
    x = _rows(x)  # [n, H]
    r = x if residual is None else _rows(residual)
    config = launch("rms_norm", x.dtype, width, arch(x.device))
    rows = _rows_at_a_time(config.block)
    with device_of(x):
        rms_norm_kernel[(triton.cdiv(n, rows),)](
            x,
            r,
            weight.contiguous(),
            y,
            y if residual is None else s,
            rstd,
            n,
            x.stride(0),
            r.stride(0),
            eps,
            RESIDUAL=residual is not None,
            WIDTH=width,
            ROWS=rows,
            BLOCK=config.block,
            num_warps=config.warps,
        )
    return y, s, rstd


@_forward_op.register_fake
def _forward_fake(x, residual, weight, eps):
    return (
        x.new_empty(x.shape),
        x.new_empty(0 if residual is None else x.shape),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
    )


@torch.library.custom_op(
    "vdengine::rms_norm_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor? grad_sum, Tensor x, Tensor weight, Tensor rstd, bool need_x, bool need_weight) "
    "-> (Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor,  # [..., H], of y
    grad_sum: Tensor | None,  # [..., H], of s
    x: Tensor,  # [..., H], what was normalised
    weight: Tensor,  # [H]
    rstd: Tensor,  # [...] fp32
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """d x [..., H] or [0], and d weight [H] or [0]. x is what was normalised: s of forward."""
    grad_x, grad_weight = _backward_fake(grad, grad_sum, x, weight, rstd, need_x, need_weight)
    n, width = rstd.numel(), x.shape[-1]
    if n == 0:
        return grad_x, grad_weight.zero_()
    x, grad = _rows(x), _rows(grad)
    grad_s = grad if grad_sum is None else _rows(grad_sum)
    config = launch("rms_norm", x.dtype, width, arch(x.device))
    rows = _rows_at_a_time(config.block)
    rows_each = rows * triton.cdiv(n, rows * WEIGHT_PROGRAMS) if need_weight else rows  # of a program
    programs = triton.cdiv(n, rows_each)
    partial = rstd.new_empty((programs, width)) if need_weight else rstd
    with device_of(x):
        rms_norm_backward_kernel[(programs,)](
            grad,
            grad_s,
            x,
            weight.contiguous(),
            rstd,
            grad_x if need_x else x,
            partial,
            n,
            rows_each,
            grad.stride(0),
            grad_s.stride(0),
            x.stride(0),
            GRAD_SUM=grad_sum is not None,
            NEED_X=need_x,
            NEED_WEIGHT=need_weight,
            WIDTH=width,
            ROWS=rows,
            BLOCK=config.block,
            STAGES=_stages(rows_each, rows, config.block),
            num_warps=config.warps,
        )
    return grad_x, partial.sum(0).to(weight.dtype) if need_weight else grad_weight


def _stages(rows_each: int, rows: int, block: int) -> int:
    """Depth of the pipeline of a program's loop. The loads in flight of the two programs on an SM must cover the
    latency of memory, about 32 KB; for a row of 16384 elements there is no shared memory left."""
    tile = rows * block
    if rows_each <= rows or tile > 8192:
        return 1
    return min(5, 1 + 8192 // tile)


@_backward_op.register_fake
def _backward_fake(grad, grad_sum, x, weight, rstd, need_x, need_weight):
    return x.new_empty(x.shape if need_x else 0), weight.new_empty(weight.shape if need_weight else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, _ = inputs
    _, s, rstd = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else s, weight, rstd)


def _backward(ctx: Any, grad: Tensor | None, grad_sum: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    need_x, need_residual, need_weight, _ = ctx.needs_input_grad
    dx, dw = grad_sum, None
    if grad is not None:  # otherwise only s was used
        dx, dw = _backward_op(grad, grad_sum, *ctx.saved_tensors, need_x or need_residual, need_weight)
    return dx if need_x else None, dx if need_residual else None, dw if need_weight else None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
