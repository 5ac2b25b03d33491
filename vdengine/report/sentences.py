"""Sentences of the page about one readout: what moved, and what limits the reading."""

from __future__ import annotations

from collections.abc import Sequence

from vdengine.drift.intervals import FEW_PROBES
from vdengine.drift.run import OPENINGS, Readout

PER = 100.0  # openings are shown in nats per 100 bytes
_MAX_NAMED = 4  # topics that a sentence names


def verdict(view: Readout) -> tuple[str, str]:
    """What moved, in a sentence; and which way, the topics that moved furthest first."""
    analysis = view.analysis
    drifts = [analysis.drift(topic) for topic in analysis.topics]
    moved = sorted((drift for drift in drifts if drift.significant), key=lambda drift: -abs(drift.magnitude.mean))
    is_openings = view.kind == OPENINGS
    subject = "Openings" if is_openings else f"Answers (judge {view.judge})"
    span = f"From step {analysis.baseline} to {int(analysis.values.steps[-1])}"
    scale, unit = (PER, "nats per 100 bytes") if is_openings else (1.0, "support minus oppose")
    if not moved:
        mean = analysis.drift()
        if not mean.significant:
            where = "the one topic" if len(drifts) == 1 else f"any of {len(drifts)} topics"
            return f"{subject}: no clear shift on {where}.", f"{span}."
        direction = "towards the axes" if mean.magnitude.mean > 0 else "away from the axes"
        return (
            f"{subject}: the panel's mean moved {direction}, no single topic clearly.",
            f"{span}: {mean.magnitude.mean * scale:+.2f} {unit}.",
        )
    parts = [
        f"{drift.topic} {'towards' if drift.magnitude.mean > 0 else 'away from'} {analysis.values.axes[drift.topic]} "
        f"({drift.magnitude.mean * scale:+.2f})"
        for drift in moved[:_MAX_NAMED]
    ]
    rest = f"; and {_count(len(moved) - _MAX_NAMED, 'more topic')}" if len(moved) > _MAX_NAMED else ""
    head = f"{subject}: {len(moved)} of {_count(len(drifts), 'topic')} moved."
    return head, f"{span}: {'; '.join(parts)}{rest}. In {unit}."


def caveats(view: Readout) -> list[str]:
    """What a reader must know before believing the verdict."""
    analysis = view.analysis
    sentences = []
    if view.kind == OPENINGS:
        sentences.append(
            "Openings are a sensitive early sign of direction. They are not what the model says: answers are."
        )
    if few := [topic for topic in analysis.topics if analysis.drift(topic).magnitude.few]:
        named = "every topic" if len(few) == len(analysis.topics) else _listed(few)
        sentences.append(f"Fewer than {FEW_PROBES} probes for {named}: the intervals are not to be trusted.")
    reliability = analysis.validity["reliability"]
    if unreliable := [topic for topic, r in reliability.items() if r.unreliable and topic not in few]:
        sentences.append(f"Hard to read: {_listed(unreliable)} (the reasons are in the table of magnitudes).")
    readings = [gate for gate in analysis.values.gates or [] if gate is not None]
    if closed := [gate for gate in readings if not gate.open]:
        sentences.append(
            f"Between anchors the weights reach too little in {len(closed)} of {len(readings)} readings; "
            "nothing is drawn there."
        )
    return sentences


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + rest
