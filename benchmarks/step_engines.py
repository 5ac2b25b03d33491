"""The engines of `test_step_gpu.py`, each in a process of its own: `python step_engines.py JSON`, as
`common.in_fresh_process` calls it. "prepare" makes the weights, the data and the large panel; "vdengine" and "trl"
train some steps on them.
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

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
import rows_for_trl  # noqa: E402
from common import OPTIMIZER, REPO, device_peak_bytes, reset_peak, trl_optimizer  # noqa: E402

LAYERS = {"Qwen3-0.6B": 28, "Qwen3-1.7B": 28, "Qwen3-4B": 36}
STEPS = 4  # the first is warm-up
PROFILED = 2  # steps under the profiler
BETA = 0.1
LARGE_PANEL = 550  # probes


def prepare(task: dict[str, Any]) -> None:
    """Write random weights, the data and the large panel, which both engines read, and measure the device's rates."""
    import torch

    import vdengine as vd
    from vdengine.engine.clocks import peak_flops
    from vdengine.kernels.tune import MODELS, Shape
    from vdengine.models.families import ModelConfig
    from vdengine.models.transformer import Transformer
    from vdengine.text.tokenizer import load_tokenizer

    folder, shape, layers = Path(task["folder"]), MODELS[task["model"]], LAYERS[task["model"]]
    if task["quick"]:
        shape, layers = Shape(shape.vocab if task["tokenizer"] else 300, 64, 96, 4, 2, 16), 2
    if not task["tokenizer"]:  # a small one over bytes
        sys.path.insert(0, str(REPO / "tests"))
        from helpers.tiny import write_tiny_model

        task["tokenizer"] = str(write_tiny_model(folder / "tokenizer", "qwen3"))
    config = ModelConfig(
        model_type="qwen3",
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=None,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Transformer(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(std=0.02)
    vd.save_model(model, load_tokenizer(task["tokenizer"]), folder / "weights")

    rng = random.Random(0)
    synth = (REPO / "vdengine/data/synth/values-synth.jsonl").read_text(encoding="utf-8").splitlines()
    pool = [json.loads(line) for line in synth]

    def text(side: str, texts: int) -> str:
        return " ".join(row[side] for row in rng.sample(pool, texts))

    count, n = STEPS + 2 * (STEPS - 1) + PROFILED, task["texts"]
    with open(folder / "data.jsonl", "w", encoding="utf-8") as file:
        for _ in range(count * task["examples"]):
            row = {"prompt": text("prompt", 3 * rng.randint(1, n)), "chosen": text("support", rng.randint(1, n))}
            row["rejected"] = text("oppose", rng.randint(1, n))
            if task["objective"] == "sft":
                row = {"prompt": row["prompt"], "completion": row["chosen"]}
            file.write(json.dumps(row) + "\n")

    mini = (REPO / "vdengine/panels/builtin/values-mini.jsonl").read_text(encoding="utf-8").splitlines()
    probes = [json.loads(line) for line in mini if line.strip()]
    with open(folder / "large.jsonl", "w", encoding="utf-8") as file:
        for i in range(LARGE_PANEL if not task["quick"] else len(probes) + 1):
            probe, turn = probes[i % len(probes)], i // len(probes)
            changes = {"id": f"{probe['id']}-{turn}", "prompt": f"{probe['prompt']} ({turn + 1})", "paraphrases": []}
            file.write(json.dumps(probe | changes) + "\n")
    del model
    common.leave(
        task,
        {
            "parameters": config.num_parameters,
            "rates": rates(shape, device, task["quick"]),
            "peak_flops": peak_flops(torch.device(device)),
            "shape": {
                "layers": layers,
                "hidden": shape.hidden,
                "intermediate": shape.intermediate,
                "head_dim": shape.head_dim,
                "heads": shape.heads + 2 * shape.kv_heads,
                "query_heads": shape.heads,
                "vocab": shape.vocab,
                "parameters": config.num_parameters,
            },
        },
    )


def rates(shape: Any, device: str, quick: bool) -> dict[str, float]:
    """The rates of the device, medians: FLOP/s of the GEMMs of a layer with the rows of a pack, forward and both
    gradients, and of those of the head; bytes/s of a copy."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = 64 if quick else 4570
    qkv_width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim

    def timed(run: Any) -> float:
        run()
        seconds = []
        for _ in range(2 if quick else 10):
            started = now()
            run()
            seconds.append(now() - started)
        return statistics.median(seconds)

    def gemms(n: int, sizes: list[tuple[int, int]]) -> float:
        # inputs [n, k], weights [m, k] and upstream gradients [n, m]
        operands = [
            tuple(torch.randn(*x, device=device, dtype=dtype) for x in ((n, k), (m, k), (n, m))) for k, m in sizes
        ]

        def run() -> None:
            for x, w, dy in operands:
                torch.mm(x, w.t()), torch.mm(dy, w), torch.mm(dy.t(), x)

        return 6 * n * sum(k * m for k, m in sizes) / timed(run)

    h, i = shape.hidden, shape.intermediate
    layer = [(h, qkv_width), (shape.heads * shape.head_dim, h), (h, i), (h, i), (i, h)]
    gemm_rates = {"gemm": gemms(rows, layer), "head_gemm": gemms(32 if quick else 4096, [(h, shape.vocab)])}
    source = torch.empty(1 << (20 if quick else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return gemm_rates | {"copy": 2 * source.nbytes / timed(lambda: target.copy_(source))}


def now() -> float:
    """The time when the device has finished its work, in seconds."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_vdengine(task: dict[str, Any]) -> None:
    """Train STEPS steps; then profile some, or train some with probes, if the task says so."""
    from vdengine.engine.trainer import Trainer
    from vdengine.recipe import make_recipe

    folder, name = task["folder"], task["objective"]
    objective = {"name": name} | ({"beta": BETA, "reference": task["reference"]} if name == "dpo" else {})
    total = STEPS + 2 * (STEPS - 1) + PROFILED
    trainer = Trainer(
        make_recipe(
            {
                "run": {"folder": f"{folder}/run-{time.time_ns()}", "steps": total},
                "model": {"source": f"{folder}/weights"},
                "data": {
                    "train": [f"{folder}/data.jsonl"],
                    "format": "preference" if name == "dpo" else "prompt_completion",
                    "max_tokens": task["max_tokens"],
                    "cache": f"{folder}/cache",
                },
                "objective": objective,
                "batch": {"examples": task["examples"], "tokens": task["pack_tokens"]},
                "parallel": {"activation_checkpoint": task["checkpoint"]},
                "optimizer": OPTIMIZER | {"warmup": 0.0, "schedule": "constant"},
                "probes": {"panel": "values-mini", "every": 1},
                "checkpoint": {"every": 0, "export": False},
            }
        )
    )
    work = work_of(trainer, task["pack_tokens"])
    mini_probes, trainer.probes = trainer.probes, None
    losses, seconds = [], []
    for k in range(STEPS):
        started = now()
        losses.append(trainer.step()["loss"])
        seconds.append(now() - started)
        if k == 0:
            reset_peak()
    out = {"step_seconds": statistics.median(seconds[1:]), "losses": losses, "peak_bytes": device_peak_bytes()}
    out["work"] = work
    common.leave(task, out)  # already now, because what follows may fail
    if task.get("profile"):
        out["profile"] = profile(trainer, work["step"]["micro_steps"])
        common.leave(task, out)
    if task.get("probes"):
        probe_seconds: dict[str, float] = {}
        trainer.recipe.probes.panel = f"{folder}/large.jsonl"
        trainer._open_probes()
        for panel, probes in (("values-mini", mini_probes), ("550", trainer.probes)):
            trainer.probes = probes
            rows = [dict(trainer.step()) for _ in range(STEPS - 1)][1:]  # the first is warm-up
            probe_seconds[panel] = statistics.median(row["probe_seconds"] for row in rows)
        out["probes"] = probe_seconds
    trainer.close()
    common.leave(task, out)


def profile(trainer: Any, micro_steps: int) -> dict[str, Any]:
    """Two steps under torch's profiler: whether the device waits for its host, how many launches there are, and the ten
    kernels that take longest. On a CPU, ops take the place of kernels, and nothing waits."""
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
    device_type = DeviceType.CUDA if cuda else DeviceType.CPU
    seconds: dict[str, list[float]] = {}  # of each call, by kernel
    ranges = []  # in microseconds
    for event in p.events():
        # annotations (FSDP's) include kernels that are events themselves
        if event.device_type != device_type or event.is_user_annotation or (not cuda and event.cpu_children):
            continue
        seconds.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
        ranges.append((event.time_range.start, event.time_range.end))
    busy, end = 0.0, -math.inf
    for start, stop in sorted(ranges):  # the union, because kernels of several streams overlap
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    busy /= 1e6
    launches = sum(map(len, seconds.values())) / PROFILED
    layers = len(trainer.model.blocks)
    launches_per_layer = launches / layers / micro_steps
    verdict = f"{'device' if busy > 0.9 * wall else 'host'}-bound: the device works {busy / wall:.0%} of the time"
    slowest = sorted(seconds.items(), key=lambda item: -sum(item[1]))[:10]
    return {
        "summary": f"{verdict if cuda else 'a CPU: no device to wait for a host'}; {launches:.0f} launches a step, "
        f"{launches_per_layer:.0f} a layer and micro step; {wall / PROFILED:.3f} s a step under the profiler",
        "slowest": [
            {
                "kernel": name if len(name) <= 70 else name[:67] + "...",
                "calls a step": len(calls) / PROFILED,
                "ms a step": 1e3 * sum(calls) / PROFILED,
                "share of busy": sum(calls) / busy,
            }
            for name, calls in slowest
        ],
    }


def work_of(trainer: Any, pack_tokens: int) -> dict[str, Any]:
    """The work of a step, means over the timed steps: tokens and FLOPs in each layout. It also writes the rows of all
    steps to rows.json, for TRL."""
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
        "tokens": mean["tokens_trees"],
        "scored": sum(p.num_scored for p in packs) / (STEPS - 1),
        "pairs": sum(p.num_attention_pairs for p in packs) / (STEPS - 1),
        "micro_steps": round(statistics.mean(len(batch.packs) for batch in batches)),
    }
    return mean | {"step": step}


def run_trl(task: dict[str, Any]) -> None:
    """Train STEPS steps with TRL on the rows of `work_of`."""
    import datasets
    import torch
    import transformers
    import trl

    cuda, dpo = torch.cuda.is_available(), task["objective"] == "dpo"
    steps = json.loads(Path(task["folder"], "rows.json").read_text())
    vocab = json.loads(Path(task["folder"], "weights", "config.json").read_text())["vocab_size"]
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
            output_dir=folder,
            per_device_train_batch_size=task["micro"],
            max_steps=STEPS,
            max_length=None,
            gradient_accumulation_steps=task["examples"] // task["micro"],
            **trl_optimizer(),
            train_sampling_strategy="sequential",
            use_cpu=not cuda,
            bf16=cuda,
            gradient_checkpointing=task["checkpointing"],
            use_liger_kernel=task["liger"],
            model_init_kwargs={"dtype": "float32"},
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        dataset, weights = datasets.Dataset.from_list(rows), f"{task['folder']}/weights"
        extra: dict[str, Any] = {}
        if dpo:
            trainer_class, config = trl.DPOTrainer, trl.DPOConfig(beta=BETA, **options)
            # in the compute dtype, as in vdengine; by default it would be loaded in fp32, as the policy
            dtype = torch.bfloat16 if cuda else torch.float32
            extra["ref_model"] = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=dtype)
        else:
            trainer_class, config = trl.SFTTrainer, trl.SFTConfig(completion_only_loss=True, **options)
        trainer = trainer_class(
            weights, args=config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()], **extra
        )
        if dpo:
            rows_for_trl.check_preference(steps, trainer.train_dataset)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(math.isfinite(x) for x in losses), losses
    common.leave(
        task,
        {
            "step_seconds": statistics.median(seconds[1:]),
            "losses": losses,
            "peak_bytes": device_peak_bytes(),
        },
    )


if __name__ == "__main__":
    task = common.arguments()
    {"prepare": prepare, "vdengine": run_vdengine, "trl": run_trl}[task["engine"]](task)
