"""Readings of a run: which packs are scored in which training forward, whoever asks for them.

A source (the panel and answers, `engine/probes.py`; tasks, `engine/capability.py`) says what is due at a step. The
packs of all sources are dealt out together, ride in the step's forwards beside the training rows, and their scores go
back to the source, which writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vdengine.data.batching import Forest, deal
from vdengine.engine.clocks import Later
from vdengine.engine.parallel import World
from vdengine.models.transformer import Transformer
from vdengine.trees import Pack


@dataclass(eq=False)
class Reading:
    """Packs of a forest that are scored at one step, and the scores of their branches. To read the scores is to wait
    only for the forwards that compute them, so that a sample does not stall its step."""

    step: int
    forest: Forest
    packs: list[int]  # indexes into forest.packs
    out: Tensor  # [branches of the forest] fp32, nats: log-prob sums; 0 where not scored
    bank: Any = None  # of answers that the forest belongs to; None: it is its source's own
    _later: tuple[Later, Later] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all its forwards have run."""
        return self._later is not None

    def complete(self) -> None:
        """Start the copy of `out`, which is final now, to the host."""
        self._later = Later(torch.cat([self.forest.slots[i] for i in self.packs])), Later(self.out)

    @property
    def logp(self) -> np.ndarray:
        """[branches of the forest] fp32, nats: log-prob sums; NaN where not scored. Waits for the forwards."""
        if self._later is None:
            raise RuntimeError("a reading is looked at before its forwards have run")
        sampled, sums = (x.get().numpy() for x in self._later)  # [scored branches] int64, [branches]
        logp = np.full(self.forest.num_branches, np.nan, dtype=np.float32)
        logp[sampled] = sums[sampled]
        return logp


Rider = tuple[Reading, int]  # a pack that is scored in a training forward: its reading, its index in forest.packs


class Source(Protocol):
    """Who asks for readings."""

    logged: int  # step of the last sample that its log has; -1: none

    def due(self, step: int) -> list[Reading]:
        """The readings of `step`, which the source keeps until they are written."""


class Readings:
    """The readings of a step, from begin to end.

    With gradient accumulation the weights are the same in all micro-steps of a step, so the packs are distributed over
    ranks and micro-steps.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.sources: list[Source] = []
        self._open: list[Reading] = []  # of this step, whose forwards have not all run

    def new(self, step: int, forest: Forest, packs: Sequence[int] | None = None, bank: Any = None) -> Reading:
        """A reading of these packs; default: all packs of the forest."""
        packs = list(range(len(forest.packs))) if packs is None else list(packs)
        return Reading(step, forest, packs, torch.zeros(forest.num_branches, device=self.world.device), bank)

    def begin(self, step: int, micro_steps: int) -> list[list[Rider]]:
        """This rank's packs in each micro-step of `step`; empty lists if nothing is due."""
        return self._deal([reading for source in self.sources for reading in source.due(step)], micro_steps)

    def _deal(self, readings: list[Reading], micro_steps: int) -> list[list[Rider]]:
        self._open = readings
        riders = [(reading, i) for reading in readings for i in reading.packs]
        return deal(riders, self.world.size, self.world.rank, micro_steps)

    def packs(self, riders: list[Rider]) -> list[Pack]:
        """The packs to score."""
        return [reading.forest.packs[i] for reading, i in riders]

    def collect(self, riders: list[Rider], probe_logp: Tensor | None) -> None:
        """Store the scores of one forward.

        Args:
            probe_logp: [P] fp32, `Scores.probe_logp` of the riders' packs.
        """
        start = 0
        for reading, i in riders:
            if probe_logp is not None:
                n = reading.forest.packs[i].num_scored
                reading.forest.collect(reading.out, [i], probe_logp[start : start + n])
                start += n

    def end(self) -> None:
        """After the forwards of a step: add up the ranks' scores. The sum is exact, because each branch was scored by
        one rank and the others have zeros. A collective."""
        for reading in self._open:
            if self.world.size > 1:
                dist.all_reduce(reading.out)
            reading.complete()
        self._open = []

    def abandon(self) -> None:
        """Forget the readings whose forwards have not all run: of a step that ended with an error."""
        self._open = []

    def sample(self, model: Transformer, step: int) -> None:
        """What is due after the last update, in a forward without training data, of the sources whose logs have it not.
        A collective."""
        self.score(model, [r for source in self.sources if step > source.logged for r in source.due(step)])

    def score(self, model: Transformer, readings: list[Reading]) -> None:
        """Score readings in a forward of probes alone. A collective."""
        riders = self._deal(readings, 1)[0]
        if not readings:
            return
        with torch.no_grad():  # a collective, which ranks without a pack run too
            scores = model(None, self.packs(riders))
        self.collect(riders, scores.probe_logp)
        self.end()
