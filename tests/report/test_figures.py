"""The report's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdengine.report import report

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_figures_come_in_three_formats_with_their_fonts(folder: Path, tmp_path: Path) -> None:
    """Guards against a missing figure, and PDFs with fonts that a journal turns down."""
    made = report([folder / "first", folder / "other"], out=tmp_path / "made", gaps=[folder / "gap.json"]).parent
    names = {p.stem for p in (made / "figures").glob("*.png")}
    assert {"shift-lead", "shift-text-likelihood", "shift-argument-rule", "mix-argument-rule-1", "mix-answers-rule-1",
            "magnitude-lead", "drift-time-lead", "gap-lead", "cost", "training"} <= names  # fmt: skip
    for name in names:
        assert (made / "figures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        pdf = (made / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"/FontFile2" in pdf
