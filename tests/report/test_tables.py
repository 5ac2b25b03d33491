"""The report's tables: their numbers are the estimators', in two formats."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.pages import analyses

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.judgements import judgements_of
from vdengine.drift.probe_values import PRIMARY

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


def same(a: float | None, b: float) -> bool:
    return (a is None and np.isnan(b)) or a == b


def test_tables_hold_the_numbers_of_analyse_exactly(folder: Path, made: Path) -> None:
    """Guards against rounding, a wrong unit, or rows of one run, judge or topic under another's name."""
    rows = pq.read_table(made / "tables" / "magnitudes.parquet").to_pylist()
    curves = pq.read_table(made / "tables" / "curves.parquet").to_pylist()
    for name in ("first", "other"):
        for which, a in analyses(folder / name).items():
            mine = [r for r in rows if (r["run"], r["readout"], r["judge"], r["part"]) == (name, *which)]
            assert {(r["topic"], r["channel"]) for r in mine} == set(a.drifts)
            for r in mine:
                d = a.drifts[r["topic"], r["channel"]]
                m = d.magnitude
                assert (r["mean"], r["low"], r["high"], r["p"], r["num_probes"]) == (
                    m.mean, m.low, m.high, m.p, m.num_probes,
                )  # fmt: skip
                assert (r["p_adjusted"], r["significant"], r["few"]) == (d.p_adjusted, d.significant, m.few)
                assert r["ci95_step"] == d.times["ci95"].step and r["settled_high"] == d.times["settled"].high
            for what, of in (("shift", a.curves), ("level", a.levels)):
                for (topic, channel), curve in of.items():
                    got = [
                        r for r in curves
                        if (r["run"], r["readout"], r["judge"], r["part"], r["topic"], r["channel"], r["what"])
                        == (name, *which, topic, channel, what)
                    ]  # fmt: skip
                    assert [r["step"] for r in got] == curve.steps.tolist()
                    for key in ("mean", "low", "high"):
                        assert all(same(r[key], x) for r, x in zip(got, getattr(curve, key), strict=True))


def test_csv_and_parquet_agree(made: Path) -> None:
    """Guards against one format losing rows, columns or digits."""
    names = sorted(p.stem for p in (made / "tables").glob("*.parquet"))
    assert names == sorted(p.stem for p in (made / "tables").glob("*.csv"))
    assert {"runs", "curves", "magnitudes", "validity", "gates", "support", "cost", "training", "gaps"} <= set(names)
    for name in names:
        table = pq.read_table(made / "tables" / f"{name}.parquet").to_pylist()
        with open(made / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table]
        assert found == expected


def test_gates_are_those_of_the_readings(folder: Path, made: Path) -> None:
    """Guards against gates that are shown open where the estimator has closed them."""
    rows = [r for r in pq.read_table(made / "tables" / "gates.parquet").to_pylist() if r["run"] == "first"]
    answers = AnswerLog.open(folder / "first")
    r = answer_values(answers, judgements_of(answers, "rule"))
    assert r.gates is not None
    expected = {int(s): g for s, g in zip(r.steps, r.gates, strict=True) if g is not None}
    assert {x["step"]: (x["kl"], x["open"]) for x in rows} == {s: (g.kl, g.open) for s, g in expected.items()}
    assert {x["open"] for x in rows} == {True, False}  # both kinds are in these runs


def test_gap_stands_beside_the_run_that_was_trained_on_it(made: Path) -> None:
    """Guards against an audit of one data set explaining the drift of a run on another."""
    rows = pq.read_table(made / "tables" / "gaps.parquet").to_pylist()
    assert {r["run"] for r in rows} == {"first"}
    drifts = pq.read_table(made / "tables" / "magnitudes.parquet").to_pylist()
    which = ("run", "readout", "judge", "part", "topic")
    drift = {tuple(d[name] for name in which): d["mean"] for d in drifts if d["channel"] == PRIMARY[d["readout"]]}
    assert {(r["readout"], r["part"]) for r in rows} >= {
        ("lead", None),
        ("text_likelihood", None),
        ("answers", "argument"),
    }
    for r in rows:
        assert r["drift"] == drift[tuple(r[name] for name in which)]
