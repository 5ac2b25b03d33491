"""Stances by topic: means, intervals, mixes."""

from __future__ import annotations

import numpy as np
import pytest

from vdengine.audits.audit import MeanInterval
from vdengine.audits.stances import gap_by_topic, mix_by_topic


def test_intervals():
    """Guards the interval: of a mean over rows, its width that of the normal theory; the same for the same seed."""
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    found = MeanInterval.of(values)
    assert found.mean == pytest.approx(values.mean()) and found == MeanInterval.of(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert MeanInterval.of(np.array([])).rows == 0


def test_tables():
    """Guards the tables by hand: means of pairs by topic, and a topic whose every pair is unread is left out."""
    a = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    b = np.array([[0, 0, 1], [0, 1, 0], [np.nan] * 3])
    found = gap_by_topic(["x", "x", "y"], a, b)
    assert set(found) == {"x", "all"} and found["x"]["gap"] == 1 and found["x"]["rows"] == 2
    assert found["x"]["chosen"] == {"support": 0.5, "neutral": 0.5, "oppose": 0, "graded": 0.5}
    mixed = mix_by_topic(["x", "y", "y"], a)
    assert mixed["y"]["graded"]["mean"] == -0.5 and mixed["all"]["graded"]["mean"] == 0 and mixed["x"]["few"]
