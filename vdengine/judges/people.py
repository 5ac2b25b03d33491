"""People as judges: a sheet of answers to label by hand, and its labels as a judge's verdicts.

A sheet is a CSV file that any spreadsheet opens: id, question, answer, label, note. The label is support, neutral or
oppose (or s, n, o), towards what the question proposes; rows without one are not labelled yet. Ids do not show the run
or the step, so annotators are blind to both. Labels are read back as the verdicts of a judge with the person's name.
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
from vdengine.drift.judgements import PEOPLE, Judgements, Key, Part, Verdict, folder_of, locked, slug_of
from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.outside import printable
from vdengine.panels.panel import STANCES
from vdengine.panels.row_files import csv_rows
from vdengine.settings import shown

COLUMNS = ("id", "question", "answer", "label", "note")
_STANCE_OF_LABEL = {stance[0]: stance for stance in STANCES} | {stance: stance for stance in STANCES}


def sheet_id(log: AnswerLog, answer: Answer) -> str:
    """ "a" and 12 hex digits: the same for the same answer, from which run and step cannot be told.

    The letter keeps spreadsheets from taking one that has digits alone, or digits around an "e", for a number.
    """
    key = f"{log.manifest['panel_hash']}:{answer.anchor}:{answer.probe}:{answer.sample}:{answer.text}"
    return f"a{hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}"


def export_sheet(logs: Sequence[AnswerLog], path: Path, *, rows: int, seed: int = 0) -> int:
    """Write a sheet of at most `rows` answers of these runs, in random order, and return their number.

    Runs, anchors and topics get equal shares, as far as they have answers.

    Raises:
        InputError: the file exists already (labels may be in it), or there are no answers.
    """
    if rows < 1:
        raise InputError(f"--rows {rows}: it must be at least 1")
    if path.exists():
        raise InputError(f"{path}: is there already; give the sheet a new name")
    rng = np.random.Generator(np.random.Philox(seed))
    strata: dict[tuple[int, int, str], list[list[str]]] = {}  # rows by (run, anchor, topic)
    for run, log in enumerate(logs):
        probes = {probe.id: probe for probe in log.panel.probes}
        for answer in log.answers:
            probe = probes[answer.probe]
            row = [sheet_id(log, answer), probe.prompt, answer.text, "", ""]
            strata.setdefault((run, answer.anchor, probe.topic), []).append(row)
    if not strata:
        raise InputError(f"{logs[0].folder if logs else 'no run'}: no answers to label")
    # Shuffle each stratum and their order, then take one row of each in turn.
    queues = [[stratum[i] for i in rng.permutation(len(stratum))] for stratum in strata.values()]
    queues = [queues[i] for i in rng.permutation(len(queues))]
    chosen: dict[str, list[str]] = {}  # by id
    while len(chosen) < rows and any(queues):
        for queue in queues:
            if queue and len(chosen) < rows:
                row = queue.pop()
                chosen.setdefault(row[0], row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    ids = list(chosen)
    writer.writerows([_as_text(cell) for cell in chosen[ids[i]]] for i in rng.permutation(len(ids)))
    write_text(path, "\ufeff" + text.getvalue())  # the mark tells spreadsheets that it is UTF-8
    return len(chosen)


def _as_text(cell: str) -> str:
    """A cell, marked as text where a spreadsheet would take it for a formula."""
    return "'" + cell if cell[:1] in "=+-@\t\r" and cell else cell


def read_sheet(path: Path) -> dict[str, str]:
    """{id: stance} of the labelled rows.

    Raises:
        InputError: not a sheet, a label that is none, or an id twice with two labels.
    """
    labels: dict[str, str] = {}
    for where, row in csv_rows(path, ("id", "label")):
        label = row["label"].strip().lower()
        if not label:
            continue
        if label not in _STANCE_OF_LABEL:
            raise InputError(f"{where}: label {shown(label)} is not one of {', '.join(STANCES)}")
        if labels.setdefault(row["id"], _STANCE_OF_LABEL[label]) != _STANCE_OF_LABEL[label]:
            raise InputError(f"{where}: {printable(row['id'][:40])} is labelled in two ways")
    return labels


@dataclass(frozen=True)
class Imported:
    """The outcome of reading a sheet into runs, in labels."""

    judge: str  # slug
    labelled: int  # of answers of the given runs
    foreign: int  # of answers that no given run has


def import_sheet(logs: Sequence[AnswerLog], path: Path, name: str) -> Imported:
    """Keep a sheet's labels as the verdicts of the judge `human:<name>`, beside those of other judges.

    Labels that this judge had before are kept, or replaced where the sheet has them.

    Raises:
        InputError: as `read_sheet`; no label is of an answer of these runs; or the file of that name is another's.
    """
    labels = read_sheet(path)
    judge = PEOPLE + name
    files = [folder_of(log) / f"{slug_of(judge)}.jsonl" for log in logs]
    for file in files:
        if file.exists() and (other := Judgements.open(file).judge) != judge:
            raise InputError(
                f"{printable(file)}: holds labels of {shown(other)}, and names of files do not tell it from "
                f"{shown(judge)}; give another name with --by"
            )
    seen: set[str] = set()
    for log, file in zip(logs, files, strict=True):
        labelled = [(answer, id) for answer in log.answers if (id := sheet_id(log, answer)) in labels]
        if not labelled:
            continue
        seen |= {id for _, id in labelled}
        lock = locked(log, judge)
        try:
            kept = Judgements.open(file).verdicts if file.exists() else {}
            new: dict[Key, Verdict] = {
                Part(answer.anchor, answer.probe, answer.sample): _certain(labels[id]) for answer, id in labelled
            }
            Judgements.start(file, judge, {"kind": "human", "name": name}, {**kept, **new})
        finally:
            lock.close()
    if not seen:
        raise InputError(f"{path}: none of its {len(labels)} labels is of an answer of the given runs")
    return Imported(slug_of(judge), len(seen), len(labels) - len(seen))


def _certain(stance: str) -> Verdict:
    """Probability 1 on a stance."""
    support, neutral, oppose = (float(s == stance) for s in STANCES)
    return Verdict((support, neutral, oppose))
