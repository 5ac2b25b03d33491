"""What a page of the report shows, and what it should."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vdengine.drift.analysis import analyse
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.judgements import judgements_of
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import control_values, opening_values


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def analyses(run: Path) -> dict:
    """What the report should show of a run, by (readout, judge)."""
    log, answers = DriftLog.open(run), AnswerLog.open(run)
    total = 40
    found = {("openings", None): analyse(opening_values(log, total), controls=control_values(log, total))}
    slugs = sorted(p.stem for p in (run / "drift" / "judgements").glob("*.jsonl"))
    read = {s: answer_values(answers, judgements_of(answers, s), total) for s in slugs}
    for s in slugs:
        found["answers", s] = analyse(read[s], judges={k: r for k, r in read.items() if k != s})
    return found
