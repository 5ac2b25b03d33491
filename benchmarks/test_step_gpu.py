"""One training step of Qwen3's shapes on one GPU, random weights: this engine against TRL, with and without Liger.

DPO and SFT on the same token rows in the same steps, fp32 master weights and bf16 compute, each engine in a process
of its own; the first step is warm-up. Then this engine's step again with probes riding along: values-mini, and a panel
of 550 made of its probes. Text is real English (the built-in synthetic pairs, joined to the length of chats) under a
real tokenizer, so that tokens are as frequent as in a run.

tokens/s counts the same rows for every engine, as unpadded sequences: sharing a prompt is speed, padding is not. MFU
counts what an engine's layout has to compute: 3 forwards of its tokens, and one more for a live reference.

"MFU predicted" is what a device that never waits for its host should reach (`predict.py`), from rates measured here. A
profile of two steps says whether it waits. Memory is stated above the floor that no engine can do without: weights,
gradients and two moments in fp32, and a live reference's weights in bf16.

What probes add is measured beside the batch of this benchmark, and stated for 128 pairs a step too: a panel costs what
it costs, whatever the batch.

With --quick: two tiny layers, on a CPU as well. Every engine's row is reported as soon as it is known.
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
import predict  # noqa: E402
import rows_for_trl  # noqa: E402
from common import REPO, device_peak_bytes, gpu, in_fresh_process, reset_peak  # noqa: E402

LAYERS = {"Qwen3-0.6B": 28, "Qwen3-1.7B": 28, "Qwen3-4B": 36}
STEPS = 4  # the first is warm-up
OPTIMIZER = {"lr": 1e-6, "betas": [0.9, 0.95], "eps": 1e-8, "clip": 1.0}
BETA = 0.1
LARGE_PANEL = 550  # probes
REAL_BATCH, REAL_EVERY = 128, 10  # pairs a step and steps between samples, for which the cost of probes is stated


class Engine(dict[str, Any]):
    """What a process is told. `summary`: measured without --full too."""


def ours(reference: str, pack_tokens: int = 8192, checkpoint: str = "selective", **more: Any) -> Engine:
    return Engine(engine="vdengine", reference=reference, pack_tokens=pack_tokens, checkpoint=checkpoint, **more)


def trl(checkpointing: bool, liger: bool, **more: Any) -> Engine:
    return Engine(engine="trl", checkpointing=checkpointing, liger=liger, **more)


ENGINES = {
    "dpo": {
        "vdengine cached": ours("cached", summary=True, profile=True, probes=True),
        "vdengine live": ours("live", summary=True),
        "vdengine cached (packs of 16384)": ours("cached", 16384, summary=True),
        "vdengine cached (no checkpointing)": ours("cached", 8192, "none", summary=True),
        "vdengine live (packs of 16384; no checkpointing)": ours("live", 16384, "none", summary=True),
        "vdengine cached (packs of 4096)": ours("cached", 4096),
        "TRL + Liger": trl(True, True, summary=True),
        "TRL": trl(True, False, summary=True),
        "TRL + Liger no checkpointing": trl(False, True),
        "TRL no checkpointing": trl(False, False),
    },
    "sft": {
        "vdengine": ours("none", summary=True, probes=True),
        "TRL + Liger": trl(True, True, summary=True),
        "TRL": trl(True, False),
        "TRL + Liger no checkpointing": trl(False, True),
        "TRL no checkpointing": trl(False, False),
    },
}


@pytest.mark.parametrize("objective", ["dpo", "sft"])
@pytest.mark.parametrize("model", LAYERS)
def test_step(model, objective, settings, report, tmp_path):
    device = gpu(settings)
    if settings.quick and model == "Qwen3-1.7B":
        pytest.skip("--quick runs two shapes")
    if model != "Qwen3-0.6B" and not (settings.quick or settings.full or settings.engines):
        pytest.skip("a shape of --full")
    tokenizer = settings.tokenizer or (None if settings.quick else str(REPO / "tests" / "tokenizers" / "qwen3"))
    if tokenizer and not settings.tokenizer and not Path(tokenizer, "tokenizer.json").exists():
        pytest.skip("needs tests/tokenizers/qwen3, or another with --tokenizer")
    folder = tmp_path if settings.work is None else Path(settings.work) / f"{model}-{objective}"
    a = {
        "model": model, "objective": objective, "folder": str(folder), "tokenizer": tokenizer,
        "quick": settings.quick, "examples": 16, "micro": 4, "max_tokens": 2048, "texts": 8,
    }  # fmt: skip
    if settings.quick:
        a |= {"examples": 2, "micro": 1, "texts": 1}
    chosen = settings.engines.split(",") if settings.engines else None
    if unknown := [name for name in chosen or [] if name not in ENGINES[objective]]:
        pytest.fail(f"--engines: unknown {unknown[0]!r}; allowed: {', '.join(ENGINES[objective])}", pytrace=False)
    if not (folder / "prepared.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = in_fresh_process(__file__, a | {"engine": "prepare"}, settings.threads, settings.limit)
        (folder / "prepared.json").write_text(json.dumps(found))
    prepared = json.loads((folder / "prepared.json").read_text())

    step = Step(f"{objective} step, {model} shapes", a, prepared, report, device)
    absent = common.missing("trl", "transformers", "datasets", "accelerate")
    failed = []
    for name, options in ENGINES[objective].items():
        wanted = (
            name in chosen
            if chosen
            else (options.get("summary") or settings.full)
            and not (settings.quick and ("(" in name or options.get("liger")))
        )
        if not wanted:
            continue
        without = None
        if options["engine"] == "trl":
            rows = None if (folder / "rows.json").exists() else "needs the rows of an engine of ours: run one first"
            without = absent or rows
        if options.get("liger"):
            without = without or common.missing("liger_kernel") or (None if device.type == "cuda" else "needs a GPU")
        if without:
            step.note(f"{name}: skipped, {without}")
            continue
        if settings.quick and options["engine"] == "vdengine":
            options = options | {"pack_tokens": 2500}
        try:
            step.add(name, in_fresh_process(__file__, a | options, settings.threads, settings.limit))
        except common.Failed as e:
            step.note(f"{name}: {e.reason}")
            if options["engine"] == "vdengine":
                failed.append(str(e))
    step.targets()
    failed += step.different
    assert not failed, "\n".join(failed)


class Step:
    """The table of one model and objective, row by row. Results stay in its folder: a later call compares with them."""

    def __init__(self, title: str, a: dict[str, Any], prepared: dict[str, Any], report: Any, device: Any) -> None:
        self.title, self.a, self.prepared, self.report = title, a, prepared, report
        self.device, self.peak = device, prepared["peak_flops"]
        self.different: list[str] = []  # engines whose losses part: who is fast on other rows is not fast
        self.file = Path(a["folder"], "results.json")
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.table = report.table(title)

    def note(self, text: str) -> None:
        self.table.note(text)

    def add(self, name: str, r: dict[str, Any]) -> None:
        row = self.row(name, r)
        self.rows[name] = row
        self.table.row(row)
        self.results[name] = r
        self.file.write_text(json.dumps(self.results))
        for other, found in self.results.items():
            for k, (x, y) in enumerate(zip(found["losses"], r["losses"], strict=True)):
                if abs(x - y) >= 5e-2:  # bf16 activations round differently in every engine
                    text = f"{name} and {other} differ in step {k + 1}: {r['losses']}, {found['losses']}"
                    self.different.append(text)
                    self.note(text)
                    break
        if common.CUT in r:
            self.note(f"{name}: {r[common.CUT]}; what is shown was known before")
        if profile := r.get("profile"):
            self.profile(name, profile)
        if probes := r.get("probes"):
            self.probes(name, r["step_seconds"], probes)

    def row(self, name: str, r: dict[str, Any]) -> dict[str, Any]:
        a, mine = self.a, "work" in r
        work = r["work"] if mine else next((x["work"] for x in self.results.values() if "work" in x), None)
        live = name.startswith("TRL") or "live" in name
        floor = self.prepared["parameters"] * (18 if live and a["objective"] == "dpo" else 16)
        row: dict[str, Any] = {
            "engine": name, "s/step": r["step_seconds"], "examples/s": a["examples"] / r["step_seconds"],
            "tokens/s": work["tokens_sequences"] / r["step_seconds"] if work else None, "MFU": None,
            "MFU predicted": None,
        }  # fmt: skip
        if work and self.peak:
            flops = work["flops_trees" if mine else "flops_sequences"] * (
                4 / 3 if live and a["objective"] == "dpo" else 1
            )
            row["MFU"] = flops / r["step_seconds"] / self.peak
            if mine:
                seconds = predict.device_seconds(
                    predict.Work(live=live, **work["step"], **self.prepared["shape"]),
                    predict.Rates(**self.prepared["rates"]),
                )["total"]
                row["MFU predicted"] = flops / seconds / self.peak
        peak = r["peak_bytes"]
        return row | {"peak MB": peak / 1e6, "floor MB": floor / 1e6, "above floor MB": (peak - floor) / 1e6}

    def profile(self, name: str, p: dict[str, Any]) -> None:
        table = self.report.table(f"profile of two steps, {name}, {self.title}")
        for row in p["dearest"]:
            table.row(row)
        table.note(p["summary"])

    def probes(self, name: str, step_seconds: float, seconds: dict[str, float]) -> None:
        table = self.report.table(f"probes, {name}, {self.title}")
        examples = self.a["examples"]
        scaled = step_seconds * REAL_BATCH / examples
        for panel, s in seconds.items():
            share = s / REAL_EVERY / (scaled + s / REAL_EVERY)
            table.row({
                "panel": panel, "s a sample": s, f"share of a step of {examples}, every step": s / (step_seconds + s),
                f"share of a step of {REAL_BATCH}, every {REAL_EVERY} steps": share,
            })  # fmt: skip
        table.note(
            f"the last column is arithmetic: the measured sample beside {REAL_BATCH / examples:g} measured steps"
        )
        if self.device.type == "cuda" and self.a["objective"] == "dpo":
            what = f"550 probes every {REAL_EVERY} steps of {REAL_BATCH} pairs, share of the time"
            table.target(what, share, "<=", 0.02)

    def targets(self) -> None:
        work = next((r["work"] for r in self.results.values() if "work" in r), None)
        if work:
            self.note(
                f"{self.a['examples']} examples a step, medians of {STEPS - 1} steps; a step has "
                f"{work['tokens_trees']:.0f} tokens as trees, {work['tokens_sequences']:.0f} as sequences, "
                f"{work['tokens_padded']:.0f} padded to the longest"
            )
        if self.device.type != "cuda":
            return
        of = {name: self.row(name, r) for name, r in self.results.items()}
        first = "vdengine" if self.a["objective"] == "sft" else "vdengine live"
        if mine := of.get(first):
            if mine["MFU predicted"] and first in self.rows:
                ratio = mine["MFU"] / mine["MFU predicted"]
                self.table.target(f"{first}: MFU / predicted for a device that never waits", ratio, ">=", 0.8)
            liger = [row for name, row in of.items() if name.startswith("TRL + Liger")]
            if liger and any(name.startswith("TRL + Liger") for name in self.rows):
                speed = mine["examples/s"] / max(row["examples/s"] for row in liger)
                memory = mine["above floor MB"] / min(row["above floor MB"] for row in liger)
                self.table.target(f"{first}: speed / TRL + Liger", speed, ">=", 1.3)
                self.table.target(f"{first}: memory above the floor / TRL + Liger", memory, "<=", 0.5)


# ------------------------------------------------------------------------------------- in the fresh processes


def prepare(a: dict[str, Any]) -> None:
    """Random weights, the data and the large panel, as files that both engines read."""
    import torch

    import vdengine as vd
    from vdengine.engine.clocks import peak_flops
    from vdengine.kernels.tune import MODELS, Shape
    from vdengine.models.families import ModelConfig
    from vdengine.models.transformer import Transformer
    from vdengine.text.tokenizer import load_tokenizer

    folder, shape, layers = Path(a["folder"]), MODELS[a["model"]], LAYERS[a["model"]]
    if a["quick"]:
        shape, layers = Shape(shape.vocab if a["tokenizer"] else 300, 64, 96, 4, 2, 16), 2
    if not a["tokenizer"]:  # bytes: small, and made here
        sys.path.insert(0, str(REPO / "tests"))
        from tiny import write_tiny_model

        a["tokenizer"] = str(write_tiny_model(folder / "tokenizer", "qwen3"))
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

    count, n = STEPS + 2 * (STEPS - 1) + PROFILED, a["texts"]
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
    del model
    common.leave(a, {
        "parameters": config.num_parameters, "rates": rates(shape, device, a["quick"]),
        "peak_flops": peak_flops(torch.device(device)),
        "shape": {
            "layers": layers, "hidden": shape.hidden, "intermediate": shape.intermediate, "head_dim": shape.head_dim,
            "heads": shape.heads + 2 * shape.kv_heads, "query_heads": shape.heads, "vocab": shape.vocab,
            "parameters": config.num_parameters,
        },
    })  # fmt: skip


def rates(shape: Any, device: str, quick: bool) -> dict[str, float]:
    """FLOP/s of a layer's GEMMs, forward and both gradients, at the rows of a pack, and of the head's; bytes/s of a
    copy. Medians."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = 64 if quick else 4570
    wide = (shape.heads + 2 * shape.kv_heads) * shape.head_dim

    def timed(run: Any) -> float:
        run()
        seconds = []
        for _ in range(2 if quick else 10):
            started = now()
            run()
            seconds.append(now() - started)
        return statistics.median(seconds)

    def gemms(n: int, sizes: list[tuple[int, int]]) -> float:
        made = [tuple(torch.randn(*x, device=device, dtype=dtype) for x in ((n, k), (m, k), (n, m))) for k, m in sizes]

        def run() -> None:
            for x, w, dy in made:
                torch.mm(x, w.t()), torch.mm(dy, w), torch.mm(dy.t(), x)

        return 6 * n * sum(k * m for k, m in sizes) / timed(run)

    h, i = shape.hidden, shape.intermediate
    layer = [(h, wide), (shape.heads * shape.head_dim, h), (h, i), (h, i), (i, h)]
    found = {"gemm": gemms(rows, layer), "head_gemm": gemms(32 if quick else 4096, [(h, shape.vocab)])}
    source = torch.empty(1 << (20 if quick else 30), dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    return found | {"copy": 2 * source.nbytes / timed(lambda: into.copy_(source))}


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
    total = STEPS + 2 * (STEPS - 1) + PROFILED
    trainer = Trainer(make_recipe({
        "run": {"folder": f"{folder}/run-{time.time_ns()}", "steps": total},
        "model": {"source": f"{folder}/weights"},
        "data": {
            "train": [f"{folder}/data.jsonl"], "format": "preference" if name == "dpo" else "prompt_completion",
            "max_tokens": a["max_tokens"], "cache": f"{folder}/cache",
        },
        "objective": objective,
        "batch": {"examples": a["examples"], "tokens": a["pack_tokens"]},
        "parallel": {"activation_checkpoint": a["checkpoint"]},
        "optimizer": OPTIMIZER | {"warmup": 0.0, "schedule": "constant"},
        "probes": {"panel": "values-mini", "every": 1},
        "checkpoint": {"every": 0, "export": False},
    }))  # fmt: skip
    work = work_of(trainer, a["pack_tokens"])
    mini, trainer.probes = trainer.probes, None
    losses, seconds = [], []
    for k in range(STEPS):
        started = now()
        losses.append(trainer.step()["loss"])
        seconds.append(now() - started)
        if k == 0:
            reset_peak()
    out = {"step_seconds": statistics.median(seconds[1:]), "losses": losses, "peak_bytes": device_peak_bytes()}
    out["work"] = work
    common.leave(a, out)  # the figure itself; what follows may fail
    if a.get("profile"):
        out["profile"] = profile(trainer, work["step"]["micro_steps"])
        common.leave(a, out)
    if a.get("probes"):
        found: dict[str, float] = {}
        trainer.recipe.probes.panel = f"{folder}/large.jsonl"
        trainer._open_probes()
        for panel, riders in (("values-mini", mini), ("550", trainer.probes)):
            trainer.probes = riders
            rows = [dict(trainer.step()) for _ in range(STEPS - 1)][1:]  # the first warms up
            found[panel] = statistics.median(row["probe_seconds"] for row in rows)
        out["probes"] = found
    trainer.close()
    common.leave(a, out)


PROFILED = 2


def profile(trainer: Any, micro_steps: int) -> dict[str, Any]:
    """Two steps under torch's profiler: does the device wait for its host, how many launches are there, and which
    kernels take longest? On a CPU the ops stand in for kernels, and nothing waits."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    cuda = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=kinds) as p:
        started = now()
        for _ in range(PROFILED):
            trainer.step()
        wall = now() - started
    on = DeviceType.CUDA if cuda else DeviceType.CPU
    spans: dict[str, list[float]] = {}
    ranges = []
    for e in p.events():
        # annotations (FSDP's) span kernels that are counted by themselves
        if e.device_type != on or e.is_user_annotation or (not cuda and e.cpu_children):
            continue
        spans.setdefault(e.name, []).append(e.time_range.elapsed_us() / 1e6)
        ranges.append((e.time_range.start, e.time_range.end))
    busy, end = 0.0, -math.inf
    for start, stop in sorted(ranges):  # kernels of several streams overlap
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    busy /= 1e6
    launches = sum(map(len, spans.values())) / PROFILED
    layers = len(trainer.model.blocks)
    each = launches / layers / micro_steps
    verdict = f"{'device' if busy > 0.9 * wall else 'host'}-bound: the device works {busy / wall:.0%} of the time"
    dearest = sorted(spans.items(), key=lambda item: -sum(item[1]))[:10]
    return {
        "summary": f"{verdict if cuda else 'a CPU: no device to wait for a host'}; {launches:.0f} launches a step, "
        f"{each:.0f} a layer and micro step; {wall / PROFILED:.3f} s a step under the profiler",
        "dearest": [
            {
                "kernel": name if len(name) <= 70 else name[:67] + "...", "calls a step": len(s) / PROFILED,
                "ms a step": 1e3 * sum(s) / PROFILED, "share of busy": sum(s) / busy,
            }
            for name, s in dearest
        ],
    }  # fmt: skip


def work_of(trainer: Any, pack_tokens: int) -> dict[str, Any]:
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
    batches = [loader.batch(k, 1, 0, pack_tokens) for k in range(1, STEPS)]
    packs = [p for batch in batches for p in batch.packs if p is not None]
    mean = {name: total / (STEPS - 1) for name, total in work.items()}
    step = {
        "tokens": mean["tokens_trees"], "scored": sum(p.num_scored for p in packs) / (STEPS - 1),
        "pairs": sum(p.num_attention_pairs for p in packs) / (STEPS - 1),
        "micro_steps": round(statistics.mean(len(batch.packs) for batch in batches)),
    }  # fmt: skip
    return mean | {"step": step}


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
        more: dict[str, Any] = {}
        if dpo:
            make, config = trl.DPOTrainer, trl.DPOConfig(beta=BETA, **options)
            # in the compute dtype, as ours: by default it would be loaded in fp32, as the policy
            dtype = torch.bfloat16 if cuda else torch.float32
            more["ref_model"] = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=dtype)
        else:
            make, config = trl.SFTTrainer, trl.SFTConfig(completion_only_loss=True, **options)
        trainer = make(
            weights, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()], **more
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
