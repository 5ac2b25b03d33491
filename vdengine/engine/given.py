"""What a Trainer is given in memory, and the recipe that goes with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vdengine import recipe as recipes
from vdengine.engine.rollout import RewardFunction
from vdengine.errors import InputError
from vdengine.objectives import Objective
from vdengine.panels.panel import Panel


@dataclasses.dataclass(frozen=True)
class Given:
    """What the embedding program has in memory, in place of what a recipe names. See `Trainer`."""

    model: nn.Module | None = None
    tokenizer: Any = None
    data: Iterable[Any] | None = None
    eval_data: Iterable[Any] | None = None
    panel: Panel | None = None
    reward: RewardFunction | None = None

    def keys(self, no_data: bool) -> dict[str, str]:
        """The recipe's keys that are left out, and what stands there in the run folder.

        Args:
            no_data: whether the recipe names no data either.
        """
        objects = {
            "model.source": self.model,
            "model.tokenizer": self.tokenizer,
            "data.train": self.data,
            "data.eval": self.eval_data,
            "probes.panel": self.panel,
        }
        keys = {key: recipes.IN_MEMORY for key, given in objects.items() if given is not None}
        return keys | ({"data.train": recipes.OWN_BATCHES} if no_data and self.data is None else {})


def read_recipe(
    recipe: recipes.Recipe | str | Path | Mapping[str, Any], given: Given, objective: Objective | None
) -> recipes.Recipe:
    """The recipe of a run, checked.

    Args:
        recipe: one, or the path of one, or nested dictionaries.
        objective: one's own, which the recipe names or leaves out.

    Raises:
        InputError: as `load_recipe`; a source that is named and given too, or neither; another objective than the
            recipe names; a model without a tokenizer.
    """
    if isinstance(recipe, recipes.Recipe):
        no_data = recipe.data.train in ([], [recipes.OWN_BATCHES])
        checked = recipes.check(recipe, given.keys(no_data))
    elif isinstance(recipe, str | Path):
        checked = recipes.load_recipe(recipe, objective=objective, given=given.keys(recipes.names_no_data(recipe)))
    else:
        no_data = recipes.without_data(recipe)
        checked = recipes.make_recipe(dict(recipe), None, objective, given.keys(no_data))
    named = checked.objective.declaration
    if objective is not None and named is not objective:
        raise InputError(f'objective.name = "{named.name}", but the objective given is "{objective.name}"')
    if given.model is not None and not checked.model.tokenizer:
        raise InputError("a model is given without a tokenizer: give tokenizer= too, or name it in model.tokenizer")
    if given.panel is not None and checked.probes.every == 0:
        raise InputError("a panel has no effect with probes.every = 0")
    return checked
