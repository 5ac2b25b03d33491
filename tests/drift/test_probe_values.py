"""Openings by probe: pooling, polarity and channels, from plain loops."""

import math

import numpy as np
import pytest
from helpers.values import SIDE, fill, opening_log

from vdengine.drift.analysis import analyse
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import opening_values
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


def test_halves_of_openings(tmp_path):
    """Guards per-probe reliability: every other opening of a stance, and nothing where there is one a stance."""
    log = opening_log(tmp_path, lambda s, row: 0.01 * s * (row["kind"] == "belief") * SIDE[row["stance"]])
    r = opening_values(log)
    first, second = (h[-1] - h[0] for h in r.halves)  # the first opening is the belief, the second a claim
    assert analyse(r).validity["items"] is None  # one half does not vary
    assert first * r.polarity == pytest.approx(0.16, rel=1e-4) and second == pytest.approx(0, abs=1e-6)
    assert (r.channels["yes_bias"][-1] - r.channels["yes_bias"][0]) == pytest.approx(0.08, rel=1e-4)
    assert r.num_bytes == pytest.approx(np.mean([x["num_bytes"] for x in log.table if x["stance"] != "neutral"]))


def test_openings_errors(tmp_path):
    """Guards against a log without samples or without the variant asked for: one line."""
    p = Panel.load("values-mini")
    log = DriftLog.create(tmp_path, p, p.branches(), [7] * 288, "t")
    with pytest.raises(InputError, match="no samples yet"):
        opening_values(log)
    log.append(0, np.zeros(288, np.float32))
    with pytest.raises(InputError, match="has no 'null' probes; it has question"):
        opening_values(log, variant="null")
    a = analyse(opening_values(log))  # one sample: nothing to say, and no crash
    assert math.isnan(a.drift().magnitude.mean) and not a.drift().significant


def test_against_plain_loops(tmp_path, log):
    """Guards pooling, polarity and normalisation: the same numbers from an independent, slow reading."""
    rng = np.random.default_rng(2)
    for step in (0, 5):
        log.append(step, rng.normal(-40, 5, len(log.table)).astype(np.float32))
    found = analyse(opening_values(log))

    def value(row_of_log, probe, stance):
        per_byte = [
            x / r["num_bytes"]
            for x, r in zip(row_of_log.astype(float), log.table, strict=True)
            if r["probe"] == probe and r["stance"] == stance
        ]
        return sum(per_byte) / len(per_byte)

    polarity = {r["probe"]: r["polarity"] for r in log.table}
    topic = {r["probe"]: r["topic"] for r in log.table}
    for name in ("all", "abortion"):
        shifts = []
        for probe in polarity:
            if name in ("all", topic[probe]):
                then, now = ((value(x, probe, "support") - value(x, probe, "oppose")) for x in log.logp)
                shifts.append(polarity[probe] * (now - then))
        assert found.drift(name).magnitude.mean == pytest.approx(np.mean(shifts), rel=1e-9)
        assert found.drift(name).magnitude.num_probes == len(shifts)


def test_axis_yes_bias_displacement_and_neutral_are_told_apart(tmp_path, log):
    """Guards the channels: each kind of change shows in its own and in no other."""

    def channels(change, folder):
        other = DriftLog.create(folder, Panel.load("values-mini"), Panel.load("values-mini").branches(), [7] * 288, "t")
        fill(other, (0, 1), lambda step, row: step * change(row) * row["num_bytes"])
        a = analyse(opening_values(other))
        return [round(a.drifts["all", c].magnitude.mean, 6) for c in ("stance", "yes_bias", "displacement", "neutral")]

    sign = {"support": 1, "neutral": 0, "oppose": -1}
    assert channels(lambda r: 0.01 * r["polarity"] * sign[r["stance"]], tmp_path / "a") == [0.02, 0, 0, 0]
    assert channels(lambda r: 0.01 * sign[r["stance"]], tmp_path / "b") == [0, 0.02, 0, 0]
    assert channels(lambda r: -0.03, tmp_path / "c") == [0, 0, -0.03, 0]
    moved = channels(lambda r: 0.03 * (r["stance"] == "neutral"), tmp_path / "d")
    assert moved == [0, 0, 0.01, 0.03]


def test_partial_samples_use_the_probes_they_have(tmp_path, log):
    """Guards rotating parts: NaN probes are left out, pairs stay paired."""
    fill(log, (0,), lambda step, row: 0.0)
    half = log.logp[0].copy()
    seen = np.array([i % 2 == 0 for i, _ in enumerate(dict.fromkeys(r["probe"] for r in log.table))])
    index = {p: i for i, p in enumerate(dict.fromkeys(r["probe"] for r in log.table))}
    half[[not seen[index[r["probe"]]] for r in log.table]] = np.nan
    log.append(3, half)
    found = analyse(opening_values(log)).drift().magnitude
    assert found.num_probes == seen.sum() and found.mean == 0.0
