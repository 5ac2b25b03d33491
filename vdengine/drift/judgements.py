"""Judgements of a run's answers, kept beside them: one file a judge, `<run>/drift/judgements/<slug>.jsonl`.

    {"schema": 1, "judge": name, "identity": {...}}
    {"anchor": step, "probe": id, "sample": k, "stance": [support, neutral, oppose] or null}

null: the judge was asked, but gave no verdict. Each line is written as its verdict arrives, so a judge that was cut
short continues where it stopped.
"""

from __future__ import annotations

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
from vdengine.runfolder import RunFolder

SCHEMA = 1
NO_VERDICT = (math.nan, math.nan, math.nan)

Stance = tuple[float, float, float]  # p(support, neutral, oppose) towards the prompt's proposition; sums to 1


def slug_of(name: str) -> str:
    """The name of a judge's file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "judge"


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
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            raise InputError(f"{path}: no such judgements") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: damaged: {error}") from None
        stances: dict[tuple[int, str, int], Stance | None] = {}
        head: dict[str, Any] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if number == 1:
                    head = {"judge": row["judge"], "identity": row["identity"], "schema": row["schema"]}
                else:
                    stances[int(row["anchor"]), str(row["probe"]), int(row["sample"])] = _stance(row["stance"])
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}, line {number}: damaged: {error}") from None
        if head.get("schema") != SCHEMA:
            raise InputError(f"{path}: schema is {head.get('schema')!r}; this reads {SCHEMA}")
        return cls(path, head["judge"], head["identity"], stances)

    @classmethod
    def start(cls, path: Path, judge: str, identity: dict[str, Any]) -> Judgements:
        """Write a new file, without verdicts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"schema": SCHEMA, "judge": judge, "identity": identity}
        path.write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
        return cls(path, judge, identity, {})

    def append(self, stances: Mapping[tuple[int, str, int], Stance | None]) -> None:
        """Add verdicts to the file, after dropping a last line that was cut short."""
        _drop_cut_line(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            for (anchor, probe, sample), stance in stances.items():
                rounded = None if stance is None else [round(float(p), 6) for p in stance]
                row = {"anchor": anchor, "probe": probe, "sample": sample, "stance": rounded}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.stances.update(stances)


def _drop_cut_line(path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _stance(value: Any) -> Stance | None:
    """A stance from its JSON value. Raises ValueError or TypeError for what is none."""
    if value is None:
        return None
    support, neutral, oppose = (float(p) for p in value)
    if not abs(support + neutral + oppose - 1) < 1e-3:
        raise ValueError(f"stance {value} does not sum to 1")
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
