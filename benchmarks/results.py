"""Tables of figures, written line by line, so that all figures that are known when a benchmark ends are on disk.

A results file is a pair, NAME.jsonl and NAME.md, to which lines are only appended. Each line of the first is one
object:

    {"machine": {...}}                                       the machine of the measurements
    {"part": ..., "ended": ..., "seconds": ...}              a part of `gpu.py`
    {"table": title, "row": {...}}                           one line of a table
    {"table": title, "note": ...}
    {"table": title, "target": ..., "measured": ..., "limit": "<= 1.15", "met": true}

Several processes may append to the same file, one after another.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def cell(value: Any) -> str:
    """A value as the text of a table's cell."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return "" if value is None else str(value)


def table_row(cells: list[str]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"


class Results:
    """Appends to BASE.jsonl and BASE.md.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, base: Path) -> None:
        self.json, self.markdown = base.with_name(base.name + ".jsonl"), base.with_name(base.name + ".md")
        base.parent.mkdir(parents=True, exist_ok=True)
        self.columns: tuple[str, tuple[str, ...]] | None = None  # title and columns of the markdown's open table

    def add(self, record: dict[str, Any], *lines: str) -> None:
        """Append a record, and lines of markdown."""
        _append(self.json, json.dumps(record) + "\n")
        if lines:
            _append(self.markdown, "".join(line + "\n" for line in lines))

    def text(self, *lines: str) -> None:
        """Append lines of markdown only."""
        self.columns = None
        _append(self.markdown, "".join(line + "\n" for line in ("", *lines)))

    def row(self, title: str, row: dict[str, Any]) -> None:
        """Append a row of a table."""
        names, head = list(row), []
        if self.columns is None or self.columns[0] != title:
            head = ["", f"## {title}"]
        if self.columns != (title, tuple(names)):
            head += ["", table_row(names), table_row(["---", *(["---:"] * (len(names) - 1))])]
            self.columns = (title, tuple(names))
        self.add({"table": title, "row": row}, *head, table_row([cell(row[name]) for name in names]))

    def note(self, title: str, note: str) -> None:
        """Append a note below a table."""
        self._close_table()
        self.add({"table": title, "note": note}, f"- {note}")

    def target(self, title: str, name: str, target: dict[str, Any]) -> None:
        """Append a target below a table."""
        self._close_table()
        verdict = "met" if target["met"] else "**missed**"
        self.add(
            {"table": title, "target": name, **target},
            f"- {name}: {cell(target['measured'])} (target {target['limit']}), {verdict}",
        )

    def _close_table(self) -> None:
        """Close the open table, so that its next row will have a head again."""
        if self.columns is not None:
            self.columns = None
            _append(self.markdown, "\n")

    def read(self) -> list[dict[str, Any]]:
        """All records; a last one that is cut short is left out."""
        if not self.json.exists():
            return []
        lines = self.json.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class Table:
    """A table of a run: kept for the summary at its end, and appended to `results` line by line."""

    def __init__(self, title: str, results: Results | None) -> None:
        self.title, self.results = title, results
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.targets: dict[str, dict[str, Any]] = {}

    def row(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.rows.append(row)
        if self.results is not None:
            self.results.row(self.title, row)

    def note(self, note: str) -> None:
        """Add a note."""
        self.notes.append(note)
        if self.results is not None:
            self.results.note(self.title, note)

    def target(self, name: str, measured: float, sign: str, limit: float) -> None:
        """Add a target: `measured` should be "<=" or ">=" `limit`."""
        met = measured <= limit if sign == "<=" else measured >= limit
        self.targets[name] = {"measured": measured, "limit": f"{sign} {limit}", "met": met}
        if self.results is not None:
            self.results.target(self.title, name, self.targets[name])

    def as_json(self) -> dict[str, Any]:
        """The table as an object for JSON."""
        return {"title": self.title, "rows": self.rows, "notes": self.notes, "targets": self.targets}
