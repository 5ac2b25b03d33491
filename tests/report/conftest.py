"""Two runs, and their report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.report_runs import make_run, panel_of, two_runs

from vdengine.report import report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def made(folder: Path) -> Path:
    """The report of both, without figures, which take most of its time."""
    runs = [folder / "first", folder / "other"]
    return report(runs, out=folder / "made", gaps=[folder / "gap.json"], smoothing="none", figures=False).parent


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with few answers at each of many anchors, and too few that begin with a lead."""
    anchors = [0, 1, 2, 4, 6, 9, 12, 16, 20, 26, 33, 40]
    folder = tmp_path_factory.mktemp("runs") / "many"
    return make_run(folder, panel_of(2), strength=0.1, anchors=anchors, weighted=False, samples=4, coverage=0.4)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(folder / "first", tmp_path / "run"))
