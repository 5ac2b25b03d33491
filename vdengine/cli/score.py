"""`vdengine score MODEL [MODEL ...]`: the panel's scores of saved models, equal to a training run's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vdengine.cli.arguments import Parser
from vdengine.cli.common import names, verb
from vdengine.errors import InputError
from vdengine.recipe import READOUTS


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input; `--check-panel` gives 1 where it has warnings."""
    parser = Parser(prog="vdengine score", description="Score a panel on saved models, or check one.")
    parser.add_argument(
        "models", nargs="*", help="folders, hub ids (org/name@revision), .gguf files, or checkpoints of a run"
    )
    parser.add_argument("--panel", help="a built-in name or .jsonl file (default: the run's own, else values-mini)")
    parser.add_argument("--out", metavar="FOLDER", help="keep the raw scores there, as a run does in its drift/")
    parser.add_argument("--template", default=None, help="chat template (default: the run's own, else the tokenizer's)")
    parser.add_argument("--tokens", type=int, default=None, help="budget of a pack (default: the run's own, else 2048)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default=None)
    parser.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also score the controls on the first and the last model (default: as the run did, else yes)",
    )
    parser.add_argument("--json", metavar="FILE", help="write readouts and shifts as JSON; - for standard output")
    parser.add_argument(
        "--readouts", metavar="A,B", help=f"of {', '.join(READOUTS)} (default: as the run did, else all there is)"
    )
    parser.add_argument(
        "--stages",
        metavar="A,B",
        help="names of the models' stages, in their order, for the report (default: revisions, or ends of names)",
    )
    parser.add_argument("--check-panel", metavar="PANEL", help="the same as `vdengine panel check PANEL`")
    parser.add_argument("--tokenizer", help="with --check-panel: also look at its tokens, with this tokenizer")
    args = parser.parse_args(argv)
    if args.check_panel:
        from vdengine.panels.lint import lint_text

        text, warnings = lint_text(args.check_panel, args.tokenizer)
        print(text)
        return 1 if warnings else 0
    if args.stages is not None and args.out is None:
        raise InputError("--stages has no effect without --out: the report reads the names there")
    if not args.models:
        raise InputError("name at least one model to score, or --check-panel PANEL")
    from vdengine.engine.preflight import check_names

    check_names(args.models, args.panel)
    from vdengine.engine.saved_models import score

    score(
        args.models,
        args.panel,
        args.out,
        args.template,
        args.tokens,
        args.dtype,
        args.controls,
        args.json,
        args.readouts.split(",") if args.readouts else None,
        names(args.stages),
    )
    return 0
