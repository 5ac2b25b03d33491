"""Judgements of a run's answers, kept beside them: one file a judge, `<run>/drift/judgements/<slug>.jsonl`.

    {"schema": 1, "judge": name, "identity": {...}}
    {"anchor": step, "probe": id, "sample": k, "stance": [support, neutral, oppose] or null}

null: the judge was asked, but gave no verdict. Each line is written as its verdict arrives, so a judge that was cut
short continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.errors import InputError
from vdengine.files import Lock, write_text
from vdengine.outside import is_count, is_text, json_lines, printable
from vdengine.runfolder import RunFolder
from vdengine.settings import shown

SCHEMA = 1
NO_VERDICT = (math.nan, math.nan, math.nan)

Stance = tuple[float, float, float]  # p(support, neutral, oppose) towards the prompt's proposition; sums to 1


def slug_of(name: str) -> str:
    """The name of a judge's file."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "judge"
    if len(slug) <= 100:
        return slug
    return f"{slug[:80]}-{hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}"


def folder_of(log: AnswerLog) -> Path:
    """The folder of a run's judgements."""
    return log.folder.parent / "judgements"


def judges(run_folder: str | Path) -> list[str]:
    """Slugs of the judges that have judged this run's answers, sorted; [] if none."""
    return sorted(p.stem for p in RunFolder.at(run_folder).judgements.glob("*.jsonl"))


@dataclass
class Judgements:
    """One judge's verdicts on one run's answers, by (anchor, probe, sample); None: asked, but no verdict."""

    path: Path
    judge: str
    identity: dict[str, Any]
    stances: dict[tuple[int, str, int], Stance | None]

    @classmethod
    def open(cls, path: Path) -> Judgements:
        """Read a judge's file. A last line that was cut short is left out.

        Raises:
            InputError: it is missing, damaged, or of another version.
        """
        stances: dict[tuple[int, str, int], Stance | None] = {}
        head: dict[str, Any] = {}
        for place, row in json_lines(path):
            if not isinstance(row, dict):
                raise InputError(f"{place}: damaged: not an object")
            if not head:
                head = row
                if not is_text(head.get("judge")) or not isinstance(head.get("identity"), dict):
                    raise InputError(f"{place}: damaged: names no judge")
                continue
            anchor, probe, sample = (row.get(name) for name in ("anchor", "probe", "sample"))
            if not (is_count(anchor) and isinstance(probe, str) and is_count(sample)):
                raise InputError(f"{place}: damaged: a verdict is of an anchor, a probe and a sample")
            stances[anchor, probe, sample] = read_stance(row.get("stance", ()), place)
        if head.get("schema") != SCHEMA:
            raise InputError(f"{printable(path)}: schema is {shown(head.get('schema'))}; this reads {SCHEMA}")
        return cls(path, head["judge"], head["identity"], stances)

    @classmethod
    def start(
        cls,
        path: Path,
        judge: str,
        identity: dict[str, Any],
        stances: Mapping[tuple[int, str, int], Stance | None] | None = None,
    ) -> Judgements:
        """Write a new file, whole or not at all; stances: what is in it from the start. Default: nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"schema": SCHEMA, "judge": judge, "identity": identity}, ensure_ascii=False) + "\n"
        write_text(path, head + _lines(stances or {}))
        return cls(path, judge, identity, dict(stances or {}))

    def append(self, stances: Mapping[tuple[int, str, int], Stance | None]) -> None:
        """Add verdicts to the file, after dropping a last line that was cut short."""
        _drop_cut_line(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_lines(stances))
        self.stances.update(stances)


def locked(log: AnswerLog, judge: str) -> Lock:
    """A lock on a judge's file of a run, for whoever writes to it; judge: its name.

    Raises:
        InputError: another process is writing to it; or the folder is a link that leads out of the run's.
    """
    folder, run = folder_of(log), log.folder.parent.parent
    if not folder.resolve().is_relative_to(run.resolve()) or (folder / f"{slug_of(judge)}.jsonl").is_symlink():
        raise InputError(f"{printable(folder)}: a link leads out of the run's folder, and nothing is written there")
    return Lock(folder / f".{slug_of(judge)}.lock", f"{judge} is judging these answers already, started")


def _lines(stances: Mapping[tuple[int, str, int], Stance | None]) -> str:
    """Verdicts as lines of a file."""
    lines = []
    for (anchor, probe, sample), stance in stances.items():
        rounded = None if stance is None else [round(float(p), 6) for p in stance]
        row = {"anchor": anchor, "probe": probe, "sample": sample, "stance": rounded}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def _drop_cut_line(path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
    os.truncate(path, whole)


def read_stance(value: Any, place: str) -> Stance | None:
    """A stance from its JSON value. Raises InputError, with its place, for what is none."""
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(type(p) in (int, float) and 0 <= p <= 1 for p in value)
    ):
        raise InputError(f"{place}: damaged: stance {shown(value)} is not three probabilities")
    support, neutral, oppose = map(float, value)
    if not abs(support + neutral + oppose - 1) < 1e-3:
        raise InputError(f"{place}: damaged: stance {value} does not sum to 1")
    return support, neutral, oppose


def judgements_of(log: AnswerLog, slug: str) -> np.ndarray:
    """One judge's stances of a run's answers; slug: the judge's.

    Returns:
        [len(log.answers), 3] float64: p(support, neutral, oppose) towards the prompt's proposition; NaN where an answer
        has no verdict.

    Raises:
        InputError: this judge has judged nothing here, or its file is damaged.
    """
    path = folder_of(log) / f"{slug}.jsonl"
    if not path.exists():
        known = ", ".join(judges(log.folder.parent.parent)) or "nobody"
        raise InputError(f"{log.folder.parent.parent}: not judged by {slug!r}; it is by {known}")
    stances = Judgements.open(path).stances
    return np.array([stances.get(key_of(answer)) or NO_VERDICT for answer in log.answers]).reshape(-1, 3)


def key_of(answer: Answer) -> tuple[int, str, int]:
    """What identifies an answer in a judge's file."""
    return answer.anchor, answer.probe, answer.sample
