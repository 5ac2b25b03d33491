"""Opening a run's folder: its raw logs, judgements and readouts.

Nothing in the folder is changed. What a crash cut short is left out, and named in `Run.notes`.
"""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.answer_curves import SMOOTHING
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.capability_log import CapabilityLog
from vdengine.drift.judgements import ARGUMENT, BOTH, PARTS, PEOPLE, judges, open_judgements
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.prediction_powered import correctable, corrected_values
from vdengine.drift.probe_values import ProbeValues, control_values
from vdengine.drift.run import ANSWERS, Readout, Run
from vdengine.drift.trajectory import listed
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
from vdengine.panels.panel import LEADS, OPENINGS
from vdengine.recipe import LEAD, TEXT
from vdengine.runfolder import RunFolder


def load_run(
    folder: str | Path,
    *,
    name: str | None = None,
    smoothing: str | None = None,
    baseline: int | None = None,
    judge: str | None = None,
) -> Run:
    """Read a run.

    Args:
        name: of the run. Default: the folder's name.
        smoothing, baseline: of its analyses, as `drift.analysis.analyse` takes them; checked when an analysis is made.
            Default of smoothing: "local-linear" for answers, of which an anchor has few; none for the rest.
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
        _add_scored(run, LEAD, smoothing or "none", baseline)
        _add_answers(run, smoothing or SMOOTHING, baseline, judge)
        _add_scored(run, TEXT, smoothing or "none", baseline)
    except OSError as error:  # a folder that cannot be listed, or that is gone meanwhile
        raise InputError(f"{printable(error.filename or folder)}: cannot be read ({error.strerror})") from None
    return run


def _read(folder: Path, name: str) -> Run:
    """The run with its raw logs, before readouts."""
    files = RunFolder(folder)
    others = files.has_answers or files.has_capability
    log = None if others and not files.has_panel_scores else DriftLog.open(folder)
    notes: list[str] = []
    recipe = _recipe(files, notes)
    metrics = _json_lines(files.metrics, notes)
    completions = _json_lines(files.completions, notes)
    if log is not None:
        whole = len(log.steps)
        for kind, channel in log.channels.items():
            _note_cut_record(channel.path, channel.record_bytes, "sample", notes)
            if kind in (LEADS, OPENINGS) and len(channel.steps) > whole:
                notes.append(f"{channel.path.name}: its last sample is in no other channel, and left out")
    answers = None
    if files.has_answers:
        answers = AnswerLog.open(folder)
        _note_cut_line(answers.answers_path, notes)
        _note_cut_record(answers.weights_path, answers.record_bytes, "reading", notes)
    capability = None
    if files.has_capability:
        capability = CapabilityLog.open(folder)
        _note_cut_record(capability.channel.path, capability.channel.record_bytes, "check", notes)
    steps = [row["step"] for row in metrics] + (answers.anchors if answers else [])
    steps += log.steps.tolist() if log is not None else []
    steps += capability.steps.tolist() if capability is not None else []
    planned = recipe.get("run", {}).get("steps")
    total = planned if is_count(planned) and planned else max(steps, default=0)
    if steps and max(steps) < total:
        notes.append(f"not finished: the last step on record is {max(steps)} of {total}")
    return Run(name, folder, recipe, log, answers, total, metrics, completions, capability, notes)


def _add_scored(run: Run, readout: str, smoothing: str, baseline: int | None) -> None:
    """Add leads or text likelihood, or say in `run.empty` why there is none."""
    channel, name = (LEADS, "Leads") if readout == LEAD else (OPENINGS, "Openings")
    if run.log is None or not any(item["variant"] == "question" for item in run.log.items(channel)):
        run.empty[readout] = f"{name} were not scored: {readout!r} is not among this run's readouts."
        return
    steps = run.log.steps
    if len(steps) < 2:
        count = "no sample" if not len(steps) else f"one sample, at step {steps[0]}"
        run.empty[readout] = f"{name} have {count}. A shift needs two: the start, and one later."
        return
    controls = control_values(run.log, readout, run.total_steps)
    values = run.lead_values() if readout == LEAD else run.text_values()
    run.views[readout] = Readout(readout, "", "", values, controls, {}, run.folder, smoothing, baseline)


def _add_answers(run: Run, smoothing: str, baseline: int | None, judge: str | None) -> None:
    """Add each judge's stances and readouts, or say in `run.empty` why there is none."""
    if run.answers is None or not run.answers.answers:
        run.empty[ANSWERS] = (
            "No answers were drawn. Set answers.samples in the recipe, or let saved checkpoints answer: "
            "vdengine judge --models CHECKPOINT ... --out RUN."
        )
        return
    for slug in judges(run.folder):
        _note_cut_line(RunFolder(run.folder).judgements / f"{slug}.jsonl", run.notes)
        kept = open_judgements(run.answers, slug)
        if kept.refusal:
            run.notes.append(f"judge {slug}: {kept.refusal}")
            continue
        run.judgements[slug] = kept
        share = kept.share(run.answers)
        if kept.subset is None and not kept.judge.startswith(PEOPLE) and share < 1:
            run.notes.append(
                f"judge {slug}: {share:.0%} of the answers are judged, a random part of them; run vdengine judge on "
                "this folder again"
            )
        if (gaps := kept.gaps(run.answers)) and len(gaps) < len(run.answers.anchors):
            steps = f"step{'s' if len(gaps) > 1 else ''} {listed(np.array(gaps))}"
            run.notes.append(
                f"judge {slug}: no verdict on the answers of {steps}; nothing is shown of them. Run vdengine judge on "
                "this folder again"
            )
    values = {slug: parts for slug in run.judgements if (parts := _parts_by(run, slug))}
    if not values:
        count = f"{len(run.answers.answers):,} answers were drawn"
        run.empty[ANSWERS] = run.empty.get(ANSWERS) or (
            f"{count}, and none is judged yet. Run vdengine judge on this folder, then make the report again."
        )
        return
    for cheap, strong in permutations(run.judgements, 2):
        if correctable(run.judgements[cheap], run.judgements[strong]):
            values |= _corrected(run, cheap, strong)
    for slug, kept in run.judgements.items():
        if kept.subset is not None and not any(correctable(other, kept) for other in run.judgements.values()):
            run.notes.append(f"judge {slug}: has judged a part, which corrects nobody: no judge is of all answers")
    for slug in values if judge is None else [judge] if judge in values else []:
        for part in (ARGUMENT, BOTH, *(part for part in PARTS if part not in (ARGUMENT, BOTH))):
            if part in values[slug]:
                others = {name: parts[part] for name, parts in values.items() if name != slug and part in parts}
                by_judge = values[slug][part]
                view = Readout(ANSWERS, slug, part, by_judge, {}, others, run.folder, smoothing, baseline)
                run.views[view.key] = view
    if judge not in (None, *values):
        run.empty[ANSWERS] = f"Not judged by {judge}; there is {', '.join(values)}."


