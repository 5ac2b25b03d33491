"""ProbeValues and estimators against an independent, slow implementation, and against known truth in simulations.

Tolerances of simulations are the Monte-Carlo error of the stated number of draws; rates are 93-97% (or 5%) where the
true rate is several of those errors inside.
"""

import json
import math
import random

import numpy as np
import pytest
from scipy import optimize, stats

from vdengine.drift.agreement import agreement
from vdengine.drift.analysis import analyse
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.answer_values import answer_values, inflation, reweighted
from vdengine.drift.baselines import predict_direction_step, score_predictions
from vdengine.drift.importance import MIN_ESS, gate, pareto_k
from vdengine.drift.intervals import group_of, holm, mean_estimate
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import ProbeValues, control_values, opening_values
from vdengine.errors import InputError
from vdengine.panels.panel import Panel

POLARITIES = {24: [12, 12], 48: [30, 18], 550: [25] * 22}  # probes of each stratum


def readings(x, topics=None, polarity=None, steps=None, readout="openings", **more) -> ProbeValues:
    """ProbeValues of one channel x [S, P], and a yes-bias that says nothing."""
    x = np.asarray(x, float)
    steps = np.arange(len(x)) if steps is None else np.asarray(steps)
    polarity = np.array([1, -1] * x.shape[1])[: x.shape[1]] if polarity is None else np.asarray(polarity)
    topics = np.full(x.shape[1], "a") if topics is None else np.asarray(topics)
    name, unit = ("stance", "nats per byte") if readout == "openings" else ("graded", "probability")
    return ProbeValues(
        readout, unit, steps, int(steps[-1]), np.array([f"p{i}" for i in range(x.shape[1])]), topics, polarity,
        {t: "more" for t in topics}, {name: x, "yes_bias": np.zeros_like(x)}, **more,
    )  # fmt: skip


def strata(sizes, per_topic=2):
    """Topics and polarities of a panel with strata of these sizes."""
    topics = [f"t{i // per_topic:02}" for i, n in enumerate(sizes) for _ in range(n)]
    return np.array(topics), np.array([1 - 2 * (i % 2) for i, n in enumerate(sizes) for _ in range(n)])


DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
    "heavy": lambda rng, shape: rng.standard_t(3, size=shape) / math.sqrt(3),
}


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
    a = analyse(readings(x, topics, polarity))
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


def slow_time(rule, y, down, up):
    """Drift time of one trajectory, the samples after the baseline, in the direction of M: an index."""
    best = max(range(len(y)), key=lambda i: y[i])
    for i in range(len(y)):
        if rule == "ci95" and y[i] >= y[best] - down[best]:
            return i
        if rule == "frac95" and y[i] >= 0.95 * y[best]:
            return i
        if rule == "settled" and all(y[-1] - down[-1] <= z <= y[-1] + up[-1] for z in y[i:]):
            return i


@pytest.mark.parametrize("sign", [1, -1])
def test_drift_times_against_plain_loops(sign):
    """Guards the three rules and their bootstrap over whole trajectories: the same from loops over the same weights."""
    rng = np.random.default_rng(1)
    steps = np.array([0, 3, 5, 10, 20, 40, 60])
    path = np.array([0, 0.3, 0.9, 1.3, 1.1, 1.0, 1.0])  # overshoots
    x = sign * path[:, None] * (1 + 0.4 * rng.normal(size=30)) + 0.1 * rng.normal(size=(7, 30))
    r = readings(x, steps=steps)
    a = analyse(r, resamples=200, seed=5)
    curve = a.curves["all", "stance"]
    down, up = curve.mean - curve.low, curve.high - curve.mean
    if sign < 0:
        down, up = up, down
    weights = np.random.Generator(np.random.Philox(5)).poisson(1.0, (200, 30)) - 1.0
    shift = x - x[0]
    for rule in ("ci95", "frac95", "settled"):
        found = a.drift().times[rule]
        at = 1 + slow_time(rule, (sign * curve.mean)[1:], down[1:], up[1:])
        assert (found.step, found.fraction) == (steps[at], pytest.approx(steps[at] / 60))
        times = [at]
        for w in weights:
            y = []
            for s in range(1, 7):
                total = 0.0
                for p in (1, -1):
                    mine = [i for i in range(30) if r.polarity[i] == p]
                    m, n = sum(shift[s, i] for i in mine) / 15, 15
                    total += m / 2
                    total += sum(w[i] * (shift[s, i] - m) for i in mine) * math.sqrt(n / (n - 1)) / n / 2
                y.append(sign * total)
            times.append(1 + slow_time(rule, y, down[1:], up[1:]))
        assert found.low == pytest.approx(np.percentile([steps[k - 1] / 60 for k in times], 2.5), abs=1e-9)
        assert found.high == pytest.approx(np.percentile([steps[k] / 60 for k in times], 97.5), abs=1e-9)


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
    low, high, _ = (g := group_of(readings(x, topics, polarity), x, "all")).inference
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
        c = analyse(readings(x, topics, polarity), resamples=10, seed=run).curves["all", "stance"]
        inside += (c.low <= 0.4 * path[:, 0]) & (0.4 * path[:, 0] <= c.high)
    assert inside[0] == 300 and (np.abs(inside[1:] / 300 - 0.95) <= 0.04).all()


