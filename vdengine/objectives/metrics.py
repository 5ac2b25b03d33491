"""Metrics that objectives have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = (("margin", "rewards/margins", "+.3f"), ("acc", "rewards/accuracies", ".2f"))  # on the console


def preference_metrics(
    chosen: Tensor, rejected: Tensor, chosen_logps: Tensor, rejected_logps: Tensor
) -> dict[str, Tensor]:
    """TRL's names, one value per pair. chosen, rejected [n]: implicit rewards; the other two [n]: branch sums."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": chosen_logps.detach(),
        "logps/rejected": rejected_logps.detach(),
    }


def means_of(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of the metrics of a step's updates, each over the updates that have it."""
    means = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        means[name] = sum(values) / len(values)
    return means
