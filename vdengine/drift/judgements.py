"""Judgements of a run's answers, kept beside them: one file a judge, `<run>/drift/judgements/<slug>.jsonl`.

    {"schema": 2, "judge": name, "identity": {...}}
    {"anchor": step, "probe": id, "sample": k, "stance": [support, neutral, oppose] or null}    of a whole answer
    {"anchor": step, "probe": id, "sample": k, "part": "argument", "stance": ...}               of it without its lead
    {"probe": id, "bare": 1 or -1, "stance": ...}                                               of a bare "Yes.", "No."
    {"subset": answers or null, "seed": seed}                                                   what was drawn for it

null: the judge was asked, but gave no verdict. "orders", where a line has it, are the initials of the judge's label
with the labels named in one order and in the other; an answer that shares another's verdict has none. Each line is
written as its verdict arrives, so a judge that was cut short continues where it stopped.

An answer without a lead (`drift/answer_leads.py`) is all argument, and one of a lead alone argues nothing: neither has
an argument of its own here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdengine.drift.answer_leads import split_lead
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.kappa import OrderAgreement, order_agreement
from vdengine.errors import InputError
from vdengine.files import Lock, write_text
from vdengine.outside import is_count, is_text, json_lines, printable
from vdengine.runfolder import RunFolder
from vdengine.settings import shown

SCHEMA = 2
BOTH, ARGUMENT, LEAD = PARTS = ("both", "argument", "lead")  # of an answer: all of it, without its lead, its lead alone
NEUTRAL = (0.0, 1.0, 0.0)
NO_VERDICT = (math.nan, math.nan, math.nan)
PEOPLE = "human:"  # what names of people begin with
LEAST_JUDGED = 0.95  # of a subset's answers: fewer are no random part of it

Stance = tuple[float, float, float]  # p(support, neutral, oppose) towards the prompt's proposition; sums to 1


class Verdict(NamedTuple):
    """What a judge says of one question."""

    stance: Stance  # NaN: asked, but no verdict
    orders: str = ""  # of a judge that is asked in two orders of the labels: the initials of its label in each, "sn"


class Part(NamedTuple):
    """What a verdict is of: an answer, by its anchor, probe and sample, or its argument."""

    anchor: int
    probe: str
    sample: int
    part: str = BOTH  # | ARGUMENT


class BareLead(NamedTuple):
    """What a verdict is of: an answer that is only a lead, +1 for what the probe's question proposes, -1 against it."""

    probe: str
    side: int


class Subset(NamedTuple):
    """Answers that were drawn for a judge: `drift.prediction_powered.drawn` says which."""

    answers: int
    seed: int


Key = Part | BareLead


def slug_of(name: str) -> str:
    """The name of a judge's file; with a digest where more of the judge's name is lost than ":", "/" and spaces."""
    slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "judge"
    if len(slug) <= 100 and not re.search(r"[^A-Za-z0-9._+:/ -]", name):
        return slug
    return f"{slug[:80]}-{hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}"


def folder_of(log: AnswerLog) -> Path:
    """The folder of a run's judgements."""
    return log.folder.parent / "judgements"


def judges(run_folder: str | Path) -> list[str]:
    """Slugs of the judges that have judged this run's answers, sorted; [] if none."""
    return sorted(p.stem for p in RunFolder.at(run_folder).judgements.glob("*.jsonl"))


def questions_of(log: AnswerLog) -> Iterator[tuple[Answer, list[tuple[Part, str]]]]:
    """Each answer with what a judge is asked of it: the key and text of the whole, and of its argument if it has both a
    lead and an argument."""
    leads = {probe.id: probe.leads for probe in log.panel.probes}
    for answer in log.answers:
        side, rest = split_lead(answer.text, leads[answer.probe])
        asked = [(Part(answer.anchor, answer.probe, answer.sample), answer.text)]
        yield answer, asked + [(asked[0][0]._replace(part=ARGUMENT), rest)] * bool(side and rest)


