"""`python -m vdengine.train RECIPE [RECIPE ...] [section.key=value ...]`: train a recipe, or several one after another,
under torchrun or alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdengine.cli.arguments import RecipeParser
from vdengine.cli.common import verb
from vdengine.errors import InputError
from vdengine.recipe import Recipe, differences, saved_recipe
from vdengine.runfolder import RunFolder
from vdengine.signals import SIGNALS, Requests

if TYPE_CHECKING:
    from vdengine.engine.trainer import Trainer


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    parser = RecipeParser(
        prog="vdengine train",
        usage="%(prog)s RECIPE [RECIPE ...] [section.key=value ...] [options]",
        description="Train a recipe and trace the model's values. A run folder that exists is resumed. Several recipes "
        "are trained one after another: stages of a history, each naming the run that it goes on from (run.after).",
        epilog="On several GPUs: torchrun --standalone --nproc-per-node 8 -m vdengine.train RECIPE",
    )
    parser.add_argument(
        "--show-batch", type=int, metavar="N", help="print the first N rows as the model will see them, and stop"
    )
    args, recipes = parser.read_all(argv)
    if args.show_batch is not None and args.show_batch < 1:
        parser.error("--show-batch takes a number of rows, 1 or more")
    if args.show_batch is not None and len(recipes) > 1:
        parser.error("--show-batch takes one recipe")
    main_rank = os.environ.get("RANK", "0") == "0"
    if main_rank:  # before torch is imported, which takes a while
        from vdengine.engine.preflight import preflight

        for number, recipe in enumerate(recipes):
            _check_order(recipe, recipes[number + 1 :])
            preflight(recipe, recipes[:number])
    if args.show_batch is not None:
        return show_batch(recipes[0], args.show_batch)
    left = _left(recipes)
    with _one_group() if len(left) > 1 else contextlib.nullcontext():
        for recipe in left:
            if main_rank:
                print(f"{recipe.run.folder}: loading torch, the model and the data", flush=True)
            if status := train(recipe):
                return status
    return 0


def _one_group() -> contextlib.AbstractContextManager[None]:
    """One process group for several runs."""
    from vdengine.engine.parallel import one_group  # with torch

    return one_group()


def _check_order(recipe: Recipe, later: Sequence[Recipe]) -> None:
    """Raises InputError for a recipe that goes on from one which is named after it."""
    for other in later if recipe.run.after else ():
        if os.path.realpath(str(RunFolder.at(str(recipe.run.after)).path)) == os.path.realpath(
            RunFolder.at(other.run.folder).path
        ):
            raise InputError(
                f"{recipe.run.folder} goes on after {other.run.folder} (run.after), so its recipe is to be named after "
                "that one's"
            )


def _left(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Of several recipes those whose runs are not finished; decided by every rank before any of them trains."""
    from vdengine.engine.stages import unfinished

    if len(recipes) == 1:
        return list(recipes)
    left = [r for r in recipes if not r.checkpoint.export or unfinished(r.run.folder) or _changed(r)]
    if os.environ.get("RANK", "0") == "0":
        for recipe in recipes:
            if recipe not in left:
                print(f"{recipe.run.folder}: finished already", flush=True)
    return left


def _changed(recipe: Recipe) -> bool:
    """Whether a run's folder is of another recipe than this one: the trainer then says what differs, or goes on."""
    return bool(differences(saved_recipe(RunFolder.at(recipe.run.folder).recipe), recipe))


def train(recipe: Recipe) -> int:
    """The whole run, in order. Exit status 128 + the signal's number where one has stopped it."""
    main_rank = os.environ.get("RANK", "0") == "0"
    with Requests(SIGNALS, announce=main_rank) as requests:
        from vdengine.engine import console
        from vdengine.engine.clocks import profiler
        from vdengine.engine.trainer import Trainer
        from vdengine.engine.trouble import NothingLearned

        started = time.perf_counter()
        t = Trainer(recipe)
        requests.tell(t.stopping.ask)
        screen = console.Console(t)
        try:
            screen.say(console.plan(t) + "\n")
            with profiler(t.folder, recipe.log.profile, t.world.rank) as profile:
                while t.step_count < t.total_steps and not t.stopping.signal:
                    t.step()
                    profile.step()
                    screen.step()
                    if every(recipe.data.eval_every, t):
                        screen.evaluation(t.evaluate())
                    if every(recipe.checkpoint.every, t) or t.stopping.failed:  # that says what has failed
                        t.save()
            if t.stopping.signal and t.step_count < t.total_steps:
                t.save()
                t.saver.wait()
                screen.stopped(t.stopping.signal, again())
                return 128 + t.stopping.signal
            if t.step_count > t.resumed_at:  # not when a finished run is started again
                screen.evaluation(t.evaluate())
            t.finish()
            screen.end(time.perf_counter() - started)
        except NothingLearned:
            with contextlib.suppress(InputError, OSError):
                t.save()  # with the count, so that a run that is started again by itself gives up at once
            raise
        finally:
            failing = sys.exc_info()[1] is not None
            for close in (screen.close, t.close):
                try:
                    close()
                except (InputError, OSError, RuntimeError) as error:
                    if not failing:
                        raise
                    print(f"and at the end: {error}", file=sys.stderr)  # beside the error that is on its way
    return 0


def again() -> str:
    """The command that goes on with this run."""
    words = sys.argv[1:] if Path(sys.argv[0]).stem in ("vdengine", "__main__") else ["train", *sys.argv[1:]]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun ... -m vdengine.train {shlex.join(words[1:])}"
    return f"vdengine {shlex.join(words)}"


def every(n: int, t: Trainer) -> bool:
    """Whether something done every n steps is due now. The end has its own turn."""
    return n > 0 and t.step_count % n == 0 and t.step_count < t.total_steps


def show_batch(recipe: Recipe, count: int) -> int:
    """Rows of the first steps with prompt, scored and unscored tokens told apart."""
    from vdengine.data.show import show_batch
    from vdengine.engine.rows import open_loader, open_store
    from vdengine.models.peft_config import tokenizer_of
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_of(recipe.model.tokenizer or recipe.model.source))
    store = open_store(recipe, recipe.data.train, Renderer(tokenizer, template=recipe.data.template), progress=True)
    loader = open_loader(recipe, store)
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
