"""What is made of a readout: a baseline of one's choice, and a run of real size."""

import json

import numpy as np
import pytest
from helpers.values import probe_values, strata

from vdengine.drift.analysis import analyse
from vdengine.errors import InputError


def test_baseline_must_be_a_sample():
    """Guards the option; and a later baseline: shifts are since it, and times after it."""
    x = np.array([0.0, 5.0, 6.0, 7.0, 8.0])[:, None] + 0.2 * np.random.default_rng(0).normal(size=(5, 24))
    r = probe_values(x, steps=[0, 10, 20, 30, 40])
    with pytest.raises(InputError, match="step 7 was not sampled; 0, 10, 20, 30, 40 were"):
        analyse(r, baseline=7)
    a = analyse(r, baseline=10)
    assert a.baseline == 10 and a.drift().magnitude.mean == pytest.approx(3, abs=0.2)
    assert a.drift().times["ci95"].step == 40


def test_baseline_must_have_a_value():
    """Guards against a page of NaN: between anchors, where the gate is closed, there is nothing to compare with."""
    x = np.array([0.0, np.nan, 2.0])[:, None] + np.zeros((3, 24))
    values = probe_values(x, steps=[0, 10, 20])
    with pytest.raises(InputError, match="baseline: step 10 has no value in openings$"):
        analyse(values, baseline=10)
    assert analyse(values, baseline=0).baseline == 0


@pytest.mark.slow
def test_a_long_run():
    """Guards the size of a real run: 1,000 samples of 550 probes, one part in ten of them at a time, all finite
    (seconds; plain loops would take minutes), the same bits twice, and fit for a file."""
    rng = np.random.default_rng(25)
    topics, polarity = strata([25] * 22)
    x = np.linspace(0, 1, 1000)[:, None] + rng.normal(size=(1000, 550))
    part = np.arange(550) % 10
    x[1:-1][part != np.arange(1, 999)[:, None] % 10] = np.nan
    a, b = (analyse(probe_values(x, topics, polarity), smoothing="local-linear") for _ in range(2))
    for topic in ["all", *a.topics]:
        c, d = a.curves[topic, "stance"], b.curves[topic, "stance"]
        assert np.isfinite(c.mean).all() and (c.low <= c.high).all() and np.array_equal(c.low, d.low)
        assert a.drift(topic) == b.drift(topic) and a.drift(topic).significant
    json.dumps([vars(t) for d in a.drifts.values() for t in d.times.values()])
