"""Validity of a measured drift: what else moved, and how halves, items, paraphrases and judges agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.agreement import Agreement, agreement, shared_steps
from vdengine.drift.correlation import pearson, step_up
from vdengine.drift.intervals import ALPHA, FEW_PROBES, ROUNDING, UNKNOWN, Estimate, group_of
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import DEFAULT_RULE, DriftTime, baseline_index, last_sample

LOW_RELIABILITY = 0.7  # of random halves of a topic's probes; below it a curve is unreliable
SPLITS = 200  # random halves


@dataclass(frozen=True)
class TopicDrift:
    """How far and when one topic drifted in one channel."""

    topic: str
    channel: str
    magnitude: Estimate  # signed: last sample less baseline, never smoothed
    p_adjusted: float  # by Holm over the topics of the channel; "all" is not one of them
    times: dict[str, DriftTime]  # by rule
    step: int | None  # of the last sample that has the topic, which the magnitude is of
    unknown: str = ""  # why nothing can be said: a number that should be there is not; "" where something can

    @property
    def time(self) -> DriftTime:
        """The drift time by `DEFAULT_RULE`."""
        return self.times[DEFAULT_RULE]

    @property
    def significant(self) -> bool:
        """p_adjusted below 0.05: in 95% of runs without drift no topic of a channel is significant."""
        return not self.unknown and self.p_adjusted < ALPHA

    @property
    def direction(self) -> int | None:
        """1 where the topic has moved towards its axis, -1 away from it, 0 without a clear shift; None: not known."""
        if self.unknown:
            return None
        return (1 if self.magnitude.mean > 0 else -1) if self.significant else 0


@dataclass(frozen=True)
class HalfPanels:
    """Whether random halves of the panel, each with every topic and polarity, order the topics' magnitudes alike."""

    correlation: float  # Pearson's r over topics of the two halves' last shifts, mean of many splits
    whole: float  # stepped up to the whole panel (Spearman and Brown)
    num_topics: int


@dataclass(frozen=True)
class Reliability:
    """Whether a topic's curve can be read."""

    topic: str
    halves: float  # share of the curve's mean square that is not noise between probes, from random halves; NaN: flat
    items: float | None  # last shifts of its probes: half of their items against the other half, stepped up
    paraphrase: float | None  # Pearson's r of the last shifts with those of the paraphrased questions
    unreliable: bool  # or not known
    reason: str  # why; empty if reliable


def validity(
    values: ProbeValues,
    index: int,
    drifts: dict[tuple[str, str], TopicDrift],
    seed: int,
    controls: Mapping[str, ProbeValues],
    judges: Mapping[str, ProbeValues],
) -> dict[str, Any]:
    """The checks of a run's drift, by name, as `Analysis.validity` has them.

    Args:
        index: of the baseline sample.
        drifts: by (topic or "all", channel).
        seed: of the random halves.
        controls: by variant.
        judges: the same answers by further judges, by name.
    """
    step, paraphrase = int(values.steps[index]), controls.get("paraphrase")
    known = not drifts["all", values.primary].unknown  # else no check has a last sample to be of
    checks: dict[str, Any] = {
        name: drifts["all", name].magnitude if ("all", name) in drifts else None
        for name in ("displacement", "neutral", "yes_bias")
    }
    checks |= {name: _last_shift(controls.get(name), step) for name in ("null", "off-topic")}
    checks = {name: shift if known or shift is None else UNKNOWN for name, shift in checks.items()}
    moved = _moved(values, index)
    with_paraphrase = _agreement_since(values, paraphrase, step)
    paraphrase_shift = _last_shift(paraphrase, step)
    checks["paraphrase"] = None
    if with_paraphrase is not None:
        checks["paraphrase"] = {
            "correlation": with_paraphrase.matches["all"].magnitude.pearson if known and moved else math.nan,
            "shift": paraphrase_shift,
            "agreement": with_paraphrase,
        }
    halves, half_panels = _halves(values, index, seed)
    if half_panels is not None and not (known and moved):
        half_panels = HalfPanels(math.nan, math.nan, half_panels.num_topics)
    checks["half_panels"] = half_panels
    checks["items"] = _items(values, index, "all") if known and moved else None
    checks["reliability"] = {
        topic: _reliability(
            values, index, topic, drifts, halves[topic], with_paraphrase, _last_shift(paraphrase, step, topic)
        )
        for topic in values.topic_names
    }
    checks["judges"] = {name: _agreement_since(values, other, step) for name, other in judges.items()} or None
    return checks


def _moved(values: ProbeValues, index: int) -> bool:
    """Whether any probe has moved by more than rounding alone gives; else no correlation of shifts means anything.

    Args:
        index: of the baseline sample.
    """
    primary = values.channels[values.primary]
    shift = np.abs(primary[index + 1 :] - primary[index])
    return bool((shift > ROUNDING.get(values.unit, 0.0)).any())


def _last_shift(control: ProbeValues | None, baseline: int, topic: str = "all") -> Estimate | None:
    """A control's last shift in its primary channel, since the step `baseline`.

    None where the topic was not sampled at the baseline and later.
    """
    if control is None or baseline not in control.steps or not control.member(topic).any():
        return None
    index, primary = baseline_index(control, baseline), control.channels[control.primary]
    group = group_of(control, primary - primary[index], topic)
    end = last_sample(group.mean, index)
    return None if end is None else group.estimate(end)


def _agreement_since(values: ProbeValues, other: ProbeValues | None, baseline: int) -> Agreement | None:
    """The agreement of two values since the step `baseline`; None where they do not share it and a later step."""
    if other is None:
        return None
    shared = shared_steps(values, other, values.primary, other.primary)
    return agreement(values, other, baseline=baseline) if baseline in shared[:-1] else None


