"""Judging a run's answers: those without a verdict, each distinct answer once, verdicts kept as they come."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from tqdm import tqdm

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.judgements import Judgements, folder_of, key_of, locked, slug_of
from vdengine.errors import InputError
from vdengine.judges.base import Item, Judge


@dataclass(frozen=True)
class Judged:
    """The outcome of one call of `judge_answers`, in numbers of answers."""

    new: int  # judged by this call
    before: int  # judged before
    silent: int  # of all that were judged: the judge gave no verdict
    left: int  # not judged yet: beyond `max_calls`, or the request failed


def to_judge(log: AnswerLog, judge: Judge, *, again: bool = False) -> list[Answer]:
    """Answers that this judge has not judged yet: the first samples of all probes, then the second ones, and so on.

    A judge that is cut short has then seen a part of every anchor and topic.

    Args:
        again: take no notice of earlier verdicts.

    Raises:
        InputError: the judge's file was written by another version of it, and not `again`.
    """
    stances = _file(log, judge, again).stances
    left = [answer for answer in log.answers if key_of(answer) not in stances]
    return sorted(left, key=lambda answer: answer.sample)


def judge_answers(
    log: AnswerLog, judge: Judge, *, max_calls: int | None = None, again: bool = False, progress: bool = False
) -> Judged:
    """Judge all answers that have no verdict of this judge. The same answer to the same question is judged once.

    Args:
        max_calls: questions to the judge, at most.
        again: drop this judge's earlier verdicts.
        progress: show a progress bar.

    Raises:
        InputError: the judge cannot go on (its verdicts are kept, and the next call continues from there), its file
            holds verdicts of another version of it, or another process is writing them.
    """
    if max_calls is not None and max_calls < 1:
        raise InputError(f"--max-calls {max_calls}: it must be at least 1")
    lock = locked(log, judge.name)
    try:
        return _judge_answers(log, judge, max_calls, again, progress)
    finally:
        lock.close()


def _judge_answers(log: AnswerLog, judge: Judge, max_calls: int | None, again: bool, progress: bool) -> Judged:
    """`judge_answers`, by the one process that may."""
    kept = _file(log, judge, again)
    if not kept.stances:
        kept = Judgements.start(kept.path, judge.name, judge.identity)
    before = len(kept.stances)
    probes = {probe.id: probe for probe in log.panel.probes}
    # Answers without a verdict by (probe, text), and the verdicts on texts that other answers have too.
    same: dict[tuple[str, str], list[Answer]] = {}
    for answer in to_judge(log, judge):
        same.setdefault((answer.probe, answer.text), []).append(answer)
    known = {
        (answer.probe, answer.text): kept.stances[key_of(answer)]
        for answer in log.answers
        if key_of(answer) in kept.stances
    }
    kept.append({key_of(a): known[text] for text, answers in same.items() if text in known for a in answers})
    asked = [(text, answers) for text, answers in same.items() if text not in known][:max_calls]
    items = [Item(probes[probe], text) for (probe, text), _ in asked]
    with tqdm(total=len(items), desc=judge.name, unit="answer", leave=False, disable=not progress) as bar:
        for i, stance in judge.judge(items):
            kept.append(dict.fromkeys(map(key_of, asked[i][1]), None if math.isnan(stance[0]) else stance))
            bar.update()
    silent = sum(stance is None for stance in kept.stances.values())
    left = sum(key_of(answer) not in kept.stances for answer in log.answers)
    return Judged(len(kept.stances) - before, before, silent, left)


def _file(log: AnswerLog, judge: Judge, again: bool) -> Judgements:
    """A judge's file, checked for its identity; empty where there is none, or `again`. Nothing is written."""
    path = folder_of(log) / f"{slug_of(judge.name)}.jsonl"
    if again or not path.exists():
        return Judgements(path, judge.name, judge.identity, {})
    kept = Judgements.open(path)
    identity = json.loads(json.dumps(judge.identity))
    if not kept.stances:  # cut short before the first verdict
        return Judgements(path, judge.name, judge.identity, {})
    if kept.judge != judge.name or kept.identity != identity:
        changed = [k for k in {**kept.identity, **identity} if kept.identity.get(k) != identity.get(k)]
        raise InputError(
            f"{path}: was written by another {kept.judge} ({', '.join(changed) or 'name'} differ); judge again "
            "from the start with --again, or move the file away"
        )
    return kept
