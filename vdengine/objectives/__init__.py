"""Objectives: one file each, a pure function and its declaration.

The functions take what a model's forward gave and return (losses, metrics), per example or per token. The trainer sums
the losses and divides once by the global count of examples or of scored tokens, as the declaration says. Metrics are
detached and have TRL's names; the trainer averages them over the global batch.
"""

from vdengine.errors import InputError
from vdengine.objectives.advantages import gae, group_normalised, kl_penalty, leave_one_out, token_rewards, whiten
from vdengine.objectives.base import Advantages, Losses, NoSettings, Objective, OnPolicy, Rolled, Sampled, Scored
from vdengine.objectives.dpo import DPO, dpo
from vdengine.objectives.grpo import GRPO, grpo, token_weights
from vdengine.objectives.ipo import IPO, ipo
from vdengine.objectives.kto import KTO, kto
from vdengine.objectives.metrics import preference_metrics
from vdengine.objectives.orpo import ORPO, orpo
from vdengine.objectives.ppo import PPO, adapt_kl_coef, ppo, value_loss
from vdengine.objectives.reward import REWARD, reward
from vdengine.objectives.rloo import RLOO, rloo
from vdengine.objectives.sft import SFT, sft
from vdengine.objectives.simpo import SIMPO, simpo

BUILT_IN = (SFT, DPO, IPO, SIMPO, ORPO, KTO, REWARD, PPO, GRPO, RLOO)

__all__ = [
    "Advantages",
    "BUILT_IN",
    "Losses",
    "NoSettings",
    "Objective",
    "OnPolicy",
    "Rolled",
    "Sampled",
    "Scored",
    "adapt_kl_coef",
    "dpo",
    "find",
    "gae",
    "group_normalised",
    "grpo",
    "ipo",
    "kl_penalty",
    "kto",
    "leave_one_out",
    "orpo",
    "ppo",
    "preference_metrics",
    "reward",
    "rloo",
    "sft",
    "simpo",
    "token_rewards",
    "token_weights",
    "value_loss",
    "whiten",
]


def find(name: object, more: Objective | None = None) -> Objective:
    """The declaration of this name: `more`, if it is its name, else a built-in one.

    Raises:
        InputError: there is none.
    """
    known = (*BUILT_IN, more) if more is not None else BUILT_IN
    for objective in reversed(known):
        if objective.name == name:
            return objective
    raise InputError(f"objective.name = {name!r} is not known; allowed: {', '.join(o.name for o in known)}")
