"""All GPU benchmarks in one script: `python benchmarks/gpu.py [--minutes 9] [--out FOLDER]`.

First the gate, which is tests of correctness; if one fails, nothing is measured, because figures would have no meaning.
Then the figures, the most important first. Every row is written at once, to OUT/<date>-<device>.jsonl and .md, so that
it is kept however the script or the machine ends. Each part runs in processes of its own with a time limit; if it
fails, hangs or lacks memory, this is reported, and the next part runs. On a GPU the exit code is 1 if a headline figure
is missing, and the last lines name it.

Nothing is downloaded. `--quick` runs every part at tiny sizes, on a CPU too.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import common  # noqa: E402
from results import Results, cell, table_row  # noqa: E402


@dataclass(frozen=True)
class Part:
    """A part of the measurements."""

    name: str
    seconds: float  # limit; with --full six times as much
    what: str
    arguments: tuple[str, ...]  # of pytest
    # the start of a table's title, and the first cell of a row, that must be among the results
    headline: tuple[tuple[str, str], ...] = ()


def _step(model: str, objective: str, *engines: str) -> tuple[str, ...]:
    """Arguments of pytest for a training step."""
    return (
        "test_step_gpu.py",
        "-k",
        f"{model} and {objective}",
        *(("--engines", ",".join(engines)) if engines else ()),
    )


_DPO = "dpo step, Qwen3-0.6B shapes"
_GATE = (
    "test_gpu.py",
    "kernels/test_linear_logprob.py",
    "kernels/test_rms_norm.py",
    "kernels/test_rope.py",
    "kernels/test_swiglu.py",
    "kernels/test_sample.py",
    "kernels/test_decode_attention.py",
    "models/test_generate.py",
    "models/test_attention.py",
    "integrations/test_transformers.py",
)  # the files in tests/ that have tests marked gpu; to collect all tests takes half a minute
_4B = "vdengine cached (packs of 4096)"  # fits 80 GB
PARTS = (  # the most important first, for a short run
    Part("gate", 240, "kernels against fp64, attention, captured decoding, a step twice, two streams, resume",
         (*(f"../tests/{name}" for name in _GATE), "-m", "gpu", "--maxfail", "10", "--durations", "10")),
    Part("rates", 30, "copy and GEMM rates", ("test_kernels_gpu.py::test_rates",), (("rates", "copy"),)),
    Part("head", 90, "linear_logprob at Qwen3's and Llama-3's heads, N = 8192, against bare GEMMs and torch",
         ("test_kernels_gpu.py::test_linear_logprob", "--peers", "none"),
         tuple((f"linear_logprob, head of {m}", "vdengine") for m in ("Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B"))),
    Part("dpo", 170, "a DPO step of Qwen3-0.6B shapes: reference, packs, checkpointing; profile, probes",
         _step("0.6B", "dpo", "vdengine cached", "vdengine live", "vdengine cached (packs of 16384)",
               "vdengine cached (no checkpointing)", "vdengine live (packs of 16384; no checkpointing)"),
         ((_DPO, "vdengine cached"), (_DPO, "vdengine live"), ("profile of two steps", ""))),
    Part("trl", 110, "the same step in TRL, with Liger and without", _step("0.6B", "dpo", "TRL + Liger", "TRL"),
         ((_DPO, "TRL + Liger"),)),
    Part("memory-bound", 60, "RMSNorm, RoPE and SwiGLU against a copy and peers",
         ("test_kernels_gpu.py::test_memory_bound",), (("rms_norm with residual, Qwen3-4B", "vdengine"),)),
    Part("generate", 90, "sampling against transformers' generate", ("test_generate.py::test_generate",),
         (("sampling", ""),)),
    Part("dpo-4b", 110, "a DPO step of Qwen3-4B shapes, cached reference", _step("4B", "dpo", _4B),
         (("dpo step, Qwen3-4B shapes", _4B),)),
    Part("head-peers", 150, "linear_logprob of Liger, CCE and QuACK at the same heads",
         ("test_kernels_gpu.py::test_linear_logprob", "--peers", "only")),
    Part("trl-4b", 110, "the step of Qwen3-4B shapes in TRL with Liger", _step("4B", "dpo", "TRL + Liger")),
    Part("preference", 40, "DPO and SimPO losses end to end", ("test_kernels_gpu.py::test_preference",)),
    Part("cross-entropy", 60, "linear_cross_entropy at the same heads", ("test_kernels_gpu.py::test_cross_entropy",)),
    Part("sft", 90, "an SFT step of Qwen3-0.6B shapes, and TRL's", _step("0.6B", "sft")),
)  # fmt: skip


class Run:
    """A run of the parts, and how each ended."""

    def __init__(self, args: argparse.Namespace, results: Results, cuda: bool, work: Path) -> None:
        self.args, self.results, self.cuda, self.work = args, results, cuda, work
        self.ends = time.monotonic() + 60 * args.minutes  # when the time is up
        self.num_earlier = len(results.read())  # records of an earlier run on the same day
        self.ended: dict[str, str] = {}  # how each part ended

    def part(self, part: Part) -> None:
        """Run a part, and report how it ended."""
        remaining = self.ends - time.monotonic()
        limit = min(remaining, part.seconds * (10 if self.args.quick else 6 if self.args.full else 1))
        started = time.monotonic()
        if remaining < 20:
            ended, notes = "not run: out of time", []
        else:
            self.results.text(f"# {part.name}: {part.what}")
            ended, notes = self.pytest(part, limit)
        seconds = time.monotonic() - started
        self.ended[part.name] = ended
        print(f"{part.name}: {ended} ({seconds:.0f} s)", *notes, sep="\n    ", flush=True)
        self.results.columns = None
        record = {"part": part.name, "ended": ended, "seconds": seconds, "notes": notes}
        self.results.add(record, "", f"*{part.name}: {ended}, {seconds:.0f} s*", *(f"- {note}" for note in notes))

    def pytest(self, part: Part, seconds: float) -> tuple[str, list[str]]:
        """Run the tests of a part; returns how it ended, and a line for each test that failed or was skipped."""
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider"]
        for argument in part.arguments:
            file, *node = argument.split("::")
            command.append("::".join([str((HERE / file).resolve()), *node]) if ".py" in file else argument)
        if part.name == "gate":
            command += ["--device", "cpu"] if not self.cuda else []
        else:
            command += ["--append", str(self.results.json.with_suffix("")), "--work", str(self.work)]
            command += ["--limit", str(max(20.0, seconds - 10))]  # of one engine, below that of the part
            command += [flag for flag in ("--full", "--quick") if getattr(self.args, flag[2:])]
            command += ["--tokenizer", self.args.tokenizer] if self.args.tokenizer else []
        output, code = common.run_limited(command, seconds, cwd=HERE.parent)
        failed = re.findall(r"^(?:FAILED|ERROR) .*$", output, re.M)
        skipped = [line for line in re.findall(r"^SKIPPED .*$", output, re.M) if "a shape of --full" not in line]
        if code == 0:
            passed = re.search(r"\b(\d+) passed", output)
            return (f"passed ({passed[1]} {'test' if passed[1] == '1' else 'tests'})" if passed else "skipped"), skipped
        print(common.last_lines(output, 80), file=sys.stderr)
        if code is None:
            any_failed = failed or re.search(r"^[.sx]*[FE]", output, re.M)
            return f"out of time after {seconds:.0f} s" + (", with failures" if any_failed else ""), [*failed, *skipped]
        return ("failed" if failed else common.ended(output, code, seconds)), [*failed, *skipped]

    def missing(self, part: Part) -> list[str]:
        """The headline figures of a part that are not among the results of this run."""
        rows = [r for r in self.results.read()[self.num_earlier :] if "row" in r]
        names = [(r["table"], str(next(iter(r["row"].values())))) for r in rows]
        return [
            f"{title}: {first or 'any row'}"
            for title, first in part.headline
            if not any(table.startswith(title) and first in ("", name) for table, name in names)
        ]

    def finish(self, parts: list[Part]) -> int:
        """Write the summary; returns the exit code."""
        missing = [m for part in parts for m in self.missing(part)]
        gate = self.ended.get("gate", "")
        lines = ["# Summary", "", table_row(["part", "ended"]), table_row(["---", "---"])]
        lines += [table_row([name, ended]) for name, ended in self.ended.items()]
        records = self.results.read()[self.num_earlier :]
        targets = [r for r in records if "target" in r]
        if targets:
            lines += ["", table_row(["", "target", "measured", ""]), table_row(["---", "---", "---:", "---"])]
        for record in targets:
            verdict = "met" if record["met"] else "missed"
            name = f"{record['table']}: {record['target']}"
            lines.append(table_row([name, record["limit"], cell(record["measured"]), verdict]))
        if missing:
            lines += ["", "Headline figures that are missing:", *(f"- {figure}" for figure in missing)]
        self.results.text(*lines)
        self.results.add({"summary": self.ended, "missing": missing})
        print(f"{self.results.json}, {self.results.markdown.name}")
        if missing:
            print("missing headline figures:", *missing, sep="\n    ")
        gate_failed = bool(gate) and not gate.startswith("passed")
        return 1 if gate_failed or (missing and self.cuda and not self.args.quick) else 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="every shape and engine; takes about an hour")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on a CPU too: shows that all of it runs")
    parser.add_argument("--minutes", type=float, help="of all parts together (default: 9; 60 with --full or --quick)")
    parser.add_argument("--only", metavar="PART[,PART...]", help="these parts; the gate too only if it is named")
    parser.add_argument("--list", action="store_true", help="the parts, in order, and stop")
    parser.add_argument("--tokenizer", help="of the training step; see benchmarks/README.md")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default: benchmarks/results)")
    args = parser.parse_args(argv)
    if args.list:
        for part in PARTS:
            print(f"{part.name:14} {part.seconds:4.0f} s   {part.what}")
        return 0
    names = [part.name for part in PARTS]
    only = args.only.split(",") if args.only else names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: unknown part {unknown[0]!r}; allowed: {', '.join(names)}")
    args.minutes = args.minutes or (60.0 if args.full or args.quick else 9.0)
    args.out = args.out.absolute()
    machine = {"device": "CPU", "date": datetime.date.today().isoformat(), "quick": args.quick, **common.versions()}
    cuda = machine["device"] != "CPU"
    if not cuda and not args.quick:
        print("gpu.py: needs a CUDA device (--quick runs tiny sizes on a CPU)", file=sys.stderr)
        return 2
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-") + ("-quick" if args.quick else "")
    try:
        results = Results(args.out / f"{machine['date']}-{name}")
        results.add({"machine": machine}, *heading(machine))
    except OSError as e:
        print(f"gpu.py: --out {args.out} cannot be written: {e.strerror or e}", file=sys.stderr)
        return 2
    parts = [part for part in PARTS if part.name in only]
    with tempfile.TemporaryDirectory(prefix="gpu-steps-") as work:  # weights of some GB, for several parts
        run = Run(args, results, cuda, Path(work))
        for part in parts:
            run.part(part)
            if part.name == "gate" and not open_gate(run.ended["gate"]):
                print("gpu.py: the gate has failed, nothing is measured; --only takes single parts", file=sys.stderr)
                break
        return run.finish(parts)


def open_gate(ended: str) -> bool:
    """Whether figures may be measured. If the gate ran out of time before a test failed they may, but the exit code is
    1."""
    return ended.startswith("passed") or (ended.startswith("out of time") and "failures" not in ended)


def heading(machine: dict[str, Any]) -> list[str]:
    """The first lines of the markdown."""
    versions = [f"{name} {version}" for name, version in machine.items() if name not in ("device", "date", "quick")]
    lines = [f"# {machine['device']}, {machine['date']}", "", ", ".join(versions)]
    return [*lines, "", "--quick: sizes too small to mean anything."] if machine["quick"] else lines


if __name__ == "__main__":
    sys.exit(main())
