"""The tables of `readouts.py`: each readout against fresh judged answers, run by run or topic by topic.

Arrays of one run are [steps, probes], or of means over probes [steps, 1] or [steps, topics]. Lists of arrays have one
for each run.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from readout_runs import CONDITIONS, Run  # noqa: E402

if TYPE_CHECKING:
    from vdengine.drift.probe_values import ProbeValues


def report(runs: list[Run]) -> str:
    """All tables, as markdown."""
    first = runs[0].fresh
    parts = [
        f"{len(runs)} runs, {len(first.probes)} probes, fresh answers at steps "
        f"{', '.join(map(str, runs[0].fresh.steps.tolist()))}.",
        "What each condition did by its last step",
        by_condition(runs),
        "Reliability of the judged truth",
        reliability(runs),
        "Against fresh judged answers, run x step",
        against_truth(runs, topics=False),
        "The same without the conditions that learn the panel's own openings",
        against_truth([r for r in runs if not CONDITIONS[r.condition].asked], topics=False),
        "Against fresh judged answers, run x step x topic",
        against_truth(runs, topics=True),
        "The neutral share, against fresh judged answers, run x step",
        against_truth(runs, False, "neutral"),
        "The neutral share, against fresh judged answers, run x step x topic",
        against_truth(runs, True, "neutral"),
        "Weighted answers against fresh ones of the same step",
        weights_quality(runs),
        "Openings: stability and controls, means over seeds",
        stability(runs),
    ]
    return "\n\n".join(part if isinstance(part, str) else table(part) for part in parts)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a markdown table."""

    def cell(x: Any) -> str:
        return f"{x:.3f}" if isinstance(x, float) else str(x)

    names = list(rows[0]) if rows else ["none"]
    lines = [names, ["---"] * len(names), *([cell(r[n]) for n in names] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ------------------------------------------------------------------------------------------------ against fresh answers


def against_truth(runs: list[Run], topics: bool, channel: str = "graded") -> list[dict[str, Any]]:
    """Each readout, and each predictor that does not use the model, against fresh judged answers: one row each.

    Args:
        topics: whether a point is a run, step and topic, or a run and step.
        channel: "graded", the side that answers take, or "neutral", whether they take none.
    """
    from vdengine.drift.baselines import predict_direction_step, score_predictions

    # the truth: shifts of fresh answers since the start, by probe and as means
    steps = [r.fresh.steps[1:] for r in runs]
    fresh = [shifts(r.fresh, k, channel) for r, k in zip(runs, steps, strict=True)]
    truth = [mean_of(r, x, topics) for r, x in zip(runs, fresh, strict=True)]
    # the predictor "training direction x step", in the form that fits best
    groups, directions = [r.condition for r in runs], [r.direction(channel) for r in runs]
    forms = [predict_direction_step(truth, steps, directions, form=f, groups=groups) for f in ("free", "linear", "log")]
    direction_step = min(forms, key=lambda x: score_predictions(flat(truth), flat(x)).rmse)
    # openings, scaled from nats per byte to stance by one factor, which is fitted to the runs of all other conditions
    opening_shifts = [shifts(r.openings, k, channel) for r, k in zip(runs, steps, strict=True)]
    scaled = []
    for i, x in enumerate(opening_shifts):
        others = [k for k in range(len(runs)) if groups[k] != groups[i]]
        u, v = (
            np.concatenate([mean_of(runs[k], z[k], topics).ravel() for k in others]) for z in (opening_shifts, fresh)
        )
        both = np.isfinite(u) & np.isfinite(v)
        scaled.append(x * float((u * v)[both].sum() / (u * u)[both].sum()))
    weighted = [shifts(r.weighted, k, channel) for r, k in zip(runs, steps, strict=True)]
    # which steps have an open gate, and which have openings: [steps, 1] each
    is_open = []
    for r, k in zip(runs, steps, strict=True):
        gates = dict(zip(r.weighted.steps.tolist(), r.weighted.gates or [], strict=True))
        is_open.append(np.array([[(g := gates.get(int(s))) is not None and g.open] for s in k]))
    scored = [np.isfinite(x).all(1, keepdims=True) for x in opening_shifts]
    # "direction x step" predicts means; every probe gets that of its group, and only means of probes are used below
    direction_step_probes = []
    for r, k, x in zip(runs, direction_step, fresh, strict=True):
        of_probes = np.zeros_like(x)
        for column, t in enumerate(r.fresh.topic_names if topics else ["all"]):
            of_probes[:, r.fresh.member(t)] = k[:, [column]]
        direction_step_probes.append(of_probes)
    rows = []
    for name, predicted in (
        ("openings, scaled", scaled),
        ("weighted answers", weighted),
        ("training direction x step", direction_step_probes),
        ("no drift", [np.zeros_like(x) for x in fresh]),
    ):
        means = [mean_of(r, x, topics) for r, x in zip(runs, predicted, strict=True)]
        covers = [held(r, x - y, topics) for r, x, y in zip(runs, predicted, fresh, strict=True)]
        for subset, keep in (("all", [np.ones_like(m) for m in is_open]), ("openings", scored), ("gate open", is_open)):
            if subset == "all" and predicted is scaled:
                continue
            cells = [np.where(k, x, np.nan) for k, x in zip(keep, truth, strict=True)]
            condition_on = None if predicted is direction_step_probes else direction_step
            score = score_predictions(flat(cells), flat(means), flat(condition_on) if condition_on else None)
            inside = flat([np.where(k, c, np.nan) for k, c in zip(keep, covers, strict=True)])
            rows.append(
                {
                    "readout": name,
                    "points": subset,
                    "n": score.num,
                    "r": score.pearson,
                    "95% over runs": over_runs(cells, means),
                    "rank r": score.spearman,
                    "RMSE": score.rmse,
                    "same sign": score.sign,
                    "r given direction x step": score.partial,
                    "95% over runs ": over_runs(cells, means, condition_on) if condition_on else "",
                    "interval of the gap holds 0": float(np.nanmean(inside)),
                }
            )
    return rows


def shifts(r: ProbeValues, steps: np.ndarray, channel: str) -> np.ndarray:
    """The shift from the first sample to each of these steps: [steps, probes]; NaN where there is no sample."""
    x = r.channels[r.primary if channel == "graded" else channel]  # [samples, probes]
    index_of = {int(k): i for i, k in enumerate(r.steps)}
    return np.array([x[index_of[int(k)]] - x[0] if int(k) in index_of else np.full(x.shape[1], np.nan) for k in steps])


def mean_of(r: Run, x: np.ndarray, topics: bool) -> np.ndarray:
    """The mean of x [steps, probes] over probes: [steps, 1], or by topic [steps, topics]."""
    members = [r.fresh.member(t) for t in r.fresh.topic_names] if topics else [slice(None)]
    return np.stack([x[:, m].mean(1) for m in members], 1)


def held(r: Run, gap: np.ndarray, topics: bool) -> np.ndarray:
    """Whether the 95% interval, over probes, of the mean of gap [steps, probes] contains 0: [steps, 1], or by topic
    [steps, topics]; NaN where there is no gap."""
    from vdengine.drift.intervals import group_of

    low, high = np.stack(
        [group_of(r.fresh, gap, t).inference[:2] for t in (r.fresh.topic_names if topics else ["all"])], -1
    )
    return np.where(np.isnan(low), np.nan, (low <= 0) & (0 <= high))


def flat(of_runs: list[np.ndarray]) -> np.ndarray:
    """All values of all runs: [points]."""
    return np.concatenate([x.ravel() for x in of_runs])


def over_runs(
    truth: list[np.ndarray], predicted: list[np.ndarray], given: list[np.ndarray] | None = None, resamples: int = 500
) -> str:
    """The 95% percentile interval of Pearson's r, or of the partial r given another predictor, by a bootstrap over
    runs, because the points of one run depend on each other."""
    from vdengine.drift.baselines import score_predictions

    rng, correlations = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = rng.integers(0, len(truth), len(truth)).tolist()
        t, p, g = (x and flat([x[i] for i in drawn]) for x in (truth, predicted, given))
        score = score_predictions(t, p, g)
        correlations.append(score.pearson if given is None else score.partial)
    finite = np.array(correlations)[np.isfinite(correlations)]
    return f"{np.quantile(finite, 0.025):+.2f} to {np.quantile(finite, 0.975):+.2f}" if len(finite) else ""


def weights_quality(runs: list[Run]) -> list[dict[str, Any]]:
    """Weighted answers against fresh ones of the same step, for the whole panel and by topic: whether the interval from
    the answers' noise has its nominal coverage, and how much less weighted answers vary than as many fresh ones."""
    rows = []
    for gate_open, topics in ((True, False), (True, True), (False, False)):
        z, ratio, kl = [], [], []
        for r in runs:
            w, f = r.weighted, r.fresh
            for i, (step, g) in enumerate(zip(w.steps.tolist(), w.gates or [], strict=True)):
                if g is None or g.open is not gate_open:
                    continue
                now = int(np.flatnonzero(f.steps == step)[0])
                gap = w.channels["graded"][i] - f.channels["graded"][now]  # [probes]
                noise = w.noise["graded"][i] + f.noise["graded"][now]  # type: ignore[index]  # [probes], variances
                for m in [f.member(t) for t in f.topic_names] if topics else [np.full(len(gap), True)]:
                    z.append(gap[m].sum() / math.sqrt(noise[m].sum()))
                # the variance of a shift since the anchor of the bank: with fresh answers, that of both ends
                anchor = int(np.flatnonzero(f.steps == w.anchors[i])[0])  # type: ignore[index]
                ends = f.noise["graded"][[anchor, now]].sum()  # type: ignore[index]
                ratio.append(float(ends / w.anchor_noise["graded"][i].sum()))  # type: ignore[index]
                kl.append(g.kl)
        if z:
            rows.append(
                {
                    "gate": "open" if gate_open else "closed",
                    "of": "topics" if topics else "the panel",
                    "n": len(z),
                    "KL, median": float(np.median(kl)),
                    "95% intervals cover": float(np.mean(np.abs(z) < 1.96)),
                    "rms z": float(np.sqrt(np.mean(np.square(z)))),
                    "mean z": float(np.mean(z)),
                    "fresh / weighted variance, median": float(np.median(ratio)),
                    "least": float(np.min(ratio)),
                }
            )
    return rows


# ---------------------------------------------------------------------------------------------- the readouts themselves


def by_condition(runs: list[Run]) -> list[dict[str, Any]]:
    """The shifts of each condition at its last step: the mean over seeds, and their range."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        members = [r for r in runs if r.condition == name]
        if not members:
            continue
        answers, openings = [analyse(r.fresh) for r in members], [analyse(r.openings) for r in members]
        judged = [a.drift().magnitude for a in answers]
        scored = [a.drift().magnitude for a in openings]
        neutral = [a.drifts["all", "neutral"].magnitude.mean for a in answers]
        rows.append(
            {
                "condition": name,
                "should": {1: "up", -1: "down", 0: "stay"}[CONDITIONS[name].direction],
                "seeds": len(members),
                "judged shift": mean(judged),
                "of seeds": spread([e.mean for e in judged]),
                "beyond interval": sum(e.significant for e in judged),
                "neutral": float(np.mean(neutral)),
                "openings, nats/100 B": 100 * mean(scored),
                "of seeds ": spread([100 * e.mean for e in scored]),
                "beyond interval ": sum(e.significant for e in scored),
            }
        )
    return rows


def mean(estimates: list[Any]) -> float:
    """The mean of estimates."""
    return float(np.mean([e.mean for e in estimates]))


def spread(values: list[float]) -> str:
    """The range of values."""
    return f"{min(values):+.2f} to {max(values):+.2f}"


def reliability(runs: list[Run]) -> list[dict[str, Any]]:
    """The reliability of the judged truth: the correlation of shifts from even and from odd answers, corrected to all
    answers (Spearman-Brown)."""
    rows = []
    for label, topics in (("run x step", False), ("run x step x topic", True)):
        even, odd = [], []
        for r in runs:
            for half, out in zip(r.fresh.halves or (), (even, odd), strict=True):
                x = half[1:] - half[0]  # [steps, probes]
                means = [x[:, r.fresh.member(t)].mean(1) for t in r.fresh.topic_names] if topics else [x.mean(1)]
                out.append(np.concatenate(means))
        c = float(np.corrcoef(np.concatenate(even), np.concatenate(odd))[0, 1])
        rows.append({"points": label, "n": len(np.concatenate(even)), "halves": c, "reliability": 2 * c / (1 + c)})
    return rows


def stability(runs: list[Run]) -> list[dict[str, Any]]:
    """The stability of the openings' last shifts: whether they are the same with paraphrases, with half of a stance's
    openings, or with half of the panel; and the shifts of the controls, which should be 0."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        members = [r for r in runs if r.condition == name]
        checks = [analyse(r.openings, controls=r.controls).validity for r in members]
        if not members or name == "lr-0":
            continue
        rows.append(
            {
                "condition": name,
                "paraphrases, r over probes": average(
                    [v["paraphrase"]["correlation"] for v in checks if v["paraphrase"]]
                ),
                "halves of openings, r stepped up": average([v["items"] for v in checks]),
                "half-panels, r over topics": average(
                    [v["half_panels"] and v["half_panels"].correlation for v in checks]
                ),
                "shift, nats/100 B": average([100 * analyse(r.openings).drift().magnitude.mean for r in members]),
                "after no question": average([100 * v["null"].mean for v in checks if v["null"]]),
                "on trivial matters": average([100 * v["off-topic"].mean for v in checks if v["off-topic"]]),
            }
        )
    return rows


def average(values: list[float | None]) -> float:
    """The mean of the finite values over seeds; NaN if there are none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
