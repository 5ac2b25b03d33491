"""Sampling from the model that is being trained, its prompts dealt over the ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from vdengine.engine.parallel import World
from vdengine.models.generate import Completion, Generator, Sampling, gather_model
from vdengine.models.transformer import Transformer


class Sampler:
    """Completions of prompts, the same on every rank and for any number of them: a completion's noise belongs to its
    prompt's place. `gathers`: whether a rank decodes with a whole copy of the weights (then no token needs an
    all-gather) or layer by layer with the shards; decided once, and the same on all ranks.

    The copy, the cache and what is captured are kept for the run: a rollout begins with a copy of the weights into
    their place, and nothing is allocated or captured again.
    """

    def __init__(
        self, world: World, dtype: torch.dtype, num_parameters: int, *, weights: str = "auto", slots: int = 64
    ) -> None:
        self.world, self.dtype, self.slots = world, dtype, slots
        self.gathers = weights == "gathered" or (weights == "auto" and self._fits(num_parameters))
        # kept beside gradients and moments that do not exist yet, so far less than what is free now
        self.cache_bytes = int(0.25 * self._free()) if world.device.type == "cuda" else None
        self.longest = 0
        self.generator: Generator | None = None

    def expect(self, longest: int) -> None:
        """Prompts of up to so many tokens will come."""
        self.longest = max(self.longest, longest)

    def __call__(
        self, policy: Transformer, prompts: list[list[int]], sampling: Sampling, *, samples: int, seed: int, step: int
    ) -> list[list[Completion]]:  # [prompts][samples]
        """A collective: all ranks give the same prompts and get all completions. `policy` is one and the same model."""
        w = self.world
        mine = list(range(w.rank, len(prompts), w.size))
        if self.generator is None:
            model = gather_model(policy, self.dtype) if self.gathers else policy
            self.generator = Generator(model, slots=self.slots, cache_bytes=self.cache_bytes, longest=self.longest)
        elif self.gathers:
            gather_model(policy, self.dtype, into=self.generator.model)
        found: Any = self.generator(
            [prompts[i] for i in mine], sampling, samples=samples, seed=seed, step=step, prompt_ids=mine
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
        free = self._free()
        fits = torch.tensor(float(num_parameters * self.dtype.itemsize < 0.5 * free), device=w.device)
        if w.size > 1:
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
        return bool(fits)

    def _free(self) -> int:
        """Bytes of memory that nobody has taken, of the GPU or of this machine."""
        if self.world.device.type == "cuda":
            return torch.cuda.mem_get_info(self.world.device)[0]
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 1 << 62  # not told: a laptop, and a model that fits it three times over already
