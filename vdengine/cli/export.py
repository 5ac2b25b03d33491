"""`vdengine export RUN [STEP]`: a checkpoint of a run as a Hugging Face folder, as the run's own end writes it, with a
model card; and its upload to the hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vdengine.cli.arguments import Parser
from vdengine.cli.common import verb
from vdengine.errors import InputError
from vdengine.hub import TOKEN, locate_here, open_repository, upload
from vdengine.outside import printable
from vdengine.recipe import load_scoring_recipe
from vdengine.runfolder import RunFolder


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    _refuse_tokens(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="vdengine export",
        description="A checkpoint of a run as a Hugging Face folder: weights (with LoRA the adapter, in PEFT's "
        "format), tokenizer, the run's chat template and stop tokens, and a model card with what training did to its "
        "values. An earlier export there is replaced, nothing else is.",
        epilog="A token for --push is the hub client's own: hf auth login, or HF_TOKEN.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("step", nargs="?", metavar="STEP", help="of the checkpoint (default: the newest whole one)")
    parser.add_argument("--to", metavar="FOLDER", help="default: RUN/export-STEP; for the last planned step RUN/export")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the files (default: float32, as the weights)"
    )
    parser.add_argument("--merge", action="store_true", help="with LoRA: the whole model, to RUN/merged-STEP")
    parser.add_argument("--license", metavar="ID", help="for the card, as apache-2.0 (default: the base model's)")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload it to this repository of the hub, made if need be")
    parser.add_argument("--private", action="store_true", help="with --push: a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="with --push: to this branch (default: the main one)")
    parser.add_argument("--message", metavar="TEXT", help="with --push: of the commit")
    args = parser.parse_args(argv)
    for name in ("private", "revision", "message"):
        if getattr(args, name) and args.push is None:
            raise InputError(f"--{name} has no effect without --push ORG/NAME")
    if args.step is not None and not args.step.isdecimal():
        raise InputError(f"STEP is the number of a step; got {args.step!r}")
    if not RunFolder.at(args.run).recipe.exists():
        raise InputError(f"{args.run}: not the folder of a run: it has no {RunFolder.at(args.run).recipe.name}")
    asked = None if args.step is None else int(args.step)
    if args.push is not None:  # what is wrong with it is said before the weights are written
        _check_pushable(RunFolder.at(args.run), asked, args.to, args.merge)
        open_repository(args.push, private=args.private, revision=args.revision)
    from vdengine.engine.exporting import export
    from vdengine.models.export import add_to_export, export_files
    from vdengine.models.peft_config import is_adapter
    from vdengine.report.card import card

    step, folder = export(args.run, asked, args.to, args.dtype, args.merge)
    add_to_export(folder, card(args.run, step, args.license, is_adapter(folder)))
    print(f"step {step}: {folder}/")
    if args.push is not None:
        message = args.message or f"{Path(args.run).resolve().name}, step {step}"
        print(f"pushed: {upload(folder, args.push, export_files(folder), message, args.revision)}")
    return 0


def _check_pushable(files: RunFolder, step: int | None, to: str | None, merge: bool) -> None:
    """Check that there will be something to push, and that others can load it, before a repository is made for it.

    Raises:
        InputError: an adapter of a model that is on this machine alone, whose path would be published with it; no such
            checkpoint or none that is whole; a folder that the export may not be written to.
    """
    from vdengine.engine.checkpoint import checkpoints, inspect, step_of
    from vdengine.models.export import check_replaceable

    recipe = load_scoring_recipe(files.recipe)
    if files.adapter.exists() and not merge and locate_here(recipe.model.source) is not None:
        raise InputError(
            f"--push: the adapter's base, {printable(recipe.model.source)}, is on this machine alone, so nobody else "
            "could load it: push the merged model: --merge"
        )
    whole = [step_of(folder) for folder in checkpoints(files.path) if not inspect(folder, hashes=False)[1]]
    if not whole or step is not None and step not in whole:
        which = "" if step is None else f" of step {step}"
        raise InputError(
            f"{files.checkpoints}: no whole checkpoint{which}; there are {', '.join(map(str, whole)) or 'none'}"
        )
    if to is not None:
        check_replaceable(Path(to), recipe.models)


def _refuse_tokens(words: Sequence[str]) -> None:
    """Raises InputError, which does not repeat it, for a token among the arguments: others can read those."""
    if any(TOKEN.search(word) or word.split("=")[0] in ("--token", "--hf-token") for word in words):
        raise InputError(
            "a token is not taken on the command line, where other users and the shell's history see it: "
            "hf auth login, or HF_TOKEN"
        )
