"""Asking a judge: once for each answer, within a budget, and going on where it stopped."""

import math

import numpy as np
import pytest
from helpers.judging import MINI, PANEL, Scripted, answered

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.judgements import PARTS, Subset, Verdict, judgements_of, judges, open_judgements
from vdengine.drift.prediction_powered import correctable, drawn
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.judging import judge_answers, to_judge
from vdengine.panels.panel import Panel

BARE = ("Yes.", "No.")
BARES = 2 * len(PANEL.probes)  # questions on bare leads, of a panel with up to four probes of each polarity


def test_verdicts_are_kept_and_asked_once(tmp_path):
    """Guards the file: verdicts in the answers' order, one question for equal answers, none asked twice."""
    log = answered(tmp_path, ["yes", "no", "yes", "\u2028<b>\U0001f600"])
    sure = {"yes": (1.0, 0.0, 0.0), "no": (0.0, 0.0, 1.0)}
    judge = Scripted(lambda item: sure.get(item.answer, (math.nan,) * 3))
    done = judge_answers(log, judge)
    assert (done.new, done.before, done.silent, done.left) == (24, 0, 6, 0)
    # 3 probes x 3 different answers, at both anchors, and the bare leads of two probes.
    assert len([item for item in judge.asked if item.answer not in BARE]) == 9 and len(judge.asked) == 9 + BARES
    found = judgements_of(AnswerLog.open(tmp_path), "scripted")
    want = [sure.get(a.text, (math.nan,) * 3) for a in log.answers]
    assert np.array_equal(found, np.array(want), equal_nan=True) and judges(tmp_path) == ["scripted"]
    assert judge_answers(log, judge).new == 0 and len(judge.asked) == 9 + BARES


def test_a_judge_that_stops_goes_on(tmp_path):
    """Guards resuming: what was said before the quota ended is kept, a cut line is asked again, nothing else is."""
    log = answered(tmp_path, ["a", "b"], anchors=(0,))
    first = Scripted(stop_after=BARES + 4)
    with pytest.raises(InputError, match="quota"):
        judge_answers(log, first)
    path = tmp_path / "drift" / "judgements" / "scripted.jsonl"
    assert np.isfinite(judgements_of(log, "scripted")).all(1).sum() == 4
    path.write_bytes(path.read_bytes()[:-5])  # a crash in the middle of a line
    again = Scripted()
    assert judge_answers(log, again).before == 3 and len(again.asked) == 3
    assert np.isfinite(judgements_of(log, "scripted")).all()
    assert len(path.read_text().splitlines()) == 1 + BARES + 6


def test_most_calls(tmp_path):
    """Guards a budget: so many questions and no more."""
    log = answered(tmp_path, ["a", "b", "c"], anchors=(0,))
    judge = Scripted()
    done = judge_answers(log, judge, max_calls=BARES + 4)
    assert len(judge.asked) == BARES + 4 and done.left == 5
    assert len(to_judge(log, judge).items) == 5 and len(to_judge(log, judge, max_calls=2).items) == 2


def test_an_argument_is_a_question_of_its_own(tmp_path):
    """Guards what is asked and kept: an answer with a lead and an argument is two questions, with a lead alone one (it
    is a bare lead's, where that is asked), without one also one; the argument is asked without its lead."""
    log = answered(tmp_path, ["Yes, it hurts.", "it hurts.", "No.", "It helps."], anchors=(0,))
    views = {"it hurts.": (0.0, 0.0, 1.0), "It helps.": (1.0, 0.0, 0.0), "Yes, it hurts.": (0.25, 0.25, 0.5)}
    judge = Scripted(lambda item: views.get(item.answer, (0.0, 1.0, 0.0)))
    planned = [item.answer for item in to_judge(log, judge).items if item.probe == PANEL.probes[1]]
    assert sorted(text for text in planned if text not in BARE) == ["It helps.", "Yes, it hurts.", "it hurts."]
    judge_answers(log, judge)
    both, argument, lead = (judgements_of(log, "scripted", part)[:4, [0, 2]].tolist() for part in PARTS)
    assert both == [[0.25, 0.5], [0, 1], [0, 0], [1, 0]] and lead == [[1, 0], [0, 0], [0, 1], [0, 0]]
    assert argument == [[0, 1], [0, 1], [0, 0], [1, 0]]


