"""The figures of "Corrections" in docs/measurements.md: `python benchmarks/corrections.py` (two minutes).

Each error in a simulation with known truth: as the published figures had it, and as the code has it now. Figures that
follow from published tables are computed from their rows. Nothing here trains a model or judges its answers.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import rule_judge  # noqa: E402
from helpers.values import (  # noqa: E402
    POLARITIES,
    Categorical,
    crossed_pair,
    probe_values,
    saturating,
    still_log,
    still_stances,
)

from vdengine.drift.agreement import agreement  # noqa: E402
from vdengine.drift.analysis import analyse  # noqa: E402
from vdengine.drift.answer_leads import split_lead  # noqa: E402
from vdengine.drift.answer_values import answer_values  # noqa: E402
from vdengine.drift.baselines import scaled as left_out  # noqa: E402
from vdengine.drift.correlation import correlate, pearson, spearman  # noqa: E402
from vdengine.drift.importance import gate  # noqa: E402
from vdengine.drift.intervals import group_of  # noqa: E402
from vdengine.drift.reweighting import reweighted  # noqa: E402
from vdengine.drift.seeds import recipe_shifts  # noqa: E402
from vdengine.judges.rules import stance_of  # noqa: E402
from vdengine.panels.panel import STANCES, Panel  # noqa: E402

# From docs/measurements.md, by condition: judged stance, openings, openings after no question, training direction.
JUDGED = np.array([0.00, -0.01, 0.00, 0.04, -0.05, 0.00, -0.02, -0.01, 0.11, -0.03])
OPENINGS = np.array([1.9, -2.1, 0.2, 0.0, -1.9, 0.3, -0.4, 0.0, 33.0, -35.6])
NULL = np.array([1.5, -2.4, 0.7, 0.9, -0.5, 0.4, -0.3, 0.0, 31.0, -30.7])
DIRECTION = np.array([1.0, -1.0, 1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0, -1.0])
RELIABILITY = {"run x step": 0.68, "run x step x topic": 0.48}  # of the judged truth
# Known answers, with 48 probes: shift, low and high of three seeds, for the side, for the other side, with shuffled
# labels.
KNOWN = np.array(
    [[[1.90, 0.73, 3.03], [2.40, 1.20, 3.61], [2.05, 1.09, 2.98]],
     [[-1.45, -2.61, -0.33], [-2.58, -3.79, -1.35], [-2.43, -3.62, -1.26]],
     [[0.03, -0.53, 0.60], [-0.12, -0.72, 0.51], [0.42, -0.26, 1.15]]]
)  # fmt: skip
Row = tuple[str, str]  # what a figure is, and the figure


def shared_answers(studies: int = 40, runs: int = 30) -> Iterator[Row]:
    """1. Weighted against fresh answers where no stance moves: both since step 0, and since the weighted ones' anchor.

    Anchors and banks are those of `benchmarks/readouts.py`; the variance of fresh answers is 14 times that of weighted
    ones, as in its median run with an open gate. Monte-Carlo error of the mean r: 0.02.
    """
    rng, logs = np.random.default_rng(1), []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            log = still_log(Path(folder), rng)
            readings = log.readings()
        log.readings = lambda readings=readings: readings  # type: ignore[method-assign, misc]
        logs.append(log)
    r_since_start, r_since_anchor, r_of_half, signs, r_of_probes, own_signs = [], [], [], [], [], []
    for study in range(studies):
        since_start, since_anchor = [], []  # mean shifts [runs, 3 steps, 2]: weighted, fresh
        for log in logs:
            stances = still_stances(rng, log)
            w, f = (answer_values(log, stances, kind=k, closed=True) for k in ("weighted", "anchor"))
            x, y = (r.channels["graded"] for r in (w, f))  # [4 steps, probes] each
            assert w.anchor_shift is not None
            since_start.append(np.stack([(x[1:] - x[0]).mean(1), (y[1:] - y[0]).mean(1)], 1))
            since_anchor.append(np.stack([w.anchor_shift["graded"][1:].mean(1), (y[1:] - y[:-1]).mean(1)], 1))
            if study < 2:
                r = agreement(w, f).matches["all"].shift.pearson
                r_of_probes.append((pearson((x - x[0])[1:].ravel(), (y - y[0])[1:].ravel()), r))
        z, own = np.array(since_start), np.array(since_anchor)
        r_since_start.append([pearson(*c.reshape(-1, 2).T) for c in (z[:, 1], z[:, 2], z)])
        r_of_half += [pearson(*z[half::2, :2].reshape(-1, 2).T) for half in (0, 1)]
        r_since_anchor.append(pearson(*own.reshape(-1, 2).T))
        signs.append((np.sign(z[..., 0]) == np.sign(z[..., 1])).mean())
        own_signs.append((np.sign(own[..., 0]) == np.sign(own[..., 1])).mean())
    since_0, label = np.array(r_since_start), "no drift, r of weighted and fresh"
    yield f"{label} since step 0, at step 4 / at step 32", f"{since_0[:, 0].mean():.2f} / {since_0[:, 1].mean():.2f}"
    yield f"{label} since step 0, steps 2, 4 and 32 of 30 runs (5-95% of studies)", ranged(since_0[:, 2])
    yield f"{label} since step 0, steps 2 and 4 of 15 runs, 30 points", ranged(np.array(r_of_half))
    yield f"{label} since the bank's own anchor, steps 2, 4 and 32 of 30 runs", ranged(np.array(r_since_anchor))
    yield (
        "no drift, sign agreement since step 0 / since the bank's own anchor",
        f"{np.mean(signs):.0%} / {np.mean(own_signs):.0%}",
    )
    yield (
        "no drift, probe by probe within a run, r since step 0 / since the bank's own anchor, by `agreement`",
        "{:.2f} / {:.2f}".format(*np.nanmean(np.array(r_of_probes), 0)),
    )


def ranged(x: np.ndarray) -> str:
    """Mean and 5-95% range."""
    low, high = np.quantile(x, [0.05, 0.95])
    return f"{x.mean():.2f} ({low:.2f} to {high:.2f})"


def scaled() -> Iterator[Row]:
    """2. Openings, with and without a factor fitted to the other conditions, against the ten published means."""
    fitted = np.concatenate(left_out(OPENINGS[:, None], JUDGED[:, None]))
    factor = fitted[OPENINGS != 0] / OPENINGS[OPENINGS != 0]
    yield (
        "factor from openings to stance, left out: any of the first eight / asked, support / asked, oppose",
        "{:.5f} / {:.5f} / {:.5f}".format(np.median(factor[:-2]), *factor[-2:]),
    )
    yield "r of ten condition means: openings, scaled so", f"{pearson(fitted, JUDGED):.2f}"
    for name, x in (("openings", OPENINGS), ("openings after no question", NULL), ("direction", DIRECTION)):
        found = correlate(x[None], JUDGED[None], clusters=[np.arange(len(JUDGED))])
        low, high = found.interval
        yield (
            f"r [95% over conditions] (rank r) of ten condition means: {name}",
            f"{found.pearson:.2f} [{low:.2f}, {high:.2f}] ({spearman(x, JUDGED):.2f})",
        )
    r_without_asked = [pearson(x[:8], JUDGED[:8]) for x in (OPENINGS, NULL, DIRECTION)]
    yield (
        "r of the eight without asked runs: openings / after no question / direction",
        "{:.2f} / {:.2f} / {:.2f}".format(*r_without_asked),
    )


def intervals_of_r(draws: int = 500) -> Iterator[Row]:
    """3. The coverage of 95% intervals of r where it is 0: ten conditions x three runs x two steps, by a bootstrap over
    runs or conditions, and jackknifed over conditions; and of 26 runs x 4 topics.

    The share of a condition is the part of the truth's variance that its seeds have in common. The predictor is the
    training direction, the same for all seeds of a condition, or the published openings. Monte-Carlo error: 1 to 2
    points.
    """
    growth, conditions = np.array([0.3, 1.0]), np.arange(10)[:, None, None]
    for name, predictor in (("direction", DIRECTION), ("openings", OPENINGS)):
        for share in (0.5, 0.95):
            rng, covered = np.random.default_rng(3), np.zeros(3)
            p = np.broadcast_to(predictor[:, None, None] * growth, (10, 3, 2))  # [conditions, seeds, steps]
            for _ in range(draws):
                condition, seed = rng.normal(size=(10, 1, 1)), rng.normal(size=(10, 3, 1))
                t = (math.sqrt(share) * condition + math.sqrt(1 - share) * seed) * growth
                for i, shape in enumerate(((30, 2), (10, 6))):
                    covered[i] += holds_0(bootstrapped(t.reshape(shape), p.reshape(shape), rng))
                covered[2] += holds_0(correlate(t[None], p[None], clusters=[conditions]).interval)
            yield (
                "r = 0: 95% intervals hold it, runs drawn anew / conditions drawn anew / conditions jackknifed; "
                f"{name}, a condition's share {share:.0%}",
                "{:.0%} / {:.0%} / {:.0%}".format(*covered / draws),
            )
    for r in (0.0, 0.9):
        for shares in ((0.0, 0.0), (0.25, 0.1), (0.1, 0.25)):
            rng, held = np.random.default_rng(4), np.zeros(3)
            for _ in range(draws):
                a, b = crossed_pair(rng, (26, 4), r, shares, noise=0.7)
                runs, topics = np.arange(26)[:, None], np.arange(4)
                found = correlate(a[:1], b, clusters=[runs, topics])
                observed = r / math.sqrt(1 + 0.7**2 / 2)
                one = correlate(a[:1], b, clusters=[np.arange(104).reshape(26, 4)])
                for i, ((low, high), truth) in enumerate(
                    ((one.interval, observed), (found.interval, observed), (found.disattenuated_interval, r))
                ):
                    held[i] += low <= truth <= high
            yield (
                f"26 runs x 4 topics, r {r}, shares of runs {shares[0]}, of topics {shares[1]}: 95% intervals cover, "
                "of r over cells / of r over runs and topics / of r without noise over both",
                "{:.0%} / {:.0%} / {:.0%}".format(*held / draws),
            )


def bootstrapped(truth: np.ndarray, predicted: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of r by a bootstrap of the rows: truth and predicted [rows, cells]."""
    drawn = rng.integers(0, len(truth), (200, len(truth)))
    r = [pearson(truth[rows].ravel(), predicted[rows].ravel()) for rows in drawn]
    low, high = np.nanquantile(r, [0.025, 0.975])
    return float(low), float(high)


