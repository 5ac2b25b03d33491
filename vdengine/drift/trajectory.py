"""When a topic had drifted: the sample at which its mean shift arrives, by three rules, with bootstrap intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.drift.intervals import Group
from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError

RULES = ("ci95", "frac95", "settled")


@dataclass(frozen=True)
class DriftTime:
    """When a topic had drifted, as a step and as a fraction of the stage; all None where M is not significant.

    M is the topic's magnitude, its last shift. Shifts are taken with M's sign; the extreme is the sample with the
    largest shift in that direction.

    `ci95`    the first sample within the 95% interval of the extreme (arXiv 2510.26707, as its summaries have it)
    `frac95`  the first sample at 95% of the extreme
    `settled` the first sample from which all stay within the 95% interval of the last, and on M's side of 0

    `low` and `high` bound the middle 95% of the fraction over bootstrap resamples of the probes: each resample gives a
    whole trajectory, extreme included. `low` is taken at the sample before the arrival, since the topic may have
    arrived at any time between the two.
    """

    rule: str
    smoothing: str
    step: int | None = None
    fraction: float | None = None
    low: float | None = None
    high: float | None = None


def drift_times(
    values: ProbeValues, group: Group, baseline: int, magnitude: float, smoothing: str, weights: np.ndarray
) -> dict[str, DriftTime]:
    """Drift times of a group of P probes, by rule.

    Args:
        values: for the steps of the S samples and the length of the stage.
        group: mean shifts since the baseline, smoothed or not.
        baseline: index of the baseline sample.
        magnitude: M, in the readout's unit; only its sign matters.
        smoothing: how `group` was smoothed, for the result.
        weights: [R, P] float32 bootstrap weights of the probes less 1: of mean 0 and variance 1. A row is one resample
            and applies to all samples alike.
    """
    samples, means, below, above = directed(group, baseline, magnitude)  # [N] each: samples after the baseline
    # A resample moves each mean by the weighted sum of the probes' parts in its error: bootstrap trajectories [R, N].
    moved = weights @ group.parts[samples].T.astype(np.float32)
    resampled_means = (means + math.copysign(1.0, magnitude) * moved).astype(np.float32)
    # Fraction of the stage at each sample and at the sample before it, [N] each.
    fraction = values.steps[samples] / max(values.total_steps, 1)
    previous = np.array([values.steps[baseline], *values.steps[samples][:-1]]) / max(values.total_steps, 1)
    times = {}
    for rule in RULES:
        observed = arrival(rule, means[None], below, above)[0]
        if observed < 0:
            times[rule] = DriftTime(rule, smoothing)
            continue
        # Resamples that never move in M's direction have no time; the observed one is counted with the others.
        arrivals = arrival(rule, resampled_means, below, above)
        arrivals = np.append(arrivals[arrivals >= 0], observed)
        low, high = np.percentile(previous[arrivals], 2.5), np.percentile(fraction[arrivals], 97.5)
        times[rule] = DriftTime(
            rule, smoothing, int(values.steps[samples[observed]]), float(fraction[observed]), float(low), float(high)
        )
    return times


def directed(group: Group, baseline: int, magnitude: float) -> tuple[np.ndarray, ...]:
    """Mean shifts after the baseline, turned so that M is positive.

    Args:
        group: mean shifts since the baseline at S samples.
        baseline: index of the baseline sample.
        magnitude: M; only its sign matters.

    Returns:
        Four arrays [N], N the samples after the baseline that have a mean: their indexes (int64); the means times M's
        sign; and how far the 95% interval reaches below and above each of those, both positive. Float64, in the
        readout's unit.
    """
    samples = np.flatnonzero(np.isfinite(group.mean) & (np.arange(len(group.mean)) > baseline))
    sign = math.copysign(1.0, magnitude)
    ends = [sign * (end[samples] - group.mean[samples]) for end in group.inference[:2]]
    return samples, sign * group.mean[samples], -np.minimum(*ends), np.maximum(*ends)


def arrival(rule: str, means: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """When trajectories arrive, by one of `RULES`.

    Args:
        means: [R, N] float, one trajectory a row: mean shifts in M's direction at the N samples after the baseline.
        below, above: [N] float, how far the 95% interval reaches below and above the observed means.

    Returns:
        [R] int64 sample of arrival, 0 to N - 1; -1 where nothing has moved in M's direction: of "settled" at the last
        sample, of the others at any.
    """
    if rule == "settled":
        # Outside the last sample's interval or across 0, [R, N]; the topic settles one sample after the last of these.
        outside = (means < means[:, -1:] - below[-1]) | (means > means[:, -1:] + above[-1]) | (means <= 0)
        settled = np.where(outside.any(1), means.shape[1] - outside[:, ::-1].argmax(1), 0)
        return np.where(means[:, -1] > 0, settled, -1)
    extreme = means.argmax(1)  # [R]
    height = means[np.arange(len(means)), extreme][:, None]  # [R, 1]
    reached = means >= (height - below[extreme][:, None] if rule == "ci95" else 0.95 * height)
    return np.where(height[:, 0] > 0, reached.argmax(1), -1)


def last_sample(mean: np.ndarray, baseline: int) -> int | None:
    """Index of the last sample after the baseline at which `mean` [S] is finite; None if there is none."""
    after = np.flatnonzero(np.isfinite(mean[baseline + 1 :]))
    return baseline + 1 + int(after[-1]) if len(after) else None


def baseline_index(values: ProbeValues, baseline: int | None) -> int:
    """Index of the sample at step `baseline`. Default: the first sample.

    Raises:
        InputError: that step was not sampled.
    """
    if baseline is None:
        return 0
    samples = np.flatnonzero(values.steps == baseline)
    if not len(samples):
        raise InputError(f"baseline: step {baseline} was not sampled; {listed(values.steps)} were")
    return int(samples[0])


def listed(steps: np.ndarray) -> str:
    """Steps [S] int64 for an error message; the middle of a long list is left out."""
    shown = [str(s) for s in steps.tolist()]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:8], "...", shown[-1]])
