"""Probes in a training run: which packs ride in which forward, and what becomes of their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vdengine import recipe as recipes
from vdengine.data.trees import Pack
from vdengine.drift.log import DriftLog
from vdengine.drift.panel import Panel
from vdengine.drift.scoring import Openings, Schedule, deal
from vdengine.engine.parallel import World
from vdengine.errors import InputError
from vdengine.models.chat import Renderer
from vdengine.models.transformer import Transformer


class Probes:
    """The openings readout of a run. Sample k measures the weights after k updates.

    Under accumulation the weights are constant over a step's micro steps, so its packs are dealt over ranks and
    micro steps. Scores wait on the device until `flush`: sampling does not stall the step.

    Raises:
        InputError: a panel that cannot be read, or cannot be cut into the parts asked for.
    """

    def __init__(
        self, settings: recipes.Probes, renderer: Renderer, world: World, *, total_steps: int, step_flops: float,
        flops: dict[str, float],
    ) -> None:  # fmt: skip
        self.world, self.parts, self.tokenizer_hash = world, round(1 / settings.fraction), renderer.hash
        self.openings = Openings.build(Panel.load(settings.panel), renderer, settings.tokens).to(world.device)
        self.num_tokens = sum(p.num_tokens for p in self.openings.packs)
        if self.parts > len(self.openings.packs):
            raise InputError(
                f"probes.fraction: 1/{self.parts} of panel {self.openings.panel.name} is less than one of its "
                f"{len(self.openings.packs)} packs; take a larger fraction or lower probes.tokens"
            )
        panel_cost = sum(
            flops["linear"] * p.num_tokens + flops["quadratic"] * p.num_attention_pairs + flops["head"] * p.num_scored
            for p in self.openings.packs
        )
        self.schedule = Schedule.make(
            total_steps, every=settings.every, budget=settings.budget, panel_cost=panel_cost, step_cost=step_flops,
            parts=self.parts,
        )  # fmt: skip
        self.over_budget = settings.budget is not None and self.schedule.cost > settings.budget
        self.log: DriftLog | None = None
        self._vector: Tensor | None = None  # this step's scores [branches] fp32
        self._pending: list[tuple[int, list[int], Tensor]] = []

    def open_log(self, run_folder: Path, step: int) -> None:
        """Start the raw log, or continue it at `step`. Rank 0."""
        o = self.openings
        self.log = DriftLog.create(run_folder, o.panel, o.branches, o.num_tokens, self.tokenizer_hash)
        self.log.rewind(step)

    def begin(self, step: int, micro_steps: int) -> list[list[int]]:
        """This rank's probe packs for each micro step of `step`; none where nothing is sampled."""
        sample = self.schedule.index(step)
        if sample is None:
            return [[] for _ in range(micro_steps)]
        # the baseline and the last sample take the whole panel, whatever the fraction
        whole = sample == 0 or step == self.schedule.steps[-1]
        part = self.openings.part(sample, 1 if whole else self.parts)
        self._vector = torch.zeros(len(self.openings.branches), device=self.world.device)
        self._pending.append((step, part, self._vector))
        return deal(part, self.world.size, self.world.rank, micro_steps)

    def packs(self, indexes: list[int]) -> list[Pack]:
        return [self.openings.packs[i] for i in indexes]

    def collect(self, indexes: list[int], probe_logp: Tensor | None) -> None:
        """Take over the scores of one forward."""
        if indexes and self._vector is not None and probe_logp is not None:
            self.openings.collect(self._vector, indexes, probe_logp)

    def end(self) -> None:
        """After a step's forwards: gather the ranks' scores. Each branch was scored by one rank, the others hold
        zeros: the sum is exact."""
        if self._vector is not None and self.world.size > 1:
            dist.all_reduce(self._vector)
        self._vector = None

    def sample(self, model: Transformer, step: int) -> None:
        """A forward of probes alone: the sample after the last update."""
        (mine,) = self.begin(step, 1)
        if self._vector is None:
            return
        with torch.no_grad():  # a collective: ranks without a pack run it too
            scores = model(None, self.packs(mine))
        self.collect(mine, scores.probe_logp)
        self.end()

    def flush(self) -> None:
        """Write what is pending. The host waits for the device."""
        pending, self._pending = self._pending, []
        if self.log is None:
            return
        for step, part, vector in pending:
            sampled = torch.cat([self.openings.slots[i] for i in part]).cpu().numpy()
            scores = np.full(len(self.openings.branches), np.nan, dtype=np.float32)
            scores[sampled] = vector.cpu().numpy()[sampled]
            self.log.append(step, scores)
