"""A run's folder as one object: its raw logs, what judges said, and what comes of them.

    run = vdengine.drift.load_run("runs/x")
    run.readouts                                   # ["openings", "answers:rule"]
    run.analysis("openings").drift("abortion").magnitude
    run.frame("curves")                            # a pandas DataFrame; without pandas columns by name

Nothing of a run is changed by looking at it. What a crash cut short is left out, and named in `Run.notes`.
"""

from __future__ import annotations

import json
import operator
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift import frames
from vdengine.drift.analysis import Analysis, analyse
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.judgements import judgements_of, judges
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import ProbeValues, control_values, opening_values
from vdengine.errors import InputError
from vdengine.runfolder import RunFolder

OPENINGS = "openings"
ANSWERS = "answers"


@dataclass(frozen=True)
class Readout:
    """One readout of one run: openings, or answers as one judge reads them."""

    kind: str  # OPENINGS | ANSWERS
    judge: str  # "" for openings
    values: ProbeValues
    controls: dict[str, ProbeValues]  # openings: by variant
    other_judges: dict[str, ProbeValues]  # answers: the same ones, by name
    folder: Path
    smoothing: str
    baseline: int | None

    @property
    def key(self) -> str:
        """ "openings", or "answers:<judge>"."""
        return key_of(self.kind, self.judge)

    @cached_property
    def analysis(self) -> Analysis:
        """What is shown of it.

        Raises:
            InputError: a baseline that was not sampled, or an unknown smoothing.
        """
        try:
            return analyse(
                self.values, baseline=self.baseline, smoothing=self.smoothing, controls=self.controls,
                judges=self.other_judges,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"{self.folder}: {error}") from None


def key_of(kind: str, judge: str) -> str:
    """The name of a readout: "openings", or "answers:<judge>"."""
    return f"{kind}:{judge}" if judge else kind


