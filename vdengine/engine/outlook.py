"""What can be known of a run before it: from its recipe, the headers of its files, and a sample of its rows."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdengine.data.loader import Loader
from vdengine.data.locate import FileSource
from vdengine.data.show import show_batch
from vdengine.data.store import Store
from vdengine.drift.panel_packs import PanelPacks
from vdengine.drift.schedule import Schedule
from vdengine.engine.adapting import named_adapter
from vdengine.engine.anchors import AnswerPlan
from vdengine.engine.capability import check_schedule, summary
from vdengine.engine.memory import Load, estimate
from vdengine.engine.preflight import Found
from vdengine.engine.rows import open_loader, open_store
from vdengine.errors import InputError
from vdengine.files import existing
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.peft_config import Lora
from vdengine.models.weights import check_vocabulary, open_causal, open_weights
from vdengine.objectives import Objective
from vdengine.recipe import Recipe
from vdengine.runfolder import RunFolder
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer
from vdengine.trees import tree_cost

ROWS = 300  # of each source, that are read and tokenised
DROPPED_SHARE = 0.1  # of rows too long, above which there is a warning
NO_LIMIT = 2**31 - 1
LORA_LR = 10  # the best learning rate with LoRA over that without (Schulman et al. 2025, "LoRA Without Regret")


@dataclass(frozen=True)
class Sample(FileSource):
    """The first rows of a source."""

    limit: int = ROWS

    @classmethod
    def of(cls, source: FileSource, limit: int) -> Sample:
        """The first `limit` rows of `source`."""
        return cls(source.name, source.files, source.labels, source.commit, source.variant, source.topics, limit)

    def digest(self) -> str:
        """Of the name alone: the store of a sample is not kept."""
        return hashlib.blake2b(f"{self.name} {self.limit}".encode(), digest_size=16).hexdigest()

    def count(self) -> int:
        """The rows of the sample."""
        return self.limit

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """As `FileSource.rows`, the first of them."""
        return islice(super().rows(), self.limit)


def outlook(recipe: Recipe, found: Found, *, ranks: int = 1, rows: int = ROWS) -> dict[str, Any]:
    """What a run of this recipe will do and need, as data: plain dictionaries, lists, numbers and texts.

    Args:
        found: of `preflight`.
        ranks: of the run.
        rows: of each source, that are read.

    Raises:
        InputError: the run could not start.
    """
    objective: Objective = recipe.objective.declaration
    tokenizer, renderer = found.tokenizer, found.renderer
    if tokenizer is None or renderer is None or not found.train:
        raise InputError("the recipe names no tokenizer or no data that can be looked at")
    weights = open_weights(recipe.model.source) if objective.head == "scalar" else open_causal(recipe.model.source)
    config = weights.config
    lora = named_adapter(recipe, config)
    check_vocabulary(config.vocab_size, tokenizer, renderer)
    device = default_device()
    dtype = compute_dtype(recipe.model.dtype, device)

    with tempfile.TemporaryDirectory() as scratch:
        looked = [_look(recipe, s, renderer, rows, Path(scratch)) for s in found.train]
        sources = [source for source, _, _ in looked]
        whole = all(not source["estimate"] for source in sources)
        store = _store(recipe, [s for _, s, _ in looked], renderer, recipe.data.max_tokens, Path(scratch))
        loader = open_loader(recipe, store, flops=config.flops, prefetch=False)
        if not objective.rollout:
            loader.check_budget(recipe.batch.tokens)
        first = loader.rows(0)
        text = io.StringIO()
        show_batch(store, tokenizer, first[:1].tolist(), text, color=False)
        run, load, step_flops = _run(recipe, config, store, loader, sources, ranks)

    probes, answers, load = _probes(recipe, found, renderer, config, run["steps"], step_flops, load)
    tasks, load = _tasks(recipe, found, renderer, config.flops, run["steps"], step_flops, load)
    memory = _memory(recipe, config, lora, load, ranks, device, dtype)
    disk = _disk(recipe, memory)
    samples = objective.rollout is not None or bool(recipe.answers.samples)
    ends = renderer.stop_ids if samples or renderer.missing_end is None else []
    stops = [{"id": i, "token": tokenizer.token(i) or ""} for i in ends]
    out: dict[str, Any] = {
        "recipe": {"folder": recipe.run.folder, "objective": objective.name},
        "model": {
            "source": recipe.model.source,
            "family": config.model_type,
            "parameters": config.num_parameters,
            "adapter": None if lora is None else lora.num_parameters(config),
            "dtype": str(dtype).removeprefix("torch."),
            "device": device,
            "ranks": ranks,
        },
        "template": {"name": renderer.name, "stops": stops},
        "data": sources,
        "run": run,
        "probes": probes,
        "answers": answers,
        "tasks": tasks,
        "memory": memory,
        "disk": disk,
        "first_example": {"exact": whole, "text": text.getvalue().rstrip()},
    }
    return out | {"warnings": _warnings(recipe, out, store, renderer)}


def _store(recipe: Recipe, sources: Sequence[Sample], renderer: Renderer, max_tokens: int, scratch: Path) -> Store:
    """The store of samples, in a folder that does not stay."""
    data = dataclasses.replace(recipe.data, max_tokens=max_tokens, cache=str(scratch))
    return open_store(dataclasses.replace(recipe, data=data), sources, renderer, progress=False, workers=1)


def _look(
    recipe: Recipe, source: FileSource, renderer: Renderer, rows: int, scratch: Path
) -> tuple[dict[str, Any], Sample, Store]:
    """What the first rows of a source say of it."""
    total = source.count()
    sample = Sample.of(source, min(rows, total))
    store = _store(recipe, [sample], renderer, NO_LIMIT, scratch)  # without a limit: also of rows that are too long
    info = store.sources[0]
    lengths = _lengths(store)  # [trees]: prompt and longest branch
    limit = recipe.data.max_tokens - (recipe.rollout.max_new_tokens if store.kind == "prompts" else 0)
    overlong = int((lengths > limit).sum())
    shares = (("median", 0.5), ("p95", 0.95), ("longest", 1.0))
    quantiles = {name: int(np.quantile(lengths, q, method="higher")) for name, q in shares}  # of a row that there is
    scale = total / max(sample.limit, 1)
    fits = len(lengths) - (overlong if recipe.data.overlong == "drop" else 0)
    if fits == 0:
        raise InputError(
            f"data.max_tokens = {recipe.data.max_tokens}: none of the first {sample.limit} rows of {source.name} fits; "
            f"they have {int(lengths.min()):,} to {int(lengths.max()):,} tokens"
        )
    found = {
        "source": source.name,
        "format": info.format,
        "rows": total,
        "rows_read": sample.limit,
        "estimate": sample.limit < total,
        "examples": round(fits * scale),
        "lengths": quantiles,
        "fit_99": int(np.quantile(lengths, 0.99, method="higher")),
        "too_long": overlong,
        "dropped": dict(info.dropped),
        "unread": list(info.unread),
    }
    return found, sample, store


def _lengths(store: Store) -> np.ndarray:
    """Tokens of each tree's prompt and its longest branch: [trees] int64."""
    if not len(store.branch_len):
        return np.asarray(store.prompt_len)
    return np.asarray(store.prompt_len) + np.maximum.reduceat(np.asarray(store.branch_len), store.tree_start[:-1])