def holds_0(interval: tuple[float, float]) -> bool:
    """Whether an interval holds 0."""
    return interval[0] <= 0 <= interval[1]


def gates(banks: int = 800) -> Iterator[Row]:
    """8. What a gate shows of a shift, where it looks at the answers that it lets through, and at the other half."""
    model = Categorical(np.random.default_rng(11), 24)
    place = np.arange(24 * 16).reshape(24, 16) % 2
    for tilt in (0.4, 0.5, 0.55, 0.6):
        truth = float(((model.mean(tilt) - model.mean(0)) @ [1, 0, -1]).mean())
        same: list[float] = []
        other: list[float] = []
        for _ in range(banks):
            answers = model.draw(0, 16)
            f = np.take_along_axis(model.f, answers[..., None], 1) @ np.array([[1.0], [0.0], [-1.0]])
            then, now = (np.take_along_axis(model.logp(t), answers, 1) for t in (0, tilt))
            halves = gate(then.ravel(), now.ravel()).halves
            for shown, shifts in ((halves, same), (halves[::-1], other)):
                if any(shown):
                    used = np.array(shown)[place]
                    gain = np.where(used, reweighted(now - then, f, used)[..., 0], 0.0)
                    shifts.append((gain.sum(1) / used.sum(1)).mean())
        yield (
            f"shifts shown are off, where either gate opens in {len(same) / banks:.0%} of draws: it looks at the half "
            "that it lets through / at the other half",
            " / ".join(f"{np.mean(x) / truth - 1:+.1%}" for x in (same, other)),
        )


