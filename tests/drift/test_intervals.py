"""Intervals and Holm's correction: from loops, and against known truth in simulations.

Tolerances of simulations are the Monte-Carlo error of the stated number of draws; rates are 93-97% (or 5%) where the
true rate is several of those errors inside.
"""

import math

import numpy as np
import pytest
from helpers.values import DRAWS, POLARITIES, probe_values, strata
from scipy import optimize, stats

from vdengine.drift.analysis import analyse
from vdengine.drift.intervals import ROUNDING, group_of, holm, mean_estimate

# -------------------------------------------------------------------------------- against an independent implementation


def slow_interval(strata_values, strata_sizes):
    """Mean, low, high, p of one group, from lists of values by stratum; by loops, root finding and scipy's t."""
    total = sum(strata_sizes)
    mean = third = 0.0
    variances, freedoms = [], []
    for values, size in zip(strata_values, strata_sizes, strict=True):
        n, m = len(values), sum(values) / len(values)
        mean += size / total * m
        s2 = sum((v - m) ** 2 for v in values) / (n - 1)
        variances.append((size / total) ** 2 * s2 / n)
        third += sum((size / total / n * math.sqrt(n / (n - 1)) * (v - m)) ** 3 for v in values)
        freedoms.append(n)
    error = math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / sum(v**2 / (n + 1) for v, n in zip(variances, freedoms, strict=True)) - 2
    t = stats.t(max(freedom, 1))
    g = third / error**3

    def hall(z):
        return z + g * z**2 / 3 + g**2 * z**3 / 27 + g / 6

    def solve(target):
        return optimize.brentq(lambda z: hall(z) - target, -1e3, 1e3, xtol=1e-13)

    q = t.ppf(0.975)
    low = min(mean - q * error, mean - error * solve(q))
    high = max(mean + q * error, mean - error * solve(-q))
    p = max(2 * t.sf(abs(mean / error)), 2 * t.sf(abs(hall(mean / error))))
    return mean, low, high, min(p, 1)


def test_against_plain_loops():
    """Guards the vectorised intervals, p values and Holm's correction: the same from loops, whole or in part."""
    rng = np.random.default_rng(0)
    topics, polarity = strata([7, 5, 4, 6, 5, 8])
    x = rng.gamma(1.0, size=(5, len(topics))) + np.linspace(0, 0.8, 5)[:, None]
    x[2, ::2] = np.nan  # a part of the panel: at least one, mostly more, of each stratum
    x[3, [0, 1, 2, 3, 4, 5]] = np.nan  # one probe left in a stratum: pooled with its topic's other one
    a = analyse(probe_values(x, topics, polarity))
    names = list(dict.fromkeys(topics.tolist()))
    ps = {}
    for topic in ["all", *names]:
        curve = a.curves[topic, "stance"]
        for s in range(1, 5):
            groups = {}
            for i in range(len(topics)):
                if topic in ("all", topics[i]):
                    key = (topics[i], 0 if s == 3 and topics[i] == "t00" else polarity[i])
                    groups.setdefault(key, []).append(x[s, i] - x[0, i])
            whole = [len(v) for v in groups.values()]
            seen = [[z for z in v if not math.isnan(z)] for v in groups.values()]
            mean, low, high, p = slow_interval(seen, whole)
            assert curve.mean[s] == pytest.approx(mean, rel=1e-9), (topic, s)
            if s != 3 or topic not in ("all", "t00"):  # there the degrees of freedom are those of the finer strata
                assert (curve.low[s], curve.high[s]) == pytest.approx((low, high), rel=1e-7), (topic, s)
            ps[topic] = p
        m = a.drift(topic).magnitude
        assert (m.mean, m.p, m.num_probes) == pytest.approx((mean, ps[topic], sum(whole)), rel=1e-7)
    running = 0.0
    for rank, topic in enumerate(sorted(names, key=ps.__getitem__)):
        running = max(running, min(1.0, (len(names) - rank) * ps[topic]))
        assert a.drift(topic).p_adjusted == pytest.approx(running, rel=1e-7)
        assert a.drift(topic).significant == (running < 0.05)
    assert a.drift().p_adjusted == a.drift().magnitude.p