@dataclass
class Judgements:
    """One judge's verdicts on one run's answers."""

    path: Path
    judge: str
    identity: dict[str, Any]
    verdicts: dict[Key, Verdict]
    subset: Subset | None = None

    @classmethod
    def open(cls, path: Path) -> Judgements:
        """Read a judge's file. A last line that was cut short is left out.

        Raises:
            InputError: it is missing, damaged, or of another version.
        """
        verdicts: dict[Key, Verdict] = {}
        subset = None
        head: dict[str, Any] = {}
        for place, row in json_lines(path):
            if not isinstance(row, dict):
                raise InputError(f"{place}: damaged: not an object")
            if not head:
                head = row
                if not is_text(head.get("judge")) or not isinstance(head.get("identity"), dict):
                    raise InputError(f"{place}: damaged: names no judge")
                if head.get("schema") != SCHEMA:
                    raise InputError(
                        f"{printable(path)}: schema is {shown(head.get('schema'))}; this reads {SCHEMA}: judge again "
                        "with --again, or move the file away"
                    )
            elif "subset" in row:
                answers, seed = row["subset"], row.get("seed")
                if not (is_count(seed) and (answers is None or is_count(answers))):
                    raise InputError(f"{place}: damaged: a subset is a number of answers and a seed")
                subset = Subset(answers, seed) if is_count(answers) else None
            else:
                orders = row.get("orders", "")
                if not (isinstance(orders, str) and (not orders or re.fullmatch("[sno]{2}", orders))):
                    raise InputError(f"{place}: damaged: orders {shown(orders)} are not two of s, n, o")
                verdicts[_key_of_row(row, place)] = Verdict(read_stance(row.get("stance", ()), place), orders)
        if not head:
            raise InputError(f"{printable(path)}: schema is None; this reads {SCHEMA}")
        return cls(path, head["judge"], head["identity"], verdicts, subset)

    @classmethod
    def start(
        cls, path: Path, judge: str, identity: dict[str, Any], verdicts: Mapping[Key, Verdict] | None = None
    ) -> Judgements:
        """Write a new file, whole or not at all; verdicts: what is in it from the start. Default: nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"schema": SCHEMA, "judge": judge, "identity": identity}, ensure_ascii=False) + "\n"
        write_text(path, head + _lines(verdicts or {}))
        return cls(path, judge, identity, dict(verdicts or {}))

    def append(self, verdicts: Mapping[Key, Verdict]) -> None:
        """Add verdicts to the file, after dropping a last line that was cut short."""
        self._write(_lines(verdicts))
        self.verdicts.update(verdicts)

    def draw(self, subset: Subset | None) -> None:
        """Keep which answers were drawn for this judge; None: all."""
        answers, seed = subset or (None, 0)
        self._write(json.dumps({"subset": answers, "seed": seed}) + "\n")
        self.subset = subset

    def _write(self, lines: str) -> None:
        _drop_cut_line(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(lines)

    def stances_of(self, log: AnswerLog, part: str = BOTH) -> np.ndarray:
        """Stances of a run's answers: of the whole answers, of their arguments or of their leads.

        An answer without a lead has one stance for both; the argument of a lead alone is neutral, and so is the lead of
        an answer that has none. Leads need no judge: they are there for every answer. People label whole answers, so
        that there are no arguments of theirs.

        Returns:
            [len(log.answers), 3] float64: p(support, neutral, oppose) towards the prompt's proposition; NaN where there
            is no verdict.

        Raises:
            InputError: an unknown part.
        """
        if part not in PARTS:
            raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
        if part == LEAD:
            return lead_stances(log)
        if part == ARGUMENT and self.judge.startswith(PEOPLE):
            return np.full((len(log.answers), 3), math.nan)
        leads = {probe.id: probe.leads for probe in log.panel.probes}
        stances = []
        for answer in log.answers:
            key = Part(answer.anchor, answer.probe, answer.sample)
            stance = self.verdicts[key].stance if key in self.verdicts else NO_VERDICT
            if part == ARGUMENT and key in self.verdicts:
                side, rest = split_lead(answer.text, leads[answer.probe])
                if side and rest:
                    argument = self.verdicts.get(key._replace(part=ARGUMENT))
                    stance = argument.stance if argument else NO_VERDICT
                elif side:
                    stance = NEUTRAL
            stances.append(stance)
        return np.array(stances, np.float64).reshape(-1, 3)

    def share(self, log: AnswerLog) -> float:
        """Share of a run's answers that it has judged: of each the whole and, but for people, its argument. An answer
        on which it was asked and gave no verdict counts. NaN where there are no answers.

        Answers are judged in random order, so they are a random part of all at any share; labels of people are one
        where their sheet is labelled from its top on, or whole.
        """
        keys = [[key for key, _ in asked] for _, asked in questions_of(log)]
        if self.judge.startswith(PEOPLE):
            keys = [of_answer[:1] for of_answer in keys]
        return (
            sum(all(key in self.verdicts for key in of_answer) for of_answer in keys) / len(keys) if keys else math.nan
        )

    def gaps(self, log: AnswerLog) -> list[int]:
        """Anchors at which no answer has a verdict: readouts have nothing there."""
        judged = {key.anchor for key, verdict in self.verdicts.items()
                  if isinstance(key, Part) and not math.isnan(verdict.stance[0])}  # fmt: skip
        return [anchor for anchor in log.anchors if anchor not in judged]

    @property
    def bare(self) -> tuple[float, float] | None:
        """p(support) - p(oppose) of a bare lead for what the question proposes ("Yes.") and of one against it ("No."),
        means over the probes that it was asked of. None: not asked. People's are certain: (1, -1)."""
        if self.judge.startswith(PEOPLE):
            return 1.0, -1.0
        graded: dict[int, list[float]] = {1: [], -1: []}
        for key, verdict in self.verdicts.items():
            if isinstance(key, BareLead) and not math.isnan(verdict.stance[0]):
                graded[key.side].append(verdict.stance[0] - verdict.stance[2])
        if not graded[1] or not graded[-1]:
            return None
        return float(np.mean(graded[1])), float(np.mean(graded[-1]))

    @property
    def orders(self) -> OrderAgreement | None:
        """How its labels agree in both orders; None where it was not asked in two."""
        pairs = [verdict.orders for verdict in self.verdicts.values() if verdict.orders]
        return order_agreement(pairs) if pairs else None

    @property
    def refusal(self) -> str:
        """Why its verdicts are not to be used; "" where they are."""
        return self.orders.refusal if self.orders else ""


