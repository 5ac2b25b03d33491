"""Supervised fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective

if TYPE_CHECKING:
    from torch import Tensor


def sft(
    policy: Tensor,  # [B] fp32, sum of log p over each branch's scored tokens
) -> Losses:  # losses [B], no metrics
    """Negative log-likelihood of each branch, summed over its scored tokens.

    The trainer divides the sum by the number of scored tokens of the global batch: a token mean over all ranks
    and accumulation steps, never a mean of means.
    """
    return -policy, {}


SFT = Objective(
    "sft", lambda scored, settings: sft(scored.sums), rows="sft", branches=1, per="token", usual_lr=(1e-6, 1e-4)
)
