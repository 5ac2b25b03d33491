"""What speaks for and against a readout: controls, reliability, half panels, other judges."""

import math
import random

import numpy as np
import pytest
from helpers.values import SIDE, noisy_pair, opening_log, probe_values, strata

from vdengine.drift.analysis import analyse
from vdengine.drift.checks import checks
from vdengine.drift.intervals import UNKNOWN
from vdengine.drift.probe_values import control_values, text_values
from vdengine.drift.validity import _reliability
from vdengine.panels.panel import Panel


def test_controls(tmp_path):
    """Guards the validity channels: each control's shift is its own, question less null where it has both; paraphrases
    are compared probe by probe, controls that were not sampled are None, and the questions' numbers do not change with
    controls beside them."""
    gain = {"question": 0.02, "paraphrase": 0.015, "null": 0.005, "off-topic": 0.0}
    rng = random.Random(0)
    trivial = {probe.id for probe in Panel.load("controls").probes}
    own = {}

    def fill(step, row):
        if row["variant"] not in ("question", "null") and step == 4:
            return math.nan
        if row["probe"] in trivial:
            return 0.0
        own.setdefault(row["probe"], 1 + rng.gauss(0, 0.5))
        return step / 8 * gain[row["variant"]] * own[row["probe"]] * row["polarity"] * SIDE[row["stance"]]

    log = opening_log(tmp_path / "a", fill, controls=True)
    r = text_values(log)
    a = analyse(r, controls=control_values(log, "text_likelihood"))
    mean = np.mean([own[p] for p in r.probes])
    assert a.drift().magnitude.mean == pytest.approx(2 * 0.015 * mean, rel=1e-3)
    assert a.validity["null"].mean == pytest.approx(2 * 0.005 * mean, rel=1e-3)
    assert a.validity["off-topic"].mean == pytest.approx(0, abs=1e-7) and a.validity["off-topic"].num_probes == 24
    assert a.validity["paraphrase"]["correlation"] == pytest.approx(1, abs=1e-4)
    assert a.validity["paraphrase"]["shift"].mean == pytest.approx(2 * 0.01 * mean, rel=1e-3)
    assert a.validity["reliability"]["abortion"].paraphrase == pytest.approx(1, abs=1e-3)
    assert a.validity["yes_bias"].num_probes == 48 and a.validity["judges"] is None
    shown = {check.name: check.numbers for check in checks(a)}
    assert shown["paraphrase"]["low"] <= shown["paraphrase"]["mean"] <= shown["paraphrase"]["high"] <= 1
    bare = analyse(text_values(opening_log(tmp_path / "b", fill)))
    assert bare.validity["null"] is None and bare.validity["paraphrase"] is None
    assert bare.drift().magnitude.mean == pytest.approx(a.drift().magnitude.mean, rel=1e-5)
    assert bare.validity["reliability"]["abortion"].paraphrase is None


def test_reliability_of_a_curve():
    """Guards the share that is signal: with shift 0.5 and probes' deviation 1 over 30 probes it is 0.25 / (0.25 + 1/30)
    = 0.88 (median of 200 runs; Monte-Carlo error 0.01), 0 or so without drift."""
    rng = np.random.default_rng(19)
    for shift, expected in ((0.5, 0.88), (0.0, 0.0)):
        found = []
        for run in range(200):
            x = np.stack([np.zeros(30), shift + rng.normal(size=30)])
            found.append(analyse(probe_values(x), resamples=5, seed=run).validity["reliability"]["a"].halves)
        signal = np.median(found)
        assert signal == pytest.approx(expected, abs=0.03)


def test_half_panels():
    """Guards the correlation of half-panels: topics that differ by deviation 1, halves of 12 probes of deviation 2 a
    topic: r = 1 / (1 + 4/12) = 0.75 between halves, 0.86 for the whole (60 topics; to 0.1)."""
    rng = np.random.default_rng(20)
    topics, polarity = strata([12] * 120)
    shift = np.repeat(rng.normal(size=60), 24) + 2 * rng.normal(size=1440)
    h = analyse(probe_values(np.stack([0 * shift, shift]), topics, polarity), resamples=5).validity["half_panels"]
    assert h.num_topics == 60 and h.correlation == pytest.approx(0.75, abs=0.1) and h.whole > h.correlation


def test_topics_that_are_not_to_be_read():
    """Guards the flags: too few probes, a yes-bias above the shift, paraphrases that do not follow; each says why, and
    a clear topic is none of them."""
    rng = np.random.default_rng(21)
    topics = np.repeat(["clear", "yes", "words", "few"], [30, 30, 30, 12])
    polarity = np.tile([1, -1], 51)
    shift = np.where(topics == "yes", 0.5 + 1.5 * polarity, 1.0) + 0.3 * rng.normal(size=102)
    r = probe_values(np.stack([0 * shift, shift]), topics, polarity)
    r.channels["yes_bias"] = r.channels["stance"] * polarity
    again = probe_values(
        np.stack([0 * shift, shift * (topics != "words") + 0.1 * rng.normal(size=102)]), topics, polarity
    )
    found = analyse(r, controls={"paraphrase": again}).validity["reliability"]
    assert not found["clear"].unreliable and found["clear"].reason == ""
    assert found["yes"].reason == "questions put the two ways do not agree: the yes-bias is larger than the shift"
    assert found["words"].reason == "paraphrased questions do not show the shift"
    assert found["few"].reason == "12 probes, fewer than 24"
    assert found["clear"].paraphrase > 0.8 > 0.5 > found["words"].paraphrase


def test_judges():
    """Guards judge agreement: by name, on the same probes and steps."""
    rng = np.random.default_rng(22)
    _, (a, b) = noisy_pair(rng, noise=(0.2, 0.2))
    judges = analyse(a, resamples=5, judges={"other": b}).validity["judges"]
    assert set(judges) == {"other"} and judges["other"].matches["all"].magnitude.pearson > 0.8


def test_a_reliability_that_is_not_known_is_marked():
    """Guards a topic that moved and whose halves, or paraphrases, have no number: it is said and not passed over; and
    correlations of rounding noise, which mean nothing and are not marked."""
    r = probe_values(np.array([0.0, 1.0])[:, None] * np.ones(30))
    drifts = analyse(r).drifts
    marked = _reliability(r, 0, "a", drifts, math.nan, None, None)
    assert marked.unreliable and "whether random halves of its probes agree is not known" in marked.reason
    lost = _reliability(r, 0, "a", drifts, 1.0, None, UNKNOWN)
    assert "whether paraphrased questions show the shift is not known" in lost.reason
    rng = np.random.default_rng(0)
    topics, polarity = strata([12] * 6)
    noise = probe_values(np.stack([np.zeros(72), 1e-7 * rng.normal(size=72)]), topics, polarity)
    a = analyse(noise, controls={"paraphrase": noise})
    assert math.isnan(a.validity["half_panels"].whole) and math.isnan(a.validity["paraphrase"]["correlation"])
    assert not any(check.warn for check in checks(a))
