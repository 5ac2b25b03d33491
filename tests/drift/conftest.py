"""A small panel, and an empty log of its openings."""

import pytest

from vdengine.drift.opening_log import DriftLog
from vdengine.panels.panel import Panel


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel.load("values-mini")


@pytest.fixture
def log(tmp_path, panel) -> DriftLog:
    return DriftLog.create(tmp_path, panel, panel.branches(), [7] * len(panel.branches()), "tokenizer")
