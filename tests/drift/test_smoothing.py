"""Smoothing: its weights against least squares, and what it does to curves whose truth is known."""

import numpy as np
import pytest
from helpers.courses import answered, true_shift
from helpers.values import probe_values, strata

from vdengine.drift.analysis import analyse
from vdengine.drift.intervals import group_of
from vdengine.drift.schedule import dense_early
from vdengine.drift.smoothing import HALF_WINDOWS, Smoothing, half_window, local_fit
from vdengine.errors import InputError


@pytest.mark.parametrize("half", [1, 2, 3.5, 5])
@pytest.mark.parametrize("degree", [1, 2])
def test_weights_against_least_squares(half, degree):
    """Guards the closed form: the weights are those of a weighted least-squares fit at each step, and of one sample
    alone, or of the line between two, where the window has no more."""
    at = np.array(dense_early(240, 24), float)
    to = np.interp(np.arange(0, 23.01, 0.25), np.arange(24), at)  # at samples and between them
    weights = local_fit(at, to, half, degree)
    for row, step in zip(weights, to, strict=True):
        place = np.interp(step, at, np.arange(24))
        tricube = np.clip(1 - (np.abs(np.arange(24) - place) / half) ** 3, 0, None) ** 3
        near = np.flatnonzero(tricube > 1e-9)
        root = np.sqrt(tricube[near])
        design = ((at[near] - step) / 100)[:, None] ** np.arange(min(degree, len(near) - 1) + 1)
        fitted = np.linalg.pinv(root[:, None] * design)[0] * root
        np.testing.assert_allclose(row[near], fitted, atol=1e-9)  # of weights around 1
        assert row.sum() == pytest.approx(1) and not row[np.setdiff1d(np.arange(24), near)].any()
    if half == 1:
        assert np.allclose(local_fit(at, at, 1, degree), np.eye(24))


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
    shown = analyse(probe_values(noisy, steps=steps), smoothing=name).smoothing
    assert shown == {"ema": "ema:0.1", "local-linear": "local-linear"}[name]


def test_the_window_follows_the_curve():
    """Guards the choice: wide where nothing happens, narrow where a curve turns faster than its noise is; and none
    where there are too few samples to know the noise."""
    rng = np.random.default_rng(5)
    steps = np.array(dense_early(240, 17))  # the fewest with half windows up to 5
    chosen = {}
    for course in ("flat", "early"):
        for _ in range(20):
            x = answered(rng, course, steps, 240, 550, 2, 8)
            group = group_of(probe_values(x - x[0], steps=steps, readout="answers"), x - x[0], "all")
            chosen.setdefault(course, []).append(half_window(group.mean, group.parts, steps.astype(float)))
    # In 200 draws 4.7 and 2.3 on average; the means of 20 have standard errors of 0.17 and 0.11.
    assert np.mean(chosen["flat"]) > 3.8 and np.mean(chosen["early"]) < 2.7
    assert set(chosen["flat"]) <= set(HALF_WINDOWS)
    assert half_window(group.mean[:3], group.parts[:3], steps[:3].astype(float)) == 1


@pytest.mark.parametrize("anchors", [3, 4, 6, 9])
def test_few_anchors_are_not_smoothed(anchors):
    """Guards a fast rise against a window that is as wide as the run: below ten anchors each says what its own answers
    say, however flat the curve looks. With half windows up to 5 the interval of a first anchor covered an early course
    in 67-85% with four to ten."""
    rng = np.random.default_rng(6)
    steps = np.array(dense_early(240, anchors))
    for _ in range(10):
        x = answered(rng, "flat", steps, 240, 48, 2, 8)
        values = probe_values(x, steps=steps, readout="answers")
        for found, own in zip(curve(values, "local-linear", "graded"), curve(values, "none", "graded"), strict=True):
            np.testing.assert_allclose(found, own, atol=1e-9)


def test_a_step_that_is_there_twice():
    """Guards against a crash in the linear algebra: one line with the step."""
    values = probe_values(np.zeros((12, 8)), steps=[0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10, 11], readout="answers")
    with pytest.raises(InputError, match="step 3 after step 3; steps ascend, each is there once"):
        analyse(values, smoothing="local-linear")


def curve(values, smoothing, channel):
    """Mean, low and high [S] of the whole panel's shift since the first sample."""
    shift = values.channels[channel] - values.channels[channel][0]
    group = Smoothing.parse(smoothing).smooth(values, group_of(values, shift, "all"), 0)
    return group.mean, *group.inference[:2]


@pytest.mark.parametrize("course", ["flat", "linear", "early", "late"])
def test_intervals_of_smoothed_answers_cover(course):
    """Guards the interval's three parts (answers, probes, smoothing): two answers to each of 24 probes at 12 and 24
    anchors, 8 at the start. In 400 runs they cover 94.5-96.0% of a curve, all samples together. The samples of a run
    share their probes and the start, so the standard error is that between runs' shares: 0.8% over the 200 here, and
    three of them are allowed beside 93-97%. Guards the gain too: the mean square error is 0.55-0.61 of the anchors'."""
    rng = np.random.default_rng(11)
    inside, errors = [], []
    for i in range(200):
        steps = np.array(dense_early(240, (12, 24)[i % 2]))
        values = probe_values(answered(rng, course, steps, 240, 24, 2, 8), steps=steps, readout="answers")
        truth = true_shift(course, steps, 240)
        mean, low, high = curve(values, "local-linear", "graded")
        inside.append(((low <= truth) & (truth <= high))[1:].mean())
        errors.append([np.square(x - truth).mean() for x in (mean, curve(values, "none", "graded")[0])])
    slack = 3 * 0.008
    assert 0.93 - slack <= np.mean(inside) <= 0.97 + slack
    smoothed, raw = np.mean(errors, 0)
    assert smoothed < 0.7 * raw


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
        values = probe_values(x, topics, polarity)
        (_, *raw), (_, low, high) = (curve(values, m, "stance") for m in ("none", "local-linear:0.3"))
        inside.append((low <= np.linspace(0, 1, 41)) & (np.linspace(0, 1, 41) <= high))
        width.append((high - low)[5:-5].mean() / (raw[1] - raw[0])[5:-5].mean())
    assert np.mean(width) < 0.8
    assert 0.92 <= np.mean(np.array(inside)[:, 5:]) <= 0.98


@pytest.mark.parametrize("text", ["mean", "ema:0", "ema:2", "ema:x", "none:0.1", ""])
def test_unknown_smoothing(text):
    """Guards the option: one line with what is allowed."""
    with pytest.raises(InputError, match="is not one of none, ema, local-linear"):
        analyse(probe_values(np.zeros((2, 4))), smoothing=text)
