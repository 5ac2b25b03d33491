"""Scores and answers of saved models: a panel scored, or its questions answered, by a Hugging Face folder, a
hub id, a .gguf file, or a run's checkpoint."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.capability_log import CapabilityLog
from vdengine.drift.capability_tables import capability_json, capability_table
from vdengine.drift.history import tell_apart
from vdengine.drift.model_shifts import levels_table, model_shifts, models_table
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.panel_packs import PanelPacks
from vdengine.drift.summary import drift_table
from vdengine.engine.checkpoint import load_weights
from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.generate import Sampling, generate
from vdengine.models.lora import add_lora
from vdengine.models.peft_config import read_peft_config, tokenizer_of
from vdengine.models.transformer import Transformer
from vdengine.models.weights import Weights, build_model, open_causal
from vdengine.outside import json_object
from vdengine.panels.panel import Panel
from vdengine.recipe import LEAD, READOUTS, CapabilityKeys, Recipe, load_scoring_recipe
from vdengine.runfolder import CHECKPOINT, MANIFEST, RunFolder
from vdengine.tasks.task import load_tasks
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


def tell(text: str) -> None:
    """Print and flush, because the next model takes minutes."""
    print(text, flush=True)


@dataclass
class SavedModel:
    """A model on disk."""

    name: str  # as the user named it
    recipe: Recipe | None  # of a checkpoint's run
    step: int | None  # of a checkpoint, ours or of transformers' Trainer (checkpoint-100)

    @classmethod
    def find(cls, name: str) -> SavedModel:
        """The model of this name, without loading anything.

        Raises:
            InputError: a checkpoint whose run has no recipe that can be read.
        """
        folder = Path(name)
        if not (folder / MANIFEST).exists() or not folder.name.startswith(CHECKPOINT):
            number = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name) if folder.is_dir() else None
            return cls(name, None, int(number[1]) if number else None)
        run = RunFolder(folder.parent.parent)
        return cls(name, load_scoring_recipe(run.recipe), int(folder.name.removeprefix(CHECKPOINT)))

    def renderer(self, template: str) -> Renderer:
        """Its tokenizer with a chat template, as `Renderer` names it."""
        r = self.recipe
        tokenizer = load_tokenizer(tokenizer_of((r.model.tokenizer or r.model.source) if r else self.name))
        return Renderer(tokenizer, template=template)

    def model(self, dtype: str | None) -> Transformer:
        """The model with its weights, on the default device. `dtype`: default that of its run, else "auto"."""
        device = default_device()
        torch_dtype = compute_dtype(dtype or (self.recipe.model.dtype if self.recipe else "auto"), device)
        weights = open_causal(self.recipe.model.source if self.recipe else self.name)
        if self.recipe is None:
            return build_model(weights, torch_dtype, device)
        return load_checkpoint(Path(self.name), weights, torch_dtype, device)


def load_checkpoint(
    folder: Path, weights: Weights, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Transformer:
    """The model of a run's checkpoint, not sharded.

    Args:
        weights: those that the run started from; with LoRA the model is these and an adapter.

    Raises:
        InputError: the checkpoint is not whole, does not fit, or is of other weights.
    """
    files, frozen = RunFolder(folder.parent.parent), None
    model = build_model(weights, dtype, device, merge=True)  # as the run has read them
    if files.adapter.exists():
        written, frozen = read_peft_config(files.path), weights.hash
        add_lora(model, written.lora(written.targeted(weights.config) or [], weights.config))
    load_weights(folder, model, frozen)
    return model


def steps_of(models: Sequence[SavedModel]) -> list[int]:
    """The steps under which the models are logged: their own if they are checkpoints with ascending steps, else 0, 1,
    2, ..."""
    all_steps = [model.step for model in models]
    steps = [step for step in all_steps if step is not None]
    in_order = len(steps) == len(all_steps) and all(a < b for a, b in zip(steps, steps[1:], strict=False))
    return steps if in_order else list(range(len(models)))


def stage_names(names: Sequence[str]) -> list[str]:
    """What models are called in a history: a hub model by its revision, others by the last part of their names, with as
    much more as tells them apart."""
    revisions = [name.rpartition("@")[2] if "@" in name and not Path(name).exists() else "" for name in names]
    if all(revisions) and len(set(revisions)) == len(set(names)):
        return revisions
    plain = tell_apart(
        [name.partition("@")[0] if revision else name for name, revision in zip(names, revisions, strict=True)]
    )
    return [f"{name}@{revision}" if revision else name for name, revision in zip(plain, revisions, strict=True)]


def _named(models: Sequence[SavedModel], steps: Sequence[int], stages: Sequence[str] | None) -> dict[str, dict]:
    """By step the model that is scored under it, and its stage; checkpoints of a run have no stages of their own.

    Raises:
        InputError: stages that do not fit the models, or of one name that do not stand together.
    """
    names = [model.name for model in models]
    if stages is not None:
        if len(stages) != len(names) or not all(stages):
            raise InputError(f"--stages: {len(names)} models need as many names; got {', '.join(stages) or 'none'}")
        for stage in dict.fromkeys(stages):
            places = [i for i, other in enumerate(stages) if other == stage]
            if places[-1] - places[0] >= len(places):
                raise InputError(f"--stages: {stage!r} stands apart from itself: models of one stage follow each other")
    elif list(steps) == list(range(len(models))):
        stages = stage_names(names)
    if stages is None:
        return {str(step): {"model": name} for step, name in zip(steps, names, strict=True)}
    each = zip(steps, names, stages, strict=True)
    return {str(step): {"model": name, "stage": stage} for step, name, stage in each}


def _open(names: Sequence[str], template: str | None) -> tuple[list[SavedModel], Recipe | None, list[Renderer]]:
    """The models, the recipe of the first checkpoint among them, and their renderers."""
    models = [SavedModel.find(name) for name in names]
    run = next((model.recipe for model in models if model.recipe is not None), None)
    template = template or (run.data.template if run else "auto")
    return models, run, [m.renderer(template) for m in models]


def _check_ids(
    ids: Callable[[Renderer], list[list[int]]], names: Sequence[str], renderers: Sequence[Renderer], done: str
) -> None:
    """Check that all models read the same ids. Hashes alone would not do: transformers saves a tokenizer in other words
    than it was read from.

    Args:
        ids: of all that is read.
        done: what is done with them, "score"; the message says to do it separately.

    Raises:
        InputError: they do not.
    """
    expected = None
    for name, renderer in zip(names, renderers, strict=True):
        if renderer.hash != renderers[0].hash:
            expected = ids(renderers[0]) if expected is None else expected
            if ids(renderer) != expected:
                raise InputError(f"{name}: another tokenizer or chat template than {names[0]}; {done} it apart")


def _panel_ids(panel: Panel, renderer: Renderer, readouts: Sequence[str] = ()) -> list[list[int]]:
    """The ids of a panel's questions, and of what is scored by these readouts."""
    prompts = [renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in panel.probes]
    requests = panel.requests(renderer, readouts=readouts) if readouts else []
    return prompts + [request.answer_ids for request in requests]


