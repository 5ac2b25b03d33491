"""The clipped surrogate of a probability ratio, of tokens or of whole completions (arXiv 1707.06347, eq. 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vdengine.objectives.base import Metrics


def clipped_surrogate(
    log_ratio: Tensor,  # [K] fp32, log p - log p_old
    advantages: Tensor,  # [K]
    low: float,
    high: float,
    most: float | None = None,
) -> tuple[Tensor, Tensor]:  # losses [K], ratios [K] without gradient
    """max(-A r, -A clip(r, 1 - low, 1 + high)),  r = p / p_old.

    Args:
        most: the first r is at most that, which bounds the loss of a bad completion too (INTELLECT-2, arXiv
            2505.07291).
    """
    import torch

    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    if most is not None:
        ratio = ratio.clamp(max=most)
    return torch.maximum(-advantages * ratio, -advantages * clipped), ratio.detach()


def clip_metrics(
    ratio: Tensor,  # [K]
    advantages: Tensor,  # [K]
    low: float,
    high: float,
    weights: Tensor,  # [K], of the mean
) -> Metrics:
    """Shares by TRL's names of what is below and above the region and gains nothing from going on; and the mean ratio,
    which is 1 before the first update."""
    below, above = (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)
    return {
        "clip_ratio/low_mean": (below.float(), weights),
        "clip_ratio/high_mean": (above.float(), weights),
        "clip_ratio/region_mean": ((below | above).float(), weights),
        "ratio": (ratio, weights),
    }
