"""Drift times: from loops, and against known truth in simulations.

Tolerances of simulations are the Monte-Carlo error of the stated number of draws.
"""

import math

import numpy as np
import pytest
from helpers.values import probe_values, saturating
from scipy import stats

from vdengine.drift.analysis import analyse
from vdengine.drift.trajectory import arrival, crossing, extreme_height

# -------------------------------------------------------------------------------- against an independent implementation


def slow_time(rule, y, down, up):
    """Drift time of one trajectory, the samples after the baseline, in the direction of M: an index."""
    best = max(range(len(y)), key=lambda i: y[i])
    for i in range(len(y)):
        if rule == "ci95" and y[i] >= y[best] - down[best]:
            return i
        if rule == "settled" and all(y[-1] - down[-1] <= z <= y[-1] + up[-1] for z in y[i:]):
            return i


@pytest.mark.parametrize("sign", [1, -1])
def test_drift_times_against_plain_loops(sign):
    """Guards `ci95` and `settled` and their bootstrap over whole trajectories: the same from loops over the same
    weights."""
    rng = np.random.default_rng(1)
    steps = np.array([0, 3, 5, 10, 20, 40, 60])
    path = np.array([0, 0.3, 0.9, 1.3, 1.1, 1.0, 1.0])  # overshoots
    x = sign * path[:, None] * (1 + 0.4 * rng.normal(size=30)) + 0.1 * rng.normal(size=(7, 30))
    r = probe_values(x, steps=steps)
    a = analyse(r, resamples=200, seed=5)
    curve = a.curves["all", "stance"]
    down, up = curve.mean - curve.low, curve.high - curve.mean
    if sign < 0:
        down, up = up, down
    weights = np.random.Generator(np.random.Philox(5)).poisson(1.0, (200, 30)) - 1.0
    shift = x - x[0]
    for rule in ("ci95", "settled"):
        found = a.drift().times[rule]
        at = 1 + slow_time(rule, (sign * curve.mean)[1:], down[1:], up[1:])
        assert (found.step, found.fraction) == (steps[at], pytest.approx(steps[at] / 60))
        times = [at]
        for w in weights:
            y = []
            for s in range(1, 7):
                total = 0.0
                for p in (1, -1):
                    mine = [i for i in range(30) if r.polarity[i] == p]
                    m, n = sum(shift[s, i] for i in mine) / 15, 15
                    total += m / 2
                    total += sum(w[i] * (shift[s, i] - m) for i in mine) * math.sqrt(n / (n - 1)) / n / 2
                y.append(sign * total)
            times.append(1 + slow_time(rule, y, down[1:], up[1:]))
        assert found.low == pytest.approx(np.percentile([steps[k - 1] / 60 for k in times], 2.5), abs=1e-9)
        assert found.high == pytest.approx(np.percentile([steps[k] / 60 for k in times], 97.5), abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_frac95_against_plain_loops(sign):
    """Guards the default rule, with its extreme that is chosen by one half and read on the other, its crossing and the
    paired bounds: the same from loops."""
    rng = np.random.default_rng(3)
    steps = np.array([0, 3, 5, 10, 20, 40, 60])
    path = np.array([0, 0.3, 0.9, 1.3, 1.25, 1.0, 1.0])
    x = sign * path[:, None] * (1 + 0.4 * rng.normal(size=30)) + 0.2 * rng.normal(size=(7, 30))
    r = probe_values(x, steps=steps)
    found = analyse(r, resamples=200, seed=5).drift().time
    weights = np.random.Generator(np.random.Philox(5)).poisson(1.0, (200, 30)) - 1.0
    shift = sign * (x - x[0])[1:]
    m = [sum(y) / 30 for y in shift]
    part = [
        [(y[i] - sum(y[k] for k in range(30) if k % 2 == i % 2) / 15) * math.sqrt(15 / 14) / 30 for i in range(30)]
        for y in shift
    ]
    heights = []
    for w in weights:
        d = [sum(a * b for a, b in zip(w, p, strict=True)) for p in part]
        for side in (1, -1):
            chosen = max(range(6), key=lambda k, d=d, side=side: m[k] + side * d[k])
            heights.append(m[chosen] - side * d[chosen])
    line = 0.95 * sum(heights) / len(heights)
    largest = max(range(6), key=lambda k: m[k])
    at = min(range(largest + 1), key=lambda k: sum(m[i] - line for i in range(k)))
    assert (found.step, found.fraction) == (steps[1 + at], pytest.approx(steps[1 + at] / 60))

    def gap(k, top, share):
        return m[k] - share * m[top], math.sqrt(
            sum((a - share * b) ** 2 for a, b in zip(part[k], part[top], strict=True))
        )

    first, last = at, at
    for top in range(6):
        difference, error = gap(top, largest, 1)
        if difference >= -error:
            tests = [gap(k, top, 0.95) for k in range(6)]
            t = stats.t(28).ppf(0.975)
            below = [k for k in range(min(at, top)) if tests[k][0] < -t * tests[k][1]]
            above = [k for k in range(min(at, top), 6) if tests[k][0] > t * tests[k][1]]
            first, last = min(first, max(below) + 1 if below else 0), max(last, min(above) if above else 5)
    assert found.low == pytest.approx(steps[first] / 60) and found.high == pytest.approx(steps[1 + last] / 60)


def test_the_crossing_of_a_rising_curve_is_the_first_sample_at_the_line():
    """Guards the rule's plain meaning: without noise it is the first sample at 95% of the extreme; a curve that rises
    past it and comes back has crossed before its extreme; one that never rises has no time."""
    means = np.array([0.2, 0.7, 0.94, 0.95, 1.0, 0.6])
    assert crossing(means, 0.95) == 3 and crossing(means, 0.1) == 0 and crossing(-means, 0.95) == -1
    nothing = np.zeros((4, 6))
    assert extreme_height(means, nothing) == 1.0
    noisy = np.array([0.2, 0.97, 0.5, 0.6, 0.96, 0.94, 1.0])  # one sample above the line is no crossing
    assert crossing(noisy, 0.95) == 4


# ---------------------------------------------------------------------------------------------------------- drift times


@pytest.mark.slow
def test_drift_times_are_those_of_the_curve():
    """Guards drift times against the panel's size: on saturating trajectories of 41 samples (0.025 of the stage apart)
    the mean of `frac95` is the curve's own time, half a sample later as samples come after it, to 0.03 with 24, 48 and
    550 probes (60 runs, Monte-Carlo error 0.012; simulated 0.015 at most) and its interval covers that time in 88% or
    more (Monte-Carlo error 3 points; simulated 96-100%). `ci95` of the same curve differs by more than 0.2."""
    means = {}
    for num in (24, 48, 550):
        truth, trajectories = saturating(np.random.default_rng([10, num]), num, 60)
        drifts = [analyse(probe_values(x), resamples=200, seed=run).drift() for run, x in enumerate(trajectories)]
        found = [drift.times for drift in drifts if drift.significant]
        assert len(found) >= 58
        means[num] = {rule: np.mean([times[rule].fraction for times in found]) for rule in ("frac95", "ci95")}
        assert abs(means[num]["frac95"] - 0.0125 - truth) <= 0.03, means
        assert np.mean([t["frac95"].low <= truth <= t["frac95"].high for t in found]) >= 0.88
    assert means[550]["ci95"] - means[24]["ci95"] > 0.2


def test_settled_is_on_the_side_it_moved_to():
    """Guards "settled" against samples across 0, which a wide interval of the last holds too, and against a trajectory
    that ends on the other side: it has not settled there."""
    means = np.array([[-0.5, 0.2, 0.6], [0.2, -0.1, 0.6], [0.4, 0.5, 0.6], [0.6, 0.2, -0.1]])
    wide = np.full(3, 2.0)
    assert arrival("settled", means, wide, wide).tolist() == [1, 2, 0, -1]
