"""`vdengine panel import KIND FILE --out PANEL.jsonl`: a panel from another's file; `export`: one as a task of another
harness; `check`: lint one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vdengine.cli.arguments import Parser
from vdengine.cli.common import names, verb
from vdengine.errors import InputError
from vdengine.recipe import READOUTS


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input; `check` gives 1 where it has warnings."""
    from vdengine.panels.exporters import HARNESSES, export_panel
    from vdengine.panels.importers import CONVERSATION_TYPES, KINDS

    parser = Parser(prog="vdengine panel", description="Import a panel, export or check one.")
    verbs = parser.add_subparsers(dest="verb", metavar="import | export | check", required=True)
    kinds = "\n".join(f"  {kind:8} {what}" for kind, what in KINDS.items())
    get = verbs.add_parser(
        "import",
        help="make a panel of somebody else's file",
        description=f"Make a panel of a file. KIND is\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    get.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    get.add_argument("file", metavar="FILE")
    get.add_argument("--out", required=True, metavar="PANEL.jsonl", help="where the panel goes; must not exist")
    get.add_argument("--topics", metavar="A,B", help="keep only these topics")
    get.add_argument("--limit", type=int, metavar="N", help="at most N probes of each topic, the first of the file")
    get.add_argument("--types", metavar="A,B", help=f"PRISM's conversation types: {', '.join(CONVERSATION_TYPES)}")
    get.add_argument(
        "--match",
        metavar="PANEL",
        help="give prompts without a topic one of this panel's, by its terms (default for PRISM: values; none: do not)",
    )
    get.add_argument("--terms", metavar="FILE.json", help='more terms for --match: {"topic": ["phrase", ...]}')
    get.add_argument("--no-openings", action="store_true", help="of persona statements: read them by answers only")
    out = verbs.add_parser("export", help="write a panel as a task of lm-evaluation-harness or of Inspect")
    out.add_argument("panel", help="a built-in name or .jsonl file")
    out.add_argument(
        "--to", required=True, metavar="HARNESS", help=", ".join(f"{k}: {v}" for k, v in HARNESSES.items())
    )
    out.add_argument("--readouts", metavar="A,B", help=f"for lm-eval: {', '.join(READOUTS)} (default: all there are)")
    out.add_argument("out", metavar="FOLDER", help="a new one")
    check = verbs.add_parser("check", help="lint a panel: lengths, polarity, wording, ids")
    check.add_argument("panel", help="a built-in name or .jsonl file")
    check.add_argument("--tokenizer", help="also look at its tokens, with this tokenizer")
    args = parser.parse_args(argv)
    if args.verb == "check":
        from vdengine.panels.lint import lint_text

        text, warnings = lint_text(args.panel, args.tokenizer)
        print(text)
        return 1 if warnings else 0
    if args.verb == "export":
        from vdengine.panels.panel import Panel

        readouts = tuple(args.readouts.split(",")) if args.readouts else None
        for file in export_panel(Panel.load(args.panel), args.to, Path(args.out), readouts):
            print(f"wrote {file}")
        return 0
    return run_import(args)


def run_import(args: argparse.Namespace) -> int:
    """Read, write, and say what was left out."""
    from vdengine.panels.importers import import_panel
    from vdengine.panels.panel import Panel
    from vdengine.panels.topics import TopicMatcher, load_terms

    out = Path(args.out)
    if out.suffix != ".jsonl":
        raise InputError(f"--out {out}: a panel's name ends in .jsonl")
    if out.exists():
        raise InputError(f"--out {out}: exists already; give another name")
    name = args.match or ("values" if args.kind == "prism" else "none")
    if args.terms and name == "none":
        raise InputError("--terms adds to the terms of --match; name a panel there")
    terms = load_terms(args.terms) if args.terms else None
    matcher = None if name == "none" else TopicMatcher(Panel.load(name), terms)
    imported = import_panel(
        args.kind,
        args.file,
        topics=names(args.topics),
        limit=args.limit,
        types=names(args.types),
        matcher=matcher,
        openings=not args.no_openings,
    )
    try:
        imported.panel.save(out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{out}: {imported.summary()}")
    return 0
