"""The log of sampled answers."""

import json

import numpy as np
import pytest

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.errors import InputError
from vdengine.panels.panel import Panel

PANEL = Panel("two", Panel.load("values-mini").probes[:2])


def fresh(tmp_path, samples=2, **more):
    return AnswerLog.create(tmp_path, PANEL, "tokenizer", samples=samples, max_tokens=8, **more)


def answers(anchor, texts, stopped=True):
    return [
        Answer(anchor, p.id, k, [k + 1], stopped, t) for p in PANEL.probes for k, t in enumerate(texts)
    ]  # fmt: skip


def test_what_goes_in_comes_out(tmp_path):
    """Guards the file format: text of any kind, banks that leave out the larger first pool, readings in order."""
    log = fresh(tmp_path)
    texts = ['I <b>think</b>\u2028so\n"yes"', "\U0001f600 no", "=cmd|' /C calc'!A0"]
    log.append(answers(0, texts))
    log.append_reading(0, 0, np.arange(4, dtype=np.float32))
    log.append_reading(3, 0, np.full(4, -1, dtype=np.float32))
    again = AnswerLog.open(tmp_path)
    assert again.answers == log.answers and again.anchors == [0] and again.panel == PANEL
    assert [a.text for a in again.bank(0)] == 2 * texts[:2]
    assert again.readings()["step"].tolist() == [0, 3] and again.readings()["logp"][1].tolist() == [-1] * 4
    assert fresh(tmp_path).answers == log.answers  # a run that goes on


def test_rewind(tmp_path):
    """Guards resuming: what the run will do again is dropped, what came before stays."""
    log = fresh(tmp_path)
    for k in (0, 4):
        log.append(answers(k, ["a", "b"]))
        log.append_reading(k, k, np.zeros(4, np.float32))
    log.append_reading(3, 0, np.zeros(4, np.float32))
    log.rewind(4)
    for found in (log, AnswerLog.open(tmp_path)):
        assert found.anchors == [0] and found.readings()["step"].tolist() == [0, 3]


def test_cut_short(tmp_path):
    """Guards against a crash in the middle of a write: what is whole is used."""
    log = fresh(tmp_path)
    log.append(answers(0, ["a", "b"]))
    log.append_reading(0, 0, np.zeros(4, np.float32))
    for name, tail in (("answers.jsonl", b'{"anchor": 4, "pro'), ("weights.bin", b"\x01\x02\x03")):
        with open(log.folder / name, "ab") as file:
            file.write(tail)
    again = AnswerLog.open(tmp_path)
    assert len(again.answers) == 4 and len(again.readings()) == 1
    again.rewind(2)
    assert len(AnswerLog.open(tmp_path).answers) == 4


def test_other_answers_are_refused(tmp_path):
    """Guards against a log of two kinds: one line that says what differs."""
    fresh(tmp_path)
    with pytest.raises(InputError, match=r"holds answers of another kind \(samples differ\)"):
        fresh(tmp_path, samples=3)
    with pytest.raises(InputError, match="no answers here"):
        AnswerLog.open(tmp_path / "none")
    manifest = tmp_path / "drift" / "answers" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    with pytest.raises(InputError, match="schema is 99"):
        AnswerLog.open(tmp_path)


def test_support(tmp_path):
    """Guards the watch on what weights cannot see: a way of answering that the old bank has not is named, and what
    chance alone gives is taken off."""
    log = fresh(tmp_path, samples=4)
    log.append(answers(0, ["I think so", "I think not", "It depends on", "It depends"]))
    log.append(answers(5, ["I think so", "No, never", "I think", "No, never"]))
    log.append(answers(9, ["I think so", "No, never", "I think", "No, never"]))
    first, second = log.support()
    assert (first.anchor, first.against) == (5, 0)
    assert first.novel.tolist() == [0.5, 0.5] and first.expected.tolist() == [0, 0]
    assert second.excess.tolist() == [0, 0]
    log.append(answers(12, ["I think so", "No, never", "I think", "No, never"], stopped=False))
    assert log.support()[-1].novel.tolist() == [1, 1]