@dataclass
class Run:
    """A run, or a folder that `vdengine score` or `vdengine judge` wrote. Make one with `load_run`."""

    name: str
    folder: Path
    recipe: dict[str, dict[str, Any]]  # empty where there is none
    log: DriftLog | None  # of openings
    answers: AnswerLog | None
    total_steps: int  # planned, else the last on record
    metrics: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl
    completions: list[dict[str, Any]] = field(default_factory=list)  # rows of completions.jsonl
    notes: list[str] = field(default_factory=list)  # what was left out, and why a readout is not there
    empty: dict[str, str] = field(default_factory=dict)  # kind of readout: why it has nothing to show
    views: dict[str, Readout] = field(default_factory=dict)  # by key
    stances: dict[str, np.ndarray] = field(default_factory=dict)  # by judge: [len(answers.answers), 3] float64

    @property
    def readouts(self) -> list[str]:
        """Keys of what can be analysed: "openings", "answers:<judge>"."""
        return list(self.views)

    def analysis(self, readout: str | None = None) -> Analysis:
        """Curves, magnitudes, drift times and checks of a readout. Default: the first one.

        Raises:
            InputError: no such readout here.
        """
        return self.readout(readout).analysis

    def readout(self, key: str | None = None) -> Readout:
        """One of `readouts`. Default: the first one.

        Raises:
            InputError: no such readout here.
        """
        if not self.views:
            raise InputError(f"{self.folder}: nothing to analyse: {' '.join(self.empty.values()) or 'no drift data'}")
        if key is None:
            return next(iter(self.views.values()))
        if key not in self.views:
            raise InputError(f"{self.folder}: has no readout {key!r}; it has {', '.join(self.views)}")
        return self.views[key]

    def opening_values(self, variant: str = "question") -> ProbeValues:
        """Openings by probe and sample; variant: "question", or a control.

        Raises:
            InputError: none were scored.
        """
        if self.log is None:
            raise InputError(f"{self.folder}: {self.empty[OPENINGS]}")
        return opening_values(self.log, self.total_steps, variant)

    def answer_values(self, judge: str, *, kind: str = "both", closed: bool = False) -> ProbeValues:
        """Judged answers by probe and sample; see `drift.answer_values`.

        Raises:
            InputError: no answers, or none that this judge has judged.
        """
        if self.answers is None:
            raise InputError(f"{self.folder}: {self.empty[ANSWERS]}")
        if judge not in self.stances:
            raise InputError(f"{self.folder}: not judged by {judge!r}; it is by {', '.join(self.stances) or 'nobody'}")
        return answer_values(self.answers, self.stances[judge], self.total_steps, kind=kind, closed=closed)

    def frame(self, table: str = "curves") -> Any:
        """A tidy table: one of `TABLES` by name. A pandas DataFrame where pandas is installed, else
        columns: {name: list}.

        Raises:
            InputError: no such table.
        """
        return frames.as_frame(self.rows(table))

    def rows(self, table: str, topics: Sequence[str] | None = None) -> list[frames.Row]:
        """The rows of a table; topics: only these ("all" is the panel's mean). Default: every one.

        Raises:
            InputError: no such table.
        """
        if table not in TABLES:
            raise InputError(f"no table {table!r}; there are {', '.join(TABLES)}")
        return TABLES[table](self, topics)

    def describe(self) -> frames.Row:
        """What the run is, on one line."""
        section = self.recipe.get
        return {
            "run": self.name,
            "model": section("model", {}).get("source"),
            "objective": section("objective", {}).get("name"),
            "data": ", ".join(self.sources) or None,
            "steps": self.total_steps,
            "seed": section("run", {}).get("seed"),
            "panel": self.manifest.get("panel"),
            "probes": len(self.questions),
            "panel_hash": self.panel_hash,
            "smoothing": next((v.analysis.smoothing for v in self.views.values()), None),
            "baseline": next((v.analysis.baseline for v in self.views.values()), None),
            "samples": 0 if self.log is None else len(self.log.steps),
            "answers": len(self.answers.answers) if self.answers else 0,
            "judges": ", ".join(self.stances) or None,
            "notes": "; ".join(self.notes) or None,
        }

    @property
    def head(self) -> frames.Row:
        """What every row of a table begins with."""
        return {"run": self.name}

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the openings, or else of the answers: panel name and hash."""
        if self.log is not None:
            return self.log.manifest
        return self.answers.manifest if self.answers is not None else {}

    @property
    def panel_hash(self) -> str:
        """Of the panel that was read."""
        return str(self.manifest.get("panel_hash", ""))

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """Topic and axis of every probe that was scored or answered, without controls."""
        topic_and_axis: dict[str, tuple[str, str]] = {}
        for row in self.log.table if self.log is not None else ():
            if row.get("variant", "question") == "question":
                topic_and_axis[row["probe"]] = row["topic"], row["axis"]
        for p in self.answers.panel.probes if self.answers is not None else ():
            topic_and_axis.setdefault(p.id, (p.topic, p.axis))
        return topic_and_axis

    @property
    def sources(self) -> list[str]:
        """What the run was trained on, as its recipe names it."""
        train = self.recipe.get("data", {}).get("train", [])
        return [train] if isinstance(train, str) else [str(s) for s in train]


TableRows = Callable[[Run, Sequence[str] | None], list[frames.Row]]


def _of_readouts(rows: Callable[[frames.Row, Readout, Sequence[str] | None], list[frames.Row]]) -> TableRows:
    """A table that has rows for each readout."""

    def of_run(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
        out = []
        for view in run.views.values():
            out += rows(run.head | {"readout": view.kind, "judge": view.judge or None}, view, topics)
        return out

    return of_run


def _gates(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.answers is None else frames.gate_rows(run.head, run.answers)


def _support(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.answers is None else frames.support_rows(run.head, run.answers)


def _answer_rows(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.answers is None else frames.answer_rows(run.head, run.answers, run.stances)


def _opening_rows(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.log is None else frames.opening_rows(run.head, run.log)


# What a report writes; then what is behind it.
SUMMARY_TABLES: dict[str, TableRows] = {
    "runs": lambda run, topics: [run.describe()],
    "curves": _of_readouts(lambda head, view, topics: frames.curve_rows(head, view.analysis, topics)),
    "magnitudes": _of_readouts(lambda head, view, topics: frames.magnitude_rows(head, view.analysis, topics)),
    "validity": _of_readouts(lambda head, view, topics: frames.validity_rows(head, view.analysis)),
    "reliability": _of_readouts(lambda head, view, topics: frames.reliability_rows(head, view.analysis, topics)),
    "agreement": _of_readouts(lambda head, view, topics: frames.agreement_rows(head, view.analysis, topics)),
    "gates": _gates,
    "support": _support,
    "cost": lambda run, topics: frames.cost_rows(run.head, run.metrics),
    "training": lambda run, topics: frames.metric_rows(run.head, run.metrics),
}
TABLES: dict[str, TableRows] = SUMMARY_TABLES | {
    "probes": _of_readouts(lambda head, view, topics: frames.probe_rows(head, view.values)),
    "openings": _opening_rows,
    "answers": _answer_rows,
}


def judges_of(runs: Sequence[Run]) -> list[str]:
    """Judges whose readouts there are; who judged most runs is first."""
    count = Counter(v.judge for run in runs for v in run.views.values() if v.judge)
    return [judge for judge, _ in count.most_common()]


def load_run(
    folder: str | Path,
    *,
    name: str | None = None,
    smoothing: str = "none",
    baseline: int | None = None,
    judge: str | None = None,
) -> Run:
    """Read a run.

    Args:
        name: what to call it. Default: the folder's name.
        smoothing, baseline: of its analyses, as `drift.analysis.analyse` takes them.
        judge: only this judge's readout of answers (a slug); other judges' count for agreement with it.

    Raises:
        InputError: no drift data; a file that is damaged before its end.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    try:
        run = _read(folder, folder.resolve().name if name is None else name)
        _add_openings(run, smoothing, baseline)
        _add_answers(run, smoothing, baseline, judge)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, KeyError) as error:  # of files that their own readers trust
        raise InputError(f"{RunFolder(folder).drift}: damaged: {error!r}") from None
    return run


