"""The figures of "Corrections" in docs/measurements.md: `python benchmarks/corrections.py` (a minute or two).

Simulations with known truth are evaluated by the code of the published figures (`drift/answer_values.py`,
`drift/agreement.py`, `drift/analysis.py`, `benchmarks/readout_tables.py`). Figures that follow from published tables
are computed from their rows. Nothing here trains a model or judges its answers.
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
from helpers.values import POLARITIES, probe_values, saturating  # noqa: E402
from readout_tables import over_runs, table  # noqa: E402

from vdengine.drift.agreement import agreement  # noqa: E402
from vdengine.drift.analysis import analyse  # noqa: E402
from vdengine.drift.answer_log import Answer, AnswerLog  # noqa: E402
from vdengine.drift.answer_values import answer_values  # noqa: E402
from vdengine.drift.correlation import pearson, spearman  # noqa: E402
from vdengine.drift.intervals import group_of  # noqa: E402
from vdengine.drift.openings import stratified_order  # noqa: E402
from vdengine.judges.rules import _lead, stance_of  # noqa: E402
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


def shared_answers(studies: int = 60, runs: int = 30, samples: int = 16, drift: float = 0.365) -> Iterator[Row]:
    """1. Weighted against fresh answers, both since step 0, where no stance moves.

    An answer has a stance, drawn with the shares of its probe, and a feature that is independent of it. Between anchors
    only the feature moves, so weights change and stances do not. Anchors and banks are those of
    `benchmarks/readouts.py`. With this drift of the feature (effective size 0.88) the variance of fresh answers is 14
    times that of weighted ones, as in its median run with an open gate. Monte-Carlo error of the mean r: 0.02.
    """
    panel, rng = Panel.load("values-mini"), np.random.default_rng(1)
    panel = Panel("some", tuple(panel.probes[i] for i in sorted(stratified_order(panel)[:24])))
    logs = [_bank_log(panel, rng, drift, samples) for _ in range(runs)]
    r_since_start, r_since_anchor, r_of_half, signs, r_of_probes = [], [], [], [], []
    for study in range(studies):
        since_start, since_anchor = [], []  # mean shifts [runs, 3 steps, 2]: weighted, fresh
        for log in logs:
            share = rng.dirichlet([1.0, 3.0, 1.0], 24)  # [probes, 3]
            above = rng.random((len(ANCHORS), 24, samples, 1)) > share.cumsum(1)[None, :, None, :2]
            stances = np.eye(3)[above.sum(-1).ravel()]  # [answers, 3], one-hot
            w, f = (answer_values(log, stances, kind=k, closed=True) for k in ("weighted", "anchor"))
            x, y = (r.channels["graded"] for r in (w, f))  # [4 steps, probes] each
            since_start.append(np.stack([(x[1:] - x[0]).mean(1), (y[1:] - y[0]).mean(1)], 1))
            since_anchor.append(np.stack([(x[1:] - y[:-1]).mean(1), (y[1:] - y[:-1]).mean(1)], 1))
            if study < 2:
                match = agreement(w, f).matches["all"].shift
                r_of_probes.append((match.pearson, match.disattenuated))
        z = np.array(since_start)
        r_since_start.append([pearson(*c.reshape(-1, 2).T) for c in (z[:, 1], z[:, 2], z)])
        r_of_half += [pearson(*z[half::2, :2].reshape(-1, 2).T) for half in (0, 1)]
        r_since_anchor.append(pearson(*np.array(since_anchor).reshape(-1, 2).T))
        signs.append((np.sign(z[..., 0]) == np.sign(z[..., 1])).mean())
    r, label = np.array(r_since_start), "no drift, r of weighted and fresh"
    yield f"{label} since step 0, at step 4 / at step 32", f"{r[:, 0].mean():.2f} / {r[:, 1].mean():.2f}"
    yield f"{label} since step 0, steps 2, 4 and 32 of 30 runs (5-95% of studies)", ranged(r[:, 2])
    yield f"{label} since step 0, steps 2 and 4 of 15 runs, 30 points", ranged(np.array(r_of_half))
    yield f"{label} since the bank's own anchor, steps 2, 4 and 32 of 30 runs", ranged(np.array(r_since_anchor))
    yield "no drift, sign agreement since step 0", f"{np.mean(signs):.0%}"
    yield (
        "no drift, probe by probe within a run, by `agreement`: r / disattenuated, median",
        "{:.2f} / {:.1f}".format(*np.nanmedian(np.array(r_of_probes), 0)),
    )


ANCHORS = (0, 2, 4, 32)  # steps
READINGS = ((2, 0), (4, 2), (32, 4))  # step, and the anchor whose bank is read


def _bank_log(panel: Panel, rng: np.random.Generator, drift: float, samples: int) -> AnswerLog:
    """A log of answers without text, and of the log-probs of their banks, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        log = AnswerLog.create(folder, panel, "t", samples=samples, max_tokens=16)
        size = len(panel.probes) * samples
        for anchor in ANCHORS:
            log.append([Answer(anchor, p.id, k, [1], True, "") for p in panel.probes for k in range(samples)])
            log.append_reading(anchor, anchor, np.zeros(size, np.float32))
        for step, anchor in READINGS:
            log.append_reading(step, anchor, (drift * rng.normal(size=size) - drift**2 / 2).astype(np.float32))
        readings = log.readings()
    log.readings = lambda: readings  # type: ignore[method-assign]
    return log


