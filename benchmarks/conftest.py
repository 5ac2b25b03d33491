"""Options of the benchmarks, and the tables and JSON that they report."""

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
from results import Results, Table, cell  # noqa: E402

_TABLES: list[Table] = []


def pytest_addoption(parser):
    group = parser.getgroup("vdengine benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes: shows that a benchmark runs, measures nothing")
    group.addoption("--threads", type=int, default=os.cpu_count(), help="CPU threads of every engine (default: all)")
    group.addoption("--repeats", type=int, default=None, help="interleaved repeats; the median counts")
    group.addoption("--engines", help="of a comparison with TRL, only these (comma-separated; see its ENGINES)")
    group.addoption("--full", action="store_true", help="GPU benchmarks: every shape, not only those of the summary")
    group.addoption(
        "--peers",
        choices=("all", "none", "only"),
        default="all",
        help="of the kernels: packages other than torch, each in a process of its own (default: all)",
    )
    group.addoption("--tokenizer", help="of the GPU step: a folder or hub id (default: tests/tokenizers/qwen3)")
    group.addoption("--json", metavar="FILE", help="write all tables and timings here, each as soon as it is there")
    group.addoption("--append", metavar="BASE", help="append each row to BASE.jsonl and BASE.md when it is known")
    group.addoption("--work", metavar="FOLDER", help="keep what a GPU step prepares here, for the next call")
    group.addoption("--limit", type=float, default=600.0, help="seconds that a process of one engine may take")
    group.addoption("--check", action="store_true", help="fail where a target is missed")


@pytest.fixture
def settings(request):
    """`settings.quick`, `.threads`, `.repeats` (None: the benchmark's own), `.engines` (None: all)."""
    return request.config.option


@pytest.fixture
def report(request):
    """report(title, rows, notes=[...], targets={...}) adds a table to the report at the end of the run. rows are
    dictionaries, of which the first has all keys. targets: name -> (measured, "<=" or ">=", limit).
    `report.table(title)` returns a table that is filled by `.row`, `.note` and `.target`; with --append and --json each
    is written at once."""
    option = request.config.option
    opened: list[Table] = []

    class JsonTable(Table):
        """A table of which every line is written to --json at once, because a later benchmark may end the process."""

        def row(self, row):
            super().row(row)
            _write_json(request.config)

        def target(self, *args):
            super().target(*args)
            _write_json(request.config)

    def table(title: str) -> Table:
        new_table = JsonTable(title, Results(Path(option.append)) if option.append else None)
        _TABLES.append(new_table)
        opened.append(new_table)
        return new_table

    def add(title: str, rows: list[dict[str, Any]], notes: list[str] = (), targets: dict[str, Any] | None = None):
        new_table = table(title)
        for row in rows:
            new_table.row(row)
        for note in notes:
            new_table.note(note)
        for name, target in (targets or {}).items():
            new_table.target(name, *target)

    add.table = table
    yield add
    if option.check and not option.quick:
        missed = [
            f"{name}: {target['measured']:.3f}, not {target['limit']}"
            for opened_table in opened
            for name, target in opened_table.targets.items()
            if not target["met"]
        ]
        if missed:
            pytest.fail("; ".join(missed), pytrace=False)


def pytest_terminal_summary(terminalreporter, config):
    for table in _TABLES:
        terminalreporter.section(table.title)
        if config.option.quick:
            terminalreporter.line("--quick: sizes too small to mean anything")
        names = list(dict.fromkeys(name for row in table.rows for name in row))
        cells = [names, *([cell(row.get(name)) for name in names] for row in table.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
        for row in cells if names else []:
            first, *rest = zip(row, widths, strict=True)
            terminalreporter.line("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]))
        for note in table.notes:
            terminalreporter.line(note)
        for name, target in table.targets.items():
            verdict = "met" if target["met"] else "MISSED"
            terminalreporter.line(f"target: {name} {target['limit']}: {target['measured']:.3f}, {verdict}")


def pytest_sessionfinish(session):
    _write_json(session.config)  # again, with the last timings of pytest-benchmark


def _write_json(config: Any) -> None:
    """Write the tables and the timings of pytest-benchmark to the file of --json."""
    option = config.option
    if not option.json:
        return
    machine = {"cpu": _cpu(), "threads": option.threads, "quick": option.quick, **versions()}
    timings = getattr(config, "_benchmarksession", None)
    benchmarks = [b.as_dict(include_data=False) for b in timings.benchmarks if b.stats.rounds] if timings else []
    content = {"machine": machine, "tables": [t.as_json() for t in _TABLES], "benchmarks": benchmarks}
    Path(option.json).write_text(json.dumps(content, indent=2, default=str) + "\n")


def _cpu() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
