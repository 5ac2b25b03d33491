"""What a page of the report shows, and what it should."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vdengine.drift.analysis import Analysis, analyse
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.judgements import BOTH, PARTS, judgements_of
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import control_values, lead_values, text_values


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def analyses(run: Path) -> dict[tuple[str, str | None, str | None], Analysis]:
    """What the report should show of a run, by (readout, judge, part)."""
    log, answers = DriftLog.open(run), AnswerLog.open(run)
    total = 40
    found = {
        ("lead", None, None): analyse(lead_values(log, total), controls=control_values(log, "lead", total)),
        ("text_likelihood", None, None): analyse(
            text_values(log, total), controls=control_values(log, "text_likelihood", total)
        ),
    }
    slugs = sorted(p.stem for p in (run / "drift" / "judgements").glob("*.jsonl"))
    for part in PARTS:
        read = {s: answer_values(answers, judgements_of(answers, s, part), total) for s in slugs}
        for s in slugs:
            found["answers", s, part] = analyse(read[s], judges={k: r for k, r in read.items() if k != s})
    return found


def key_of(readout: str, judge: str | None, part: str | None) -> str:
    """The key of a run's view."""
    return ":".join([readout, *([judge] if judge else []), *([part] if part not in (None, BOTH) else [])])
