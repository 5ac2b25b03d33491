"""Proximal policy optimization of completions (Schulman et al., arXiv 1707.06347; for language models Ziegler et al.,
arXiv 1909.08593, and Stiennon et al., arXiv 2009.01325). Advantages are in `objectives.advantages`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdengine.objectives.advantages import gae, kl_penalty, token_rewards, whiten
from vdengine.objectives.base import Advantages, Losses, Objective, OnPolicy, Rolled, Scored
from vdengine.objectives.clipping import clipped_surrogate
from vdengine.objectives.metrics import means_of
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def ppo(
    logp: Tensor,  # [R] fp32, of the policy, at the temperature of the samples
    old_logp: Tensor,  # [R], of the policy that made the rollout
    advantages: Tensor,  # [R]
    *,
    cliprange: float,
) -> Losses:  # losses [R], metrics each [R]
    """Per-token clipped surrogate  max(-A r, -A clip(r, 1 - c, 1 + c)),  r = p / p_old (arXiv 1707.06347, eq. 7)."""
    log_ratio = logp - old_logp
    losses, ratio = clipped_surrogate(log_ratio, advantages, cliprange, cliprange)
    return losses, {
        "policy/approxkl_avg": 0.5 * log_ratio.detach().square(),
        "policy/clipfrac_avg": (losses.detach() > -advantages * ratio).float(),
        "val/ratio": ratio,
        "loss/policy_avg": losses.detach(),
    }


def value_loss(
    values: Tensor,  # [R] fp32
    old_values: Tensor,  # [R], of the rollout
    returns: Tensor,  # [R]
    *,
    cliprange: float,
) -> Losses:  # losses [R], metrics each [R]
    """Per-token  0.5 max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2): a value may not run from the rollout's."""
    import torch

    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns).square(), (near - returns).square()
    losses = 0.5 * torch.maximum(plain, clipped)
    return losses, {"loss/value_avg": losses.detach(), "val/clipfrac_avg": (clipped > plain).float().detach()}


def adapt_kl_coef(kl_coef: float, kl: float, target: float, completions: int, horizon: int) -> float:
    """The next coefficient: up where the mean KL of a completion is above the target, down where below, by at most a
    fifth for every `horizon` completions (arXiv 1909.08593, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * completions / horizon)


@dataclass
class Settings:
    """Keys of [objective]. What is sampled, the reward and the value model have sections of their own."""

    kl_coef: float = key(0.05, low=0.0)  # of the penalty on log p / log p_reference, in the reward
    kl_estimator: str = key("k1", choices=("k1", "k3"))
    kl_target: float | None = key(None, above=0)  # nats a completion: adapts kl_coef towards it
    kl_horizon: int = key(10_000, low=1)  # completions over which it adapts
    cliprange: float = key(0.2, above=0)  # of the probability ratio
    cliprange_value: float = key(0.2, above=0)  # of a value's move from the rollout's
    vf_coef: float = key(0.1, low=0.0)
    gamma: float = key(1.0, above=0, high=1.0)
    lam: float = key(0.95, low=0.0, high=1.0)
    num_ppo_epochs: int = key(4, low=1)  # passes over a rollout
    num_mini_batches: int = key(1, low=1)  # updates in a pass
    whiten_rewards: bool = key(False)
    missing_eos_penalty: float = key(0.0, low=0.0)  # off the score of a completion that does not end


def _advantages(rolled: Rolled, s: Settings, state: Mapping[str, float]) -> Advantages:
    import torch

    logp, values, count, kl_coef = rolled.logp, rolled.values, len(rolled.scores), state["kl_coef"]
    if logp is None or values is None:
        raise ValueError("ppo reads log-probs and values of its rollouts")
    kl = None if rolled.reference is None else kl_penalty(logp, rolled.reference, s.kl_estimator)
    penalty = torch.zeros_like(logp) if kl is None else kl_coef * kl
    scores = rolled.scores - s.missing_eos_penalty * ~rolled.stopped
    rewards = token_rewards(penalty, scores, rolled.offsets)
    if s.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    advantages, returns = gae(rewards, values, rolled.offsets, s.gamma, s.lam)
    metrics = {
        "objective/scores": float(rolled.rewards.mean()),
        "objective/rlhf_reward": float((scores.sum() - penalty.sum()) / count),
        "objective/non_score_reward": float(0.0 - penalty.sum() / count),
        "objective/entropy": float(-logp.sum() / count),
        "val/num_eos_tokens": int(rolled.stopped.sum()),
    }
    if kl is not None:
        mean_kl = float(kl.sum() / count)
        metrics |= {"objective/kl": mean_kl, "objective/kl_coef": kl_coef}
        if s.kl_target:
            kl_coef = adapt_kl_coef(kl_coef, mean_kl, s.kl_target, count, s.kl_horizon)
    return Advantages(whiten(advantages), metrics, returns, state={"kl_coef": kl_coef})


def _losses(scored: Scored, s: Settings) -> Losses:
    sampled = scored.sampled
    if sampled is None or sampled.values is None or sampled.old_values is None or sampled.returns is None:
        raise ValueError("ppo reads a rollout, and the values of a critic")
    policy, metrics = ppo(scored.logp, sampled.old_logp, sampled.advantages, cliprange=s.cliprange)
    value, more = value_loss(sampled.values, sampled.old_values, sampled.returns, cliprange=s.cliprange_value)
    return policy + s.vf_coef * value, {**metrics, **more}


def _check(recipe: Any) -> tuple[str, str, str] | None:
    o = recipe.objective
    if o.kl_target and not o.kl_coef:
        return "objective", "kl_coef", "objective.kl_target cannot adapt a kl_coef of 0"
    return None


def _summary(updates: list[dict[str, float]]) -> dict[str, float]:
    """Means over a step's updates, by TRL's names."""
    means = means_of(updates)
    ratios = [u["val/ratio"] for u in updates]
    means["val/ratio_var"] = statistics.variance(ratios) if len(ratios) > 1 else 0.0
    means["policy/entropy_avg"] = means.pop("entropy")
    return means


PPO = Objective(
    "ppo",
    _losses,
    rows="prompts",
    branches=1,
    reference=("live", "none"),  # completions are new at every step: there is nothing to cache
    per="token",
    rollout=OnPolicy(
        _advantages,
        passes=lambda s: (s.num_ppo_epochs, s.num_mini_batches),
        kl="kl_coef",
        critic=True,
        state=lambda s: {"kl_coef": s.kl_coef},
    ),
    settings=Settings,
    check=_check,
    at_start=("val/ratio", 1.0),  # the policy made the rollout
    summary=_summary,
    shown=(
        ("score", "objective/scores", "+.3f"),
        ("KL", "objective/kl", ".3f"),
        ("length", "completions/mean_length", ".0f"),
    ),
    usual_lr=(1e-07, 1e-05),
)
