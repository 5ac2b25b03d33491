"""At which steps the panel is scored."""

import numpy as np
import pytest

from vdengine.drift.schedule import Schedule


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
