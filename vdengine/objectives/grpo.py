"""Group relative policy optimization (Shao et al., arXiv 2402.03300, eq. 3), in the forms of TRL's GRPOTrainer: Dr.
GRPO (arXiv 2503.20783), DAPO (arXiv 2503.14476) and GSPO's ratios of whole completions (arXiv 2507.18071).

There is no critic: a completion is as good as its score is above the others' of the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdengine.objectives.advantages import GROUPS_LR, GROUPS_SHOWN, group_normalised, kl_penalty, reward_metrics
from vdengine.objectives.base import Advantages, Losses, Objective, OnPolicy, Rolled, Scored
from vdengine.objectives.clipping import clip_metrics, clipped_surrogate
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor

LOSS_TYPES = ("dapo", "grpo", "dr_grpo")


def token_weights(
    offsets: Tensor,  # [B+1] int64: the tokens of completion b are offsets[b] : offsets[b+1]
    counted: Tensor,  # [R] fp32: 1, or 0 where the completion is not learned from
    *,
    loss_type: str,
    completions: int,
    counted_tokens: int,
    max_tokens: int,
) -> Tensor:  # [R] fp32
    """What each token's loss is multiplied by, so that their sum over the whole batch is its loss:

        grpo      1 / (completions * length)      a mean of means: a token of a short completion weighs more
        dr_grpo   1 / (completions * max_tokens)  a constant
        dapo      1 / counted_tokens              a mean over tokens

    Args:
        completions, counted_tokens: of the whole batch; completions are those that are not learned from too.
        max_tokens: that a completion may have.
    """
    import torch

    if loss_type == "dapo":
        return counted / counted_tokens
    if loss_type == "dr_grpo":
        return counted / (completions * max_tokens)
    lengths = offsets.diff()
    return counted / (completions * torch.repeat_interleave(lengths, lengths, output_size=len(counted)))


def grpo(
    logp: Tensor,  # [R] fp32, of the policy, at the temperature of the samples
    old_logp: Tensor,  # [R], of the policy that made the rollout
    advantages: Tensor,  # [R], equal within a completion
    weights: Tensor,  # [R], of each token in the batch's loss: `token_weights`
    offsets: Tensor,  # [B+1] int64: the tokens of completion b are offsets[b] : offsets[b+1]
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
    importance_sampling_level: str = "token",
    reference: Tensor | None = None,  # [R], of the reference model
    beta: float = 0.0,
    use_bias_correction_kl: bool = True,
) -> Losses:  # losses [B], terms of a sum
    """The part of each completion in the batch's loss  sum_t w_t (max(-A r_t, -A clip(r_t)) + beta r_t k3_t).

    r_t = p_t / p_old,t, or for the level "sequence" exp of the completion's mean log-ratio at every token. It is
    clipped to [1 - epsilon, 1 + epsilon_high]; epsilon_high is epsilon where it is not given (larger: DAPO's
    clip-higher). The unclipped one is at most delta. k3 estimates the KL from the reference (`kl_penalty`); times r_t
    its gradient is that of the reverse KL, without bias (DeepSeek-V3.2, arXiv 2512.02556), else GRPO's own.
    """
    import torch

    from vdengine.kernels.gather import segment_sum

    high = epsilon if epsilon_high is None else epsilon_high
    lengths, counted, log_ratio = offsets.diff(), (weights > 0).to(weights.dtype), logp - old_logp
    kl: Tensor | None = None
    if reference is not None and beta:
        kl = kl_penalty(logp, reference, "k3")
    if importance_sampling_level == "token":
        losses, ratio = clipped_surrogate(log_ratio, advantages, epsilon, high, delta)
        metrics = clip_metrics(ratio, advantages, epsilon, high, counted)
        losses = segment_sum(losses * weights, offsets)
        if kl is not None and use_bias_correction_kl:
            kl = kl * log_ratio.exp()
        penalty = None if kl is None else segment_sum(kl * weights, offsets)
    else:  # one ratio for all tokens of a completion
        log_ratio, of_completion = segment_sum(log_ratio * counted, offsets) / lengths, advantages[offsets[:-1]]
        losses, ratio = clipped_surrogate(log_ratio, of_completion, epsilon, high, delta)
        metrics = clip_metrics(ratio, of_completion, epsilon, high, torch.ones_like(ratio))
        losses = losses * segment_sum(weights, offsets)
        penalty = None if kl is None else segment_sum(kl * weights, offsets)
        if kl is not None and penalty is not None and use_bias_correction_kl:
            ratio = log_ratio.exp()
            penalty, kl = penalty * ratio, kl * ratio.detach().repeat_interleave(lengths, output_size=len(kl))
    if kl is not None and penalty is not None:
        losses = losses + beta * penalty
        metrics = {**metrics, "kl": (kl.detach(), counted)}
    return losses, metrics


@dataclass
class Settings:
    """Keys of [objective], by TRL's names."""

    loss_type: str = key("dapo", choices=LOSS_TYPES)  # what tokens are averaged over
    scale_rewards: str = key("group", choices=("group", "batch", "none"))  # which deviation divides advantages
    beta: float = key(0.0, low=0.0)  # of the KL from the reference in the loss; 0: no reference is loaded
    use_bias_correction_kl: bool = key(True)  # times the probability ratio
    epsilon: float = key(0.2, above=0, high=1.0)  # of the probability ratio, below
    epsilon_high: float | None = key(None, above=0)  # above; default: epsilon
    delta: float | None = key(None, above=1.0)  # of the ratio before it is clipped
    importance_sampling_level: str = key("token", choices=("token", "sequence"))
    mask_truncated_completions: bool = key(False)  # learn nothing from a completion that does not end
    num_iterations: int = key(1, low=1)  # passes over a rollout
    num_mini_batches: int = key(1, low=1)  # updates in a pass


