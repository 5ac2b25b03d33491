"""What must hold before a run starts as the next stage of another: that one is finished, and the panel, its readouts,
the tokenizer and the chat template are the same, so that the samples of both make one history."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdengine.drift.chain import earlier_runs
from vdengine.engine.resuming import last_metrics
from vdengine.errors import InputError
from vdengine.files import Lock
from vdengine.models.peft_config import tokenizer_of
from vdengine.objectives import Objective
from vdengine.outside import json_object
from vdengine.panels.panel import Panel
from vdengine.recipe import IN_MEMORY, Recipe, load_scoring_recipe, saved_recipe
from vdengine.runfolder import RunFolder
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Before:
    """The stages before a run."""

    folders: tuple[Path, ...]  # the first stage first
    step: int  # updates of all of them: the step of the history at which this run begins

    @property
    def names(self) -> list[str]:
        """Of the stages."""
        return [folder.resolve().name for folder in self.folders]


def stages_before(recipe: Recipe, planned: Sequence[Recipe] = (), panel: Panel | None = None) -> Before | None:
    """The stages before a run, checked; None where it starts a history of its own.

    Args:
        planned: recipes whose runs are trained before this one: of these nothing need be there.
        panel: instead of `probes.panel`.

    Raises:
        InputError: there is none such, it is not finished, it leads back to this run, or it has another panel, readout,
            tokenizer or template.
    """
    if not recipe.run.after:
        return None
    coming = {_real(r.run.folder): r for r in planned}
    tables = {folder: {"folder": r.run.folder, "after": r.run.after} for folder, r in coming.items()}
    folders = earlier_runs(recipe.run.folder, recipe.run.after, tables)
    before = folders[-1]
    if (old := coming.get(_real(before))) is None:
        if reason := unfinished(before):
            raise InputError(f"run.after: {before}: {reason}")
        old = _recipe_of(RunFolder(before))
    elif not old.checkpoint.export:
        raise InputError(f"run.after: {before}: has checkpoint.export = false, so there will be nothing to start from")
    _check_same(recipe, old, before, panel, planned)
    return Before(tuple(folders), sum(last_metrics(RunFolder(folder)).get("step", 0) for folder in folders))


def unfinished(folder: str | Path) -> str:
    """Why a later stage cannot start from the run in a folder; "" where it can."""
    files = RunFolder.at(folder)
    if not files.recipe.exists():
        return f"not the folder of a run: it has no {files.recipe.name}"
    done, planned = last_metrics(files).get("step", 0), planned_steps(files, _recipe_of(files))
    if planned is not None and done < planned:
        where = f"step {done} of {planned}"
    elif files.export.is_dir():
        return ""
    elif planned is None or not done:
        where = f"step {done}"
    else:
        return f"has no export: vdengine export {files.path}"
    try:
        Lock(files.lock, "it is being trained").undo()
    except InputError:
        return f"not finished ({where}), and being trained now: wait for it"
    return f"not finished ({where}): train it to its end first, vdengine train {files.recipe}"


def planned_steps(files: RunFolder, recipe: Recipe) -> int | None:
    """How many steps a run is to have; None where its recipe counts epochs and it has logged nothing."""
    run, row = recipe.run, last_metrics(files, "epoch")
    if run.steps is not None or run.epochs is None:
        return run.steps
    epoch = row.get("epoch")
    if not isinstance(epoch, float) or not epoch > 0:
        return None
    per_epoch = row["step"] / epoch
    return math.ceil(run.epochs * round(per_epoch)) if per_epoch < 2**53 else None  # more is no count of anything


def _recipe_of(files: RunFolder) -> Recipe:
    """A run's recipe; of an objective that is not known here what its weights are read by."""
    try:
        return saved_recipe(files.recipe)
    except InputError:
        return load_scoring_recipe(files.recipe)


def stand_in(source: str, planned: Sequence[Recipe]) -> Recipe | None:
    """The recipe whose run will export the model `source`, where it is not there yet."""
    if source == IN_MEMORY or os.path.isdir(os.path.expanduser(source)):
        return None
    return next((r for r in planned if _real(RunFolder.at(r.run.folder).export) == _real(source)), None)


def tokenizer_and_template(recipe: Recipe, planned: Sequence[Recipe] = ()) -> tuple[str, str]:
    """What a recipe's texts are read with: the name of a tokenizer, and a chat template. Of a model that is still to be
    exported they are those of its run, which the export takes over."""
    source, template = recipe.model.tokenizer or recipe.model.source, recipe.data.template
    if (r := stand_in(source, planned)) is None:
        return source, template
    tokenizer, its = tokenizer_and_template(r, planned)
    return tokenizer, its if template == "auto" else template


def _check_same(recipe: Recipe, old: Recipe, before: Path, given: Panel | None, planned: Sequence[Recipe]) -> None:
    """Raises InputError unless the samples of both are of the same things."""
    apart = f"; or name {RunFolder(before).export} in model.source, without run.after: a history of its own"
    objectives: tuple[Objective, Objective] = (recipe.objective.declaration, old.objective.declaration)
    if any(objective.head == "scalar" for objective in objectives):
        return  # a reward model has no log-probs: it takes the weights over, and the history does not go on in it
    if (recipe.probes.every == 0) != (old.probes.every == 0):
        off, on = (recipe.run.folder, before) if recipe.probes.every == 0 else (before, recipe.run.folder)
        raise InputError(
            f"run.after: {on} is probed and {off} is not (probes.every = 0): stages of one history both are{apart}"
        )
    if recipe.probes.every == 0:
        return
    if set(recipe.probes.readouts) != set(old.probes.readouts):
        raise InputError(
            f"probes.readouts: {', '.join(recipe.probes.readouts)}, and {before} has "
            f"{', '.join(old.probes.readouts)}: stages of one history have the same{apart}"
        )
    files = RunFolder(before)
    if old.probes.panel == IN_MEMORY or files.has_panel_scores:
        hash_before = json_object(files.drift / "manifest.json").get("panel_hash")
    else:
        hash_before = Panel.load(old.probes.panel).hash
    panel = Panel.load(recipe.probes.panel) if given is None else given
    if panel.hash != hash_before:
        raise InputError(
            f"probes.panel: {panel.name} is another panel than that of {before} ({old.probes.panel}), or another "
            f"version of it: stages of one history have the same{apart}"
        )
    if not recipe.model.tokenizer and recipe.data.template == "auto":
        return  # those of the export
    if IN_MEMORY in (recipe.model.tokenizer, old.model.tokenizer, old.model.source):
        return  # what is in memory only its own program knows; the first sample shows it
    tokenizer, template = tokenizer_and_template(old, planned)
    theirs = Renderer(load_tokenizer(tokenizer_of(tokenizer)), template=template)
    if recipe.model.tokenizer or recipe.data.template != "auto":
        template = recipe.data.template
    mine = Renderer(load_tokenizer(tokenizer_of(recipe.model.tokenizer or tokenizer)), template=template)
    if mine.hash != theirs.hash and _ids(mine, panel) != _ids(theirs, panel):
        key = "model.tokenizer" if recipe.model.tokenizer else "data.template"
        raise InputError(
            f"{key}: reads the panel in other tokens than {before} did: stages of one history have one tokenizer and "
            f"one chat template; leave {key} out to take that of the export{apart}"
        )


def _ids(renderer: Renderer, panel: Panel) -> list[list[int]]:
    """The ids of a panel's questions, as prompts."""
    return [renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in panel.probes]


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))
