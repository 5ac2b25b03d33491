"""Two runs, and their report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.report_runs import two_runs

from vdengine.report import report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def made(folder: Path) -> Path:
    """The report of both, without figures, which take most of its time."""
    runs = [folder / "first", folder / "other"]
    return report(runs, out=folder / "made", gaps=[folder / "gap.json"], smoothing="none", figures=False).parent


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(folder / "first", tmp_path / "run"))
