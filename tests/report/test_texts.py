"""Texts of a run: cut with a sign, and the first and the last answers to the same questions."""

from __future__ import annotations

from pathlib import Path

from helpers.report_runs import make_run, panel_of

from vdengine.drift.load import load_run
from vdengine.report.texts import MAX_TEXT, sample_answers, short


def test_a_cut_text_says_so() -> None:
    """Guards a page of the size of one answer, and a cut that looks like the model's own end."""
    assert short("a" * MAX_TEXT) == "a" * MAX_TEXT
    assert short("a" * (MAX_TEXT + 1234)).endswith("a [... 1,234 more characters]")


def test_both_ends_are_there_for_the_same_questions(tmp_path: Path) -> None:
    """Guards a comparison of different questions, and one that needs a judge: the answers are unjudged here. With
    many anchors the first and the last are among those that are kept."""
    run = load_run(make_run(tmp_path / "run", panel_of(2), judges=(), anchors=range(0, 41, 4)))
    for limit in (2400, 60, 8):
        found = sample_answers(run, ["topic 0", "topic 1"], limit)
        assert found is not None and len(found["rows"]) <= limit
        assert (found["anchors"][0], found["anchors"][-1]) == (0, 40) and found["temperature"] == 1.0
        asked = [{row[1] for row in found["rows"] if row[0] == step} for step in (0, 40)]
        assert asked[0] and asked[0] == asked[1]
        assert all(row[5] == {} for row in found["rows"])