def _check_finite(
    logp: np.ndarray,  # [n], nats
    name: str,
) -> None:
    """Raises InputError for log-probs that are NaN or infinite: they would become a table without a shift."""
    if bad := int((~np.isfinite(logp)).sum()):
        raise InputError(f"{name}: {bad} of {len(logp)} log-probs are not finite; its weights overflow in this dtype")


@dataclass(frozen=True)
class TaskOptions:
    """Tasks to score beside a panel, or alone."""

    sources: Sequence[str] = ()  # as `Task.load` takes them
    limit: int = 0  # of each the first so many rows; 0: all
    chat: bool = False  # prompts in the chat template
    tokens: int = CapabilityKeys.tokens  # of a pack

    @classmethod
    def of(cls, recipe: Recipe) -> TaskOptions:
        """Those of a run."""
        keys = recipe.capability
        return cls(tuple(keys.tasks), keys.limit, keys.chat, keys.tokens)


def score(
    names: Sequence[str],
    panel: str | None = None,
    out: str | None = None,
    template: str | None = None,
    tokens: int | None = None,
    dtype: str | None = None,
    controls: bool | None = None,
    json_path: str | Path | None = None,
    readouts: Sequence[str] | None = None,
    stages: Sequence[str] | None = None,
    tasks: TaskOptions | None = None,
    say: Callable[[str], None] = tell,
) -> np.ndarray:  # [models, branches] fp32
    """The log-prob sum of every branch of `PanelPacks`, and then of every choice of `TaskPacks`, by every model; and
    printed tables: of two models the shifts with intervals and controls, of more the shift of each since the first;
    accuracies of tasks, and their changes.

    The scores of a checkpoint have the bits that its run logged at that step, on the same kind of machine. Only the
    first and the last model score the controls; for the others they are NaN.

    Args:
        names: of models.
        panel: default: that of the first checkpoint's run, else "values-mini"; none where tasks are given alone.
        out: a folder for the raw logs, with the steps of `steps_of`.
        template: as in `Renderer`; default: that of the run, else "auto".
        tokens: of a pack of the panel; default: that of the run, else 2048.
        dtype: that the models compute in; default: that of the run, else "auto".
        controls: whether to score them; default: as in the run, else yes.
        json_path: a file for `drift.model_shifts` and the tasks as JSON, "-" for standard output, instead of tables.
        readouts: some of `READOUTS`; default: those of the run, else all that the panel has texts for.
        stages: the name of each model's stage in the history that `vdengine report OUT` draws; several models in a row
            may be of one. Default: `stage_names`; none where the models are checkpoints with steps of their own.
        tasks: default: those of the run, where no panel is named.
        say: prints.

    Raises:
        InputError: a model, panel, task or template that cannot be read; models with different tokenizers or templates;
            a folder that has scores already; scores that are not finite.
    """
    models, run, renderers = _open(names, template)
    renderer = renderers[0]
    if json_path is not None:
        _check_json(Path(json_path))
    chosen = None if tasks is not None and panel is None else panel or (run.probes.panel if run else "values-mini")
    if tasks is None and run is not None and panel is None:
        tasks = TaskOptions.of(run)
    forest = checks = None
    if chosen is not None:
        forest, readouts = _open_panel(chosen, names, renderers, run, tokens, controls, readouts, say)
    if tasks is not None and tasks.sources:
        loaded = load_tasks(tasks.sources, tasks.limit)
        checks = TaskPacks.build(loaded, renderer, tasks.tokens, chat=tasks.chat)
        options = tasks

        def ids(other: Renderer) -> list[list[int]]:
            requests = TaskPacks.build(loaded, other, options.tokens, chat=options.chat).requests
            return [request.prompt_ids + request.answer_ids for request in requests]

        _check_ids(ids, names, renderers, "score")
    steps = steps_of(models)
    named = _named(models, steps, stages)
    rows = []  # of each model: [branches] fp32
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out or scratch)
        about = {"model": {"source": ", ".join(names)}}
        files = RunFolder.at(folder)
        if (files.has_capability and len(CapabilityLog.open(folder).steps)) or (
            files.has_panel_scores and len(DriftLog.open(folder).steps)
        ):
            raise InputError(f"{folder}: holds scores already; give --out a new name")
        log = None
        if forest is not None:
            log = DriftLog.create(folder, forest.panel, forest.requests, renderer.hash, about=about)
        task_log = None if checks is None else CapabilityLog.create(folder, checks, renderer.hash)
        write_text(files.models, json.dumps(named, indent=2, ensure_ascii=False) + "\n")
        for model, step in zip(models, steps, strict=True):
            weights, found = model.model(dtype), []
            if forest is not None and log is not None:
                with_controls = model in (models[0], models[-1])  # as in a run
                packs = range(len(forest.packs)) if with_controls else forest.part(0, 1)
                found.append(forest.score(weights, packs, model.name).cpu().numpy())
                taken = torch.cat([forest.slots[i] for i in packs]).cpu().numpy()
                _check_finite(found[-1][taken], model.name)
                log.append(step, found[-1])
            if checks is not None and task_log is not None:
                found.append(checks.score(weights, None, f"{model.name}, tasks").cpu().numpy())
                _check_finite(found[-1], model.name)
                task_log.append(step, found[-1])
            rows.append(np.concatenate(found))
        if json_path is not None:
            values: dict[str, Any] = {"models": list(names)} if forest is None else model_shifts(folder, names)
            if task_log is not None:
                values["capability"] = capability_json(task_log, names)
            text = json.dumps(values, indent=2, ensure_ascii=False)
            if str(json_path) == "-":
                say(text)
                return np.stack(rows)
            write_text(Path(json_path), text + "\n")
        for model, step in zip(models, steps, strict=True):
            say(f"step {step}: {model.name}")
        if forest is not None and readouts is not None:
            say(f"panel {forest.panel.name}: {len(forest.panel.probes)} probes, {', '.join(readouts)}\n")
            if len(models) > 2:
                say(models_table(model_shifts(folder, names)))
            else:
                say(drift_table(folder) if len(models) > 1 else levels_table(model_shifts(folder, names)))
        if task_log is not None:
            say("\n" + capability_table(task_log, names))
        if json_path is not None:
            say(f"\nAs JSON: {json_path}")
        if out:
            say(f"\nRaw scores: {', '.join(f'{p}/' for p in (files.drift, files.capability) if p.exists())}")
            if len(models) > 1:
                say(f"To look at the history: vdengine report {folder}")
    return np.stack(rows)


