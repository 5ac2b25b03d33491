"""The steps at which a run samples its panel, decided before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """The steps at which a run samples its panel, decided before it starts. The last is the run's end."""

    steps: tuple[int, ...]
    cost: float  # estimated share of the training FLOPs

    @classmethod
    def make(
        cls, total: int, *, every: int | None, budget: float | None, panel_cost: float, step_cost: float,
        parts: int = 1, whole_cost: float | None = None,
    ) -> Schedule:  # fmt: skip
        """Every k steps; or as many samples as a budget pays for, dense early. Never a function of scores.

        Args:
            panel_cost, step_cost: FLOPs of scoring the panel once and of one training step, in one unit.
            whole_cost: of the first and the last sample, which also take the controls. Default: panel_cost.
            parts: a sample takes one of so many parts of the panel; the first and the last take all of it, and are
                taken even where the budget does not pay for them.

        With a budget, n samples stand at total * (i / (n-1))^2: drift starts early, when the learning rate peaks
        and the loss is steep.
        """
        if every == 0 or (every is None and not budget):
            return cls((), 0.0)
        ends = 2 * (panel_cost if whole_cost is None else whole_cost)
        if every is not None:
            steps = {*range(0, total, every), total}
        else:
            left = budget * step_cost * total - ends if budget else 0.0
            n = 2 + min(max(math.floor(left * parts / panel_cost), 0), total - 1)
            wanted = [round(total * (i / (n - 1)) ** 2) for i in range(n)]
            # squares crowd at the start: push a step that is taken to the next free one
            chosen: list[int] = []
            for w in wanted:
                chosen.append(max(w, chosen[-1] + 1) if chosen else w)
            steps = {min(c, total) for c in chosen} | {total}
        ordered = tuple(sorted(steps))
        between = (len(ordered) - 2) / parts * panel_cost
        return cls(ordered, (ends + between) / (total * step_cost))

    def index(self, step: int) -> int | None:
        """Which sample `step` is (0, 1, ...), or None where nothing is sampled."""
        position = int(np.searchsorted(self.steps, step))
        return position if position < len(self.steps) and self.steps[position] == step else None
