"""`vdengine export RUN [STEP]`: a checkpoint of a run as a Hugging Face folder, as the run's own end writes it."""

from __future__ import annotations

from collections.abc import Sequence

from vdengine.cli.arguments import Parser
from vdengine.cli.common import verb
from vdengine.errors import InputError
from vdengine.runfolder import RunFolder


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    parser = Parser(
        prog="vdengine export",
        description="A checkpoint of a run as a Hugging Face folder: weights (with LoRA the adapter, in PEFT's "
        "format), tokenizer, the run's chat template and stop tokens. An earlier export there is replaced, nothing "
        "else is.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("step", nargs="?", metavar="STEP", help="of the checkpoint (default: the newest whole one)")
    parser.add_argument("--to", metavar="FOLDER", help="default: RUN/export-STEP; for the last of run.steps RUN/export")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the files (default: float32, as the weights)"
    )
    parser.add_argument("--merge", action="store_true", help="with LoRA: the whole model, to RUN/merged-STEP")
    args = parser.parse_args(argv)
    if args.step is not None and not args.step.isdecimal():
        raise InputError(f"STEP is the number of a step; got {args.step!r}")
    if not RunFolder.at(args.run).recipe.exists():
        raise InputError(f"{args.run}: not the folder of a run: it has no {RunFolder.at(args.run).recipe.name}")
    from vdengine.engine.saved_models import export

    step, folder = export(args.run, None if args.step is None else int(args.step), args.to, args.dtype, args.merge)
    print(f"step {step}: {folder}/")
    return 0
