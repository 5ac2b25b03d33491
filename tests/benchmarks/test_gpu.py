"""`benchmarks/gpu.py`, the one script for a new GPU: what it leaves on disk, however it ends, and what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
BENCHMARKS = REPO / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import common  # noqa: E402
import gpu  # noqa: E402
import predict  # noqa: E402
import test_step_gpu  # noqa: E402
from results import Results, Table  # noqa: E402

MARK = "pytest.mark." + "gpu"


def test_parts_and_bad_input(tmp_path, capsys, monkeypatch):
    """Guards the order (the gate first, then by worth), and one line for each thing that cannot be."""
    assert gpu.main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:8] == ["gate", "rates", "head", "dpo", "trl", "memory-bound", "generate", "dpo-4b"]
    for part in gpu.PARTS:  # what a part names must be there: nobody is at hand to mend it
        for argument in part.arguments:
            file, *node = argument.split("::")
            if ".py" in file:
                assert all(f"def {name}(" in (BENCHMARKS / file).read_text() for name in node), argument
        if "--engines" in part.arguments:
            objective = part.arguments[part.arguments.index("-k") + 1].split()[-1]
            engines = part.arguments[part.arguments.index("--engines") + 1].split(",")
            assert set(engines) <= set(test_step_gpu.ENGINES[objective]), engines
            assert {first for title, first in part.headline if title.startswith("dpo")} <= set(engines)
    tests = REPO / "tests"
    marked = {p.relative_to(tests).as_posix() for p in tests.rglob("test_*.py") if MARK in p.read_text()}
    assert marked == set(gpu._GATE)
    with pytest.raises(SystemExit):
        gpu.main(["--only", "rates,heads"])
    assert "--only: unknown part 'heads'; allowed: gate, rates, head" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert gpu.main(["--quick", "--out", str(tmp_path / "file" / "results")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(common, "versions", lambda: {"torch": "2.11.0"})
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err and list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.slow
def test_a_kill_leaves_every_finished_figure(tmp_path):
    """Guards fifteen minutes: killed in the middle of a part, all rows that were known are whole on disk, as JSON and
    for a reader, and no process stays behind that would hold the device."""
    command = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--quick",
        "--only",
        "rates,memory-bound,preference",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def lines() -> list[str]:
        found = list(tmp_path.glob("*.jsonl"))
        return found[0].read_text().split("\n")[:-1] if found else []

    ends = time.monotonic() + 240
    while sum('"row"' in line for line in lines()) < 8 and time.monotonic() < ends:
        time.sleep(0.05)
    assert process.poll() is None, "ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [str(tmp_path)]  # the processes that it started carry the folder in their arguments
    while left and time.monotonic() < ends:
        left = [p for p in running() if str(tmp_path) in p]
        time.sleep(0.1)
    assert not left
    records = [json.loads(line) for line in lines()]
    assert "machine" in records[0] and records[0]["machine"]["quick"]
    rows = [r for r in records if "row" in r]
    assert len(rows) >= 8 and "rates" in {r.get("part") for r in records}
    text = next(tmp_path.glob("*.md")).read_text()
    for r in rows:
        first, *others = r["row"].values()
        assert f"## {r['table']}" in text and f"| {first} |" in text


def running() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_a_failed_gate_stops_and_a_missing_headline_is_an_error(tmp_path, monkeypatch, capsys):
    """Guards figures against a GPU that computes wrongly, and a run against passing for whole."""
    done = []

    def part(self, part):
        done.append(part.name)
        self.ended[part.name] = ended.get(part.name, "passed (3 tests)")
        if part.name in rows:
            self.results.row(*rows[part.name])

    monkeypatch.setattr(gpu.Run, "part", part)
    monkeypatch.setattr(common, "versions", lambda: {"torch": "2.11.0", "device": "NVIDIA H100", "cuda": "13.0"})
    for said in ("failed", "out of time after 240 s, with failures"):
        ended, rows = {"gate": said}, {}
        assert gpu.main(["--out", str(tmp_path / "a")]) == 1
        assert done == ["gate"] and "the gate has failed" in capsys.readouterr().err
        done.clear()
    ended = {"gate": "out of time after 240 s"}  # nothing has failed: the figures are taken, the exit code is 1
    assert gpu.main(["--only", "gate,sft", "--out", str(tmp_path / "a")]) == 1 and done == ["gate", "sft"]
    done.clear()
    ended, rows = {}, {"generate": ("sampling, Qwen3-0.6B shapes", {"workload": "stop ids", "ratio": 2.0})}
    assert gpu.main(["--only", "gate,generate", "--out", str(tmp_path / "b")]) == 0
    assert gpu.main(["--only", "generate,trl", "--out", str(tmp_path / "b")]) == 1  # of this run: b has none of TRL
    said = capsys.readouterr().out
    assert "missing headline figures:\n    dpo step, Qwen3-0.6B shapes: TRL + Liger\n" in said
    ended, rows = {}, {}
    assert (
        gpu.main(["--only", "generate", "--out", str(tmp_path / "b")]) == 1
    )  # an earlier run's figure is not this one's


def test_time_is_shared_out(tmp_path, monkeypatch, capsys):
    """Guards the total: a part gets its own limit or what is left, and one for which nothing is left is named."""
    limits = {}
    monkeypatch.setattr(gpu.Run, "pytest", lambda self, p, seconds: limits.update({p.name: seconds}) or ("passed", []))
    args = Namespace(minutes=2.0, quick=False, full=False)  # less than the gate may take
    run = gpu.Run(args, Results(tmp_path / "r"), True, tmp_path)
    for part in gpu.PARTS[:3]:
        run.part(part)
    run.ends = time.monotonic() + 40
    run.part(gpu.PARTS[3])
    run.ends = time.monotonic() + 10
    run.part(gpu.PARTS[4])
    assert [round(x) for x in limits.values()] == [120, 30, 90, 40]
    assert run.ended["trl"] == "not run: out of time"
    assert "trl: not run: out of time" in (tmp_path / "r.md").read_text()


def test_results_are_whole_lines(tmp_path):
    """Guards readers: tables in markdown have heads where their columns change, and a record that was cut short is left
    out."""
    results = Results(tmp_path / "deep" / "r")
    for title in ("a", "b"):
        table = Table(title, results)
        table.row({"what": "x|y", "ms": 1.5})
        table.row({"what": "z", "ms": None})
        table.note("measured twice")
        table.row({"what": "late", "ms": 2})
        table.target("ms / peer", 1.2, "<=", 1.0)
    text = results.markdown.read_text()
    assert "## a\n\n| what | ms |\n| --- | ---: |\n| x/y | 1.500 |\n| z |  |\n\n- measured twice\n" in text
    assert text.count("| what | ms |") == 4 and "- ms / peer: 1.200 (target <= 1.0), **missed**" in text
    whole = results.read()
    with open(results.json, "a") as file:
        file.write('{"table": "c", "row": {"wh')
    assert results.read() == whole and len(whole) == 10


@pytest.mark.slow
def test_a_process_that_gives_nothing_is_one_line(tmp_path):
    """Guards what stands beside a peer's name: out of memory, a crash without a word, a hang with children of its own,
    an exit that left no result."""
    child = tmp_path / "child.py"

    def reason(code: str, seconds: float = 60) -> str:
        child.write_text(f"import os, subprocess, sys, time\n{code}\n")
        with pytest.raises(common.Failed) as failed:
            common.in_fresh_process(str(child), {}, 1, seconds)
        assert "\n" not in failed.value.reason
        return failed.value.reason

    assert reason(
        "print('loading', flush=True)\nclass OutOfMemoryError(RuntimeError): pass\n"
        "raise OutOfMemoryError('CUDA out of memory. Tried to allocate 9.28 GiB.\\nSee documentation')"
    ) == "failed with exit code 1: OutOfMemoryError: CUDA out of memory. Tried to allocate 9.28 GiB."  # fmt: skip
    assert reason("os.kill(os.getpid(), 9)") == "failed with exit code -9"
    assert reason("print('done')") == "failed with exit code 0: done"
    pid = tmp_path / "pid"
    hang = f"p = subprocess.Popen(['sleep', '600']); open({str(pid)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    assert reason(hang, 4) == "did not end within 4 s"
    state = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(int(pid.read_text()), signal.SIGKILL)
        pytest.fail("what it had started runs on")


@pytest.mark.slow
def test_what_was_left_before_a_failure_is_kept(tmp_path):
    """Guards the figure of an engine whose profile, behind it, breaks."""
    child = tmp_path / "child.py"
    child.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\nimport common, time\na = common.arguments()\n"
        "common.leave(a, {'seconds': 1})\ncommon.leave(a, {'seconds': 1, 'more': 2})\nraise MemoryError('no room')\n"
    )
    found = common.in_fresh_process(str(child), {}, 1, 60)
    assert found == {"seconds": 1, "more": 2, common.CUT: "failed with exit code 1: MemoryError: no room"}


def test_the_prediction_is_the_published_count():
    """Guards the predicted MFU: with the rates that the first count assumed, its totals come out (milliseconds of a
    step of 9,050 tokens in two micro steps, with a live reference)."""
    for layers, h, i, heads, parameters, linear, copy, expected in (
        (28, 1024, 3072, 16, 596e6, 75, 3.0e12, 178),
        (36, 2560, 9728, 32, 4.02e9, 428, 3.0e12, 793),
        (36, 2560, 9728, 32, 4.02e9, 428, 4.3e12, 702),
    ):
        matrices = layers * (h * (2 * heads + 16) * 128 + 3 * h * i)
        rates = predict.Rates(gemm=8 * matrices * 9050 / linear * 1e3, head_gemm=700e12, copy=copy)
        work = predict.Work(
            tokens=9050, scored=6200, pairs=9050 * 280, micro_steps=2, live=True, layers=layers, hidden=h,
            intermediate=i, heads=heads + 16, query_heads=heads, head_dim=128, vocab=151_936,
            parameters=int(parameters),
        )  # fmt: skip
        found = predict.device_seconds(work, rates)
        assert 1e3 * found["linear GEMMs"] == pytest.approx(linear)
        assert 1e3 * found["total"] == pytest.approx(expected, rel=0.05)