def _open_panel(
    source: str,
    names: Sequence[str],
    renderers: Sequence[Renderer],
    run: Recipe | None,
    tokens: int | None,
    controls: bool | None,
    readouts: Sequence[str] | None,
    say: Callable[[str], None],
) -> tuple[PanelPacks, Sequence[str]]:
    """The panel's packs and what is read of it. Args, and Raises: as `score`."""
    chosen = Panel.load(source)
    if readouts is None:
        readouts = run.probes.readouts if run else READOUTS
        if bare := sum(not p.has_openings for p in chosen.probes):
            readouts = [LEAD]
            say(f"{bare} of {len(chosen.probes)} probes have no openings: text likelihood is left out")
    read = readouts
    _check_ids(lambda renderer: _panel_ids(chosen, renderer, read), names, renderers, "score")
    if controls is None:
        controls = run.probes.controls if run else True
    budget = tokens or (run.probes.tokens if run else 2048)
    return PanelPacks.build(chosen, renderers[0], budget, controls=controls, readouts=readouts), readouts


def _check_json(path: Path) -> None:
    """Check that a file of readouts may be written, before models are scored.

    Raises:
        InputError: there is a folder, a file that is no such file, or no folder to write it to.
    """
    if str(path) == "-":
        return
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: {path.parent} is no folder")
    if path.exists():
        try:
            keys = json_object(path).keys() if path.is_file() else set()
            ours = "models" in keys and bool({"panel", "capability"} & keys)
        except InputError:
            ours = False
        if not ours:
            raise InputError(f"--json {path}: is there already, and no file of readouts; name another")


