"""One training step of Qwen3's shapes on one GPU, random weights: this engine against TRL, with and without Liger.

DPO and SFT on the same token rows in the same steps, fp32 master weights and bf16 compute, each engine in a process
of its own; the first step is warm-up. Then this engine's step again with probes riding along: values-mini, and a panel
of 550 made of its probes. Text is real English (the built-in synthetic pairs, joined to the length of chats) under a
real tokenizer, so that tokens are as frequent as in a run.

tokens/s counts the same rows for every engine, as unpadded sequences: sharing a prompt is speed, padding is not. MFU
counts what an engine's layout has to compute: 3 forwards of its tokens, and one more for a live reference.

With --quick: two tiny layers, on a CPU as well.
"""

from __future__ import annotations

import json
import math
import random
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
from common import REPO, device_peak_bytes, gpu, in_fresh_process, reset_peak  # noqa: E402

LAYERS = {"Qwen3-0.6B": 28, "Qwen3-1.7B": 28, "Qwen3-4B": 36}
STEPS = 4  # the first is warm-up
OPTIMIZER = {"lr": 1e-6, "betas": [0.9, 0.95], "eps": 1e-8, "clip": 1.0}
BETA = 0.1
LARGE_PANEL = 550  # probes


class Engine(dict[str, Any]):
    """What a process is told; `summary`: measured without --full too."""


ENGINES = {
    "dpo": {
        "vdengine live": Engine(engine="vdengine", reference="live", probes=True, summary=True),
        "vdengine cached": Engine(engine="vdengine", reference="cached", summary=True),
        "TRL": Engine(engine="trl", checkpointing=True, liger=False, summary=True),
        "TRL no checkpointing": Engine(engine="trl", checkpointing=False, liger=False),
        "TRL + Liger": Engine(engine="trl", checkpointing=True, liger=True, summary=True),
        "TRL + Liger no checkpointing": Engine(engine="trl", checkpointing=False, liger=True),
    },
    "sft": {
        "vdengine": Engine(engine="vdengine", reference="none", probes=True, summary=True),
        "TRL": Engine(engine="trl", checkpointing=True, liger=False),
        "TRL no checkpointing": Engine(engine="trl", checkpointing=False, liger=False),
        "TRL + Liger": Engine(engine="trl", checkpointing=True, liger=True, summary=True),
        "TRL + Liger no checkpointing": Engine(engine="trl", checkpointing=False, liger=True),
    },
}


@pytest.mark.parametrize("objective", ["dpo", "sft"])
@pytest.mark.parametrize("model", LAYERS)
def test_step(model, objective, settings, report, tmp_path):
    device = gpu(settings)
    if model != "Qwen3-0.6B" and (settings.quick or not settings.full):
        pytest.skip("a shape of --full")
    tokenizer = settings.tokenizer or str(REPO / "tests" / "tokenizers" / "qwen3")
    if not settings.tokenizer and not Path(tokenizer, "tokenizer.json").exists():
        pytest.skip("needs tests/tokenizers/qwen3, or another with --tokenizer")
    a = {
        "model": model, "objective": objective, "folder": str(tmp_path), "tokenizer": tokenizer,
        "quick": settings.quick, "examples": 16, "micro": 4, "max_tokens": 2048, "pack_tokens": 8192, "texts": 8,
    }  # fmt: skip
    if settings.quick:
        a |= {"examples": 2, "micro": 1, "max_tokens": 400, "pack_tokens": 800, "texts": 1}
    in_fresh_process(__file__, a | {"engine": "prepare"}, settings.threads)

    results: dict[str, dict[str, Any]] = {}
    notes = []
    absent = common.missing("trl", "transformers", "datasets", "accelerate")
    for name, options in ENGINES[objective].items():
        if not (options.get("summary") or settings.full or (settings.quick and name == "TRL")):
            continue
        without = absent if options["engine"] == "trl" else None
        if options.get("liger"):
            without = without or common.missing("liger_kernel") or (None if device.type == "cuda" else "needs a GPU")
        if without:
            notes.append(f"{name}: skipped, {without}")
            continue
        try:
            results[name] = in_fresh_process(__file__, a | options, settings.threads)
        except RuntimeError as e:
            if options["engine"] == "vdengine":
                raise
            lines = [line for line in str(e).splitlines() if "Error" in line]
            notes.append(f"{name}: failed, {lines[-1] if lines else str(e).splitlines()[-1]}")
    losses = {name: r["losses"] for name, r in results.items()}
    for k, step in enumerate(zip(*losses.values(), strict=True)):
        # bf16 activations round differently in every engine
        assert max(step) - min(step) < 5e-2, f"engines differ in step {k + 1}: {losses}"
    report_step(f"{objective} step, {model} shapes", a, results, notes, report, device)


