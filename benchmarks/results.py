"""Tables of figures, written line by line: what is known when a benchmark ends, however it ends, is on disk.

A results file is a pair, NAME.jsonl and NAME.md, that only grows. Each record of the first is one object:

    {"machine": {...}}                                       what the figures were measured on
    {"part": ..., "ended": ..., "seconds": ...}              a part of `gpu.py`
    {"table": title, "row": {...}}                           one line of a table
    {"table": title, "note": ...}
    {"table": title, "target": ..., "measured": ..., "limit": "<= 1.15", "met": true}

Several processes may append to one file in turn.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return "" if value is None else str(value)


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"


class Results:
    """Appends to BASE.jsonl and BASE.md. OSError: the folder cannot be written."""

    def __init__(self, base: Path) -> None:
        self.json, self.markdown = base.with_name(base.name + ".jsonl"), base.with_name(base.name + ".md")
        base.parent.mkdir(parents=True, exist_ok=True)
        self.columns: tuple[str, tuple[str, ...]] | None = None  # of the table that the markdown is in

    def add(self, record: dict[str, Any], *lines: str) -> None:
        """A record, and what a reader should see of it."""
        _append(self.json, json.dumps(record) + "\n")
        if lines:
            _append(self.markdown, "".join(line + "\n" for line in lines))

    def text(self, *lines: str) -> None:
        """For a reader alone."""
        self.columns = None
        _append(self.markdown, "".join(line + "\n" for line in ("", *lines)))

    def row(self, title: str, row: dict[str, Any]) -> None:
        names, head = list(row), []
        if self.columns is None or self.columns[0] != title:
            head = ["", f"## {title}"]
        if self.columns != (title, tuple(names)):
            head += ["", table_row(names), table_row(["---", *(["---:"] * (len(names) - 1))])]
            self.columns = (title, tuple(names))
        self.add({"table": title, "row": row}, *head, table_row([cell(row[name]) for name in names]))

    def note(self, title: str, note: str) -> None:
        self._below()
        self.add({"table": title, "note": note}, f"- {note}")

    def target(self, title: str, name: str, found: dict[str, Any]) -> None:
        self._below()
        verdict = "met" if found["met"] else "**missed**"
        self.add(
            {"table": title, "target": name, **found},
            f"- {name}: {cell(found['measured'])} (target {found['limit']}), {verdict}",
        )

    def _below(self) -> None:
        """A list follows the table: the next row of it needs a head again."""
        if self.columns is not None:
            self.columns = None
            _append(self.markdown, "\n")

    def read(self) -> list[dict[str, Any]]:
        """The records so far; a last one that was cut short is left out."""
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
    """One table of a run: kept for the summary at its end, and appended to `results` as it grows."""

    def __init__(self, title: str, results: Results | None) -> None:
        self.title, self.results = title, results
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.targets: dict[str, dict[str, Any]] = {}

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.results is not None:
            self.results.row(self.title, row)

    def note(self, note: str) -> None:
        self.notes.append(note)
        if self.results is not None:
            self.results.note(self.title, note)

    def target(self, name: str, measured: float, sign: str, limit: float) -> None:
        """sign: "<=" or ">=", what `measured` should be to `limit`."""
        met = measured <= limit if sign == "<=" else measured >= limit
        self.targets[name] = {"measured": measured, "limit": f"{sign} {limit}", "met": met}
        if self.results is not None:
            self.results.target(self.title, name, self.targets[name])

    def as_json(self) -> dict[str, Any]:
        return {"title": self.title, "rows": self.rows, "notes": self.notes, "targets": self.targets}
