"""The built-in panels."""

import pytest

from vdengine.panels.panel import Panel

SHAPES = {"values-mini": (4, 12, 1), "values": (11, 50, 2)}  # topics, probes of each, claims a stance


@pytest.fixture(scope="module", params=SHAPES)
def built_in(request) -> Panel:
    return Panel.load(request.param)
