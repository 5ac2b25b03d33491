"""`vdengine report RUN [RUN ...]`: one HTML page for finished runs, with figures and tables beside it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vdengine.errors import InputError

READOUTS = ("openings", "answers")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    parser = argparse.ArgumentParser(prog="vdengine report", description="A page, figures and tables of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or that score or judge wrote")
    parser.add_argument("--out", metavar="FOLDER", help="default: RUN/report for one run, ./report for several")
    parser.add_argument("--readout", choices=READOUTS, help="shown first (default: answers, where they are judged)")
    parser.add_argument("--judge", metavar="SLUG", help="answers as this judge reads them only")
    parser.add_argument(
        "--smoothing", default="none", help="none, ema or local-linear, with a width if wanted: ema:0.1"
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
    try:
        where = report(
            args.runs, out=args.out, readout=args.readout, judge=args.judge, smoothing=args.smoothing,
            baseline=args.baseline, gaps=args.gap, topics=_listed(args.topics), labels=_listed(args.labels),
            title=args.title, figures=args.figures, say=print,
        )  # fmt: skip
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    print(f"wrote {where}")
    return 0


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [t.strip() for t in text.split(",") if t.strip()]


def _quiet(text: str) -> None:
    """Notes are on the page."""


def report(
    runs: Sequence[str | Path], *, out: str | Path | None = None, readout: str | None = None, judge: str | None = None,
    smoothing: str = "none", baseline: int | None = None, gaps: Sequence[str | Path] = (),
    topics: Sequence[str] | None = None, labels: Sequence[str] | None = None, title: str | None = None,
    figures: bool = True, say: Callable[[str], None] = _quiet,
) -> Path:  # fmt: skip
    """Write `index.html`, `figures/` and `tables/`, and return the page's path.

    Args:
        out: a folder. Default: `<run>/report` for one run, `./report` for several.
        readout: "openings" or "answers", shown first. Default: answers where they are judged.
        judge: the slug of one judge, whose readings alone are shown; others only for agreement.
        smoothing, baseline: as `drift.estimators.analyse` takes them.
        gaps: files that `vdengine gap --out` wrote.
        labels: names of the runs. Default: their folders' names.
        say: told what was left out, line by line.

    Raises:
        InputError: plotly or matplotlib missing; a run that cannot be read; runs with different panels; an unknown
            topic or judge; labels that do not fit; a folder that cannot be written.
    """
    _needs_extra()
    from vdengine.report import page, tables
    from vdengine.report.figures import draw
    from vdengine.report.gaps import load_gaps
    from vdengine.report.load import Options, load_run

    folders = [Path(r) for r in runs]
    if not folders:
        raise InputError("name at least one run")
    options = Options(smoothing, baseline, judge)
    loaded = [load_run(f, n, options) for f, n in zip(folders, _names(folders, labels), strict=True)]
    first = loaded[0]
    for run in loaded[1:]:
        if run.panel_hash != first.panel_hash:
            raise InputError(
                f"{first.folder} and {run.folder}: were probed with different panels "
                f"({first.manifest['panel']} and {run.manifest['panel']}, or two versions); report them apart"
            )
    known = list(dict.fromkeys(topic for run in loaded for topic, _ in run.questions.values()))
    for topic in topics or ():
        if topic not in known:
            raise InputError(f"unknown topic {topic!r}; there are {', '.join(known)}")
    judged = sorted({slug for run in loaded for slug in run.stances})
    if judge is not None and judge not in judged:
        raise InputError(f"unknown judge {judge!r}; there is {', '.join(judged) or 'none: run `vdengine judge` first'}")
    if readout == "answers" and not any(v.readout == "answers" for run in loaded for v in run.views.values()):
        raise InputError(f"no answers to show: {first.empty.get('answers', 'none were judged')}")
    shown = [t for t in known if topics is None or t in topics]
    audits = load_gaps(gaps, loaded)
    for run in loaded:
        for note in run.notes:
            say(f"{run.name}: {note}")
    where = Path(out) if out is not None else (folders[0] / "report" if len(folders) == 1 else Path("report"))
    heading = title or (f"Value drift of {first.name}" if len(loaded) == 1 else f"Value drift of {len(loaded)} runs")
    try:
        where.mkdir(parents=True, exist_ok=True)
        html = page.build(loaded, audits, shown, heading, readout)
        (where / "index.html").write_text(html, encoding="utf-8", newline="\n")
        tables.write(tables.build(loaded, audits, shown), where / "tables")
        if figures:
            draw(loaded, audits, shown, where / "figures")
    except OSError as error:
        raise InputError(f"{where}: cannot be written ({error.strerror or error})") from None
    return where / "index.html"


def _needs_extra() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("plotly", "matplotlib")):
        raise InputError("the report needs plotly and matplotlib: pip install 'vdengine[report]'")


def _names(folders: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    if labels is not None:
        if len(labels) != len(folders) or len(set(labels)) != len(labels):
            raise InputError(f"labels: {len(folders)} runs need as many different names; got {', '.join(labels)}")
        return list(labels)
    parts = [f.resolve().parts for f in folders]
    if len(set(parts)) < len(parts):
        raise InputError("a run is named twice")
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]
