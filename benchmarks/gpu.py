"""All GPU benchmarks in one command: `python benchmarks/gpu.py [--full] [--minutes 10]`.

Writes benchmarks/results/<date>-<device>.json and .md: every table, with versions, date and device. Each benchmark is
a pytest in a process of its own, so that one that fails (or breaks the device) is named, and the others still run; the
exit code is then 1. One for which no time is left is named too. More time, more shapes: `--full --minutes 60`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import common  # noqa: E402
from conftest import _cell  # noqa: E402

BENCHMARKS = (  # in the order of what a short run should not go without
    "test_kernels_gpu.py::test_linear_logprob",
    "test_kernels_gpu.py::test_memory_bound",
    "test_step_gpu.py -k dpo",
    "test_generate.py::test_generate",
    "test_kernels_gpu.py::test_cross_entropy",
    "test_kernels_gpu.py::test_preference",
    "test_step_gpu.py -k sft",
)


def run(benchmark: str, options: list[str], seconds: float) -> dict[str, Any]:
    """Its tables, how it ended ("passed", "skipped", or what went wrong), and the end of its output."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tables.json"
        where, *rest = benchmark.split()
        command = [sys.executable, "-m", "pytest", str(HERE / where), *rest, "-q", "-rfEs", "--json", str(out)]
        command += options
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parent,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started: they hold the device
            output, code = process.communicate()[0], None
        tables = json.loads(out.read_text())["tables"] if out.exists() else []
    if code is None:
        ended = "out of time"
    elif code != 0:
        failed = re.findall(r"^(?:FAILED|ERROR) .*$", output, re.M)
        ended = "; ".join(failed) or f"pytest ended with exit code {code}"
    else:
        ended = "passed" if tables else "skipped"
    tail = "\n".join(output.splitlines()[-60:]) if ended != "passed" else ""
    return {
        "benchmark": benchmark, "ended": ended, "seconds": time.monotonic() - started, "tables": tables, "tail": tail,
    }  # fmt: skip


def markdown(machine: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    lines = [f"# {machine['device']}, {machine['date']}", ""]
    lines += [", ".join(f"{name} {version}" for name, version in machine.items() if name not in ("device", "date")), ""]
    if machine["quick"]:
        lines += ["--quick: sizes too small to mean anything.", ""]
    lines += ["| benchmark | ended | seconds |", "|---|---|---:|"]
    lines += [f"| {r['benchmark']} | {r['ended'].replace('|', '/')} | {r['seconds']:.0f} |" for r in runs]
    for table in (table for r in runs for table in r["tables"]):
        names = list(table["rows"][0])
        lines += ["", f"## {table['title']}", "", _row(names), _row(["---", *(["---:"] * (len(names) - 1))])]
        lines += [_row([_cell(row[name]) for name in names]) for row in table["rows"]]
        if table["targets"]:
            lines += ["", "| target | | measured | |", "|---|---|---:|---|"]
        for what, c in table["targets"].items():
            lines.append(_row([what, c["target"], _cell(c["measured"]), "met" if c["met"] else "missed"]))
        lines += ["", *(f"- {note}" for note in table["notes"])]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="every shape and engine; takes about an hour")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on a CPU too: shows that all of it runs")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all benchmarks together (default: 10)")
    parser.add_argument("--only", help="benchmarks whose name contains this")
    parser.add_argument("--tokenizer", help="of the training step; see benchmarks/README.md")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default: benchmarks/results)")
    args = parser.parse_args()
    machine = {"device": "CPU", "date": datetime.date.today().isoformat(), "quick": args.quick, **common.versions()}
    if machine["device"] == "CPU" and not args.quick:
        print("gpu.py: needs a CUDA device (--quick runs tiny sizes on a CPU)", file=sys.stderr)
        return 2
    options = [flag for flag in ("--full", "--quick") if getattr(args, flag[2:])]
    options += ["--tokenizer", args.tokenizer] if args.tokenizer else []
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-") + ("-quick" if args.quick else "")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{machine['date']}-{name}"
    ends, runs = time.monotonic() + 60 * args.minutes, []
    for benchmark in BENCHMARKS:
        if args.only and args.only not in benchmark:
            continue
        left = ends - time.monotonic()
        late = {"benchmark": benchmark, "ended": "not run: out of time", "seconds": 0.0, "tables": [], "tail": ""}
        runs.append(run(benchmark, options, left) if left > 20 else late)
        print(f"{benchmark}: {runs[-1]['ended']} ({runs[-1]['seconds']:.0f} s)", flush=True)
        if runs[-1]["tail"]:
            print(runs[-1]["tail"], file=sys.stderr)
        # after each: whatever ends this script, what was measured is there
        path.with_suffix(".json").write_text(json.dumps({"machine": machine, "runs": runs}, indent=2) + "\n")
        path.with_suffix(".md").write_text(markdown(machine, runs))
    print(f"{path}.json, {path.name}.md")
    return 0 if runs and all(r["ended"] in ("passed", "skipped") for r in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
