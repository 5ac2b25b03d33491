"""Options of the benchmarks, and the tables and JSON they end with."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from common import versions  # noqa: E402

_TABLES: list[dict[str, Any]] = []


def pytest_addoption(parser):
    group = parser.getgroup("vdengine benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes: shows that a benchmark runs, measures nothing")
    group.addoption("--threads", type=int, default=os.cpu_count(), help="CPU threads of every engine (default: all)")
    group.addoption("--repeats", type=int, default=None, help="interleaved repeats; the median counts")
    group.addoption("--engines", help="of the comparison with TRL, only these (comma-separated; see its ENGINES)")
    group.addoption("--full", action="store_true", help="GPU benchmarks: every shape, not only those of the summary")
    group.addoption("--tokenizer", help="of the GPU step: a folder or hub id (default: tests/tokenizers/qwen3)")
    group.addoption("--json", metavar="FILE", help="write all tables here, each as soon as it is there")
    group.addoption("--check", action="store_true", help="fail where a target is missed")


@pytest.fixture
def settings(request):
    """`settings.quick`, `.threads`, `.repeats` (None: the benchmark's own), `.engines` (None: all)."""
    return request.config.option


@pytest.fixture
def report(request):
    """report(title, rows, notes=[...], targets={...}): a table for the end of the run.

    rows: dictionaries with the same keys. targets: what -> (measured, "<=" or ">=", target).
    """

    def add(title: str, rows: list[dict[str, Any]], notes: list[str] = (), targets: dict[str, Any] | None = None):
        checked = {}
        for name, (value, sign, target) in (targets or {}).items():
            met = value <= target if sign == "<=" else value >= target
            checked[name] = {"measured": value, "target": f"{sign} {target}", "met": met}
        _TABLES.append({"title": title, "rows": rows, "notes": list(notes), "targets": checked})
        _write_json(request.config.option)  # now: a later benchmark may not come to its end
        if request.config.option.check and not request.config.option.quick:
            missed = [f"{what}: {c['measured']:.3f}, not {c['target']}" for what, c in checked.items() if not c["met"]]
            assert not missed, "; ".join(missed)

    return add


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
    return "" if value is None else str(value)


def pytest_terminal_summary(terminalreporter, config):
    for table in _TABLES:
        terminalreporter.section(table["title"])
        if config.option.quick:
            terminalreporter.line("--quick: sizes too small to mean anything")
        names = list(table["rows"][0])
        cells = [names, *([_cell(row[name]) for name in names] for row in table["rows"])]
        widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
        for row in cells:
            first, *rest = zip(row, widths, strict=True)
            terminalreporter.line("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]))
        for note in table["notes"]:
            terminalreporter.line(note)
        for name, c in table["targets"].items():
            verdict = "met" if c["met"] else "MISSED"
            terminalreporter.line(f"target: {name} {c['target']}: {c['measured']:.3f}, {verdict}")


def _write_json(option: Any) -> None:
    if not option.json:
        return
    machine = {"cpu": _cpu(), "threads": option.threads, "quick": option.quick, **versions()}
    Path(option.json).write_text(json.dumps({"machine": machine, "tables": _TABLES}, indent=2) + "\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
