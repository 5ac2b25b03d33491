"""v, its shifts, how far and when it drifted, and whether any of that can be read: everything that is shown of a run.

A probe has a reading v at each sample (`drift/readings.py`). Of a topic, v is the mean over its probes; the shift at a
step is v less v at the baseline, each probe paired with itself; the magnitude M is the last shift, signed. Intervals
and p values are those of `drift/intervals.py`: over probes, not over training seeds. Drift times are taken over whole
trajectories (`drift/trajectory.py`): probes are resampled with Poisson weights, the same for all samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.agreement import Agreement, Correlation, Match, agreement, pearson, shared_steps, step_up
from vdengine.drift.baselines import Score, predict_direction_step, score_predictions
from vdengine.drift.importance import Gate, gate
from vdengine.drift.intervals import ALPHA, FEW_PROBES, Estimate, Group, group_of, holm, mean_estimate
from vdengine.drift.readings import PRIMARY, Readings, answer_readings, controls_of, openings_readings
from vdengine.drift.trajectory import (
    RULES,
    SMOOTHINGS,
    DriftTime,
    baseline_index,
    drift_times,
    last_sample,
    parse_smoothing,
    smoothing_kernel,
)  # fmt: skip

__all__ = [
    "FEW_PROBES", "PRIMARY", "RULES", "SMOOTHINGS", "Agreement", "Analysis", "Correlation", "Curve", "DriftTime",
    "Estimate", "Gate", "HalfPanels", "Match", "Readings", "Reliability", "Score", "TopicDrift",
    "agreement", "analyse", "answer_readings", "controls_of", "gate", "mean_estimate", "openings_readings",
    "predict_direction_step", "score_predictions",
]  # fmt: skip

RANGE = {"support": (0.0, 1.0), "neutral": (0.0, 1.0), "oppose": (0.0, 1.0), "graded": (-1.0, 1.0)}  # of levels
LOW_RELIABILITY = 0.7  # of random halves of a topic's probes
SPLITS = 200


@dataclass(frozen=True)
class Curve:
    """One channel of one topic over the run, with its 95% interval at each step. Arrays [S], NaN where not sampled."""

    topic: str  # "all": the whole panel
    channel: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_probes: np.ndarray
    level: bool  # v itself; else its shift since the baseline
    noise: np.ndarray | None = None  # answers, unsmoothed: standard error, were others drawn for the same probes


@dataclass(frozen=True)
class TopicDrift:
    """How far and when one topic drifted in one channel."""

    topic: str
    channel: str
    magnitude: Estimate  # signed: last sample less baseline, never smoothed
    p_adjusted: float  # Holm over the topics of the channel; "all" stands alone
    times: dict[str, DriftTime]  # by rule

    @property
    def significant(self) -> bool:
        """p_adjusted below 0.05: in 95% of runs without drift no topic of a channel is."""
        return self.p_adjusted < ALPHA


@dataclass(frozen=True)
class HalfPanels:
    """Do random halves of the panel, each with every topic and polarity, order the topics' magnitudes alike?"""

    correlation: float  # over topics, mean of many splits
    whole: float  # stepped up to the whole panel by Spearman and Brown
    num_topics: int


@dataclass(frozen=True)
class Reliability:
    """Whether a topic's curve can be read."""

    topic: str
    halves: float  # share of the curve's mean square that is not noise between probes, from random halves; NaN: flat
    items: float | None  # last shifts of its probes, from half of their items against the other half, stepped up
    paraphrase: float | None  # Pearson's r of the last shifts with those of the paraphrased questions
    unreliable: bool
    reason: str  # why; empty if reliable


@dataclass(frozen=True)
class Analysis:
    """What is known of a run. Keys of the tables: (topic or "all", channel).

    validity: of the last sample against the baseline, None where it was not measured
        displacement, neutral, yes_bias   Estimate over the panel
        null, off-topic                   Estimate of the primary channel on the controls; shown, never subtracted
        paraphrase                        {correlation: Pearson's r of last shifts over probes, shift: Estimate,
                                          agreement: Agreement} of the paraphrased questions
        half_panels                       HalfPanels
        items                             float: probes' last shifts, from half of their items against the other half,
                                          stepped up to all of them (Spearman and Brown)
        reliability                       {topic: Reliability}
        judges                            {name: Agreement} with each further judge
    """

    readings: Readings
    baseline: int  # step
    smoothing: str  # "none", or a name and its width, "ema:0.1"
    curves: dict[tuple[str, str], Curve]
    levels: dict[tuple[str, str], Curve]  # answers only: levels of openings say nothing
    drifts: dict[tuple[str, str], TopicDrift]
    validity: dict[str, Any]

    @property
    def topics(self) -> list[str]:
        """In order of first appearance, without "all"."""
        return self.readings.topic_names

    def drift(self, topic: str = "all") -> TopicDrift:
        """The drift of the readout's own channel."""
        return self.drifts[topic, self.readings.primary]


