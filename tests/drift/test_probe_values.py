"""Leads and text likelihood by probe: pooling, polarity and channels, from plain loops."""

import math

import numpy as np
import pytest
from helpers.values import fill, requests_of

from vdengine.drift.analysis import analyse
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import in_judges_units, lead_values, text_values
from vdengine.errors import InputError


def test_text_likelihood_errors(tmp_path, panel):
    """Guards against a log without samples or without the variant asked for: one line."""
    log = DriftLog.create(tmp_path, panel, requests_of(panel), "t")
    with pytest.raises(InputError, match="no samples yet"):
        text_values(log)
    log.append(0, np.zeros(576, np.float32))
    with pytest.raises(InputError, match="has no openings after 'paraphrase'; it has question, null"):
        text_values(log, variant="paraphrase")
    with pytest.raises(InputError, match="has no leads after 'question'; it has none"):
        lead_values(log)
    a = analyse(text_values(log))  # one sample: nothing to say, and no crash
    assert math.isnan(a.drift().magnitude.mean) and not a.drift().significant


def test_against_plain_loops(tmp_path, log):
    """Guards pooling, polarity and normalisation: the same numbers from an independent, slow reading."""
    rng, rows = np.random.default_rng(2), log.items("openings")
    for step in (0, 5):
        log.append(step, rng.normal(-40, 5, len(rows)).astype(np.float32))
    found, samples = analyse(text_values(log)), log.samples()
    null = {r["text"]: i for i, r in enumerate(rows) if r["variant"] == "null"}

    def value(sample, probe, stance):
        own = [(i, r) for i, r in enumerate(rows) if (r["probe"], r["stance"]) == (probe, stance)]
        per_byte = [
            (float(sample[i]) - float(sample[null[r["text"]]])) / r["num_bytes"]
            for i, r in own
            if r["variant"] == "question"
        ]
        return sum(per_byte) / len(per_byte)

    polarity = {r["probe"]: r["polarity"] for r in rows}
    topic = {r["probe"]: r["topic"] for r in rows}
    for name in ("all", "abortion"):
        shifts = []
        for probe in polarity:
            if name in ("all", topic[probe]):
                then, now = ((value(x, probe, "support") - value(x, probe, "oppose")) for x in samples)
                shifts.append(polarity[probe] * (now - then))
        assert found.drift(name).magnitude.mean == pytest.approx(np.mean(shifts), rel=1e-9)
        assert found.drift(name).magnitude.num_probes == len(shifts)


def test_leads_against_plain_loops(tmp_path, panel):
    """Guards the lead: sums of probabilities over spellings, polarity, coverage; and a judge's units."""
    requests = requests_of(panel, leads=True)
    log, rng = DriftLog.create(tmp_path, panel, requests, "t"), np.random.default_rng(3)
    for step in (0, 5):
        log.append(step, -rng.uniform(1.5, 6, len(requests)).astype(np.float32))
    values = lead_values(log)
    logp = log.channels["leads"].values.astype(float)
    for p, probe in enumerate(panel.probes):
        own = [(i, r["stance"]) for i, r in enumerate(log.items("leads")) if r["probe"] == probe.id]
        for s in range(2):
            yes, no = (sum(math.exp(logp[s, i]) for i, side in own if side == x) for x in ("support", "oppose"))
            assert values.channels["lead"][s, p] == pytest.approx(probe.polarity * (yes - no), rel=1e-12)
            assert values.channels["coverage"][s, p] == pytest.approx(yes + no, rel=1e-12)
            units = in_judges_units(values, (0.7, -0.5)).channels["lead"][s, p]
            assert units == pytest.approx(probe.polarity * (0.7 * yes - 0.5 * no), rel=1e-12, abs=1e-12)


def test_no_lead_is_said_where_few_answers_have_one(tmp_path, panel):
    """Guards the cut-off: a shift of the lead with little coverage at its end is no verdict on a topic."""
    requests = requests_of(panel, leads=True)
    is_lead = np.array([r.branch.channel == "leads" for r in requests])
    yes = np.array([r.branch.stance == "support" and r.branch.probe.polarity > 0 for r in requests])
    for mass, said in ((0.1, None), (0.9, 1)):
        log = DriftLog.create(tmp_path / str(mass), panel, requests, "t")
        log.append(0, np.where(is_lead, math.log(1e-3), -20))
        moved = np.where(yes | ~is_lead, math.log(mass / 2), math.log(1e-3))
        moved[
            is_lead & ~yes & np.array([r.branch.probe.polarity < 0 and r.branch.stance == "oppose" for r in requests])
        ] = math.log(mass)
        log.append(5, moved)
        drift = analyse(lead_values(log)).drift()
        assert drift.direction == said
        assert bool(drift.unknown) == (said is None)


def test_axis_yes_bias_displacement_and_neutral_are_told_apart(tmp_path, panel):
    """Guards the channels: each kind of change shows in its own and in no other; what comes without the question too is
    no text likelihood."""

    def channels(change, folder):
        other = DriftLog.create(folder, panel, requests_of(panel), "t")
        fill(other, (0, 1), lambda step, row: step * change(row) * row["num_bytes"])
        a = analyse(text_values(other))
        names = ("stance", "question", "null", "yes_bias", "displacement", "neutral")
        return [round(a.drifts["all", c].magnitude.mean, 6) + 0.0 for c in names]

    asked = lambda r: r["variant"] == "question"  # noqa: E731
    sign = {"support": 1, "neutral": 0, "oppose": -1}
    side = lambda r: 0.01 * r["polarity"] * sign[r["stance"]]  # noqa: E731
    assert channels(lambda r: asked(r) * side(r), tmp_path / "a") == [0.02, 0.02, 0, 0, 0, 0]
    assert channels(side, tmp_path / "e") == [0, 0.02, 0.02, 0, 0, 0]
    assert channels(lambda r: asked(r) * 0.01 * sign[r["stance"]], tmp_path / "b") == [0, 0, 0, 0.02, 0, 0]
    assert channels(lambda r: -0.03, tmp_path / "c") == [0, 0, 0, 0, -0.03, 0]
    moved = channels(lambda r: asked(r) * 0.03 * (r["stance"] == "neutral"), tmp_path / "d")
    assert moved == [0, 0, 0, 0, 0.01, 0.03]


def test_partial_samples_use_the_probes_they_have(tmp_path, log):
    """Guards rotating parts: NaN probes are left out, pairs stay paired."""
    fill(log, (0,), lambda step, row: 0.0)
    half, rows = log.samples()[0].copy(), log.items("openings")
    seen = {p: i % 2 == 0 for i, p in enumerate(dict.fromkeys(r["probe"] for r in rows))}
    half[[not seen[r["probe"]] for r in rows]] = np.nan
    log.append(3, half)
    found = analyse(text_values(log)).drift().magnitude
    assert found.num_probes == sum(seen.values()) and found.mean == 0.0