def test_a_bare_lead_is_judged(tmp_path):
    """Guards the units of leads: what this judge makes of "Yes." and of "No.", over probes of both polarities."""
    log = answered(tmp_path, ["a"], anchors=(0,), panel=MINI)
    judge = Scripted(lambda item: {"Yes.": (0.75, 0.25, 0.0), "No.": (0.0, 0.5, 0.5)}.get(item.answer, (0, 1, 0)))
    judge_answers(log, judge)
    asked = [item.probe for item in judge.asked if item.answer == "Yes."]
    assert sorted(probe.polarity for probe in asked) == [-1] * 4 + [1] * 4
    assert len({probe.topic for probe in asked}) > 1
    assert open_judgements(log, "scripted").bare == (0.75, -0.5)


def test_a_judge_with_a_budget_has_seen_all_of_training(tmp_path):
    """Guards a judge that is cut short: its answers are of all anchors and topics alike, not of the first ones."""
    panel = Panel("four", MINI.probes[::2])
    log = answered(tmp_path, [f"answer {k}" for k in range(4)], anchors=(0,), panel=panel)
    for anchor in range(1, 12):
        log.append([answer._replace(anchor=anchor, text=f"{answer.text} at {anchor}") for answer in log.at(0)])
    judge_answers(log, Scripted(), max_calls=16 + 150)
    topic_of = {probe.id: probe.topic for probe in panel.probes}
    known = np.isfinite(judgements_of(log, "scripted")).all(1)
    cells = [(a.anchor, topic_of[a.probe]) for a, yes in zip(log.answers, known, strict=True) if yes]
    assert sorted(np.flatnonzero(known)) == sorted(drawn(log, Subset(150, 0)))
    counts = [cells.count((anchor, topic)) for anchor in range(12) for topic in panel.topics]
    assert len(counts) == 48 and {3, 4} == set(counts)  # 150 / 48 each


@pytest.mark.parametrize("ends", ["quota", "budget", "failures"])
def test_answers_that_are_judged_are_a_random_part(tmp_path, ends):
    """Guards a judge that is cut short: an answer that says what another did gets that verdict when its turn comes, not
    before, or common answers would be judged sooner than rare ones. What is judged is the first part of the order, also
    after a second interruption; and requests that failed keep nothing back but their own answers."""
    texts = [["same", f"rare {k}"][k % 2] for k in range(16)]  # "same" is half of the answers
    log = answered(tmp_path, texts, anchors=(0, 4), panel=MINI)
    order = drawn(log, Subset(len(log.answers), 0))

    class Failing(Scripted):
        def judge(self, items):
            yield from ((i, verdict) for i, verdict in super().judge(items) if i % 10)

    for questions in (200, 100):
        if ends == "quota":
            with pytest.raises(InputError, match="quota"):
                judge_answers(log, Scripted(stop_after=questions))
        else:
            judge_answers(log, (Failing if ends == "failures" else Scripted)(), max_calls=questions)
        judged = np.isfinite(judgements_of(log, "scripted")).all(1)
        if ends == "failures":
            # All that was reached, but for what failed.
            assert 0.85 < judged[order[: np.flatnonzero(judged[order]).max()]].mean() < 1
        else:
            assert 0 < judged.sum() < len(order) and judged[order[: judged.sum()]].all()
    judge_answers(log, Scripted())
    assert np.isfinite(judgements_of(log, "scripted")).all()


