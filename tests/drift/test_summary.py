"""The table that a run ends with."""

import json
import math

import pytest
from helpers.report_runs import make_run, panel_of
from helpers.values import fill

from vdengine.drift.load import load_run
from vdengine.drift.model_shifts import levels_table, model_shifts, models_table
from vdengine.drift.summary import drift_table
from vdengine.report.payload import payload


def test_table_reads_well(tmp_path, log):
    """Guards the last screen: every topic, its axis, a verdict; and one sample gives no table."""
    fill(log, (0,), lambda step, row: 0.0)
    assert drift_table(tmp_path) == "Fewer than two samples: no drift to show."

    def moved(step, row):
        asked = row["variant"] == "question" and row["stance"] == "support"
        return 0.02 * row["polarity"] * asked * row["num_bytes"]

    fill(log, (4,), moved)
    table = drift_table(tmp_path)
    assert "abortion" in table and "moved towards" in table and max(map(len, table.splitlines())) <= 120
    json.dumps(table)


@pytest.mark.parametrize(
    ("last", "says"), [(0.0, "no clear shift"), (math.nan, "not known: no number after the baseline, step 0")]
)
def test_a_run_that_did_not_move_and_one_that_broke(tmp_path, log, last, says):
    """Guards the last screen of a run of lr 0, and of weights that are NaN, whose table has no "nan" and no verdict."""
    fill(log, (0, 4), lambda step, row: last if step else 0.0)
    verdicts = [line for line in drift_table(tmp_path).splitlines()[3:8]]
    assert len(verdicts) == 5 and all(line.endswith((says, f"{says}*")) for line in verdicts)
    assert "nan" not in drift_table(tmp_path)


def test_tables_name_the_panels_own_leads(tmp_path):
    """Guards a panel whose answers begin with other words than yes and no: tables that call them so would be wrong."""
    german = (("Ja", " ja"), ("Nein", " nein"))
    run = make_run(tmp_path / "run", panel_of(1), answers=False, openings=False, spelled=german)
    table = drift_table(run)
    assert "p(ja) - p(nein)" in table and "begin with ja or nein" in table and "yes" not in table.split("yes-bias")[0]
    found = model_shifts(run, [str(step) for step in range(11)])
    assert found["lead_words"] == ["ja", "nein"]
    assert "p(ja) - p(nein)" in models_table(found) and "p(ja) + p(nein)" in levels_table(found)
    page = payload([load_run(run)], [], ["topic 0"], "made up", None)
    assert (
        page["readings"][0]["unit"] == "p(ja) \u2212 p(nein)" and "is ja than nein" in page["readings"][0]["sentence"]
    )
