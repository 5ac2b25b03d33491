"""Sampling from the model that is being trained, with the prompts distributed over the ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from vdengine.engine.parallel import World
from vdengine.models.generate import Completion, Generator, Sampling, gather_model
from vdengine.models.transformer import Transformer


class Sampler:
    """Samples completions of prompts. They are the same on every rank and for any number of ranks, because the noise of
    a completion depends on the index of its prompt.

    The copy of the weights, the cache and the captured graphs are kept for the run. A rollout copies the present
    weights into the copy; nothing is allocated or captured again.

    Args:
        dtype: that the model computes in.
        weights: "gathered": every rank decodes with a whole copy of the weights, and no token needs an all-gather.
            "sharded": it decodes with the shards, gathering layer by layer. "auto": gathered if the copy fits. The
            decision is made once and is the same on all ranks.
        slots: rows that decode together.
    """

    def __init__(
        self, world: World, dtype: torch.dtype, num_parameters: int, *, weights: str = "auto", slots: int = 64
    ) -> None:
        self.world, self.dtype, self.slots = world, dtype, slots
        self.gathers = weights == "gathered" or (weights == "auto" and self._fits(num_parameters))
        # gradients and optimizer moments do not exist yet and need memory later, so only a quarter of what is free now
        self.cache_bytes = int(0.25 * self._free()) if world.device.type == "cuda" else None
        self.longest = 0
        self.generator: Generator | None = None

    def expect(self, longest: int) -> None:
        """Announce prompts of up to `longest` tokens, so that memory for them is allocated at once."""
        self.longest = max(self.longest, longest)

    def __call__(
        self, policy: Transformer, prompts: list[list[int]], sampling: Sampling, *, samples: int, seed: int, step: int
    ) -> list[list[Completion]]:  # [prompts][samples]
        """Sample completions. A collective: all ranks pass the same prompts and get all completions. `policy` must be
        the same model in every call.

        Raises:
            InputError: as `Generator`.
        """
        w = self.world
        rank_prompts = list(range(w.rank, len(prompts), w.size))  # indexes of this rank's prompts
        if self.generator is None:
            model = gather_model(policy, self.dtype) if self.gathers else policy
            self.generator = Generator(model, slots=self.slots, cache_bytes=self.cache_bytes, longest=self.longest)
        elif self.gathers:
            gather_model(policy, self.dtype, into=self.generator.model)
        rank_completions: Any = self.generator(
            [prompts[i] for i in rank_prompts],
            sampling,
            samples=samples,
            seed=seed,
            step=step,
            prompt_ids=rank_prompts,
        )
        if w.size == 1:
            return rank_completions
        gathered: list[Any] = [None] * w.size  # of every rank
        dist.all_gather_object(gathered, [[tuple(c) for c in cs] for cs in rank_completions])
        completions: list[list[Completion]] = [[] for _ in prompts]
        for rank, part in enumerate(gathered):
            for i, cs in zip(range(rank, len(prompts), w.size), part, strict=True):
                completions[i] = [Completion(*c) for c in cs]
        return completions

    def _fits(self, num_parameters: int) -> bool:
        """Whether a whole copy of the policy's weights in the compute dtype takes less than half of the free memory on
        every rank. The rest is for the cache and for training."""
        w = self.world
        if w.size == 1 and self.dtype == torch.float32:
            return True  # the weights are shared and not copied
        free = self._free()
        fits = torch.tensor(float(num_parameters * self.dtype.itemsize < 0.5 * free), device=w.device)
        if w.size > 1:
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
        return bool(fits)

    def _free(self) -> int:
        """Free memory of the GPU, or of the machine, in bytes."""
        if self.world.device.type == "cuda":
            return torch.cuda.mem_get_info(self.world.device)[0]
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 1 << 62  # the system does not say: a laptop, which holds the model with its moments already
