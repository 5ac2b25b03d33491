"""A cheap judge on all answers, corrected by a strong judge on a random part of them: prediction-powered inference.

With c the cheap judge's stance of an answer and s the strong one's, the mean of s over a topic's answers at an anchor
is

    v = lambda mean of c over all answers  +  mean over the part of (s - lambda c)

whatever the cheap judge gets wrong (Angelopoulos, Bates, Fannjiang, Jordan and Zrnic, Science 382, 2023). lambda is
power-tuned (Angelopoulos, Duchi and Zrnic, arXiv 2311.01453, section 6): where the part is one of all answers, rather
than beside them, the variance is least at the slope of s on c, here over the answers that both have judged, within
anchors and topics, and the gain over the strong judge alone is 1 - r^2 (1 - part / all) of the answers' variance. Cheap
judgements that say nothing give lambda = 0, the strong judge alone.

A cheap judge often leans to yes, whatever is asked: that goes with a probe's polarity, which is known of all answers.
So what the lean leaves in d = s - lambda c is fitted with it, L polarity, with one L for all topics of an anchor.

It is written as one value a probe, so that everything else in the analysis holds of it. With N answers of a topic, n
of them in the part, m of the probe, and D the mean over the topic's part of e = d - L polarity,

    v of a probe = lambda mean of c  +  L polarity  +  D
                   +  N / (n m)  sum over its answers in the part of (e - D) sqrt(n / (n - 1))

The last sums to 0 over the topic, so the topic's mean is the v above (with the part's polarities made those of the
topic); and their spread over probes is that of the correction: an interval over probes counts probes, answers and the
part that was drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values, by_answer
from vdengine.drift.judgements import BOTH, LEAST_JUDGED, PEOPLE, Judgements, Subset
from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError

_LEAST_DRAWN = 30  # answers of a part, over all anchors: fewer give no lambda
_LEAST_OF_TOPIC = 2  # answers of a topic's part at an anchor: fewer have no spread


def drawn(log: AnswerLog, subset: Subset) -> np.ndarray:
    """[n] int64: indices of the answers that a subset is made of, in the order in which they are judged.

    Every anchor gives the same share of its answers, and of each topic's, as far as whole numbers allow; which ones is
    counted noise. A larger subset of the same seed holds the smaller ones.
    """
    from vdengine.noise import JUDGED, counted_hash

    row_of = {probe.id: i for i, probe in enumerate(log.panel.probes)}
    topic_of = {probe.id: probe.topic for probe in log.panel.probes}
    anchors = np.array([answer.anchor for answer in log.answers], np.int64)
    topics = np.array([topic_of[answer.probe] for answer in log.answers])
    # A place in (0, 1] for each answer: even within each topic of each anchor, in random order.
    place, noise = np.zeros(len(anchors)), np.zeros(len(anchors), np.uint64)
    for anchor in np.unique(anchors).tolist():
        for topic in np.unique(topics[anchors == anchor]):
            of_topic = np.flatnonzero((anchors == anchor) & (topics == topic))
            numbers = [(row_of[log.answers[i].probe] << 20) + log.answers[i].sample for i in of_topic]
            noise[of_topic] = counted_hash(np.array(numbers), JUDGED, subset.seed, anchor)
            place[of_topic[np.argsort(noise[of_topic])]] = (np.arange(len(of_topic)) + 0.5) / len(of_topic)
    return np.lexsort((noise, place))[: subset.answers]


def correctable(cheap: Judgements, strong: Judgements) -> bool:
    """Whether two judges of the same answers make a corrected readout: one has judged a drawn part, the other is to
    judge all. People do not: they are no cheap judge."""
    return strong.subset is not None and cheap.subset is None and not cheap.judge.startswith(PEOPLE)


@dataclass(frozen=True)
class Correction:
    """What a strong judge's part does to a cheap judge's readout."""

    num: int  # answers of the part that both have judged
    slope: float  # lambda
    correlation: float  # r of the two judges over them, within anchors, topics and polarities
    share: float  # of all answers that the part has


def correction(log: AnswerLog, cheap: Judgements, strong: Judgements, part: str = BOTH) -> Correction:
    """How two judges' graded stances go together on the answers that were drawn.

    Raises:
        InputError: as `corrected_values`.
    """
    return _Pair.of(log, cheap, strong, part).correction


def corrected_values(
    log: AnswerLog, cheap: Judgements, strong: Judgements, total_steps: int | None = None, *, part: str = BOTH
) -> ProbeValues:
    """v by probe at each anchor: the cheap judge's, corrected by the strong one's. See the module.

    Channels and steps are those of `answer_values(kind="anchor")`. NaN are an anchor of which either judge has not
    judged its answers (the cheap one all, the strong one those of the part), and a topic with fewer than two answers of
    the part at an anchor. There are no halves, and no variances under other answers: both would need several strong
    judgements of each probe.

    Args:
        part: of the answers, one of `drift.judgements.PARTS`.
        total_steps: of the stage. Default: the last anchor.

    Raises:
        InputError: no part was drawn for the strong judge, or it is not judged at any anchor yet, or too small; the
            cheap judge has not judged all answers of any anchor.
    """
    pair = _Pair.of(log, cheap, strong, part)
    plain = answer_values(log, pair.cheap, total_steps, kind="anchor")
    values = np.full((len(plain.steps), len(plain.probes), len(plain.channels)), np.nan)
    for s, anchor in enumerate(plain.steps.tolist()):
        if (pool := pair.at(anchor)).in_part.any():
            _correct(values[s], pool, pair.correction.slope)
    if not np.isfinite(values).any():
        raise InputError(
            f"{log.folder}: {strong.judge} has judged fewer than {_LEAST_OF_TOPIC} answers of every topic at every "
            "anchor; draw a larger --subset"
        )
    channels = {name: values[..., k] for k, name in enumerate(plain.channels)}
    return replace(plain, channels=channels, halves=None, noise=None, shift_noise=None, anchor_noise=None)


def _correct(values: np.ndarray, pool: _Pool, slope: float) -> None:
    """Write v of an anchor's probes into values [P, 5]; slope: lambda."""
    part = pool.in_part
    difference = (pool.strong - slope * pool.cheap)[part]  # [n, 5] d
    topic, polarity, row = pool.topic[part], pool.polarity[part], pool.row[part]
    num_topics = int(pool.topic.max()) + 1
    means, lean = _fit(difference, topic, polarity, num_topics)  # [T, 5] D, [5] L
    n, total = (np.bincount(t, minlength=num_topics) for t in (topic, pool.topic))  # [T] each
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(n >= _LEAST_OF_TOPIC, np.sqrt(n / (n - 1)) * total / n, np.nan)  # [T]
    left = difference - lean * polarity[:, None] - means[topic]  # [n, 5] e - D
    count = np.bincount(pool.row, minlength=len(values))[:, None]  # [P, 1] m
    own, spread = np.zeros_like(values), np.zeros_like(values)
    np.add.at(own, pool.row, pool.cheap)
    np.add.at(spread, row, left * scale[topic][:, None])
    of_row = np.zeros((2, len(values)), np.int64)  # topic and polarity of each probe
    of_row[:, pool.row] = pool.topic, pool.polarity
    with np.errstate(divide="ignore", invalid="ignore"):
        known = means[of_row[0]] + scale[of_row[0]][:, None] * 0  # NaN where a topic has too few
        values[:] = slope * own / count + lean * of_row[1][:, None] + known + spread / count


