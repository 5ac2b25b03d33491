"""Whether answers follow the doses at all, before `experiment.py` spends hours: one run with the largest ones.

    python benchmarks/experiment_trial.py OUT                                  # SFT, answers with yes or no, 24 steps
    python benchmarks/experiment_trial.py OUT --objective dpo --argued --lr 3e-5
    python benchmarks/experiment_trial.py OUT --model M.gguf --set lora.rank=16 --lr 3e-4

All four topics are in the run, two with dose 1 and two with dose -1. Printed are the shifts of the readouts by topic at
every sample, and their slopes on the dose: the mean of dose times shift. A slope near 0 says that the model learned
how answers begin and not which side they take, and that no readout can be told from another by it. With --answers the
run folder has answers too, for `vdengine judge`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from experiment_data import TOPICS, Plan, training_file  # noqa: E402
from experiment_runs import SMALL, Size, panel_of  # noqa: E402

DOSES = (1.0, -1.0, 1.0, -1.0)
ROWS = 480  # that there are; more steps go over them again


def recipe_of(plan: Plan, size: Size, steps: int, lr: float, samples: int, work: Path) -> str:
    """The recipe of the trial, as TOML; its data and panel are made in `work`."""
    from vdengine.recipe import make_recipe, to_toml

    panel_of(size).save(work / "panel.jsonl")
    rows = min(size.examples * steps, ROWS)
    tables = {
        "run": {"folder": str(work / "run"), "seed": plan.seed, "steps": steps},
        "model": {"source": size.model, "dtype": size.dtype},
        "data": {
            "train": [str(training_file(plan, rows, work / "data"))],
            "max_tokens": 256,
            "cache": str(work / "cache"),
        },
        "objective": {"name": plan.objective},
        "batch": {"examples": size.examples, "tokens": 2048},
        "optimizer": {"lr": lr, "schedule": "constant", "warmup": 0.25},
        "probes": {"panel": str(work / "panel.jsonl"), "every": max(steps // samples, 1), "controls": False},
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }
    if size.answers:
        tables["answers"] = {
            "samples": size.answers,
            "base": size.answers,
            "max_tokens": size.max_tokens,
            "anchors": [],
        }
    return to_toml(make_recipe(tables))


def report(run: Path, topics: np.ndarray) -> str:
    """The shifts by topic, and their slopes on the dose; topics: [P] of the probes."""
    from vdengine.drift.panel_log import DriftLog
    from vdengine.drift.probe_values import lead_values, text_values

    log = DriftLog.open(run)
    lead, text = lead_values(log), text_values(log)
    coverage = lead.channels["coverage"].mean(1)  # [S]
    shifts = {
        "lead": lead.channels["lead"] - lead.channels["lead"][:1],
        "text likelihood, nats per 100 bytes": 100 * (text.channels["stance"] - text.channels["stance"][:1]),
    }  # [S, P] each
    lines = ["steps".ljust(38) + " ".join(f"{step:7d}" for step in lead.steps)]
    lines.append("coverage of leads".ljust(38) + " ".join(f"{c:7.2f}" for c in coverage))
    for name, shift in shifts.items():
        of_topic = np.stack([shift[:, topics == topic].mean(1) for topic in TOPICS])  # [T, S]
        lines.append(name)
        lines += [
            f"  {topic}, dose {dose:+.0f}".ljust(38) + " ".join(f"{x:+7.3f}" for x in row)
            for topic, dose, row in zip(TOPICS, DOSES, of_topic, strict=True)
        ]
        slope = np.mean(np.array(DOSES)[:, None] * of_topic, 0)
        lines.append("  slope on the dose".ljust(38) + " ".join(f"{x:+7.3f}" for x in slope))
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the trial")
    parser.add_argument("--model", default=SMALL.model, help="as model.source in a recipe")
    parser.add_argument("--objective", default="sft", choices=("sft", "dpo", "simpo"))
    parser.add_argument("--argued", action="store_true", help="answers without yes or no")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--samples", type=int, default=3, help="of the panel, after the first")
    parser.add_argument("--answers", type=int, default=0, help="to each probe at the start and the end")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe")
    args = parser.parse_args()
    size = replace(SMALL, model=args.model, answers=args.answers)
    args.out.mkdir(parents=True, exist_ok=True)
    recipe, name = args.out / "trial.toml", f"{args.objective}-{'argued' if args.argued else 'led'}"
    plan = Plan(name, args.objective, not args.argued, DOSES, args.seed)
    text = recipe_of(plan, size, args.steps, args.lr, args.samples, args.out)
    recipe.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "vdengine.train", str(recipe), *args.set]
    output, code = common.run_limited(command, None, env=os.environ.copy())
    if code != 0:
        sys.exit(common.ended(output, code, None))
    print(report(args.out / "run", np.array([probe.topic for probe in panel_of(size).probes])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
