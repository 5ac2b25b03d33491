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
