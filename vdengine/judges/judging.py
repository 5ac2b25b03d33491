"""Judging a run's answers: those without a verdict, each distinct question once, verdicts kept as they come.

A question is an answer to a probe, or an answer's argument (`drift/answer_leads.py`). Beside them a judge is asked what
it makes of a bare "Yes." and a bare "No.", of a few probes: the analysis puts leads in its units by that.

Answers are gone through in an order that does not depend on what they say, and one whose question has been put before
shares that verdict when its turn comes, not earlier: the answers that are judged at any time are a random part of all.
"""

from __future__ import annotations

import json
import math
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
    keys: list[list[Key]] = field(default_factory=list)  # of each: what its verdict is of, the first one asked for it
    shared: dict[Key, Verdict] = field(default_factory=dict)  # verdicts that are there, of answers of the same text


def to_judge(
    log: AnswerLog,
    judge: Judge,
    *,
    max_calls: int | None = None,
    again: bool = False,
    subset: Subset | None = None,
) -> Plan:
    """What this judge has not been asked yet: bare leads, then the first samples of all probes, the second ones, and so
    on; of a subset, in the order in which it is drawn.

    A judge that is cut short has then seen a part of every anchor and topic.

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
        subset: judge only the answers that are drawn for it, which is kept. Default: all.
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
        if subset != kept.subset:
            kept.draw(subset)
        return _judge_answers(log, judge, kept, _plan(log, kept, max_calls, subset), progress)
    finally:
        lock.close()


def _judge_answers(log: AnswerLog, judge: Judge, kept: Judgements, plan: Plan, progress: bool) -> Judged:
    """`judge_answers`, by the one process that may."""
    _refuse(kept)
    asked = [[key for key, _ in of_answer] for _, of_answer in questions_of(log)]
    wanted = range(len(asked)) if kept.subset is None else drawn(log, kept.subset).tolist()

    def done() -> int:
        """Answers of which all that is asked has a verdict."""
        return sum(all(key in kept.verdicts for key in asked[i]) for i in wanted)

    before = done()
    kept.append(plan.shared)
    look = _FIRST_LOOK
    with tqdm(total=len(plan.items), desc=judge.name, unit="question", leave=False, disable=not progress) as bar:
        for number, (i, verdict) in enumerate(judge.judge(plan.items), start=1):
            first, *others = plan.keys[i]
            # Both orders are kept once a question: the check counts questions.
            kept.append({first: verdict} | {key: Verdict(verdict.stance) for key in others})
            if number == look:
                _refuse(kept)
                look *= 2
            bar.update()
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
    if subset is None:
        order = sorted(range(len(asked)), key=lambda i: asked[i][0].sample)
    else:
        order = drawn(log, subset).tolist()
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
        if question in known:
            plan.shared[key] = Verdict(known[question].stance)
        elif question in number_of:
            plan.keys[number_of[question]].append(key)
        elif max_calls is not None and len(plan.items) == max_calls:
            break
        else:
            number_of[question] = len(plan.items)
            plan.items.append(Item(probes[key.probe], text))
            plan.keys.append([key])
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