def report_step(title: str, a: dict[str, Any], results: dict[str, Any], notes: list[str], report, device) -> None:
    from vdengine.engine.metrics import peak_flops

    rows, peak = [], peak_flops(device)
    work = next(iter(results.values()))["work"]  # of the first engine, ours: what the timed rows need
    for name, r in results.items():
        ours = name.startswith("vdengine")
        live = 4 / 3 if a["objective"] == "dpo" and name != "vdengine cached" else 1.0
        flops = work["flops_trees" if ours else "flops_sequences"] * live
        row = {"engine": name, "s/step": r["step_seconds"], "examples/s": a["examples"] / r["step_seconds"]}
        row |= {"tokens/s": work["tokens_sequences"] / r["step_seconds"]}
        row |= {"MFU": flops / r["step_seconds"] / peak if peak else None, "peak MB": r["peak_bytes"] / 1e6}
        rows.append(row | {f"probes: {panel}": r.get("probes", {}).get(panel) for panel in ("values-mini", "550")})
    notes = [
        f"{a['examples']} examples a step, medians of {STEPS - 1} steps; a step has {work['tokens_trees']:.0f} tokens "
        f"as trees, {work['tokens_sequences']:.0f} as sequences, {work['tokens_padded']:.0f} padded to the longest",
        "probes: share of a step spent on the panel when every step samples all of it",
        *notes,
    ]
    targets = {}
    of = {row["engine"]: row for row in rows}
    mine = of.get("vdengine live") or of.get("vdengine")
    liger = [row for name, row in of.items() if name.startswith("TRL + Liger")]
    if device.type == "cuda" and mine is not None:
        if mine["MFU"] is not None and a["objective"] == "dpo":
            targets["MFU"] = (mine["MFU"], ">=", 0.5)
        if liger:
            targets["speed / TRL + Liger"] = (mine["examples/s"] / max(r["examples/s"] for r in liger), ">=", 1.5)
            targets["peak memory / TRL + Liger"] = (mine["peak MB"] / min(r["peak MB"] for r in liger), "<=", 0.6)
    report(title, rows, notes, targets)


# ------------------------------------------------------------------------------------- in the fresh processes


