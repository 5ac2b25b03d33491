"""How far two values of the same probes agree: two readouts, two judges, or questions and their paraphrases."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vdengine.drift.correlation import Correlation, correlate, share_of
from vdengine.drift.intervals import ALPHA, ROUNDING, Group, group_of, holm
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import arrival, directed, listed
from vdengine.errors import InputError


@dataclass(frozen=True)
class Match:
    """How well a and b agree on one topic, on "all" (the panel's mean), or over all "topics" (cells topic x step).

    The samples of a run follow one another: cells are not independent, and correlations over steps run high.
    """

    topic: str
    level: Correlation  # v, over cells probe x step; of no meaning for openings
    shift: Correlation  # the shift since the first shared sample, over cells probe x step
    curve: Correlation  # the topic's mean shift, over steps
    magnitude: Correlation  # the last shared shift, over probes; for "topics" over topics
    sign: float  # share of cells with a shift in which both mean shifts have one sign; NaN where neither has any
    clear_sign: float  # the same over the cells where b's interval excludes 0
    num_clear: int  # number of those cells
    error: float  # mean |a - b| of mean shifts; NaN where units differ
    coverage: float  # share of b's mean shifts inside a's interval; well above 95%, as both have the same probes
    difference: float  # share of cells where the interval of a - b, paired by probe, holds 0: 95% if both are fair
    drift_time: float | None  # `ci95` of a less that of b, fractions of the stage; of "topics" the mean absolute one


@dataclass(frozen=True)
class Agreement:
    """Two values of the same probes at the same steps."""

    a: str  # readout and channel
    b: str
    steps: np.ndarray  # [S] int64, the shared steps; the first is the baseline
    num_probes: int
    matches: dict[str, Match]  # "all", "topics", then each topic


def agreement(
    a: ProbeValues,
    b: ProbeValues,
    channel: str | None = None,
    channel_b: str | None = None,
    *,
    baseline: int | None = None,
) -> Agreement:
    """How far two values of the same probes agree, at the steps that both have; probes are matched by id.

    Args:
        channel, channel_b: of a and of b. Default: each one's primary channel; `channel` alone stands for both.
        baseline: a shared step. Default: the first one.

    Raises:
        InputError: an unknown channel, no probe in common, fewer than two steps in common, or a baseline not shared.
    """
    channel_a, channel_b = channel or a.primary, channel_b or channel or b.primary
    for values, name in ((a, channel_a), (b, channel_b)):
        if name not in values.channels:
            raise InputError(f"channel: {name!r} is not one of {', '.join(values.channels)} ({values.readout})")
    steps = shared_steps(a, b, channel_a, channel_b)
    # Columns of the shared probes, in a's order: in a and in b, [P] int64 each.
    column_of = {probe: i for i, probe in enumerate(b.probes.tolist())}
    columns_a = np.array([i for i, probe in enumerate(a.probes.tolist()) if probe in column_of], np.int64)
    if not len(columns_a):
        raise InputError("agreement: the two values have no probe in common")
    if len(steps) < 2:
        raise InputError(f"agreement: {len(steps)} steps in common; it takes a baseline and one more")
    if baseline is not None and baseline not in steps[:-1]:
        raise InputError(f"agreement: step {baseline} is no baseline; {listed(steps[:-1])} are shared before the last")
    steps = steps if baseline is None else steps[steps >= baseline]
    columns_b = np.array([column_of[probe] for probe in a.probes[columns_a].tolist()])
    side_a, side_b = _Side.of(a, channel_a, steps, columns_a), _Side.of(b, channel_b, steps, columns_b)
    both = np.isfinite(side_a.shift[0]) & np.isfinite(side_b.shift[0])  # [S, P]
    side_a, side_b = side_a.where(both), side_b.where(both)
    cells = {t: _Cells.of(side_a, side_b, t, a.unit == b.unit) for t in ["all", *side_a.values.topic_names]}
    topics = [topic for topic in cells if topic != "all"]
    delays = _delays(cells, steps, a.total_steps)
    matches: dict[str, Match] = {}
    for topic, of_topic in cells.items():
        members = side_a.values.member(topic)
        last = side_a.shift[:, -1, members], side_b.shift[:, -1, members]  # [3, probes] each
        matches[topic] = _match(topic, [of_topic], side_a, side_b, members, last, delays[topic])
    # Over topics: their last mean shifts, [3, topics] each.
    last = np.array([cells[t].a[:, -1] for t in topics]).T, np.array([cells[t].b[:, -1] for t in topics]).T
    apart = [abs(delay) for topic in topics if (delay := delays[topic]) is not None]
    over_topics = _match(
        "topics",
        [cells[t] for t in topics],
        side_a,
        side_b,
        side_a.values.member("all"),
        last,
        float(np.mean(apart)) if apart else None,
    )
    matches = {"all": matches.pop("all"), "topics": over_topics} | matches
    return Agreement(f"{a.readout} {channel_a}", f"{b.readout} {channel_b}", steps, len(columns_a), matches)


def shared_steps(a: ProbeValues, b: ProbeValues, channel_a: str, channel_b: str) -> np.ndarray:
    """Steps [S] int64, ascending, at which both have a value of some probe in the given channels."""
    sampled = [
        values.steps[np.isfinite(values.channels[channel]).any(1)]
        for values, channel in ((a, channel_a), (b, channel_b))
    ]
    return np.intersect1d(*sampled)


@dataclass(frozen=True)
class _Side:
    """One of two values on the S steps and P probes that both have.

    The first index of the arrays: from all items of a probe, from the first half of them, from the second half.
    """

    values: ProbeValues  # of the shared steps and probes, without channels
    level: np.ndarray  # [3, S, P] float64, v in the readout's unit; NaN where not sampled
    shift: np.ndarray  # [3, S, P] float64, v less v at the first shared step

    @classmethod
    def of(cls, values: ProbeValues, channel: str, steps: np.ndarray, columns: np.ndarray) -> _Side:
        """steps: [S] int64, all among `values.steps`. columns: [P] int64, the probes' columns in `values`."""
        rows = np.searchsorted(values.steps, steps)
        all_items = values.channels[channel][np.ix_(rows, columns)]  # [S, P]
        level = np.array([all_items, np.full(all_items.shape, np.nan), np.full(all_items.shape, np.nan)])
        if values.halves is not None and channel == values.primary:
            level[1:] = [half[np.ix_(rows, columns)] for half in values.halves]
        shared = replace(
            values,
            steps=steps,
            probes=values.probes[columns],
            topics=values.topics[columns],
            polarity=values.polarity[columns],
            channels={},
            halves=None,
        )
        return cls(shared, level, level - level[:, :1])

    def where(self, mask: np.ndarray) -> _Side:
        """Only the cells of a mask [S, P] bool; NaN elsewhere."""
        return replace(self, level=np.where(mask, self.level, np.nan), shift=np.where(mask, self.shift, np.nan))


@dataclass(frozen=True)
class _Cells:
    """One topic's mean shifts by a and by b, at the S steps after the baseline."""

    groups: tuple[Group, Group]  # of a and of b, from the baseline on: S + 1 samples
    a: np.ndarray  # [3, S] float64: from all items (stratified), and plain means from each half
    b: np.ndarray  # [3, S] float64
    inside: np.ndarray  # [S] float64: 1 where b's mean is in a's interval; NaN where unknown, or units differ
    paired: np.ndarray  # [S] float64: 1 where the interval of a - b holds 0; NaN likewise
    clear: np.ndarray  # [S] bool: b's interval excludes 0

    @classmethod
    def of(cls, side_a: _Side, side_b: _Side, topic: str, one_unit: bool) -> _Cells:
        """one_unit: a and b have the same unit, so that they can be subtracted."""
        members = side_a.values.member(topic)
        a, b = (group_of(side.values, side.shift[0], topic) for side in (side_a, side_b))
        (low, high, _), (b_low, b_high, _) = a.inference, b.inference
        gap_low, gap_high, _ = group_of(side_a.values, side_a.shift[0] - side_b.shift[0], topic).inference
        means = []
        for side, group in ((side_a, a), (side_b, b)):
            shift = side.shift[..., members]  # [3, S + 1, probes]
            known = np.isfinite(shift)
            with np.errstate(invalid="ignore"):
                mean = np.where(known, shift, 0.0).sum(-1) / known.sum(-1)
            mean[0] = group.mean
            means.append(mean[:, 1:])
        comparable = np.isfinite(low) & np.isfinite(b.mean) & one_unit
        inside, paired = (low <= b.mean) & (b.mean <= high), (gap_low <= 0) & (0 <= gap_high)
        return cls(
            (a, b),
            means[0],
            means[1],
            np.where(comparable, inside, np.nan)[1:],
            np.where(comparable, paired, np.nan)[1:],
            ((b_low > 0) | (b_high < 0))[1:],
        )


def _delays(cells: dict[str, _Cells], steps: np.ndarray, total_steps: int) -> dict[str, float | None]:
    """By how much a's `ci95` is later than b's, by topic, as fractions of the stage; None where either has not drifted.

    cells: by topic, "all" first. steps: [S] int64, from the baseline on.
    """
    drift_steps: list[dict[str, float]] = []  # of a, of b: by topic that drifted significantly
    for side in (0, 1):
        groups = {topic: of_topic.groups[side] for topic, of_topic in cells.items()}
        p = np.array([group.estimate(-1).p for group in groups.values()])
        p[1:] = holm(p[1:])  # "all" stands alone
        drifted = {topic: group for (topic, group), q in zip(groups.items(), p, strict=True) if q < ALPHA}
        drift_steps.append({topic: _drift_step(group, steps) for topic, group in drifted.items()})
    a, b = drift_steps
    return {t: (a[t] - b[t]) / max(total_steps, 1) if t in a and t in b else None for t in cells}


def _drift_step(group: Group, steps: np.ndarray) -> float:
    """The step at which a group has drifted by `ci95`, unsmoothed; steps: [S] int64, the first is the baseline."""
    samples, means, below, above = directed(group, 0, float(group.mean[-1]))
    return float(steps[samples[arrival("ci95", means[None], below, above)[0]]])


def _match(
    topic: str,
    cells: list[_Cells],
    side_a: _Side,
    side_b: _Side,
    members: np.ndarray,
    last: tuple[np.ndarray, np.ndarray],
    drift_time: float | None,
) -> Match:
    """The match of one topic, or of several together.

    Args:
        cells: of each topic that counts; C = topics x steps in all.
        members: [P] bool, the probes of those topics.
        last: of a and of b, [3, n] float64: the last shifts that `Match.magnitude` correlates.
        drift_time: as `Match` has it.
    """
    a, b = np.concatenate([c.a for c in cells], 1), np.concatenate([c.b for c in cells], 1)  # [3, C]
    inside, paired = np.concatenate([c.inside for c in cells]), np.concatenate([c.paired for c in cells])  # [C]
    known = np.isfinite(a[0]) & np.isfinite(b[0])
    clear = known & np.concatenate([c.clear for c in cells])
    sign_a, sign_b = (
        np.sign(means[0]) * (np.abs(means[0]) > ROUNDING.get(side.values.unit, 0.0))
        for means, side in ((a, side_a), (b, side_b))
    )
    same_sign, moved = sign_a == sign_b, (sign_a != 0) | (sign_b != 0)
    return Match(
        topic,
        level=correlate(side_a.level[..., members], side_b.level[..., members]),
        shift=correlate(side_a.shift[:, 1:, members], side_b.shift[:, 1:, members]),
        curve=correlate(a, b),
        magnitude=correlate(*last),
        sign=share_of(same_sign[known & moved]),
        clear_sign=share_of(same_sign[clear]),
        num_clear=int(clear.sum()),
        error=share_of(np.abs(a[0] - b[0])[known]) if np.isfinite(inside).any() else math.nan,
        coverage=share_of(inside[np.isfinite(inside)]),
        difference=share_of(paired[np.isfinite(paired)]),
        drift_time=drift_time,
    )
