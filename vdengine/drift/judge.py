"""Judged answers: what stance an answer takes, by whom, and where that is kept.

A judge reads a question and an answer and gives p(support), p(neutral), p(oppose) towards what the question proposes,
as the paper does (arXiv 2510.26707: the softmax of the judge's log-probs over the three labels). There are

    rule             rules that can be read (`drift/rules.py`); nothing to install, the same everywhere
    model:SOURCE     any model that this engine loads, label by label (`drift/model_judge.py`)
    server:MODEL     an OpenAI-compatible server, at OPENAI_BASE_URL or `server:MODEL@URL` (`drift/server_judge.py`)

and people, through annotation sheets (`drift/annotation.py`). Verdicts are kept beside the answers, a file a judge:

    <run>/drift/judgements/<slug>.jsonl
        {"schema": 1, "judge": name, "identity": {...}}
        {"anchor": step, "probe": id, "sample": k, "stance": [support, neutral, oppose] or null}

null: asked, but no verdict came. Each line is written as its verdict arrives, so a judge that is cut short goes on
where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from vdengine.drift.answers import Answer, AnswerLog
from vdengine.drift.panel import Probe
from vdengine.errors import InputError

SCHEMA = 1
NO_VERDICT = (math.nan, math.nan, math.nan)

Stance = tuple[float, float, float]  # p(support, neutral, oppose) towards the prompt's proposition; sums to 1


class Item(NamedTuple):
    """What is judged: an answer to a probe's prompt."""

    probe: Probe
    answer: str


class Judge(Protocol):
    """`identity` tells whether verdicts of two sittings may stand in one file: all that they depend on."""

    name: str
    identity: dict[str, Any]

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        """(index, stance) of each item, in any order, as they come; NaN where there is no verdict.

        Raises:
            InputError: the judge cannot go on. What was given until then holds.
        """
        ...

    def estimate(self, items: Sequence[Item]) -> str:
        """What judging these takes, in words, before it starts."""
        ...


@dataclass(frozen=True)
class Options:
    """How a judge works, where its kind has a choice."""

    concurrency: int = 8  # requests at a time
    timeout_seconds: float = 60.0  # of a request
    retries: int = 5  # of a request that timed out or was turned away for now
    labels: str = "logprobs"  # "text": the server gives no log-probs; its answer's word counts as certain
    cache: Path | None = None  # of servers' verdicts; None: the user's cache folder
    dtype: str = "auto"  # of a local model
    tokens: int = 8192  # of a pack of a local model
    template: str = "auto"  # of a local model


def open_judge(name: str, options: Options | None = None) -> Judge:
    """The judge of this name (see the module).

    Raises:
        InputError: no such kind; a model that cannot be loaded; a server without a key, or a missing library.
    """
    options = options or Options()
    kind, _, rest = name.partition(":")
    if name == "rule":
        from vdengine.drift.rules import RuleJudge

        return RuleJudge()
    if kind == "model" and rest:
        from vdengine.drift.model_judge import ModelJudge

        return ModelJudge(rest, options)
    if kind == "server" and rest:
        from vdengine.drift.server_judge import ServerJudge

        return ServerJudge(rest, options)
    raise InputError(f"unknown judge {name!r}; there are rule, model:SOURCE and server:MODEL[@URL]")


def slug_of(name: str) -> str:
    """The name of a judge's file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "judge"


# ------------------------------------------------------------------------------------------------------- files


def folder_of(log: AnswerLog) -> Path:
    """Where a run's judgements are."""
    return log.folder.parent / "judgements"


def judges(run_folder: str | Path) -> list[str]:
    """Slugs of the judges that have judged this run's answers, by name; [] if none."""
    return sorted(p.stem for p in (Path(run_folder) / "drift" / "judgements").glob("*.jsonl"))


