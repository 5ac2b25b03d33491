"""Runs of one recipe with other seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import data_of
from helpers.report_runs import make_run, panel_of

from vdengine.drift.load import load_run
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.seeds import recipe_shifts
from vdengine.report import report
from vdengine.report.repeats import repeats_of

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


def test_a_recipe_has_its_own_interval_where_runs_repeat_it(tmp_path: Path) -> None:
    """Guards the interval of one run under the recipe's name; runs of other data taken for repeats; and two seeds, of
    which no interval can be had, passed over without a word."""
    options = {"answers": False, "every": 20, "controls": False}
    runs = [make_run(tmp_path / f"s{seed}", panel_of(2), seed=seed, **options) for seed in range(3)]
    other = make_run(tmp_path / "other", panel_of(2), seed=3, source="b.jsonl", **options)
    (group,) = data_of(report([*runs, other], out=tmp_path / "report", figures=False))["repeats"]
    assert group["runs"] == [0, 1, 2] and group["seeds"] == ["0", "1", "2"] and not group["refused"]
    expected = recipe_shifts([load_run(run).text_values() for run in runs])["topic 0"]
    cell = group["shifts"]["text_likelihood"]["topic 0"]
    assert (cell["mean"], cell["low"], cell["high"]) == pytest.approx(
        (100 * expected.mean, 100 * expected.low, 100 * expected.high), rel=1e-4
    )
    assert (cell["num_seeds"], cell["num_probes"]) == (3, 24) and len(cell["by_run"]) == 3
    table = (tmp_path / "report" / "tables" / "recipe_shifts.csv").read_text()
    assert table.startswith("runs,readout,judge,part,topic,unit,mean,low,high") and "b.jsonl" not in table
    (pair,) = repeats_of([load_run(run) for run in runs[:2]])
    assert not pair.shifts and "takes 3 runs" in pair.refused["lead"]


def test_an_unfinished_run_is_left_out_with_a_note(tmp_path: Path) -> None:
    """Guards the recipe's table against a run that was cut short: the others are what they are without it, and the page
    says why it is not among them; and two that are left are too few."""
    options = {"answers": False, "every": 4, "controls": False}
    runs = [make_run(tmp_path / f"s{seed}", panel_of(2), seed=seed, **options) for seed in range(4)]
    loaded = [load_run(run) for run in runs]
    (whole,) = repeats_of(loaded[:3])
    DriftLog.open(runs[3]).rewind(5)  # samples at 0 and 4 are left
    cut = load_run(runs[3])
    group, alone = repeats_of([*loaded[:3], cut])
    assert group.runs == loaded[:3] and group.shifts == whole.shifts
    assert alone.runs == [cut] and not alone.shifts
    assert alone.refused["lead"].startswith("its last sample is at step 4, that of the recipe's other runs at 40")
    page = data_of(report(runs, out=tmp_path / "report", figures=False))["repeats"]
    assert [each["runs"] for each in page] == [[0, 1, 2], [3]] and page[1]["refused"]["lead"] == alone.refused["lead"]
    pair, _ = repeats_of([*loaded[:2], cut])
    assert not pair.shifts and "takes 3 runs" in pair.refused["lead"]


def test_leads_that_are_too_few_say_nothing_of_a_recipe(tmp_path: Path) -> None:
    """Guards the table against a shift of leads with which few answers begin: no number, and the reason."""
    options = {"answers": False, "every": 20, "controls": False, "coverage": 0.3}
    runs = [make_run(tmp_path / f"s{seed}", panel_of(2), seed=seed, **options) for seed in range(3)]
    (group,) = repeats_of([load_run(run) for run in runs])
    cells = group.cells("lead", group.shifts["lead"]["all"])
    assert "30% of answers begin with yes or no" in cells["unknown"] and cells["mean"] != cells["mean"]