def _fit(x: np.ndarray, topic: np.ndarray, polarity: np.ndarray, num_topics: int) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of x [n, K] by topic and polarity: means of topics [T, K], less L polarity, and L [K]."""
    count = np.maximum(np.bincount(topic, minlength=num_topics), 1)[:, None]  # [T, 1]

    def means(of: np.ndarray) -> np.ndarray:
        sums = np.zeros((num_topics, of.shape[1]))
        np.add.at(sums, topic, of)
        return sums / count

    sides = polarity[:, None].astype(float)  # [n, 1]
    within = sides - means(sides)[topic]
    square = float((within**2).sum())
    lean = (within * x).sum(0) / square if square > 0 else np.zeros(x.shape[1])
    return means(x - sides * lean), lean


@dataclass(frozen=True)
class _Pool:
    """An anchor's answers that the cheap judge has judged: N of them."""

    cheap: np.ndarray  # [N, 5] float64 by channel, on the topic's axis
    strong: np.ndarray  # the same; NaN where not judged
    in_part: np.ndarray  # [N] bool: drawn, and judged by both
    row: np.ndarray  # [N] int64: the probe, by its place in the panel
    topic: np.ndarray  # [N] int64, 0, 1, ...
    polarity: np.ndarray  # [N] int64, +1 or -1


