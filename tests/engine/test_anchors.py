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
        ({"generated_tokens": 400}, r"answers.generated_tokens = 400: the 2 anchors that are sure .* take up to 480"),
        ({"judge_calls": 79}, r"answers.judge_calls = 79: the 2 anchors that are sure .* take up to 80"),
        ({"max_anchors": 2, "anchors": [1, 2]}, r"answers.max_anchors = 2: 4 are sure"),
    ],
)
def test_budgets_that_do_not_do(keys, message, tmp_path, tiny_models, data):
    """Guards budgets and steps: what is asked for, what is sure to come, and what to change."""
    recipe = recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data))
    for name, value in keys.items():
        setattr(recipe.answers, name, value)
    with pytest.raises(InputError, match=message):
        Trainer(recipe)


@pytest.mark.slow
def test_budgets_bound_the_anchors(tmp_path, tiny_models, data):
    """Guards the recipe's word: with calls for three anchors, the alarm gets one."""
    recipe = recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.answers.judge_calls = 8 * (6 + 4 + 4) + 5
    trainer = train(recipe)
    assert trainer.probes.answers.max_anchors == 3 and len(trainer.probes.answers.anchors) == 3


@pytest.mark.slow
def test_answers_do_not_touch_the_training(runs):
    """Guards the promise of a free reading: with answers sampled and scored along, the weights have the same bits."""
    assert same_bits(runs["answers"], runs["base"])
    assert np.array_equal(runs["answers"]["drift"][1], runs["base"]["drift"][1])


@pytest.mark.slow
def test_answers_at_their_anchors(one):
    """Guards the plan: a larger first pool, an anchor at the end, those that the alarm asked for, never too many."""
    answers = one["answers"]["answers"]
    anchors = sorted({a[0] for a in answers})
    assert anchors[0] == 0 and anchors[-1] == STEPS and 2 < len(anchors) <= 4
    for k in anchors:
        assert len([a for a in answers if a[0] == k]) == 8 * (6 if k == 0 else 4)
    first = one["answers"]["readings"]
    assert all(k in first["step"][first["anchor"] == k] for k in anchors)  # each scored under its own weights
    # and the old ones too, where new ones are drawn: the weights' own error shows at every anchor
    assert all(old in first["anchor"][first["step"] == k] for old, k in zip(anchors, anchors[1:], strict=False))


@pytest.mark.slow
def test_answers_of_a_resumed_run(one):
    """Guards rewinding: a run stopped and taken up again draws, reads and decides the same."""
    a, b = one["answers"], one["answers_resumed"]
    assert a["answers"] == b["answers"]
    assert a["readings"].tobytes() == b["readings"].tobytes()


@pytest.mark.slow
def test_weights_of_a_model_that_stands_still(one):
    """Guards exact weights: with learning rate 0 every reading, in a training forward or alone, has the bits of the
    first, so each weight is exactly 1."""
    readings = one["answers_lr0"]["readings"]
    assert len(readings) > 3
    for r in readings[readings["anchor"] == 0]:
        assert np.array_equal(r["logp"], readings[0]["logp"])


@pytest.mark.slow
def test_answers_on_two_ranks(one, two):
    """Guards noise keyed by prompt, and shares that meet again: two ranks draw and score what one does."""
    assert one["answers"]["answers"] == two["answers"]["answers"]
    a, b = one["answers"]["readings"], two["answers"]["readings"]
    assert np.array_equal(a["step"], b["step"]) and np.array_equal(a["anchor"], b["anchor"])
    np.testing.assert_allclose(a["logp"], b["logp"], rtol=1e-5, atol=1e-4)  # six terms around 5, rounding in fp32
