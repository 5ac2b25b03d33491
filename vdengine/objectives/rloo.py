"""REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740), clipped as in TRL's RLOOTrainer.

A completion is one action: its score, less what the policy has gone from the reference, is compared with the mean of
the others of the same prompt, and there is no critic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdengine.objectives.advantages import GROUPS_LR, GROUPS_SHOWN, SMALL, kl_penalty, leave_one_out, reward_metrics
from vdengine.objectives.base import Advantages, Losses, Objective, OnPolicy, Rolled, Scored
from vdengine.objectives.clipping import clip_metrics, clipped_surrogate
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def rloo(
    log_ratio: Tensor,  # [B] fp32, of each completion: its log-prob less that of the policy that sampled it
    advantages: Tensor,  # [B]
    *,
    epsilon: float,
    epsilon_high: float | None = None,
) -> Losses:  # losses [B], metrics each [B]
    """Per-completion  max(-A r, -A clip(r, 1 - epsilon, 1 + epsilon_high)),  r = p / p_old. On the first pass r is 1,
    and the gradient REINFORCE's, -A d log p."""
    high = epsilon if epsilon_high is None else epsilon_high
    losses, ratio = clipped_surrogate(log_ratio, advantages, epsilon, high)
    return losses, clip_metrics(ratio, advantages, epsilon, high, ratio.new_ones(ratio.shape))


@dataclass
class Settings:
    """Keys of [objective], by TRL's names."""

    beta: float = key(0.05, low=0.0)  # of the KL from the reference, in the reward; 0: no reference is loaded
    normalize_advantages: bool = key(False)  # to mean 0 and variance 1 over the rollout
    epsilon: float = key(0.2, above=0, high=1.0)  # of the probability ratio, below
    epsilon_high: float | None = key(None, above=0)  # above; default: epsilon
    reward_clip_range: list[float] = key([])  # lowest and highest; default: as they are
    mask_truncated_completions: bool = key(False)  # learn nothing from a completion that does not end
    num_iterations: int = key(1, low=1)  # passes over a rollout
    num_mini_batches: int = key(1, low=1)  # updates in a pass


def _advantages(rolled: Rolled, s: Settings, state: Mapping[str, float]) -> Advantages:
    from vdengine.kernels.gather import segment_sum

    scores, samples, lengths = rolled.scores, rolled.samples, rolled.offsets.diff()
    counted = rolled.stopped if s.mask_truncated_completions else None
    if s.reward_clip_range:
        scores = scores.clamp(*s.reward_clip_range)
    penalty: dict[str, float] = {}
    if s.beta and rolled.logp is not None and rolled.reference is not None:
        kl = segment_sum(kl_penalty(rolled.logp, rolled.reference), rolled.offsets)  # [B]
        tokens = lengths
        if counted is not None:
            kl, tokens = kl * counted, lengths * counted
        penalty["kl"] = float(kl.sum() / tokens.sum().clamp(min=1))
        scores = scores - s.beta * kl
    advantages = leave_one_out(scores, samples)
    if s.normalize_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + SMALL)
    metrics = reward_metrics(rolled.rewards, scores, samples) | penalty
    return Advantages(advantages.repeat_interleave(lengths), metrics, counted=counted)


def _losses(scored: Scored, s: Settings) -> Losses:
    sampled, pack = scored.sampled, scored.pack
    if sampled is None:
        raise ValueError("rloo reads a rollout")
    log_ratio = pack.branch_sum((scored.logp - sampled.old_logp) * sampled.counted)
    losses, metrics = rloo(
        log_ratio, sampled.advantages[pack.branch_offsets[:-1]], epsilon=s.epsilon, epsilon_high=s.epsilon_high
    )
    return losses.view(pack.num_trees, -1).mean(1), metrics  # every prompt has as many completions


def _check(recipe: object) -> tuple[str, str, str] | None:
    clip = recipe.objective.reward_clip_range  # type: ignore[attr-defined]
    if clip and not (len(clip) == 2 and clip[0] < clip[1]):
        return "objective", "reward_clip_range", f"objective.reward_clip_range = {clip} must be two numbers, ascending"
    return None


RLOO = Objective(
    "rloo",
    _losses,
    rows="prompts",
    branches=1,
    reference=("live", "none"),  # as PPO's
    rollout=OnPolicy(
        _advantages,
        passes=lambda s: (s.num_iterations, s.num_mini_batches),
        kl="beta",
        least_samples=2,
        defaults={"samples": 2, "max_new_tokens": 512, "temperature": 1.0},  # TRL's
        logp=lambda s: s.beta > 0,
        refers=lambda s: s.beta > 0,
    ),
    settings=Settings,
    check=_check,
    at_start=("ratio", 1.0),  # the policy made the rollout
    shown=GROUPS_SHOWN,
    usual_lr=GROUPS_LR,
)
