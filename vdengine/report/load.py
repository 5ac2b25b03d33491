"""A run's folder, read and analysed. What a crash cut short is left out and named in `Run.notes`."""

from __future__ import annotations

import json
import operator
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.answers import AnswerLog
from vdengine.drift.estimators import Analysis, Readings, analyse, answer_readings, controls_of, openings_readings
from vdengine.drift.log import DriftLog
from vdengine.engine.metrics import SAMPLES_FILE
from vdengine.errors import InputError

OPENINGS = "openings"
ANSWERS = "answers"


@dataclass(frozen=True)
class Options:
    """How runs are analysed; see `drift.estimators.analyse`."""

    smoothing: str = "none"
    baseline: int | None = None
    judge: str | None = None  # only this judge's readings; the others still count as further judges


@dataclass(frozen=True)
class View:
    """One readout of one run: openings, or answers as one judge reads them."""

    readout: str
    judge: str  # "" for openings
    analysis: Analysis

    @property
    def key(self) -> str:
        return key_of(self.readout, self.judge)


@dataclass
class Run:
    """All that is shown of a run."""

    name: str
    folder: Path
    recipe: dict[str, dict[str, Any]]  # empty where there is none, as in a folder that `score` or `judge` wrote
    log: DriftLog | None
    answers: AnswerLog | None
    total_steps: int
    views: dict[str, View] = field(default_factory=dict)  # by key
    stances: dict[str, np.ndarray] = field(default_factory=dict)  # by judge: [len(answers.answers), 3]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out, and why a readout is not there
    empty: dict[str, str] = field(default_factory=dict)  # readout: why it has nothing to show

    @property
    def manifest(self) -> dict[str, Any]:
        """Of the openings, or else of the answers: panel name and hash."""
        if self.log is not None:
            return self.log.manifest
        return self.answers.manifest if self.answers is not None else {}

    @property
    def panel_hash(self) -> str:
        return str(self.manifest.get("panel_hash", ""))

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """Topic and axis of every probe that was scored or answered, without controls."""
        found: dict[str, tuple[str, str]] = {}
        for row in self.log.table if self.log is not None else ():
            if row.get("variant", "question") == "question":
                found[row["probe"]] = row["topic"], row["axis"]
        for p in self.answers.panel.probes if self.answers is not None else ():
            found.setdefault(p.id, (p.topic, p.axis))
        return found

    @property
    def sources(self) -> list[str]:
        """What the run was trained on, as its recipe names it."""
        found = self.recipe.get("data", {}).get("train", [])
        return [found] if isinstance(found, str) else [str(s) for s in found]


def key_of(readout: str, judge: str) -> str:
    """The name of a view: "openings", or "answers:<judge>"."""
    return f"{readout}:{judge}" if judge else readout


def judges_of(runs: Sequence[Run]) -> list[str]:
    """Judges whose readings there are; who judged most runs is first."""
    count = Counter(v.judge for run in runs for v in run.views.values() if v.judge)
    return [judge for judge, _ in count.most_common()]


