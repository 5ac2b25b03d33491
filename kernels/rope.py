"""Rotary position embedding of queries and keys (arXiv 2104.09864, half-split layout), fused with Qwen-3's RMSNorm of
each head if there is one. For a head x of D elements, with halves a and b, at a token whose angles have cosines c and
sines s:

    n  = x * rstd * w                    rstd = 1 / sqrt(mean(x^2) + eps); without a weight, n = x
    ya = na * c - nb * s
    yb = nb * c + na * s

Backward rotates by the opposite angle, then goes through the norm:

    ga = ya' * c + yb' * s               the gradient of n, from y' that of y
    gb = yb' * c - ya' * s
    x' = rstd * (w g - m mean(w g m))    m = x * rstd
    w' = sum over tokens and heads of g * m

Everything is computed in fp32 and rounded once. There is one launch for queries and keys, and one for their gradients.
In forward a program has one token, whose cosines stay in registers for all heads. Without norms backward needs neither
q nor k; with them it computes rstd again. w' is summed without atomics: at most WEIGHT_PROGRAMS programs, on any GPU,
each add up a fixed range of tokens in order.

The file is above 500 lines because it has, as the file of every kernel, the maths, the kernels, the function, its
reference and the op.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdengine.kernels._triton import arch, device_of, jit, resolve, tl, triton
from vdengine.kernels.table import launch, power_of_two

WEIGHT_PROGRAMS = 1024  # enough to fill any GPU; the partial sums are small, 8D bytes per program
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@jit
def rotate_heads(
    x,  # [NUM_HEADS, 2 HALF], the heads of one token
    weight,  # [2 HALF]; unread without NORM
    y,  # [NUM_HEADS, 2 HALF], out
    stride,
    c,  # [1, BLOCK]
    s,  # [1, BLOCK]
    eps,
    NORM: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Norm and rotate the heads of one token, HEADS heads at a time, with one block for each half."""
    cols = tl.arange(0, BLOCK)
    for start in range(0, NUM_HEADS, HEADS):
        heads = (start + tl.arange(0, HEADS)).to(tl.int64)  # the stride of heads may be large
        mask = (heads < NUM_HEADS)[:, None] & (cols < HALF)[None, :]
        at = x + heads[:, None] * stride + cols[None, :]
        a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            wa = tl.load(weight + cols, mask=cols < HALF, other=0.0).to(tl.float32)
            wb = tl.load(weight + HALF + cols, mask=cols < HALF, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)
            a = a * scale[:, None] * wa[None, :]
            b = b * scale[:, None] * wb[None, :]
        to = y + heads[:, None] * (2 * HALF) + cols[None, :]
        tl.store(to, (a * c - b * s).to(y.dtype.element_ty), mask=mask)
        tl.store(to + HALF, (b * c + a * s).to(y.dtype.element_ty), mask=mask)