def _advantages(rolled: Rolled, s: Settings, state: Mapping[str, float]) -> Advantages:
    scores, samples = rolled.scores, rolled.samples
    of_completion = group_normalised(scores, samples, s.scale_rewards)
    return Advantages(
        of_completion.repeat_interleave(rolled.offsets.diff()),
        reward_metrics(rolled.rewards, scores, samples),
        counted=rolled.stopped if s.mask_truncated_completions else None,
    )


def _losses(scored: Scored, s: Any) -> Losses:
    sampled = scored.sampled
    if sampled is None:
        raise ValueError("grpo reads a rollout")
    offsets = scored.pack.branch_offsets
    weights = token_weights(
        offsets,
        sampled.counted,
        loss_type=s.loss_type,
        completions=sampled.completions,
        counted_tokens=sampled.counted_tokens,
        max_tokens=sampled.max_tokens,
    )
    return grpo(
        scored.logp,
        sampled.old_logp,
        sampled.advantages,
        weights,
        offsets,
        epsilon=s.epsilon,
        epsilon_high=s.epsilon_high,
        delta=s.delta,
        importance_sampling_level=s.importance_sampling_level,
        reference=sampled.reference,
        beta=s.beta,
        use_bias_correction_kl=s.use_bias_correction_kl,
    )


def _check(recipe: Any) -> tuple[str, str, str] | None:
    o = recipe.objective
    if not o.beta and not o.use_bias_correction_kl:
        return "objective", "use_bias_correction_kl", "objective.use_bias_correction_kl has no effect with beta = 0"
    if recipe.reward.normalize and o.scale_rewards != "none":
        reason = f'objective.scale_rewards = "{o.scale_rewards}" divides by a deviation already'
        return "reward", "normalize", f"reward.normalize has no effect: {reason}"
    return None


GRPO = Objective(
    "grpo",
    _losses,
    rows="prompts",
    branches=1,
    reference=("live", "none"),  # as PPO's
    per="sum",
    rollout=OnPolicy(
        _advantages,
        passes=lambda s: (s.num_iterations, s.num_mini_batches),
        kl="beta",
        least_samples=2,
        defaults={"samples": 8, "max_new_tokens": 512, "temperature": 1.0},  # TRL's
        logp=lambda s: False,
        refers=lambda s: s.beta > 0,
    ),
    settings=Settings,
    check=_check,
    at_start=("ratio", 1.0),  # the policy made the rollout
    shown=GROUPS_SHOWN,
    usual_lr=GROUPS_LR,
)
