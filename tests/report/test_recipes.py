"""Which keys of runs' recipes differ."""

from __future__ import annotations

from pathlib import Path

from vdengine.drift.run import Run
from vdengine.report.recipes import compare
from vdengine.report.texts import MAX_NAME


def run_of(name: str, recipe: dict) -> Run:
    return Run(name, Path(name), recipe, None, None, 10)


def test_only_what_differs_is_listed() -> None:
    """Guards a comparison that leaves out a key which one run lacks, or a small number, and lists what is alike."""
    a = run_of("a", {"run": {"folder": "a", "seed": 0}, "optimizer": {"lr": 3e-5, "betas": [0.9, 0.95]}})
    b = run_of("b", {"run": {"folder": "b", "seed": 0}, "optimizer": {"lr": 3.0001e-5, "betas": [0.9, 0.95]}})
    c = run_of("c", {"run": {"folder": "c", "seed": 0}, "optimizer": {"lr": 3e-5}, "objective": {"x": {"y": 1}}})
    found = compare([a, b, c, run_of("d", {})])
    assert found.differing == {
        "optimizer.lr": ["3e-05", "3.0001e-05", "3e-05", None],
        "optimizer.betas": ["[0.9, 0.95]", "[0.9, 0.95]", None, None],
        "objective.x.y": [None, None, "1", None],
    }
    assert found.alike == {"run.seed": "0"} and found.without == ["d"]


def test_values_of_unknown_origin_are_bounded() -> None:
    """Guards a recipe with a value of megabytes, or tables within tables without end."""
    deep: dict = {}
    for _ in range(200):
        deep = {"k": deep}
    found = compare([run_of("a", {"s": {"v": "x" * 10**6, "t": deep}}), run_of("b", {"s": {"v": "y" * 10**6}})])
    assert all(len(value or "") < MAX_NAME + 50 for row in found.differing.values() for value in row)
    assert "more characters" in str(found.differing["s.v"][0])
