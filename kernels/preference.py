"""Preference losses from log-probs per token: DPO (arXiv 2305.18290) and SimPO (arXiv 2405.14734) in one launch.

The scored tokens of branch b are at offsets[b] : offsets[b+1]. Which branches are a pair is never guessed, because a
loss over wrong pairs looks like a loss: the caller says in which order they are. With sums l_b over a branch, lengths
n_b, and references r_b (0 without a reference):

    DPO    x_b = l_b - r_b      m = beta (x_c - x_r)                      loss = -(1-e) log s(m) - e log s(-m)
    SimPO  x_b = l_b / n_b      m = beta (x_c - x_r - gamma_beta_ratio)   loss = -log s(m)

    d loss / d l_c = beta d,  d loss / d l_r = -beta d  (SimPO: over n_b),   d = (1-e)(s(m) - 1) + e s(m)

s is the logistic function, e the label smoothing, _c and _r the chosen and the rejected branch. The gradient of a token
is that of its branch. `vdengine.objectives` has the definitions that this is tested against. The sums have the bits of
`segment_sum`, so a reference that is cached with it gives a margin of exactly 0 before the first update.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vdengine.kernels._triton import device_of, jit, resolve, tl
from vdengine.kernels.gather import SEGMENT_BLOCK, check_offsets, segment_sum, sum_segment

Order = Literal["interleaved", "halves"]


class Preference(NamedTuple):
    """Loss and terms of each of n pairs, each [n] fp32. Only `losses` is differentiable in the log-probs."""

    losses: Tensor
    chosen_rewards: Tensor  # beta x_c
    rejected_rewards: Tensor  # beta x_r
    chosen_logps: Tensor  # l_c
    rejected_logps: Tensor  # l_r


@jit
def preference_kernel(
    logp,  # [R] fp32
    offsets,  # [2n+1] int64
    reference,  # [2n] fp32
    out,  # [5, n] fp32: the fields of Preference
    token_grad,  # [R] fp32, d loss / d logp
    n,
    step,  # chosen branch of pair i: i step
    gap,  # rejected branch: i step + gap
    beta,
    label_smoothing,
    gamma_beta_ratio,
    SIMPO: tl.constexpr,
    REFERENCE: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per pair."""
    i = tl.program_id(0)
    c, r = i * step, i * step + gap
    first_c, last_c = tl.load(offsets + c), tl.load(offsets + c + 1)
    first_r, last_r = tl.load(offsets + r), tl.load(offsets + r + 1)
    chosen, rejected = sum_segment(logp, first_c, last_c, BLOCK), sum_segment(logp, first_r, last_r, BLOCK)
    tl.store(out + 3 * n + i, chosen)
    tl.store(out + 4 * n + i, rejected)
    slope_c = beta
    slope_r = beta
    if SIMPO:
        # at least 1, so that a branch of zero length does not divide by zero
        slope_c = beta / tl.maximum(last_c - first_c, 1).to(tl.float32)
        slope_r = beta / tl.maximum(last_r - first_r, 1).to(tl.float32)
        chosen = chosen / tl.maximum(last_c - first_c, 1).to(tl.float32)
        rejected = rejected / tl.maximum(last_r - first_r, 1).to(tl.float32)
    elif REFERENCE:
        chosen -= tl.load(reference + c)
        rejected -= tl.load(reference + r)
    tl.store(out + n + i, beta * chosen)
    tl.store(out + 2 * n + i, beta * rejected)
    m = beta * chosen - beta * rejected
    if SIMPO:
        m = beta * (chosen - rejected - gamma_beta_ratio)
    small = tl.exp(-tl.abs(m))
    # log(1 + small), by its series where 1 + small would round digits away; log s(m) = min(m, 0) - tail
    tail = tl.where(small < 1e-3, small - 0.5 * small * small, tl.log(1.0 + small))
    loss = tail - tl.minimum(m, 0.0)
    sigmoid = tl.exp(tl.minimum(m, 0.0)) / (1.0 + tl.exp(-tl.abs(m)))
    away = tl.exp(-tl.maximum(m, 0.0)) / (1.0 + tl.exp(-tl.abs(m)))  # 1 - sigmoid, without cancellation
    slope = -away
    if not SIMPO:
        loss = (1.0 - label_smoothing) * loss + label_smoothing * (tail + tl.maximum(m, 0.0))
        slope = label_smoothing * sigmoid - (1.0 - label_smoothing) * away
    tl.store(out + i, loss)
    if GRAD:
        lanes = tl.arange(0, BLOCK)
        for start in range(first_c, last_c, BLOCK):
            tl.store(
                token_grad + start + lanes, tl.zeros([BLOCK], tl.float32) + slope * slope_c, mask=start + lanes < last_c
            )
        for start in range(first_r, last_r, BLOCK):
            tl.store(
                token_grad + start + lanes, tl.zeros([BLOCK], tl.float32) - slope * slope_r, mask=start + lanes < last_r
            )


