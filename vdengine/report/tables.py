"""Every number that is shown, as tables: `tables/*.csv` and `tables/*.parquet`. Units are raw: nats per byte."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.frames import Row
from vdengine.drift.run import SUMMARY_TABLES, Run
from vdengine.report.gaps import Gap

Tables = dict[str, list[Row]]


def build(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str]) -> Tables:
    """All tables by name; topics: those to show, beside "all"."""
    shown = ("all", *topics)
    tables: Tables = {name: [row for run in runs for row in run.rows(name, shown)] for name in SUMMARY_TABLES}
    tables["gaps"] = [row for gap in gaps for row in gap.rows(shown)]
    return tables


def write(tables: Tables, folder: Path) -> None:
    """Write each table that has rows as CSV and as Parquet; NaN is an empty cell, and null in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if not rows:
            for ending in ("csv", "parquet"):  # a file of an earlier report would be taken for this one's
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
            continue
        columns = list(dict.fromkeys(column for row in rows for column in row))
        plain = [{column: _plain(row.get(column)) for column in columns} for row in rows]
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(plain)
        by_column = {column: [row[column] for row in plain] for column in columns}
        pq.write_table(pa.table(by_column), folder / f"{name}.parquet")


def _plain(value: Any) -> Any:
    """A cell as a Python value; None for NaN and infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
