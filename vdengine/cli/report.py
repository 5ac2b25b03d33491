"""`vdengine report RUN [RUN ...]`: one HTML page for finished runs, with figures and tables beside it."""

from __future__ import annotations

from collections.abc import Sequence

from vdengine.cli.arguments import Parser
from vdengine.cli.common import names, verb

READOUTS = ("lead", "argument", "text_likelihood", "answers")


@verb
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    parser = Parser(prog="vdengine report", description="A page, figures and tables of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or that score or judge wrote")
    parser.add_argument("--out", metavar="FOLDER", help="default: RUN/report for one run, ./report for several")
    parser.add_argument("--readout", choices=READOUTS, help="shown first (default: the first of these that there is)")
    parser.add_argument("--judge", metavar="SLUG", help="answers as this judge reads them only")
    parser.add_argument(
        "--smoothing",
        help="none, ema or local-linear, with a width if wanted: ema:0.1 (default: none; answers: local-linear)",
    )
    parser.add_argument("--baseline", type=int, metavar="STEP", help="shifts are since this step (default: the first)")
    parser.add_argument(
        "--gap", action="append", default=[], metavar="FILE.json", help="what `vdengine gap --out` wrote; repeatable"
    )
    parser.add_argument("--topics", metavar="A,B", help="only these topics")
    parser.add_argument("--labels", metavar="NAME,NAME", help="names for the runs, in their order")
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="no PNG, SVG and PDF: faster")
    args = parser.parse_args(argv)
    from vdengine.report import report

    page = report(
        args.runs,
        out=args.out,
        readout=args.readout,
        judge=args.judge,
        smoothing=args.smoothing,
        baseline=args.baseline,
        gaps=args.gap,
        topics=names(args.topics),
        labels=names(args.labels),
        title=args.title,
        figures=args.figures,
        say=print,
    )
    print(f"wrote {page}")
    return 0
