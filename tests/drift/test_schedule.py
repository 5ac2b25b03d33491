"""At which steps the panel is scored, and answers are drawn."""

import numpy as np
import pytest

from vdengine.drift.schedule import AnchorSchedule, Schedule, dense_early
from vdengine.errors import InputError
from vdengine.recipe import AnswersKeys


@pytest.mark.parametrize(("total", "every"), [(24, 4), (25, 4), (3, 10), (1, 1)])
def test_every(total, every):
    """Guards the ends: step 0 and the end are always sampled, and nothing twice."""
    s = Schedule.make(total, every=every, budget=None, panel_cost=1.0, step_cost=10.0)
    assert s.steps == tuple(sorted({*range(0, total, every), total}))
    assert [s.index(k) for k in s.steps] == list(range(len(s.steps)))
    assert s.cost == pytest.approx(len(s.steps) / (10 * total))
    assert s.index(total + 1) is None


@pytest.mark.parametrize("total", [1, 2, 10, 1000])
@pytest.mark.parametrize("budget", [1e-6, 0.01, 0.3, 1.0])
def test_budget(total, budget):
    """Guards the promise: at most the budget (but always both ends), dense early, distinct steps."""
    s = Schedule.make(total, every=None, budget=budget, panel_cost=3.0, step_cost=10.0)
    assert s.steps[0] == 0 and s.steps[-1] == total and len(set(s.steps)) == len(s.steps)
    assert s.cost <= budget or len(s.steps) == 2
    if len(s.steps) > 4 and len(s.steps) < total / 2:
        gaps = np.diff(s.steps)
        assert gaps[: len(gaps) // 2].sum() < gaps[len(gaps) // 2 :].sum()


def test_off():
    """Guards every = 0."""
    assert Schedule.make(10, every=0, budget=None, panel_cost=1, step_cost=1).steps == ()


@pytest.mark.parametrize("total", [1, 5, 20, 1000])
def test_dense_early(total):
    """Guards numbers that were asked for: as many distinct steps, both ends among them, even where squares crowd."""
    for count in range(2, min(total + 1, 60) + 1):
        steps = dense_early(total, count)
        assert len(set(steps)) == len(steps) == count and steps[0] == 0 and steps[-1] == total
        assert list(steps) == sorted(steps)


def anchors(probes=10, total=100, **keys):
    return AnchorSchedule.make(AnswersKeys(**{"samples": 2, "max_tokens": 20} | keys), probes, total)


def test_anchors():
    """Guards what a recipe says: a number, a list, a budget (never above it, and not an anchor below), or nothing."""
    assert anchors(anchors=5).steps == (0, 6, 25, 56, 100) and anchors(anchors=5).most == 5
    assert anchors(anchors=[7]).steps == (0, 7, 100) and anchors(anchors=[]).steps == (0, 100)
    assert len(anchors().steps) == 12 and len(anchors(total=3).steps) == 4
    for budget in (1_000, 2_000, 12_345):
        plan = anchors(generated_tokens=budget, base=3)
        assert plan.num_answers(len(plan.steps)) * 20 <= budget < plan.num_answers(len(plan.steps) + 1) * 20
    assert len(anchors(most_answers=10**9).steps) == 101
    assert anchors(most_answers=200).num_answers(1) == 10 * 8  # four times as many at the start


def test_anchors_with_weights():
    """Guards the option: the ends and the list are sure, the rest comes as far as every budget goes."""
    plan = anchors(weights_every=1, anchors=[7], most_answers=200)
    assert plan.steps == (0, 7, 100) and plan.most == 7  # 80 answers at the start and 20 at each of six more
    assert anchors(weights_every=1).most == 8 and anchors(weights_every=1, total=3).most == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"anchors": [0, 100]}, "answers.anchors: 0, 100 not within the run: 1 to 99 are"),
        ({"anchors": 102}, "answers.anchors = 102: the run has 101 steps to draw at, 0 to 100"),
        (
            {"most_answers": 99},
            "answers.most_answers = 99: 2 anchors, start and end included, take up to 100; raise it",
        ),
        ({"generated_tokens": 1}, "answers.generated_tokens = 1: 2 anchors, .* take up to 2000; raise it"),
        ({"weights_every": 1, "anchors": [3], "most_answers": 110}, "most_answers = 110: 3 anchors, .* take up to 120"),
        ({"weights_every": 1, "anchors": [1, 2], "max_anchors": 3}, "max_anchors = 3: 4 are sure"),
    ],
)
def test_anchors_that_do_not_do(keys, message):
    """Guards steps outside the run and budgets below what is sure: what, why, and what to change."""
    with pytest.raises(InputError, match=message):
        anchors(**keys)
