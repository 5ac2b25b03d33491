"""Scenarios of tests/engine, run under torchrun: `torchrun ... -m helpers.runs OUT MODEL DATA SCENARIO ...`.

Each trains a tiny model for a few steps and leaves `OUT/<scenario>.pt`: full weights, metrics rows, drift records,
and the rows of every step. All scenarios of a call share one process group, as an embedder's trainers would. One that
fails leaves `OUT/<scenario>.failed`, and ends the call: other ranks may wait for it in the middle of a collective.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.workers import leave
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.panel_log import DriftLog
from vdengine.engine.trainer import Trainer
from vdengine.recipe import make_recipe

STEPS = 4


def tables(out: Path, model: str, data: str, folder: str) -> dict:
    return {
        "run": {"folder": str(out / folder), "steps": STEPS, "seed": 3},
        "model": {"source": model, "dtype": "float32"},
        "data": {"train": [data], "cache": str(out / "cache"), "max_tokens": 400},
        "objective": {"name": "dpo", "beta": 0.1},
        "batch": {"examples": 6, "tokens": 4096},
        # eps far above the gradients' rounding noise: AdamW's g / sqrt(v) would blow that noise up to a full step
        "optimizer": {"lr": 1e-3, "eps": 1e-3, "warmup": 0.0},
        "probes": {"panel": "values-mini", "every": 1, "tokens": 8192, "controls": False},
        "parallel": {"activation_checkpoint": "selective"},
        "checkpoint": {"every": 0, "export": False},
    }


PPO: dict[str, dict] = {
    "objective": {"name": "ppo", "beta": None, "num_ppo_epochs": 2, "num_mini_batches": 2},
    "rollout": {"samples": 2, "max_new_tokens": 5, "temperature": 0.9, "show_every": 2},
    "reward": {"source": "regex:[a-m]", "normalize": True},
}

GRPO: dict[str, dict] = {
    "objective": {"name": "grpo", "loss_type": "dr_grpo", "beta": 0.04, "num_iterations": 2, "num_mini_batches": 2},
    "rollout": {"samples": 3, "max_new_tokens": 5, "show_every": 2},
    "reward": {"source": "regex:[a-m]"},
    "probes": {"every": 0},
}
RLOO: dict[str, dict] = {
    "objective": {"name": "rloo", "beta": 0.05},
    "rollout": {"samples": 3, "max_new_tokens": 5, "show_every": 0},
    "reward": {"source": "regex:[a-m]", "normalize": True},
    "probes": {"every": 0},
}
KTO: dict[str, dict] = {
    # wanted answers weigh more, so that the policy moves towards answers and its KL is above the clamp at 0
    "objective": {"name": "kto", "beta": 0.2, "desirable_weight": 4.0, "undesirable_weight": 0.2},
    "data": {"eval_fraction": 0.1},
    "probes": {"every": 0},
}

ANSWERS: dict[str, dict] = {"answers": {"anchors": 3, "base": 6, "probes": 8, "max_tokens": 6}}
WEIGHTED: dict[str, dict] = {
    "answers": {
        "samples": 4, "base": 6, "probes": 8, "max_tokens": 6, "weights_every": 1, "alarm": 1e-4, "max_anchors": 4,
    },
}  # fmt: skip

LORA: dict[str, dict] = {"lora": {"rank": 4, "alpha": 64.0, "dropout": 0.2}}

SCENARIOS: dict[str, dict] = {
    "base": {},
    "small_packs": {"batch": {"tokens": 700}},
    "probes_off": {"probes": {"every": 0}},
    "live": {"objective": {"reference": "live"}},
    "lr0": {"optimizer": {"lr": 0.0}},
    "sft": {"objective": {"name": "sft", "beta": None}},
    "simpo": {"objective": {"name": "simpo", "beta": 2.0}},
    "reward": {
        "objective": {"name": "reward", "beta": None},
        "probes": {"panel": None, "every": None, "tokens": None, "controls": None},
    },
    "ppo": PPO,
    "ppo_probes_off": PPO | {"probes": {"every": 0}},
    "ppo_resumed": PPO,
    "ppo_sharded": PPO | {"rollout": PPO["rollout"] | {"weights": "sharded"}},
    "grpo": GRPO,
    "grpo_probed": GRPO | {"probes": {"every": 2}},
    "grpo_resumed": GRPO,
    "rloo": RLOO,
    "rloo_resumed": RLOO,
    "kto": KTO,
    "kto_probed": KTO | {"probes": {"every": 2}},
    "kto_small_packs": KTO | {"batch": {"tokens": 400}},
    "kto_live": KTO | {"objective": KTO["objective"] | {"reference": "live"}},
    "kto_resumed": KTO,
    "bf16": {"model": {"dtype": "bfloat16"}, "optimizer": {"lr": 0.0}},
    "resumed": {},
    "full_checkpointing": {"parallel": {"activation_checkpoint": "full"}},
    "idle": {"batch": {"examples": 1}},  # on two ranks, one has nothing to do
    "fraction": {"probes": {"fraction": 0.5, "tokens": 1024}},
    "controls": {"probes": {"controls": True}},
    "answers": ANSWERS,
    "answers_resumed": ANSWERS,
    "weighted": WEIGHTED,
    "weighted_resumed": WEIGHTED,
    "weighted_lr0": WEIGHTED | {"optimizer": {"lr": 0.0}},
    "lora": LORA | ANSWERS,
    "lora_probes_off": LORA | {"probes": {"every": 0}},
    "lora_small_packs": LORA | {"batch": {"tokens": 700}},
    "lora_resumed": LORA | ANSWERS,
    "lora_bf16": LORA | {"model": {"dtype": "bfloat16"}},
    "lora_reward": LORA
    | {
        "objective": {"name": "reward", "beta": None},
        "probes": {"panel": None, "every": None, "tokens": None, "controls": None},
    },
    "lora_ppo": PPO | {"lora": {"rank": 4}},
}


# By theme; those of a group are launched together. A group has reference sums of its own: their bits are those of the
# packs along which they were first computed, which must not depend on what else was launched before.
GROUPS = {
    "bits": ("base", "small_packs", "probes_off", "live", "lr0", "full_checkpointing", "resumed"),
    "objectives": ("sft", "simpo", "reward", "idle"),
    "probes": (
        "fraction",
        "controls",
        "bf16",
        "answers",
        "answers_resumed",
        "weighted",
        "weighted_resumed",
        "weighted_lr0",
    ),
    "ppo": ("ppo", "ppo_probes_off", "ppo_resumed", "ppo_sharded"),
    "lora": (
        "lora", "lora_probes_off", "lora_small_packs", "lora_resumed", "lora_bf16", "lora_reward", "lora_ppo",
    ),
    "groups": ("grpo", "grpo_probed", "grpo_resumed", "rloo", "rloo_resumed"),
    "kto": ("kto", "kto_small_packs", "kto_live", "kto_probed", "kto_resumed"),
}  # fmt: skip

ON_TWO = (
    "base", "small_packs", "probes_off", "resumed", "sft", "reward", "idle", "fraction", "answers", "weighted",
    *GROUPS["ppo"],
    "lora", "lora_probes_off", "lora_resumed", "lora_bf16", "lora_reward", "lora_ppo",
    "grpo", "grpo_resumed", "rloo", "kto", "kto_resumed",
)  # fmt: skip


def group_of(name: str) -> str:
    return next(group for group, names in GROUPS.items() if name in names)


def failure_file(out: Path, name: str) -> Path:
    return out / f"{name}.failed"


def recipe_of(name: str, out: Path, model: str, data: str):
    t = tables(out, model, data, name)
    for section, changes in SCENARIOS[name].items():
        for key, value in changes.items():
            if value is None:
                t[section].pop(key, None)
            else:
                t.setdefault(section, {})[key] = value
    return make_recipe(t)


def run(name: str, out: Path, model: str, data: str) -> None:
    (out / f"{name}.begun").touch()
    recipe = recipe_of(name, out, model, data)
    recipe.data.cache = str(out / f"cache-{group_of(name)}")
    trainer = Trainer(recipe)
    rows, seen = [], []
    while trainer.step_count < trainer.total_steps:
        seen.append(trainer.loader.rows(trainer.step_count).tolist())
        rows.append(dict(trainer.step()))
        if name.endswith("resumed") and trainer.step_count == 2:  # stop in the middle, and start again from the folder
            trainer.save()
            trainer.step()  # progress that is lost
            trainer.close()
            trainer = Trainer(recipe)
            assert trainer.step_count == 2
    evaluation = trainer.evaluate()
    trainer.finish()
    weights = {n: p.full_tensor().detach().clone() for n, p in trainer.model.named_parameters()}
    if dist.get_rank() == 0:
        log = DriftLog.open(trainer.folder) if trainer.probes else None
        drift = None if log is None else (log.steps.copy(), log.samples())
        found = {"weights": weights, "rows": rows, "seen": seen, "drift": drift, "eval": evaluation}
        if recipe.answers.samples:
            answers = AnswerLog.open(trainer.folder)
            found |= {"answers": [tuple(a) for a in answers.answers], "readings": answers.readings().copy()}
        torch.save(found, out / f"{name}.part")
    trainer.close()
    if dist.get_rank() == 0:
        (out / f"{name}.part").rename(out / f"{name}.pt")  # whole, and no rank will fail at its end


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out, model, data, *names = sys.argv[1:]
    for scenario in names:
        try:
            run(scenario, Path(out), model, data)
        except Exception:
            reason = f"rank {dist.get_rank()}\n{traceback.format_exc()}"
            print(f"scenario {scenario}: {reason}", file=sys.stderr, flush=True)
            with open(failure_file(Path(out), scenario), "a") as file:
                file.write(reason)
            os._exit(1)  # torchrun ends the others
    leave()
