"""AdamW and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vdengine import recipe as recipes


def make_optimizer(model: nn.Module, settings: recipes.OptimizerKeys) -> torch.optim.AdamW:
    """Fused AdamW over fp32 master weights. Weight decay spares vectors (norms), as is usual."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=True
    )


def learning_rate(settings: recipes.OptimizerKeys, step: int, total: int, peak: float | None = None) -> float:
    """The rate at `step` (0 .. total-1): linear warm-up to `peak` (default: lr), then constant, linear or cosine to
    min_lr * peak.

    Warm-up takes round(warmup * total) updates; the first has rate lr / warm-up updates, never 0, so no batch is
    spent on nothing.
    """
    peak = settings.lr if peak is None else peak
    warmup = round(settings.warmup * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    shape = 1 - progress if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (settings.min_lr + (1 - settings.min_lr) * shape)


def apply_update(optimizer: torch.optim.Optimizer, lr: float, norm: Tensor, skip: Tensor, clip: float) -> None:
    """Clip by the global norm and step, all on the device: where `skip` is 1 the weights do not move.

    Args:
        norm: global gradient norm, 0-dim fp32.
        skip: 0-dim fp32, 1.0 if anything was not finite. Fused AdamW reads it as its `found_inf`.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    if clip:
        scale = (clip / (norm + 1e-6)).clamp(max=1.0)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in grads], scale)
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # what torch.amp sets on a fused optimizer
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
