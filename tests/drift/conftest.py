"""A small panel, and an empty log of its openings."""

import pytest
from helpers.values import requests_of

from vdengine.drift.panel_log import DriftLog
from vdengine.panels.panel import Panel


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel.load("values-mini")


@pytest.fixture
def log(tmp_path, panel) -> DriftLog:
    return DriftLog.create(tmp_path, panel, requests_of(panel), "tokenizer")
