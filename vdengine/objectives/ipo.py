"""Identity preference optimization (Azar et al., arXiv 2310.12036, eq. 17), with averaged log-probs as in TRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.objectives.metrics import SHOWN, preference_metrics
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def ipo(
    policy: Tensor,  # [2n] fp32, branch sums: chosen and rejected of pair 0, of pair 1, ...
    reference: Tensor | None,  # [2n] fp32, the same of the reference model; None: reference-free
    lengths: Tensor,  # [2n] int64, scored tokens of each branch
    *,
    beta: float,
) -> Losses:  # losses [n], metrics each [n]
    """Per-pair loss  (h - 1 / (2 beta))^2,  h = (pi_c - ref_c) / |c| - (pi_r - ref_r) / |r|.

    beta is the paper's tau. The paper's h has no lengths; with sums the regression target 1 / (2 beta) would have to
    grow with the answers. The average over a branch's tokens is TRL's form (confirmed there with the authors).
    Metrics are of sums, as DPO's: rewards are beta (pi - ref).
    """
    ratios = policy if reference is None else policy - reference
    averages = ratios / lengths.clamp(min=1).to(ratios.dtype)  # no branch of zero length divides by zero
    losses = (averages[0::2] - averages[1::2] - 1 / (2 * beta)).square()
    return losses, preference_metrics(beta * ratios[0::2], beta * ratios[1::2], policy[0::2], policy[1::2])


@dataclass
class Settings:
    """Keys of [objective]."""

    beta: float = key(0.1, above=0)  # the paper's tau: the pair's average log-ratios are to differ by 1 / (2 beta)


def _losses(scored: Scored, s: Settings) -> Losses:
    return ipo(scored.sums, scored.reference, scored.lengths, beta=s.beta)


IPO = Objective(
    "ipo",
    _losses,
    rows="preference",
    branches=2,
    reference=("cached", "live", "none"),
    settings=Settings,
    at_start=("rewards/margins", 0.0),
    shown=SHOWN,
    usual_lr=(5e-08, 1e-05),
)
