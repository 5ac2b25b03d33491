"""The estimators of drift on simulated trajectories with known truth: `python benchmarks/estimators.py` (a minute).

The simulations are those of tests/drift, where bounds on the rates are asserted; this script prints the rates.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from helpers.values import DRAWS, POLARITIES, Categorical, probe_values, saturating, strata  # noqa: E402

from vdengine.drift.analysis import analyse  # noqa: E402
from vdengine.drift.answer_values import reweighted  # noqa: E402
from vdengine.drift.importance import gate  # noqa: E402
from vdengine.drift.intervals import group_of, holm  # noqa: E402


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
    """The error of drift times, by number of probes."""
    for num in POLARITIES:
        truth, trajectories = saturating(np.random.default_rng([12, num]), num, runs)
        drifts = [analyse(probe_values(x), resamples=20, seed=i).drift() for i, x in enumerate(trajectories)]
        errors = [d.times["ci95"].fraction - truth for d in drifts if d.significant]
        text = f"mean error {np.mean(errors):+.3f}, mean absolute {np.mean(np.abs(errors)):.3f} of the stage"
        print(f"drift time ci95, {num} probes: {text} ({len(errors)} of {runs} runs have one)")


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
    for part in (coverage, false_alarms, drift_times, weights, long_run):
        part()