def locked(log: AnswerLog, judge: str) -> Lock:
    """A lock on a judge's file of a run, for whoever writes to it; judge: its name.

    Raises:
        InputError: another process is writing to it; or the folder is a link that leads out of the run's.
    """
    folder, run = folder_of(log), log.folder.parent.parent
    if not folder.resolve().is_relative_to(run.resolve()) or (folder / f"{slug_of(judge)}.jsonl").is_symlink():
        raise InputError(f"{printable(folder)}: a link leads out of the run's folder, and nothing is written there")
    return Lock(folder / f".{slug_of(judge)}.lock", f"{judge} is judging these answers already, started")


def _lines(verdicts: Mapping[Key, Verdict]) -> str:
    """Verdicts as lines of a file."""
    lines = []
    for key, (stance, orders) in verdicts.items():
        row: dict[str, Any] = {}
        if isinstance(key, BareLead):
            row |= {"probe": key.probe, "bare": key.side}
        else:
            row |= {"anchor": key.anchor, "probe": key.probe, "sample": key.sample}
            row |= {"part": key.part} if key.part != BOTH else {}
        row["stance"] = None if math.isnan(stance[0]) else [round(float(p), 6) for p in stance]
        row |= {"orders": orders} if orders else {}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def _key_of_row(row: dict[str, Any], place: str) -> Key:
    """What a line's verdict is of. Raises InputError, with its place, for nothing that has one."""
    anchor, probe, sample, part = (row.get(name, default) for name, default in
                                   (("anchor", None), ("probe", None), ("sample", None), ("part", BOTH)))  # fmt: skip
    if "bare" in row and isinstance(probe, str) and type(row["bare"]) is int and row["bare"] in (1, -1):
        return BareLead(probe, row["bare"])
    if not (is_count(anchor) and isinstance(probe, str) and is_count(sample) and part in (BOTH, ARGUMENT)):
        raise InputError(f"{place}: damaged: a verdict is of an anchor, a probe and a sample")
    return Part(anchor, probe, sample, part)


def _drop_cut_line(path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
    os.truncate(path, whole)


def read_stance(value: Any, place: str) -> Stance:
    """A stance from its JSON value; null: no verdict. Raises InputError, with its place, for what is none."""
    if value is None:
        return NO_VERDICT
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


def open_judgements(log: AnswerLog, slug: str) -> Judgements:
    """One judge's file on a run's answers; slug: the judge's.

    Raises:
        InputError: this judge has judged nothing here, or its file is damaged.
    """
    path = folder_of(log) / f"{slug}.jsonl"
    if not path.exists():
        known = ", ".join(judges(log.folder.parent.parent)) or "nobody"
        raise InputError(f"{log.folder.parent.parent}: not judged by {slug!r}; it is by {known}")
    return Judgements.open(path)


def judgements_of(log: AnswerLog, slug: str, part: str = BOTH) -> np.ndarray:
    """One judge's stances of a run's answers: `Judgements.stances_of` of `open_judgements`.

    Raises:
        InputError: as those.
    """
    return open_judgements(log, slug).stances_of(log, part)


def lead_stances(log: AnswerLog) -> np.ndarray:
    """The sides that a run's answers begin with, as certain stances: [len(log.answers), 3] float64 of 0 and 1."""
    leads = {probe.id: probe.leads for probe in log.panel.probes}
    sides = [split_lead(answer.text, leads[answer.probe]).side for answer in log.answers]
    return np.eye(3)[1 - np.array(sides, np.int64)].reshape(-1, 3)
