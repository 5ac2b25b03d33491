"""How far two values of the same probes agree: two readouts, two judges, or questions and their paraphrases.

Two series that share noise agree without a drift. Values of answers say at which step these were drawn (`anchors`), and
what is compared follows from it:

    other answers, or none  The shift of both since one baseline.
    the same throughout     Two judges, or parts of the answers: the shift of both since one baseline, too. Their noise
                            is one, so there is no ceiling of r, and nothing to disattenuate.
    the same in part        Weighted against fresh answers: since step 0 both would subtract the same answers, and r is
                            0.4 with no drift at all. Each step is compared since the anchor whose answers are weighted,
                            where the shift of these and that of fresh ones share no noise in that case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vdengine.drift.correlation import Correlation, correlate, share_of
from vdengine.drift.intervals import ALPHA, ROUNDING, Group, group_of, holm
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import DEFAULT_RULE, drift_times, listed
from vdengine.errors import InputError

RESAMPLES = 200  # of the bootstrap behind drift times


@dataclass(frozen=True)
class Match:
    """How well a and b agree on one topic, on "all" (the panel's mean), or over all "topics" (cells topic x step).

    The samples of a run follow one another: cells are not independent, and correlations over steps run high. Intervals
    are over probes, those of `curve` and `magnitude` of "topics" over topics; over the steps of one curve is none.
    """

    topic: str
    level: Correlation  # v, over cells probe x step; of no meaning where a readout has no levels
    shift: Correlation  # the shift since `Agreement.since`, over cells probe x step
    curve: Correlation  # the topic's mean shift, over steps
    magnitude: Correlation  # the last shared shift, over probes; for "topics" over topics
    sign: float  # share of cells with a shift in which both mean shifts have one sign; NaN where neither has any
    clear_sign: float  # the same over the cells where b's interval excludes 0
    num_clear: int  # number of those cells
    error: float  # mean |a - b| of mean shifts; NaN where units differ
    coverage: float  # share of b's mean shifts inside a's interval; well above 95%, as both have the same probes
    difference: float  # share of cells where the interval of a - b, paired by probe, holds 0: 95% if both are fair
    drift_time: float | None  # of a less that of b, fractions of the stage; of "topics" the mean absolute one


@dataclass(frozen=True)
class Agreement:
    """Two values of the same probes at the same steps."""

    a: str  # readout and channel
    b: str
    steps: np.ndarray  # [S] int64, the steps that are compared, ascending; the first is a baseline
    since: np.ndarray  # [S] int64: the step that the shift at each of them is since
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
        InputError: an unknown channel, no probe in common, fewer than two steps in common, or a baseline not shared. Of
            answers that are the same in part: no step with others, a baseline, or an anchor that neither has.
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
    same = _same_answers(a, b, steps)
    since = np.full(len(steps), steps[0])
    if same.all():
        a, b = replace(a, halves=None), replace(b, halves=None)
    elif same.any():
        if baseline is not None:
            raise InputError("agreement: weighted answers are compared since their own anchors; leave the baseline out")
        later = steps[~same]
        if not len(later):
            raise InputError("agreement: at no step in common are the answers other ones")
        own = [values.anchors[np.searchsorted(values.steps, later)] for values in (a, b) if values.anchors is not None]
        since, steps = np.append(later[:1], np.minimum(*own)), np.append(steps[0], later)
        since[0] = steps[0]
    apart = bool(same.any() and not same.all())
    side_a = _Side.of(a, channel_a, steps, since, columns_a, apart)
    side_b = _Side.of(b, channel_b, steps, since, columns_b, apart)
    both = np.isfinite(side_a.shift[0]) & np.isfinite(side_b.shift[0])  # [S, P]
    side_a, side_b = side_a.where(both), side_b.where(both)
    cells = {t: _Cells.of(side_a, side_b, t, a.unit == b.unit) for t in ["all", *side_a.values.topic_names]}
    topics = [topic for topic in cells if topic != "all"]
    delays = dict.fromkeys(cells) if apart else _delays(cells, side_a.values)
    matches: dict[str, Match] = {}
    for topic, of_topic in cells.items():
        members = side_a.values.member(topic)
        last = side_a.shift[:, -1, members], side_b.shift[:, -1, members]  # [3, probes] each
        matches[topic] = _match(topic, {topic: of_topic}, side_a, side_b, members, last, delays[topic])
    # Over topics: their last mean shifts, [3, topics] each.
    last = np.array([cells[t].a[:, -1] for t in topics]).T, np.array([cells[t].b[:, -1] for t in topics]).T
    delayed = [abs(delay) for topic in topics if (delay := delays[topic]) is not None]
    over_topics = _match(
        "topics",
        {t: cells[t] for t in topics},
        side_a,
        side_b,
        side_a.values.member("all"),
        last,
        float(np.mean(delayed)) if delayed else None,
    )
    matches = {"all": matches.pop("all"), "topics": over_topics} | matches
    return Agreement(f"{a.readout} {channel_a}", f"{b.readout} {channel_b}", steps, since, len(columns_a), matches)


def shared_steps(a: ProbeValues, b: ProbeValues, channel_a: str, channel_b: str) -> np.ndarray:
    """Steps [S] int64, ascending, at which both have a value of some probe in the given channels."""
    sampled = [
        values.steps[np.isfinite(values.channels[channel]).any(1)]
        for values, channel in ((a, channel_a), (b, channel_b))
    ]
    return np.intersect1d(*sampled)


def _same_answers(a: ProbeValues, b: ProbeValues, steps: np.ndarray) -> np.ndarray:
    """[S] bool: the steps at which a and b are of the same answers, by when these were drawn; steps: [S] int64."""
    if a.anchors is None or b.anchors is None:
        return np.full(len(steps), False)
    drawn = [values.anchors[np.searchsorted(values.steps, steps)] for values in (a, b) if values.anchors is not None]
    return drawn[0] == drawn[1]


@dataclass(frozen=True)
class _Side:
    """One of two values on the S steps and P probes that both have.

    The first index of the arrays: from all items of a probe, from the first half of them, from the second half.
    """

    values: ProbeValues  # of the shared steps and probes, without channels
    level: np.ndarray  # [3, S, P] float64, v in the readout's unit; NaN where not sampled
    shift: np.ndarray  # [3, S, P] float64, v less v at the step that it is compared since

    @classmethod
    def of(
        cls, values: ProbeValues, channel: str, steps: np.ndarray, since: np.ndarray, columns: np.ndarray, apart: bool
    ) -> _Side:
        """The side of `values`.

        Args:
            steps, since: [S] int64, as `Agreement` has them.
            columns: [P] int64, the probes' columns in `values`.
            apart: steps are compared since the anchors of weighted answers. Levels at the first are then left out: both
                are of the same answers.

        Raises:
            InputError: an anchor that shifts are since is not among the samples.
        """
        rows = np.searchsorted(values.steps, steps)

        def of_all(whole: np.ndarray, halves: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
            """[3, samples, P] from all items [samples, probes], and from halves of them where there are any."""
            absent = np.full_like(whole, np.nan)
            known = halves if halves is not None and channel == values.primary else (absent, absent)
            return np.stack([whole, *known])[..., columns]

        v = of_all(values.channels[channel], values.halves)
        level = v[:, rows]
        shift = level - level[:, :1]
        if apart and values.anchors is not None and values.anchor_shift is not None:
            level[:, 0] = np.nan
            weighted = of_all(values.anchor_shift[channel], values.anchor_halves)
            for i, (row, start) in enumerate(zip(rows.tolist(), since.tolist(), strict=True)):
                if values.anchors[row] == start:  # v is of the answers drawn there
                    shift[:, i] = weighted[:, row]
                    continue
                fresh = np.flatnonzero((values.steps == start) & (values.anchors == start))
                if not len(fresh):
                    raise InputError(f"agreement: step {steps[i]} is compared since {start}, where no answers are left")
                shift[:, i] = v[:, row] - v[:, fresh[0]]
        shared = replace(
            values,
            steps=steps,
            probes=values.probes[columns],
            topics=values.topics[columns],
            polarity=values.polarity[columns],
            channels={},
            halves=None,
        )
        return cls(shared, level, shift)

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


def _delays(cells: dict[str, _Cells], values: ProbeValues) -> dict[str, float | None]:
    """By how much a's drift time is later than b's, by topic, as fractions of the stage; None where either has not
    drifted.

    Args:
        cells: by topic, "all" first.
        values: of the shared steps and probes, for the steps.
    """
    rng = np.random.Generator(np.random.Philox(0))
    weights = rng.poisson(1.0, (RESAMPLES, len(values.probes))).astype(np.float32) - 1
    fractions: list[dict[str, float | None]] = []  # of a, of b: by topic that drifted significantly
    for side in (0, 1):
        groups = {topic: of_topic.groups[side] for topic, of_topic in cells.items()}
        p = np.array([group.estimate(-1).p for group in groups.values()])
        p[1:] = holm(p[1:])  # "all" stands alone
        drifted = {topic: group for (topic, group), q in zip(groups.items(), p, strict=True) if q < ALPHA}
        fractions.append(
            {
                topic: drift_times(values, group, 0, float(group.mean[-1]), "none", weights[:, values.member(topic)])[
                    DEFAULT_RULE
                ].fraction
                for topic, group in drifted.items()
            }
        )
    a, b = fractions
    both = {topic: (a.get(topic), b.get(topic)) for topic in cells}
    return {topic: None if x is None or y is None else x - y for topic, (x, y) in both.items()}


def _match(
    topic: str,
    by_topic: dict[str, _Cells],
    side_a: _Side,
    side_b: _Side,
    members: np.ndarray,
    last: tuple[np.ndarray, np.ndarray],
    drift_time: float | None,
) -> Match:
    """The match of one topic, or of several together.

    Args:
        by_topic: of each topic that counts; C = topics x steps in all.
        members: [P] bool, the probes of those topics.
        last: of a and of b, [3, n] float64: the last shifts that `Match.magnitude` correlates.
        drift_time: as `Match` has it.
    """
    cells = list(by_topic.values())
    topic_of = np.repeat(np.arange(len(cells)), [len(c.clear) for c in cells])  # [C]
    of_last = np.arange(last[0].shape[1])  # each a cluster of its own
    probes = np.arange(int(members.sum()))
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
        level=correlate(side_a.level[..., members], side_b.level[..., members], clusters=[probes]),
        shift=correlate(side_a.shift[:, 1:, members], side_b.shift[:, 1:, members], clusters=[probes]),
        curve=correlate(a, b, clusters=[topic_of]),
        magnitude=correlate(*last, clusters=[of_last]),
        sign=share_of(same_sign[known & moved]),
        clear_sign=share_of(same_sign[clear]),
        num_clear=int(clear.sum()),
        error=share_of(np.abs(a[0] - b[0])[known]) if np.isfinite(inside).any() else math.nan,
        coverage=share_of(inside[np.isfinite(inside)]),
        difference=share_of(paired[np.isfinite(paired)]),
        drift_time=drift_time,
    )
