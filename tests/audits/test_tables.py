"""An audit's result as text."""

from __future__ import annotations

from vdengine.audits.tables import gap_table


def test_the_warning_stands_above_the_table() -> None:
    """Guards against a warning that is read after the numbers that it is about."""
    known = {"accuracy": 0.4, "known_gap": 0.1, "known_sign": 0.5}
    gap = {"rows": 3, "gap": 0.1, "low": -0.1, "high": 0.3, "few": True}
    mix = dict.fromkeys(("support", "neutral", "oppose"), 0.3)
    estimate = gap | {"chosen": mix, "rejected": mix}
    result = {
        "source": "a.jsonl",
        "panel": "values",
        "method": "words",
        "model": None,
        "rows": {"usable": 3, "on_topic": {"trams": 3}, "read": 3, "dropped": {"empty response": 1}},
        "quality": {"trams": known, "parks": known | {"known_sign": 0.9}},
        "axes": {"trams": "more trams"},
        "topics": {"trams": estimate},
        "all": estimate,
    }
    lines = gap_table(result).splitlines()
    warning, table = (next(i for i, line in enumerate(lines) if line.startswith(s)) for s in ("warning: ", "topic"))
    assert warning < table and lines[warning].endswith("signs of known pairs often wrong: trams")