# --------------------------------------------------------------------------------------- against known truth: intervals


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("num", POLARITIES)
def test_interval_coverage(kind, num):
    """Guards the 95%: intervals cover the truth in 93-97% of 4,000 draws (Monte-Carlo error 0.34 points; simulated at
    40,000 the rates are 94.9-96.1), for unequal strata with means and spreads of their own; the mean is unbiased."""
    rng = np.random.default_rng([num, len(kind)])
    topics, polarity = strata(POLARITIES[num])
    own = 0.3 + 0.5 * polarity  # the two polarities shift differently: an acquiescent model
    truth = own.mean()
    draws = 4000 if num < 500 else 2000
    x = own + np.where(polarity > 0, 1.0, 1.5) * DRAWS[kind](rng, (draws, num))
    low, high, _ = (g := group_of(probe_values(x, topics, polarity), x, "all")).inference
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97
    assert abs(g.mean.mean() - truth) <= 4 * g.mean.std() / math.sqrt(draws)


def test_coverage_in_a_trajectory():
    """Guards the same along a run of 5 correlated samples, through `analyse`: every step covers at its rate (300 runs,
    Monte-Carlo error 1.3 points; three of them allowed)."""
    rng = np.random.default_rng(2)
    topics, polarity = strata([12, 12])
    path = np.array([0, 0.2, 0.5, 0.9, 1.0])[:, None]
    inside = np.zeros(5)
    for run in range(300):
        noise = np.cumsum(rng.normal(size=(5, 24)), 0) * 0.3
        x = 5 * rng.normal(size=24) + path * (0.4 + rng.gamma(2, size=24) - 2) + noise - noise[0]
        c = analyse(probe_values(x, topics, polarity), resamples=10, seed=run).curves["all", "stance"]
        inside += (c.low <= 0.4 * path[:, 0]) & (0.4 * path[:, 0] <= c.high)
    assert inside[0] == 300 and (np.abs(inside[1:] / 300 - 0.95) <= 0.04).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWS)
def test_false_alarms(kind):
    """Guards Holm over 11 topics of 50 probes, and "all" alone: without drift, at most 5% of 3,000 trajectories have a
    topic called significant (three Monte-Carlo errors, 1.2 points, allowed; simulated at 40,000 the rates are 3-5)."""
    rng = np.random.default_rng([3, len(kind)])
    topics, polarity = strata([25] * 22)
    x = DRAWS[kind](rng, (3000, 550)) - 0.7 * polarity  # a yes-bias is no drift
    r = probe_values(x, topics, polarity)
    p = np.array([group_of(r, x, t).inference[2] for t in r.topic_names])
    alarms = np.mean([(holm(p[:, k]) < 0.05).any() for k in range(p.shape[1])])
    assert alarms <= 0.05 + 0.012
    assert (group_of(r, x, "all").inference[2] < 0.05).mean() <= 0.05 + 0.012


def test_false_alarms_of_whole_runs():
    """Guards that nothing else raises an alarm: of 200 driftless runs of 6 samples, as analysed, at most 5% (three
    Monte-Carlo errors, 4.6 points, allowed) have a topic or the panel significant, and only those have a drift time."""
    rng = np.random.default_rng(4)
    topics, polarity = strata([12] * 8)
    alarms = [0, 0]
    for run in range(200):
        a = analyse(probe_values(rng.normal(size=(6, 96)), topics, polarity), resamples=20, seed=run)
        hit = [a.drift(t).significant for t in a.topics]
        alarms[0] += any(hit)
        alarms[1] += a.drift().significant
        for t in ["all", *a.topics]:
            assert (a.drift(t).times["ci95"].step is not None) == a.drift(t).significant
    assert max(alarms) <= 200 * (0.05 + 0.046)


def test_nothing_moved():
    """Guards lr 0: shifts that are exactly 0 have the interval [0, 0], p = 1 and no drift time; and equal shifts of all
    probes are no division by zero."""
    x = np.ones((3, 30)) * np.arange(30)
    a = analyse(probe_values(x))
    m = a.drift().magnitude
    assert (m.mean, m.low, m.high, m.p) == (0, 0, 0, 1) and a.drift().times["ci95"].step is None
    m = analyse(probe_values(x + np.arange(3)[:, None])).drift().magnitude
    assert (m.mean, m.low, m.high, m.p) == pytest.approx((2, 2, 2, 0)) and m.significant


@pytest.mark.parametrize("num", [0, 1, 2, 23, 24])
def test_few_probes(num):
    """Guards the small end: no interval from one probe, a flag below 24, and no crash without any."""
    e = mean_estimate(np.arange(num) + 1.0)
    assert e.num_probes == num and e.few == (num < 24)
    assert math.isnan(e.mean) == (num == 0) and math.isnan(e.low) == (num < 2)
    assert not (e.significant and num < 2)
    mixed = np.append(np.arange(num) + 1.0, np.nan)
    assert mean_estimate(mixed) == e or num < 2


