"""Sentences of the page: what each readout is, what moved by one of them, and what limits the reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vdengine.drift.analysis import Analysis
from vdengine.drift.checks import checks
from vdengine.drift.intervals import FEW_PROBES
from vdengine.drift.judgements import ARGUMENT, BOTH
from vdengine.drift.judgements import LEAD as LEAD_PART
from vdengine.drift.run import ANSWERS, Readout
from vdengine.drift.validity import TopicDrift
from vdengine.recipe import LEAD, TEXT

_MAX_NAMED = 4  # topics that a sentence names


class Reading(NamedTuple):
    """A readout as the report names and shows it."""

    name: str  # in files, and on the command line
    kind: str  # of `Readout`
    part: str  # of answers: one of `judgements.PARTS`; else ""
    label: str
    sentence: str  # what it is, for someone who has not read about it; {yes} and {no} are the panel's leads
    unit: str  # of shifts as they are shown; the same
    scale: float = 1.0  # from the readout's unit to that


def worded(text: str, leads: tuple[str, str]) -> str:
    """A reading's sentence or unit, with the words that answers begin with."""
    return text.replace("{yes}", leads[0]).replace("{no}", leads[1])


_GRADED = "support \u2212 oppose"
READINGS = (  # in the order in which they are shown
    Reading(
        "lead", LEAD, "", "Lead",
        "The side that an answer begins with: how much likelier its first word is {yes} than {no}, on the topic's "
        "side.",
        "p({yes}) \u2212 p({no})",
    ),
    Reading(
        "argument", ANSWERS, ARGUMENT, "Argument",
        "What answers argue after their first {yes} or {no}, as a judge reads them.",
        _GRADED,
    ),
    Reading(
        "text_likelihood", TEXT, "", "Text likelihood",
        "How much likelier texts of one side became as answers to the questions, beyond what they became after no "
        "question. Not what the model says.",
        "nats per 100 bytes", 100.0,
    ),
    Reading(
        "answers", ANSWERS, BOTH, "Whole answers",
        "Which side answers take, first word and argument together, as a judge reads them.",
        _GRADED,
    ),
    Reading(
        "drawn_lead", ANSWERS, LEAD_PART, "First word of answers",
        "Which side the drawn answers begin with, counted.",
        _GRADED,
    ),
)  # fmt: skip


def reading_of(view: Readout) -> Reading:
    """How a readout of a run is named and shown."""
    return next(reading for reading in READINGS if (reading.kind, reading.part) == (view.kind, view.part))


def verdict(view: Readout) -> tuple[str, str]:
    """What moved, in a sentence; and which way, the topics that moved furthest first."""
    analysis, reading = view.analysis, reading_of(view)
    drifts = [analysis.drift(topic) for topic in analysis.topics]
    moved = sorted((drift for drift in drifts if drift.significant), key=lambda drift: -abs(drift.magnitude.mean))
    subject = f"{reading.label} (judge {view.judge})" if view.judge else reading.label
    span = f"From step {analysis.baseline} to {int(analysis.values.steps[-1])}"
    unit = worded(reading.unit, analysis.values.leads)
    unknown = [drift for drift in drifts if drift.unknown]
    if len(unknown) == len(drifts):
        return f"{subject}: not known.", f"{span}: {_reasons(unknown)}."
    told = len(drifts) - len(unknown)  # topics of which something can be said
    rest = f" Not known: {_reasons(unknown)}." if unknown else ""
    if not moved:
        mean = analysis.drift()
        if not mean.significant:
            where = "the one topic" if told == 1 else f"any of {told} topics"
            return f"{subject}: no clear shift on {where}.", f"{span}.{rest}"
        direction = "towards the axes" if mean.magnitude.mean > 0 else "away from the axes"
        return (
            f"{subject}: the panel's mean moved {direction}, no single topic clearly.",
            f"{span}: {_signed(mean.magnitude.mean * reading.scale)}, in {unit}.{rest}",
        )
    parts = [
        f"{drift.topic} {'towards' if drift.magnitude.mean > 0 else 'away from'} {analysis.values.axes[drift.topic]} "
        f"({_signed(drift.magnitude.mean * reading.scale)})"
        for drift in moved[:_MAX_NAMED]
    ]
    more = f"; and {_count(len(moved) - _MAX_NAMED, 'more topic')}" if len(moved) > _MAX_NAMED else ""
    head = f"{subject}: {len(moved)} of {_count(told, 'topic')} moved."
    return head, f"{span}: {'; '.join(parts)}{more}. In {unit}.{rest}"


def _reasons(unknown: Sequence[TopicDrift]) -> str:
    """Why nothing can be said of these topics, those with the same reason together."""
    topics: dict[str, list[str]] = {}
    for drift in unknown:
        topics.setdefault(drift.unknown, []).append(drift.topic)
    return "; ".join(f"{_listed(names)} ({reason})" for reason, names in topics.items())


def caveats(view: Readout) -> list[str]:
    """What a reader must know before believing the verdict."""
    analysis = view.analysis
    sentences = []
    if few := [topic for topic in analysis.topics if analysis.drift(topic).magnitude.few]:
        named = "every topic" if len(few) == len(analysis.topics) else _listed(few)
        sentences.append(f"Fewer than {FEW_PROBES} probes for {named}: the intervals are not to be trusted.")
    sentences += _left_out(analysis)
    unknown = {topic for topic in analysis.topics if analysis.drift(topic).unknown}
    reliability = analysis.validity["reliability"]
    if unreliable := [topic for topic, r in reliability.items() if r.unreliable and topic not in {*few, *unknown}]:
        sentences.append(f"Hard to read: {_listed(unreliable)} (the reasons are in the table of magnitudes).")
    if marked := [check.label for check in checks(analysis) if check.warn]:
        sentences.append(f"Marked by a check: {_listed(marked)} (see the checks at the end).")
    readings = [gate for gate in analysis.values.gates or [] if gate is not None]
    if closed := [gate for gate in readings if not gate.open]:
        blind = sum(math.isnan(gate.pareto_k) for gate in closed)
        few_answers = f" (in {blind} there are too few answers to tell)" if blind else ""
        sentences.append(
            f"Between anchors the weights reach too little in {len(closed)} of {len(readings)} readings{few_answers}; "
            "nothing is drawn there."
        )
    return sentences


def _left_out(analysis: Analysis) -> list[str]:
    """A sentence on topics whose last sample lacks probes, or is older than the run's."""
    values, last = analysis.values, int(analysis.values.steps[-1])
    sentences, thin = [], []
    for topic in analysis.topics:
        drift, members = analysis.drift(topic), int(values.member(topic).sum())
        if drift.unknown or drift.step is None:
            continue
        if drift.magnitude.num_probes < members or drift.step < last:
            thin.append(f"{topic} ({drift.magnitude.num_probes} of {members} probes, step {drift.step})")
    if thin:
        sentences.append(
            f"The last sample with a number does not have every probe, or is an earlier one: {_listed(thin)}."
        )
    return sentences


def _signed(x: float) -> str:
    return f"{x:+z.2f}".replace("-", "\u2212")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest
