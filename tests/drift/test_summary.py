"""The table that a run ends with."""

import json

from helpers.values import fill


def test_table_reads_well(tmp_path, log):
    """Guards the last screen: every topic, its axis, a verdict; and one sample gives no table."""
    from vdengine.drift.summary import drift_table

    fill(log, (0,), lambda step, row: 0.0)
    assert drift_table(tmp_path) == "Fewer than two samples: no drift to show."
    fill(log, (4,), lambda step, row: 0.02 * row["polarity"] * (row["stance"] == "support") * row["num_bytes"])
    table = drift_table(tmp_path)
    assert "abortion" in table and "moved towards" in table and max(map(len, table.splitlines())) <= 120
    json.dumps(table)
