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
        "What each condition did by its last step", by_condition(runs),
        "Reliability of the judged truth", reliability(runs),
        "Against fresh judged answers, run x step", against_truth(runs, topics=False),
        "The same without the conditions that learn the panel's own openings",
        against_truth([r for r in runs if not CONDITIONS[r.condition].asked], topics=False),
        "Against fresh judged answers, run x step x topic", against_truth(runs, topics=True),
        "The neutral share, against fresh judged answers, run x step", against_truth(runs, False, "neutral"),
        "The neutral share, against fresh judged answers, run x step x topic", against_truth(runs, True, "neutral"),
        "Weighted answers against fresh ones of the same step", weights_quality(runs),
        "Openings: stability and controls, means over seeds", stability(runs),
    ]  # fmt: skip
    return "\n\n".join(part if isinstance(part, str) else table(part) for part in parts)


def table(rows: list[dict[str, Any]]) -> str:
    def cell(x: Any) -> str:
        return f"{x:.3f}" if isinstance(x, float) else str(x)

    names = list(rows[0]) if rows else ["none"]
    lines = [names, ["---"] * len(names), *([cell(r[n]) for n in names] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ------------------------------------------------------------------------------------------------ against fresh answers


def against_truth(runs: list[Run], topics: bool, channel: str = "graded") -> list[dict[str, Any]]:
    """Each readout, and what never looks at the model, against fresh judged answers: one row each. channel: "graded",
    the side that answers take, or "neutral", whether they take none."""
    from vdengine.drift.baselines import predict_direction_step, score_predictions

    steps = [r.fresh.steps[1:] for r in runs]
    fresh = [shifts(r.fresh, k, channel) for r, k in zip(runs, steps, strict=True)]
    truth = [mean_of(r, x, topics) for r, x in zip(runs, fresh, strict=True)]
    groups, directions = [r.condition for r in runs], [r.direction(channel) for r in runs]
    forms = [predict_direction_step(truth, steps, directions, form=f, groups=groups) for f in ("free", "linear", "log")]
    known = min(forms, key=lambda x: score_predictions(flat(truth), flat(x)).rmse)
    opened = [shifts(r.openings, k, channel) for r, k in zip(runs, steps, strict=True)]
    scaled = []  # from nats per byte to stance: one factor, fitted to the runs of all other conditions
    for i, x in enumerate(opened):
        others = [k for k in range(len(runs)) if groups[k] != groups[i]]
        u, v = (np.concatenate([mean_of(runs[k], z[k], topics).ravel() for k in others]) for z in (opened, fresh))
        both = np.isfinite(u) & np.isfinite(v)
        scaled.append(x * float((u * v)[both].sum() / (u * u)[both].sum()))
    weighted = [shifts(r.weighted, k, channel) for r, k in zip(runs, steps, strict=True)]
    is_open = []
    for r, k in zip(runs, steps, strict=True):
        gates = dict(zip(r.weighted.steps.tolist(), r.weighted.gates or [], strict=True))
        is_open.append(np.array([[(g := gates.get(int(s))) is not None and g.open] for s in k]))
    scored = [np.isfinite(x).all(1, keepdims=True) for x in opened]
    # a prediction of means says the same of every probe: only their mean is looked at
    known_probes = []
    for r, k, x in zip(runs, known, fresh, strict=True):
        each = np.zeros_like(x)
        for column, t in enumerate(r.fresh.topic_names if topics else ["all"]):
            each[:, r.fresh.member(t)] = k[:, [column]]
        known_probes.append(each)
    rows = []
    for name, predicted in (
        ("openings, scaled", scaled), ("weighted answers", weighted), ("training direction x step", known_probes),
        ("no drift", [np.zeros_like(x) for x in fresh]),
    ):  # fmt: skip
        means = [mean_of(r, x, topics) for r, x in zip(runs, predicted, strict=True)]
        covers = [held(r, x - y, topics) for r, x, y in zip(runs, predicted, fresh, strict=True)]
        for where, keep in (("all", [np.ones_like(m) for m in is_open]), ("openings", scored), ("gate open", is_open)):
            if where == "all" and predicted is scaled:
                continue
            cells = [np.where(k, x, np.nan) for k, x in zip(keep, truth, strict=True)]
            given = None if predicted is known_probes else known
            score = score_predictions(flat(cells), flat(means), flat(given) if given else None)
            inside = flat([np.where(k, c, np.nan) for k, c in zip(keep, covers, strict=True)])
            rows.append(
                {"readout": name, "points": where, "n": score.num, "r": score.pearson,
                 "95% over runs": over_runs(cells, means), "rank r": score.spearman, "RMSE": score.rmse,
                 "same sign": score.sign, "r given direction x step": score.partial,
                 "95% over runs ": over_runs(cells, means, given) if given else "",
                 "interval of the gap holds 0": float(np.nanmean(inside))}
            )  # fmt: skip
    return rows


def shifts(r: ProbeValues, steps: np.ndarray, channel: str) -> np.ndarray:
    """[steps, probes] shift since the first sample; NaN where there is none."""
    x = r.channels[r.primary if channel == "graded" else channel]
    at = {int(k): i for i, k in enumerate(r.steps)}
    return np.array([x[at[int(k)]] - x[0] if int(k) in at else np.full(x.shape[1], np.nan) for k in steps])


def mean_of(r: Run, x: np.ndarray, topics: bool) -> np.ndarray:
    """[steps, probes] -> [steps, 1], or [steps, topics]."""
    members = [r.fresh.member(t) for t in r.fresh.topic_names] if topics else [slice(None)]
    return np.stack([x[:, m].mean(1) for m in members], 1)


def held(r: Run, gap: np.ndarray, topics: bool) -> np.ndarray:
    """Whether the 95% interval, over probes, of a mean of gap [steps, probes] holds 0: [steps, 1 or topics]; NaN where
    there is no gap."""
    from vdengine.drift.intervals import group_of

    low, high = np.stack(
        [group_of(r.fresh, gap, t).inference[:2] for t in (r.fresh.topic_names if topics else ["all"])], -1
    )
    return np.where(np.isnan(low), np.nan, (low <= 0) & (0 <= high))


def flat(of_runs: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in of_runs])


def over_runs(
    truth: list[np.ndarray], predicted: list[np.ndarray], given: list[np.ndarray] | None = None, resamples: int = 500
) -> str:
    """The percentile interval of Pearson's r, or of the partial one, when runs are drawn anew: points of one run depend
    on each other."""
    from vdengine.drift.baselines import score_predictions

    rng, found = np.random.default_rng(0), []
    for _ in range(resamples):
        pick = rng.integers(0, len(truth), len(truth)).tolist()
        t, p, g = (x and flat([x[i] for i in pick]) for x in (truth, predicted, given))
        score = score_predictions(t, p, g)
        found.append(score.pearson if given is None else score.partial)
    kept = np.array(found)[np.isfinite(found)]
    return f"{np.quantile(kept, 0.025):+.2f} to {np.quantile(kept, 0.975):+.2f}" if len(kept) else ""


def weights_quality(runs: list[Run]) -> list[dict[str, Any]]:
    """Weighted readings against the fresh answers of the same step, of the whole panel and of its topics: is the
    interval of the answers' own noise honest, and how much less do they vary than as many fresh answers would?"""
    rows = []
    for opened, topics in ((True, False), (True, True), (False, False)):
        z, ratio, kl = [], [], []
        for r in runs:
            w, f = r.weighted, r.fresh
            for i, (step, g) in enumerate(zip(w.steps.tolist(), w.gates or [], strict=True)):
                if g is None or g.open is not opened:
                    continue
                at = int(np.flatnonzero(f.steps == step)[0])
                gap = w.channels["graded"][i] - f.channels["graded"][at]
                noise = w.noise["graded"][i] + f.noise["graded"][at]  # type: ignore[index]
                for m in [f.member(t) for t in f.topic_names] if topics else [np.full(len(gap), True)]:
                    z.append(gap[m].sum() / math.sqrt(noise[m].sum()))
                # of a shift since the bank's anchor: fresh answers vary at both ends
                then = int(np.flatnonzero(f.steps == w.anchors[i])[0])  # type: ignore[index]
                ends = f.noise["graded"][[then, at]].sum()  # type: ignore[index]
                ratio.append(float(ends / w.anchor_noise["graded"][i].sum()))  # type: ignore[index]
                kl.append(g.kl)
        if z:
            rows.append(
                {"gate": "open" if opened else "closed", "of": "topics" if topics else "the panel", "n": len(z),
                 "KL, median": float(np.median(kl)), "95% intervals cover": float(np.mean(np.abs(z) < 1.96)),
                 "rms z": float(np.sqrt(np.mean(np.square(z)))), "mean z": float(np.mean(z)),
                 "fresh / weighted variance, median": float(np.median(ratio)), "least": float(np.min(ratio))}
            )  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------- the readouts themselves


def by_condition(runs: list[Run]) -> list[dict[str, Any]]:
    """What each condition did by its last step: mean over seeds, and the range of seeds."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        mine = [r for r in runs if r.condition == name]
        if not mine:
            continue
        said, scored = [analyse(r.fresh) for r in mine], [analyse(r.openings) for r in mine]
        judged = [a.drift().magnitude for a in said]
        opened = [a.drift().magnitude for a in scored]
        neutral = [a.drifts["all", "neutral"].magnitude.mean for a in said]
        rows.append(
            {"condition": name, "should": {1: "up", -1: "down", 0: "stay"}[CONDITIONS[name].direction],
             "seeds": len(mine), "judged shift": mean(judged), "of seeds": spread([e.mean for e in judged]),
             "beyond interval": sum(e.significant for e in judged), "neutral": float(np.mean(neutral)),
             "openings, nats/100 B": 100 * mean(opened), "of seeds ": spread([100 * e.mean for e in opened]),
             "beyond interval ": sum(e.significant for e in opened)}
        )  # fmt: skip
    return rows


def mean(estimates: list[Any]) -> float:
    return float(np.mean([e.mean for e in estimates]))


def spread(values: list[float]) -> str:
    return f"{min(values):+.2f} to {max(values):+.2f}"


def reliability(runs: list[Run]) -> list[dict[str, Any]]:
    """Of the judged truth itself: shifts from even and odd answers, stepped up to all of them (Spearman, Brown)."""
    rows = []
    for label, topics in (("run x step", False), ("run x step x topic", True)):
        a, b = [], []
        for r in runs:
            for half, out in zip(r.fresh.halves or (), (a, b), strict=True):
                x = half[1:] - half[0]
                each = [x[:, r.fresh.member(t)].mean(1) for t in r.fresh.topic_names] if topics else [x.mean(1)]
                out.append(np.concatenate(each))
        c = float(np.corrcoef(np.concatenate(a), np.concatenate(b))[0, 1])
        rows.append({"points": label, "n": len(np.concatenate(a)), "halves": c, "reliability": 2 * c / (1 + c)})
    return rows


def stability(runs: list[Run]) -> list[dict[str, Any]]:
    """Of the openings' last shifts, probe by probe: do paraphrases, half of a stance's openings, or half of
    the panel, say the same? And the controls, where nothing should move."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        mine = [r for r in runs if r.condition == name]
        found = [analyse(r.openings, controls=r.controls).validity for r in mine]
        if not mine or name == "lr-0":
            continue
        rows.append(
            {"condition": name,
             "paraphrases, r over probes": average([v["paraphrase"]["correlation"] for v in found if v["paraphrase"]]),
             "halves of openings, r stepped up": average([v["items"] for v in found]),
             "half-panels, r over topics": average([v["half_panels"] and v["half_panels"].correlation for v in found]),
             "shift, nats/100 B": average([100 * analyse(r.openings).drift().magnitude.mean for r in mine]),
             "after no question": average([100 * v["null"].mean for v in found if v["null"]]),
             "on trivial matters": average([100 * v["off-topic"].mean for v in found if v["off-topic"]])}
        )  # fmt: skip
    return rows


def average(values: list[float | None]) -> float:
    """Over seeds; NaN where none is known."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan
