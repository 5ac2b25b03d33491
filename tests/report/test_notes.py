"""What is said of runs beside their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.report_runs import make_run, panel_of

from vdengine.drift.load import load_run
from vdengine.errors import InputError
from vdengine.report.notes import note_leads


def test_leads_of_other_tokens_are_noted_and_other_leads_refused(tmp_path: Path) -> None:
    """Guards probabilities of different things in one plot: of other words, or of more ways to spell the same. A run
    without leads compares with any."""
    sides = {"a": (("Yes", " yes"), ("No", " no")), "b": (("Yes", " YES."), ("No", " no")), "c": (("Agree",), ("No",))}
    panel = panel_of(1, 2)
    runs = {name: load_run(make_run(tmp_path / name, panel, answers=False, spelled=s)) for name, s in sides.items()}
    none = load_run(make_run(tmp_path / "d", panel, answers=False, leads=False))
    note_leads([none, runs["a"], none, runs["a"]])
    assert not any("leads" in note for run in (none, runs["a"]) for note in run.notes)
    note_leads([runs["a"], runs["b"]])
    assert not any("leads" in note for note in runs["a"].notes)
    assert "other tokens than in a: only b has ' YES.' and only a has ' yes'" in runs["b"].notes[-1]
    with pytest.raises(InputError, match=r"^[^\n]*/a and [^\n]*/c: leads differ: .* by yes against no in the first and "
                       r"by agree against no"):  # fmt: skip
        note_leads([runs["a"], runs["c"]])
