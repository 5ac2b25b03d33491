"""Sampled answers along a run: their plan and budgets, and that they are the same whatever else goes on."""

import numpy as np
import pytest
from helpers.runs import STEPS, recipe_of
from helpers.scenarios import same_bits, train

from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"anchors": [4]}, r"answers.anchors: 4 not within the run: 1 to 3 are"),
        ({"anchors": 6}, r"answers.anchors = 6: the run has 5 steps to draw at, 0 to 4"),
        ({"anchors": None, "generated_tokens": 383}, r"answers.generated_tokens = 383: 2 anchors, .* take up to 384"),
        ({"anchors": None, "most_answers": 63}, r"answers.most_answers = 63: 2 anchors, .* take up to 64"),
    ],
)
def test_plans_that_do_not_do(keys, message, tmp_path, tiny_models, data):
    """Guards budgets and steps: what is asked for, what is sure to come, and what to change."""
    recipe = recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data))
    for name, value in keys.items():
        setattr(recipe.answers, name, value)
    with pytest.raises(InputError, match=message):
        Trainer(recipe)


@pytest.mark.slow
def test_budgets_bound_the_anchors(tmp_path, tiny_models, data):
    """Guards the recipe's word: with calls for three anchors, the alarm gets one."""
    recipe = recipe_of("weighted", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.answers.most_answers = 8 * (6 + 4 + 4) + 5
    trainer = train(recipe)
    assert trainer.probes.answers.schedule.most == 3 and len(trainer.probes.answers.anchors) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "weighted"])
def test_answers_do_not_touch_the_training(name, runs):
    """Guards the promise of a free reading: with answers sampled and scored along, the weights have the same bits."""
    assert same_bits(runs[name], runs["base"])
    assert np.array_equal(runs[name]["drift"][1], runs["base"]["drift"][1])


@pytest.mark.slow
def test_many_small_anchors(one):
    """Guards the plan: two answers at each step of the schedule, more at the start, the same probes at each, and
    nothing scored."""
    answers = one["answers"]["answers"]
    assert sorted({a[0] for a in answers}) == [0, 1, STEPS]
    probes = {a[1] for a in answers}
    for k in (0, 1, STEPS):
        assert sorted((a[1], a[2]) for a in answers if a[0] == k) == sorted(
            (p, i) for p in probes for i in range(2 if k else 6)
        )
    assert not len(one["answers"]["readings"])


@pytest.mark.slow
def test_answers_at_their_anchors(one):
    """Guards the plan of weighted answers: a larger first pool, an anchor at the end, those that the alarm asked for,
    never too many."""
    answers = one["weighted"]["answers"]
    anchors = sorted({a[0] for a in answers})
    assert anchors[0] == 0 and anchors[-1] == STEPS and 2 < len(anchors) <= 4
    for k in anchors:
        assert len([a for a in answers if a[0] == k]) == 8 * (6 if k == 0 else 4)
    first = one["weighted"]["readings"]
    assert all(k in first["step"][first["anchor"] == k] for k in anchors)  # each scored under its own weights
    # and the old ones too, where new ones are drawn: the weights' own error shows at every anchor
    assert all(old in first["anchor"][first["step"] == k] for old, k in zip(anchors, anchors[1:], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "weighted"])
def test_answers_of_a_resumed_run(name, one):
    """Guards rewinding: a run stopped and taken up again draws, reads and decides the same."""
    a, b = one[name], one[f"{name}_resumed"]
    assert a["answers"] == b["answers"]
    assert a["readings"].tobytes() == b["readings"].tobytes()


@pytest.mark.slow
def test_weights_of_a_model_that_stands_still(one):
    """Guards exact weights: with learning rate 0 every reading, in a training forward or alone, has the bits of the
    first, so each weight is exactly 1."""
    readings = one["weighted_lr0"]["readings"]
    assert len(readings) > 3
    for r in readings[readings["anchor"] == 0]:
        assert np.array_equal(r["logp"], readings[0]["logp"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "weighted"])
def test_answers_on_two_ranks(name, one, two):
    """Guards noise keyed by prompt, and shares that meet again: two ranks draw and score what one does."""
    assert one[name]["answers"] == two[name]["answers"]
    a, b = one[name]["readings"], two[name]["readings"]
    assert np.array_equal(a["step"], b["step"]) and np.array_equal(a["anchor"], b["anchor"])
    np.testing.assert_allclose(a["logp"], b["logp"], rtol=1e-5, atol=1e-4)  # six terms around 5, rounding in fp32
