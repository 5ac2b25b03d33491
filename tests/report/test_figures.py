"""The report's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vdengine.drift import load_run
from vdengine.drift.probe_values import LEAST_COVERAGE
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


def shown(*folders: Path, readout: str) -> list:
    """Runs as figures take them."""
    runs = [load_run(folder) for folder in folders]
    return [(number, run, run.views[readout]) for number, run in enumerate(runs)]


def test_leads_have_their_coverage_below(folder: Path, many: Path) -> None:
    """Guards a lead in print that looks as sure as any where few answers begin with one: coverage at every sample of
    each run, the cut-off, and by name what is said of nothing; other readouts have no strip."""
    from vdengine.report.figures import shifts

    pairs = shown(folder / "first", many, readout="lead")
    figure = shifts(pairs, ["topic 0"])
    assert len(figure.axes) == 4  # all topics and topic 0, a panel and a strip each
    for topic, (panel, strip) in zip(
        ("all", "topic 0"), zip(figure.axes[:2], figure.axes[2:], strict=True), strict=True
    ):
        cut_off, *lines = strip.lines
        assert set(cut_off.get_ydata()) == {LEAST_COVERAGE} and len(lines) == len(panel.lines) - 1 == 2
        for line, (_, _, view) in zip(lines, pairs, strict=True):
            level = view.analysis.levels[topic, "coverage"]
            assert np.array_equal(line.get_xdata(), level.steps) and np.array_equal(line.get_ydata(), level.mean)
        assert [text.get_text() for text in panel.texts] == ["says nothing: coverage 40% (many)"]
    alone = shifts(pairs[:1], ["topic 0"])
    assert {text.get_text() for ax in alone.axes[:2] for text in ax.texts} == {""}
    assert len(shifts(shown(folder / "first", readout="text_likelihood"), ["topic 0"]).axes) == 2


def test_answers_in_print_are_the_curve_and_its_anchors(many: Path) -> None:
    """Guards print that joins anchors by lines where the page has a curve, or shows smoothed values as an anchor's own;
    and a legend that does not say which is which."""
    from vdengine.report.figures import mix, shifts

    pairs = shown(many, readout="answers:rule:argument")
    analysis = pairs[0][2].analysis
    figure = shifts(pairs, ["topic 0"])
    _, curve, points = figure.axes[1].lines
    found = analysis.curves["topic 0", "graded"]
    assert found.points is not None and len(found.steps) == 41
    assert np.array_equal(curve.get_xdata(), found.steps) and np.array_equal(curve.get_ydata(), found.mean)
    assert np.array_equal(points.get_xdata(), found.points.steps)
    assert np.array_equal(points.get_ydata(), found.points.mean)
    said = ["fresh answers of one step", "the curve: a local linear fit over these steps"]
    assert [text.get_text() for text in figure.legends[0].texts] == said
    shares = mix(*pairs[0][1:], ["topic 0"])
    support, own, *_ = shares.axes[1].lines
    level = analysis.levels["topic 0", "support"]
    assert level.points is not None and np.array_equal(support.get_ydata(), level.mean)
    assert np.array_equal(own.get_ydata(), level.points.mean)
    assert [text.get_text() for text in shares.legends[0].texts] == ["support", "neutral", "oppose", *said]