@pytest.mark.parametrize("kind", DRAWS)
def test_false_alarms(kind):
    """Guards Holm over 11 topics of 50 probes, and "all" alone: without drift, at most 5% of 3,000 trajectories have a
    topic called significant (three Monte-Carlo errors, 1.2 points, allowed; simulated at 40,000 the rates are 3-5)."""
    rng = np.random.default_rng([3, len(kind)])
    topics, polarity = strata([25] * 22)
    x = DRAWS[kind](rng, (3000, 550)) - 0.7 * polarity  # a yes-bias is no drift
    r = readings(x, topics, polarity)
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
        a = analyse(readings(rng.normal(size=(6, 96)), topics, polarity), resamples=20, seed=run)
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
    a = analyse(readings(x))
    m = a.drift().magnitude
    assert (m.mean, m.low, m.high, m.p) == (0, 0, 0, 1) and a.drift().times["ci95"].step is None
    m = analyse(readings(x + np.arange(3)[:, None])).drift().magnitude
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
    a = analyse(readings(x, ["one"] + ["b"] * 30))
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
    c = analyse(readings(x, topics, polarity), resamples=10).curves["all", "stance"]
    assert (c.num_probes[1:] == 24).all()
    error = c.mean[1:].std() / math.sqrt(3000)
    assert abs(c.mean[1:].mean() - shift.mean()) <= 4 * error
    assert abs(np.nanmean(x[1:] - base, 1).mean() - shift.mean()) > 10 * error
    x = 0.5 + 0.8 * polarity + rng.normal(size=(4000, 100))
    for row in x:
        row[rng.choice(100, 70, replace=False)] = np.nan
    low, high, _ = group_of(readings(x, topics, polarity), x, "all").inference
    assert 0.93 <= ((low <= 0.5) & (0.5 <= high)).mean() <= 0.97


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
    r = readings(x, topics, polarity)
    low, high, _ = group_of(r, x, "all").inference
    assert 0.93 <= ((low <= 0.4) & (0.4 <= high))[1:].mean() <= 0.97
    c = analyse(r, resamples=10).curves["t00", "stance"]
    assert np.isnan(c.mean[1:]).all() and c.mean[0] == 0


# ------------------------------------------------------------------------------------------------ smoothing, drift time


@pytest.mark.parametrize("name", ["ema", "local-linear"])
def test_smoothing(name):
    """Guards the kernels: constants stay, local-linear keeps lines to the very ends, noise shrinks, the baseline and
    samples without a reading stay as they are, and the name says the width."""
    rng = np.random.default_rng(8)
    steps = np.sort(rng.choice(1000, 80, replace=False))
    line = steps[:, None] * np.ones(30) + 0.0
    line[40] = np.nan
    a = analyse(readings(line, steps=steps), smoothing=f"{name}:0.05")
    c = a.curves["all", "stance"]
    assert a.smoothing == f"{name}:0.05" == a.drift().times["ci95"].smoothing
    assert np.isnan(c.mean[40]) and c.mean[0] == 0
    if name == "local-linear":
        assert np.nanmax(np.abs(c.mean - (steps - steps[0]))) < 1e-9 * 1000
    noisy = np.where(np.arange(80)[:, None] > 0, 1.0, 0.0) + 0.3 * rng.normal(size=(80, 1)) * np.ones(30)
    noisy[0] = 0
    raw, smooth = (
        analyse(readings(noisy, steps=steps), smoothing=s).curves["all", "stance"] for s in ("none", f"{name}:0.2")
    )
    assert smooth.mean[20:].std() < 0.5 * raw.mean[20:].std()
    assert analyse(readings(noisy, steps=steps), smoothing=name).smoothing == f"{name}:0.1"


def test_smoothed_intervals_cover():
    """Guards intervals of smoothed rotating parts: neighbours have other probes, so they are narrower than a part's,
    and still cover a line (94.1% in 300 runs of 36 samples that share their errors; here 100: 92-98% allowed)."""
    rng = np.random.default_rng(9)
    topics, polarity = strata([60, 60])
    inside, width = [], []
    for _ in range(100):
        x = np.linspace(0, 1, 41)[:, None] * (1 + rng.normal(size=120)) + 0.5 * rng.normal(size=(41, 120))
        x[0] = 0
        order = rng.permutation(60)
        for s in range(1, 41):
            away = np.concatenate([order % 4 != s % 4] * 2)
            x[s, away] = np.nan
        r = readings(x, topics, polarity)
        raw, c = (analyse(r, smoothing=m, resamples=5).curves["all", "stance"] for m in ("none", "local-linear:0.3"))
        inside.append((c.low <= np.linspace(0, 1, 41)) & (np.linspace(0, 1, 41) <= c.high))
        width.append((c.high - c.low)[5:-5].mean() / (raw.high - raw.low)[5:-5].mean())
    assert np.mean(width) < 0.8
    assert 0.92 <= np.mean(np.array(inside)[:, 5:]) <= 0.98


