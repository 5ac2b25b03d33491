"""AdamW."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vdengine import recipe as recipes


def make_optimizer(model: nn.Module, settings: recipes.OptimizerKeys) -> torch.optim.AdamW:
    """Fused AdamW (arXiv 1711.05101) over the trainable parameters, fp32 master weights. Vectors (the weights of norms)
    have no weight decay, as is usual."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=True
    )


def apply_update(optimizer: torch.optim.Optimizer, lr: float, norm: Tensor, skip: Tensor, clip: float) -> None:
    """Clip the gradients by their global norm, update the weights, and drop the gradients. All on the device; if `skip`
    is 1 the weights stay as they are.

    Args:
        norm: [] fp32, global norm of the gradients.
        skip: [] fp32, 1.0 if anything was not finite. Fused AdamW reads it as its `found_inf`.
        clip: largest norm; 0: no clipping.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    if clip:
        scale = (clip / (norm + 1e-6)).clamp(max=1.0)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in grads], scale)
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # as torch.amp does for a fused optimizer
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
