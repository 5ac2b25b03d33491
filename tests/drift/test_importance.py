"""The gate's tail index against distributions whose tail is known."""

import numpy as np
import pytest
from helpers.values import Categorical
from scipy import stats

from vdengine.drift.importance import MIN_ANSWERS, closed_because, gate, pareto_k
from vdengine.drift.reweighting import reweighted


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.8])
def test_pareto_k(k):
    """Guards the tail index: of 30 draws of 20,000 from generalised Pareto distributions of known shape the mean is
    within 0.05 (Monte-Carlo error below 0.02; the fit's own bias is of that size)."""
    rng = np.random.default_rng(16)
    found = [pareto_k(1 + stats.genpareto(k).rvs(20000, random_state=rng)) for _ in range(30)]
    assert np.mean(found) == pytest.approx(k, abs=0.05)


def test_a_closed_gate_says_why():
    """Guards "KL -0.01" beside a closed gate: with too few answers for Pareto k that is the reason, or that neither
    half of them is in range by itself."""
    rng = np.random.default_rng(0)

    def of(num):
        first = rng.normal(-20, 3, num)
        return gate(first, first + 0.01 * rng.normal(size=num))

    few, lone = of(MIN_ANSWERS // 2 - 1), of(MIN_ANSWERS - 2)
    assert not few.open and not lone.open and of(10 * MIN_ANSWERS).open
    why = "Pareto k cannot be computed from so few answers: it takes 50"
    assert np.isnan(few.pareto_k) and closed_because(few.kl, few.ess, few.pareto_k) == why
    why = "neither half of the answers is in range by itself"
    assert np.isfinite(lone.pareto_k) and closed_because(lone.kl, lone.ess, -0.5) == why
    assert (
        closed_because(0.8, 0.2, 0.9)
        == "KL 0.80 is not below 0.5; ESS 20% is below 70%; Pareto k 0.90 is not below 0.5"
    )
    assert "KL is not a number" in closed_because(float("nan"), 1.0, 0.0)


@pytest.mark.slow
def test_the_gate_does_not_choose_among_shifts():
    """Guards the selection of a gate by the weights that it lets through: at its edge, shifts that it shows are too
    small by more than 3% where it looks at the same answers, and within 3% where at the other half of them (1,000 banks
    of 24 probes x 16 answers; Monte-Carlo errors 0.6%, simulated -6.4% and +1.6%)."""
    model = Categorical(np.random.default_rng(11), 24)
    truth = float(((model.mean(0.55) - model.mean(0)) @ [1, 0, -1]).mean())
    place = np.arange(24 * 16).reshape(24, 16) % 2
    same, other = [], []
    for _ in range(1000):
        answers = model.draw(0, 16)
        f = np.take_along_axis(model.f, answers[..., None], 1) @ [1, 0, -1]
        then, now = (np.take_along_axis(model.logp(tilt), answers, 1) for tilt in (0, 0.55))
        diagnostics = gate(then.ravel(), now.ravel())
        for shown, shifts in ((diagnostics.halves[::-1], other), (diagnostics.halves, same)):
            if any(shown):
                used = np.array(shown)[place]
                gain = np.where(used, reweighted(now - then, f[..., None], used)[..., 0], 0.0)
                shifts.append((gain.sum(1) / used.sum(1)).mean())
    assert np.mean(same) / truth - 1 < -0.03 and abs(np.mean(other) / truth - 1) < 0.03