@pytest.mark.parametrize("text", ["mean", "ema:0", "ema:2", "ema:x", "none:0.1", ""])
def test_unknown_smoothing(text):
    """Guards the option: one line with what is allowed."""
    with pytest.raises(InputError, match="is not one of none, ema, local-linear"):
        analyse(readings(np.zeros((2, 4))), smoothing=text)


def test_baseline_must_be_a_sample():
    """Guards the option; and a later baseline: shifts are since it, and times after it."""
    x = np.array([0.0, 5.0, 6.0, 7.0, 8.0])[:, None] + 0.2 * np.random.default_rng(0).normal(size=(5, 24))
    r = readings(x, steps=[0, 10, 20, 30, 40])
    with pytest.raises(InputError, match="step 7 was not sampled; 0, 10, 20, 30, 40 were"):
        analyse(r, baseline=7)
    a = analyse(r, baseline=10)
    assert a.baseline == 10 and a.drift().magnitude.mean == pytest.approx(3, abs=0.2)
    assert a.drift().times["ci95"].step == 40


def saturating(rng, num, runs):
    """The drift time of a path that levels off, and trajectories [41, num] of probes that follow it with noise."""
    t = np.linspace(0, 1, 41)
    path = (1 - np.exp(-t / 0.2)) / (1 - math.exp(-5))
    half = path / math.sqrt(num) * stats.t(num - 2).ppf(0.975)  # the interval that the truth would have
    out = []
    for _ in range(runs):
        noise = rng.normal(size=(41, num))
        for s in range(1, 41):
            noise[s] = 0.8 * noise[s - 1] + 0.6 * noise[s]
        out.append(path[:, None] * (1 + rng.normal(size=num)) + 0.1 * (noise - noise[0]))
    return t[np.argmax(path >= path[-1] - half[-1])], out


@pytest.mark.parametrize("num", [24, 48, 550])
def test_drift_time_error(num):
    """Guards drift times: on saturating trajectories of 41 samples (0.025 of the stage apart) the mean of `ci95` is the
    population's to one sample, its mean absolute error at most 0.06, and its interval covers in 85% of 60 runs or more
    (Monte-Carlo error 3 points; simulated at 180: 0.013 at most, 0.043 at most, 90% at least)."""
    truth, trajectories = saturating(np.random.default_rng([10, num]), num, 60)
    found = []
    for run, x in enumerate(trajectories):
        d = analyse(readings(x), resamples=300, seed=run).drift()
        if d.significant:
            found.append(d.times["ci95"])
    assert len(found) >= 58
    late = np.array([f.fraction for f in found]) - truth
    assert abs(late.mean()) <= 0.025 and np.abs(late).mean() <= 0.06
    assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.85


# ------------------------------------------------------------------------------------------------------------- openings


def opening_log(tmp_path, fill, *, panel="values-mini", controls=False):
    p = Panel.load(panel)
    branches = p.branches()
    if controls:
        for variant in ("paraphrase", "null"):
            branches += [b for probe in p.probes for b in probe.branches(variant)]
        branches += [b for probe in Panel.load("controls").probes for b in probe.branches("off-topic")]
    log = DriftLog.create(tmp_path, p, branches, [7] * len(branches), "t")
    base = np.random.default_rng(1).normal(-40, 5, len(branches))
    for step in (0, 4, 8):
        x = base + np.array([fill(step, row) * row["num_bytes"] for row in log.table])
        log.append(step, x.astype(np.float32))
    return log


SIDE = {"support": 1, "neutral": 0, "oppose": -1}


def test_controls(tmp_path):
    """Guards the validity channels: each control's shift is its own, paraphrases are compared probe by probe, controls
    that were not sampled are None, and the questions' numbers do not change with controls beside them."""
    gain = {"question": 0.02, "paraphrase": 0.015, "null": 0.005, "off-topic": 0.0}
    rng = random.Random(0)
    own = {}

    def fill(step, row):
        if row["variant"] != "question" and step == 4:
            return math.nan
        own.setdefault(row["probe"], 1 + rng.gauss(0, 0.5))
        return step / 8 * gain[row["variant"]] * own[row["probe"]] * row["polarity"] * SIDE[row["stance"]]

    log = opening_log(tmp_path / "a", fill, controls=True)
    r = opening_values(log)
    a = analyse(r, controls=control_values(log))
    mean = np.mean([own[p] for p in r.probes])
    assert a.drift().magnitude.mean == pytest.approx(2 * 0.02 * mean, rel=1e-4)
    assert a.validity["null"].mean == pytest.approx(2 * 0.005 * mean, rel=1e-4)
    assert a.validity["off-topic"].mean == pytest.approx(0, abs=1e-7) and a.validity["off-topic"].num_probes == 24
    assert a.validity["paraphrase"]["correlation"] == pytest.approx(1, abs=1e-4)
    assert a.validity["paraphrase"]["shift"].mean == pytest.approx(2 * 0.015 * mean, rel=1e-4)
    assert a.validity["reliability"]["abortion"].paraphrase == pytest.approx(1, abs=1e-3)
    assert a.validity["yes_bias"].num_probes == 48 and a.validity["judges"] is None
    bare = analyse(opening_values(opening_log(tmp_path / "b", lambda s, row: fill(s, row | {"variant": "question"}))))
    assert bare.validity["null"] is None and bare.validity["paraphrase"] is None
    assert bare.drift().magnitude.mean == pytest.approx(a.drift().magnitude.mean, rel=1e-5)
    assert bare.validity["reliability"]["abortion"].paraphrase is None


