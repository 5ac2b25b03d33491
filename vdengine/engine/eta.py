"""How long a run will take, before its first step: from its FLOPs, and from how fast this machine multiplies."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from vdengine.engine.clocks import peak_flops
from vdengine.engine.reference import LiveReference

if TYPE_CHECKING:
    from vdengine.engine.trainer import Trainer

# What a step reaches of the speed of a plain matrix product (a CPU), or of a GPU's peak. Guesses, not measured.
SHARE = {"cpu": 0.55, "cuda": 0.35}


def expect(t: Trainer) -> str:
    """A sentence on the time that is left; "" where nothing says what a step costs. Takes a fifth of a second."""
    forwards = t.recipe.forwards + isinstance(t.reference, LiveReference)
    step_flops = forwards * float(t.loader.cost.mean()) * t.recipe.batch.examples if t.has_data else math.nan
    if t.rollouts is not None:
        step_flops = t.rollouts.step_flops * 4 / 3  # and what is sampled and scored, about a forward
    left = t.total_steps - t.step_count
    if not math.isfinite(step_flops) or not left:
        return ""
    speed = flops_per_second(t.world.device, t.dtype) * t.world.size
    if t.world.device.type == "cpu":
        speed /= t.world.size  # ranks share the cores
    step = step_flops / speed
    read = [part.schedule.cost for part in (t.probes, t.capability) if part is not None]
    probes = sum(read) * step * t.total_steps
    total = left * step + probes * left / t.total_steps
    parts = f"{left} step{'s' * (left > 1)} of {duration(step)}" + (f", probes {duration(probes)}" if probes else "")
    return f"about {duration(total)} ({parts}; a guess from FLOPs)"


def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The speed at which steps are expected to run on one rank."""
    if device.type == "cuda" and (peak := peak_flops(device)):
        return SHARE["cuda"] * peak
    a, b = torch.ones(512, 576, device=device, dtype=dtype), torch.ones(576, 1536, device=device, dtype=dtype)
    best = math.inf
    until = time.perf_counter() + 0.2
    while time.perf_counter() < until:
        start = time.perf_counter()
        c = torch.mm(a, b)
        if device.type == "cuda":
            c.sum().item()
        best = min(best, time.perf_counter() - start)
    return SHARE[device.type] * 2 * 512 * 576 * 1536 / best


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.5 s, 40 s, 4 min, 2.5 h, 3 days."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