def ceiling() -> Iterator[Row]:
    """4. The r of a readout without error, against a truth with this reliability."""
    for name, x in RELIABILITY.items():
        yield f"largest r with the judged truth, {name}", f"{math.sqrt(x):.2f}"


def times(runs: int = 100) -> Iterator[Row]:
    """5. The drift time of one curve, 1 - exp(-t / 0.2), for panels of different sizes; `frac95` of samples is half a
    sample, 0.0125, after the curve's own."""
    for num in POLARITIES:  # 24, 48, 550
        truth, trajectories = saturating(np.random.default_rng([12, num]), num, runs)
        drifts = [analyse(probe_values(x), resamples=100, seed=i).drift() for i, x in enumerate(trajectories)]
        found = [d.times for d in drifts if d.significant]
        means = [np.mean([times[rule].fraction for times in found]) for rule in ("ci95", "frac95")]
        inside = np.mean([times["frac95"].low <= truth <= times["frac95"].high for times in found])
        yield (
            f"one curve, {num} probes: drift time `ci95` / `frac95` / the curve's own; the interval of `frac95` covers",
            "{:.2f} / {:.2f} / {:.2f}; {:.0%}".format(*means, truth, inside),
        )


def seeds(draws: int = 4000) -> Iterator[Row]:
    """6. What an interval over probes covers, if seeds differ as in the table of known answers."""
    from scipy import stats

    shift, low, high = np.moveaxis(KNOWN, -1, 0)  # [3 conditions, 3 seeds] each
    error = ((high - low) / 2 / stats.t(46).ppf(0.975)).mean()  # standard error over probes
    variance, freedom = shift.var(1, ddof=1).mean(), shift.size - len(shift)  # over seeds, pooled; degrees of freedom
    ends = np.sqrt(freedom * variance / stats.chi2(freedom).ppf([0.975, 0.025]))
    yield (
        "known answers: deviation of seeds [95%] / standard error over 48 probes, nats per 100 bytes",
        "{:.2f} [{:.2f}, {:.2f}] / {:.2f}".format(math.sqrt(variance), *ends, error),
    )
    half = stats.t(freedom).ppf(0.975) * math.sqrt(variance / shift.shape[1])
    yield (
        "known answers, over three seeds [95%, deviation of seeds pooled]: the side / the other / shuffled",
        " / ".join(f"{m:+.2f} [{m - half:+.2f}, {m + half:+.2f}]" for m in shift.mean(1)),
    )
    for num in (48, 550):
        rng, r = np.random.default_rng([8, num]), probe_values(np.zeros((2, num)))
        seed_mean = math.sqrt(variance) * rng.normal(size=(draws, 1))
        x = seed_mean + error * math.sqrt(48) * rng.normal(size=(draws, num))
        low, high, _ = group_of(replace(r, channels={}), x, "all").inference
        coverage = [((low <= t) & (t <= high)).mean() for t in (seed_mean[:, 0], 0.0)]
        yield f"{num} probes: 95% intervals cover these weights / the recipe", "{:.0%} / {:.0%}".format(*coverage)
    for count in (3, 5):
        for ratio in (0.5, 1.0, 4.0):
            rng, inside = np.random.default_rng([9, count]), []
            for _ in range(1000):
                runs = 2 / math.sqrt(48) * ratio * rng.normal(size=(count, 1)) + 2 * rng.normal(size=48)
                runs = runs + rng.normal(size=(count, 48))
                found = recipe_shifts([probe_values(np.stack([x * 0, x])) for x in runs])["all"]
                inside.append(found.low <= 0 <= found.high)
            yield (
                f"{count} seeds, 48 probes, deviation of seeds {ratio:g} times the standard error over probes: 95% "
                "intervals over seeds and probes cover the recipe",
                f"{np.mean(inside):.0%}",
            )