def test_halves_of_openings(tmp_path):
    """Guards per-probe reliability: every other opening of a stance, and nothing where there is one a stance."""
    log = opening_log(tmp_path, lambda s, row: 0.01 * s * (row["kind"] == "belief") * SIDE[row["stance"]])
    r = opening_values(log)
    first, second = (h[-1] - h[0] for h in r.halves)  # the first opening is the belief, the second a claim
    assert analyse(r).validity["items"] is None  # one half does not vary
    assert first * r.polarity == pytest.approx(0.16, rel=1e-4) and second == pytest.approx(0, abs=1e-6)
    assert (r.channels["yes_bias"][-1] - r.channels["yes_bias"][0]) == pytest.approx(0.08, rel=1e-4)
    assert r.num_bytes == pytest.approx(np.mean([x["num_bytes"] for x in log.table if x["stance"] != "neutral"]))


def test_openings_errors(tmp_path):
    """Guards against a log without samples or without the variant asked for: one line."""
    p = Panel.load("values-mini")
    log = DriftLog.create(tmp_path, p, p.branches(), [7] * 288, "t")
    with pytest.raises(InputError, match="no samples yet"):
        opening_values(log)
    log.append(0, np.zeros(288, np.float32))
    with pytest.raises(InputError, match="has no 'null' probes; it has question"):
        opening_values(log, variant="null")
    a = analyse(opening_values(log))  # one sample: nothing to say, and no crash
    assert math.isnan(a.drift().magnitude.mean) and not a.drift().significant


# -------------------------------------------------------------------------------------------------------------- answers


class Categorical:
    """A model that answers probe i with k of K answers at p(k) ~ exp(tilt * z[i, k]) p0; stances of each are known."""

    def __init__(self, rng, probes, answers=200, towards=0.5):
        self.f = rng.dirichlet([0.4, 0.8, 0.4], size=(probes, answers))  # [P, K, 3]
        graded = self.f[..., 0] - self.f[..., 2]
        self.z = towards * (graded - graded.mean()) / graded.std() + rng.normal(size=graded.shape)
        self.p0 = rng.dirichlet(np.full(answers, 0.5), size=probes)
        self.rng = rng

    def logp(self, tilt):
        p = np.log(np.maximum(self.p0, 1e-300)) + tilt * self.z
        return p - np.log(np.exp(p).sum(1, keepdims=True))

    def mean(self, tilt):
        return (np.exp(self.logp(tilt))[..., None] * self.f).sum(1)  # [P, 3]

    def draw(self, tilt, n):
        cumulative = np.exp(self.logp(tilt)).cumsum(1)
        u = self.rng.random((len(self.p0), n)) * cumulative[:, -1:]
        return np.minimum((u[..., None] > cumulative[:, None]).sum(-1), cumulative.shape[1] - 1)  # [P, n]


@pytest.mark.parametrize("tilt", [0.2, 0.54])
def test_weights_against_exact_expectations(tilt):
    """Guards the weighted readout on a model small enough to sum over: the mean over 300 banks of 30 probes x 16
    answers is v, to 3% of the shift or 4 Monte-Carlo errors, where the plain ratio is off by more; its variance is the
    stated one to 15%, and below that of 16 fresh answers by a factor of 3 and more, up to the gate's edge (0.54)."""
    rng = np.random.default_rng(11)
    m = Categorical(rng, 30)
    before, now = m.logp(0), m.logp(tilt)
    truth = (m.mean(tilt) - m.mean(0))[:, 0]
    banks, variance, plain, fresh, sizes = [], [], [], [], []
    for _ in range(300):
        k = m.draw(0, 16)
        sizes.append(gate(*(np.take_along_axis(x, k, 1).ravel() for x in (before, now))).ess)
        f = np.take_along_axis(m.f, k[..., None], 1)
        log_weights = np.take_along_axis(now - before, k, 1)
        gain = reweighted(log_weights, f, np.full(k.shape, True))[..., 0]
        banks.append(gain.mean(1))
        variance.append(gain.var(1, ddof=1) / 16 * inflation(log_weights, np.full(k.shape, True)))
        w = np.exp(log_weights)
        plain.append((w * f[..., 0]).sum(1) / w.sum(1) - f[..., 0].mean(1))
        new = np.take_along_axis(m.f, m.draw(tilt, 16)[..., None], 1)[..., 0]
        fresh.append(new.mean(1) - np.take_along_axis(m.f, m.draw(0, 16)[..., None], 1)[..., 0].mean(1))
    banks, plain, fresh = np.array(banks), np.array(plain), np.array(fresh)
    error = np.sqrt(banks.var(0).sum() / 300) / 30
    assert abs(banks.mean() - truth.mean()) <= max(0.03 * abs(truth.mean()), 4 * error)
    assert abs(plain.mean() - truth.mean()) > 1.3 * abs(banks.mean() - truth.mean())
    assert np.mean(variance) == pytest.approx(banks.var(0).mean(), rel=0.15)
    assert banks.var(0).mean() * 3 < fresh.var(0).mean()
    assert tilt < 0.5 or np.mean(sizes) == pytest.approx(MIN_ESS, abs=0.02)


