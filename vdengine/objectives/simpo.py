"""Simple preference optimization (Meng, Xia, Chen, arXiv 2405.14734, eq. 6)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vdengine.objectives.dpo import preference_metrics


def simpo(
    policy: Tensor,  # [2n] fp32, branch sums: chosen and rejected of pair 0, of pair 1, ...
    lengths: Tensor,  # [2n] scored tokens of each branch, end-of-turn included
    *,
    beta: float,
    gamma_beta_ratio: float,
) -> tuple[Tensor, dict[str, Tensor]]:  # losses [n], metrics each [n]
    """Per-pair loss  -log sigmoid(beta (avg_c - avg_r - gamma_beta_ratio)),  avg = branch sum / length.

    The margin is given as a share of beta, as the authors tune it; TRL's `simpo_gamma` is beta * gamma_beta_ratio.
    """
    average = policy / lengths.clamp(min=1).to(policy.dtype)  # no branch of zero length divides by zero
    chosen, rejected = average[0::2], average[1::2]
    losses = -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))
    return losses, preference_metrics(beta * chosen, beta * rejected, policy[0::2], policy[1::2])