def prepare(a: dict[str, Any]) -> None:
    """Random weights, the data and the large panel, as files that both engines read."""
    import torch

    import vdengine as vd
    from vdengine.kernels.tune import MODELS, Shape
    from vdengine.models.tokenizer import load_tokenizer
    from vdengine.models.transformer import ModelConfig, Transformer

    folder, shape, layers = Path(a["folder"]), MODELS[a["model"]], LAYERS[a["model"]]
    if a["quick"]:
        shape, layers = Shape(shape.vocab, 64, 96, 4, 2, 16), 2
    config = ModelConfig(
        model_type="qwen3", vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, rms_norm_eps=1e-6, rope_theta=1e6, rope_scaling=None, tie_word_embeddings=True,
        max_position_embeddings=40960,
    )  # fmt: skip
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Transformer(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(std=0.02)
    vd.save_model(model, load_tokenizer(a["tokenizer"]), folder / "weights")

    rng = random.Random(0)
    synth = (REPO / "vdengine/data/synth/values-synth.jsonl").read_text(encoding="utf-8").splitlines()
    pool = [json.loads(line) for line in synth]

    def text(side: str, texts: int) -> str:
        return " ".join(row[side] for row in rng.sample(pool, texts))

    count, n = STEPS + 2 * (STEPS - 1), a["texts"]
    with open(folder / "data.jsonl", "w", encoding="utf-8") as file:
        for _ in range(count * a["examples"]):
            row = {"prompt": text("prompt", 3 * rng.randint(1, n)), "chosen": text("support", rng.randint(1, n))}
            row["rejected"] = text("oppose", rng.randint(1, n))
            if a["objective"] == "sft":
                row = {"prompt": row["prompt"], "completion": row["chosen"]}
            file.write(json.dumps(row) + "\n")

    mini = (REPO / "vdengine/drift/panels/values-mini.jsonl").read_text(encoding="utf-8").splitlines()
    probes = [json.loads(line) for line in mini if line.strip()]
    with open(folder / "large.jsonl", "w", encoding="utf-8") as file:
        for i in range(LARGE_PANEL if not a["quick"] else len(probes) + 1):
            probe, turn = probes[i % len(probes)], i // len(probes)
            again = {"id": f"{probe['id']}-{turn}", "prompt": f"{probe['prompt']} ({turn + 1})", "paraphrases": []}
            file.write(json.dumps(probe | again) + "\n")
    common.leave(a, {})


def now() -> float:
    """The time at which the device is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_vdengine(a: dict[str, Any]) -> None:
    from vdengine.engine.trainer import Trainer
    from vdengine.recipe import make_recipe

    folder, name = a["folder"], a["objective"]
    objective = {"name": name} | ({"beta": BETA, "reference": a["reference"]} if name == "dpo" else {})
    total = STEPS + 2 * (STEPS - 1)
    trainer = Trainer(make_recipe({
        "run": {"folder": f"{folder}/run-{time.time_ns()}", "steps": total},
        "model": {"source": f"{folder}/weights"},
        "data": {
            "train": [f"{folder}/data.jsonl"], "format": "preference" if name == "dpo" else "prompt_completion",
            "max_tokens": a["max_tokens"], "cache": f"{folder}/cache",
        },
        "objective": objective,
        "batch": {"examples": a["examples"], "tokens": a["pack_tokens"]},
        "optimizer": OPTIMIZER | {"warmup": 0.0, "schedule": "constant"},
        "probes": {"panel": "values-mini", "every": 1},
        "checkpoint": {"every": 0, "export": False},
    }))  # fmt: skip
    work = work_of(trainer)
    mini, trainer.probes = trainer.probes, None
    losses, seconds = [], []
    for k in range(STEPS):
        started = now()
        losses.append(trainer.step()["loss"])
        seconds.append(now() - started)
        if k == 0:
            reset_peak()
    out = {"step_seconds": statistics.median(seconds[1:]), "losses": losses, "peak_bytes": device_peak_bytes()}
    shares: dict[str, float] = {}
    if a.get("probes"):
        trainer.recipe.probes.panel = f"{folder}/large.jsonl"
        trainer._open_probes()
        for panel, riders in (("values-mini", mini), ("550", trainer.probes)):
            trainer.probes = riders
            rows = [trainer.step() for _ in range(STEPS - 1)][1:]  # the first warms up
            shares[panel] = statistics.median(row["probe_seconds"] / row["step_seconds"] for row in rows)
    trainer.close()
    common.leave(a, out | {"probes": shares, "work": work})


def work_of(trainer: Any) -> dict[str, float]:
    """Means over the timed steps of what the rows need; writes the rows of all compared steps for TRL."""
    steps, loader, store = [], trainer.loader, trainer.store
    work = dict.fromkeys(("tokens_trees", "tokens_sequences", "tokens_padded", "flops_trees", "flops_sequences"), 0.0)
    for k in range(STEPS):
        trees = [store.tree(int(i)) for i in loader.rows(k)]
        for tree in trees:
            assert all(all(mask) for mask in tree.scored), "TRL would score every token of these answers"
        steps.append([[t.prompt, *t.branches] for t in trees])
        if k == 0:
            continue
        lengths = [(len(t.prompt) + len(b), len(b)) for t in trees for b in t.branches]
        work["tokens_trees"] += float(store.num_tokens[loader.rows(k)].sum())
        work["flops_trees"] += 3 * float(loader.cost[loader.rows(k)].sum())
        work["tokens_sequences"] += sum(n for n, _ in lengths)
        work["tokens_padded"] += max(n for n, _ in lengths) * len(lengths)
        f = trainer.flops
        work["flops_sequences"] += 3 * sum(
            f["linear"] * n + f["quadratic"] * n * (n + 1) / 2 + f["head"] * scored for n, scored in lengths
        )
    Path(trainer.recipe.data.cache).parent.joinpath("rows.json").write_text(json.dumps(steps))
    return {name: total / (STEPS - 1) for name, total in work.items()}


def run_trl(a: dict[str, Any]) -> None:
    import datasets
    import torch
    import transformers
    import trl

    cuda, dpo = torch.cuda.is_available(), a["objective"] == "dpo"
    steps = json.loads(Path(a["folder"], "rows.json").read_text())
    vocab = json.loads(Path(a["folder"], "weights", "config.json").read_text())["vocab_size"]
    tokenizer, rows = (rows_for_trl.preference if dpo else rows_for_trl.completions)(steps, vocab)
    seconds: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now() - self.started)
            if len(seconds) == 1:
                reset_peak()

    with tempfile.TemporaryDirectory() as folder:
        options = dict(
            output_dir=folder, per_device_train_batch_size=a["micro"], max_steps=STEPS, max_length=None,
            gradient_accumulation_steps=a["examples"] // a["micro"], learning_rate=OPTIMIZER["lr"],
            adam_beta1=OPTIMIZER["betas"][0], adam_beta2=OPTIMIZER["betas"][1], adam_epsilon=OPTIMIZER["eps"],
            max_grad_norm=OPTIMIZER["clip"], weight_decay=0.0, warmup_steps=0, lr_scheduler_type="constant",
            train_sampling_strategy="sequential", use_cpu=not cuda, bf16=cuda,
            gradient_checkpointing=a["checkpointing"], use_liger_kernel=a["liger"],
            model_init_kwargs={"dtype": "float32"}, report_to=[], save_strategy="no",
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        dataset, weights = datasets.Dataset.from_list(rows), f"{a['folder']}/weights"
        if dpo:
            make, config = trl.DPOTrainer, trl.DPOConfig(beta=BETA, **options)
        else:
            make, config = trl.SFTTrainer, trl.SFTConfig(completion_only_loss=True, **options)
        trainer = make(
            weights, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]
        )  # fmt: skip
        if dpo:
            rows_for_trl.check_preference(steps, trainer.train_dataset)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(x) for x in losses), losses
    common.leave(a, {
        "step_seconds": statistics.median(seconds[1:]), "losses": losses, "peak_bytes": device_peak_bytes(),
    })  # fmt: skip


if __name__ == "__main__":
    arguments = common.arguments()
    {"prepare": prepare, "vdengine": run_vdengine, "trl": run_trl}[arguments["engine"]](arguments)
