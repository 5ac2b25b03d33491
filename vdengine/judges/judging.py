"""Having a run's answers judged: what is left to ask, each question once, and verdicts kept as they come."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from tqdm import tqdm

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.judgements import Judgements, folder_of, key_of, slug_of
from vdengine.errors import InputError
from vdengine.judges.base import Item, Judge


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
    left = [a for a in log.answers if key_of(a) not in found]
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
    known = {(a.probe, a.text): kept.stances[key_of(a)] for a in log.answers if key_of(a) in kept.stances}
    groups = list(same.items())
    asked = [g for g in groups if g[0] not in known][:max_calls]
    kept.append({key_of(a): known[text] for text, answers in groups if text in known for a in answers})
    items = [Item(probes[probe], text) for (probe, text), _ in asked]
    with tqdm(total=len(items), desc=judge.name, unit="answer", leave=False, disable=not progress) as bar:
        for i, stance in judge.judge(items):
            kept.append(dict.fromkeys(map(key_of, asked[i][1]), None if math.isnan(stance[0]) else stance))
            bar.update()
    silent = sum(s is None for s in kept.stances.values())
    left = sum(key_of(a) not in kept.stances for a in log.answers)
    return Judged(len(kept.stances) - before, before, silent, left)


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