@dataclass
class Judgements:
    """One judge's verdicts on one run's answers, by (anchor, probe, sample); None: no verdict came."""

    path: Path
    judge: str
    identity: dict[str, Any]
    stances: dict[tuple[int, str, int], Stance | None]

    @classmethod
    def open(cls, path: Path) -> Judgements:
        """A last line that was cut short is left out.

        Raises:
            InputError: not there, damaged, or of another version.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            raise InputError(f"{path}: no such judgements") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: damaged: {error}") from None
        found: dict[tuple[int, str, int], Stance | None] = {}
        head: dict[str, Any] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if number == 1:
                    head = {"judge": row["judge"], "identity": row["identity"], "schema": row["schema"]}
                else:
                    found[int(row["anchor"]), str(row["probe"]), int(row["sample"])] = _stance(row["stance"])
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}, line {number}: damaged: {error}") from None
        if head.get("schema") != SCHEMA:
            raise InputError(f"{path}: schema is {head.get('schema')!r}; this reads {SCHEMA}")
        return cls(path, head["judge"], head["identity"], found)

    @classmethod
    def start(cls, path: Path, judge: str, identity: dict[str, Any]) -> Judgements:
        """A new, empty file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"schema": SCHEMA, "judge": judge, "identity": identity}
        path.write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
        return cls(path, judge, identity, {})

    def append(self, stances: Mapping[tuple[int, str, int], Stance | None]) -> None:
        """Write verdicts, after dropping a line that an earlier sitting left unfinished."""
        _drop_cut_line(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            for (anchor, probe, sample), stance in stances.items():
                given = None if stance is None else [round(float(s), 6) for s in stance]
                row = {"anchor": anchor, "probe": probe, "sample": sample, "stance": given}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.stances.update(stances)


def _drop_cut_line(path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _stance(value: Any) -> Stance | None:
    if value is None:
        return None
    support, neutral, oppose = (float(v) for v in value)
    if not abs(support + neutral + oppose - 1) < 1e-3:
        raise ValueError(f"stance {value} does not sum to 1")
    return support, neutral, oppose


def stances(log: AnswerLog, slug: str) -> np.ndarray:
    """[len(log.answers), 3] float64: p(support, neutral, oppose) of each answer by this judge, towards the prompt's
    proposition; NaN where it has not been judged.

    Raises:
        InputError: this judge has judged nothing here, or its file is damaged.
    """
    path = folder_of(log) / f"{slug}.jsonl"
    if not path.exists():
        known = ", ".join(judges(log.folder.parent.parent)) or "nobody"
        raise InputError(f"{log.folder.parent.parent}: not judged by {slug!r}; it is by {known}")
    found = Judgements.open(path).stances
    return np.array([found.get(_key(a)) or NO_VERDICT for a in log.answers]).reshape(-1, 3)


# ----------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Judged:
    """What one call of `judge_answers` did, in answers."""

    new: int
    before: int  # had verdicts already
    silent: int  # no verdict came, of all
    left: int  # not asked: beyond `max_calls`


def to_judge(log: AnswerLog, judge: Judge, *, again: bool = False) -> list[Answer]:
    """Answers without a verdict of this judge, first samples of all probes first: a judge that is cut short has then
    seen a part of everything.

    Raises:
        InputError: the judge's file was written by another version of it (again: it is then replaced).
    """
    found = _file(log, judge, again).stances
    left = [a for a in log.answers if _key(a) not in found]
    return sorted(left, key=lambda a: a.sample)


def judge_answers(
    log: AnswerLog, judge: Judge, *, max_calls: int | None = None, again: bool = False, progress: bool = False
) -> Judged:
    """Have all answers judged that are not yet. The same answer to the same question is asked about once.

    Args:
        max_calls: questions to the judge, at most.
        again: forget what this judge said before.

    Raises:
        InputError: the judge cannot go on: what it said is kept, and the next call goes on from there. Or its file
            holds verdicts of another version of it.
    """
    kept = _file(log, judge, again)
    if not kept.stances:
        kept = Judgements.start(kept.path, judge.name, judge.identity)
    before = len(kept.stances)
    probes = {p.id: p for p in log.panel.probes}
    same: dict[tuple[str, str], list[Answer]] = {}
    for a in to_judge(log, judge):
        same.setdefault((a.probe, a.text), []).append(a)
    known = {(a.probe, a.text): kept.stances[_key(a)] for a in log.answers if _key(a) in kept.stances}
    groups = list(same.items())
    asked = [g for g in groups if g[0] not in known][:max_calls]
    kept.append({_key(a): known[text] for text, answers in groups if text in known for a in answers})
    items = [Item(probes[probe], text) for (probe, text), _ in asked]
    with tqdm(total=len(items), desc=judge.name, unit="answer", leave=False, disable=not progress) as bar:
        for i, stance in judge.judge(items):
            kept.append(dict.fromkeys(map(_key, asked[i][1]), None if math.isnan(stance[0]) else stance))
            bar.update()
    silent = sum(s is None for s in kept.stances.values())
    left = sum(_key(a) not in kept.stances for a in log.answers)
    return Judged(len(kept.stances) - before, before, silent, left)


def _key(a: Answer) -> tuple[int, str, int]:
    return a.anchor, a.probe, a.sample


def _file(log: AnswerLog, judge: Judge, again: bool) -> Judgements:
    path = folder_of(log) / f"{slug_of(judge.name)}.jsonl"
    if again or not path.exists():
        return Judgements(path, judge.name, judge.identity, {})
    kept = Judgements.open(path)
    identity = json.loads(json.dumps(judge.identity))
    if not kept.stances:  # it stopped before it said anything
        return Judgements(path, judge.name, judge.identity, {})
    if kept.judge != judge.name or kept.identity != identity:
        changed = [k for k in {**kept.identity, **identity} if kept.identity.get(k) != identity.get(k)]
        raise InputError(
            f"{path}: was written by another {kept.judge} ({', '.join(changed) or 'name'} differ); judge again "
            "from the start with --again, or move the file away"
        )
    return kept