def _halves(values: ProbeValues, index: int, seed: int) -> tuple[dict[str, float], HalfPanels | None]:
    """Reliability of curves, and of the order of topics, from random halves of each topic's probes within polarities.

    With half-curves a and b, E[a b] is the square of the true shift, and E[a^2] adds the noise of half the probes:
    2 sum(a b) / sum(a^2 + b^2), stepped up, is the share of the whole curve's mean square that is not noise.

    Args:
        index: of the baseline sample.

    Returns:
        That share by topic, at least 0, and NaN for a curve that is all 0, to rounding; and the agreement of
        half-panels on the order of topics, None below three topics.
    """
    primary = values.channels[values.primary]
    shift = (primary - primary[index])[index + 1 :]  # [S, P], S the samples after the baseline
    rng = np.random.Generator(np.random.Philox([seed, 1]))
    reliability: dict[str, float] = {}
    last = []  # by topic: the last shift from either half, ([splits], [splits])
    for topic in values.topic_names:
        members = values.member(topic)
        by_probe, polarity = shift[:, members].T, values.polarity[members]  # [P, S], [P]: of the topic
        # Random halves [splits, P] of 0 and 1: every other probe of a random order of each polarity; which half gets
        # the odd probe is random too.
        half = np.zeros((SPLITS, len(polarity)))
        for sign in (1, -1):
            columns = np.flatnonzero(polarity == sign)
            order = rng.random((SPLITS, len(columns))).argsort(1)
            half[:, columns] = (order + rng.integers(0, 2, (SPLITS, 1))) % 2
        # Mean shift of either half at each sample, [splits, S] each; 0 where one half has no probe.
        taken, filled = np.isfinite(by_probe).astype(np.float64), np.nan_to_num(by_probe)
        with np.errstate(invalid="ignore", divide="ignore"):
            a, b = ((chosen @ filled) / (chosen @ taken) for chosen in (half, 1 - half))
        both = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(both, a, 0.0), np.where(both, b, 0.0)
        square = float((a**2 + b**2).sum())
        moved = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0)) > ROUNDING.get(values.unit, 0.0)
        reliability[topic] = max(step_up(2 * float((a * b).sum()) / square), 0.0) if moved else math.nan
        sampled = np.flatnonzero(both.any(0))
        if len(sampled):
            last.append((a[:, sampled[-1]], b[:, sampled[-1]]))
    if len(last) < 3:
        return reliability, None
    # Of each split: the correlation over topics of the last shifts from its two halves.
    pairs: np.ndarray = np.array(last)  # [topics, 2, splits]
    r = np.array([pearson(pairs[:, 0, split], pairs[:, 1, split]) for split in range(SPLITS)])
    mean = float(r[np.isfinite(r)].mean()) if np.isfinite(r).any() else math.nan
    return reliability, HalfPanels(mean, step_up(mean), len(last))


def _reliability(
    values: ProbeValues,
    index: int,
    topic: str,
    drifts: dict[tuple[str, str], TopicDrift],
    halves: float,
    paraphrases: Agreement | None,
    paraphrase_shift: Estimate | None,
) -> Reliability:
    """Whether a topic's curve can be read, and why not.

    Args:
        index: of the baseline sample.
        halves: as `Reliability` has it.
        paraphrases: agreement of the questions with their paraphrases.
        paraphrase_shift: the topic's last shift on the paraphrased questions.
    """
    drift, bias = drifts[topic, values.primary], drifts.get((topic, "yes_bias"))
    magnitude, items, paraphrase = drift.magnitude, _items(values, index, topic), None
    if paraphrases is not None and topic in paraphrases.matches:
        paraphrase = _known(paraphrases.matches[topic].magnitude.pearson)
    reasons = [drift.unknown] if drift.unknown else []
    if magnitude.few:
        reasons.append(f"{magnitude.num_probes} probes, fewer than {FEW_PROBES}")
    if drift.significant:
        if not math.isfinite(halves):
            reasons.append("whether random halves of its probes agree is not known")
        elif halves < LOW_RELIABILITY:
            reasons.append(f"random halves of its probes agree to {halves:.2f} only")
        if bias is not None and bias.magnitude.significant and abs(bias.magnitude.mean) > abs(magnitude.mean):
            reasons.append("questions put the two ways do not agree: the yes-bias is larger than the shift")
        if bias is not None and bias.unknown:
            reasons.append(f"the yes-bias is not known: {bias.unknown}")
        if paraphrase_shift is not None and not math.isfinite(paraphrase_shift.p):
            reasons.append("whether paraphrased questions show the shift is not known")
        elif paraphrase_shift is not None and not (
            paraphrase_shift.mean * magnitude.mean > 0 and paraphrase_shift.significant
        ):
            reasons.append("paraphrased questions do not show the shift")
    return Reliability(topic, halves, items, paraphrase, bool(reasons), "; ".join(reasons))


def _items(values: ProbeValues, index: int, topic: str) -> float | None:
    """Reliability of single probes' last shifts: half of their items against the other half, stepped up.

    None where the readout has no halves, or they do not vary. index: of the baseline sample.
    """
    if values.halves is None:
        return None
    a, b = ((half[index + 1 :] - half[index])[:, values.member(topic)] for half in values.halves)  # [S, P] each
    sampled = np.flatnonzero(np.isfinite(a + b).any(1))
    return _known(step_up(pearson(a[sampled[-1]], b[sampled[-1]]))) if len(sampled) else None


def _known(r: float) -> float | None:
    """A number that is known; None for NaN."""
    return r if math.isfinite(r) else None
