"""The raw log of openings: what survives a crash, and what is refused."""

import json

import numpy as np
import pytest

from vdengine.drift.opening_log import DriftLog
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


def test_log_round_trip_rewind_and_truncation(tmp_path, log, panel):
    """Guards the raw file: whole records survive, a half-written one is ignored, rewinding drops later samples."""
    rng = np.random.default_rng(0)
    rows = -rng.exponential(size=(3, len(log.table))).astype(np.float32)
    for step, row in zip((0, 4, 8), rows, strict=True):
        log.append(step, row)
    with open(log.folder / "openings.bin", "ab") as f:
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


def test_a_log_for_scores_from_elsewhere_needs_a_folder_and_a_panel(tmp_path, panel):
    """Guards the way in for a server's scores: in the order of the requests, with what is not known left open."""
    about = {"run": {"steps": 9}, "model": {"source": "org/name"}}
    log = DriftLog.create(tmp_path / "run", panel, about=about)
    assert json.loads((tmp_path / "run" / "trainer.json").read_text()) == {
        "model": about["model"],
        "run": about["run"],
    }
    log.append(0, [-1.0] * len(log.table))
    log.append(5, np.full(len(log.table), -2.0))
    opened = DriftLog.open(tmp_path / "run")
    assert opened.steps.tolist() == [0, 5] and opened.table[0]["num_tokens"] is None
    assert [row["text"] for row in opened.table] == [branch.text for branch in panel.branches()]


@pytest.mark.parametrize("field", ["schema", "channels"])
def test_a_log_of_another_version_says_so(tmp_path, log, field):
    """Guards against reading numbers under the wrong names."""
    manifest = json.loads((log.folder / "manifest.json").read_text())
    manifest[field] = 2 if field == "schema" else {}
    (log.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="schema is 2; this version reads 3|has no channel 'openings'"):
        DriftLog.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"probe": 7},
        {"topic": None},
        {"axis": []},
        {"polarity": 0},
        {"polarity": True},
        {"polarity": "1"},
        {"polarity": 1.0},
        {"variant": "x"},
        {"variant": []},
        {"stance": "yes"},
        {"stance": {}},
        {"kind": 1},
        {"num_tokens": -1},
        {"num_tokens": "3"},
        {"num_bytes": 0},
        {"num_bytes": None},
        {"num_bytes": 10**400},
        {"text": "\ud800"},
        {"topic": "another"},
    ],
)
def test_openings_that_are_none(tmp_path, log, change):
    """Guards estimates against a stranger's log: types and ranges of every field, and one topic for a probe."""
    path = log.folder / "openings.jsonl"
    lines = path.read_text().split("\n")
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"openings\.jsonl, line 2: damaged: not an opening"):
        DriftLog.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "", "{", "[" * 10**5, '{"schema": 3}', '{"schema": {}}', "\udcff"])
def test_manifests_that_are_none(tmp_path, log, text):
    """Guards the reader of a manifest: other kinds of JSON, broken JSON, missing keys."""
    (log.folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        DriftLog.open(tmp_path)
    assert "\n" not in str(error.value) and str(log.folder) in str(error.value)