def _run(
    recipe: Recipe, config: Any, store: Store, loader: Loader, sources: list[dict[str, Any]], ranks: int
) -> tuple[dict[str, Any], Load, float]:
    """Steps and epochs, what a step takes, and the largest pack. The whole data are taken to be as the sample."""
    weights = recipe.data.weights or [1.0] * len(sources)
    kept = 1.0 - recipe.data.eval_fraction
    examples = sum(w * kept * s["examples"] for w, s in zip(weights, sources, strict=True))
    per_epoch = max(1, math.ceil(examples / recipe.batch.examples))
    steps = recipe.run.steps or math.ceil((recipe.run.epochs or 0) * per_epoch)
    tokens, scored, cost = store.num_tokens, store.num_scored, loader.cost
    largest = int(tokens.max())
    objective: Objective = recipe.objective.declaration
    passes = 1
    if objective.rollout:  # an upper bound: every completion as long as it may be (as `Rollouts.step_flops`)
        passes, _ = objective.rollout.passes(recipe.objective)
        new, samples = recipe.rollout.max_new_tokens, recipe.rollout.samples
        trees = np.arange(len(store) + 1) * samples
        rows = np.full(len(store), samples * new)
        cost = tree_cost(store.prompt_len, np.full(trees[-1], new), trees, rows, **config.flops)
        tokens, scored = store.prompt_len + rows, rows
        largest = int(tokens.max())
        if largest > recipe.batch.tokens:
            raise InputError(
                f"batch.tokens: the longest prompt with rollout.samples = {samples} completions of up to {new} tokens "
                f"takes {largest} tokens, above the budget of {recipe.batch.tokens}"
            )
    step_tokens = float(tokens.mean()) * recipe.batch.examples
    step_flops = recipe.forwards * passes * float(cost.mean()) * recipe.batch.examples
    packs = max(1, math.ceil(step_tokens / ranks / recipe.batch.tokens))
    # packs are balanced: one has its share of the step, and at least the longest row
    pack_tokens = min(recipe.batch.tokens, max(largest, math.ceil(step_tokens / ranks / packs)))
    share = float(scored.sum()) / float(tokens.sum())
    branches = recipe.rollout.samples if objective.rollout else objective.branches
    load = Load(pack_tokens, round(share * pack_tokens), branches, float(store.prompt_len.sum()) / float(tokens.sum()))
    run = {
        "steps": steps,
        "steps_per_epoch": per_epoch,
        "epochs": steps / per_epoch,
        "examples_per_step": recipe.batch.examples,
        "tokens_per_step": round(step_tokens),
        "scored_share": share,
        "packs_per_step": packs,
        "pack_tokens": pack_tokens,
        "step_flops": step_flops,
        "estimate": any(s["estimate"] for s in sources),
    }
    return run, load, step_flops


