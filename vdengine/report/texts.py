"""Texts of runs as the page shows them: cut to a bounded length, and chosen so that a page stays small.

They are data of unknown origin: here they stay strings, and the page's program makes text nodes of them, never markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.cost import finite
from vdengine.drift.probe_values import topic_name
from vdengine.drift.run import Run

MAX_ANSWERS = 2400  # in all runs together
MAX_COMPLETIONS = 60  # of a run
MAX_TEXT = 1200  # characters of a shown text
MAX_NAME = 200  # characters of a name, a path or a value of a recipe


def short(text: Any, width: int = MAX_TEXT) -> str:
    """A text of at most `width` characters and a sign that, and how much of it, was cut."""
    text = str(text)
    return text if len(text) <= width else f"{text[:width]} [... {len(text) - width:,} more characters]"


def sample_answers(run: Run, topics: Sequence[str], max_answers: int) -> dict[str, Any] | None:
    """Answers to the same questions at every anchor: as many questions of each topic as fit into `max_answers`.

    Returns:
        None without answers, else
            anchors      steps at which answers were drawn
            temperature  at which
            all          number of answers in the run
            probes       {id: [topic, question, polarity]}
            rows         [anchor, probe, sample, text, stopped, {judge: [support, neutral, oppose]}] of each answer; of
                         judges, those with a verdict on it
    """
    if run.answers is None or not run.answers.answers:
        return None
    log = run.answers
    probes = {probe.id: probe for probe in log.panel.probes if topic_name(probe.topic) in topics}
    place: dict[str, int] = {}  # of a probe among its topic's
    num_probes: dict[str, int] = {}  # by topic
    for probe in probes.values():
        place[probe.id] = num_probes.get(probe.topic, 0)
        num_probes[probe.topic] = place[probe.id] + 1
    samples = min(2, log.samples)
    anchors = _kept_anchors(log, max_answers, samples * max(len(num_probes), 1))
    per_topic = max(max_answers // max(len(anchors) * len(num_probes) * samples, 1), 1)  # questions
    chosen = [
        i
        for i, answer in enumerate(log.answers)
        if answer.anchor in anchors and answer.sample < samples and place.get(answer.probe, per_topic) < per_topic
    ]
    chosen = sorted(chosen, key=lambda i: place[log.answers[i].probe])[:max_answers]  # whole questions, where cut
    rows = []
    for i in sorted(chosen):
        answer = log.answers[i]
        stances = {
            slug: [round(float(p), 4) for p in by_judge[i]]
            for slug, by_judge in run.stances.items()
            if np.isfinite(by_judge[i]).all()
        }
        rows.append([answer.anchor, answer.probe, answer.sample, short(answer.text), answer.stopped, stances])
    shown = dict.fromkeys(log.answers[i].probe for i in chosen)
    return {
        "anchors": sorted(anchors),
        "temperature": finite(log.manifest.get("temperature")),
        "all": len(log.answers),
        "probes": {id: [topic_name(probes[id].topic), short(probes[id].prompt), probes[id].polarity] for id in shown},
        "rows": rows,
    }


def _kept_anchors(log: AnswerLog, max_answers: int, per_anchor: int) -> set[int]:
    """The anchors that fit, the first and the last among them; per_anchor: answers of each at least."""
    anchors = log.anchors
    count = min(len(anchors), max(max_answers // per_anchor, 2))
    return {anchors[i] for i in np.linspace(0, len(anchors) - 1, count).round().astype(int)}


def completions(run: Run) -> dict[str, Any] | None:
    """PPO's completions; where there are too many, evenly over the run."""
    if not run.completions:
        return None
    count = min(len(run.completions), MAX_COMPLETIONS)
    chosen = np.linspace(0, len(run.completions) - 1, count).round().astype(int)
    rows = [run.completions[i] for i in chosen]
    return {
        "all": len(run.completions),
        "rows": [
            [
                row["step"],
                short(row.get("prompt", "")),
                short(row.get("completion", "")),
                finite(row.get("score")),
                finite(row.get("kl")),
            ]
            for row in rows
        ],
    }
