"""Metrics as lines that can be drawn: bounded, with holes and odd values named."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vdengine.drift.run import Run
from vdengine.report.metrics import MAX_OTHERS, Metrics, missing_samples, other_charts, thin


def run_of(rows: list[dict], recipe: dict | None = None) -> Run:
    return Run("run", Path("run"), recipe or {}, None, None, 100, metrics=rows)


def test_thinning_keeps_spikes() -> None:
    """Guards a page of 10^6 steps that is as large as they are, and a spike of one step that disappears in it."""
    values = np.zeros(1_000_000)
    values[333_333], values[777_777], values[5] = 50.0, -50.0, np.nan
    kept = thin(values, 1000)
    assert len(kept) <= 1000 and (np.diff(kept) > 0).all() and kept[0] == 0 and kept[-1] == 999_999
    assert {333_333, 777_777} <= set(kept.tolist())
    assert thin(values[:10], 1000).tolist() == list(range(10))


def test_holes_and_skipped_updates_are_said() -> None:
    """Guards lines that run on straight across steps whose log was lost, and updates that were skipped in silence."""
    rows = [{"step": s, "loss": 1.0, "skipped_updates": 2 * (s in (5, 6))} for s in range(1, 31) if not 11 <= s <= 20]
    metrics = Metrics.of(run_of([*rows, {"step": 3, "loss": 9.0}], {"log": {"every": 1}}))
    assert "metrics.jsonl has no rows for steps 11 to 20: lines have gaps there" in metrics.notes
    assert "metrics.jsonl: 1 row repeats a step; the last row of a step counts" in metrics.notes
    assert any(note.startswith("4 updates were skipped") and note.endswith("steps 5 to 6") for note in metrics.notes)
    loss = metrics.lines["loss"]
    assert loss.steps.tolist() == [*range(1, 12), *range(21, 31)] and np.isnan(loss.values[10])
    assert loss.values[2] == 9.0 and np.isfinite(loss.values).sum() == 20
    assert not Metrics.of(run_of([{"step": s, "loss": 1.0} for s in (10, 20, 30, 34)], {"log": {"every": 10}})).notes


def test_what_is_no_number_is_said_and_not_drawn() -> None:
    """Guards NaN, infinity, words, truth values and integers of 400 digits in metrics.jsonl: a crash, or a point."""
    odd = [float("nan"), float("inf"), "1.0", None, True, [1], {"a": 1}, 10**400]
    rows = [{"step": s, "loss": 0.5 if s < 3 else odd[s - 3], "grad_norm": "x"} for s in range(1, 3 + len(odd))]
    metrics = Metrics.of(run_of(rows))
    assert np.isfinite(metrics.lines["loss"].values).sum() == 2 and "grad_norm" not in metrics.lines
    assert f"loss is not a finite number at steps 3 to {2 + len(odd)}" in metrics.notes
    assert any(note.startswith("grad_norm is not") and note.endswith("it is not drawn") for note in metrics.notes)


def test_other_metrics_have_charts_within_bounds() -> None:
    """Guards an objective's own metrics that no list here names, and a row of 1,000 keys."""
    metrics = Metrics.of(run_of([{"step": 1, "log_odds_ratio": 0.3, "loss": 1.0, "tokens": 5}]))
    assert [chart.title for chart in other_charts([metrics])] == ["log_odds_ratio"]
    many = Metrics.of(run_of([{"step": 1} | {f"k{n}": 1.0 for n in range(1000)}]))
    assert len(other_charts([many])) == MAX_OTHERS
    assert not missing_samples(run_of([], {"probes": {"every": "x"}}))
