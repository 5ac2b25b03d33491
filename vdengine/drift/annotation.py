"""People as judges: a sheet of answers to label by hand, and how far labels and judges agree.

A sheet is a CSV file that any spreadsheet opens: id, question, answer, label, note. The label is support, neutral or
oppose (or s, n, o), towards what the question proposes; empty rows are not labelled yet. An id tells nothing of the run
or step, so that who labels is blind to both. Labels are read back as the verdicts of a judge with the person's name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdengine.drift.answers import Answer, AnswerLog
from vdengine.drift.judge import Judgements, Stance, folder_of, slug_of
from vdengine.drift.panel import STANCES
from vdengine.errors import InputError

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


# -------------------------------------------------------------------------------------------------- agreement


@dataclass(frozen=True)
class LabelAgreement:
    """Two judges on the answers that both have judged, each taken at its likeliest stance."""

    num: int
    accuracy: float  # share on which they agree
    kappa: float  # Cohen's: agreement beyond that of two who give the same shares at random; NaN: no variation
    low: float  # 95% interval of kappa, bootstrap over answers
    high: float
    sign: float  # of the answers on which both take a side: share with the same side
    num_sided: int
    table: np.ndarray  # [3, 3] counts: rows are the first's stances, columns the second's, in the order of STANCES


def label_agreement(a: np.ndarray, b: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> LabelAgreement:
    """a, b: [n, 3] p(support, neutral, oppose), NaN where not judged.

    Raises:
        InputError: no answer that both have judged.
    """
    both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    if not both.any():
        raise InputError("the two judges have no answer in common")
    x, y = a[both].argmax(1), b[both].argmax(1)
    cells = x * 3 + y
    table = np.bincount(cells, minlength=9).reshape(3, 3)
    rng = np.random.Generator(np.random.Philox(seed))
    draws = rng.multinomial(len(cells), table.ravel() / len(cells), resamples).reshape(-1, 3, 3)
    spread = np.array([kappa(t) for t in draws])
    known = spread[np.isfinite(spread)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    sided = table[::2, ::2]
    return LabelAgreement(
        int(both.sum()), float(np.trace(table) / table.sum()), kappa(table), float(low), float(high),
        float(np.trace(sided) / sided.sum()) if sided.sum() else math.nan, int(sided.sum()), table,
    )  # fmt: skip


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa (1960) of a table of counts [k, k]; NaN where chance alone agrees wholly."""
    p = table / table.sum()
    by_chance = float(p.sum(1) @ p.sum(0))
    return (float(np.trace(p)) - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
