"""Every number that is shown, as tables: `tables/*.csv` and `tables/*.parquet`. Units are raw: nats per byte."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.frames import Row
from vdengine.drift.run import SUMMARY_TABLES, Run
from vdengine.report.gaps import Gap
from vdengine.report.recipes import compare
from vdengine.report.repeats import repeats_of

Tables = dict[str, list[Row]]
MAX_METRIC_ROWS = 20_000  # of metrics.jsonl, which `training` has a row for each number of


def build(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str]) -> Tables:
    """All tables by name; topics: those to show, beside "all"."""
    shown = ("all", *topics)
    tables: Tables = {
        name: [row for run in runs for row in (_bounded(run) if name == "training" else run).rows(name, shown)]
        for name in SUMMARY_TABLES
    }
    tables["gaps"] = [row for gap in gaps for row in gap.rows(shown)]
    tables["recipe_shifts"] = [row for group in repeats_of(runs) for row in group.rows(shown)]
    recipes = compare(runs)
    tables["recipes"] = [
        {"key": key, "run": run.name, "value": value}
        for key, values in recipes.differing.items()
        for run, value in zip(runs, values, strict=True)
    ]
    return tables


def _bounded(run: Run) -> Run:
    """The run with at most `MAX_METRIC_ROWS` rows of metrics, evenly, the last among them."""
    count = len(run.metrics)
    kept = np.unique(np.linspace(0, count - 1, min(count, MAX_METRIC_ROWS)).round().astype(np.int64))
    stages = [replace(stage, run=_bounded(stage.run)) for stage in run.stages]
    return replace(run, metrics=[run.metrics[i] for i in kept], stages=stages)


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
        by_column = {column: _column([row[column] for row in plain]) for column in columns}
        pq.write_table(pa.table(by_column), folder / f"{name}.parquet")


def _plain(value: Any) -> Any:
    """A cell as a Python value that both formats hold; None for NaN and infinity."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    return str(value).encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no UTF-8


def _column(cells: list[Any]) -> list[Any]:
    """A column of one type: as text where a recipe of unknown origin mixes them."""
    kinds = {type(cell) for cell in cells if cell is not None}
    return cells if len(kinds) < 2 or kinds <= {int, float} else [None if cell is None else str(cell) for cell in cells]