@jit
def scale_pairs_kernel(
    token_grad,  # [R] fp32
    offsets,  # [2n+1] int64
    upstream,  # [n] fp32, of the losses
    out,  # [R] fp32
    step,
    gap,
    BLOCK: tl.constexpr,
):
    """out = token_grad * upstream of the token's pair. One program per branch: the chosen ones in row 0 of the grid."""
    i = tl.program_id(1)
    branch = i * step + tl.program_id(0) * gap
    first, last = tl.load(offsets + branch), tl.load(offsets + branch + 1)
    g = tl.load(upstream + i)
    lanes = tl.arange(0, BLOCK)
    for start in range(first, last, BLOCK):
        at = start + lanes
        tl.store(out + at, g * tl.load(token_grad + at, mask=at < last, other=0.0), mask=at < last)


def preference_loss(
    logp: Tensor,  # [R] fp32, log-probs of the scored tokens, branch by branch
    offsets: Tensor,  # [2n+1] int64, bounds of the branches
    reference: Tensor | None = None,  # [2n] fp32, branch sums of the reference model; only for DPO, no gradient
    *,
    order: Order,
    name: str = "dpo",
    beta: float,
    label_smoothing: float = 0.0,
    gamma_beta_ratio: float = 0.0,
    backend: str = "auto",
) -> Preference:
    """The losses of n pairs: DPO (arXiv 2305.18290, with conservative label smoothing) or SimPO (arXiv 2405.14734).

    Args:
        order: of the branches and of `reference`. "interleaved": chosen and rejected of pair 0, of pair 1, ..., as in a
            pack of preference trees; "halves": all chosen, then all rejected, as in a batch of TRL.
        name: "dpo" or "simpo".
        label_smoothing: of DPO: probability that a label is flipped.
        gamma_beta_ratio: of SimPO: target margin as a share of beta.
        backend: "auto" (Triton on CUDA), "triton" or "reference".

    Raises:
        ValueError: an argument that does not fit, or that does not belong to the loss.
    """
    if name not in ("dpo", "simpo"):
        raise ValueError(f"preference_loss: unknown name {name!r}; allowed: dpo, simpo")
    _check_order("preference_loss", order)
    if logp.ndim != 1 or logp.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"preference_loss: logp must be [R] float32; got {list(logp.shape)} {logp.dtype}")
    if offsets.ndim != 1 or offsets.dtype != torch.int64 or offsets.numel() % 2 == 0:
        raise ValueError(f"preference_loss: offsets must be [2n+1] int64; got {list(offsets.shape)} {offsets.dtype}")
    if reference is not None and (reference.shape != (offsets.numel() - 1,) or reference.dtype != logp.dtype):
        raise ValueError(
            f"preference_loss: reference must be [{offsets.numel() - 1}] {logp.dtype}, one per branch; "
            f"got {list(reference.shape)} {reference.dtype}"
        )
    if name == "simpo" and (reference is not None or label_smoothing):
        raise ValueError("preference_loss: SimPO takes neither reference nor label_smoothing")
    if name == "dpo" and gamma_beta_ratio:
        raise ValueError("preference_loss: DPO takes no gamma_beta_ratio")
    for argument, tensor in (("offsets", offsets), ("reference", reference)):
        if tensor is not None and tensor.device != logp.device:
            raise ValueError(f"preference_loss: {argument} is on {tensor.device}, logp on {logp.device}")
    reference = None if reference is None else reference.detach()
    options = order, name, beta, label_smoothing, gamma_beta_ratio
    if resolve("preference_loss", backend, logp.device) == "reference" or logp.dtype != torch.float32:
        return preference_loss_reference(logp, offsets, reference, *options)
    grad = torch.is_grad_enabled() and logp.requires_grad
    out, _ = _forward_op(logp, offsets, logp.new_empty(0) if reference is None else reference, *options, grad)
    terms = out.detach()  # [5, n]; row 0 is the loss
    return Preference(out[0], terms[1], terms[2], terms[3], terms[4])


def preference_loss_from_padded(
    logps: Tensor,  # [2n, L] fp32, log-probs of a padded batch, as `log_probs` of TRL's fused head
    mask: Tensor,  # [2n, L], not 0 where a token is scored; TRL's `completion_mask[:, 1:]`
    reference: Tensor | None = None,  # [2n] fp32, branch sums of the reference model, in the batch's order
    *,
    order: Order,
    **options: Any,
) -> Preference:
    """`preference_loss` of a padded batch, with its options. TRL's order is "halves".

    Raises:
        ValueError: as `preference_loss`; a mask of another shape.
    """
    if logps.ndim != 2 or mask.shape != logps.shape:
        raise ValueError(
            "preference_loss_from_padded: logps and mask must be [2n, L], and the first position of a row is not "
            f"scored (completion_mask[:, 1:]); got {list(logps.shape)}, {list(mask.shape)}"
        )
    if len(logps) % 2:
        raise ValueError(
            f"preference_loss_from_padded: chosen and rejected make an even number of rows; got {len(logps)}"
        )
    scored = mask.bool()
    offsets = F.pad(scored.sum(1).cumsum(0), (1, 0))  # [2n+1]
    return preference_loss(logps[scored], offsets, reference, order=order, **options)


