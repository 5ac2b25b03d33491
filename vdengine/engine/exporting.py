"""The model of a run's checkpoint as a folder of its own: `vdengine export`."""

from __future__ import annotations

from pathlib import Path

import torch

from vdengine.engine.checkpoint import checkpoints, inspect, step_of
from vdengine.engine.saved_models import load_checkpoint
from vdengine.engine.stages import planned_steps
from vdengine.errors import InputError
from vdengine.models.export import Base, check_replaceable, save_adapter, save_model
from vdengine.models.peft_config import tokenizer_of
from vdengine.models.weights import ScalarWeights, open_weights
from vdengine.objectives import Objective
from vdengine.outside import json_object
from vdengine.recipe import load_scoring_recipe, saved_recipe
from vdengine.runfolder import RunFolder
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


def export(
    run: str | Path,
    step: int | None = None,
    to: str | Path | None = None,
    dtype: str | None = None,
    merge: bool = False,
) -> tuple[int, Path]:
    """Write a checkpoint of a run as a Hugging Face folder, or with LoRA as an adapter in PEFT's format, as the end of
    the run does: with its tokenizer, its chat template and the tokens that end its turns. Returns the step and the
    folder.

    Args:
        step: of the checkpoint; default: of the newest whole one.
        to: default: `export-STEP` in the run's folder, or for the last of its planned steps its own `export`, which is
            the mark of a run that is done. An earlier export is replaced. With `merge` it is `merged-STEP`.
        dtype: of the tensors in the files; default: "float32", that of the weights. An adapter's are float32.
        merge: with LoRA: the whole model, with the adapter in its weights.

    Raises:
        InputError: no run, no such checkpoint or none that is whole, a run whose model was in memory, contents of model
            or template that have changed since, or a folder that is no export or a model of the run.
    """
    files = RunFolder.at(run)
    recipe = load_scoring_recipe(files.recipe)
    try:
        whole = saved_recipe(files.recipe)
    except InputError:  # an objective that is not known here: taken to be a language model's
        whole = recipe
    found = _whole_checkpoint(files, step)
    step = step_of(found)
    if merge and not files.adapter.exists():
        raise InputError(f"{files.path}: --merge has no effect: the run has no adapter, its export is the whole model")
    if dtype and files.adapter.exists() and not merge:
        raise InputError("--dtype has no effect on an adapter, which is float32; give --merge too")
    own = files.export if step == planned_steps(files, recipe) else files.path / f"{files.export.name}-{step}"
    own = files.path / f"merged-{step}" if merge else own
    target = Path(to) if to else own
    check_replaceable(target, whole.models)
    weights = open_weights(recipe.model.source)
    objective: Objective = whole.objective.declaration
    if objective.head == "scalar" and weights.config.head == "causal":
        weights = ScalarWeights(weights, whole.run.seed)
    tokenizer = load_tokenizer(tokenizer_of(recipe.model.tokenizer or recipe.model.source))
    renderer = Renderer(tokenizer, template=recipe.data.template)
    key = "model.tokenizer or data.template"
    if json_object(files.inputs).get(key, renderer.hash) != renderer.hash:
        raise InputError(f"{files.inputs}: {key} has other contents now than in the run")
    model = load_checkpoint(found, weights)
    if model.lora is not None and not merge:
        save_adapter(model, tokenizer, target, Base(recipe.model.source, weights.base_hash), renderer=renderer)
    else:
        save_model(model, tokenizer, target, getattr(torch, dtype) if dtype else None, renderer=renderer)
    return step, target


def _whole_checkpoint(files: RunFolder, step: int | None) -> Path:
    """The checkpoint of that step, or the newest whole one."""
    kept = checkpoints(files.path)
    if not kept:
        raise InputError(f"{files.checkpoints}: no checkpoint")
    if step is not None:
        folder = files.checkpoint(step)
        if folder not in kept:
            steps = ", ".join(str(step_of(other)) for other in kept)
            raise InputError(f"{files.checkpoints}: no checkpoint of step {step}; there are {steps}")
        return folder
    reasons = []
    for folder in reversed(kept):
        _, reason = inspect(folder)
        if not reason:
            return folder
        reasons.append(f"{folder.name} ({reason})")
    raise InputError(f"{files.checkpoints}: no whole checkpoint: {'; '.join(reasons)}")
