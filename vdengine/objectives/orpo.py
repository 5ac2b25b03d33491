"""Odds-ratio preference optimization (Hong, Lee, Thorne, arXiv 2403.07691, eqs. 4 to 7): SFT and a preference in one
loss, with no reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.objectives.metrics import SHOWN, preference_metrics
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor

_LN2 = 0.6931471805599453


def log_odds(average: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(average), average < 0: a branch's mean log-prob. Same shape.

    log(1 - p) is log(-expm1(average)) near 0 and log1p(-exp(average)) elsewhere (Maechler 2012, "Accurately computing
    log(1 - exp(-|a|))"). A branch that is certain to rounding (average 0) has odds without bound: it is taken as the
    next number below 0, so that the loss and its gradient stay finite.
    """
    import torch

    below_zero = -torch.finfo(average.dtype).tiny
    x = average.clamp(max=below_zero)
    near = x > -_LN2
    # each branch of `where` gets an input at which its own gradient is finite
    log_rest = torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )
    return x - log_rest


def orpo(
    policy: Tensor,  # [2n] fp32, branch sums: chosen and rejected of pair 0, of pair 1, ...
    lengths: Tensor,  # [2n] int64, scored tokens of each branch
    *,
    beta: float,
) -> Losses:  # losses [n], metrics each [n]
    """Per-pair loss  -avg_c - beta log sigmoid(log odds(avg_c) - log odds(avg_r)),  avg = branch sum / length.

    beta is the paper's lambda. The first term is the negative log-likelihood of the chosen answer, a mean over its
    tokens (the paper's eq. 6, normalised by length). Metrics are TRL's: rewards are beta avg, logps are averages.
    """
    import torch.nn.functional as F

    average = policy / lengths.clamp(min=1).to(policy.dtype)
    odds = log_odds(average)
    chosen, rejected = average[0::2], average[1::2]
    difference = odds[0::2] - odds[1::2]
    ratio = F.logsigmoid(difference)
    metrics = preference_metrics(beta * chosen, beta * rejected, chosen, rejected)
    metrics |= {
        "nll_loss": -chosen.detach(),
        "log_odds_ratio": ratio.detach(),
        "log_odds_chosen": difference.detach(),
    }
    return -chosen - beta * ratio, metrics


@dataclass
class Settings:
    """Keys of [objective]."""

    beta: float = key(0.1, above=0)  # the paper's lambda: weight of the odds-ratio term


def _losses(scored: Scored, s: Settings) -> Losses:
    return orpo(scored.sums, scored.lengths, beta=s.beta)


ORPO = Objective(
    "orpo",
    _losses,
    rows="preference",
    branches=2,
    settings=Settings,
    shown=SHOWN,
    usual_lr=(5e-07, 5e-05),
)