def _done(judged: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Whether each answer's anchor has a verdict on `LEAST_JUDGED` of its answers; [n] bool of [n] bool and [n]."""
    number = np.unique(anchors, return_inverse=True)[1].reshape(-1)  # [n] of the anchor
    return np.asarray(np.bincount(number, judged)[number] >= LEAST_JUDGED * np.bincount(number)[number])


@dataclass(frozen=True)
class _Pair:
    """Two judges of the same answers."""

    log: AnswerLog
    cheap: np.ndarray  # [answers, 3] float64, NaN where not judged
    strong: np.ndarray  # the same
    in_part: np.ndarray  # [answers] bool: drawn, judged by both, and at an anchor of which both are done

    @classmethod
    def of(cls, log: AnswerLog, cheap: Judgements, strong: Judgements, part: str) -> _Pair:
        """Raises InputError as `corrected_values`."""
        if strong.subset is None:
            raise InputError(f"{strong.path}: no random part of the answers was drawn for {strong.judge}: use --subset")
        of_cheap, of_strong = cheap.stances_of(log, part), strong.stances_of(log, part)
        known, judged = np.isfinite(of_cheap).all(1), np.isfinite(of_strong).all(1)
        anchors = np.array([answer.anchor for answer in log.answers])
        complete = _done(known, anchors)
        if not complete.any():
            raise InputError(
                f"{cheap.path}: {cheap.judge} has judged {known.mean():.0%} of the answers, and all are needed"
            )
        chosen = drawn(log, strong.subset)
        usable = np.isin(anchors, anchors[chosen][_done(judged[chosen], anchors[chosen])]) & complete
        if not usable.any():
            raise InputError(
                f"{strong.path}: {strong.judge} has a verdict on {judged[chosen].mean():.0%} of the {len(chosen)} "
                f"answers that were drawn for it, and {LEAST_JUDGED:.0%} are needed; run the same command again"
            )
        in_part = np.isin(np.arange(len(known)), chosen) & judged & known & usable
        if in_part.sum() < _LEAST_DRAWN:
            raise InputError(
                f"{strong.path}: {in_part.sum()} answers were judged for a correction; it needs {_LEAST_DRAWN}: draw a "
                "larger --subset"
            )
        return cls(log, of_cheap, of_strong, in_part)

    @cached_property
    def _all(self) -> tuple[np.ndarray, _Pool]:
        """The anchor of each answer that the cheap judge has judged, and these answers as one pool."""
        probes = self.log.panel.probes
        row_of = {probe.id: i for i, probe in enumerate(probes)}
        number_of = {topic: i for i, topic in enumerate(self.log.panel.topics)}
        row = np.array([row_of[answer.probe] for answer in self.log.answers])
        pool = _Pool(
            by_answer(self.log, self.cheap),
            by_answer(self.log, self.strong),
            self.in_part,
            row,
            np.array([number_of[probe.topic] for probe in probes])[row],
            np.array([probe.polarity for probe in probes])[row],
        )
        return np.array([answer.anchor for answer in self.log.answers]), pool

    def at(self, anchor: int) -> _Pool:
        """The answers of an anchor."""
        anchors, pool = self._all
        inside = (anchors == anchor) & np.isfinite(pool.cheap).all(1)
        return _Pool(*(array[inside] for array in vars(pool).values()))

    @cached_property
    def correction(self) -> Correction:
        """How the graded stances go together, over the part, within anchors, topics and polarities."""
        pairs = []  # [n, 2] of each anchor: what is left of the cheap and of the strong judge's
        for anchor in self.log.anchors:
            pool = self.at(anchor)
            x = np.stack([pool.cheap[:, 3], pool.strong[:, 3]], 1)[pool.in_part]
            topic, polarity = pool.topic[pool.in_part], pool.polarity[pool.in_part]
            means, lean = _fit(x, topic, polarity, len(self.log.panel.topics))
            pairs.append(x - means[topic] - polarity[:, None] * lean)
        c, s = np.concatenate(pairs).T
        square, other, product = float(c @ c), float(s @ s), float(c @ s)
        return Correction(
            num=int(self.in_part.sum()),
            slope=max(product / square, 0.0) if square > 0 else 0.0,
            correlation=product / math.sqrt(square * other) if square * other > 0 else math.nan,
            share=float(self.in_part.mean()),
        )
