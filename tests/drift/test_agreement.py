"""Two readouts of the same drift: correlation, reliability, and what cannot be compared."""

import math

import numpy as np
import pytest
from helpers.values import answer_log, noisy_pair, probe_values, still_log, still_stances

from vdengine.drift.agreement import agreement
from vdengine.drift.analysis import analyse
from vdengine.drift.answer_values import answer_values
from vdengine.drift.correlation import pearson
from vdengine.errors import InputError


def test_agreement_knows_its_noise():
    """Guards the disattenuated correlation: two noisy readings of one truth correlate below 1, their reliabilities say
    by how much, and without it they correlate at 1 (600 probes: to 0.15); paired differences of fair readings hold 0 in
    95% of cells (7 x 5 x 20 of them, dependent within a run: 92-98%)."""
    rng = np.random.default_rng(17)
    truth, (a, b) = noisy_pair(rng)
    found = agreement(a, b)
    m = found.matches["all"].magnitude
    last = (truth - truth[0])[-1]
    expected = [last.var() / (last.var() + 2 * s**2) for s in (0.7, 1.5)]  # a shift has the noise of two readings
    assert (m.reliability_a, m.reliability_b) == pytest.approx(expected, abs=0.1)
    assert analyse(a, resamples=5).validity["items"] == pytest.approx(expected[0], abs=0.1)
    assert m.pearson < 0.8 and m.disattenuated == pytest.approx(1, abs=0.15) and m.num == 600
    assert found.matches["topics"].magnitude.num == 6 and found.matches["topics"].curve.num == 30
    assert list(found.matches)[:3] == ["all", "topics", "t00"]
    held = [
        match.difference
        for _ in range(20)
        for t, match in agreement(*noisy_pair(rng, probes=300)[1]).matches.items()
        if t != "topics"
    ]
    assert 0.92 <= np.mean(held) <= 0.98


def test_agreement_of_a_reading_with_itself_and_its_opposite():
    """Guards signs, units and matching: probes by id in any order, steps by value; other units have no error."""
    rng = np.random.default_rng(18)
    x = np.linspace(0, 1, 5)[:, None] * (1 + 0.5 * rng.normal(size=60)) + 0.05 * rng.normal(size=(5, 60))
    a = probe_values(x, steps=[0, 2, 4, 6, 8])
    order = rng.permutation(60)
    b = probe_values(-2 * x[:, order][[0, 2, 4]], polarity=a.polarity[order], steps=[0, 4, 8], readout="answers")
    b.probes[:] = a.probes[order]
    same, other = agreement(a, a).matches["all"], agreement(a, b)
    assert same.magnitude.pearson == pytest.approx(1) and same.sign == 1 and same.error == 0 and same.drift_time == 0
    assert same.coverage == 1 and same.difference == 1
    assert other.steps.tolist() == [0, 4, 8] and other.num_probes == 60
    m = other.matches["all"]
    assert m.magnitude.spearman == pytest.approx(-1) and m.sign == 0 and m.clear_sign == 0 and m.num_clear == 2
    assert math.isnan(m.error) and math.isnan(m.coverage) and math.isnan(m.magnitude.reliability_a)


def test_agreement_errors():
    """Guards what cannot be compared: one line each."""
    a = probe_values(np.zeros((2, 4)))
    b = probe_values(np.zeros((2, 4)), steps=[5, 6])
    with pytest.raises(InputError, match="0 steps in common"):
        agreement(a, b)
    with pytest.raises(InputError, match="channel: 'x' is not one of stance, yes_bias"):
        agreement(a, a, "x")
    with pytest.raises(InputError, match="step 1 is no baseline; 0 are shared before the last"):
        agreement(a, a, baseline=1)
    b.probes[:] = ["q0", "q1", "q2", "q3"]
    with pytest.raises(InputError, match="no probe in common"):
        agreement(a, b)


