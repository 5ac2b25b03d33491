"""Kahneman-Tversky optimization (Ethayarajh et al., arXiv 2402.01306, eq. 7 and 8), of answers that are each wanted or
not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.objectives.metrics import means_of
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def kto(
    policy: Tensor,  # [n] fp32, branch sums of the answers
    reference: Tensor,  # [n] fp32, the same of the reference model
    labels: Tensor,  # [n] bool: the answer is a wanted one
    kl: Tensor,  # [] fp32, at least 0, of the whole batch: how far the policy is from the reference
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Losses:  # losses [n]
    """Per-answer loss  w (1 - sigmoid(beta (pi - ref - kl)))  where it is wanted,  w (1 - sigmoid(beta (kl - (pi -
    ref))))  where it is not.

    kl is the paper's z_0, the KL divergence of the policy from the reference, of which a value is a gain or a loss. It
    has no gradient.
    """
    import torch

    ratios = policy - reference
    signs = labels.to(policy.dtype) * 2 - 1
    weights = torch.where(labels, desirable_weight, undesirable_weight).to(policy.dtype)
    losses = weights * (1 - torch.sigmoid(beta * signs * (ratios - kl.detach())))
    rewards, logps = beta * ratios.detach(), policy.detach()
    wanted = labels.to(policy.dtype)
    return losses, {
        "kl": kl.detach().expand(len(policy)),
        "rewards/chosen": (rewards, wanted),
        "rewards/rejected": (rewards, 1 - wanted),
        "logps/chosen": (logps, wanted),
        "logps/rejected": (logps, 1 - wanted),
    }


@dataclass
class Settings:
    """Keys of [objective], by TRL's names."""

    beta: float = key(0.1, above=0)  # strength of the pull to the reference
    # of the losses of answers that are wanted and not: where one kind is rarer, the paper keeps
    # desirable_weight * wanted / (undesirable_weight * unwanted) between 1 and 4/3 (eq. 8)
    desirable_weight: float = key(1.0, low=0.0)
    undesirable_weight: float = key(1.0, low=0.0)


def _losses(scored: Scored, s: Settings) -> Losses:
    if scored.batch_kl is None or scored.reference is None:
        raise ValueError("kto reads a reference and the KL of its batch")
    return kto(
        scored.sums,
        scored.reference,
        scored.labels,
        scored.batch_kl,
        beta=s.beta,
        desirable_weight=s.desirable_weight,
        undesirable_weight=s.undesirable_weight,
    )


def _summary(updates: list[dict[str, float]]) -> dict[str, float]:
    """The means, and the margin between those of wanted and of unwanted answers, where a batch has both."""
    means = means_of(updates)
    if "rewards/chosen" in means and "rewards/rejected" in means:
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means


KTO = Objective(
    "kto",
    _losses,
    rows="unpaired",
    branches=1,
    reference=("cached", "live"),  # without one there is no KL to compare with
    batch_kl=True,
    settings=Settings,
    at_start=("rewards/chosen", 0.0),  # the policy is the reference
    summary=_summary,
    shown=(("margin", "rewards/margins", "+.3f"), ("KL", "kl", ".3f")),
    usual_lr=(5e-08, 1e-05),
)
