"""Whether what drifted can be read: what moved with it, and how halves, items, paraphrases and judges agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.agreement import Agreement, agreement, pearson, shared_steps, step_up
from vdengine.drift.intervals import ALPHA, FEW_PROBES, Estimate, group_of
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import DriftTime, baseline_index, last_sample

LOW_RELIABILITY = 0.7  # of random halves of a topic's probes
SPLITS = 200


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


def validity(
    values: ProbeValues, index: int, drifts: dict[tuple[str, str], TopicDrift], seed: int,
    controls: Mapping[str, ProbeValues], judges: Mapping[str, ProbeValues],
) -> dict[str, Any]:  # fmt: skip
    step, again = int(values.steps[index]), controls.get("paraphrase")
    out: dict[str, Any] = {
        name: drifts["all", name].magnitude if ("all", name) in drifts else None
        for name in ("displacement", "neutral", "yes_bias")
    }
    out |= {name: _last_shift(controls.get(name), step) for name in ("null", "off-topic")}
    found, shift = _alike(values, again, step), _last_shift(again, step)
    out["paraphrase"] = None
    if found is not None:
        r = found.matches["all"].magnitude.pearson
        out["paraphrase"] = {"correlation": r, "shift": shift, "agreement": found}
    halves, out["half_panels"] = _halves(values, index, seed)
    out["items"] = _items(values, index, "all")
    out["reliability"] = {
        topic: _reliability(values, index, topic, drifts, halves[topic], found, _last_shift(again, step, topic))
        for topic in values.topic_names
    }
    out["judges"] = {name: _alike(values, other, step) for name, other in judges.items()} or None
    return out


def _last_shift(control: ProbeValues | None, baseline: int, topic: str = "all") -> Estimate | None:
    """The last shift of the primary channel; None where it was not sampled at the baseline and later."""
    if control is None or baseline not in control.steps or not control.member(topic).any():
        return None
    index, x = baseline_index(control, baseline), control.channels[control.primary]
    group = group_of(control, x - x[index], topic)
    end = last_sample(group.mean, index)
    return None if end is None else group.estimate(end)


def _alike(values: ProbeValues, other: ProbeValues | None, baseline: int) -> Agreement | None:
    """None where they have no other sample in common than the baseline, or not even that."""
    if other is None:
        return None
    shared = shared_steps(values, other, values.primary, other.primary)
    return agreement(values, other, baseline=baseline) if baseline in shared[:-1] else None


def _halves(values: ProbeValues, index: int, seed: int) -> tuple[dict[str, float], HalfPanels | None]:
    """Random halves of each topic's probes, within polarities: how much of a curve is in both, and of their order.

    With half-curves a and b, E[a b] is the square of the true shift and E[a^2] adds the noise of half the probes:
    2 sum(a b) / sum(a^2 + b^2), stepped up, is the share of the whole curve's mean square that is not noise.
    """
    x = values.channels[values.primary]
    x = (x - x[index])[index + 1 :]
    rng = np.random.Generator(np.random.Philox([seed, 1]))
    found: dict[str, float] = {}
    last = []
    for topic in values.topic_names:
        mine = values.member(topic)
        y, polarity = x[:, mine].T, values.polarity[mine]  # [P, S]
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
    values: ProbeValues, index: int, topic: str, drifts: dict[tuple[str, str], TopicDrift], halves: float,
    paraphrases: Agreement | None, again: Estimate | None,
) -> Reliability:  # fmt: skip
    drift, bias = drifts[topic, values.primary], drifts.get((topic, "yes_bias"))
    m, items, paraphrase = drift.magnitude, _items(values, index, topic), None
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


def _items(values: ProbeValues, index: int, topic: str) -> float | None:
    """Reliability of single probes' last shifts, where their items come in halves."""
    if values.halves is None:
        return None
    a, b = ((h[index + 1 :] - h[index])[:, values.member(topic)] for h in values.halves)
    ends = np.flatnonzero(np.isfinite(a + b).any(1))
    return _known(step_up(pearson(a[ends[-1]], b[ends[-1]]))) if len(ends) else None


def _known(x: float) -> float | None:
    return x if math.isfinite(x) else None
