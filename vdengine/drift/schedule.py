"""The steps at which a run samples its panel and draws answers, decided before it starts and never by scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.errors import InputError
from vdengine.recipe import AnswersKeys

ANCHORS = 12  # of a run whose recipe says neither how many nor what they may take


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
        """Every k steps, or as many samples as a budget pays for, then dense early.

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
            steps = set(dense_early(total, num_samples))
        ordered = tuple(sorted(steps))
        between = (len(ordered) - 2) / parts * panel_cost
        return cls(ordered, (ends + between) / (total * step_cost))

    def index(self, step: int) -> int | None:
        """The number of the sample at `step` (0, 1, ...); None where nothing is sampled."""
        position = int(np.searchsorted(self.steps, step))
        return position if position < len(self.steps) and self.steps[position] == step else None


@dataclass(frozen=True)
class AnchorSchedule:
    """The steps at which a run draws answers, and how many it draws.

    With importance weights further anchors may be asked for during the run: `most` bounds them.
    """

    steps: tuple[int, ...]  # that are sure; the first and the last step of the run among them
    most: int  # anchors, further ones included
    probes: int  # that are asked
    base: int  # answers of a probe at step 0
    samples: int  # and at each later anchor

    @classmethod
    def make(cls, settings: AnswersKeys, probes: int, total: int) -> AnchorSchedule:
        """As many anchors as the recipe says, or as its budgets pay for, dense early; or those that it lists.

        Args:
            settings: `samples` is at least 1.
            probes: that are asked.
            total: training steps.

        Raises:
            InputError: anchors outside the run, more of them than it has steps, or budgets too small for those that are
                sure.
        """
        s, samples = settings, settings.samples or 0
        base = s.base or 4 * samples
        paid = {}  # by budget: what it is, its unit in one answer, the anchors that it pays for
        for name, budget, unit in (
            ("generated_tokens", s.generated_tokens, s.max_tokens),
            ("most_answers", s.most_answers, 1),
        ):
            if budget is not None:
                paid[name] = budget, unit, 1 + (budget // unit - probes * base) // (probes * samples)
        affordable = min((count for *_, count in paid.values()), default=total + 1)
        if isinstance(s.anchors, list):
            if wrong := [k for k in s.anchors if not 0 < k < total]:
                raise InputError(
                    f"answers.anchors: {', '.join(map(str, wrong))} not within the run: 1 to {total - 1} are (its "
                    "first and last step have answers anyway)"
                )
            steps = tuple(sorted({0, total, *s.anchors}))
        elif s.anchors is not None and s.anchors > total + 1:
            raise InputError(f"answers.anchors = {s.anchors}: the run has {total + 1} steps to draw at, 0 to {total}")
        elif s.anchors is not None:
            steps = dense_early(total, s.anchors)
        elif s.weights_every:  # further ones come where they are asked for
            steps = (0, total)
        else:
            steps = dense_early(total, max(min(affordable if paid else ANCHORS, total + 1), 2))
        for name, (budget, unit, count) in paid.items():
            if count < len(steps):
                raise InputError(
                    f"answers.{name} = {budget}: {len(steps)} anchors, start and end included, take up to "
                    f"{probes * (base + (len(steps) - 1) * samples) * unit}; raise it, or lower answers.samples, base, "
                    "probes or max_tokens"
                )
        if not s.weights_every:
            return cls(steps, len(steps), probes, base, samples)
        if s.max_anchors < len(steps):
            raise InputError(
                f"answers.max_anchors = {s.max_anchors}: {len(steps)} are sure (start, end, answers.anchors)"
            )
        return cls(steps, min(s.max_anchors, affordable, total + 1), probes, base, samples)

    def num_answers(self, anchors: int) -> int:
        """Answers of so many anchors, the first one included."""
        return self.probes * (self.base + (anchors - 1) * self.samples)


def dense_early(total: int, count: int) -> tuple[int, ...]:
    """`count` distinct steps from 0 to `total`, where possible at total * (i / (count - 1))^2: drift starts early, when
    the learning rate peaks and the loss is steep.

    Args:
        count: 2 to total + 1.
    """
    # Squares crowd at the start: a step that is taken already moves to the next free one.
    chosen: list[int] = []
    for i in range(count):
        step = round(total * (i / (count - 1)) ** 2)
        chosen.append(max(step, chosen[-1] + 1) if chosen else step)
    return tuple(sorted({min(step, total) for step in chosen} | {total}))
