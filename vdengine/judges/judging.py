"""Judging a run's answers: those without a verdict, each distinct question once, verdicts kept as they come.

A question is an answer to a probe, or an answer's argument (`drift/answer_leads.py`). Beside them a judge is asked what
it makes of a bare "Yes." and a bare "No.", of a few probes: the analysis puts leads in its units by that.

Answers are gone through in random order, every anchor and topic alike, as subsets are drawn; and one whose question has
been put before shares that verdict when its turn comes, not earlier, or common answers would be judged sooner than rare
ones. So the answers that are judged are a random part of all, however early a judge is stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from tqdm import tqdm

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.judgements import (
    BareLead,
    Judgements,
    Key,
    Subset,
    Verdict,
    folder_of,
    locked,
    questions_of,
    slug_of,
)
from vdengine.drift.prediction_powered import drawn
from vdengine.errors import InputError
from vdengine.judges.base import Item, Judge
from vdengine.judges.calibration import renew
from vdengine.panels.panel import Panel, Probe

BARE_PROBES = 4  # of each polarity, that a bare lead is judged of
_FIRST_LOOK = 100  # verdicts, after which it is looked at whether labels follow their order; then twice as many, ...


@dataclass(frozen=True)
class Judged:
    """The outcome of one call of `judge_answers`, in numbers of answers."""

    new: int  # judged by this call
    before: int  # judged before
    silent: int  # of all that were judged: the judge gave no verdict
    left: int  # not judged yet: beyond `max_calls`, or the request failed


@dataclass
class Plan:
    """What a judge is to be asked."""

    items: list[Item] = field(default_factory=list)  # distinct questions, in order
    # Before the first question, and after each: what is next in order and needs no question of its own, with the number
    # of the question whose verdict it shares, or with a verdict that is there.
    shared: list[list[tuple[Key, int | Verdict]]] = field(default_factory=lambda: [[]])
    firsts: list[Key] = field(default_factory=list)  # of each question: what it is asked for

    def settle(self, verdicts: Iterator[tuple[int, Verdict]]) -> Iterator[dict[Key, Verdict]]:
        """What is known after each verdict of the items, in order: its own, and those that are shared up to the next
        question. At last, what is left behind questions that have no verdict."""
        given: dict[int, Verdict] = {}
        place = 0  # in `shared`

        def reached(end: int) -> dict[Key, Verdict]:
            nonlocal place
            due = [pair for of_place in self.shared[place:end] for pair in of_place]
            place = end
            # Both orders of the words are kept once a question: the check of a judge counts questions.
            known = {key: given.get(by) if isinstance(by, int) else by for key, by in due}
            return {key: Verdict(verdict.stance) for key, verdict in known.items() if verdict is not None}

        yield reached(1)
        for i, verdict in verdicts:
            given[i] = verdict
            before = reached(i + 1)  # behind questions that have no verdict
            yield before | {self.firsts[i]: verdict} | reached(i + 2)
        yield reached(len(self.shared))


def to_judge(
    log: AnswerLog,
    judge: Judge,
    *,
    max_calls: int | None = None,
    again: bool = False,
    subset: Subset | None = None,
) -> Plan:
    """What this judge has not been asked yet: bare leads, then answers in the order in which subsets are drawn.

    A judge that is cut short has then seen a random part, of every anchor and topic alike.

    Args:
        max_calls: questions to the judge, at most.
        again: take no notice of earlier verdicts.
        subset: judge only the answers that are drawn for it. Default: all.

    Raises:
        InputError: the judge's file was written by another version of it, and not `again`; `max_calls` or the subset is
            out of range.
    """
    if max_calls is not None and max_calls < 1:
        raise InputError(f"--max-calls {max_calls}: it must be at least 1")
    if subset is not None and not 1 <= subset.answers <= len(log.answers):
        raise InputError(f"--subset {subset.answers}: allowed are 1 to {len(log.answers)}, the run's answers")
    return _plan(log, _file(log, judge, again), max_calls, subset)


def judge_answers(
    log: AnswerLog,
    judge: Judge,
    *,
    max_calls: int | None = None,
    again: bool = False,
    subset: Subset | None = None,
    progress: bool = False,
) -> Judged:
    """Judge all answers that have no verdict of this judge. The same answer to the same question is judged once.

    Args:
        max_calls: questions to the judge, at most.
        again: drop this judge's earlier verdicts.
        subset: judge only the answers that are drawn for it, which is kept; a judge that has judged all has none.
            Default: all; a subset that was drawn before stands until all are judged.
        progress: show a progress bar.

    Raises:
        InputError: as `to_judge`; the judge cannot go on (its verdicts are kept, and the next call continues from
            there); its labels follow the order in which they are named; or another process is writing its verdicts.
    """
    to_judge(log, judge, max_calls=max_calls, again=again, subset=subset)  # nothing is written before this is known
    lock = locked(log, judge.name)
    try:
        kept = _file(log, judge, again)
        if not kept.verdicts:
            kept = Judgements.start(kept.path, judge.name, judge.identity)
        if subset is not None and subset != kept.subset and kept.share(log) < 1:
            kept.draw(subset)
        try:
            return _judge_answers(log, judge, kept, _plan(log, kept, max_calls, subset), subset, progress)
        finally:
            if kept.subset is not None and kept.share(log) == 1:
                kept.draw(None)
            renew(log, kept)
    finally:
        lock.close()


def _judge_answers(
    log: AnswerLog, judge: Judge, kept: Judgements, plan: Plan, subset: Subset | None, progress: bool
) -> Judged:
    """`judge_answers`, by the one process that may."""
    _refuse(kept)
    asked = [[key for key, _ in of_answer] for _, of_answer in questions_of(log)]
    wanted = range(len(asked)) if subset is None else drawn(log, subset).tolist()

    def done() -> int:
        """Answers of which all that is asked has a verdict."""
        return sum(all(key in kept.verdicts for key in asked[i]) for i in wanted)

    before = done()
    look = _FIRST_LOOK
    with tqdm(total=len(plan.items), desc=judge.name, unit="question", leave=False, disable=not progress) as bar:
        for number, known in enumerate(plan.settle(judge.judge(plan.items))):
            kept.append(known)
            if number == look:
                _refuse(kept)
                look *= 2
            bar.update(0 < number <= len(plan.items))
    _refuse(kept)
    silent = sum(any(_is_silent(kept, key) for key in asked[i]) for i in wanted)
    return Judged(done() - before, before, silent, len(wanted) - done())


def _is_silent(kept: Judgements, key: Key) -> bool:
    return key in kept.verdicts and math.isnan(kept.verdicts[key].stance[0])


def _refuse(kept: Judgements) -> None:
    """Raises InputError for a judge whose labels follow the order in which they are named."""
    if refusal := kept.refusal:
        raise InputError(f"judge {kept.judge}: {refusal}; it cannot be used. Take another judge")


def _plan(log: AnswerLog, kept: Judgements, max_calls: int | None, subset: Subset | None) -> Plan:
    """`to_judge`, from what is kept."""
    probes = {probe.id: probe for probe in log.panel.probes}
    asked = list(questions_of(log))
    # Without a subset it goes on with the one that was drawn, whose part is the first in this order.
    seed = kept.subset.seed if kept.subset else 0
    order = drawn(log, subset or Subset(len(asked), seed)).tolist()
    bare = _bare(log.panel)
    known: dict[tuple[str, str], Verdict] = {}  # by probe and text
    for key, text in [*bare, *(pair for _, of_answer in asked for pair in of_answer)]:
        if key in kept.verdicts:
            known.setdefault((key.probe, text), kept.verdicts[key])
    plan, number_of = Plan(), dict[tuple[str, str], int]()  # by probe and text: its place in `items`
    for key, text in [*bare, *(pair for i in order for pair in asked[i][1])]:
        question = key.probe, text
        if key in kept.verdicts:
            continue
        if (shared := known.get(question, number_of.get(question))) is not None:
            plan.shared[-1].append((key, shared))
        elif max_calls is not None and len(plan.items) == max_calls:
            break
        else:
            number_of[question] = len(plan.items)
            plan.items.append(Item(probes[key.probe], text))
            plan.firsts.append(key)
            plan.shared.append([])
    return plan


def _bare(panel: Panel) -> list[tuple[Key, str]]:
    """Bare leads of probes throughout the panel, as many of each polarity."""
    chosen: list[Probe] = []
    for polarity in (1, -1):
        probes = [probe for probe in panel.probes if probe.polarity == polarity]
        count = min(BARE_PROBES, len(probes))
        chosen += [probes[i * len(probes) // count] for i in range(count)]
    pairs: dict[Key, str] = {}
    for probe in chosen:
        pairs[BareLead(probe.id, 1)] = f"{probe.leads.support[0].capitalize()}."
        pairs[BareLead(probe.id, -1)] = f"{probe.leads.oppose[0].capitalize()}."
    return list(pairs.items())


def _file(log: AnswerLog, judge: Judge, again: bool) -> Judgements:
    """A judge's file, checked for its identity; empty where there is none, or `again`. Nothing is written."""
    path = folder_of(log) / f"{slug_of(judge.name)}.jsonl"
    if again or not path.exists():
        return Judgements(path, judge.name, judge.identity, {})
    kept = Judgements.open(path)
    identity = json.loads(json.dumps(judge.identity))
    if not kept.verdicts:  # cut short before the first verdict
        return Judgements(path, judge.name, judge.identity, {})
    if kept.judge != judge.name or kept.identity != identity:
        changed = [k for k in {**kept.identity, **identity} if kept.identity.get(k) != identity.get(k)]
        raise InputError(
            f"{path}: was written by another {kept.judge} ({', '.join(changed) or 'name'} differ); judge again "
            "from the start with --again, or move the file away"
        )
    return kept