def analyse(
    readings: Readings, *, baseline: int | None = None, smoothing: str = "none", resamples: int = 2000, seed: int = 0,
    controls: Mapping[str, Readings] | None = None, judges: Mapping[str, Readings] | None = None,
) -> Analysis:  # fmt: skip
    """Everything that is shown of a run.

    Args:
        baseline: the step that shifts are since. Default: the first sample.
        smoothing: "none", "ema" or "local-linear", of curves and before drift times are taken; with a width as a
            fraction of the stage, "ema:0.05" (its time constant; default 0.1) or "local-linear:0.2" (half its window).
            The largest of many noisy readings is above the truth: smooth those of rotating parts. The baseline stays.
        resamples, seed: of the bootstrap that drift times' intervals come from.
        controls: `controls_of` the same log.
        judges: the same answers by further judges, by name.

    Raises:
        InputError: a baseline that is not a sample; an unknown smoothing.
    """
    index = baseline_index(readings, baseline)
    name, width = parse_smoothing(smoothing)
    smoothing = name if name == "none" else f"{name}:{width:g}"
    draws = np.random.Generator(np.random.Philox(seed)).poisson(1.0, (resamples, len(readings.probes)))
    weights = draws.astype(np.float32) - 1  # fp32: what they move is compared with intervals, and ends up as steps
    curves: dict[tuple[str, str], Curve] = {}
    levels: dict[tuple[str, str], Curve] = {}
    drifts: dict[tuple[str, str], TopicDrift] = {}

    def shown(group: Group) -> Group:
        if name == "none":
            return group
        return group.smoothed(smoothing_kernel(readings, group.mean, index, name, width))

    noise = (readings.noise, readings.shift_noise if index == 0 else None) if name == "none" else (None, None)
    for channel, x in readings.channels.items():
        shifts = {t: group_of(readings, x - x[index], t) for t in ["all", *readings.topic_names]}
        ends = {t: last_sample(g.mean, index) for t, g in shifts.items()}
        found = [
            Estimate(math.nan, math.nan, math.nan, 0, math.nan) if end is None else shifts[t].estimate(end)
            for t, end in ends.items()
        ]
        adjusted = [found[0].p, *holm(np.array([m.p for m in found[1:]])).tolist()]
        for (topic, group), m, p in zip(shifts.items(), found, adjusted, strict=True):
            smooth = shown(group)
            curves[topic, channel] = _curve(readings, smooth, topic, channel, noise[1])
            if readings.readout == "answers":
                level = shown(group_of(readings, x, topic))
                levels[topic, channel] = _curve(readings, level, topic, channel, noise[0], level=True)
            d = TopicDrift(topic, channel, m, p, {rule: DriftTime(rule, smoothing) for rule in RULES})
            if d.significant:
                mine = weights[:, readings.member(topic)]
                d.times.update(drift_times(readings, smooth, index, m.mean, smoothing, mine))
            drifts[topic, channel] = d
    validity = _validity(readings, index, drifts, seed, controls or {}, judges or {})
    return Analysis(readings, int(readings.steps[index]), smoothing, curves, levels, drifts, validity)


def _curve(
    readings: Readings, group: Group, topic: str, channel: str, noise: dict[str, np.ndarray] | None,
    level: bool = False,
) -> Curve:  # fmt: skip
    low, high, _ = group.inference
    if level and channel in RANGE:
        low, high = np.maximum(low, RANGE[channel][0]), np.minimum(high, RANGE[channel][1])
    error = None
    if noise is not None:
        variance = np.where(group.taken, noise[channel][:, readings.member(topic)], 0.0)
        error = np.where(np.isfinite(group.mean), np.sqrt((group.share**2 * variance).sum(1)), np.nan)
    return Curve(topic, channel, readings.steps, group.mean, low, high, group.num_probes, level, error)


# ----------------------------------------------------------------------------------------------------- validity


def _validity(
    readings: Readings, index: int, drifts: dict[tuple[str, str], TopicDrift], seed: int,
    controls: Mapping[str, Readings], judges: Mapping[str, Readings],
) -> dict[str, Any]:  # fmt: skip
    step, again = int(readings.steps[index]), controls.get("paraphrase")
    out: dict[str, Any] = {
        name: drifts["all", name].magnitude if ("all", name) in drifts else None
        for name in ("displacement", "neutral", "yes_bias")
    }
    out |= {name: _last_shift(controls.get(name), step) for name in ("null", "off-topic")}
    found, shift = _alike(readings, again, step), _last_shift(again, step)
    out["paraphrase"] = None
    if found is not None:
        r = found.matches["all"].magnitude.pearson
        out["paraphrase"] = {"correlation": r, "shift": shift, "agreement": found}
    halves, out["half_panels"] = _halves(readings, index, seed)
    out["items"] = _items(readings, index, "all")
    out["reliability"] = {
        topic: _reliability(readings, index, topic, drifts, halves[topic], found, _last_shift(again, step, topic))
        for topic in readings.topic_names
    }
    out["judges"] = {name: _alike(readings, other, step) for name, other in judges.items()} or None
    return out


