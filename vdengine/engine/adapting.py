"""The adapter that a run trains, from its recipe: a new one, or one on disk. Without torch as far as tensors are not
looked at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.hub import locate
from vdengine.models.families import ModelConfig
from vdengine.models.peft_config import Lora, linear_layers, peft_config, read_peft_config
from vdengine.recipe import Recipe
from vdengine.runfolder import RunFolder

if TYPE_CHECKING:
    from vdengine.models.adapters import Adapter
    from vdengine.models.weights import Weights


def open_adapter(recipe: Recipe, weights: Weights, notes: list[str]) -> tuple[Lora | None, Adapter | None]:
    """What is trained beside the frozen weights, and what it starts from; None where it is new. Both None: the weights
    are trained. What is worth saying is added to `notes`.

    Raises:
        InputError: targets that the model has not; an adapter that cannot be read, or of another base model.
    """
    from vdengine.models.adapters import Adapter  # with torch

    keys = recipe.lora
    if not keys.start:
        return named_adapter(recipe, weights.config), None
    with _of_key(recipe):
        start = Adapter(keys.start)
        lora = start.lora(weights.config, weights.base_hash if start.base_hash else None)
    notes += start.other_base(recipe.model.source)
    return dataclasses.replace(lora, dropout=keys.dropout), start


def named_adapter(recipe: Recipe, config: ModelConfig) -> Lora | None:
    """The adapter that a run of this model trains, by what the recipe says and no tensor; None where it trains the
    model.

    Raises:
        InputError: as `open_adapter`.
    """
    keys = recipe.lora
    if not recipe.has_lora:
        return None
    with _of_key(recipe):
        if keys.rank is not None:
            lora = Lora(keys.rank, keys.alpha, tuple(keys.targets), keys.dropout, keys.rslora)
        else:
            written = read_peft_config(locate(keys.start))
            layers = written.targeted(config)  # None: an expression, taken for all there are
            lora = written.lora(linear_layers(config) if layers is None else layers, config)
        lora.modules(config)
    return lora


def write_adapter(files: RunFolder, lora: Lora | None, config: ModelConfig, recipe: Recipe) -> None:
    """Write to a run's folder what its checkpoints are adapters of; nothing where they are whole models."""
    if lora is not None:
        write_text(files.adapter, json.dumps(peft_config(lora, config, recipe.model.source), indent=2) + "\n")


@contextmanager
def _of_key(recipe: Recipe) -> Iterator[None]:
    """Errors inside name the key."""
    try:
        yield
    except InputError as error:
        raise InputError(f"lora.{'start' if recipe.lora.start else 'targets'}: {error}") from None
