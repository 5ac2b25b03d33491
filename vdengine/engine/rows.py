"""The rows of a recipe: its store, and the loader that deals them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vdengine.data.building import build_store
from vdengine.data.loader import Loader
from vdengine.data.locate import Source
from vdengine.data.store import Store
from vdengine.objectives import Objective
from vdengine.recipe import Recipe
from vdengine.text.renderer import Renderer


def open_store(
    recipe: Recipe,
    paths: Sequence[str | Source],
    renderer: Renderer,
    progress: bool,
    vocab_size: int | None = None,
    workers: int | None = None,
) -> Store:
    """The rows of `paths` as the recipe's objective reads them.

    Args:
        progress: whether this process is the one that says so; it verifies what it opens.
        vocab_size: of the model, which must have every id; None: not known.
        workers: as in `build_store`.

    Raises:
        InputError: as `build_store`.
    """
    objective: Objective = recipe.objective.declaration
    room = recipe.rollout.max_new_tokens if objective.rollout else 0  # for what follows a prompt
    return build_store(
        paths,
        recipe.data.format,
        objective.rows,
        renderer,
        max_tokens=recipe.data.max_tokens - room,
        reserved=room,
        overlong=recipe.data.overlong,
        cache=recipe.data.cache,
        progress=progress,
        workers=workers,
        vocab_size=vocab_size,
        verify=progress,
    )


def open_loader(recipe: Recipe, store: Store, *, evaluation: Store | float | None = None, **more: Any) -> Loader:
    """The loader of a recipe's rows.

    Args:
        evaluation: the held-out rows, or their share; default: the recipe's share.
        more: as `Loader` takes them.
    """
    return Loader(
        store,
        examples=recipe.batch.examples,
        seed=recipe.run.seed,
        weights=recipe.data.weights,
        evaluation=recipe.data.eval_fraction if evaluation is None else evaluation,
        eval_examples=recipe.data.eval_examples,
        **more,
    )