def _last_shift(control: Readings | None, baseline: int, topic: str = "all") -> Estimate | None:
    """The last shift of the primary channel; None where it was not sampled at the baseline and later."""
    if control is None or baseline not in control.steps or not control.member(topic).any():
        return None
    index, x = baseline_index(control, baseline), control.channels[control.primary]
    group = group_of(control, x - x[index], topic)
    end = last_sample(group.mean, index)
    return None if end is None else group.estimate(end)


def _alike(readings: Readings, other: Readings | None, baseline: int) -> Agreement | None:
    """None where they have no other sample in common than the baseline, or not even that."""
    if other is None:
        return None
    shared = shared_steps(readings, other, readings.primary, other.primary)
    return agreement(readings, other, baseline=baseline) if baseline in shared[:-1] else None


def _halves(readings: Readings, index: int, seed: int) -> tuple[dict[str, float], HalfPanels | None]:
    """Random halves of each topic's probes, within polarities: how much of a curve is in both, and of their order.

    With half-curves a and b, E[a b] is the square of the true shift and E[a^2] adds the noise of half the probes:
    2 sum(a b) / sum(a^2 + b^2), stepped up, is the share of the whole curve's mean square that is not noise.
    """
    x = readings.channels[readings.primary]
    x = (x - x[index])[index + 1 :]
    rng = np.random.Generator(np.random.Philox([seed, 1]))
    found: dict[str, float] = {}
    last = []
    for topic in readings.topic_names:
        mine = readings.member(topic)
        y, polarity = x[:, mine].T, readings.polarity[mine]  # [P, S]
        half = np.zeros((SPLITS, len(polarity)))
        for sign in (1, -1):
            at = np.flatnonzero(polarity == sign)
            half[:, at] = (rng.random((SPLITS, len(at))).argsort(1) + rng.integers(0, 2, (SPLITS, 1))) % 2
        taken, value = np.isfinite(y).astype(np.float64), np.nan_to_num(y)
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = ((h @ value) / (h @ taken) for h in (half, 1 - half))  # [splits, S]
        both = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(both, a, 0.0), np.where(both, b, 0.0)
        square = float((a**2 + b**2).sum())
        found[topic] = max(step_up(2 * float((a * b).sum()) / square), 0.0) if square > 0 else math.nan
        known = np.flatnonzero(both.any(0))
        if len(known):
            last.append((a[:, known[-1]], b[:, known[-1]]))
    if len(last) < 3:
        return found, None
    pairs: np.ndarray = np.array(last)  # [topics, 2, splits]
    r = np.array([pearson(pairs[:, 0, k], pairs[:, 1, k]) for k in range(SPLITS)])
    mean = float(r[np.isfinite(r)].mean()) if np.isfinite(r).any() else math.nan
    return found, HalfPanels(mean, step_up(mean), len(last))


def _reliability(
    readings: Readings, index: int, topic: str, drifts: dict[tuple[str, str], TopicDrift], halves: float,
    paraphrases: Agreement | None, again: Estimate | None,
) -> Reliability:  # fmt: skip
    drift, bias = drifts[topic, readings.primary], drifts.get((topic, "yes_bias"))
    m, items, paraphrase = drift.magnitude, _items(readings, index, topic), None
    if paraphrases is not None and topic in paraphrases.matches:
        paraphrase = _known(paraphrases.matches[topic].magnitude.pearson)
    reasons = []
    if m.few:
        reasons.append(f"{m.num_probes} probes, fewer than {FEW_PROBES}")
    if drift.significant:
        if halves < LOW_RELIABILITY:
            reasons.append(f"random halves of its probes agree to {halves:.2f} only")
        if bias is not None and bias.magnitude.significant and abs(bias.magnitude.mean) > abs(m.mean):
            reasons.append("questions put the two ways do not agree: the yes-bias is larger than the shift")
        if again is not None and not (again.mean * m.mean > 0 and again.significant):
            reasons.append("paraphrased questions do not show the shift")
    return Reliability(topic, halves, items, paraphrase, bool(reasons), "; ".join(reasons))


def _items(readings: Readings, index: int, topic: str) -> float | None:
    """Reliability of single probes' last shifts, where their items come in halves."""
    if readings.halves is None:
        return None
    a, b = ((h[index + 1 :] - h[index])[:, readings.member(topic)] for h in readings.halves)
    ends = np.flatnonzero(np.isfinite(a + b).any(1))
    return _known(step_up(pearson(a[ends[-1]], b[ends[-1]]))) if len(ends) else None


def _known(x: float) -> float | None:
    return x if math.isfinite(x) else None
