"""Channels of the raw log: what may be written, and that one readout leaves another's files alone."""

import json
import re

import numpy as np
import pytest

from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError


@pytest.mark.parametrize(
    ("step", "value", "message"),
    [
        (8, -1.0, "the last sample is of step 8; steps must ascend"),
        (4, -1.0, "the last sample is of step 8; steps must ascend"),
        (-1, -1.0, "steps must ascend"),
        (9.5, -1.0, "a step is a whole number, not a float"),
        (9, 0.5, "item 3 has the value 0.5; it must be finite and at most 0"),
        (9, np.inf, "item 3 has the value inf"),
        (9, -np.inf, "item 3 has the value -inf"),
    ],
)
def test_a_sample_that_cannot_be_is_refused_and_nothing_is_written(log, step, value, message):
    """Guards the curve: a step that goes back, or a log-prob above 0 (a probability, another sign, another base), would
    be a drift figure without an error."""
    log.append(8, np.full(len(log.items("openings")), -3.0))
    before = log.channels["openings"].path.read_bytes()
    values = np.full(len(log.items("openings")), -3.0)
    values[3] = value
    with pytest.raises(InputError, match=re.escape(message)):
        log.append(step, values)
    assert log.channels["openings"].path.read_bytes() == before


def test_rounding_above_zero_and_what_is_not_sampled_are_taken(log):
    """Guards against refusing what fp32 gives for a token of probability 1, and a part of the panel."""
    values = np.full(len(log.items("openings")), np.nan)
    values[0] = 3e-5
    log.append(0, values)
    assert np.isnan(log.samples()[0, 1:]).all()
    with pytest.raises(InputError, match=r"the log-probs have shape \(3,\); there are"):
        log.append(1, [-1.0, -2.0, -3.0])


def test_another_readout_adds_a_channel_and_changes_none(tmp_path, log):
    """Guards old readers: with a channel that they do not know, they read the one that they do."""
    log.append(0, np.full(len(log.items("openings")), -3.0))
    before = {name: (log.folder / name).read_bytes() for name in ("openings.jsonl", "openings.bin", "panel.jsonl")}
    lead = log.channel("lead", items=[{"probe": "a", "side": "yes"}, {"probe": "a", "side": "no"}], unit="probability",
                       high=1.0)  # fmt: skip
    lead.append(0, [0.25, 0.5])
    lead.append(1, [0.5, 0.25])
    opened = DriftLog.open(tmp_path)
    assert {name: (log.folder / name).read_bytes() for name in before} == before
    assert opened.steps.tolist() == [0] and opened.channels["lead"].values.tolist() == [[0.25, 0.5], [0.5, 0.25]]
    opened.rewind(1)
    assert DriftLog.open(tmp_path).channels["lead"].steps.tolist() == [0]
    assert opened.channel("lead", items=lead.items, unit="probability", high=1.0).steps.tolist() == [0]
    with pytest.raises(InputError, match="has a channel 'lead' of other items"):
        log.channel("lead", items=[{"probe": "b"}], unit="probability", high=1.0)
    with pytest.raises(InputError, match="must be a plain word"):
        log.channel("../lead", items=[], unit="")
    with pytest.raises(InputError, match="item 0 has the value 1.5; it must be finite and at most 1"):
        lead.append(2, [1.5, 0.0])


def test_a_damaged_channel_is_named(tmp_path, log):
    """Guards against numbers that belong to other items."""
    with open(log.folder / "openings.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"openings.jsonl: has \d+ items; the manifest says"):
        DriftLog.open(tmp_path)
    (log.folder / "openings.jsonl").unlink()
    with pytest.raises(InputError, match="openings.jsonl: no such file"):
        DriftLog.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("../../x", {}), ("panel", {}), ("a b", {}), ("", {}), ("x" * 1000, {}), ("lead", []), ("lead", None),
     ("lead", {"items": -1}), ("lead", {"items": 10**400}), ("lead", {"items": 0, "high": "1"}), ("lead", {"unit": 7}),
     ("lead", {"items": 0, "high": 1e300}), ("lead", {"items": 0, "high": True}), ("lead", {"items": "0"})],
)  # fmt: skip
def test_channels_that_a_manifest_cannot_name(tmp_path, log, name, entry):
    """Guards against files outside the folder, and numbers of another kind."""
    path = log.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["channels"][name] = entry
    path.write_text(json.dumps(manifest))
    (log.folder / "lead.jsonl").write_text("")
    with pytest.raises(InputError) as error:
        DriftLog.open(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "records",
    [[(-1, -1)], [(4, -1), (4, -1)], [(4, -1), (2, -1)], [(2**62, -1)], [(0, 0.5)], [(0, np.inf)], [(0, -np.inf)]],
)
def test_samples_that_cannot_be(log, records):
    """Guards curves against a file that was overwritten: steps that do not ascend, values that no log-prob has."""
    channel = log.channels["openings"]
    array = np.zeros(len(records), channel._record)
    for i, (step, value) in enumerate(records):
        array[i] = step, value
    channel.path.write_bytes(array.tobytes())
    with pytest.raises(InputError, match=r"openings\.bin: damaged: "):
        _ = channel.values
