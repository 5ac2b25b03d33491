"""Predictors that never look at the model."""

import math

import numpy as np
import pytest

from vdengine.drift.baselines import predict_direction_step, score_predictions
from vdengine.errors import InputError


def test_direction_and_step():
    """Guards the baseline to beat: from other runs alone it gets direction and growth, predicts 0 without a direction,
    and its own run (or group) does not leak into it."""
    rng = np.random.default_rng(23)
    steps = [np.array([0, 2, 4, 8, 16])] * 5 + [np.array([0, 4, 16])]
    directions = [1, -1, 1, -1, 0, 1]
    growth = {0: 0.0, 2: 0.1, 4: 0.25, 8: 0.4, 16: 0.5}
    shifts = [
        np.array([[d * growth[int(s)]] * 3 for s in t]) + 0.01 * rng.normal(size=(len(t), 3))
        for t, d in zip(steps, directions, strict=True)
    ]
    free = predict_direction_step(shifts, steps, directions)
    for y, p, d in zip(shifts, free, directions, strict=True):
        assert p.shape == y.shape and np.abs(p - y * (d != 0)).max() < 0.05
    changed = [shifts[0] + 100, *shifts[1:]]
    assert np.array_equal(predict_direction_step(changed, steps, directions)[0], free[0])
    assert not np.allclose(predict_direction_step(changed, steps, directions)[1], free[1])
    groups = ["a", "b", "a", "b", "c", "d"]
    grouped = predict_direction_step(changed, steps, directions, groups=groups)
    assert np.array_equal(grouped[2], predict_direction_step(shifts, steps, directions, groups=groups)[2])
    exact = [d * np.log1p(t) * 0.3 for t, d in zip(steps, directions, strict=True)]
    for y, p in zip(exact, predict_direction_step(exact, steps, directions, form="log"), strict=True):
        assert p == pytest.approx(y)
    linear = predict_direction_step([d * t * 0.3 for t, d in zip(steps, directions, strict=True)], steps, directions,
                                    form="linear")  # fmt: skip
    assert linear[1] == pytest.approx(-0.3 * steps[1])
    by_topic = predict_direction_step(shifts, steps, [np.array([d, -d, 0]) for d in directions])
    assert (by_topic[0][:, 2] == 0).all() and np.allclose(by_topic[0][:, 0], -by_topic[0][:, 1])
    with pytest.raises(InputError, match="form: 'cubic'"):
        predict_direction_step(shifts, steps, directions, form="cubic")


def test_scores_of_predictions():
    """Guards the table of a study: no drift has its error and no sign; what adds nothing to a baseline has partial r
    0."""
    rng = np.random.default_rng(24)
    direction = rng.choice([-1.0, 1.0], 2000)
    extra = rng.normal(size=2000)
    truth = direction + 0.5 * extra + 0.1 * rng.normal(size=2000)
    zero = score_predictions(truth, np.zeros(2000))
    assert zero.rmse == pytest.approx(np.sqrt((truth**2).mean())) and math.isnan(zero.sign) and math.isnan(zero.pearson)
    echo = score_predictions(truth, direction + 0.3 * rng.normal(size=2000), given=direction)
    more = score_predictions(truth, direction + 0.5 * extra, given=direction)
    assert echo.pearson > 0.8 and abs(echo.partial) < 0.1 and more.partial > 0.9 and more.num == 2000
    truth[0] = np.nan
    assert score_predictions(truth, direction).num == 1999 and score_predictions(truth[:1], direction[:1]).num == 0
