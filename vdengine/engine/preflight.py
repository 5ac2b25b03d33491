"""What only the recipe and the files say, looked at before anything else: what is wrong with them is said within two
seconds, for this imports no torch. `vdengine train` begins with it, and `vdengine check` goes on from it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vdengine.data.formats import choose_format
from vdengine.data.locate import FileSource, resolve, resolve_here
from vdengine.engine.adapting import named_adapter
from vdengine.engine.pattern import pattern_reward
from vdengine.engine.resuming import check_folder
from vdengine.engine.stages import stages_before, stand_in, tokenizer_and_template
from vdengine.errors import InputError
from vdengine.files import Lock, existing
from vdengine.gguf import read_gguf
from vdengine.hub import locate_here
from vdengine.models.families import ModelConfig
from vdengine.models.hf_config import read_config
from vdengine.models.peft_config import MAX_ADAPTERS, is_adapter, read_peft_config, tokenizer_of
from vdengine.objectives import Objective
from vdengine.panels.panel import Panel
from vdengine.recipe import IN_MEMORY, OWN_BATCHES, Recipe
from vdengine.runfolder import RunFolder
from vdengine.tasks.task import Task, is_here, load_tasks
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Found:
    """What a recipe names, opened without its weights and rows. None where it is not named, or given in memory."""

    train: tuple[FileSource, ...]  # those on this machine
    formats: tuple[str, ...]  # of each
    eval: FileSource | None
    tokenizer: Tokenizer | None
    renderer: Renderer | None
    panel: Panel | None
    tasks: tuple[Task, ...] = ()


def preflight(recipe: Recipe, planned: Sequence[Recipe] = ()) -> Found:
    """Check what a recipe names: the run before it, model, tokenizer, template, data and their format, panel, reward
    and value model. planned: recipes that are trained before it, whose exports it may name.

    What is on the hub is looked at if this is the only process of the run: the other ranks would wait for a download.

    Raises:
        InputError: something is not there, cannot be read, or does not fit the objective.
    """
    objective: Objective = recipe.objective.declaration
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    _check_places(recipe, objective)
    stages_before(recipe, planned)
    if recipe.model.source != IN_MEMORY:
        with _of_key("model.source"):
            _, config = _check_source(recipe.model.source, objective.head, planned)
        with _of_key("lora.start"):
            start_here = not recipe.lora.start or locate_here(recipe.lora.start) is not None
        if config is not None and start_here:
            named_adapter(recipe, config)
    tokenizer = renderer = None
    named, template = tokenizer_and_template(recipe, planned)
    if named != IN_MEMORY and (alone or locate_here(named) is not None):
        tokenizer = load_tokenizer(tokenizer_of(named))
        renderer = Renderer(tokenizer, template=template)
    sources, formats = [], []
    for name in recipe.data.train:
        if name in (IN_MEMORY, OWN_BATCHES):
            continue
        with _of_key("data.train"):
            source = resolve(name) if alone else resolve_here(name)
            if source is not None:
                sources.append(source)
                formats.append(choose_format(source, recipe.data.format, objective.rows))
    held_out = None
    if recipe.data.eval and recipe.data.eval != IN_MEMORY:
        with _of_key("data.eval"):
            held_out = resolve(recipe.data.eval) if alone else resolve_here(recipe.data.eval)
            if held_out is not None:
                choose_format(held_out, recipe.data.format, objective.rows)
    panel = None
    if recipe.probes.every != 0 and recipe.probes.panel != IN_MEMORY:
        with _of_key("probes.panel"):
            panel = Panel.load(recipe.probes.panel)
    tasks = []
    if recipe.capability.tasks and (alone or all(is_here(name) for name in recipe.capability.tasks)):
        with _of_key("capability.tasks"):
            tasks = load_tasks(recipe.capability.tasks, recipe.capability.limit)
    if objective.rollout:
        _check_reward(recipe.reward.source, planned)
        if recipe.value.source:
            with _of_key("value.source"):
                _check_source(recipe.value.source, None, planned)
    return Found(tuple(sources), tuple(formats), held_out, tokenizer, renderer, panel, tuple(tasks))


def _check_places(recipe: Recipe, objective: Objective) -> None:
    """Check the folders that a run writes to, the ranks that it asks for, and what its trackers need."""
    check_folder(recipe, objective)
    files = RunFolder.at(recipe.run.folder)
    Lock(files.lock, "a run is being written here").undo()
    cache = Path(recipe.data.cache).expanduser()
    place = existing(cache)
    if not place.is_dir() or not os.access(place, os.W_OK if place != cache.absolute() else os.R_OK):
        raise InputError(f"data.cache: {cache} is no folder, and cannot be made one")
    ranks, r = int(os.environ.get("WORLD_SIZE", "1")), recipe.parallel
    if r.shard != "all" and r.replicate * int(r.shard) != ranks or ranks % r.replicate:
        raise InputError(
            f"parallel: replicate = {r.replicate} x shard = {r.shard} does not make the {ranks} ranks of this run"
        )
    for tracker in recipe.log.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"log.trackers: {tracker} is not installed: pip install {tracker}")


def check_names(models: Sequence[str], panel: str | None = None, tasks: Sequence[str] = ()) -> None:
    """Check that saved models, a panel and tasks are there, before torch is imported to read them.

    Raises:
        InputError: one is not.
    """
    for name in models:
        locate_here(name)
    if panel is not None:
        Panel.load(panel)
    load_tasks(tasks, limit=1)


def check_model(source: str, head: str | None, _above: int = 0) -> ModelConfig | None:
    """The config of a Hugging Face folder on this machine, whose weights are there; None for a GGUF file, whose header
    is read, and for a hub id.

    Args:
        head: "causal" refuses a reward model.

    Raises:
        InputError: there is no such model, or it is not supported.
    """
    path = locate_here(source)
    if path is None:
        return None
    if path.is_file():
        read_gguf(path)
        return None
    if is_adapter(path):
        written = read_peft_config(path)
        if head == "causal" and written.scalar:
            raise InputError(f"{source}: an adapter of a reward model; a language model is needed here")
        if _above == MAX_ADAPTERS:
            raise InputError(f"{source}: adapters over adapters, more than {MAX_ADAPTERS} or in a circle")
        base = check_model(written.base, head, _above + 1) if written.base else None
        return replace(base, head="scalar", tie_word_embeddings=False) if base and written.scalar else base
    config = read_config(path)
    if not any((path / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise InputError(f"{path}: no model.safetensors and no model.safetensors.index.json")
    if head == "causal" and config.head == "scalar":
        raise InputError(f"{source}: a reward model (it gives one score, no tokens); a language model is needed here")
    return config


def _check_source(source: str, head: str | None, planned: Sequence[Recipe]) -> tuple[str, ModelConfig | None]:
    """`check_model` of a model that may still have to be trained. Returns the kind of its head, "" where it is not
    known yet; and its config, None where that is not."""
    if (r := stand_in(source, planned)) is None:
        config = check_model(source, head)
        return "" if config is None else config.head, config
    its: Objective = r.objective.declaration
    if head == "causal" and its.head == "scalar":
        raise InputError(f"{source}: will be a reward model ({its.name}); a language model is needed here")
    return its.head, None


def _check_reward(source: str, planned: Sequence[Recipe]) -> None:
    if not source:
        raise InputError("reward.source is missing: a reward model, or regex:PATTERN")
    if source.startswith("regex:"):
        pattern_reward(source.removeprefix("regex:"))
        return
    with _of_key("reward.source"):
        if _check_source(source, None, planned)[0] == "causal":
            raise InputError(f"{source} is a language model; a reward model (one label) is needed")


@contextmanager
def _of_key(key: str) -> Iterator[None]:
    """Errors inside name the key of the recipe."""
    try:
        yield
    except InputError as error:
        named = str(error).startswith((f"{key}:", "data.format:"))
        raise InputError(str(error) if named else f"{key}: {error}") from None
