"""Supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor


def sft(
    policy: Tensor,  # [B] fp32, sum of log p over each branch's scored tokens
) -> tuple[Tensor, dict[str, Tensor]]:  # losses [B], metrics
    """Negative log-likelihood of each branch, summed over its scored tokens.

    The trainer divides the sum by the number of scored tokens of the global batch: a token mean over all ranks
    and accumulation steps, never a mean of means.
    """
    return -policy, {}
