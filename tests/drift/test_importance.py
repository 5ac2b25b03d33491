"""The gate's tail index against distributions whose tail is known."""

import numpy as np
import pytest
from scipy import stats

from vdengine.drift.importance import pareto_k


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.8])
def test_pareto_k(k):
    """Guards the tail index: of 30 draws of 20,000 from generalised Pareto distributions of known shape the mean is
    within 0.05 (Monte-Carlo error below 0.02; the fit's own bias is of that size)."""
    rng = np.random.default_rng(16)
    found = [pareto_k(1 + stats.genpareto(k).rvs(20000, random_state=rng)) for _ in range(30)]
    assert np.mean(found) == pytest.approx(k, abs=0.05)
