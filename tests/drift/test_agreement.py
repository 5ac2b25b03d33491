"""Two readouts of the same drift: correlation, reliability, and what cannot be compared."""

import math

import numpy as np
import pytest
from helpers.values import noisy_pair, probe_values

from vdengine.drift.agreement import agreement
from vdengine.drift.analysis import analyse
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
