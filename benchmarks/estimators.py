"""The estimators of drift on simulations with known truth: `python benchmarks/estimators.py` (three minutes).

The simulations are those of tests/drift, where bounds on the rates are asserted; this script prints the rates.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.values import (  # noqa: E402
    DRAWS,
    POLARITIES,
    Categorical,
    crossed_pair,
    probe_values,
    saturating,
    strata,
)

from vdengine.drift.analysis import analyse  # noqa: E402
from vdengine.drift.answer_values import reweighted  # noqa: E402
from vdengine.drift.correlation import correlate  # noqa: E402
from vdengine.drift.importance import gate  # noqa: E402
from vdengine.drift.intervals import group_of, holm  # noqa: E402
from vdengine.drift.seeds import recipe_shifts  # noqa: E402


def coverage(draws: int = 8000) -> None:
    """The coverage of 95% intervals, by number of probes and distribution."""
    for num, sizes in POLARITIES.items():
        topics, polarity = strata(sizes)
        truth, rates = 0.3 + 0.5 * polarity, []  # [probes]
        for kind, draw in DRAWS.items():
            rng = np.random.default_rng([num, len(kind), 1])
            x = truth + np.where(polarity > 0, 1.0, 1.5) * draw(rng, (draws if num < 500 else 2000, num))
            low, high, _ = group_of(probe_values(x, topics, polarity), x, "all").inference
            rates.append(f"{kind} {((low <= truth.mean()) & (truth.mean() <= high)).mean():.1%}")
        print(f"95% intervals cover, {num} probes: {', '.join(rates)}")


def false_alarms(draws: int = 5000, rounds: int = 6) -> None:
    """The rates of false alarms where nothing drifts: of any topic, with Holm's correction, and of the whole panel."""
    topics, polarity = strata([25] * 22)
    for kind, draw in DRAWS.items():
        any_topic, panel = [], []
        for i in range(rounds):
            x = draw(np.random.default_rng([4, len(kind), i]), (draws, 550)) - 0.7 * polarity
            r = probe_values(x, topics, polarity)
            p = np.array([group_of(r, x, t).inference[2] for t in r.topic_names])
            any_topic += [(holm(p[:, k]) < 0.05).any() for k in range(draws)]
            panel += list(group_of(r, x, "all").inference[2] < 0.05)
        error = np.sqrt(0.05 * 0.95 / len(panel))
        print(
            f"false alarms, {kind}: any of 11 topics {np.mean(any_topic):.2%}, the whole panel {np.mean(panel):.2%} "
            f"(Monte-Carlo error {error:.2%})"
        )


def drift_times(runs: int = 60) -> None:
    """Drift times of one curve, by number of probes and noise: its own time is the same for all."""
    for noise in (0.1, 0.3):
        for num in POLARITIES:
            truth, trajectories = saturating(np.random.default_rng([12, num]), num, runs, noise)
            drifts = [analyse(probe_values(x), resamples=100, seed=i).drift() for i, x in enumerate(trajectories)]
            found = [d.times for d in drifts if d.significant]
            # A sample comes half of the spacing, 0.0125, after the crossing in the mean.
            errors = np.array([times["frac95"].fraction - 0.0125 - truth for times in found])
            inside = np.mean([times["frac95"].low <= truth <= times["frac95"].high for times in found])
            ci95 = np.mean([times["ci95"].fraction for times in found])
            print(
                f"drift time frac95, {num} probes, noise {1.4 * noise / num**0.5:.1%} of the extreme: mean error "
                f"{errors.mean():+.3f}, mean absolute {np.abs(errors).mean():.3f} of the stage, interval covers "
                f"{inside:.0%} (ci95 of the same curve: {ci95:.2f}; {len(found)} of {runs} runs have one)"
            )


