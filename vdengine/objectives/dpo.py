"""Direct preference optimization (Rafailov et al., arXiv 2305.18290, eq. 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo(
    policy: Tensor,  # [2n] fp32, branch sums: chosen and rejected of pair 0, of pair 1, ...
    reference: Tensor | None,  # [2n] fp32, the same of the reference model; None: reference-free
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:  # losses [n], metrics each [n]
    """Per-pair loss  -(1-e) log sigmoid(m) - e log sigmoid(-m),  m = beta ((pi_c - ref_c) - (pi_r - ref_r)).

    e = label_smoothing is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"): the
    probability that a label is flipped.
    """
    rewards = beta * (policy if reference is None else policy - reference)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(margin)
    if label_smoothing:
        losses = losses - label_smoothing * F.logsigmoid(-margin)
    return losses, preference_metrics(chosen, rejected, policy[0::2], policy[1::2])


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