def answer_log(tmp_path, texts, samples, steps, panel=None, pool=None):
    """A log with anchors: {step: [P, N] text}, and readings [(step, anchor, [P, samples] logp)]."""
    p = panel or Panel("some", Panel.load("values-mini").probes[:4])
    log = AnswerLog.create(tmp_path, p, "t", samples=samples, max_tokens=8)
    for anchor, of_probe in texts.items():
        log.append(
            [Answer(anchor, q.id, k, [1], True, str(t)) for q, row in zip(p.probes, of_probe, strict=True)
             for k, t in enumerate(row)]
        )  # fmt: skip
    for step, anchor, logp in steps:
        log.append_reading(step, anchor, np.asarray(logp, np.float32).ravel())
    return AnswerLog.open(tmp_path)


def test_answers_against_plain_loops(tmp_path):
    """Guards which answers count where: the pool at anchors, its bank between them, the newest anchor's, polarity, and
    answers without a judgement; v and the shift's variance from loops with one answer left out at a time."""
    rng = np.random.default_rng(12)
    n, pool = 4, 6
    texts = {0: np.zeros((4, pool)), 8: np.zeros((4, n))}
    base, later = rng.normal(-5, 1, (4, n)), rng.normal(-6, 1, (4, n))
    steps = [(0, 0, base), (4, 0, base + 0.2 * rng.normal(size=(4, n))), (8, 8, later), (8, 0, base - 0.1)]
    steps += [(9, 8, later + 0.2 * rng.normal(size=(4, n)))]
    log = answer_log(tmp_path, texts, n, steps)
    stances = rng.dirichlet([1, 1, 1], size=len(log.answers))
    stances[1] = np.nan
    r = answer_values(log, stances, closed=True)
    assert r.steps.tolist() == [0, 4, 8, 9] and r.kinds.tolist() == ["anchor", "weighted", "anchor", "weighted"]
    assert r.gates[0] is None and r.gates[1].kl == pytest.approx(float((base - steps[1][2]).mean()), abs=1e-5)
    weights = {(s, a): np.exp(np.float32(x) - np.float32(b)) for s, a, x in steps for b in [base if a == 0 else later]}

    def f(probe, anchor, sample, stance):
        i = next(
            k for k, a in enumerate(log.answers)
            if (a.probe, a.anchor, a.sample) == (log.panel.probes[probe].id, anchor, sample)
        )  # fmt: skip
        if log.panel.probes[probe].polarity < 0:
            stance = 2 - stance
        return stances[i][stance]

    def shift_of(values, w):
        ratio = sum(a * b for a, b in zip(values, w, strict=True)) / sum(w)
        return ratio - sum(values) / len(values)

    for probe in range(4):
        for stance, name in enumerate(("support", "neutral", "oppose")):
            for s, (step, anchor) in enumerate([(0, 0), (4, 0), (8, 8), (9, 8)]):
                every = [f(probe, anchor, k, stance) for k in range(pool if anchor == 0 else n)]
                judged = [k for k, v in enumerate(every) if not math.isnan(v)]
                value = sum(every[k] for k in judged) / len(judged)
                if step != anchor:
                    bank = [k for k in judged if k < n]
                    w, v = [weights[step, anchor][probe, k] for k in bank], [every[k] for k in bank]
                    m = len(bank)
                    whole = shift_of(v, w)
                    without = [shift_of(v[:j] + v[j + 1 :], w[:j] + w[j + 1 :]) for j in range(m)]
                    pseudo = [m * whole - (m - 1) * x for x in without]
                    value += sum(pseudo) / m
                    effective = sum(w) ** 2 / sum(z * z for z in w)
                    noise = np.var(pseudo, ddof=1) / m * effective / (effective - 1)
                    if anchor == 0:
                        assert r.shift_noise[name][s, probe] == pytest.approx(noise, rel=1e-4)  # log-probs are fp32
                else:
                    noise = np.var([every[k] for k in judged], ddof=1) / len(judged)
                    assert r.noise[name][s, probe] == pytest.approx(noise, rel=1e-9)
                assert r.channels[name][s, probe] == pytest.approx(value, rel=1e-5)
    graded = r.channels["support"] - r.channels["oppose"]
    assert r.channels["graded"] == pytest.approx(graded) and r.channels["yes_bias"] == pytest.approx(
        graded * r.polarity
    )
    base_noise = r.noise["graded"][0]
    assert r.shift_noise["graded"][0].tolist() == [0] * 4 and r.anchors.tolist() == [0, 0, 8, 8]
    assert r.shift_noise["graded"][3] == pytest.approx(r.noise["graded"][3] + base_noise)
    assert (r.anchor_noise["graded"][3] < r.noise["graded"][3]).all()
    assert r.shift_noise["graded"][2] == pytest.approx(r.noise["graded"][2] + base_noise)
    w = answer_values(log, stances, kind="weighted", closed=True)
    assert w.steps.tolist() == [0, 4, 8, 9] and w.kinds[2] == "weighted"
    assert answer_values(log, stances, kind="anchor").steps.tolist() == [0, 8]