def test_a_topic_of_one_probe():
    """Guards small panels of one's own: such a topic has a mean and no verdict, the others keep theirs."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 31)) * np.array([[1], [1]]) + np.array([[0], [5]])
    a = analyse(probe_values(x, ["one"] + ["b"] * 30))
    assert math.isnan(a.drift("one").magnitude.p) and not a.drift("one").significant
    assert a.drift("b").significant and math.isfinite(a.drift().magnitude.low)
    assert "1 probes, fewer than 24" in a.validity["reliability"]["one"].reason


# ------------------------------------------------------------------------------------------------------- rotating parts


def test_parts_are_unbiased_and_cover():
    """Guards rotating samples: over random parts (fewer of one polarity than its share) the stratified mean's average
    is the panel's own, within 4 Monte-Carlo errors of 3,000 parts, where the plain mean's is not; each probe is
    compared with its own baseline; intervals about the population cover in 93-97%."""
    rng = np.random.default_rng(6)
    topics, polarity = strata([25, 25, 25, 25])
    base = 10 * rng.normal(size=100)
    shift = 0.5 + 0.8 * polarity + rng.normal(size=100)
    x = np.tile(base + shift, (3001, 1))
    x[0] = base
    for row in x[1:]:
        for s, count in enumerate((4, 8, 5, 7)):
            row[25 * s + rng.choice(25, 25 - count, replace=False)] = np.nan
    c = analyse(probe_values(x, topics, polarity), resamples=10).curves["all", "stance"]
    assert (c.num_probes[1:] == 24).all()
    error = c.mean[1:].std() / math.sqrt(3000)
    assert abs(c.mean[1:].mean() - shift.mean()) <= 4 * error
    assert abs(np.nanmean(x[1:] - base, 1).mean() - shift.mean()) > 10 * error
    x = 0.5 + 0.8 * polarity + rng.normal(size=(4000, 100))
    for row in x:
        row[rng.choice(100, 70, replace=False)] = np.nan
    low, high, _ = group_of(probe_values(x, topics, polarity), x, "all").inference
    assert 0.93 <= ((low <= 0.5) & (0.5 <= high)).mean() <= 0.97


@pytest.mark.slow
def test_thin_parts():
    """Guards parts with one probe of a stratum or none: they are pooled with their neighbours, an interval over all
    still covers (93-97% of 4,000 draws), and a topic that is not there has no reading."""
    rng = np.random.default_rng(7)
    topics, polarity = strata([20] * 12)
    x = 0.4 + rng.normal(size=(4000, 240))
    gone = rng.random((4000, 240)) < 0.85
    gone[:, :40] = True
    gone[0] = False
    x[gone] = np.nan
    r = probe_values(x, topics, polarity)
    low, high, _ = group_of(r, x, "all").inference
    assert 0.93 <= ((low <= 0.4) & (0.4 <= high))[1:].mean() <= 0.97
    c = analyse(r, resamples=10).curves["t00", "stance"]
    assert np.isnan(c.mean[1:]).all() and c.mean[0] == 0


# ------------------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("readout", ["text_likelihood", "answers"])
@pytest.mark.parametrize("kind", ["equal", "noise", "bias"])
def test_what_rounding_alone_gives_is_no_shift(readout, kind):
    """Guards runs of lr 0: differences of 1e-16 that are equal in all probes (no variance, so any mean of them was
    significant), rounding noise, and rounding that leans one way have p = 1, an interval that holds 0, no drift time;
    ten times the bound, as equal in all probes, is a shift."""
    rng = np.random.default_rng(3)
    x = np.tile(rng.normal(size=48), (4, 1))
    bound = ROUNDING[probe_values(x, readout=readout).unit]
    added = {
        "equal": np.full(x.shape, 1e-16),
        "noise": bound * rng.uniform(-1, 1, x.shape),
        "bias": bound * rng.uniform(0.5, 1, x.shape),
    }[kind]
    added[0] = 0
    drift = analyse(probe_values(x * 0 + added, readout=readout)).drift()
    m = drift.magnitude
    assert m.p == 1 and m.low <= 0 <= m.high and not m.significant and not drift.significant
    assert drift.direction == 0 and all(time.step is None for time in drift.times.values())
    added[1:] = 10 * bound
    assert analyse(probe_values(x * 0 + added, readout=readout)).drift().direction == 1