def _check_order(op: str, order: str) -> None:
    if order not in ("interleaved", "halves"):
        raise ValueError(f"{op}: unknown order {order!r}; allowed: interleaved (a pack), halves (TRL)")


def _places(order: str, n: int) -> tuple[int, int]:
    """step and gap: the chosen branch of pair i is i step, the rejected one is gap after it."""
    return (2, 1) if order == "interleaved" else (1, n)


def preference_loss_reference(
    logp: Tensor,  # [R]
    offsets: Tensor,  # [2n+1] int64
    reference: Tensor | None,  # [2n]
    order: str,
    name: str,
    beta: float,
    label_smoothing: float,
    gamma_beta_ratio: float,
) -> Preference:
    """`preference_loss` in plain torch; float64 stays float64."""
    sums = segment_sum(logp, offsets)  # [2n]
    step, gap = _places(order, offsets.numel() // 2)
    chosen = torch.arange(offsets.numel() // 2, device=logp.device) * step  # [n]
    rejected = chosen + gap  # [n]
    if name == "simpo":
        x = sums / offsets.diff().clamp(min=1).to(sums.dtype)  # [2n]
        losses = -F.logsigmoid(beta * (x[chosen] - x[rejected] - gamma_beta_ratio))
    else:
        x = sums if reference is None else sums - reference  # [2n]
        margin = beta * x[chosen] - beta * x[rejected]
        losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    rewards, sums = beta * x.detach(), sums.detach()
    return Preference(losses, rewards[chosen], rewards[rejected], sums[chosen], sums[rejected])


@torch.library.custom_op(
    "vdengine::preference_loss",
    mutates_args=(),
    schema="(Tensor logp, Tensor offsets, Tensor reference, str order, str name, float beta, float label_smoothing, "
    "float gamma_beta_ratio, bool grad) -> (Tensor, Tensor)",
)
def _forward_op(
    logp: Tensor,  # [R] fp32
    offsets: Tensor,  # [2n+1] int64
    reference: Tensor,  # [2n] fp32, or [0]
    order: str,
    name: str,
    beta: float,
    label_smoothing: float,
    gamma_beta_ratio: float,
    grad: bool,  # whether the second result is needed
) -> tuple[Tensor, Tensor]:
    """The fields of Preference, [5, n] fp32, and d loss / d logp, [R] fp32 or [0]."""
    n = offsets.numel() // 2
    offsets, reference = offsets.contiguous(), reference.contiguous()
    if logp.device.type == "cpu":
        check_offsets("preference_loss", offsets, logp.numel())
    out = logp.new_empty((5, n))
    token_grad = logp.new_zeros(logp.numel() if grad else 0)
    if n:
        with device_of(logp):
            preference_kernel[(n,)](
                logp.contiguous(),
                offsets,
                reference,
                out,
                token_grad,
                n,
                *_places(order, n),
                beta,
                label_smoothing,
                gamma_beta_ratio,
                SIMPO=name == "simpo",
                REFERENCE=reference.numel() > 0,
                GRAD=grad,
                BLOCK=SEGMENT_BLOCK,
                num_warps=4,
            )
    return out, token_grad


@_forward_op.register_fake
def _(logp, offsets, reference, order, name, beta, label_smoothing, gamma_beta_ratio, grad):
    return logp.new_empty((5, offsets.numel() // 2)), logp.new_empty(logp.numel() if grad else 0)


@torch.library.custom_op(
    "vdengine::preference_loss_backward",
    mutates_args=(),
    schema="(Tensor token_grad, Tensor offsets, Tensor upstream, str order) -> Tensor",
)
def _backward_op(
    token_grad: Tensor,  # [R] fp32
    offsets: Tensor,  # [2n+1] int64
    upstream: Tensor,  # [n] fp32
    order: str,
) -> Tensor:  # [R] fp32
    """d logp [R] fp32, from d loss / d logp [R] and the upstream gradient of the losses [n]."""
    out, offsets, n = torch.zeros_like(token_grad), offsets.contiguous(), offsets.numel() // 2
    if n:
        with device_of(token_grad):
            scale_pairs_kernel[(2, n)](
                token_grad,
                offsets,
                upstream.contiguous(),
                out,
                *_places(order, n),
                BLOCK=SEGMENT_BLOCK,
                num_warps=4,
            )
    return out


@_backward_op.register_fake
def _(token_grad, offsets, upstream, order):
    return torch.empty_like(token_grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[1])
    ctx.order = inputs[3]


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    token_grad, offsets = ctx.saved_tensors
    grad_logp = None if grad is None else _backward_op(token_grad, offsets, grad[0], ctx.order)
    return (grad_logp, *(None,) * 8)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