def sample_answers(
    names: Sequence[str],
    out: Path,
    *,
    panel: str | None = None,
    samples: int = 5,
    temperature: float = 0.7,
    max_tokens: int = 256,
    template: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    slots: int = 64,
    dry_run: bool = False,
    say: Callable[[str], None] = tell,
) -> None:
    """Write the answers of saved models to a panel's questions, and their scores of the panel's openings, to the folder
    `out`, with the files of a run. Models that are sampled already are skipped.

    Args:
        samples: answers of each model to each question.
        slots: rows that decode together.
        dry_run: only print how many tokens and answers there would be.
        panel, template, dtype, say: as in `score`, but the default panel is "values".

    Raises:
        InputError: a model or panel that cannot be read, options out of range, a folder that has answers of other
            models, a template whose end of a turn is no token, or log-probs that are not finite.
    """
    if samples < 1:
        raise InputError(f"--samples {samples}: at least 1 answer to a question")
    models, run, renderers = _open(names, template)
    chosen, renderer = Panel.load(panel or (run.probes.panel if run else "values")), renderers[0]
    _check_ids(lambda renderer: _panel_ids(chosen, renderer), names, renderers, "sample")
    steps = steps_of(models)
    try:  # a checkpoint may end its answers with other tokens than the model that it came from
        samplings = [Sampling(max_tokens, temperature, stop_ids=tuple(r.stop_ids)) for r in renderers]
    except ValueError as error:
        raise InputError(f"sampling: {error}") from None
    count = len(chosen.probes) * samples
    say(
        f"{len(models)} models x {len(chosen.probes)} questions x {samples} answers, up to {max_tokens} tokens at "
        f"T = {temperature:g}: at most {len(models) * count * max_tokens:,} tokens to generate and "
        f"{len(models) * count:,} answers to judge"
    )
    if dry_run:
        return
    folder = RunFolder(out)
    model_names = _named(models, steps, None)
    if folder.models.exists() and json_object(folder.models) != model_names:
        raise InputError(f"{out}: holds answers of other models (see {folder.models.name}); give --out a new name")
    readouts = _readable(chosen, renderer, say) if len(models) > 1 and not folder.has_panel_scores else []
    log = AnswerLog.create(out, chosen, renderer.hash, samples=samples, max_tokens=max_tokens, temperature=temperature)
    folder.models.write_text(json.dumps(model_names, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    prompts = [renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in chosen.probes]
    decode = renderer.tokenizer.decode
    for model, sampling, step in zip(models, samplings, steps, strict=True):
        if step in log.anchors:
            continue
        say(f"step {step}: {model.name}")
        completions = generate(
            model.model(dtype), prompts, sampling, samples=samples, seed=seed, step=step, slots=slots
        )
        _check_finite(np.array([x for cs in completions for c in cs for x in c.logp]), model.name)
        log.append(
            [
                Answer(step, p.id, k, c.tokens, c.stopped, decode(c.tokens[: len(c.tokens) - c.stopped]).strip())
                for p, cs in zip(chosen.probes, completions, strict=True)
                for k, c in enumerate(cs)
            ]
        )
    if readouts:
        named = panel or (run.probes.panel if run else "values")
        score(names, named, str(out), template, None, dtype, readouts=readouts, say=say)


def _readable(panel: Panel, renderer: Renderer, say: Callable[[str], None]) -> list[str]:
    """The readouts that a panel can have by log-prob; says why one is left out."""
    readable = []
    for readout in READOUTS:
        try:
            panel.requests(renderer, readouts=[readout])
        except InputError as error:
            say(f"{readout} is left out: {error}")
        else:
            readable.append(readout)
    return readable