def test_unmoved_weights_change_nothing(tmp_path):
    """Guards the control variate: with the same weights v is the anchor's to rounding, its shift without any noise."""
    rng = np.random.default_rng(13)
    logp = rng.normal(-5, 1, (4, 8))
    log = answer_log(tmp_path, {0: np.zeros((4, 8))}, 8, [(0, 0, logp), (3, 0, logp)])
    r = answer_values(log, rng.dirichlet([1, 1, 1], size=32))
    assert r.gates[1].open and r.gates[1].ess == pytest.approx(1) and r.gates[1].kl == 0
    assert r.channels["graded"][1] == pytest.approx(r.channels["graded"][0], abs=1e-12)
    assert r.shift_noise["graded"][1] == pytest.approx(0, abs=1e-20)
    assert r.noise["graded"][1] == pytest.approx(r.noise["graded"][0])


def test_closed_gates_show_nothing(tmp_path):
    """Guards the gate: a reading far away is NaN in every channel and curve, and the last open one is not replaced."""
    rng = np.random.default_rng(14)
    logp = rng.normal(-5, 1, (4, 16))
    far = logp + 3 * rng.normal(size=logp.shape)
    log = answer_log(tmp_path, {0: np.zeros((4, 16))}, 16, [(0, 0, logp), (2, 0, logp), (3, 0, far)])
    stances = rng.dirichlet([1, 1, 1], size=64)
    r = answer_values(log, stances)
    assert not r.gates[2].open and all(np.isnan(x[2]).all() for x in r.channels.values())
    assert np.isfinite(answer_values(log, stances, closed=True).channels["graded"]).all()
    a = analyse(r)
    assert np.isnan(a.levels["all", "graded"].mean[2]) and np.isfinite(a.levels["all", "graded"].noise[:2]).all()
    assert a.levels["all", "support"].low[0] >= 0 and a.levels["all", "support"].high[0] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], r"32 answers, but judgements of shape \(31, 3\)"),
        (lambda x: x * np.nan, "no answer has been judged"),
    ],
)
def test_judgements_that_do_not_fit(tmp_path, change, message):
    """Guards against judgements of other answers, or none: one line with the folder."""
    log = answer_log(tmp_path, {0: np.zeros((4, 8))}, 8, [(0, 0, np.zeros((4, 8)))])
    with pytest.raises(InputError, match=message):
        answer_values(log, change(np.full((32, 3), 1 / 3)))
    with pytest.raises(InputError, match="kind: 'none' is not one of both, anchor, weighted"):
        answer_values(log, np.full((32, 3), 1 / 3), kind="none")


def test_readings_without_their_anchor(tmp_path):
    """Guards a damaged log: a reading of answers that are not there, or without the log-probs they were drawn at."""
    log = answer_log(tmp_path / "a", {0: np.zeros((4, 8))}, 8, [(3, 0, np.zeros((4, 8)))])
    with pytest.raises(InputError, match="the answers of step 0 have no reading at their own step"):
        answer_values(log, np.full((32, 3), 1 / 3))
    log = answer_log(tmp_path / "b", {0: np.zeros((4, 8))}, 8, [(3, 1, np.zeros((4, 8)))])
    with pytest.raises(InputError, match="the reading of step 3 is of answers at step 1, which are not there"):
        answer_values(log, np.full((32, 3), 1 / 3))


def test_weighted_answers_cover_fresh_ones(tmp_path):
    """Guards the whole chain, from logs to agreement: with the gate open, weighted intervals cover the population's
    shift, and the paired differences from fresh answers hold 0, in 90-99% of 40 logs of 48 probes (Monte-Carlo error
    3.4 points); the weighted shifts have at most a third of the fresh ones' variance about the panel's own, and both
    have the variance that `noise` states (mean square of 40, Monte-Carlo error 0.22)."""
    rng = np.random.default_rng(15)
    panel, tilt = Panel.load("values-mini"), 0.35
    inside, paired, error, z = [], [], [], []
    for run in range(40):
        m = Categorical(rng, 48)
        polarity = np.array([p.polarity for p in panel.probes])
        m.f = np.where((polarity > 0)[:, None, None], m.f, m.f[..., ::-1])  # towards the proposition
        old, new = m.draw(0, 16), m.draw(tilt, 16)
        then, now = (np.take_along_axis(m.logp(t), old, 1) for t in (0, tilt))
        at = np.take_along_axis(m.logp(tilt), new, 1)
        log = answer_log(
            tmp_path / str(run), {0: old, 5: new}, 16, [(0, 0, then), (5, 5, at), (5, 0, now)], panel=panel
        )
        stances = np.concatenate([np.take_along_axis(m.f, k[..., None], 1).reshape(-1, 3) for k in (old, new)])
        w, fresh = (answer_values(log, stances, kind=k) for k in ("weighted", "anchor"))
        assert w.gates[1].open
        c = analyse(w, resamples=5).curves["all", "graded"]
        inside.append(c.low[1] <= POPULATION <= c.high[1])
        paired.append(agreement(w, fresh).matches["all"].difference)
        own = ((m.mean(tilt) - m.mean(0)) @ [1, 0, -1] * polarity).mean()
        again = analyse(fresh, resamples=5).curves["all", "graded"]
        error.append([c.mean[1] - own, again.mean[1] - own])
        z.append([error[-1][0] / c.noise[1], error[-1][1] / again.noise[1]])
    assert 0.88 <= np.mean(inside) and 0.88 <= np.mean(paired)
    square = (np.array(error) ** 2).mean(0)
    assert square[0] * 3 < square[1]
    assert (np.array(z) ** 2).mean(0) == pytest.approx(1, abs=0.6)


