"""The raw log of openings: what survives a crash, and what is refused."""

import numpy as np
import pytest

from vdengine.drift.opening_log import DriftLog
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


def test_log_round_trip_rewind_and_truncation(tmp_path, log, panel):
    """Guards the raw file: whole records survive, a half-written one is ignored, rewinding drops later samples."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, len(log.table))).astype(np.float32)
    for step, row in zip((0, 4, 8), rows, strict=True):
        log.append(step, row)
    with open(log.folder / "scores.bin", "ab") as f:
        f.write(b"half a record")
    opened = DriftLog.open(tmp_path)
    assert opened.steps.tolist() == [0, 4, 8] and np.array_equal(opened.logp, rows)
    opened.rewind(8)
    opened.append(8, rows[0])
    assert DriftLog.open(tmp_path).steps.tolist() == [0, 4, 8]
    assert np.array_equal(DriftLog.open(tmp_path).logp[-1], rows[0])


def test_log_of_another_panel_is_refused(tmp_path, log, panel):
    """Guards a run folder against mixing panels; and an empty folder says what is missing."""
    other = Panel("other", panel.probes[:24])
    with pytest.raises(InputError, match="another panel or tokenizer"):
        DriftLog.create(tmp_path, other, other.branches(), [7] * len(other.branches()), "tokenizer")
    with pytest.raises(InputError, match="no drift data here"):
        DriftLog.open(tmp_path / "none")