def test_no_drift_gives_no_agreement(tmp_path):
    """Guards weighted against fresh answers: nothing moves, and both since step 0 they correlate at 0.4, as they
    subtract the same answers; compared since the weighted ones' own anchor r is 0, signs agree in half of the cells,
    and there is nothing to disattenuate to more (50 draws of stances; Monte-Carlo errors 0.017 and 4 points, four
    allowed)."""
    rng = np.random.default_rng(5)
    log = still_log(tmp_path, rng)
    readings = log.readings()
    log.readings = lambda: readings
    shared, own, signs, panel = [], [], [], []
    for _ in range(50):
        stances = still_stances(rng, log)
        w, f = (answer_values(log, stances, kind=kind, closed=True) for kind in ("weighted", "anchor"))
        x, y = (values.channels["graded"] - values.channels["graded"][0] for values in (w, f))
        shared.append(pearson(x[2:].ravel(), y[2:].ravel()))
        found = agreement(w, f)
        assert found.steps.tolist() == [0, 2, 4, 32] and found.since.tolist() == [0, 0, 2, 4]
        every = found.matches["all"]
        own.append(every.shift.pearson)
        signs.append(every.sign)
        panel.append((found.matches["topics"].magnitude.num, every.drift_time, every.level.num))
    assert np.mean(shared) > 0.3
    assert abs(np.mean(own)) < 4 * 0.12 / math.sqrt(50) and np.mean(signs) == pytest.approx(0.5, abs=0.16)
    assert set(panel) == {(2, None, 3 * 24)}


def test_what_is_compared_since_what(tmp_path):
    """Guards the arithmetic of such shifts: a weighted one is that of its answers since their anchor, a fresh one that
    of other answers since the same anchor, and answers of one step are not compared with themselves."""
    rng = np.random.default_rng(6)
    log = still_log(tmp_path / "a", rng, probes=6, samples=4, steps=(0, 3, 7))
    stances = still_stances(rng, log)
    w, f = (answer_values(log, stances, kind=kind, closed=True) for kind in ("weighted", "anchor"))
    found, graded = agreement(w, f), f.channels["graded"]
    expected = (w.channels["graded"][1:] - graded[:-1]).ravel(), (graded[1:] - graded[:-1]).ravel()
    assert found.matches["all"].shift.pearson == pytest.approx(pearson(*expected))
    assert agreement(f, w).matches["all"].shift.pearson == pytest.approx(pearson(*expected))
    with pytest.raises(InputError, match="compared since their own anchors; leave the baseline out"):
        agreement(w, f, baseline=0)
    cut = answer_values(answer_log(tmp_path / "b", {0: np.full((6, 4), "a")}, 4, [], log.panel), stances[:24])
    with pytest.raises(InputError, match="1 steps in common"):
        agreement(w, cut)
    again = answer_values(log, stances[::-1], kind="anchor")
    both = agreement(f, again)  # two judges: one noise, so no ceiling
    assert both.since.tolist() == [0, 0, 0] and math.isnan(both.matches["all"].shift.ceiling)
    assert math.isfinite(both.matches["all"].shift.pearson)


def test_intervals_of_agreement():
    """Guards the clusters: r over probes has an interval, one curve's has none, over topics it takes three of them."""
    _, (a, b) = noisy_pair(np.random.default_rng(7), probes=120)
    found = agreement(a, b).matches
    for r in (found["all"].shift, found["all"].magnitude, found["topics"].magnitude, found["topics"].curve):
        low, high = r.interval
        assert low < r.pearson < high and -1 <= low and high <= 1
        low, high = r.disattenuated_interval
        assert low < r.disattenuated < high and r.pearson <= r.disattenuated
    assert math.isnan(found["all"].curve.interval[0]) and found["all"].curve.num == 5
    wide, narrow = found["topics"].curve.interval, found["all"].shift.interval
    assert wide[1] - wide[0] > narrow[1] - narrow[0]
