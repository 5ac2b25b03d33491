"""The steps at which a run samples its panel, decided before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """The steps at which a run samples its panel. The last one is the run's end; none: nothing is sampled."""

    steps: tuple[int, ...]
    cost: float  # estimated, as a share of the training FLOPs

    @classmethod
    def make(
        cls,
        total: int,
        *,
        every: int | None,
        budget: float | None,
        panel_cost: float,
        step_cost: float,
        parts: int = 1,
        whole_cost: float | None = None,
    ) -> Schedule:
        """Every k steps, or as many samples as a budget pays for. Never a function of scores.

        With a budget, n samples stand at total * (i / (n-1))^2, dense early: drift starts early, when the learning
        rate peaks and the loss is steep.

        Args:
            total: training steps.
            every: steps between samples; 0: sample nothing. None: use the budget.
            budget: share of the training FLOPs; None or 0: sample nothing.
            panel_cost, step_cost: FLOPs of scoring the panel once and of one training step, in one unit.
            parts: a sample takes one of this many parts of the panel. The first and the last take all of it, and are
                taken even where the budget does not pay for them.
            whole_cost: of the first and of the last sample, which also take the controls. Default: panel_cost.
        """
        if every == 0 or (every is None and not budget):
            return cls((), 0.0)
        ends = 2 * (panel_cost if whole_cost is None else whole_cost)
        if every is not None:
            steps = {*range(0, total, every), total}
        else:
            left = budget * step_cost * total - ends if budget else 0.0  # for samples between the ends
            num_samples = 2 + min(max(math.floor(left * parts / panel_cost), 0), total - 1)
            ideal = [round(total * (i / (num_samples - 1)) ** 2) for i in range(num_samples)]
            # Squares crowd at the start: a step that is taken already moves to the next free one.
            chosen: list[int] = []
            for step in ideal:
                chosen.append(max(step, chosen[-1] + 1) if chosen else step)
            steps = {min(step, total) for step in chosen} | {total}
        ordered = tuple(sorted(steps))
        between = (len(ordered) - 2) / parts * panel_cost
        return cls(ordered, (ends + between) / (total * step_cost))

    def index(self, step: int) -> int | None:
        """The number of the sample at `step` (0, 1, ...); None where nothing is sampled."""
        position = int(np.searchsorted(self.steps, step))
        return position if position < len(self.steps) and self.steps[position] == step else None
