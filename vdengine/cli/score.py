"""`vdengine score MODEL [MODEL ...]`: the scores of a panel and of tasks by saved models, equal to a run's own."""

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
    parser = Parser(prog="vdengine score", description="Score a panel or tasks on saved models, or check a panel.")
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
    parser.add_argument(
        "--tasks",
        metavar="A,B",
        help="tasks of multiple choice: lm-eval's .yaml without code, or rows; alone unless --panel is there too "
        "(default: the run's own beside its panel)",
    )
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="of each task the first N rows")
    parser.add_argument("--chat", action="store_true", help="prompts of tasks in the chat template")
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
    sources = args.tasks.split(",") if args.tasks else []
    if not sources and (args.limit is not None or args.chat):
        raise InputError(f"--{'limit' if args.limit is not None else 'chat'} has no effect without --tasks")
    if sources and not args.panel:
        for name, value in (("readouts", args.readouts), ("controls", args.controls)):
            if value is not None:
                raise InputError(f"--{name} has no effect on tasks alone; name a --panel too")
    if (args.limit or 1) < 1:
        raise InputError(f"--limit {args.limit}: at least 1 row of a task")
    from vdengine.engine.preflight import check_names

    check_names(args.models, args.panel, sources)
    from vdengine.engine.saved_models import TaskOptions, score

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
        TaskOptions(sources, args.limit or 0, args.chat, args.tokens or TaskOptions.tokens) if sources else None,
    )
    return 0
