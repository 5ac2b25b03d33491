"""Opening a run's folder: its raw logs, judgements and readouts.

Nothing in the folder is changed. What a crash cut short is left out, and named in `Run.notes`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.judgements import judgements_of, judges
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import ProbeValues, control_values, opening_values
from vdengine.drift.run import ANSWERS, OPENINGS, Readout, Run
from vdengine.errors import InputError
from vdengine.outside import (
    LARGE,
    is_count,
    json_object,
    open_regular,
    parse_json,
    parse_toml,
    printable,
    read_bytes,
    read_text,
)
from vdengine.runfolder import RunFolder


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
        name: of the run. Default: the folder's name.
        smoothing, baseline: of its analyses, as `drift.analysis.analyse` takes them; checked when an analysis is made.
        judge: a slug: only this judge's readout of answers; other judges' count for agreement with it.

    Raises:
        InputError: no drift data; a file that cannot be read, or is damaged before its end.
    """
    folder = Path(folder)
    try:
        known = folder.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL
        known = False
    if not known:
        raise InputError(f"{printable(folder)}: no such folder")
    try:
        run = _read(folder, folder.resolve().name if name is None else name)
        _add_openings(run, smoothing, baseline)
        _add_answers(run, smoothing, baseline, judge)
    except OSError as error:  # a folder that cannot be listed, or that is gone meanwhile
        raise InputError(f"{printable(error.filename or folder)}: cannot be read ({error.strerror})") from None
    return run


def _read(folder: Path, name: str) -> Run:
    """The run with its raw logs, before readouts."""
    files = RunFolder(folder)
    log = None if files.has_answers and not files.has_openings else DriftLog.open(folder)
    notes: list[str] = []
    recipe = _recipe(files, notes)
    metrics = _json_lines(files.metrics, notes)
    completions = _json_lines(files.completions, notes)
    if log is not None:
        for channel in log.channels.values():
            _note_cut_record(channel.path, channel.record_bytes, "sample", notes)
    answers = None
    if files.has_answers:
        answers = AnswerLog.open(folder)
        _note_cut_line(answers.answers_path, notes)
        _note_cut_record(answers.weights_path, answers.record_bytes, "reading", notes)
    steps = [row["step"] for row in metrics] + (answers.anchors if answers else [])
    steps += log.steps.tolist() if log is not None else []
    planned = recipe.get("run", {}).get("steps")
    total = planned if is_count(planned) and planned else max(steps, default=0)
    if steps and max(steps) < total:
        notes.append(f"not finished: the last step on record is {max(steps)} of {total}")
    return Run(name, folder, recipe, log, answers, total, metrics, completions, notes)


def _add_openings(run: Run, smoothing: str, baseline: int | None) -> None:
    """Add the readout of openings, or say in `run.empty` why there is none."""
    if run.log is None or not any(row.get("variant", "question") == "question" for row in run.log.table):
        run.empty[OPENINGS] = "No openings were scored: this run is read by its answers only."
        return
    steps = np.unique(run.log.steps)
    if len(steps) < 2:
        count = "no sample" if not len(steps) else f"one sample, at step {steps[0]}"
        run.empty[OPENINGS] = f"Openings have {count}. A shift needs two: the start, and one later."
        return
    controls = control_values(run.log, run.total_steps)
    values = opening_values(run.log, run.total_steps)
    run.views[OPENINGS] = Readout(OPENINGS, "", values, controls, {}, run.folder, smoothing, baseline)


def _add_answers(run: Run, smoothing: str, baseline: int | None, judge: str | None) -> None:
    """Add each judge's stances and readout, or say in `run.empty` why there is none."""
    if run.answers is None or not run.answers.answers:
        run.empty[ANSWERS] = (
            "No answers were drawn. Set answers.samples in the recipe, or let saved checkpoints answer: "
            "vdengine judge --models CHECKPOINT ... --out RUN."
        )
        return
    for slug in judges(run.folder):
        _note_cut_line(RunFolder(run.folder).judgements / f"{slug}.jsonl", run.notes)
        run.stances[slug] = judgements_of(run.answers, slug)
    values = {slug: by_judge for slug in run.stances if (by_judge := _values_by(run, slug)) is not None}
    if not values:
        count = f"{len(run.answers.answers):,} answers were drawn"
        run.empty[ANSWERS] = run.empty.get(ANSWERS) or (
            f"{count}, and none is judged yet. Run vdengine judge on this folder, then make the report again."
        )
        return
    for slug in values if judge is None else [judge] if judge in values else []:
        others = {name: by_judge for name, by_judge in values.items() if name != slug}
        readout = Readout(ANSWERS, slug, values[slug], {}, others, run.folder, smoothing, baseline)
        run.views[readout.key] = readout
    if judge not in (None, *values):
        run.empty[ANSWERS] = f"Not judged by {judge}; there is {', '.join(values)}."


def _values_by(run: Run, judge: str) -> ProbeValues | None:
    """Answers as a judge reads them; None where there are fewer than two samples, and `run.empty` says so."""
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


def _recipe(files: RunFolder, notes: list[str]) -> dict[str, dict[str, Any]]:
    """The recipe's tables by name, or those of another trainer's run; {} where there are none that can be read, and a
    note."""
    path = files.recipe if files.recipe.exists() or not files.trainer.exists() else files.trainer
    if not path.exists():
        notes.append("no recipe.toml: model, data and objective are not known")
        return {}
    try:
        tables = json_object(path) if path == files.trainer else parse_toml(read_text(path), path.name)
        return {name: table for name, table in tables.items() if isinstance(table, dict)}
    except InputError as error:
        notes.append(f"{path.name} cannot be read ({error}): model, data and objective are not known")
    return {}


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of a JSONL file that have a step; other lines are counted in a note. [] where there is no file."""
    if not path.exists():
        return []
    rows, num_damaged = [], 0
    for line in read_bytes(path, LARGE).split(b"\n"):
        if line.strip():
            try:
                row = parse_json(line, path.name)
            except InputError:
                row = None
            if isinstance(row, dict) and is_count(row.get("step")):
                rows.append(row)
            else:
                num_damaged += 1
    if num_damaged:
        notes.append(f"{path.name}: {num_damaged} damaged {'line is' if num_damaged == 1 else 'lines are'} left out")
    return rows


def _note_cut_record(path: Path, size: int, what: str, notes: list[str]) -> None:
    """Note a last record of fewer than `size` bytes."""
    length = path.stat().st_size if path.exists() else 0
    if rest := length % size:
        notes.append(f"{path.name}: the last {what} is cut short ({rest} of {size} bytes) and left out")


def _note_cut_line(path: Path, notes: list[str]) -> None:
    """Note a last line without its newline."""
    with open_regular(path) as file:
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            notes.append(f"{path.name}: the last line is cut short and left out")