def correlations(draws: int = 1500) -> None:
    """The coverage of intervals of r over runs and topics: of r, of r without noise and of partial r."""
    runs, topics = np.arange(26)[:, None], np.arange(4)
    for r in (0.0, 0.9):
        for shares in ((0.0, 0.0), (0.25, 0.1), (0.1, 0.25)):
            rng, inside = np.random.default_rng(5), np.zeros(3)
            for _ in range(draws):
                a, b = crossed_pair(rng, (26, 4), r, shares, noise=0.7)
                dose = rng.choice([-1, -0.5, 0, 0.5, 1], (26, 4))
                found = correlate(a[:1], b, clusters=[runs, topics])
                given = correlate(a[:1] + dose, b[:1] + dose, given=[dose], clusters=[runs, topics])
                observed = r / np.sqrt(1 + 0.7**2 / 2)
                for k, ((low, high), truth) in enumerate(
                    ((found.interval, observed), (found.disattenuated_interval, r), (given.partial_interval, observed))
                ):
                    inside[k] += low <= truth <= high
            print(
                f"26 runs x 4 topics, r {r}, shares of runs {shares[0]}, of topics {shares[1]}: intervals of r, of r "
                "without noise, of partial r cover " + ", ".join(f"{x:.1%}" for x in inside / draws)
            )


def seeds(draws: int = 3000) -> None:
    """The coverage of intervals about a recipe, by number of seeds and how far they differ, 48 probes."""
    for count in (3, 5):
        rates = []
        for deviation in (0.0, 0.15, 0.3, 0.6, 1.2):
            rng, inside = np.random.default_rng([count, int(100 * deviation)]), 0
            for _ in range(draws):
                own = 2 * rng.normal(size=48)
                x = deviation * rng.normal(size=(count, 1)) + own + rng.normal(size=(count, 48))
                found = recipe_shifts([probe_values(np.stack([each * 0, each])) for each in x])["all"]
                inside += found.low <= 0 <= found.high
            rates.append(f"{deviation:g}: {inside / draws:.1%}")
        print(f"intervals about a recipe cover, {count} seeds, by their deviation (probes' 2): {', '.join(rates)}")


def weights(banks: int = 300) -> None:
    """Bias and variance of weighted answers, against fresh ones and against the plain ratio estimator."""
    for tilt in (0.2, 0.35, 0.5, 0.55):
        m = Categorical(np.random.default_rng(11), 30)
        truth = (m.mean(tilt) - m.mean(0))[:, 0].mean()
        ess, weighted, plain, fresh = [], [], [], []  # the last three: shifts [probes] of each bank
        for _ in range(banks):
            k = m.draw(0, 16)  # [probes, 16], the answers of a bank
            f = np.take_along_axis(m.f, k[..., None], 1)
            logp_then, logp_now = (np.take_along_axis(m.logp(s), k, 1) for s in (0, tilt))
            ess.append(gate(logp_then.ravel(), logp_now.ravel()).ess)
            weighted.append(reweighted(logp_now - logp_then, f, np.full(k.shape, True))[..., 0].mean(1))
            w = np.exp(logp_now - logp_then)
            plain.append((w * f[..., 0]).sum(1) / w.sum(1) - f[..., 0].mean(1))
            ends = [np.take_along_axis(m.f, m.draw(s, 16)[..., None], 1)[..., 0].mean(1) for s in (tilt, 0)]
            fresh.append(ends[0] - ends[1])
        ratio = np.array(fresh).var(0).mean() / np.array(weighted).var(0).mean()
        bias = [f"{np.mean(x) / truth - 1:+.1%}" for x in (weighted, plain)]
        print(
            f"weighted answers, 16 a probe, effective size {np.mean(ess):.2f}: "
            f"variance of fresh / weighted {ratio:.1f}; bias {bias[0]} of the shift (plain ratio {bias[1]}; "
            f"Monte-Carlo error {np.sqrt(np.array(weighted).var(0).sum() / banks) / 30 / abs(truth):.1%})"
        )


def long_run() -> None:
    """The time to analyse a long run."""
    rng = np.random.default_rng(0)
    topics, polarity = strata([25] * 22)
    x = np.cumsum(rng.normal(size=(1000, 550)), 0) * 0.01
    start = time.perf_counter()
    analyse(probe_values(x, topics, polarity))
    print(f"1,000 samples of 550 probes, two channels, analysed in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    for part in (coverage, false_alarms, drift_times, correlations, seeds, weights, long_run):
        part()
