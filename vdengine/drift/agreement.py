"""How far two readouts, or two judges, or questions and their paraphrases, agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vdengine.drift.intervals import ALPHA, Group, group_of, holm
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import arrival, directed, listed
from vdengine.errors import InputError


@dataclass(frozen=True)
class Correlation:
    """Of two series, with the reliability of each where it is known (else NaN).

    Reliability: the correlation of two halves of a probe's items (openings, answers), stepped up to the whole by
    Spearman and Brown. Disattenuated: Pearson's r over the root of the product of the two, what r would be without
    noise in either; above 1 by chance.
    """

    pearson: float
    spearman: float
    num: int
    reliability_a: float = math.nan
    reliability_b: float = math.nan

    @property
    def disattenuated(self) -> float:
        product = self.reliability_a * self.reliability_b
        return self.pearson / math.sqrt(product) if self.reliability_a > 0 and product > 0 else math.nan


@dataclass(frozen=True)
class Match:
    """How well b and a agree on one topic, on "all" (the panel's mean), or over all "topics" (cells topic x step).

    A run's samples follow one another: cells are not independent, and correlations over steps run high.
    """

    topic: str
    level: Correlation  # v, probe by probe and step by step (of no meaning for openings)
    shift: Correlation  # the shift since the first shared sample, the same way
    curve: Correlation  # the topic's mean shift, step by step
    magnitude: Correlation  # the last shared shift: probe by probe; for "topics" topic by topic
    sign: float  # share of cells in which both shifts have one sign
    clear_sign: float  # the same where b's interval excludes 0
    num_clear: int
    error: float  # mean |a - b| of mean shifts; NaN where units differ
    coverage: float  # share of b's mean shifts inside a's interval; well above 95%, as both have the same probes
    difference: float  # share of cells where the interval of a - b, paired by probe, holds 0: 95% if both are fair
    drift_time: float | None  # `ci95` of a less that of b, fractions of the stage; of "topics" the mean absolute one


@dataclass(frozen=True)
class Agreement:
    """Two values of the same probes at the same steps."""

    a: str  # readout and channel
    b: str
    steps: np.ndarray  # shared, the first is the baseline
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
    """How far two readouts of the same probes agree, on the steps that both have; probes are matched by id.

    Args:
        channel, channel_b: of a and of b. Default: each one's primary channel; `channel` alone stands for both.
        baseline: a shared step. Default: the first one.

    Raises:
        InputError: an unknown channel, no probe in common, fewer than two steps in common, or a baseline not shared.
    """
    ours, theirs = channel or a.primary, channel_b or channel or b.primary
    for values, name in ((a, ours), (b, theirs)):
        if name not in values.channels:
            raise InputError(f"channel: {name!r} is not one of {', '.join(values.channels)} ({values.readout})")
    steps = shared_steps(a, b, ours, theirs)
    place = {p: i for i, p in enumerate(b.probes.tolist())}
    columns = np.array([i for i, p in enumerate(a.probes.tolist()) if p in place], np.int64)
    if not len(columns):
        raise InputError("agreement: the two values have no probe in common")
    if len(steps) < 2:
        raise InputError(f"agreement: {len(steps)} steps in common; it takes a baseline and one more")
    if baseline is not None and baseline not in steps[:-1]:
        raise InputError(f"agreement: step {baseline} is no baseline; {listed(steps[:-1])} are shared before the last")
    steps = steps if baseline is None else steps[steps >= baseline]
    at = np.array([place[p] for p in a.probes[columns].tolist()])
    x, y = _Side.of(a, ours, steps, columns), _Side.of(b, theirs, steps, at)
    both = np.isfinite(x.shift[0]) & np.isfinite(y.shift[0])
    x, y = x.where(both), y.where(both)
    cells = {t: _Cells.of(x, y, t, a.unit == b.unit) for t in ["all", *x.values.topic_names]}
    late = _late(cells, steps, a.total_steps)
    matches: dict[str, Match] = {}
    for topic, c in cells.items():
        mine = x.values.member(topic)
        own, other = x.shift[:, -1, mine], y.shift[:, -1, mine]
        matches[topic] = _match(topic, [c], x, y, mine, (own, other), late[topic])
    topics = [c for t, c in cells.items() if t != "all"]
    ends = np.array([c.a[:, -1] for c in topics]).T, np.array([c.b[:, -1] for c in topics]).T
    apart = [abs(d) for t, d in late.items() if t != "all" and d is not None]
    mean_apart = float(np.mean(apart)) if apart else None
    over = _match("topics", topics, x, y, x.values.member("all"), ends, mean_apart)
    matches = {"all": matches.pop("all"), "topics": over} | matches
    return Agreement(f"{a.readout} {ours}", f"{b.readout} {theirs}", steps, len(columns), matches)


def shared_steps(a: ProbeValues, b: ProbeValues, channel_a: str, channel_b: str) -> np.ndarray:
    """Steps at which both have something."""
    own = [r.steps[np.isfinite(r.channels[c]).any(1)] for r, c in ((a, channel_a), (b, channel_b))]
    return np.intersect1d(*own)


@dataclass(frozen=True)
class _Side:
    """One of two values, on the steps and probes that both have. Arrays are [3, S, P]: from all items of a probe, and
    from each half of them."""

    values: ProbeValues
    level: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, values: ProbeValues, channel: str, steps: np.ndarray, columns: np.ndarray) -> _Side:
        rows = np.searchsorted(values.steps, steps)
        x = values.channels[channel][np.ix_(rows, columns)]
        level = np.array([x, np.full(x.shape, np.nan), np.full(x.shape, np.nan)])
        if values.halves is not None and channel == values.primary:
            level[1:] = [h[np.ix_(rows, columns)] for h in values.halves]
        kept = replace(
            values, steps=steps, probes=values.probes[columns], topics=values.topics[columns],
            polarity=values.polarity[columns], channels={}, halves=None,
        )  # fmt: skip
        return cls(kept, level, level - level[:, :1])

    def where(self, mask: np.ndarray) -> _Side:
        """Only the cells [S, P] of a mask."""
        return replace(self, level=np.where(mask, self.level, np.nan), shift=np.where(mask, self.shift, np.nan))


@dataclass(frozen=True)
class _Cells:
    """One topic's mean shifts by both, at the steps after the baseline: S of them."""

    groups: tuple[Group, Group]  # from the baseline on
    a: np.ndarray  # [3, S]
    b: np.ndarray
    inside: np.ndarray  # [S] b in a's interval; NaN where it cannot be said
    paired: np.ndarray  # [S] the interval of a - b holds 0; the same
    clear: np.ndarray  # [S] bool, b's interval excludes 0

    @classmethod
    def of(cls, x: _Side, y: _Side, topic: str, one_unit: bool) -> _Cells:
        mine = x.values.member(topic)
        a, b = (group_of(s.values, s.shift[0], topic) for s in (x, y))
        (low, high, _), (b_low, b_high, _) = a.inference, b.inference
        d_low, d_high, _ = group_of(x.values, x.shift[0] - y.shift[0], topic).inference
        means = []
        for side, group in ((x, a), (y, b)):
            known = np.isfinite(side.shift[..., mine])
            with np.errstate(invalid="ignore"):
                m = np.where(known, side.shift[..., mine], 0.0).sum(-1) / known.sum(-1)
            m[0] = group.mean
            means.append(m[:, 1:])
        said = np.isfinite(low) & np.isfinite(b.mean) & one_unit
        inside, paired = (low <= b.mean) & (b.mean <= high), (d_low <= 0) & (0 <= d_high)
        return cls(
            (a, b), means[0], means[1], np.where(said, inside, np.nan)[1:], np.where(said, paired, np.nan)[1:],
            ((b_low > 0) | (b_high < 0))[1:],
        )  # fmt: skip


def _late(cells: dict[str, _Cells], steps: np.ndarray, total_steps: int) -> dict[str, float | None]:
    """By how much a's `ci95` is later than b's, fractions of the stage; None where either has not drifted."""
    found: list[dict[str, float]] = []
    for side in (0, 1):
        groups = {t: c.groups[side] for t, c in cells.items()}
        p = np.array([g.estimate(-1).p for g in groups.values()])
        p[1:] = holm(p[1:])  # the first is "all"
        moved = {t: g for (t, g), q in zip(groups.items(), p, strict=True) if q < ALPHA}
        found.append({t: _arrived(g, steps) for t, g in moved.items()})
    a, b = found
    return {t: (a[t] - b[t]) / max(total_steps, 1) if t in a and t in b else None for t in cells}


def _arrived(group: Group, steps: np.ndarray) -> float:
    at, y, down, up = directed(group, 0, float(group.mean[-1]))
    return float(steps[at[arrival("ci95", y[None], down, up)[0]]])


def _match(
    topic: str, cells: list[_Cells], x: _Side, y: _Side, mine: np.ndarray, ends: tuple[np.ndarray, np.ndarray],
    drift_time: float | None,
) -> Match:  # fmt: skip
    a, b = np.concatenate([c.a for c in cells], 1), np.concatenate([c.b for c in cells], 1)
    inside, paired = np.concatenate([c.inside for c in cells]), np.concatenate([c.paired for c in cells])
    known = np.isfinite(a[0]) & np.isfinite(b[0])
    clear = known & np.concatenate([c.clear for c in cells])
    same = np.sign(a[0]) == np.sign(b[0])
    return Match(
        topic,
        level=_correlate(x.level[..., mine], y.level[..., mine]),
        shift=_correlate(x.shift[:, 1:, mine], y.shift[:, 1:, mine]),
        curve=_correlate(a, b),
        magnitude=_correlate(*ends),
        sign=share_of(same[known]),
        clear_sign=share_of(same[clear]),
        num_clear=int(clear.sum()),
        error=share_of(np.abs(a[0] - b[0])[known]) if np.isfinite(inside).any() else math.nan,
        coverage=share_of(inside[np.isfinite(inside)]),
        difference=share_of(paired[np.isfinite(paired)]),
        drift_time=drift_time,
    )


def share_of(x: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(x)) if len(x) else math.nan


def _correlate(a: np.ndarray, b: np.ndarray) -> Correlation:
    """a, b [3, ...]: the series, and the same from each half of the items."""
    (x, *x_halves), (y, *y_halves) = (z.reshape(3, -1) for z in (a, b))
    num = int((np.isfinite(x) & np.isfinite(y)).sum())
    reliability = [step_up(pearson(first, second)) for first, second in (x_halves, y_halves)]
    return Correlation(pearson(x, y), spearman(x, y), num, *reliability)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """NaN pairs left out; NaN below three pairs or where one side does not vary."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """The same of ranks."""
    known = np.isfinite(x) & np.isfinite(y)
    return pearson(_ranks(x[known]), _ranks(y[known]))


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean."""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which.reshape(-1)]


def step_up(r: float) -> float:
    """Spearman and Brown: of halves that correlate by r, the reliability of the whole. Below 0 it has none: r."""
    return 2 * r / (1 + r) if r > 0 else r
