"""The tables of `readouts.py`: each readout against fresh judged answers, run by run or topic by topic.

Arrays of one run are [steps, probes], or of means over probes [steps, cells]: one cell a step, or one a topic. What is
compared shares no noise: weighted answers are read since their own anchor, where the truth has other answers; others
have no noise, and are read since the start. Intervals are over conditions, whose seeds stay together, and by
topic over topics too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
    unasked = [r for r in runs if not CONDITIONS[r.condition].asked]
    parts = [
        f"{len(runs)} runs, {len(first.probes)} probes, fresh answers at steps "
        f"{', '.join(map(str, runs[0].fresh.steps.tolist()))}.",
        "What each condition did by its last step",
        by_condition(runs),
        "Reliability of the judged truth, from every other answer",
        reliability(runs),
        "Against fresh judged answers, run x step",
        against_truth(runs, topics=False),
        "The same without the conditions that learn the panel's own openings",
        against_truth(unasked, topics=False),
        "Against fresh judged answers, run x step x topic",
        against_truth(runs, topics=True),
        "The neutral share, against fresh judged answers, run x step",
        against_truth(runs, False, "neutral"),
        "The neutral share, against fresh judged answers, run x step x topic",
        against_truth(runs, True, "neutral"),
        "Weighted answers against fresh ones of the same step",
        weights_quality(runs),
        "Text likelihood: stability and controls, means over seeds",
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


@dataclass(frozen=True)
class Cells:
    """What is compared of one run at S steps, by probe [S, probes], in probability but for readouts in nats."""

    truth: np.ndarray  # [3, S, probes]: from all answers, and from every other one
    readouts: dict[str, np.ndarray]  # by name; NaN where not sampled


def against_truth(runs: list[Run], topics: bool, channel: str = "graded") -> list[dict[str, Any]]:
    """Each readout, and each predictor that does not use the model, against fresh judged answers: one row each.

    Args:
        topics: whether a point is a run, step and topic, or a run and step.
        channel: "graded", the side that answers take, or "neutral", whether they take none.
    """
    from vdengine.drift.baselines import predict_direction_step, score_predictions

    def mean(r: Run, x: np.ndarray) -> np.ndarray:
        """Over probes: [..., steps, probes] to [..., steps, cells]."""
        members = [r.fresh.member(t) for t in r.fresh.topic_names] if topics else [slice(None)]
        return np.stack([x[..., m].mean(-1) for m in members], -1)

    conditions, steps = [r.condition for r in runs], [r.fresh.steps[1:] for r in runs]
    directions = [r.direction(channel) for r in runs]
    since_start = [_since_start(r, channel) for r in runs]
    truth = [mean(r, cells.truth[0]) for r, cells in zip(runs, since_start, strict=True)]
    # The predictor "training direction x step", in the form that fits best; it predicts means, and each probe has its
    # cell's.
    forms = [
        predict_direction_step(truth, steps, directions, form=form, groups=conditions)
        for form in ("free", "linear", "log")
    ]
    direction_step = min(forms, key=lambda x: score_predictions(flat(truth), flat(x)).rmse)
    by_probe = [np.stack([x[:, c] for c in _cell_of(r, topics)], -1) for r, x in zip(runs, direction_step, strict=True)]
    rows = []
    for since, compared, given in (
        ("the start", since_start, by_probe),
        ("its anchor", [_since_anchor(r, channel) for r in runs], [np.diff(x, axis=0, prepend=0) for x in by_probe]),
    ):
        readouts = {name: [c.readouts[name] for c in compared] for name in compared[0].readouts}
        for subset in ("", *([", gate open"] if since == "its anchor" else [])):
            keep = [_kept(r, bool(subset)) for r in runs]
            for name, predicted in (
                readouts | {"training direction x step": given, "no drift": [x * 0 for x in given]}
            ).items():
                cells = [np.where(k, c.truth, np.nan) for k, c in zip(keep, compared, strict=True)]
                row = {"readout": name + subset, "since": since}
                others = None if predicted is given else given
                rows.append(row | _row(runs, cells, predicted, others, mean, topics, in_nats=name.startswith("text")))
    return rows


def _row(
    runs: list[Run],
    truth: list[np.ndarray],
    predicted: list[np.ndarray],
    given: list[np.ndarray] | None,
    mean: Callable[[Run, np.ndarray], np.ndarray],
    topics: bool,
    in_nats: bool,
) -> dict[str, Any]:
    """How predictions fare: r of them as they are, with its ceiling; RMSE of them in the truth's unit.

    Args:
        truth: of each run, [3, steps, probes]. predicted, given: of each run, [steps, probes].
        mean: over probes.
        in_nats: the predictions' unit is not the truth's: they are scaled, for RMSE alone, by one factor, that of the
            runs of all other conditions.
    """
    from vdengine.drift.baselines import scaled, score_predictions
    from vdengine.drift.correlation import correlate

    def means(of_runs: list[np.ndarray]) -> list[np.ndarray]:
        return [mean(r, x) for r, x in zip(runs, of_runs, strict=True)]

    conditions = [r.condition for r in runs]
    true, told = means(truth), means(predicted)
    labels = [np.full(x.shape[1:], list(CONDITIONS).index(name)) for x, name in zip(true, conditions, strict=True)]
    clusters = [flat(labels)]
    if topics:
        clusters.append(flat([np.broadcast_to(np.arange(x.shape[-1]), x.shape[1:]) for x in true]))
    found = correlate(
        np.concatenate([x.reshape(3, -1) for x in true], 1),
        flat(told)[None],
        given=[] if given is None else [flat(means(given))],
        clusters=clusters,
    )
    if in_nats:
        predicted = scaled(predicted, [x[0] for x in truth], conditions)
    score = score_predictions(flat([x[0] for x in true]), flat(means(predicted)))
    gaps = flat([_gap_holds_0(r, y - x[0], topics) for r, x, y in zip(runs, truth, predicted, strict=True)])
    return {
        "n": found.num,
        "r": found.pearson,
        "95%": ranged(found.interval),
        "ceiling": found.ceiling,
        "r / ceiling": found.disattenuated,
        "95% ": ranged(found.disattenuated_interval),
        "r given direction x step": found.partial,
        "95%  ": ranged(found.partial_interval),
        "rank r": found.spearman,
        "RMSE": score.rmse,
        "same sign": score.sign,
        "interval of the gap holds 0": float(np.nanmean(gaps)) if np.isfinite(gaps).any() else math.nan,
    }


def ranged(interval: tuple[float, float]) -> str:
    """An interval as text; "" where it is not known."""
    low, high = interval
    return f"{low:+.2f} to {high:+.2f}" if math.isfinite(low) else ""


def _cell_of(r: Run, topics: bool) -> np.ndarray:
    """[probes] int64: the cell that each probe is in."""
    return np.array([r.fresh.topic_names.index(t) if topics else 0 for t in r.fresh.topics.tolist()])


def _since_start(r: Run, channel: str) -> Cells:
    """Shifts since step 0 of what has no answers: leads, and text likelihood with its parts."""
    steps, of_text = r.fresh.steps[1:], {"graded": r.text.primary}.get(channel, channel)
    readouts = {"text likelihood": shifts(r.text, steps, of_text)}
    if channel == "graded":
        readouts |= {f"text after {part}": shifts(r.text, steps, name) for part, name in TEXT_PARTS.items()}
        readouts = {"lead": shifts(r.lead, steps, r.lead.primary)} | readouts
    return Cells(np.stack([x[1:] - x[:1] for x in _with_halves(r, channel)]), readouts)


TEXT_PARTS = {"the question": "question", "no question": "null"}  # by channel of text likelihood


def _since_anchor(r: Run, channel: str) -> Cells:
    """Shifts since the anchor whose answers are weighted, the one before each: of these, and of fresh ones."""
    shift = r.weighted.anchor_shift
    assert shift is not None and r.weighted.anchors is not None
    rows = np.searchsorted(r.weighted.steps, r.fresh.steps[1:])
    if (r.weighted.anchors[rows] != r.fresh.steps[:-1]).any():
        raise SystemExit(f"{r.condition}-{r.seed}: an anchor's answers were not weighted at the next one")
    truth = np.stack([x[1:] - x[:-1] for x in _with_halves(r, channel)])
    return Cells(truth, {"weighted answers": shift[channel][rows]})


def _with_halves(r: Run, channel: str) -> np.ndarray:
    """[3, samples, probes]: judged stance from all fresh answers, and from every other one; of other channels NaN."""
    v = r.fresh.channels[channel]
    halves = r.fresh.halves if channel == "graded" and r.fresh.halves is not None else (v * np.nan, v * np.nan)
    return np.stack([v, *halves])


def _kept(r: Run, gate_open: bool) -> np.ndarray:
    """[steps, 1] bool: the steps that count."""
    gates = dict(zip(r.weighted.steps.tolist(), r.weighted.gates or [], strict=True))
    kept = [not gate_open or ((g := gates[int(k)]) is not None and g.open) for k in r.fresh.steps[1:]]
    return np.array(kept)[:, None]


def shifts(r: ProbeValues, steps: np.ndarray, channel: str) -> np.ndarray:
    """The shift from the first sample to each of these steps: [steps, probes]; NaN where there is no sample."""
    x = r.channels[channel]  # [samples, probes]
    index_of = {int(k): i for i, k in enumerate(r.steps)}
    return np.array([x[index_of[int(k)]] - x[0] if int(k) in index_of else np.full(x.shape[1], np.nan) for k in steps])


def _gap_holds_0(r: Run, gap: np.ndarray, topics: bool) -> np.ndarray:
    """Whether the 95% interval, over probes, of the mean of gap [steps, probes] contains 0: [steps, cells]; NaN where
    there is no gap."""
    from vdengine.drift.intervals import group_of

    low, high = np.stack(
        [group_of(r.fresh, gap, t).inference[:2] for t in (r.fresh.topic_names if topics else ["all"])], -1
    )
    return np.where(np.isnan(low), np.nan, (low <= 0) & (0 <= high))


def flat(of_runs: list[np.ndarray]) -> np.ndarray:
    """All values of all runs: [points]."""
    return np.concatenate([x.ravel() for x in of_runs])


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


READ: tuple[Callable[[Run], ProbeValues], ...] = (lambda r: r.fresh, lambda r: r.lead, lambda r: r.text)


def by_condition(runs: list[Run]) -> list[dict[str, Any]]:
    """The shifts of each condition at its last step: the mean over seeds, and their range."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        members = [r for r in runs if r.condition == name]
        if not members:
            continue
        answers, leads, texts = ([analyse(values(r)) for r in members] for values in READ)
        judged, led, scored = ([a.drift().magnitude for a in of_runs] for of_runs in (answers, leads, texts))
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
                "lead": mean(led),
                "of seeds, lead": spread([e.mean for e in led]),
                "text likelihood, nats/100 B": 100 * mean(scored),
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
    """The stability of text likelihood's last shifts: whether they are the same with paraphrases, or with half of the
    panel; and the shifts of the controls, which should be 0."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        members = [r for r in runs if r.condition == name]
        checks = [analyse(r.text, controls=r.controls).validity for r in members]
        if not members or name == "lr-0":
            continue
        rows.append(
            {
                "condition": name,
                "paraphrases, r over probes": average(
                    [v["paraphrase"]["correlation"] for v in checks if v["paraphrase"]]
                ),
                "half-panels, r over topics": average(
                    [v["half_panels"] and v["half_panels"].correlation for v in checks]
                ),
                "shift, nats/100 B": average([100 * analyse(r.text).drift().magnitude.mean for r in members]),
                "after no question": average([100 * v["null"].mean for v in checks if v["null"]]),
                "on trivial matters": average([100 * v["off-topic"].mean for v in checks if v["off-topic"]]),
            }
        )
    return rows


def average(values: list[float | None]) -> float:
    """The mean of the finite values over seeds; NaN if there are none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
