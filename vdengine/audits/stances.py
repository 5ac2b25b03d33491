"""What the stances of a file's answers come to, by topic: value gaps, mixes, shares, with intervals over rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.audits.rows import Sample
from vdengine.panels.panel import STANCES

FEW_ROWS = 24  # below this an interval is not to be trusted
ALL = "all"


@dataclass(frozen=True)
class MeanInterval:
    """A mean over rows with its 95% interval, and how many rows are behind it."""

    mean: float
    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> MeanInterval:
        """Percentile bootstrap over rows; values [n] float64. One row has a mean but no interval."""
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
    """The value gap of pairs, by topic and for "all": {"gap", "low", "high", "rows", "few", "chosen", "rejected"}.

    chosen, rejected: [n, 3] p(support, neutral, oppose) on the axis; a pair with NaN is left out. "gap" is the mean of
    (support - oppose) of chosen less that of rejected, from -2 to 2; the mixes are means of the probabilities.
    """
    whole = ~np.isnan(chosen).any(1) & ~np.isnan(rejected).any(1)
    out = {}
    for topic, mask in topic_masks(topics, whole):
        a, b = chosen[mask], rejected[mask]
        found = MeanInterval.of((a[:, 0] - a[:, 2]) - (b[:, 0] - b[:, 2]), resamples=resamples, seed=seed)
        out[topic] = {
            "gap": found.mean, "low": found.low, "high": found.high, "rows": found.rows, "few": found.rows < FEW_ROWS,
            "chosen": _mix(a), "rejected": _mix(b),
        }  # fmt: skip
    return out


def mix_by_topic(
    topics: Sequence[str], stances: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The stance mix of answers, by topic and for "all": {"rows", "few", "support": {"mean", "low", "high"}, ...,
    "graded": ...}. stances: [n, 3] as in `gap_by_topic`."""
    whole = ~np.isnan(stances).any(1)
    out: dict[str, dict[str, Any]] = {}
    for topic, mask in topic_masks(topics, whole):
        x = stances[mask]
        columns = dict(zip(STANCES, x.T, strict=True)) | {"graded": x[:, 0] - x[:, 2]}
        out[topic] = {"rows": int(mask.sum()), "few": bool(mask.sum() < FEW_ROWS)}
        for name, values in columns.items():
            found = MeanInterval.of(values, resamples=resamples, seed=seed)
            out[topic][name] = {"mean": found.mean, "low": found.low, "high": found.high}
    return out


def topic_masks(topics: Sequence[str], whole: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    each = np.array(topics, dtype=object)
    for topic in dict.fromkeys(topics):
        if (mask := (each == topic) & whole).any():
            yield topic, mask
    yield ALL, whole


def _mix(stances: np.ndarray) -> dict[str, float]:
    mean = stances.mean(0) if len(stances) else np.full(3, np.nan)
    return dict(zip(STANCES, map(float, mean), strict=True)) | {"graded": float(mean[0] - mean[2])}


def shares(found: Sample, main: Mapping[str, Any]) -> dict[str, Any]:
    """How many of an SFT file's rows are on a topic, and how many of all take a side (95% Wilson intervals)."""
    on_topic = sum(found.on_topic.values())
    low, high = _wilson(on_topic, found.usable)
    neutral = main[ALL].get("neutral", {}).get("mean", math.nan)
    share = on_topic / found.usable
    return {
        "value_laden": {"rows": on_topic, "share": share, "low": low, "high": high},
        "taking_sides": {"share": share * (1 - neutral) if on_topic else 0.0},
        "shares": {t: found.on_topic[t] / found.usable for t in found.on_topic},
    }


def _wilson(k: int, n: int) -> tuple[float, float]:
    z = 1.959964
    centre, spread = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def agreement(a: np.ndarray, b: np.ndarray) -> dict[str, float | int]:  # [n, m, 3] each
    """Of two readings of single answers, and, of pairs, of their gaps."""
    x, y = (v[..., 0] - v[..., 2] for v in (a, b))
    series = {"answers": (x.ravel(), y.ravel())}
    if x.shape[1] == 2:
        series["pairs"] = (x[:, 0] - x[:, 1], y[:, 0] - y[:, 1])
    out: dict[str, float | int] = {}
    for name, (x, y) in series.items():
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[both], y[both]
        steady = len(x) < 3 or x.std() == 0 or y.std() == 0
        out[name] = len(x)
        out[f"{name}_correlation"] = math.nan if steady else float(np.corrcoef(x, y)[0, 1])
        out[f"{name}_same_sign"] = float((np.sign(x) == np.sign(y)).mean()) if len(x) else math.nan
    return out
