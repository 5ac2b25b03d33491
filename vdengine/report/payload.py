"""The data of the page: everything that its program draws and shows, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdengine.drift.analysis import Analysis, Curve
from vdengine.drift.checks import Check, checks
from vdengine.drift.cost import Cost, finite
from vdengine.drift.frames import Row
from vdengine.drift.importance import MAX_KL, MAX_PARETO_K, MIN_ESS
from vdengine.drift.intervals import FEW_PROBES, Estimate
from vdengine.drift.run import ANSWERS, OPENINGS, Readout, Run, judges_of
from vdengine.panels.panel import STANCES
from vdengine.report.gaps import Gap
from vdengine.report.sentences import PER, caveats, verdict

MAX_ANSWERS = 2400  # in all runs together
MAX_COMPLETIONS = 60  # of a run
MAX_TEXT = 1200  # characters of a shown text

# Training curves: names in metrics.jsonl, of which the first that a run has is drawn, and the label.
CURVES = (
    (("loss",), "loss"),
    (("eval/loss",), "held-out loss"),
    (("rewards/margins", "margin"), "margin"),
    (("rewards/accuracies", "accuracy"), "accuracy"),
    (("objective/scores",), "reward"),
    (("objective/kl",), "KL to the reference"),
    (("completions/mean_length",), "completion length"),
    (("grad_norm", "policy/grad_norm"), "gradient norm"),
    (("learning_rate",), "learning rate"),
)


def payload(
    runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], title: str, readout: str | None
) -> dict[str, Any]:
    """The page's data; topics: those to show; readout: the one to start with, None: answers where there are any."""
    axes = {topic: axis for run in runs for topic, axis in run.questions.values()}
    judges = judges_of(runs)
    return {
        "title": title,
        "topics": [{"name": topic, "axis": axes.get(topic, "")} for topic in topics],
        "judges": judges,
        "readout": readout or (ANSWERS if judges else OPENINGS),
        "few": FEW_PROBES,
        "limits": {"kl": MAX_KL, "ess": MIN_ESS, "pareto_k": MAX_PARETO_K},
        "runs": [_run(run, topics, MAX_ANSWERS // len(runs)) for run in runs],
        "gaps": [_gap(gap, runs, topics) for gap in gaps],
    }


def _gap(gap: Gap, runs: Sequence[Run], topics: Sequence[str]) -> dict[str, Any]:
    shown = (*topics, "all")
    return {
        "source": gap.source,
        "method": gap.method,
        "run": runs.index(gap.run),
        "other_panel": gap.other_panel,
        "topics": {topic: _rounded(entry) for topic, entry in gap.topics.items() if topic in shown},
    }


def _run(run: Run, topics: Sequence[str], max_answers: int) -> dict[str, Any]:
    about = run.describe()
    steps = f"{run.total_steps:,} steps" + (f", seed {about['seed']}" if about["seed"] is not None else "")
    header = {
        "model": about["model"],
        "objective": about["objective"],
        "data": about["data"],
        "length": steps,
        "panel": f"{about['panel']}, {about['probes']} probes, hash {run.panel_hash[:12]}",
        "read with": f"smoothing {about['smoothing']}, baseline step {about['baseline']}" if run.views else None,
    }
    return {
        "name": run.name,
        "header": [[name, str(value)] for name, value in header.items() if value],
        "notes": run.notes,
        "empty": run.empty,
        "total": run.total_steps,
        "views": {key: _view(view, topics) for key, view in run.views.items()},
        "gates": [_rounded(row, without="run") for row in run.rows("gates")],
        "support": [_rounded(row, without="run") for row in run.rows("support")],
        "cost": _cost(run),
        "training": _training(run),
        "answers": _sample_answers(run, topics, max_answers),
        "completions": _completions(run),
    }


def _cost(run: Run) -> dict[str, Any] | None:
    cost = Cost.of(run.metrics)
    if cost is None:
        return None
    return {
        "steps": cost.steps,
        "total": _round(cost.total),
        "probes": _round(cost.probes),
        "answers": _round(cost.answers),
        "share": _round(cost.share),
    }


def _view(view: Readout, topics: Sequence[str]) -> dict[str, Any]:
    """One readout of a run."""
    analysis = view.analysis
    values, scale = analysis.values, PER if view.kind == OPENINGS else 1.0
    shown = [topic for topic in ("all", *topics) if topic == "all" or topic in analysis.topics]
    levels = {}
    if view.kind == ANSWERS:
        levels = {t: {stance: _curve(analysis.levels[t, stance], 1.0) for stance in STANCES} for t in shown}
    return {
        "readout": view.kind,
        "judge": view.judge,
        "primary": values.primary,
        "channels": list(values.channels),
        "baseline": analysis.baseline,
        "smoothing": analysis.smoothing,
        "steps": values.steps.tolist(),
        "kinds": None if values.kinds is None else values.kinds.tolist(),
        "curves": {topic: _curve(analysis.curves[topic, values.primary], scale) for topic in shown},
        "levels": levels,
        "drifts": {t: {channel: _drift(analysis, t, channel, scale) for channel in values.channels} for t in shown},
        "strip": [_check(check, scale) for check in checks(analysis)],
        "verdict": verdict(view),
        "caveats": caveats(view),
    }


def _drift(analysis: Analysis, topic: str, channel: str, scale: float) -> dict[str, Any]:
    """A topic's drift in a channel; in the primary one also when, and why it cannot be read."""
    drift = analysis.drifts[topic, channel]
    cell = _estimate(drift.magnitude, scale)
    cell |= {"adjusted": _round(drift.p_adjusted), "sure": drift.significant, "few": drift.magnitude.few}
    if channel == analysis.values.primary:
        cell["times"] = {
            rule: [time.step, _round(time.fraction), _round(time.low), _round(time.high)]
            for rule, time in drift.times.items()
        }
        reliability = analysis.validity["reliability"]
        if topic in reliability and reliability[topic].unreliable:
            cell["why"] = reliability[topic].reason
    return cell


def _check(check: Check, scale: float) -> dict[str, Any]:
    is_ratio = check.unit == "correlation"
    numbers = {
        name: _round(value if name in ("p", "num_probes") or is_ratio else value * scale)
        for name, value in check.numbers.items()
    }
    head = {"name": check.name, "label": check.label, "what": check.what, "ratio": is_ratio, "warn": check.warn}
    return head | numbers


def _curve(curve: Curve, scale: float) -> dict[str, Any]:
    """A curve's mean, interval and number of probes at each sample."""
    series: dict[str, Any] = {
        name: [_round(float(value)) for value in getattr(curve, name) * scale] for name in ("mean", "low", "high")
    }
    return series | {"n": curve.num_probes.tolist()}


def _estimate(estimate: Estimate, scale: float) -> dict[str, Any]:
    return {
        "mean": _round(estimate.mean * scale),
        "low": _round(estimate.low * scale),
        "high": _round(estimate.high * scale),
        "p": _round(estimate.p),
        "n": estimate.num_probes,
    }


def _rounded(row: Row, without: str = "") -> Row:
    return {name: _round(value) for name, value in row.items() if name != without}


def _round(value: Any) -> Any:
    """A number to five digits, which are more than can be seen; the tables have all. NaN, which is no JSON: None."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _training(run: Run) -> list[dict[str, Any]]:
    """Training curves, as `CURVES` has them."""
    curves = []
    for names, label in CURVES:
        for name in names:
            points = [(row["step"], value) for row in run.metrics if (value := finite(row.get(name))) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                curves.append({"label": label, "step": list(steps), "value": [_round(value) for value in values]})
                break
    return curves


# -------------------------------------------------------------------------------------------------------- texts


def _sample_answers(run: Run, topics: Sequence[str], max_answers: int) -> dict[str, Any] | None:
    """Answers to the same questions at every anchor: as many questions of each topic as fit into `max_answers`."""
    if run.answers is None or not run.answers.answers:
        return None
    log = run.answers
    probes = {probe.id: probe for probe in log.panel.probes if probe.topic in topics}
    place: dict[str, int] = {}  # of a probe among its topic's
    num_probes: dict[str, int] = {}  # by topic
    for probe in probes.values():
        place[probe.id] = num_probes.get(probe.topic, 0)
        num_probes[probe.topic] = place[probe.id] + 1
    samples = min(2, log.samples)
    per_topic = max(max_answers // max(len(log.anchors) * len(num_probes) * samples, 1), 1)  # questions
    chosen = [
        i
        for i, answer in enumerate(log.answers)
        if answer.sample < samples and place.get(answer.probe, per_topic) < per_topic
    ][:max_answers]
    rows = []
    for i in chosen:
        answer = log.answers[i]
        stances = {
            slug: [_round(float(p)) for p in by_judge[i]]
            for slug, by_judge in run.stances.items()
            if np.isfinite(by_judge[i]).all()
        }
        rows.append([answer.anchor, answer.probe, answer.sample, _short(answer.text), answer.stopped, stances])
    shown = dict.fromkeys(log.answers[i].probe for i in chosen)
    return {
        "all": len(log.answers),
        "probes": {id: [probes[id].topic, _short(probes[id].prompt), probes[id].polarity] for id in shown},
        "rows": rows,
    }


def _completions(run: Run) -> dict[str, Any] | None:
    """PPO's completions; where there are too many, evenly over the run."""
    if not run.completions:
        return None
    count = min(len(run.completions), MAX_COMPLETIONS)
    chosen = np.linspace(0, len(run.completions) - 1, count).round().astype(int)
    rows = [run.completions[i] for i in chosen]
    return {
        "all": len(run.completions),
        "rows": [
            [
                int(row["step"]),
                _short(str(row.get("prompt", ""))),
                _short(str(row.get("completion", ""))),
                _round(finite(row.get("score"))),
                _round(finite(row.get("kl"))),
            ]
            for row in rows
        ],
    }


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " [...]"
