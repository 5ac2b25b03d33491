"""Learning-rate schedules. Plain arithmetic, without torch."""

from __future__ import annotations

import math

from vdengine.recipe import OptimizerKeys


def learning_rate(settings: OptimizerKeys, step: int, total: int, peak: float | None = None) -> float:
    """The learning rate at `step` (0 .. total-1): linear warm-up to `peak` (default: settings.lr), then constant, or
    linear or cosine to min_lr * peak, where it stays from `total` on.

    Warm-up takes round(warmup * total) updates. The rate of the first is peak / (warm-up updates) and not 0, so that no
    batch is without effect.
    """
    peak = settings.lr if peak is None else peak
    warmup = round(settings.warmup * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    progress = 1.0 if step >= total else (step - warmup) / (total - warmup)
    shape = 1 - progress if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (settings.min_lr + (1 - settings.min_lr) * shape)
