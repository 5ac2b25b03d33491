"""Smoothing over steps, and when a topic had drifted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.drift.intervals import Group
from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError

RULES = ("ci95", "frac95", "settled")
SMOOTHINGS = ("none", "ema", "local-linear")


@dataclass(frozen=True)
class DriftTime:
    """When a topic had drifted, as a step and as a fraction of the stage; all None where M is not significant.

    With M's sign, and the extreme the sample with the largest shift that way:
    `ci95`    the first sample within the 95% interval of the extreme (the paper's, as its summaries have it)
    `frac95`  the first sample at 95% of the extreme
    `settled` the first sample from which all stay within the 95% interval of the last

    `low` and `high`: the middle 95% of the fraction, resampling probes (whole trajectories, baseline and extreme too),
    from the sample before: it may have been at any time since.
    """

    rule: str
    smoothing: str
    step: int | None = None
    fraction: float | None = None
    low: float | None = None
    high: float | None = None


def parse_smoothing(text: str) -> tuple[str, float]:
    """Name and width (a fraction of the stage; no matter for "none") from "none", "ema", "local-linear:0.2", ...

    Raises:
        InputError: anything else.
    """
    name, _, width = text.partition(":")
    try:
        value = float(width) if width else 0.1
    except ValueError:
        value = math.nan
    if name not in SMOOTHINGS or not 0 < value <= 1 or (name == "none" and width):
        raise InputError(
            f"smoothing: {text!r} is not one of none, ema, local-linear, the last two with a width if wanted "
            "(ema:0.05, a fraction of the stage above 0, at most 1)"
        )
    return name, value


def smoothing_kernel(values: ProbeValues, mean: np.ndarray, baseline: int, name: str, width: float) -> np.ndarray:
    """[S, S] rows that sum to 1 over the samples that `mean` [S] has; the baseline is left alone."""
    known = np.flatnonzero(np.isfinite(mean))
    kernel, t = np.zeros((len(mean), len(mean))), values.steps[known].astype(np.float64)
    h = width * max(values.total_steps, 1)
    distance = t[None] - t[:, None]  # [to, from]
    if name == "ema":
        w = np.where(distance <= 0, np.exp(np.minimum(distance, 0) / h), 0.0)
    else:
        near = np.clip(1 - np.abs(distance / h) ** 3, 0, None) ** 3  # tricube
        s1, s2 = (near * distance).sum(1, keepdims=True), (near * distance**2).sum(1, keepdims=True)
        w = near * (s2 - s1 * distance)
        w = np.where(np.abs(w.sum(1, keepdims=True)) > 1e-9 * h**2, w, near)  # no neighbours: as it is
    kernel[np.ix_(known, known)] = w / w.sum(1, keepdims=True)
    kernel[baseline] = 0
    kernel[baseline, baseline] = 1
    return kernel


def drift_times(
    values: ProbeValues, group: Group, baseline: int, magnitude: float, smoothing: str, weights: np.ndarray
) -> dict[str, DriftTime]:  # fmt: skip
    """By rule. weights [R, P] float32, of mean 0 and variance 1: one resample of the probes a row, for all samples."""
    at, y, down, up = directed(group, baseline, magnitude)
    moved = weights @ group.parts[at].T.astype(np.float32)
    resampled = (y + math.copysign(1.0, magnitude) * moved).astype(np.float32)
    fraction = values.steps[at] / max(values.total_steps, 1)
    before = np.array([values.steps[baseline], *values.steps[at][:-1]]) / max(values.total_steps, 1)
    out = {}
    for rule in RULES:
        here = arrival(rule, y[None], down, up)[0]
        if here < 0:
            out[rule] = DriftTime(rule, smoothing)
            continue
        there = arrival(rule, resampled, down, up)
        there = np.append(there[there >= 0], here)
        low, high = np.percentile(before[there], 2.5), np.percentile(fraction[there], 97.5)
        out[rule] = DriftTime(
            rule, smoothing, int(values.steps[at[here]]), float(fraction[here]), float(low), float(high)
        )
    return out


def directed(group: Group, baseline: int, magnitude: float) -> tuple[np.ndarray, ...]:
    """Samples after the baseline, their means in M's direction, and how far the intervals go below and above those."""
    at = np.flatnonzero(np.isfinite(group.mean) & (np.arange(len(group.mean)) > baseline))
    sign = math.copysign(1.0, magnitude)
    ends = [sign * (end[at] - group.mean[at]) for end in group.inference[:2]]
    return at, sign * group.mean[at], -np.minimum(*ends), np.maximum(*ends)


def arrival(rule: str, y: np.ndarray, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[R] sample at which each trajectory y [R, S] has arrived; -1 where it never goes the right way."""
    if rule == "settled":
        away = (y < y[:, -1:] - down[-1]) | (y > y[:, -1:] + up[-1])
        return np.where(away.any(1), y.shape[1] - away[:, ::-1].argmax(1), 0)
    extreme = y.argmax(1)
    height = y[np.arange(len(y)), extreme][:, None]
    reached = y >= (height - down[extreme][:, None] if rule == "ci95" else 0.95 * height)
    return np.where(height[:, 0] > 0, reached.argmax(1), -1)


def last_sample(mean: np.ndarray, baseline: int) -> int | None:
    """The last sample after the baseline, if any."""
    after = np.flatnonzero(np.isfinite(mean[baseline + 1 :]))
    return baseline + 1 + int(after[-1]) if len(after) else None


def baseline_index(values: ProbeValues, baseline: int | None) -> int:
    """Which sample the baseline step is. Default: the first. Raises InputError if it was not sampled."""
    if baseline is None:
        return 0
    at = np.flatnonzero(values.steps == baseline)
    if not len(at):
        raise InputError(f"baseline: step {baseline} was not sampled; {listed(values.steps)} were")
    return int(at[0])


def listed(steps: np.ndarray) -> str:
    """For a message."""
    shown = [str(s) for s in steps.tolist()]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:8], "...", shown[-1]])
