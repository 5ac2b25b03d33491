"""Judged answers by probe: at anchors and weighted between them, from loops and against known truth in simulations.

Tolerances of simulations are the Monte-Carlo error of the stated number of draws.
"""

import math

import numpy as np
import pytest
from helpers.values import Categorical, answer_log

from vdengine.drift.agreement import agreement
from vdengine.drift.analysis import analyse
from vdengine.drift.answer_values import answer_values, inflation, reweighted
from vdengine.drift.importance import MIN_ESS, gate
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


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


@pytest.mark.slow
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
