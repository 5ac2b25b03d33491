"""People as judges: a sheet of answers to label by hand, and how far labels and judges agree.

A sheet is a CSV file that any spreadsheet opens: id, question, answer, label, note. The label is support, neutral or
oppose (or s, n, o), towards what the question proposes; empty rows are not labelled yet. An id tells nothing of the run
or step, so that who labels is blind to both. Labels are read back as the verdicts of a judge with the person's name.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.judgements import Judgements, Stance, folder_of, slug_of
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES

COLUMNS = ("id", "question", "answer", "label", "note")
_SHORT = {s[0]: s for s in STANCES} | {s: s for s in STANCES}


def sheet_id(log: AnswerLog, a: Answer) -> str:
    """12 hex digits: the same for the same answer of a run, without telling which it is."""
    key = f"{log.manifest['panel_hash']}:{a.anchor}:{a.probe}:{a.sample}:{a.text}"
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def export_sheet(logs: Sequence[AnswerLog], path: Path, *, rows: int, seed: int = 0) -> int:
    """Write a sheet of `rows` answers of these runs, in random order: as many of each anchor and topic as there can be.
    Returns the number written.

    Raises:
        InputError: the file is there already (labels may be in it), or there are no answers.
    """
    if path.exists():
        raise InputError(f"{path}: is there already; give the sheet a new name")
    rng = np.random.Generator(np.random.Philox(seed))
    strata: dict[tuple[int, int, str], list[list[str]]] = {}
    for k, log in enumerate(logs):
        probes = {p.id: p for p in log.panel.probes}
        for a in log.answers:
            row = [sheet_id(log, a), probes[a.probe].prompt, a.text, "", ""]
            strata.setdefault((k, a.anchor, probes[a.probe].topic), []).append(row)
    if not strata:
        raise InputError(f"{logs[0].folder if logs else 'no run'}: no answers to label")
    queues = [[each[i] for i in rng.permutation(len(each))] for each in strata.values()]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    chosen: dict[str, list[str]] = {}
    while len(chosen) < rows and any(queues):
        for q in queues:
            if q and len(chosen) < rows:
                row = q.pop()
                chosen.setdefault(row[0], row)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    ids = list(chosen)
    writer.writerows([_shown(cell) for cell in chosen[ids[i]]] for i in rng.permutation(len(ids)))
    path.write_text("\ufeff" + out.getvalue(), encoding="utf-8")  # the mark tells spreadsheets that it is UTF-8
    return len(chosen)


def _shown(cell: str) -> str:
    """A cell that a spreadsheet would take for a formula is marked as text."""
    return "'" + cell if cell[:1] in "=+-@\t\r" and cell else cell


def read_sheet(path: Path) -> dict[str, str]:
    """{id: stance} of the labelled rows.

    Raises:
        InputError: not a sheet, a label that is none, or an id twice with two labels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such sheet") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save the sheet as CSV UTF-8") from None
    dialect = ";" if text.split("\n", 1)[0].count(";") > text.split("\n", 1)[0].count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=dialect)
    if missing := [c for c in ("id", "label") if c not in (reader.fieldnames or [])]:
        raise InputError(f"{path}: has no column {' and '.join(missing)}; a sheet has {', '.join(COLUMNS)}")
    out: dict[str, str] = {}
    try:
        for row in reader:
            label = (row["label"] or "").strip().lower()
            if not label:
                continue
            if label not in _SHORT:
                raise InputError(f"{path}, line {reader.line_num}: label {label!r} is not one of {', '.join(STANCES)}")
            if out.setdefault(row["id"], _SHORT[label]) != _SHORT[label]:
                raise InputError(f"{path}, line {reader.line_num}: {row['id']} is labelled in two ways")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    return out


@dataclass(frozen=True)
class Imported:
    """What came of a sheet."""

    judge: str  # slug
    labelled: int
    foreign: int  # labels of answers that no given run has


def import_sheet(logs: Sequence[AnswerLog], path: Path, name: str) -> Imported:
    """Keep a sheet's labels as the verdicts of judge `name`, beside those of other judges; labels that it had before
    are replaced where the sheet has them.

    Raises:
        InputError: as `read_sheet`; or no label is of an answer of these runs.
    """
    labels = read_sheet(path)
    judge = f"human:{name}"
    seen: set[str] = set()
    for log in logs:
        mine = {(a.anchor, a.probe, a.sample): labels[i] for a in log.answers if (i := sheet_id(log, a)) in labels}
        if not mine:
            continue
        seen |= {i for a in log.answers if (i := sheet_id(log, a)) in labels}
        file = folder_of(log) / f"{slug_of(judge)}.jsonl"
        kept = Judgements.open(file).stances if file.exists() else {}
        fresh = Judgements.start(file, judge, {"kind": "human", "name": name})
        fresh.append({**kept, **{key: _certain(stance) for key, stance in mine.items()}})
    if not seen:
        raise InputError(f"{path}: none of its {len(labels)} labels is of an answer of the given runs")
    return Imported(slug_of(judge), len(seen), len(labels) - len(seen))


def _certain(stance: str) -> Stance:
    support, neutral, oppose = (float(s == stance) for s in STANCES)
    return support, neutral, oppose