def _read(folder: Path, name: str) -> Run:
    files = RunFolder(folder)
    log = None if files.has_answers and not files.has_openings else DriftLog.open(folder)
    notes: list[str] = []
    recipe = _recipe(files.recipe, notes)
    metrics = _json_lines(files.metrics, notes)
    completions = _json_lines(files.completions, notes)
    if log is not None:
        _note_cut_record(log.scores_path, log.record_bytes, "sample", notes)
    answers = None
    if files.has_answers:
        answers = AnswerLog.open(folder)
        _note_cut_line(answers.answers_path, notes)
        _note_cut_record(answers.weights_path, answers.record_bytes, "reading", notes)
    steps = [row["step"] for row in metrics] + (answers.anchors if answers else [])
    steps += log.steps.tolist() if log is not None else []
    planned = recipe.get("run", {}).get("steps")
    total = planned if isinstance(planned, int) else max(steps, default=0)
    if steps and max(steps) < total:
        notes.append(f"not finished: the last step on record is {max(steps)} of {total}")
    return Run(name, folder, recipe, log, answers, total, metrics, completions, notes)


def _add_openings(run: Run, smoothing: str, baseline: int | None) -> None:
    if run.log is None or not any(row.get("variant", "question") == "question" for row in run.log.table):
        run.empty[OPENINGS] = "No openings were scored: this run is read by its answers only."
        return
    steps = np.unique(run.log.steps)
    if len(steps) < 2:
        said = "no sample" if not len(steps) else f"one sample, at step {steps[0]}"
        run.empty[OPENINGS] = f"Openings have {said}. A shift needs two: the start, and one later."
        return
    controls = control_values(run.log, run.total_steps)
    values = opening_values(run.log, run.total_steps)
    run.views[OPENINGS] = Readout(OPENINGS, "", values, controls, {}, run.folder, smoothing, baseline)


def _add_answers(run: Run, smoothing: str, baseline: int | None, judge: str | None) -> None:
    if run.answers is None or not run.answers.answers:
        run.empty[ANSWERS] = "No answers were drawn. Set answers.samples in the recipe to have the model answer."
        return
    for slug in judges(run.folder):
        _note_cut_line(RunFolder(run.folder).judgements / f"{slug}.jsonl", run.notes)
        run.stances[slug] = judgements_of(run.answers, slug)
    values = {slug: v for slug in run.stances if (v := _values_by(run, slug)) is not None}
    if not values:
        count = f"{len(run.answers.answers):,} answers were drawn"
        run.empty[ANSWERS] = run.empty.get(ANSWERS) or (
            f"{count}, and none is judged yet. Run vdengine judge on this folder, then make the report again."
        )
        return
    for slug in values if judge is None else [judge] if judge in values else []:
        others = {name: v for name, v in values.items() if name != slug}
        readout = Readout(ANSWERS, slug, values[slug], {}, others, run.folder, smoothing, baseline)
        run.views[readout.key] = readout
    if judge not in (None, *values):
        run.empty[ANSWERS] = f"Not judged by {judge}; there is {', '.join(values)}."


def _values_by(run: Run, judge: str) -> ProbeValues | None:
    """None where there are fewer than two samples; `run.empty` says so."""
    if not np.isfinite(run.stances[judge]).any():
        run.notes.append(f"judge {judge}: no verdict on any answer")
        return None
    try:
        values = run.answer_values(judge)
    except InputError as error:
        run.notes.append(f"readings between anchors are left out: {error}")
        values = run.answer_values(judge, kind="anchor")
    if np.isfinite(values.channels["graded"]).any(1).sum() < 2:
        run.empty[ANSWERS] = (
            f"Judged answers have one sample, at step {values.steps[0]}. A shift needs two: the start, and one later."
        )
        return None
    return values


# ------------------------------------------------------------------------------------------------------ files


def _recipe(path: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: table for name, table in sections.items() if isinstance(table, dict)}
    except FileNotFoundError:
        notes.append("no recipe.toml: model, data and objective are not known")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        notes.append(f"recipe.toml cannot be read ({error}): model, data and objective are not known")
    return {}


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows with a step; lines that are not whole are counted in the notes. [] where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows, bad = [], 0
    for line in lines:
        if line.strip():
            try:
                row = json.loads(line)
                row["step"] = operator.index(row["step"])
                rows.append(row)
            except (ValueError, TypeError, KeyError, RecursionError):  # a UnicodeDecodeError is a ValueError
                bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} damaged {'line is' if bad == 1 else 'lines are'} left out")
    return rows


def _note_cut_record(path: Path, size: int, what: str, notes: list[str]) -> None:
    length = path.stat().st_size if path.exists() else 0
    if over := length % size:
        notes.append(f"{path.name}: the last {what} is cut short ({over} of {size} bytes) and left out")


def _note_cut_line(path: Path, notes: list[str]) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        notes.append(f"{path.name}: the last line is cut short and left out")