def _probes(
    recipe: Recipe, found: Found, renderer: Renderer, config: Any, steps: int, step_flops: float, load: Load
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, Load]:
    """The schedule of samples and its cost, what answers take, and the probes that run beside a pack."""
    if found.panel is None:
        return None, None, load
    p, panel = recipe.probes, found.panel
    forest = PanelPacks.build(panel, renderer, p.tokens, controls=p.controls, readouts=p.readouts)
    whole, parts = forest.part(0, 1), round(1 / p.fraction)
    schedule = Schedule.make(
        steps,
        every=p.every,
        budget=p.budget,
        step_cost=step_flops,
        parts=parts,
        panel_cost=forest.flops(config.flops, whole),
        whole_cost=forest.flops(config.flops),
    )
    sizes = [pack.num_tokens for pack in forest.packs]
    probes = {
        "panel": panel.name,
        "probes": len(panel.probes),
        "topics": list(panel.topics),
        "readouts": p.readouts,
        "tokens": sum(sizes[i] for i in whole),
        "steps": list(schedule.steps),
        "cost": schedule.cost,
        "controls": p.controls,
    }
    load = Load(load.tokens, load.scored, load.branches, load.prompt_share, sum(sizes), max(sizes))
    a = recipe.answers
    if not a.samples:
        return probes, None, load
    plan = AnswerPlan.make(a, panel, renderer, steps)
    sure, most = len(plan.schedule.steps), plan.most_answers
    cost = plan.cost(schedule, config.flops) / (steps * step_flops)
    answers = {
        "probes": len(plan.prompts),
        "anchors": [sure, plan.schedule.most],
        "steps": list(plan.schedule.steps),
        "answers": [plan.schedule.num_answers(sure), most],
        "max_tokens": a.max_tokens,
        "tokens": most * a.max_tokens,
        "cost": cost,
        "summary": plan.summary(cost),
    }
    return probes, answers, load


def _tasks(
    recipe: Recipe, found: Found, renderer: Renderer, flops: dict[str, float], steps: int, step_flops: float, load: Load
) -> tuple[dict[str, Any] | None, Load]:
    """What is checked, when, what it costs, and the packs that run beside a training pack, with those of probes."""
    keys = recipe.capability
    if not found.tasks:
        return None, load
    packs = TaskPacks.build(found.tasks, renderer, keys.tokens, chat=keys.chat)
    schedule = check_schedule(keys, steps, packs.flops(flops), step_flops)
    largest = max(load.probe_pack, *(pack.num_tokens for pack in packs.packs))
    load = dataclasses.replace(load, probe_tokens=load.probe_tokens + packs.num_tokens, probe_pack=largest)
    return {
        "rows": {task.name: len(task.rows) for task in found.tasks},
        "tokens": packs.num_tokens,
        "steps": list(schedule.steps),
        "cost": schedule.cost,
        "summary": summary(packs, schedule),
    }, load


def _memory(
    recipe: Recipe, config: Any, lora: Lora | None, load: Load, ranks: int, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    """The estimate of one rank, and what this machine has."""
    reward = value = None
    source = recipe.reward.source
    if recipe.objective.declaration.rollout:
        if source and not source.startswith("regex:"):
            reward = open_weights(source).config
        if recipe.value.source:
            value = open_weights(recipe.value.source).config
    shard = ranks // recipe.parallel.replicate if recipe.parallel.shard == "all" else int(recipe.parallel.shard)
    if shard * recipe.parallel.replicate != ranks:
        raise InputError(
            f"parallel: replicate = {recipe.parallel.replicate} x shard = {recipe.parallel.shard} does not make "
            f"{ranks} ranks"
        )
    gpu = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
    m = estimate(
        recipe,
        config,
        load,
        ranks=shard,
        device=device,
        dtype_bytes=dtype.itemsize,
        device_bytes=gpu,
        reward=reward,
        value=value,
        lora=lora,
    )
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "parts": dict(m.device),
        "total": m.total,
        "available": gpu if gpu is not None else host // max(1, ranks),
        "host": dict(m.host),
        "checkpoint": m.checkpoint,
        "export": m.export,
    }