def test_a_judge_of_all_has_no_subset(tmp_path):
    """Guards corrections: a judge that has judged all is not marked as one of a part when a part is asked for, and the
    part of another stands, in its order, until it has judged all."""
    log = answered(tmp_path, [f"answer {k}" for k in range(6)], anchors=(0, 4), panel=MINI)
    cheap, strong = Scripted(name="cheap"), Scripted(name="strong")
    judge_answers(log, cheap)
    for judge in (cheap, strong):
        assert judge_answers(log, judge, subset=Subset(100, 7)).left == 0
    judge_answers(log, strong, max_calls=1)
    judge_answers(log, strong, max_calls=60)
    kept = [open_judgements(log, name) for name in ("cheap", "strong")]
    assert [judgements.subset for judgements in kept] == [None, Subset(100, 7)] and correctable(*kept)
    judged = np.isfinite(kept[1].stances_of(log)).all(1)
    assert 160 < judged.sum() < 576 and judged[drawn(log, Subset(int(judged.sum()), 7))].all()
    judge_answers(log, strong)
    assert open_judgements(log, "strong").subset is None


def test_a_subset(tmp_path):
    """Guards what is drawn: so many answers and no others, kept with their seed; a larger one holds the smaller; and
    all answers, once they are asked for."""
    log = answered(tmp_path, [f"answer {k}" for k in range(6)], anchors=(0, 4), panel=MINI)
    judge = Scripted()
    done = judge_answers(log, judge, subset=Subset(100, 7))
    assert (done.new, done.left) == (100, 0) and open_judgements(log, "scripted").subset == Subset(100, 7)
    first = np.isfinite(judgements_of(log, "scripted")).all(1)
    assert sorted(np.flatnonzero(first)) == sorted(drawn(log, Subset(100, 7)))
    assert judge_answers(log, judge, subset=Subset(150, 7)).before == 100
    second = np.isfinite(judgements_of(log, "scripted")).all(1)
    assert second[first].all() and second.sum() == 150
    assert judge_answers(log, judge).left == 0 and open_judgements(log, "scripted").subset is None
    with pytest.raises(InputError, match="--subset 577: allowed are 1 to 576"):
        judge_answers(log, judge, subset=Subset(577, 0))


def test_a_judge_whose_labels_follow_their_order_is_stopped(tmp_path):
    """Guards the figures and the money: it is stopped at a look, with what it said kept, and refused from then on."""
    log = answered(tmp_path, [f"answer {k}" for k in range(9)], anchors=(0,), panel=MINI)
    judge = Scripted(lambda item: Verdict((0.4, 0.1, 0.5), "so"))
    with pytest.raises(InputError, match=r"judge scripted: its labels follow the order .*kappa 0.00 .* Take another"):
        judge_answers(log, judge)
    assert len(judge.asked) == 100 and len(open_judgements(log, "scripted").verdicts) == 100
    with pytest.raises(InputError, match="follow the order"):
        judge_answers(log, judge)
    assert len(judge.asked) == 100
    copies = answered(tmp_path / "b", ["same"] * 9, anchors=(0,), panel=PANEL)
    judge_answers(copies, Scripted(lambda item: Verdict((0.4, 0.1, 0.5), "so")))  # 27 answers, but 7 questions
    assert open_judgements(copies, "scripted").orders.num == 3 + BARES


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
        judge_answers(log, Judging(stop_after=BARES + 1))
    assert judge_answers(log, Scripted()).before == 1 and judges(tmp_path) == ["another", "scripted"]
    with pytest.raises(InputError, match="--max-calls -1: it must be at least 1"):
        judge_answers(log, Scripted(), max_calls=-1)


@pytest.mark.parametrize("name", ["", "rule:x", "model:", "server:", ":", "judge\nx", "x" * 10**5])
def test_judges_that_are_not_known(name):
    """Guards the names of judges."""
    with pytest.raises(InputError, match="unknown judge .*; there are rule") as error:
        open_judge(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
