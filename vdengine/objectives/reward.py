"""Reward modelling by the Bradley-Terry model of preferences (Stiennon et al., arXiv 2009.01325, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def reward(
    scores: Tensor,  # [2n] fp32, values at the branches' ends: chosen and rejected of pair 0, of pair 1, ...
    margin: Tensor | float = 0.0,  # [n], or one for all: how far apart the two should be
    *,
    center: float = 0.0,
) -> Losses:  # losses [n], metrics each [n]
    """Per-pair loss  -log sigmoid(r_c - r_r - margin) + center (r_c + r_r)^2.

    The margin is that of Llama 2 (arXiv 2307.09288, eq. 2); the second term keeps scores, which the first leaves free
    up to a constant, around zero (Eisenstein et al., arXiv 2312.09244, eq. 2).
    """
    import torch.nn.functional as F

    chosen, rejected = scores[0::2], scores[1::2]
    losses = -F.logsigmoid(chosen - rejected - margin)
    if center:
        losses = losses + center * (chosen + rejected).square()
    chosen, rejected = chosen.detach(), rejected.detach()
    return losses, {
        "accuracy": (chosen > rejected).float(),
        "margin": chosen - rejected,
        "mean_reward": (chosen + rejected) / 2,
    }


@dataclass
class Settings:
    """Keys of [objective]."""

    margin: float = key(0.0, low=0.0)  # times each row's own margin, 1 where it has none
    center_rewards_coefficient: float = key(0.0, low=0.0)  # keeps scores around 0


def _losses(scored: Scored, s: Settings) -> Losses:
    margin = s.margin * scored.margins if s.margin else 0.0
    return reward(scored.scores, margin, center=s.center_rewards_coefficient)


REWARD = Objective(
    "reward",
    _losses,
    rows="preference",
    branches=2,
    head="scalar",
    settings=Settings,
    shown=(("margin", "margin", "+.3f"), ("acc", "accuracy", ".2f")),
    usual_lr=(1e-07, 0.0001),
)