def _population(tilt=0.35):
    m = Categorical(np.random.default_rng(99), 4000)
    return float(((m.mean(tilt) - m.mean(0)) @ [1, 0, -1]).mean())


POPULATION = _population()


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.8])
def test_pareto_k(k):
    """Guards the tail index: of 30 draws of 20,000 from generalised Pareto distributions of known shape the mean is
    within 0.05 (Monte-Carlo error below 0.02; the fit's own bias is of that size)."""
    rng = np.random.default_rng(16)
    found = [pareto_k(1 + stats.genpareto(k).rvs(20000, random_state=rng)) for _ in range(30)]
    assert np.mean(found) == pytest.approx(k, abs=0.05)


# ----------------------------------------------------------------------------------------------- agreement, reliability


def noisy_pair(rng, probes=600, steps=6, noise=(0.7, 1.5)):
    """Two readouts of the same shifts, each with noise of its own in each half of its items."""
    topics, polarity = strata([probes // 12] * 12)
    of_topic = np.repeat(rng.normal(size=6), probes // 6)
    truth = np.linspace(0, 1, steps)[:, None] * (of_topic + rng.normal(size=probes))
    out = []
    for size in noise:
        halves = [truth + size * math.sqrt(2) * rng.normal(size=truth.shape) for _ in range(2)]
        out.append(
            readings((halves[0] + halves[1]) / 2, topics, polarity, readout="answers", halves=(halves[0], halves[1]))
        )
    return truth, out


def test_agreement_knows_its_noise():
    """Guards the disattenuated correlation: two noisy readings of one truth correlate below 1, their reliabilities say
    by how much, and without it they correlate at 1 (600 probes: to 0.15); paired differences of fair readings hold 0 in
    95% of cells (7 x 5 x 20 of them, dependent within a run: 92-98%)."""
    rng = np.random.default_rng(17)
    truth, (a, b) = noisy_pair(rng)
    found = agreement(a, b)
    m = found.matches["all"].magnitude
    last = (truth - truth[0])[-1]
    expected = [last.var() / (last.var() + 2 * s**2) for s in (0.7, 1.5)]  # a shift has the noise of two readings
    assert (m.reliability_a, m.reliability_b) == pytest.approx(expected, abs=0.1)
    assert analyse(a, resamples=5).validity["items"] == pytest.approx(expected[0], abs=0.1)
    assert m.pearson < 0.8 and m.disattenuated == pytest.approx(1, abs=0.15) and m.num == 600
    assert found.matches["topics"].magnitude.num == 6 and found.matches["topics"].curve.num == 30
    assert list(found.matches)[:3] == ["all", "topics", "t00"]
    held = [
        match.difference
        for _ in range(20)
        for t, match in agreement(*noisy_pair(rng, probes=300)[1]).matches.items()
        if t != "topics"
    ]
    assert 0.92 <= np.mean(held) <= 0.98


def test_agreement_of_a_reading_with_itself_and_its_opposite():
    """Guards signs, units and matching: probes by id in any order, steps by value; other units have no error."""
    rng = np.random.default_rng(18)
    x = np.linspace(0, 1, 5)[:, None] * (1 + 0.5 * rng.normal(size=60)) + 0.05 * rng.normal(size=(5, 60))
    a = readings(x, steps=[0, 2, 4, 6, 8])
    order = rng.permutation(60)
    b = readings(-2 * x[:, order][[0, 2, 4]], polarity=a.polarity[order], steps=[0, 4, 8], readout="answers")
    b.probes[:] = a.probes[order]
    same, other = agreement(a, a).matches["all"], agreement(a, b)
    assert same.magnitude.pearson == pytest.approx(1) and same.sign == 1 and same.error == 0 and same.drift_time == 0
    assert same.coverage == 1 and same.difference == 1
    assert other.steps.tolist() == [0, 4, 8] and other.num_probes == 60
    m = other.matches["all"]
    assert m.magnitude.spearman == pytest.approx(-1) and m.sign == 0 and m.clear_sign == 0 and m.num_clear == 2
    assert math.isnan(m.error) and math.isnan(m.coverage) and math.isnan(m.magnitude.reliability_a)


def test_agreement_errors():
    """Guards what cannot be compared: one line each."""
    a = readings(np.zeros((2, 4)))
    b = readings(np.zeros((2, 4)), steps=[5, 6])
    with pytest.raises(InputError, match="0 steps in common"):
        agreement(a, b)
    with pytest.raises(InputError, match="channel: 'x' is not one of stance, yes_bias"):
        agreement(a, a, "x")
    with pytest.raises(InputError, match="step 1 is no baseline; 0 are shared before the last"):
        agreement(a, a, baseline=1)
    b.probes[:] = ["q0", "q1", "q2", "q3"]
    with pytest.raises(InputError, match="no probe in common"):
        agreement(a, b)


def test_reliability_of_a_curve():
    """Guards the share that is signal: with shift 0.5 and probes' deviation 1 over 30 probes it is 0.25 / (0.25 + 1/30)
    = 0.88 (median of 200 runs; Monte-Carlo error 0.01), 0 or so without drift."""
    rng = np.random.default_rng(19)
    for shift, expected in ((0.5, 0.88), (0.0, 0.0)):
        found = []
        for run in range(200):
            x = np.stack([np.zeros(30), shift + rng.normal(size=30)])
            found.append(analyse(readings(x), resamples=5, seed=run).validity["reliability"]["a"].halves)
        signal = np.median(found)
        assert signal == pytest.approx(expected, abs=0.03)


def test_half_panels():
    """Guards the correlation of half-panels: topics that differ by deviation 1, halves of 12 probes of deviation 2 a
    topic: r = 1 / (1 + 4/12) = 0.75 between halves, 0.86 for the whole (60 topics; to 0.1)."""
    rng = np.random.default_rng(20)
    topics, polarity = strata([12] * 120)
    shift = np.repeat(rng.normal(size=60), 24) + 2 * rng.normal(size=1440)
    h = analyse(readings(np.stack([0 * shift, shift]), topics, polarity), resamples=5).validity["half_panels"]
    assert h.num_topics == 60 and h.correlation == pytest.approx(0.75, abs=0.1) and h.whole > h.correlation


def test_topics_that_are_not_to_be_read():
    """Guards the flags: too few probes, a yes-bias above the shift, paraphrases that do not follow; each says why, and
    a clear topic is none of them."""
    rng = np.random.default_rng(21)
    topics = np.repeat(["clear", "yes", "words", "few"], [30, 30, 30, 12])
    polarity = np.tile([1, -1], 51)
    shift = np.where(topics == "yes", 0.5 + 1.5 * polarity, 1.0) + 0.3 * rng.normal(size=102)
    r = readings(np.stack([0 * shift, shift]), topics, polarity)
    r.channels["yes_bias"] = r.channels["stance"] * polarity
    again = readings(np.stack([0 * shift, shift * (topics != "words") + 0.1 * rng.normal(size=102)]), topics, polarity)
    found = analyse(r, controls={"paraphrase": again}).validity["reliability"]
    assert not found["clear"].unreliable and found["clear"].reason == ""
    assert found["yes"].reason == "questions put the two ways do not agree: the yes-bias is larger than the shift"
    assert found["words"].reason == "paraphrased questions do not show the shift"
    assert found["few"].reason == "12 probes, fewer than 24"
    assert found["clear"].paraphrase > 0.8 > 0.5 > found["words"].paraphrase


def test_judges():
    """Guards judge agreement: by name, on the same probes and steps."""
    rng = np.random.default_rng(22)
    _, (a, b) = noisy_pair(rng, noise=(0.2, 0.2))
    judges = analyse(a, resamples=5, judges={"other": b}).validity["judges"]
    assert set(judges) == {"other"} and judges["other"].matches["all"].magnitude.pearson > 0.8


# -------------------------------------------------------------------------- predictors that never look at the model


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


# ----------------------------------------------------------------------------------------------------------------- size


def test_a_long_run():
    """Guards the size of a real run: 1,000 samples of 550 probes, one part in ten of them at a time, all finite
    (seconds; plain loops would take minutes), the same bits twice, and fit for a file."""
    rng = np.random.default_rng(25)
    topics, polarity = strata([25] * 22)
    x = np.linspace(0, 1, 1000)[:, None] + rng.normal(size=(1000, 550))
    part = np.arange(550) % 10
    x[1:-1][part != np.arange(1, 999)[:, None] % 10] = np.nan
    a, b = (analyse(readings(x, topics, polarity), smoothing="local-linear") for _ in range(2))
    for topic in ["all", *a.topics]:
        c, d = a.curves[topic, "stance"], b.curves[topic, "stance"]
        assert np.isfinite(c.mean).all() and (c.low <= c.high).all() and np.array_equal(c.low, d.low)
        assert a.drift(topic) == b.drift(topic) and a.drift(topic).significant
    json.dumps([vars(t) for d in a.drifts.values() for t in d.times.values()])
