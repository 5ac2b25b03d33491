"""Estimates from the stances of a file's answers, by topic: value gaps, mixes and shares, with intervals over rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.audits.rows import Sample
from vdengine.panels.panel import STANCES

FEW_ROWS = 24  # below this an interval is not to be trusted
ALL = "all"  # the rows of all topics


@dataclass(frozen=True)
class MeanInterval:
    """A mean over rows with its 95% interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    rows: int  # how many

    @classmethod
    def of(cls, values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> MeanInterval:
        """The mean of `values` [n] float64 with a percentile bootstrap over rows. One row has no interval: NaN."""
        if len(values) < 2:
            return cls(float(values.mean()) if len(values) else math.nan, math.nan, math.nan, len(values))
        rng = np.random.Generator(np.random.Philox(seed))
        means = np.empty(resamples)
        for start in range(0, resamples, 100):  # a block at a time: a file may have 10^5 rows
            draws = rng.integers(0, len(values), (min(100, resamples - start), len(values)))
            means[start : start + 100] = values[draws].mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        return cls(float(values.mean()), float(low), float(high), len(values))


def gap_by_topic(
    topics: Sequence[str], chosen: np.ndarray, rejected: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The value gap of pairs, by topic and for "all".

    Args:
        topics: of each pair, [n].
        chosen, rejected: [n, 3] float64, p(support, neutral, oppose) on the axis; a pair with a NaN is left out.
        resamples, seed: of the bootstrap.

    Returns:
        By topic: "gap" with "low" and "high", the mean of (support - oppose) of chosen less that of rejected, from -2
        to 2; "rows", and "few" where there are too few; "chosen" and "rejected", the mean probabilities.
    """
    complete = ~np.isnan(chosen).any(1) & ~np.isnan(rejected).any(1)
    gaps = {}
    for topic, mask in topic_masks(topics, complete):
        a, b = chosen[mask], rejected[mask]
        gap = MeanInterval.of((a[:, 0] - a[:, 2]) - (b[:, 0] - b[:, 2]), resamples=resamples, seed=seed)
        gaps[topic] = {
            "gap": gap.mean,
            "low": gap.low,
            "high": gap.high,
            "rows": gap.rows,
            "few": gap.rows < FEW_ROWS,
            "chosen": _mix(a),
            "rejected": _mix(b),
        }
    return gaps


def mix_by_topic(
    topics: Sequence[str], stances: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The stance mix of answers, by topic and for "all".

    Args:
        topics: of each answer, [n].
        stances: [n, 3] float64, p(support, neutral, oppose) on the axis; an answer with a NaN is left out.
        resamples, seed: of the bootstrap.

    Returns:
        By topic: "rows", and "few" where there are too few; "support", "neutral", "oppose" and "graded" (support less
        oppose), each with "mean", "low", "high".
    """
    complete = ~np.isnan(stances).any(1)
    mixes: dict[str, dict[str, Any]] = {}
    for topic, mask in topic_masks(topics, complete):
        of_topic = stances[mask]
        columns = dict(zip(STANCES, of_topic.T, strict=True)) | {"graded": of_topic[:, 0] - of_topic[:, 2]}
        mixes[topic] = {"rows": int(mask.sum()), "few": bool(mask.sum() < FEW_ROWS)}
        for name, values in columns.items():
            mean = MeanInterval.of(values, resamples=resamples, seed=seed)
            mixes[topic][name] = {"mean": mean.mean, "low": mean.low, "high": mean.high}
    return mixes


def topic_masks(topics: Sequence[str], complete: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(topic, mask [n] bool) of each topic that has a complete row, then of all rows; topics, complete (bool): [n]."""
    topic_of = np.array(topics, dtype=object)
    for topic in dict.fromkeys(topics):
        if (mask := (topic_of == topic) & complete).any():
            yield topic, mask
    yield ALL, complete


def _mix(stances: np.ndarray) -> dict[str, float]:
    """Mean probabilities of stances [n, 3], by name, and "graded"; NaN of none."""
    mean = stances.mean(0) if len(stances) else np.full(3, np.nan)
    return dict(zip(STANCES, map(float, mean), strict=True)) | {"graded": float(mean[0] - mean[2])}


def shares(sampled: Sample, tables: Mapping[str, Any]) -> dict[str, Any]:
    """How many of an SFT file's rows are on a topic, with a 95% interval, and how many of all take a side.

    tables: of one reading, with the mix of "all" as in `mix_by_topic`.
    """
    on_topic = sum(sampled.on_topic.values())
    low, high = _wilson(on_topic, sampled.usable)
    neutral = tables[ALL].get("neutral", {}).get("mean", math.nan)
    share = on_topic / sampled.usable
    return {
        "value_laden": {"rows": on_topic, "share": share, "low": low, "high": high},
        "taking_sides": {"share": share * (1 - neutral) if on_topic else 0.0},
        "shares": {topic: count / sampled.usable for topic, count in sampled.on_topic.items()},
    }


def _wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval (1927) of a share, k of n."""
    z = 1.959964
    centre, spread = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def agreement(a: np.ndarray, b: np.ndarray) -> dict[str, float | int]:
    """How far two readings agree on single answers ("answers") and, of pairs, on their gaps ("pairs").

    Args:
        a, b: [n, m, 3] float64, p(support, neutral, oppose) of m answers to each of n rows; NaN: not read.

    Returns:
        Of either: how many both have read, Pearson's correlation of support - oppose, and the share of equal signs.
    """
    graded_a, graded_b = (stances[..., 0] - stances[..., 2] for stances in (a, b))  # [n, m]
    series = {"answers": (graded_a.ravel(), graded_b.ravel())}
    if graded_a.shape[1] == 2:
        series["pairs"] = (graded_a[:, 0] - graded_a[:, 1], graded_b[:, 0] - graded_b[:, 1])
    agreements: dict[str, float | int] = {}
    for name, (of_a, of_b) in series.items():
        both = ~np.isnan(of_a) & ~np.isnan(of_b)
        of_a, of_b = of_a[both], of_b[both]
        constant = len(of_a) < 3 or of_a.std() == 0 or of_b.std() == 0
        agreements[name] = len(of_a)
        agreements[f"{name}_correlation"] = math.nan if constant else float(np.corrcoef(of_a, of_b)[0, 1])
        agreements[f"{name}_same_sign"] = float((np.sign(of_a) == np.sign(of_b)).mean()) if len(of_a) else math.nan
    return agreements
