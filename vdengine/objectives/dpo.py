"""Direct preference optimization (Rafailov et al., arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.objectives.metrics import SHOWN, preference_metrics
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def dpo(
    policy: Tensor,  # [2n] fp32, branch sums: chosen and rejected of pair 0, of pair 1, ...
    reference: Tensor | None,  # [2n] fp32, the same of the reference model; None: reference-free
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Losses:  # losses [n], metrics each [n]
    """Per-pair loss  -(1-e) log sigmoid(m) - e log sigmoid(-m),  m = beta ((pi_c - ref_c) - (pi_r - ref_r)).

    e = label_smoothing is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"): the
    probability that a label is flipped.
    """
    import torch.nn.functional as F

    rewards = beta * (policy if reference is None else policy - reference)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(margin)
    if label_smoothing:
        losses = losses - label_smoothing * F.logsigmoid(-margin)
    return losses, preference_metrics(chosen, rejected, policy[0::2], policy[1::2])


@dataclass
class Settings:
    """Keys of [objective]."""

    beta: float = key(0.1, above=0)  # strength of the pull to the reference; arXiv 2305.18290, section 6
    label_smoothing: float = key(0.0, low=0.0, high=0.5)  # conservative DPO


def _losses(scored: Scored, s: Settings) -> Losses:
    return dpo(scored.sums, scored.reference, beta=s.beta, label_smoothing=s.label_smoothing)


def _fused(scored: Scored, s: Settings) -> Losses:
    from vdengine.kernels.preference import preference_loss

    pairs = preference_loss(
        scored.logp,
        scored.pack.branch_offsets,
        scored.reference,
        order="interleaved",
        name="dpo",
        beta=s.beta,
        label_smoothing=s.label_smoothing,
    )
    return pairs.losses, preference_metrics(*pairs[1:])


DPO = Objective(
    "dpo",
    _losses,
    rows="preference",
    branches=2,
    reference=("cached", "live", "none"),
    settings=Settings,
    fused=_fused,
    at_start=("rewards/margins", 0.0),  # the policy is the reference
    shown=SHOWN,
    usual_lr=(5e-08, 1e-05),
)
