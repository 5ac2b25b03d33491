"""Proximal policy optimization of completions (Schulman et al., arXiv 1707.06347; for language models Ziegler et al.,
arXiv 1909.08593, and Stiennon et al., arXiv 2009.01325).

A rollout of B completions has N tokens, completion b's at `offsets[b] : offsets[b + 1]` of everything of length N:
flat, so that no padding enters any mean. Token t is the action in the state before it, and values are of that state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdengine.objectives.base import Losses, Objective, Scored
from vdengine.settings import key

if TYPE_CHECKING:
    from torch import Tensor


def kl_penalty(logp: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from the policy's own samples, [N] (Schulman 2020, "Approximating
    KL divergence"): k1 = log p - log q, unbiased; k3 = q/p - 1 - log(q/p), never negative and of less variance."""
    log_ratio = reference - logp
    return -log_ratio if estimator == "k1" else log_ratio.expm1() - log_ratio


def token_rewards(
    penalty: Tensor,  # [N] kl_coef * KL
    scores: Tensor,  # [B] of the whole completions
    offsets: Tensor,  # [B+1] int64
) -> Tensor:  # [N]
    """-penalty for every token, and the score with the last of each completion."""
    rewards = -penalty
    rewards[offsets[1:] - 1] += scores
    return rewards


def whiten(x: Tensor, shift_mean: bool = True) -> Tensor:
    """`x` [N] with variance 1 and, unless told otherwise, mean 0."""
    import torch

    mean, variance = x.mean(), x.var() if len(x) > 1 else x.new_ones(())
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return white if shift_mean else white + mean


def gae(
    rewards: Tensor,  # [N]
    values: Tensor,  # [N]
    offsets: Tensor,  # [B+1] int64, no completion empty
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:  # advantages [N], returns [N]
    """Generalized advantage estimation (Schulman et al., arXiv 1506.02438, eq. 16), a completion ending its episode:

    A_t = sum_l (gamma lam)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t,  V after the end 0;  returns A + V.
    """
    import torch

    lengths = offsets.diff()
    # From the last token backwards, all completions abreast, the longest first: those still going are then a prefix.
    order = torch.argsort(lengths, descending=True, stable=True)
    last, going = offsets[1:][order] - 1, torch.bincount(lengths).flip(0).cumsum(0).flip(0).tolist()
    advantages = torch.zeros_like(rewards)
    running = next_value = rewards.new_zeros(len(lengths))
    for back in range(len(going) - 1):  # tokens behind the last one
        n = going[back + 1]  # completions longer than `back`
        t = last[:n] - back
        delta = rewards[t] + gamma * next_value[:n] - values[t]
        running, next_value = delta + gamma * lam * running[:n], values[t]
        advantages[t] = running
    return advantages, advantages + values


def ppo(
    logp: Tensor,  # [R] fp32, of the policy, at the temperature of the samples
    old_logp: Tensor,  # [R], of the policy that made the rollout
    advantages: Tensor,  # [R]
    *,
    cliprange: float,
) -> Losses:  # losses [R], metrics each [R]
    """Per-token clipped surrogate  max(-A r, -A clip(r, 1 - c, 1 + c)),  r = p / p_old (arXiv 1707.06347, eq. 7)."""
    import torch

    log_ratio = logp - old_logp
    ratio = log_ratio.exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        metrics = {
            "policy/approxkl_avg": 0.5 * log_ratio.square(),
            "policy/clipfrac_avg": (clipped > plain).float(),
            "val/ratio": ratio.detach(),
        }
    losses = torch.maximum(plain, clipped)
    return losses, metrics | {"loss/policy_avg": losses.detach()}


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
    metrics = {"loss/value_avg": losses.detach(), "val/clipfrac_avg": (clipped > plain).float().detach()}
    return losses, metrics


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


def _losses(scored: Scored, s: Settings) -> Losses:
    sampled = scored.sampled
    if sampled is None:
        raise ValueError("ppo reads a rollout")
    policy, metrics = ppo(scored.logp, sampled.old_logp, sampled.advantages, cliprange=s.cliprange)
    value, more = value_loss(sampled.values, sampled.old_values, sampled.returns, cliprange=s.cliprange_value)
    return policy + s.vf_coef * value, metrics | more


def _check(recipe: Any) -> tuple[str, str, str] | None:
    o = recipe.objective
    if o.reference == "none" and (o.kl_coef or o.kl_target):
        reason = "the penalty is on the distance from the reference"
        return "objective", "reference", f'objective.reference = "none" needs objective.kl_coef = 0: {reason}'
    if o.kl_target and not o.kl_coef:
        return "objective", "kl_coef", "objective.kl_target cannot adapt a kl_coef of 0"
    if o.num_mini_batches > recipe.batch.examples:
        counts = f"{o.num_mini_batches} minibatches of {recipe.batch.examples} prompts (batch.examples)"
        return "objective", "num_mini_batches", f"{counts}: at least one prompt each"
    return None


PPO = Objective(
    "ppo",
    _losses,
    rows="prompts",
    branches=1,
    reference=("live", "none"),  # completions are new at every step: there is nothing to cache
    per="token",
    rollout=True,
    critic=True,
    settings=Settings,
    check=_check,
    at_start=("val/ratio", 1.0),  # the policy made the rollout
    shown=(
        ("score", "objective/scores", "+.3f"),
        ("KL", "objective/kl", ".3f"),
        ("length", "completions/mean_length", ".0f"),
    ),
    usual_lr=(1e-07, 1e-05),
)