def _parts_by(run: Run, judge: str) -> dict[str, ProbeValues]:
    """The parts of answers as a judge reads them; {} where there are fewer than two samples, and `run.empty` says
    so."""
    if run.answers is None or not np.isfinite(run.stances[judge]).any():
        run.notes.append(f"judge {judge}: no verdict on any answer")
        return {}
    parts = {}
    for part in PARTS:
        if not np.isfinite(run.judgements[judge].stances_of(run.answers, part)).any():
            continue  # people label whole answers
        try:
            parts[part] = run.answer_values(judge, part)
        except InputError as error:
            if part == BOTH:
                run.notes.append(f"readings between anchors are left out: {error}")
            parts[part] = run.answer_values(judge, part, kind="anchor")
    if np.isfinite(parts[BOTH].channels["graded"]).any(1).sum() < 2:
        run.empty[ANSWERS] = (
            f"Judged answers have one sample, at step {parts[BOTH].steps[0]}. A shift needs two: the start, and one "
            "later."
        )
        return {}
    return parts


def _corrected(run: Run, cheap: str, strong: str) -> dict[str, dict[str, ProbeValues]]:
    """The answers as a cheap judge reads all of them, corrected by a strong one that read some; {} with a note where
    there are too few."""
    if run.answers is None:
        return {}
    pair, parts = (run.judgements[cheap], run.judgements[strong]), {}
    for part in (BOTH, ARGUMENT):
        try:
            parts[part] = corrected_values(run.answers, *pair, run.total_steps, part=part)
        except InputError as error:
            run.notes.append(f"judge {cheap}, corrected by {strong}, {part}: {error}")
            continue
        known = np.isfinite(parts[part].channels["graded"]).any(1)
        if not known.all():
            steps = f"step{'s' if (~known).sum() > 1 else ''} {listed(parts[part].steps[~known])}"
            run.notes.append(
                f"judge {cheap}, corrected by {strong}, {part}: nothing at {steps}, where either has not judged its "
                "answers"
            )
    return {f"{cheap}+{strong}": parts} if parts else {}


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
