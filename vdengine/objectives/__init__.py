"""Objectives: pure functions from branch log-prob sums to (per-example losses, per-example metrics).

The trainer sums the losses and divides once by the global count: of examples, or of scored tokens for SFT.
Metrics are detached and have TRL's names; the trainer averages them over the global batch.
"""

from vdengine.objectives.dpo import dpo, preference_metrics
from vdengine.objectives.sft import sft
from vdengine.objectives.simpo import simpo

__all__ = ["dpo", "preference_metrics", "sft", "simpo"]