@jit
def qk_rope_kernel(
    q,  # [T, HQ, D]
    k,  # [T, HK, D]
    cos,  # [T, D/2] fp32
    sin,  # [T, D/2] fp32
    q_weight,  # [D]; unread without NORM_Q
    k_weight,  # [D]; unread without NORM_K
    out_q,  # [T, HQ, D], out
    out_k,  # [T, HK, D], out
    stride_q,
    stride_q_head,
    stride_k,
    stride_k_head,
    eps,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per token."""
    t = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    c = tl.load(cos + t * HALF + cols, mask=cols < HALF, other=0.0)[None, :]
    s = tl.load(sin + t * HALF + cols, mask=cols < HALF, other=0.0)[None, :]
    rotate_heads(
        q + t * stride_q,
        q_weight,
        out_q + t * (HQ * 2 * HALF),
        stride_q_head,
        c,
        s,
        eps,
        NORM_Q,
        HQ,
        HALF,
        HEADS,
        BLOCK,
    )
    rotate_heads(
        k + t * stride_k,
        k_weight,
        out_k + t * (HK * 2 * HALF),
        stride_k_head,
        c,
        s,
        eps,
        NORM_K,
        HK,
        HALF,
        HEADS,
        BLOCK,
    )


@jit
def rotate_heads_back(
    grad,  # [T, NUM_HEADS, 2 HALF], of the rotated heads
    x,  # [T, NUM_HEADS, 2 HALF]; unread without NORM
    cos,  # [T, HALF]
    sin,  # [T, HALF]
    weight,  # [2 HALF]; unread without NORM
    grad_x,  # [T, NUM_HEADS, 2 HALF], out
    partial,  # [2 HALF], out: sum for the weight's gradient; unwritten without NEED_WEIGHT
    first,  # of the tokens
    last,  # end of the tokens, exclusive
    stride_grad,
    stride_grad_head,
    stride_x,
    stride_x_head,
    eps,
    NORM: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradients of some tokens, HEADS heads at a time. One loop over tokens and groups of heads, so that the
    pipeline loads the next heads also from one token to the next."""
    GROUPS: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    cols = tl.arange(0, BLOCK)
    inside = cols < HALF
    total_a = tl.zeros([HEADS, BLOCK], tl.float32)
    total_b = tl.zeros([HEADS, BLOCK], tl.float32)
    for i in tl.range(first * GROUPS, last * GROUPS, num_stages=STAGES):
        t = i // GROUPS
        heads = (i % GROUPS) * HEADS + tl.arange(0, HEADS)
        mask = (heads < NUM_HEADS)[:, None] & inside[None, :]
        c = tl.load(cos + t * HALF + cols, mask=inside, other=0.0)[None, :]
        s = tl.load(sin + t * HALF + cols, mask=inside, other=0.0)[None, :]
        at = grad + t * stride_grad + heads[:, None] * stride_grad_head + cols[None, :]
        ya = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        yb = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
        ga = ya * c + yb * s
        gb = yb * c - ya * s
        if NORM:
            wa = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
            wb = tl.load(weight + HALF + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
            of = x + t * stride_x + heads[:, None] * stride_x_head + cols[None, :]
            a = tl.load(of, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(of + HALF, mask=mask, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + eps)[:, None]
            a = a * scale
            b = b * scale
            if NEED_WEIGHT:
                total_a += ga * a
                total_b += gb * b
            ga = ga * wa
            gb = gb * wb
            dot = (tl.sum(ga * a + gb * b, 1) / (2 * HALF))[:, None]
            ga = scale * (ga - a * dot)
            gb = scale * (gb - b * dot)
        to = grad_x + t * (NUM_HEADS * 2 * HALF) + heads[:, None] * (2 * HALF) + cols[None, :]
        tl.store(to, ga.to(grad_x.dtype.element_ty), mask=mask)
        tl.store(to + HALF, gb.to(grad_x.dtype.element_ty), mask=mask)
    if NEED_WEIGHT:
        tl.store(partial + cols, tl.sum(total_a, 0), mask=inside)
        tl.store(partial + HALF + cols, tl.sum(total_b, 0), mask=inside)


@jit
def qk_rope_backward_kernel(
    grad_q,  # [T, HQ, D], of the rotated queries
    grad_k,  # [T, HK, D]
    q,  # [T, HQ, D]; unread without NORM_Q
    k,  # [T, HK, D]; unread without NORM_K
    cos,  # [T, D/2] fp32
    sin,  # [T, D/2] fp32
    q_weight,  # [D]
    k_weight,  # [D]
    out_q,  # [T, HQ, D], out: d q
    out_k,  # [T, HK, D], out: d k
    partial,  # [programs, 2, D] fp32, out: sums for d q_weight and d k_weight
    num_tokens,
    tokens_each,
    stride_grad_q,
    stride_grad_q_head,
    stride_grad_k,
    stride_grad_k_head,
    stride_q,
    stride_q_head,
    stride_k,
    stride_k_head,
    eps,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program per `tokens_each` tokens: their queries, then their keys."""
    first = tl.program_id(0).to(tl.int64) * tokens_each
    last = tl.minimum(first + tokens_each, num_tokens)
    sums = partial + tl.program_id(0).to(tl.int64) * (4 * HALF)
    rotate_heads_back(
        grad_q,
        q,
        cos,
        sin,
        q_weight,
        out_q,
        sums,
        first,
        last,
        stride_grad_q,
        stride_grad_q_head,
        stride_q,
        stride_q_head,
        eps,
        NORM_Q,
        NEED_WEIGHT,
        HQ,
        HALF,
        HEADS,
        BLOCK,
        STAGES,
    )
    rotate_heads_back(
        grad_k,
        k,
        cos,
        sin,
        k_weight,
        out_k,
        sums + 2 * HALF,
        first,
        last,
        stride_grad_k,
        stride_grad_k_head,
        stride_k,
        stride_k_head,
        eps,
        NORM_K,
        NEED_WEIGHT,
        HK,
        HALF,
        HEADS,
        BLOCK,
        STAGES,
    )


def qk_rope(
    q: Tensor,  # [T, Hq, D] float32, bfloat16 or float16 (float64 with the reference)
    k: Tensor,  # [T, Hk, D], same dtype
    cos: Tensor,  # [T, D/2] fp32, of each token's angles
    sin: Tensor,  # [T, D/2] fp32
    *,
    q_weight: Tensor | None = None,  # [D] of q's dtype, or float32
    k_weight: Tensor | None = None,  # [D] likewise
    eps: float = 1e-6,
    backend: str = "auto",  # triton | reference
) -> tuple[Tensor, Tensor]:  # [T, Hq, D], [T, Hk, D]
    """The rotated queries and keys. If a weight is given, each head is RMS-normalised first.

    Computed in fp32 and rounded once. Differentiable in q, k and the weights; equal input gives equal bits. q and k may
    be slices of the output of one fused projection, which are not copied.

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit; the message names the argument.
    """
    _check(q, k, cos, sin, q_weight, k_weight)
    fits = q.dtype in DTYPES and cos.dtype == torch.float32
    backend = resolve("qk_rope", "reference" if backend == "auto" and not fits else backend, q.device)
    if backend == "reference":
        return qk_rope_reference(q, k, cos, sin, q_weight, k_weight, eps)
    if not fits:
        raise ValueError(
            f"qk_rope: backend 'triton' takes float32, bfloat16 and float16 heads and float32 cos and sin; "
            f"got {q.dtype}, {cos.dtype}"
        )
    return _forward_op(q, k, cos, sin, q_weight, k_weight, eps)


def qk_rope_reference(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hk, D]
    cos: Tensor,  # [T, D/2]
    sin: Tensor,  # [T, D/2]
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    eps: float,
) -> tuple[Tensor, Tensor]:  # [T, Hq, D], [T, Hk, D]
    """`qk_rope` in plain torch; float64 stays float64."""
    return _rotated(q, cos, sin, q_weight, eps), _rotated(k, cos, sin, k_weight, eps)


def _rotated(
    x: Tensor,  # [T, heads, D]
    cos: Tensor,  # [T, D/2]
    sin: Tensor,  # [T, D/2]
    weight: Tensor | None,  # [D]
    eps: float,
) -> Tensor:  # [T, heads, D]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # [T, heads, D]
    if weight is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    a, b = wide.chunk(2, dim=-1)  # [T, heads, D/2] each
    c, s = cos.to(wide.dtype)[:, None], sin.to(wide.dtype)[:, None]  # [T, 1, D/2] each
    # addcmul takes one temporary less than a product and a sum for each half
    return torch.cat((torch.addcmul(a * c, b, s, value=-1), torch.addcmul(b * c, a, s)), dim=-1).to(x.dtype)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> None:
    shapes = f"q {list(q.shape)}, k {list(k.shape)}"
    if q.ndim != 3 or k.ndim != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise ValueError(f"qk_rope: q must be [T, Hq, D] and k [T, Hk, D]; got {shapes}")
    if q.shape[2] % 2 or 0 in (*q.shape[1:], k.shape[1]):
        raise ValueError(f"qk_rope: there must be heads, of an even number D of elements; got {shapes}")
    if q.dtype != k.dtype or not q.is_floating_point():
        raise ValueError(f"qk_rope: q and k must share one floating dtype; got {q.dtype}, {k.dtype}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (q.shape[0], q.shape[2] // 2):
            raise ValueError(f"qk_rope: {name} must be [T, D/2]; got q {list(q.shape)}, {name} {list(table.shape)}")
        if table.dtype not in (torch.float32, torch.float64) or table.dtype != cos.dtype:
            raise ValueError(f"qk_rope: cos and sin must be float32; got {cos.dtype}, {sin.dtype}")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and weight.shape != q.shape[2:]:
            raise ValueError(f"qk_rope: {name} must be [D]; got q {list(q.shape)}, {name} {list(weight.shape)}")
        if weight is not None and weight.dtype not in (q.dtype, torch.float32):
            raise ValueError(f"qk_rope: {name} must have q's dtype, or float32; got {q.dtype}, {weight.dtype}")
    for name, tensor in (("k", k), ("cos", cos), ("sin", sin), ("q_weight", q_weight), ("k_weight", k_weight)):
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"qk_rope: {name} is on {tensor.device}, q on {q.device}")


# -------------------------------------------------------------------------------------------------------------- the ops


def _unit_stride(x: Tensor) -> Tensor:
    """x if the elements of a head are contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(q: Tensor) -> tuple[dict[str, int], int]:
    """The constants of a launch that depend on D and on the number of heads, and its warps.

    The row of the table is 8D wide: one half of each of 16 heads, of which a thread has 16 bytes, 8 elements of bf16.
    fp32 takes half as many heads (8 elements per thread would spill registers), and a model with few heads fewer warps.
    """
    half = q.shape[2] // 2
    config = launch("rope", q.dtype, 16 * half, arch(q.device))
    block = power_of_two(half)
    size = q.element_size()
    heads = min(max(1, 2 * config.block // (size * block)), 1 << (q.shape[1] - 1).bit_length())
    return {"HALF": half, "HEADS": heads, "BLOCK": block}, min(config.warps, max(1, heads * block * size // 512))


@torch.library.custom_op(
    "vdengine::qk_rope",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? q_weight, Tensor? k_weight, float eps) "
    "-> (Tensor, Tensor)",
)
def _forward_op(
    q: Tensor,  # [T, Hq, D]
    k: Tensor,  # [T, Hk, D]
    cos: Tensor,  # [T, D/2] fp32
    sin: Tensor,  # [T, D/2] fp32
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    eps: float,
) -> tuple[Tensor, Tensor]:  # [T, Hq, D], [T, Hk, D]
    out_q, out_k = q.new_empty(q.shape), k.new_empty(k.shape)
    if len(q) == 0:
        return out_q, out_k
    sizes, warps = _launch(q)
    q, k, cos, sin = _unit_stride(q), _unit_stride(k), cos.contiguous(), sin.contiguous()
    with device_of(q):
        qk_rope_kernel[(len(q),)](
            q,
            k,
            cos,
            sin,
            cos if q_weight is None else q_weight.contiguous(),
            cos if k_weight is None else k_weight.contiguous(),
            out_q,
            out_k,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            eps,
            NORM_Q=q_weight is not None,
            NORM_K=k_weight is not None,
            HQ=q.shape[1],
            HK=k.shape[1],
            **sizes,
            num_warps=warps,
        )
    return out_q, out_k


@_forward_op.register_fake
def _(q, k, cos, sin, q_weight, k_weight, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op(
    "vdengine::qk_rope_backward",
    mutates_args=(),
    schema="(Tensor grad_q, Tensor grad_k, Tensor? q, Tensor? k, Tensor cos, Tensor sin, Tensor? q_weight, "
    "Tensor? k_weight, float eps, bool need_weight) -> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad_q: Tensor,  # [T, Hq, D]
    grad_k: Tensor,  # [T, Hk, D]
    q: Tensor | None,  # [T, Hq, D], None without a norm
    k: Tensor | None,  # [T, Hk, D], None without a norm
    cos: Tensor,  # [T, D/2] fp32
    sin: Tensor,  # [T, D/2] fp32
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    eps: float,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d q [T, Hq, D], d k [T, Hk, D], and d q_weight and d k_weight as [2, D] fp32, or [0]. The weights' gradients have
    zeros for a weight that there is not."""
    out_q, out_k, grad_weight = _backward_fake(grad_q, grad_k, q, k, cos, sin, q_weight, k_weight, eps, need_weight)
    t = len(grad_q)
    if t == 0:
        return out_q, out_k, grad_weight.zero_()
    sizes, warps = _launch(grad_q)
    tokens_each = triton.cdiv(t, WEIGHT_PROGRAMS) if need_weight else 1  # of a program
    programs = triton.cdiv(t, tokens_each)
    partial = cos.new_empty((programs, 2, grad_q.shape[2])) if need_weight else cos
    grad_q, grad_k, cos, sin = _unit_stride(grad_q), _unit_stride(grad_k), cos.contiguous(), sin.contiguous()
    q, k = grad_q if q is None else _unit_stride(q), grad_k if k is None else _unit_stride(k)
    with device_of(grad_q):
        qk_rope_backward_kernel[(programs,)](
            grad_q,
            grad_k,
            q,
            k,
            cos,
            sin,
            cos if q_weight is None else q_weight.contiguous(),
            cos if k_weight is None else k_weight.contiguous(),
            out_q,
            out_k,
            partial,
            t,
            tokens_each,
            grad_q.stride(0),
            grad_q.stride(1),
            grad_k.stride(0),
            grad_k.stride(1),
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            eps,
            NORM_Q=q_weight is not None,
            NORM_K=k_weight is not None,
            NEED_WEIGHT=need_weight,
            HQ=q.shape[1],
            HK=k.shape[1],
            **sizes,
            STAGES=3 if tokens_each > 1 else 1,
            num_warps=warps,
        )
    return out_q, out_k, partial.sum(0) if need_weight else grad_weight


@_backward_op.register_fake
def _backward_fake(grad_q, grad_k, q, k, cos, sin, q_weight, k_weight, eps, need_weight):
    return (
        grad_q.new_empty(grad_q.shape),
        grad_k.new_empty(grad_k.shape),
        cos.new_empty((2, grad_q.shape[2]) if need_weight else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, cos, sin, q_weight, k_weight, ctx.eps = inputs
    q, k = None if q_weight is None else q, None if k_weight is None else k
    ctx.save_for_backward(q, k, cos, sin, q_weight, k_weight)


def _backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once, because under activation checkpointing a second access is an error
    *_, q_weight, k_weight = saved
    need_q, need_k = ctx.needs_input_grad[4:6]
    dq, dk, dw = _backward_op(grad_q, grad_k, *saved, ctx.eps, need_q or need_k)
    return (
        dq,
        dk,
        None,
        None,
        dw[0].to(q_weight.dtype) if need_q else None,
        dw[1].to(k_weight.dtype) if need_k else None,
        None,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
