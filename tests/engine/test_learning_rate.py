"""The learning rate."""

import pytest

from vdengine.engine.learning_rate import learning_rate
from vdengine.recipe import OptimizerKeys


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 1.0])
def test_the_rate_stays_at_its_floor_beyond_the_end(schedule, warmup):
    """Guards whoever takes more steps than were planned: past its end a cosine would rise again, a line go below 0."""
    settings = OptimizerKeys(lr=2.0, schedule=schedule, warmup=warmup, min_lr=0.0 if schedule == "constant" else 0.1)
    rates = [learning_rate(settings, step, 10) for step in range(40)]
    assert all(rate == rates[10] for rate in rates[10:])
    assert rates[10] == pytest.approx(2.0 if schedule == "constant" else 0.2) and min(rates) > 0