GOOD = {"anchor": 0, "probe": PANEL.probes[0].id, "sample": 0, "ids": [1], "stopped": True, "text": "a"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor": -1}, "not an answer"),
        ({"anchor": 10**400}, "not an answer"),
        ({"anchor": True}, "not an answer"),
        ({"probe": "none"}, "not an answer"),
        ({"probe": []}, "not an answer"),
        ({"sample": 10**9}, "not an answer"),
        ({"sample": 1}, "sample 1 of .* is not the next one"),
        ({"ids": [-1]}, "not an answer"),
        ({"ids": "1"}, "not an answer"),
        ({"stopped": 1}, "not an answer"),
        ({"text": None}, "not an answer"),
        ({"text": "\ud800"}, "not an answer"),
        ({"more": 1}, "an answer has anchor, probe, sample"),
    ],
)
def test_answers_that_are_none(tmp_path, change, message):
    """Guards estimates and memory against a stranger's log: types and ranges of every field, and samples that count
    from 0 (an array has a cell for each)."""
    log = fresh(tmp_path)
    log.answers_path.write_text(json.dumps(GOOD | change) + "\n")
    with pytest.raises(InputError, match=rf"answers\.jsonl, line 1: damaged: {message}") as error:
        AnswerLog.open(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[]", "null", "7", "", "{", "[" * 10**5, '{"schema": [1]}', '{"schema": 1}', '{"a": "\udcff"}']
)
def test_manifests_that_are_none(tmp_path, text):
    """Guards the reader of a manifest: other kinds of JSON, broken JSON, missing keys."""
    log = fresh(tmp_path)
    (log.folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        AnswerLog.open(tmp_path)
    assert "\n" not in str(error.value) and str(log.folder) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"samples": n} for n in (-1, 0, 10**9, True, "2", None, 10**400)]
    + [{"probes": p} for p in (None, [], ["x"], [p.id for p in PANEL.probes][::-1])]
    + [{"panel": 7}, {"panel": "\ud800"}, {"panel_hash": None}],
)
def test_fields_of_a_manifest(tmp_path, change):
    """Guards sizes of records and arrays: samples and probes are those of the panel beside the manifest."""
    path = fresh(tmp_path).folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="panel"):
        AnswerLog.open(tmp_path)


def test_few_answers_do_not_ask_for_much_memory(tmp_path):
    """Guards memory: 2,000 lines at as many anchors, in banks of 4,096, would be arrays of a gigabyte."""
    log = fresh(tmp_path, samples=4096)
    log.answers_path.write_text("".join(json.dumps(GOOD | {"anchor": k}) + "\n" for k in range(2100)))
    with pytest.raises(InputError, match="too few answers for so many anchors"):
        AnswerLog.open(tmp_path)


def test_a_line_cut_inside_a_character(tmp_path):
    """Guards a run after a crash: the rest of a cut line is no reason to refuse the whole ones, and is gone after the
    run goes on."""
    log = fresh(tmp_path)
    log.append(answers(0, ["\u2028\u00e9", "b"]))
    with open(log.answers_path, "ab") as file:
        file.write(json.dumps(GOOD | {"anchor": 4, "text": "\u00e9"}, ensure_ascii=False).encode()[:-3])
    again = AnswerLog.open(tmp_path)
    assert again.answers == log.answers
    again.rewind(4)
    again.append(answers(4, ["c", "d"]))
    assert [a.text for a in AnswerLog.open(tmp_path).at(4)] == ["c", "d"] * 2


def test_readings_that_cannot_be(tmp_path):
    """Guards the steps of readings: no step before its anchor, none below 0."""
    log = fresh(tmp_path)
    for step, anchor in ((-1, -1), (3, 4), (2**62, 0)):
        log.weights_path.write_bytes(b"")
        log.append_reading(step, anchor, np.zeros(4, np.float32))
        with pytest.raises(InputError, match=r"weights\.bin: damaged: a reading has no such step"):
            log.readings()
