"""How good each token of a rollout was: from scores and distances to the reference, with a critic or within a group.

B completions have N tokens, completion b's at `offsets[b] : offsets[b + 1]` of everything of length N: flat, so that no
padding enters any mean. Token t is the action in the state before it, and values are of that state. The completions of
one prompt are a group of `samples`, one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1e-4  # beside a deviation that divides; TRL's
# Of objectives that compare the completions of a prompt: on the console; AdamW's usual rates.
GROUPS_SHOWN = (("reward", "reward", "+.3f"), ("KL", "kl", ".4f"), ("length", "completions/mean_length", ".0f"))
GROUPS_LR = (1e-7, 1e-5)


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


def group_normalised(scores: Tensor, samples: int, scale: str = "group") -> Tensor:
    """[B]: each score less the mean of its group (Shao et al., arXiv 2402.03300, section 4.1.2), over a deviation.

    Args:
        scores: [B] fp32, groups of `samples` >= 2.
        scale: over which the deviation (of n - 1) is taken: "group"; "batch", all of them (arXiv 2508.08221); "none":
            it does not divide (Dr. GRPO, arXiv 2503.20783: it weighs questions by how hard they are).
    """
    groups = scores.view(-1, samples)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale == "none":
        return advantages.flatten()
    deviation = groups.std(1, keepdim=True) if scale == "group" else scores.std()
    return (advantages / (deviation + SMALL)).flatten()


def leave_one_out(scores: Tensor, samples: int) -> Tensor:
    """[B]: each score less the mean of the others of its group (Ahmadian et al., arXiv 2402.14740).

    Args:
        scores: [B] fp32, groups of `samples` >= 2.
    """
    groups = scores.view(-1, samples)
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def reward_metrics(rewards: Tensor, scores: Tensor, samples: int) -> dict[str, float]:
    """TRL's: mean and deviation of the rewards [B], and the share of groups whose scores [B] are all alike, which teach
    nothing."""
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "frac_reward_zero_std": float((scores.view(-1, samples).std(1) <= 1e-8).float().mean()),
    }