def leads() -> Iterator[Row]:
    """7. The rule judge on the panel's openings after a yes or no of the other side, and on labelled answers that begin
    with one or do not."""
    panel = Panel.load("values-mini")
    with_lead, alone = [], []  # (judged stance, stance of the lead); whether the argument alone takes a side
    for probe in panel.probes:
        for side, lead, lead_stance in (("support", "No. ", 2), ("oppose", "Yes. ", 0)):
            for opening in probe.openings[side]:
                with_lead.append((int(np.argmax(stance_of(probe, lead + opening.text))), lead_stance))
                alone.append(int(np.argmax(stance_of(probe, opening.text))) != 1)
    as_lead, as_argument = (np.mean([k == (s if lead else 2 - s) for k, s in with_lead]) for lead in (True, False))
    yield (
        f"rule judge, yes or no before the other side's argument ({len(with_lead)}): with the lead / the argument",
        f"{as_lead:.0%} / {as_argument:.0%}",
    )
    yield "rule judge, the arguments alone: takes a side", f"{np.mean(alone):.0%}"
    probes = {p.id: p for p in Panel.load("values").probes}
    agrees: dict[bool, list[bool]] = {True: [], False: []}  # by whether the answer begins with a yes or no
    for row in rule_judge.rows():
        if row.get("label", "neutral") != "neutral":
            judged = STANCES[int(np.argmax(stance_of(probes[row["probe"]], row["answer"])))]
            agrees[split_lead(row["answer"]).side != 0].append(judged == row["label"])
    yield (
        "labelled answers that take a side, judged so: of those with a yes or no first / without",
        " / ".join(f"{sum(x)} of {len(x)}" for x in agrees.values()),
    )


def main() -> int:
    """Print the table, row by row."""
    parts = (shared_answers, scaled, intervals_of_r, ceiling, times, seeds, leads, gates)
    print("| correction | what | figure |\n| --- | --- | --- |")
    for number, part in enumerate(parts, start=1):
        for what, figure in part():
            print(f"| {number} | {what} | {figure} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
