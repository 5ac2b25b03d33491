"""Asking a judge: once for each answer, within a budget, and going on where it stopped."""

import math

import numpy as np
import pytest
from helpers.judging import Scripted, answered

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.judgements import judgements_of, judges
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.judging import judge_answers


def test_verdicts_are_kept_and_asked_once(tmp_path):
    """Guards the file: verdicts in the answers' order, one question for equal answers, none asked twice."""
    log = answered(tmp_path, ["yes", "no", "yes", "\u2028<b>\U0001f600"])
    sure = {"yes": (1.0, 0.0, 0.0), "no": (0.0, 0.0, 1.0)}
    judge = Scripted(lambda item: sure.get(item.answer, (math.nan,) * 3))
    done = judge_answers(log, judge)
    assert (done.new, done.before, done.silent, done.left) == (24, 0, 6, 0)
    assert len(judge.asked) == 9  # 3 probes x 3 different answers, at both anchors
    found = judgements_of(AnswerLog.open(tmp_path), "scripted")
    want = [sure.get(a.text, (math.nan,) * 3) for a in log.answers]
    assert np.array_equal(found, np.array(want), equal_nan=True) and judges(tmp_path) == ["scripted"]
    assert judge_answers(log, judge).new == 0 and len(judge.asked) == 9


def test_a_judge_that_stops_goes_on(tmp_path):
    """Guards resuming: what was said before the quota ended is kept, a cut line is asked again, nothing else is."""
    log = answered(tmp_path, ["a", "b"], anchors=(0,))
    first = Scripted(stop_after=4)
    with pytest.raises(InputError, match="quota"):
        judge_answers(log, first)
    path = tmp_path / "drift" / "judgements" / "scripted.jsonl"
    assert np.isfinite(judgements_of(log, "scripted")).all(1).sum() == 4
    path.write_bytes(path.read_bytes()[:-5])  # a crash in the middle of a line
    again = Scripted()
    assert judge_answers(log, again).before == 3 and len(again.asked) == 3
    assert np.isfinite(judgements_of(log, "scripted")).all()
    assert len(path.read_text().splitlines()) == 1 + 6


def test_most_calls(tmp_path):
    """Guards a budget: so many questions and no more, first samples of all probes before second ones."""
    log = answered(tmp_path, ["a", "b", "c"], anchors=(0,))
    judge = Scripted()
    done = judge_answers(log, judge, max_calls=4)
    assert len(judge.asked) == 4 and done.left == 5
    assert sorted(i.answer for i in judge.asked) == ["a", "a", "a", "b"]


def test_other_versions_do_not_mix(tmp_path):
    """Guards a file against verdicts of two judges under one name; `again` starts over."""
    log = answered(tmp_path, ["a"], anchors=(0,))
    judge_answers(log, Scripted())
    other = Scripted(lambda item: (0.0, 1.0, 0.0), version=2)
    with pytest.raises(InputError, match=r"another scripted \(version differ\).*--again"):
        judge_answers(log, other)
    assert judge_answers(log, other, again=True).new == 3
    assert np.array_equal(judgements_of(log, "scripted"), np.array([[0, 1, 0]] * 3))


@pytest.mark.parametrize("name", ["", "rules", "model:", "server:", "nli:x"])
def test_unknown_judges(name):
    """Guards a clear line with what is allowed."""
    with pytest.raises(InputError, match="unknown judge .*there are rule, model:SOURCE and server:MODEL"):
        open_judge(name)


def test_a_second_judge_at_once_gets_one_line(tmp_path):
    """Guards verdicts against two commands on one run; the lock is gone after the first, however it ended."""
    log = answered(tmp_path, ["a"], anchors=(0,))

    class Judging(Scripted):
        def judge(self, items):
            with pytest.raises(InputError, match="scripted is judging these answers already") as error:
                judge_answers(log, Scripted())
            assert "\n" not in str(error.value)
            judge_answers(log, Scripted(name="another"))
            yield from super().judge(items)

    with pytest.raises(InputError, match="quota"):
        judge_answers(log, Judging(stop_after=1))
    assert judge_answers(log, Scripted()).before == 1 and judges(tmp_path) == ["another", "scripted"]
    with pytest.raises(InputError, match="--max-calls -1: it must be at least 1"):
        judge_answers(log, Scripted(), max_calls=-1)


@pytest.mark.parametrize("name", ["", "rule:x", "model:", "server:", ":", "judge\nx", "x" * 10**5])
def test_judges_that_are_not_known(name):
    """Guards the names of judges."""
    with pytest.raises(InputError, match="unknown judge .*; there are rule") as error:
        open_judge(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