def ranged(x: np.ndarray) -> str:
    """Mean and 5-95% range."""
    low, high = np.quantile(x, [0.05, 0.95])
    return f"{x.mean():.2f} ({low:.2f} to {high:.2f})"


def scaled() -> Iterator[Row]:
    """2. Openings, with and without a factor fitted to the other conditions, against the ten published means."""
    others = ~np.eye(len(JUDGED), dtype=bool)
    factor = np.array([(OPENINGS[o] @ JUDGED[o]) / (OPENINGS[o] @ OPENINGS[o]) for o in others])
    yield (
        "factor from openings to stance, left out: any of the first eight / asked, support / asked, oppose",
        "{:.5f} / {:.5f} / {:.5f}".format(np.median(factor[:8]), *factor[8:]),
    )
    yield "r of ten condition means: openings, scaled so", f"{pearson(factor * OPENINGS, JUDGED):.2f}"
    for name, x in (("openings", OPENINGS), ("openings after no question", NULL), ("direction", DIRECTION)):
        yield f"r (rank r) of ten condition means: {name}", f"{pearson(x, JUDGED):.2f} ({spearman(x, JUDGED):.2f})"
    r_without_asked = [pearson(x[:8], JUDGED[:8]) for x in (OPENINGS, NULL, DIRECTION)]
    yield (
        "r of the eight without asked runs: openings / after no question / direction",
        "{:.2f} / {:.2f} / {:.2f}".format(*r_without_asked),
    )


def intervals_of_r(draws: int = 200) -> Iterator[Row]:
    """3. The coverage of 95% intervals of r where it is 0: ten conditions x three runs x two steps, with a bootstrap
    over runs, or over conditions.

    The share of a condition is the part of the truth's variance that its seeds have in common. The predictor is the
    training direction, the same for all seeds of a condition, or the published openings. Monte-Carlo error: 2 to 4
    points.
    """
    growth = np.array([0.3, 1.0])
    for name, predictor in (("direction", DIRECTION), ("openings", OPENINGS)):
        for share in (0.5, 0.95):
            rng, covered = np.random.default_rng(3), np.zeros(2)
            p = np.broadcast_to(predictor[:, None, None] * growth, (10, 3, 2))  # [conditions, seeds, steps]
            for _ in range(draws):
                condition, seed = rng.normal(size=(10, 1, 1)), rng.normal(size=(10, 3, 1))
                t = (math.sqrt(share) * condition + math.sqrt(1 - share) * seed) * growth
                for i, shape in enumerate(((30, 2), (10, 6))):
                    text = over_runs(list(t.reshape(shape)), list(p.reshape(shape)), resamples=200)
                    low, high = map(float, text.split(" to "))
                    covered[i] += low <= 0 <= high
            yield (
                f"r = 0: 95% intervals hold it, runs / conditions drawn anew; {name}, a condition's share {share:.0%}",
                "{:.0%} / {:.0%}".format(*covered / draws),
            )


def ceiling() -> Iterator[Row]:
    """4. The r of a readout without error, against a truth with this reliability."""
    for name, x in RELIABILITY.items():
        yield f"largest r with the judged truth, {name}", f"{math.sqrt(x):.2f}"


def times(runs: int = 30) -> Iterator[Row]:
    """5. The drift time of one curve, 1 - exp(-t / 0.2), for panels of different sizes."""
    for num in POLARITIES:  # 24, 48, 550
        truth, trajectories = saturating(np.random.default_rng([12, num]), num, runs)
        drifts = [analyse(probe_values(x), resamples=20, seed=i).drift() for i, x in enumerate(trajectories)]
        means = [np.mean([d.times[rule].fraction for d in drifts if d.significant]) for rule in ("ci95", "frac95")]
        yield (
            f"one curve, {num} probes: drift time `ci95` / `frac95` / the tests' truth for `ci95`",
            "{:.2f} / {:.2f} / {:.2f}".format(*means, truth),
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
        if row["label"] != "neutral":
            judged = STANCES[int(np.argmax(stance_of(probes[row["probe"]], row["answer"])))]
            agrees[_lead(row["answer"])[0] != 0].append(judged == row["label"])
    yield (
        "labelled answers that take a side, judged so: of those with a yes or no first / without",
        " / ".join(f"{sum(x)} of {len(x)}" for x in agrees.values()),
    )


def main() -> int:
    """Print the table."""
    rows = [
        {"correction": str(number), "what": what, "figure": figure}
        for number, part in enumerate((shared_answers, scaled, intervals_of_r, ceiling, times, seeds, leads), start=1)
        for what, figure in part()
    ]
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
