"""Drift times and smoothing: from loops, and against known truth in simulations.

Tolerances of simulations are the Monte-Carlo error of the stated number of draws.
"""

import math

import numpy as np
import pytest
from helpers.values import probe_values, saturating, strata

from vdengine.drift.analysis import analyse
from vdengine.drift.trajectory import arrival
from vdengine.errors import InputError

# -------------------------------------------------------------------------------- against an independent implementation


def slow_time(rule, y, down, up):
    """Drift time of one trajectory, the samples after the baseline, in the direction of M: an index."""
    best = max(range(len(y)), key=lambda i: y[i])
    for i in range(len(y)):
        if rule == "ci95" and y[i] >= y[best] - down[best]:
            return i
        if rule == "frac95" and y[i] >= 0.95 * y[best]:
            return i
        if rule == "settled" and all(y[-1] - down[-1] <= z <= y[-1] + up[-1] for z in y[i:]):
            return i


@pytest.mark.parametrize("sign", [1, -1])
def test_drift_times_against_plain_loops(sign):
    """Guards the three rules and their bootstrap over whole trajectories: the same from loops over the same weights."""
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
    for rule in ("ci95", "frac95", "settled"):
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


# ------------------------------------------------------------------------------------------------ smoothing, drift time


@pytest.mark.parametrize("name", ["ema", "local-linear"])
def test_smoothing(name):
    """Guards the kernels: constants stay, local-linear keeps lines to the very ends, noise shrinks, the baseline and
    samples without a reading stay as they are, and the name says the width."""
    rng = np.random.default_rng(8)
    steps = np.sort(rng.choice(1000, 80, replace=False))
    line = steps[:, None] * np.ones(30) + 0.0
    line[40] = np.nan
    a = analyse(probe_values(line, steps=steps), smoothing=f"{name}:0.05")
    c = a.curves["all", "stance"]
    assert a.smoothing == f"{name}:0.05" == a.drift().times["ci95"].smoothing
    assert np.isnan(c.mean[40]) and c.mean[0] == 0
    if name == "local-linear":
        assert np.nanmax(np.abs(c.mean - (steps - steps[0]))) < 1e-9 * 1000
    noisy = np.where(np.arange(80)[:, None] > 0, 1.0, 0.0) + 0.3 * rng.normal(size=(80, 1)) * np.ones(30)
    noisy[0] = 0
    raw, smooth = (
        analyse(probe_values(noisy, steps=steps), smoothing=s).curves["all", "stance"] for s in ("none", f"{name}:0.2")
    )
    assert smooth.mean[20:].std() < 0.5 * raw.mean[20:].std()
    assert analyse(probe_values(noisy, steps=steps), smoothing=name).smoothing == f"{name}:0.1"


def test_smoothed_intervals_cover():
    """Guards intervals of smoothed rotating parts: neighbours have other probes, so they are narrower than a part's,
    and still cover a line (94.1% in 300 runs of 36 samples that share their errors; here 100: 92-98% allowed)."""
    rng = np.random.default_rng(9)
    topics, polarity = strata([60, 60])
    inside, width = [], []
    for _ in range(100):
        x = np.linspace(0, 1, 41)[:, None] * (1 + rng.normal(size=120)) + 0.5 * rng.normal(size=(41, 120))
        x[0] = 0
        order = rng.permutation(60)
        for s in range(1, 41):
            away = np.concatenate([order % 4 != s % 4] * 2)
            x[s, away] = np.nan
        r = probe_values(x, topics, polarity)
        raw, c = (analyse(r, smoothing=m, resamples=5).curves["all", "stance"] for m in ("none", "local-linear:0.3"))
        inside.append((c.low <= np.linspace(0, 1, 41)) & (np.linspace(0, 1, 41) <= c.high))
        width.append((c.high - c.low)[5:-5].mean() / (raw.high - raw.low)[5:-5].mean())
    assert np.mean(width) < 0.8
    assert 0.92 <= np.mean(np.array(inside)[:, 5:]) <= 0.98


@pytest.mark.parametrize("text", ["mean", "ema:0", "ema:2", "ema:x", "none:0.1", ""])
def test_unknown_smoothing(text):
    """Guards the option: one line with what is allowed."""
    with pytest.raises(InputError, match="is not one of none, ema, local-linear"):
        analyse(probe_values(np.zeros((2, 4))), smoothing=text)


@pytest.mark.slow
@pytest.mark.parametrize("num", [24, 48, 550])
def test_drift_time_error(num):
    """Guards drift times: on saturating trajectories of 41 samples (0.025 of the stage apart) the mean of `ci95` is the
    population's to one sample, its mean absolute error at most 0.06, and its interval covers in 85% of 60 runs or more
    (Monte-Carlo error 3 points; simulated at 180: 0.013 at most, 0.043 at most, 90% at least)."""
    truth, trajectories = saturating(np.random.default_rng([10, num]), num, 60)
    found = []
    for run, x in enumerate(trajectories):
        d = analyse(probe_values(x), resamples=300, seed=run).drift()
        if d.significant:
            found.append(d.times["ci95"])
    assert len(found) >= 58
    late = np.array([f.fraction for f in found]) - truth
    assert abs(late.mean()) <= 0.025 and np.abs(late).mean() <= 0.06
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.85


def test_settled_is_on_the_side_it_moved_to():
    """Guards "settled" against samples across 0, which a wide interval of the last holds too, and against a trajectory
    that ends on the other side: it has not settled there."""
    means = np.array([[-0.5, 0.2, 0.6], [0.2, -0.1, 0.6], [0.4, 0.5, 0.6], [0.6, 0.2, -0.1]])
    wide = np.full(3, 2.0)
    assert arrival("settled", means, wide, wide).tolist() == [1, 2, 0, -1]
