"""Sampling from the model that is being trained, its prompts dealt over the ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from vdengine.engine.parallel import World
from vdengine.models.generate import Completion, Sampling, gather_model, generate
from vdengine.models.transformer import Transformer


class Sampler:
    """Completions of prompts, the same on every rank and for any number of them: a completion's noise belongs to its
    prompt's place. `gathers`: whether a rank decodes with a whole copy of the weights (then no token needs an
    all-gather) or layer by layer with the shards; decided once, and the same on all ranks."""

    def __init__(
        self, world: World, dtype: torch.dtype, num_parameters: int, *, weights: str = "auto", slots: int = 64
    ) -> None:
        self.world, self.dtype, self.slots = world, dtype, slots
        self.gathers = weights == "gathered" or (weights == "auto" and self._fits(num_parameters))

    def __call__(
        self, policy: Transformer, prompts: list[list[int]], sampling: Sampling, *, samples: int, seed: int, step: int
    ) -> list[list[Completion]]:  # [prompts][samples]
        """A collective: all ranks give the same prompts, and get all completions."""
        w = self.world
        mine = list(range(w.rank, len(prompts), w.size))
        model = gather_model(policy, self.dtype) if self.gathers else policy
        found: Any = generate(
            model, [prompts[i] for i in mine], sampling, samples=samples, seed=seed, step=step, prompt_ids=mine,
            slots=self.slots,
        )  # fmt: skip
        if w.size == 1:
            return found
        every: list[Any] = [None] * w.size
        dist.all_gather_object(every, [[tuple(c) for c in cs] for cs in found])
        completions: list[list[Completion]] = [[] for _ in prompts]
        for rank, part in enumerate(every):
            for i, cs in zip(range(rank, len(prompts), w.size), part, strict=True):
                completions[i] = [Completion(*c) for c in cs]
        return completions

    def _fits(self, num_parameters: int) -> bool:
        """Whether a whole copy of the policy's weights in the compute dtype takes less than half of what is free now,
        on every rank: the rest is for the cache and for training."""
        w = self.world
        if w.size == 1 and self.dtype == torch.float32:
            return True  # the weights themselves: nothing to copy
        if w.device.type == "cuda":
            free = torch.cuda.mem_get_info(w.device)[0]
        elif "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        else:  # not told: a laptop, and a model that fits it three times over already
            free = 1 << 62
        fits = torch.tensor(float(num_parameters * self.dtype.itemsize < 0.5 * free), device=w.device)
        if w.size > 1:
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
        return bool(fits)
