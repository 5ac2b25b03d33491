"""The gate's tail index against distributions whose tail is known."""

import numpy as np
import pytest
from scipy import stats

from vdengine.drift.importance import MIN_ANSWERS, closed_because, gate, pareto_k


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.8])
def test_pareto_k(k):
    """Guards the tail index: of 30 draws of 20,000 from generalised Pareto distributions of known shape the mean is
    within 0.05 (Monte-Carlo error below 0.02; the fit's own bias is of that size)."""
    rng = np.random.default_rng(16)
    found = [pareto_k(1 + stats.genpareto(k).rvs(20000, random_state=rng)) for _ in range(30)]
    assert np.mean(found) == pytest.approx(k, abs=0.05)


def test_a_closed_gate_says_why():
    """Guards "KL -0.01" beside a closed gate: with too few answers for Pareto k that is the reason, and it is said; an
    open gate has none."""
    rng = np.random.default_rng(0)
    first = rng.normal(-20, 3, MIN_ANSWERS - 1)
    few = gate(first, first + 0.01 * rng.normal(size=len(first)))
    assert not few.open and np.isnan(few.pareto_k)
    assert (
        closed_because(few.kl, few.ess, few.pareto_k) == "Pareto k cannot be computed from so few answers: it takes 25"
    )
    first = rng.normal(-20, 3, MIN_ANSWERS)
    enough = gate(first, first + 0.01 * rng.normal(size=len(first)))
    assert np.isfinite(enough.pareto_k) and enough.open == (
        closed_because(enough.kl, enough.ess, enough.pareto_k) == ""
    )
    assert (
        closed_because(0.8, 0.2, 0.9)
        == "KL 0.80 is not below 0.5; ESS 20% is below 70%; Pareto k 0.90 is not below 0.5"
    )
    assert "KL is not a number" in closed_because(float("nan"), 1.0, 0.0)
