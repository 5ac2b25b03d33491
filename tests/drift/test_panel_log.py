"""The raw log of a panel: what survives a crash, and what is refused."""

import json

import numpy as np
import pytest
from helpers.values import requests_of

from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


@pytest.fixture
def log(tmp_path, panel) -> DriftLog:
    """An empty log of both channels."""
    return DriftLog.create(tmp_path, panel, requests_of(panel, leads=True), "tokenizer")


@pytest.mark.parametrize("cut", ["openings", "leads"])
def test_log_round_trip_rewind_and_truncation(tmp_path, log, panel, cut):
    """Guards the raw files: whole records survive in the order of the requests, a half-written one is ignored, a sample
    that a crash left in one channel alone is none, and rewinding drops later samples of both."""
    requests = requests_of(panel, leads=True)
    rng = np.random.default_rng(0)
    rows = -rng.exponential(size=(3, len(requests))).astype(np.float32)
    for step, row in zip((0, 4, 8), rows, strict=True):
        log.append(step, row)
    path = log.folder / f"{cut}.bin"
    whole = path.read_bytes()
    path.write_bytes(whole + b"half a record")
    opened = DriftLog.create(tmp_path, panel, requests, "tokenizer")
    assert opened.steps.tolist() == [0, 4, 8] and np.array_equal(opened.samples(), rows)
    path.write_bytes(whole[:-3])
    assert opened.steps.tolist() == [0, 4] and len(opened.samples()) == 2
    opened.rewind(9)
    assert {len(channel.steps) for channel in opened.channels.values()} == {2}
    opened.append(8, rows[0])
    again = DriftLog.create(tmp_path, panel, requests, "tokenizer")
    assert again.steps.tolist() == [0, 4, 8] and np.array_equal(again.samples()[-1], rows[0])
    again.rewind(4)
    assert again.steps.tolist() == [0]


def test_half_a_sample_gives_way(tmp_path, log, panel):
    """Guards a log that goes on without a rewind: what a crash left in one channel alone is dropped by the next sample,
    whatever its step."""
    row = np.full(720, -1.0, np.float32)
    log.append(0, row)
    log.channels["openings"].append(10, row[:576])
    again = DriftLog.create(tmp_path, panel, requests_of(panel, leads=True), "tokenizer")
    again.append(5, row)
    again.append(10, row)
    assert DriftLog.open(tmp_path).steps.tolist() == [0, 5, 10]


def test_a_probe_with_one_side_is_damaged(tmp_path, log):
    """Guards the difference of two sides against a log in which one of them is missing."""
    for name, of in (("leads", "oppose"), ("openings", "oppose")):
        path = log.folder / f"{name}.jsonl"
        text = path.read_text()
        items = [json.loads(line) | {"stance": "support"} for line in text.splitlines()]
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        with pytest.raises(InputError, match=rf"{name}\.jsonl: damaged: .* \(question\) lacks .*{of}"):
            DriftLog.open(tmp_path)
        path.write_text(text)


def test_a_sample_that_is_refused_is_in_no_channel(log):
    """Guards the two files against growing apart: what one of them refuses, neither takes."""
    row = np.full(720, -1.0, np.float32)
    row[-1] = 1.0
    with pytest.raises(InputError, match=r"leads\.bin, step 0: item 143 has the value 1; .* at most 0"):
        log.append(0, row)
    with pytest.raises(InputError, match=r"the log-probs have shape \(5,\); there are 720 requests"):
        log.append(0, row[:5])
    assert not any(len(channel.steps) for channel in log.channels.values())


def test_channels_with_other_steps_are_damaged(tmp_path, log):
    """Guards a reader against pairing samples of different steps."""
    log.append(0, np.full(720, -1.0))
    log.channels["leads"].append(4, np.full(144, -1.0))
    log.channels["openings"].append(5, np.full(576, -1.0))
    with pytest.raises(InputError, match="openings and leads have samples of other steps"):
        DriftLog.open(tmp_path).steps  # noqa: B018


def test_log_of_another_panel_is_refused(tmp_path, log, panel):
    """Guards a run folder against mixing panels or readouts; and an empty folder says what is missing."""
    other = Panel("other", panel.probes[:24])
    with pytest.raises(InputError, match="another panel or tokenizer"):
        DriftLog.create(tmp_path, other, requests_of(other, leads=True), "tokenizer")
    with pytest.raises(InputError, match="or with other controls or readouts"):
        DriftLog.create(tmp_path, panel, requests_of(panel), "tokenizer")
    with pytest.raises(InputError, match="no drift data here"):
        DriftLog.open(tmp_path / "none")


def test_the_manifest_lists_the_spellings(log):
    """Guards the list that a reader checks leads against."""
    support = [{"text": "Yes", "ids": [3]}, {"text": " yes", "ids": [4]}]
    assert log.manifest["leads"] == [{"support": support, "oppose": [{"text": "No", "ids": [5]}]}]


def test_a_log_for_scores_from_elsewhere(tmp_path, panel):
    """Guards the way in for a server's scores: in the order of the requests, with what is known of the run."""
    about = {"run": {"steps": 9}, "model": {"source": "org/name"}}
    requests = requests_of(panel)
    log = DriftLog.create(tmp_path / "run", panel, requests, about=about)
    assert json.loads((tmp_path / "run" / "trainer.json").read_text()) == {
        "model": about["model"],
        "run": about["run"],
    }
    log.append(0, [-1.0] * len(requests))
    log.append(5, np.full(len(requests), -2.0))
    opened = DriftLog.open(tmp_path / "run")
    assert opened.steps.tolist() == [0, 5] and opened.items("leads") == []
    assert [row["text"] for row in opened.items("openings")] == [request.text for request in requests]


@pytest.mark.parametrize("field", ["schema", "channels"])
def test_a_log_of_another_version_says_so(tmp_path, log, field):
    """Guards against reading numbers under the wrong names."""
    manifest = json.loads((log.folder / "manifest.json").read_text())
    manifest[field] = 3 if field == "schema" else {}
    (log.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="schema is 3; this version reads 4|neither a channel 'openings' nor"):
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


@pytest.mark.parametrize(
    "change",
    [{"ids": [-1]}, {"ids": ["3"]}, {"ids": []}, {"ids": 3}, {"ids": None}, {"stance": "neutral"}, {"text": 1}],
)
def test_leads_that_are_none(tmp_path, log, change):
    """The same of the channel of leads."""
    path = log.folder / "leads.jsonl"
    lines = path.read_text().split("\n")
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"leads\.jsonl, line 3: damaged: not a lead"):
        DriftLog.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "", "{", "[" * 10**5, '{"schema": 3}', '{"schema": {}}', "\udcff"])
def test_manifests_that_are_none(tmp_path, log, text):
    """Guards the reader of a manifest: other kinds of JSON, broken JSON, missing keys."""
    (log.folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        DriftLog.open(tmp_path)
    assert "\n" not in str(error.value) and str(log.folder) in str(error.value)
