"""When a topic had drifted: the sample at which its mean shift arrives, by three rules, with 95% intervals.

The largest of noisy samples lies above the largest of the curve, the more so the fewer probes there are, and the first
one above a line lies before the crossing. `frac95` counts with both, so that its time is that of the curve, whatever
the panel: the extreme's sample is found on one half of the probes and its height read on the other, and the crossing is
that of the isotonic regression. Simulated with 24, 48 and 550 probes on four curves, its mean is within 0.02 of the
stage of the curve's own time where the noise of a sample is below 3% of the extreme, and within 0.06 at 9%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.drift.intervals import ALPHA, Group
from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError

RULES = ("frac95", "ci95", "settled")
DEFAULT_RULE = "frac95"
REACHED = 0.95  # the part of the extreme that `frac95` asks for


@dataclass(frozen=True)
class DriftTime:
    """When a topic had drifted, as a step and as a fraction of the stage; all None where M is not significant.

    M is the topic's magnitude, its last shift. Shifts are taken with M's sign; the extreme is the largest shift in that
    direction.

    `frac95`  the sample at which 95% of the extreme is reached
    `ci95`    the first sample within the 95% interval of the extreme (arXiv 2510.26707, as its summaries have it). The
              interval narrows with the number of probes, and the time moves with it: one curve has drifted at 0.18,
              0.25, 0.50 of the stage with 24, 48, 550 probes. To be compared between curves of as many probes alone
    `settled` the first sample from which all stay within the 95% interval of the last, and on M's side of 0; it depends
              on the number of probes as `ci95` does

    `low` and `high` bound the fraction; `low` is taken at the sample before the earliest arrival, since the topic may
    have arrived at any time between the two. Of `frac95` they are where 95% of the extreme less the mean, paired by
    probe, is not told from 0, with any sample as the extreme that is within a standard error of the largest: simulated,
    they cover the curve's own time in 91-100%. Of the others they hold the middle 95% over bootstrap resamples of the
    probes, of whole trajectories, extreme included.
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
    if not len(samples):
        return {rule: DriftTime(rule, smoothing) for rule in RULES}
    parts = math.copysign(1.0, magnitude) * group.parts[samples]  # [N, P]
    # A resample moves each mean by the weighted sum of the probes' parts in its error, [R, N].
    moved = weights @ parts.T.astype(np.float32)
    # Fraction of the stage at each sample and at the sample before it, [N] each.
    fraction = values.steps[samples] / max(values.total_steps, 1)
    previous = np.array([values.steps[baseline], *values.steps[samples][:-1]]) / max(values.total_steps, 1)
    times = {}
    for rule in RULES:
        if rule == "frac95":
            observed = crossing(means, REACHED * extreme_height(means, moved))
            freedom = np.maximum(group.num_probes[samples] - int(group.strata.max(initial=0)) - 1, 1)
            first, last = crossing_bounds(means, parts, freedom, observed)
        else:
            observed = int(arrival(rule, means[None], below, above)[0])
            # Resamples that never move in M's direction have no time; the observed one is counted with the others.
            arrivals = arrival(rule, (means + moved).astype(np.float32), below, above)
            arrivals = np.append(arrivals[arrivals >= 0], observed)
            first, last = arrivals, arrivals
        if observed < 0:
            times[rule] = DriftTime(rule, smoothing)
            continue
        low, high = float(np.percentile(previous[first], 2.5)), float(np.percentile(fraction[last], 97.5))
        step = int(values.steps[samples[observed]])
        times[rule] = DriftTime(rule, smoothing, step, float(fraction[observed]), low, high)
    return times


def extreme_height(means: np.ndarray, moved: np.ndarray) -> float:
    """The height of the largest mean without the gain of having been chosen for it.

    With d the move of a resample, means + d and means - d err independently, as halves of the probes do: the sample is
    chosen by the one and read on the other.

    Args:
        means: [N] float64, in M's direction.
        moved: [R, N] float, how far resamples of the probes move the means.
    """
    rows = np.arange(len(moved))
    chosen = [(means - sign * moved)[rows, (means + sign * moved).argmax(1)] for sign in (1, -1)]
    return float(np.mean(chosen))


def crossing(means: np.ndarray, line: float) -> int:
    """The sample at which means [N] cross a line upwards, at the largest of them at the latest; -1 if that is not
    above 0.

    It is where their isotonic regression does: where the sum of (mean - line) over the samples before is least. Of
    means that rise throughout it is the first at or above the line.
    """
    largest = int(means.argmax())
    before = np.concatenate([[0.0], np.cumsum(means[:largest] - line)])
    return int(before.argmin()) if means[largest] > 0 else -1


def crossing_bounds(
    means: np.ndarray, parts: np.ndarray, freedom: np.ndarray, observed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last sample at which 95% of the extreme may have been reached, [1] int64 each.

    Args:
        means: [N] float64, in M's direction.
        parts: [N, P] float64, the probes' parts in their errors.
        freedom: [N] degrees of freedom of each mean.
        observed: the sample at which it is taken to be.
    """
    from scipy.special import stdtrit

    # Covariance of the means, [N, N], and their variances.
    covariance = parts @ parts.T
    variance = np.diag(covariance)
    largest = int(means.argmax())
    apart = np.sqrt(np.maximum(variance + variance[largest] - 2 * covariance[largest], 0.0))
    extremes = np.flatnonzero(means >= means[largest] - apart)  # [E]: within a standard error of the largest
    gap = means[:, None] - REACHED * means[extremes]  # [N, E]
    error = np.sqrt(
        np.maximum(variance[:, None] - 2 * REACHED * covariance[:, extremes] + REACHED**2 * variance[extremes], 0.0)
    )
    bound = stdtrit(freedom, 1 - ALPHA / 2)[:, None] * error
    sample, split = np.arange(len(means))[:, None], np.minimum(observed, extremes)
    above, below = (gap > bound) & (sample >= split), (gap < -bound) & (sample < split)
    last = np.where(above.any(0), above.argmax(0), len(means) - 1).max(initial=observed)
    first = np.where(below.any(0), len(means) - below[::-1].argmax(0), 0).min(initial=observed)
    return np.array([first]), np.array([last])


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
    """When trajectories arrive, by "ci95" or "settled".

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
    reached = means >= height - below[extreme][:, None]
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