def _disk(recipe: Recipe, memory: dict[str, Any]) -> dict[str, Any]:
    """Bytes that a run writes, and those that its disk has."""
    # while one is written those that are kept stand beside it
    checkpoints = memory["checkpoint"] * (recipe.checkpoint.keep + 1)
    folder = RunFolder.at(recipe.run.folder).path
    return {
        "folder": str(recipe.run.folder),
        "exists": folder.exists(),
        "checkpoints": checkpoints,
        "export": memory["export"],
        "needed": checkpoints + memory["export"],
        "free": shutil.disk_usage(existing(folder)).free,
    }


def _warnings(recipe: Recipe, out: dict[str, Any], store: Store, renderer: Renderer) -> list[str]:
    """What a person should look at before starting."""
    lines = []
    low, high = recipe.objective.declaration.usual_lr or (0.0, math.inf)
    if recipe.has_lora:  # the best rates of an adapter are about ten times those of all weights (`LORA_LR`)
        low, high = LORA_LR * low, LORA_LR * high
    lr = recipe.optimizer.lr
    if not low <= lr <= high:
        lines.append(
            f"optimizer.lr = {lr:g} is far from what is usual for {recipe.objective.declaration.name} ({low:g} to "
            f"{high:g})"
        )
    for source in out["data"]:
        # of the rows that could be used
        share = source["too_long"] / max(1, source["rows_read"] - sum(source["dropped"].values()))
        if share > DROPPED_SHARE:
            verb = "drops" if recipe.data.overlong == "drop" else "cuts"
            lines.append(
                f"data.max_tokens = {recipe.data.max_tokens} {verb} {share:.0%} of {source['source']}; 99% of its rows "
                f"have at most {source['fit_99']:,} tokens"
            )
        unusable = sum(source["dropped"].values()) / max(1, source["rows_read"])
        if unusable > DROPPED_SHARE:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in source["dropped"].items())
            lines.append(f"{unusable:.0%} of the rows of {source['source']} that were read are not usable ({reasons})")
    run, memory, disk = out["run"], out["memory"], out["disk"]
    longest = int(store.num_tokens.max()) if len(store) else 0
    if recipe.batch.tokens < 2 * longest and run["packs_per_step"] > 2:
        lines.append(
            f"batch.tokens = {recipe.batch.tokens:,} holds little more than the longest row ({longest:,} tokens): a "
            f"step runs about {run['packs_per_step']} small packs, one after another"
        )
    if run["epochs"] > 5:
        lines.append(f"{run['steps']} steps are {run['epochs']:.1f} epochs of this data")
    warmup = round(recipe.optimizer.warmup * run["steps"])
    if warmup > run["steps"] // 2:
        lines.append(f"optimizer.warmup = {recipe.optimizer.warmup:g} is {warmup} of {run['steps']} steps")
    if memory["total"] > 0.9 * memory["available"]:
        lines.append(
            "memory: the estimate is above 90% of what there is; lower batch.tokens, set "
            'parallel.activation_checkpoint = "full", or use more ranks'
        )
    if disk["needed"] > disk["free"]:
        lines.append("disk: checkpoints and export need more than is free; lower checkpoint.keep or free some")
    if out["probes"] and recipe.probes.every is not None and out["probes"]["cost"] > 0.25:
        lines.append(
            f"probes cost {out['probes']['cost']:.0%} of the training FLOPs: raise probes.every, lower "
            "probes.fraction, or use probes.budget"
        )
    if out["tasks"] and out["tasks"]["cost"] > 0.25:
        lines.append(
            f"tasks cost {out['tasks']['cost']:.0%} of the training FLOPs: raise capability.every, or set "
            "capability.limit"
        )
    if recipe.checkpoint.every == 0 or recipe.checkpoint.every >= run["steps"]:
        lines.append("checkpoint.every: no checkpoint before the end")
    if recipe.objective.declaration.learns_answers and renderer.missing_end is not None:
        lines.append(renderer.missing_end)
    return lines
