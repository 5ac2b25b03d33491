"""Simple preference optimization (Meng, Xia, Chen, arXiv 2405.14734, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.objectives.metrics import SHOWN, preference_metrics
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def simpo(
    policy: Tensor,  # [2n] fp32, branch sums: chosen and rejected of pair 0, of pair 1, ...
    lengths: Tensor,  # [2n] int64, scored tokens of each branch, end-of-turn included
    *,
    beta: float,
    gamma_beta_ratio: float,
) -> Losses:  # losses [n], metrics each [n]
    """Per-pair loss  -log sigmoid(beta (avg_c - avg_r - gamma_beta_ratio)),  avg = branch sum / length.

    The margin is given as a share of beta, as the authors tune it; TRL's `simpo_gamma` is beta * gamma_beta_ratio.
    """
    import torch.nn.functional as F

    average = policy / lengths.clamp(min=1).to(policy.dtype)  # no branch of zero length divides by zero
    chosen, rejected = average[0::2], average[1::2]
    losses = -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))
    return losses, preference_metrics(beta * chosen, beta * rejected, policy[0::2], policy[1::2])


@dataclass
class Settings:
    """Keys of [objective]."""

    beta: float = key(2.0, above=0)
    gamma_beta_ratio: float = key(0.5, low=0.0)  # the target margin, as a share of beta


def _losses(scored: Scored, s: Settings) -> Losses:
    return simpo(scored.sums, scored.lengths, beta=s.beta, gamma_beta_ratio=s.gamma_beta_ratio)


def _fused(scored: Scored, s: Settings) -> Losses:
    from vdengine.kernels.preference import preference_loss

    pairs = preference_loss(
        scored.logp,
        scored.pack.branch_offsets,
        order="interleaved",
        name="simpo",
        beta=s.beta,
        gamma_beta_ratio=s.gamma_beta_ratio,
    )
    return pairs.losses, preference_metrics(*pairs[1:])


SIMPO = Objective(
    "simpo",
    _losses,
    rows="preference",
    branches=2,
    settings=Settings,
    fused=_fused,
    shown=SHOWN,
    usual_lr=(1e-07, 1e-05),
)
