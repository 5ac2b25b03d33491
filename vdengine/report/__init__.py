"""The report of finished runs: one HTML page, with figures and tables beside it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vdengine.drift.history import load_history, tell_apart
from vdengine.drift.probe_values import topic_name
from vdengine.drift.run import judges_of
from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.outside import printable
from vdengine.runfolder import RunFolder


def _ignore(note: str) -> None:
    """The default of `say`: notes are on the page anyway."""


def report(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    readout: str | None = None,
    judge: str | None = None,
    smoothing: str | None = None,
    baseline: int | None = None,
    gaps: Sequence[str | Path] = (),
    topics: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    figures: bool = True,
    say: Callable[[str], None] = _ignore,
) -> Path:
    """Write `index.html`, `figures/` and `tables/`, and return the page's path.

    Args:
        runs: their folders.
        out: a folder. Default: `<run>/report` for one run, `./report` for several.
        readout: shown first: "lead", "argument", "text_likelihood" or "answers" (whole ones). Default: the first of
            them that there is.
        judge: a slug: only this judge's readout of answers; other judges' count for agreement with it.
        smoothing, baseline: as `drift.analysis.analyse` takes them. Default of smoothing: "local-linear" for answers,
            of which there are few at each step; none for what is read off log-probs.
        gaps: files that `vdengine gap --out` wrote.
        topics: those to show. Default: all.
        labels: names of the runs. Default: their folders' names.
        title: of the page.
        figures: also draw figures for print.
        say: called with each note on what was left out.

    Raises:
        InputError: plotly or matplotlib missing; a run that cannot be read; runs with different panels or leads; an
            unknown topic or judge; a readout that no run has; labels that do not fit; a folder that cannot be written.
    """
    _needs_extra()
    from vdengine.report import page, tables
    from vdengine.report.figures import draw
    from vdengine.report.gaps import load_gaps
    from vdengine.report.notes import note_leads
    from vdengine.report.sentences import READINGS, reading_of

    folders = [Path(r) for r in runs]
    if not folders:
        raise InputError("name at least one run")
    loaded = [
        load_history(folder, name=name, smoothing=smoothing, baseline=baseline, judge=judge)
        for folder, name in zip(folders, _names(folders, labels), strict=True)
    ]
    first = loaded[0]
    for run in loaded[1:]:
        if run.panel_hash != first.panel_hash:
            raise InputError(
                f"{first.folder} and {run.folder}: were probed with different panels "
                f"({first.manifest['panel']} and {run.manifest['panel']}, or two versions); report them apart"
            )
    note_leads(loaded)
    known = list(dict.fromkeys(topic_name(topic) for run in loaded for topic, _ in run.questions.values()))
    if topics is not None and not topics:
        raise InputError(f"topics: none is named; there are {', '.join(known)}")
    for topic in topics or ():
        if topic not in known:
            raise InputError(f"unknown topic {topic!r}; there are {', '.join(known)}")
    judged = sorted({slug for run in loaded for slug in [*run.stances, *judges_of([run])]})
    if judge is not None and judge not in judged:
        raise InputError(f"unknown judge {judge!r}; there is {', '.join(judged) or 'none: run `vdengine judge` first'}")
    there = {reading_of(view).name for run in loaded for view in run.views.values()}
    if readout is not None and readout not in there:
        kinds = {reading.name: reading.kind for reading in READINGS}
        if readout not in kinds:
            raise InputError(f"unknown readout {readout!r}; there is {', '.join(kinds)}")
        raise InputError(f"no {readout} to show: {first.empty.get(kinds[readout], 'no run has it')}")
    shown = [t for t in known if topics is None or t in topics]
    audits = load_gaps(gaps, loaded)
    for run in loaded:  # analyses are made now: an error in them comes before anything is written
        for each in [run, *(stage.run for stage in run.stages)]:
            for view in each.views.values():
                _ = view.analysis
    for run in loaded:
        if (count := len(run.metrics)) > tables.MAX_METRIC_ROWS:
            run.notes.append(
                f"tables/training.* have {tables.MAX_METRIC_ROWS:,} of {count:,} rows of metrics.jsonl, evenly"
            )
    for run in loaded:
        for note in run.notes:
            say(f"{run.name}: {note}")
    if out is not None and "\0" in str(out):
        raise InputError(f"{printable(out)}: cannot be written (no path has a NUL)")
    where = Path(out) if out is not None else (RunFolder(folders[0]).report if len(folders) == 1 else Path("report"))
    heading = title or (f"Value drift of {first.name}" if len(loaded) == 1 else f"Value drift of {len(loaded)} runs")
    try:
        where.mkdir(parents=True, exist_ok=True)
        html = page.build(loaded, audits, shown, heading, readout)
        write_text(where / "index.html", html)  # whole at any moment: a run that is going on may be reported often
        tables.write(tables.build(loaded, audits, shown), where / "tables")
        if figures:
            draw(loaded, audits, shown, where / "figures")
    except OSError as error:
        raise InputError(f"{printable(where)}: cannot be written ({error.strerror or error})") from None
    return where / "index.html"


def _needs_extra() -> None:
    """Raises InputError where the packages of the extra `report` are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("plotly", "matplotlib")):
        raise InputError("the report needs plotly and matplotlib: pip install 'vdengine[report]'")


def _names(folders: Sequence[Path], labels: Sequence[str] | None) -> list[str]:
    """The folders' names, with as many of their parents as tell them apart."""
    if labels is not None:
        if len(labels) != len(folders) or len(set(labels)) != len(labels):
            raise InputError(f"labels: {len(folders)} runs need as many different names; got {', '.join(labels)}")
        return list(labels)
    if len({os.path.realpath(f) if "\0" not in str(f) else str(f) for f in folders}) < len(folders):
        raise InputError("a run is named twice")
    return tell_apart(folders)