def load_run(folder: str | Path, name: str, options: Options) -> Run:
    """Read a run and analyse every readout that it has.

    Raises:
        InputError: no drift data; a file that is damaged before its end; a baseline that was not sampled.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    try:
        return _load(folder, name, options)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, KeyError) as error:  # of files that their own readers trust
        raise InputError(f"{folder / 'drift'}: damaged: {error!r}") from None


def _load(folder: Path, name: str, options: Options) -> Run:
    sampled = (folder / "drift" / "answers" / "manifest.json").exists()
    alone = sampled and not (folder / "drift" / "manifest.json").exists()  # answers without openings
    log = None if alone else DriftLog.open(folder)
    notes: list[str] = []
    recipe = _recipe(folder, notes)
    metrics = _json_lines(folder / "metrics.jsonl", notes)
    completions = _json_lines(folder / SAMPLES_FILE, notes)
    if log is not None:
        _whole_records(folder / "drift" / "scores.bin", 8 + 4 * len(log.table), "sample", notes)
    answers = None
    if sampled:
        answers = AnswerLog.open(folder)
        _whole_last_line(answers.folder / "answers.jsonl", notes)
        size = 16 + 4 * len(answers.manifest["probes"]) * answers.samples
        _whole_records(answers.folder / "weights.bin", size, "reading", notes)
    seen = [row["step"] for row in metrics] + (answers.anchors if answers else [])
    seen += log.steps.tolist() if log is not None else []
    planned = recipe.get("run", {}).get("steps")
    total = planned if isinstance(planned, int) else max(seen, default=0)
    run = Run(name, folder, recipe, log, answers, total, metrics=metrics, completions=completions, notes=notes)
    if seen and max(seen) < run.total_steps:
        notes.append(f"not finished: the last step on record is {max(seen)} of {run.total_steps}")
    _openings(run, options)
    _answers(run, options)
    return run


def _openings(run: Run, options: Options) -> None:
    if run.log is None or not any(row.get("variant", "question") == "question" for row in run.log.table):
        run.empty[OPENINGS] = "No openings were scored: this run is read by its answers only."
        return
    steps = np.unique(run.log.steps)
    if len(steps) < 2:
        said = "no sample" if not len(steps) else f"one sample, at step {steps[0]}"
        run.empty[OPENINGS] = f"Openings have {said}. A shift needs two: the start, and one later."
        return
    readings = openings_readings(run.log, run.total_steps)
    controls = controls_of(run.log, run.total_steps)
    run.views[OPENINGS] = View(OPENINGS, "", _analyse(run, readings, options, controls, {}))


def _answers(run: Run, options: Options) -> None:
    from vdengine.drift.judge import judges, stances

    if run.answers is None or not run.answers.answers:
        run.empty[ANSWERS] = "No answers were drawn. Set answers.samples in the recipe to have the model answer."
        return
    slugs = judges(run.folder)
    for slug in slugs:
        _whole_last_line(run.folder / "drift" / "judgements" / f"{slug}.jsonl", run.notes)
        run.stances[slug] = stances(run.answers, slug)
    read: dict[str, Readings] = {}
    for slug, found in run.stances.items():
        if readings := _answer_readings(run, run.answers, slug, found):
            read[slug] = readings
    if not read:
        count = f"{len(run.answers.answers):,} answers were drawn"
        run.empty[ANSWERS] = run.empty.get(ANSWERS) or (
            f"{count}, and none is judged yet. Run vdengine judge on this folder, then make the report again."
        )
        return
    for slug, readings in read.items():
        if options.judge in (None, slug):
            others = {name: r for name, r in read.items() if name != slug}
            view = View(ANSWERS, slug, _analyse(run, readings, options, {}, others))
            run.views[view.key] = view
    if options.judge not in (None, *read):
        run.empty[ANSWERS] = f"Not judged by {options.judge}; there is {', '.join(read)}."


def _answer_readings(run: Run, answers: AnswerLog, slug: str, stances: np.ndarray) -> Readings | None:
    """None where there are fewer than two samples; `run.empty` says so."""
    if not np.isfinite(stances).any():
        run.notes.append(f"judge {slug}: no verdict on any answer")
        return None
    try:
        readings = answer_readings(answers, stances, run.total_steps)
    except InputError as error:
        run.notes.append(f"readings between anchors are left out: {error}")
        readings = answer_readings(answers, stances, run.total_steps, kind="anchor")
    if np.isfinite(readings.channels["graded"]).any(1).sum() < 2:
        run.empty[ANSWERS] = (
            f"Judged answers have one sample, at step {readings.steps[0]}. A shift needs two: the start, and one later."
        )
        return None
    return readings


def _analyse(
    run: Run, readings: Readings, options: Options, controls: Mapping[str, Readings], judges: Mapping[str, Readings]
) -> Analysis:
    try:
        return analyse(
            readings, baseline=options.baseline, smoothing=options.smoothing, controls=controls, judges=judges
        )
    except InputError as error:
        raise InputError(f"{run.folder}: {error}") from None


# ------------------------------------------------------------------------------------------------------ files


def _recipe(folder: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    path = folder / "recipe.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: table for name, table in found.items() if isinstance(table, dict)}
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


def _whole_records(path: Path, size: int, what: str, notes: list[str]) -> None:
    length = path.stat().st_size if path.exists() else 0
    if over := length % size:
        notes.append(f"{path.name}: the last {what} is cut short ({over} of {size} bytes) and left out")


def _whole_last_line(path: Path, notes: list[str]) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        notes.append(f"{path.name}: the last line is cut short and left out")
