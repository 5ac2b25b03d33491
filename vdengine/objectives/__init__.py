"""Objectives: pure functions from what a model's forward gave to (losses, metrics), per example or per token.

The trainer sums the losses and divides once by the global count: of examples, or of scored tokens for SFT and PPO.
Metrics are detached and have TRL's names; the trainer averages them over the global batch.
"""

from vdengine.objectives.dpo import dpo, preference_metrics
from vdengine.objectives.ppo import adapt_kl_coef, gae, kl_penalty, ppo, token_rewards, value_loss, whiten
from vdengine.objectives.reward import reward
from vdengine.objectives.sft import sft
from vdengine.objectives.simpo import simpo

__all__ = [
    "adapt_kl_coef",
    "dpo",
    "gae",
    "kl_penalty",
    "ppo",
    "preference_metrics",
    "reward",
    "sft",
    "simpo",
    "token_rewards",
    "value_loss",
    "whiten",
]
