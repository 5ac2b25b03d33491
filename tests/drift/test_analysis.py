"""What is made of a readout: a baseline of one's choice, and a run of real size."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.values import SIDE, answer_log, fill, probe_values, requests_of, strata

from vdengine.drift.analysis import analyse
from vdengine.drift.answer_values import answer_values
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import text_values
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


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
    with pytest.raises(InputError, match="baseline: step 10 has no value in text_likelihood$"):
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


NAN = float("nan")


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ([0.0, 1.0, NAN], "no number at step 20"),  # weights that broke late: the sample before is not the last
        ([NAN, 1.0, 2.0], "no number at the baseline, step 0"),
        ([0.0, NAN, NAN], "no number after the baseline, step 0"),
    ],
)
def test_what_is_not_a_number_is_not_known(samples, why):
    """Guards NaN scores against being read as "no clear shift", or as the shift of an earlier sample; a topic beside
    it that has numbers keeps its verdict."""
    x = np.array(samples)[:, None] + 0.1 * np.random.default_rng(0).normal(size=(3, 60))
    x[:, 30:] = np.array([0.0, 1.0, 2.0])[:, None] + 0.1 * np.random.default_rng(1).normal(size=(3, 30))
    a = analyse(probe_values(x, ["lost"] * 30 + ["whole"] * 30, steps=[0, 10, 20]))
    lost = a.drift("lost")
    assert (lost.unknown, lost.direction, lost.significant) == (why, None, False)
    assert a.validity["reliability"]["lost"].unreliable and why in a.validity["reliability"]["lost"].reason
    assert a.drift("whole").direction == 1 and a.drift("whole").step == 20
    everything = analyse(probe_values(x[:, :30], steps=[0, 10, 20]))
    assert everything.drift().unknown == why and everything.drift().direction is None


def test_a_part_that_a_topic_is_not_in_is_no_lost_sample():
    """Guards rotating parts of a run that is going on: a topic's last shift is that of its own last sample."""
    x = np.array([0.0, 1.0, 2.0])[:, None] + 0.1 * np.random.default_rng(0).normal(size=(3, 60))
    x[2, :30] = NAN
    values = probe_values(x, ["away"] * 30 + ["there"] * 30, steps=[0, 10, 20])
    a = analyse(replace(values, total_steps=100))
    assert (a.drift("away").step, a.drift("away").unknown, a.drift("away").direction) == (10, "", 1)


def test_topics_that_are_called_as_the_mean_is(tmp_path):
    """Guards a topic named "all": its numbers are its own and not the panel's mean, in text likelihood and in
    answers."""
    names = {"immigration": "all", "abortion": "topics", "climate change": "all (topic)"}
    mini = Panel.load("values-mini")
    panel = Panel.from_rows([p.to_row() | {"topic": names.get(p.topic, p.topic)} for p in mini.probes], "named")
    log = DriftLog.create(tmp_path, panel, requests_of(panel), "t")

    def change(step, row):
        moves = row["topic"] == "all" and row["variant"] == "question"
        return step * 0.1 * row["polarity"] * SIDE[row["stance"]] * moves

    fill(log, (0, 4), change)
    a = analyse(text_values(log))
    assert a.topics == ["all (topic)", "topics (topic)", "all (topic) (topic)", "economic policy"]
    assert set(a.values.axes) == set(a.topics)
    assert a.drift("all (topic)").magnitude.num_probes == 12 and a.drift("all").magnitude.num_probes == 48
    assert a.drift("all (topic)").magnitude.mean == pytest.approx(4 * a.drift("all").magnitude.mean, rel=1e-3)
    answers = answer_log(tmp_path / "b", {0: np.full((48, 2), "yes")}, 2, [], panel)
    assert answer_values(answers, np.full((96, 3), 1 / 3)).topic_names == a.topics
