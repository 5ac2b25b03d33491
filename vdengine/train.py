"""`python -m vdengine.train RECIPE [section.key=value ...]`: train a recipe, under torchrun or alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vdengine.cli.common import verb
from vdengine.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from vdengine.engine.trainer import Trainer


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    parser = argparse.ArgumentParser(prog="vdengine train", description="Train a recipe and trace the model's values.")
    parser.add_argument("recipe", help="a TOML file; see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace keys of the recipe")
    parser.add_argument(
        "--show-batch", type=int, metavar="N", help="print the first N rows as the model will see them, and stop"
    )
    args = parser.parse_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)
    if args.show_batch is not None:
        return show_batch(recipe, args.show_batch)
    return train(recipe)


def train(recipe: Recipe) -> int:
    """The whole run, in order."""
    from vdengine.engine import console
    from vdengine.engine.clocks import profiler
    from vdengine.engine.trainer import Trainer

    started = time.perf_counter()
    t = Trainer(recipe)
    screen = console.Console(t)
    try:
        screen.say(console.plan(t) + "\n")
        with profiler(t.folder, recipe.log.profile, t.world.rank) as profile:
            while t.step_count < t.total_steps:
                t.step()
                profile.step()
                screen.step()
                if every(recipe.data.eval_every, t):
                    screen.evaluation(t.evaluate())
                if every(recipe.checkpoint.every, t):
                    t.save()
        if t.step_count > t.resumed_at:  # not when a finished run is started again
            screen.evaluation(t.evaluate())
        t.finish()
        screen.end(time.perf_counter() - started)
    finally:
        screen.close()
        t.close()
    return 0


def every(n: int, t: Trainer) -> bool:
    """Whether something done every n steps is due now. The end has its own turn."""
    return n > 0 and t.step_count % n == 0 and t.step_count < t.total_steps


def show_batch(recipe: Recipe, count: int) -> int:
    """Rows of the first steps with prompt, scored and unscored tokens told apart."""
    from vdengine.data.loader import Loader
    from vdengine.data.show import show_batch
    from vdengine.engine.setup import open_store
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(recipe.model.tokenizer or recipe.model.source)
    store = open_store(recipe, recipe.data.train, Renderer(tokenizer, template=recipe.data.template), progress=True)
    loader = Loader(
        store,
        examples=recipe.batch.examples,
        seed=recipe.run.seed,
        weights=recipe.data.weights,
        evaluation=recipe.data.eval_fraction,
    )
    rows: list[int] = []
    for step in range(loader.steps_per_epoch):
        rows += loader.rows(step).tolist()
        if len(rows) >= count:
            break
    show_batch(store, tokenizer, rows[:count])
    loader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
