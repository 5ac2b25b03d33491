"""The data of the page: everything that its program draws and shows, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vdengine.drift.analysis import Analysis, Curve, analyse
from vdengine.drift.checks import Check, checks
from vdengine.drift.cost import Cost
from vdengine.drift.frames import Row
from vdengine.drift.importance import MAX_KL, MAX_PARETO_K, MIN_ESS, closed_because
from vdengine.drift.intervals import FEW_PROBES, ROUNDING, Estimate
from vdengine.drift.probe_values import LEAST_COVERAGE, topic_name
from vdengine.drift.run import ANSWERS, Readout, Run, Stage, judges_of
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES
from vdengine.recipe import LEAD, TEXT
from vdengine.report.gaps import Gap
from vdengine.report.metrics import CHARTS, Chart, Metrics, missing_samples, other_charts
from vdengine.report.recipes import compare
from vdengine.report.repeats import Repeats, repeats_of
from vdengine.report.sentences import READINGS, Reading, caveats, reading_of, verdict, worded
from vdengine.report.texts import MAX_ANSWERS, MAX_NAME, completions, sample_answers, short

MAX_SAMPLES = 600  # of a drawn curve
# By kind of readout: channels whose levels are drawn.
LEVELS = {LEAD: ("lead", "coverage"), ANSWERS: (*STANCES, "graded")}
MAX_NOTES = 20  # of a run


def payload(
    runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], title: str, readout: str | None
) -> dict[str, Any]:
    """The page's data; topics: those to show; readout: the name of the reading to start with, None: the first."""
    axes = {topic_name(topic): axis for run in runs for topic, axis in run.questions.values()}
    judges = judges_of(runs)
    metrics = [Metrics.of(run) for run in runs]
    more = other_charts(metrics)
    recipes = compare(runs)
    return {
        "title": short(title, MAX_NAME),
        "topics": [{"name": topic, "axis": short(axes.get(topic, ""), MAX_NAME)} for topic in topics],
        "judges": judges,
        "readings": [_reading(reading, runs) for reading in READINGS],
        "readout": readout,
        "few": FEW_PROBES,
        "limits": {"kl": MAX_KL, "ess": MIN_ESS, "pareto_k": MAX_PARETO_K, "coverage": LEAST_COVERAGE},
        "charts": [
            {"title": short(chart.title, MAX_NAME), "quantity": short(chart.quantity, MAX_NAME), "other": chart in more}
            for chart in (*CHARTS, *more)
        ],
        "recipes": {"differing": recipes.differing, "alike": recipes.alike, "without": recipes.without},
        "runs": [
            _run(run, topics, MAX_ANSWERS // len(runs), of_run, (*CHARTS, *more))
            for run, of_run in zip(runs, metrics, strict=True)
        ],
        "gaps": [_gap(gap, runs, topics) for gap in gaps],
        "repeats": [_repeats(group, runs, topics) for group in repeats_of(runs)],
    }


def _reading(reading: Reading, runs: Sequence[Run]) -> dict[str, Any]:
    """A readout as the page names it, and whether any run has it."""
    found = [view for run in runs for view in run.views.values() if reading_of(view) == reading]
    rounding = max((ROUNDING[view.values.unit] for view in found), default=0.0)
    leads = next((run.views[LEAD].values.leads for run in runs if LEAD in run.views), ("yes", "no"))
    head = {name: getattr(reading, name) for name in ("name", "kind", "part", "label")}
    head |= {name: worded(getattr(reading, name), leads) for name in ("sentence", "unit")}
    return head | {"there": bool(found), "rounding": rounding * reading.scale}


def _gap(gap: Gap, runs: Sequence[Run], topics: Sequence[str]) -> dict[str, Any]:
    shown = (*topics, "all")
    return {
        "source": gap.source,
        "method": gap.method,
        "run": runs.index(gap.run),
        "other_panel": gap.other_panel,
        "topics": {topic: _rounded(entry) for topic, entry in gap.topics.items() if topic in shown},
    }


def _repeats(group: Repeats, runs: Sequence[Run], topics: Sequence[str]) -> dict[str, Any]:
    """Runs of one recipe; by readout what it does, in the unit that is shown."""
    shifts: dict[str, Any] = {}
    for key, by_topic in group.shifts.items():
        scale = reading_of(group.views(key)[0]).scale
        shifts[key] = {
            topic: _rounded(group.cells(key, shift))
            | {name: _round(getattr(shift, name) * scale) for name in ("mean", "low", "high", "seed_deviation")}
            | {"by_run": [_round(each * scale) for each in shift.by_run]}
            for topic, shift in by_topic.items()
            if topic in ("all", *topics)
        }
    members = [runs.index(run) for run in group.runs]
    return {"runs": members, "seeds": [short(seed, MAX_NAME) for seed in group.seeds], "shifts": shifts,
            "refused": group.refused}  # fmt: skip


def _run(
    run: Run, topics: Sequence[str], max_answers: int, metrics: Metrics, charts: Sequence[Chart]
) -> dict[str, Any]:
    about = run.describe()
    steps = f"{run.total_steps:,} steps" + (f", seed {about['seed']}" if about["seed"] is not None else "")
    header = {
        "model": about["model"],
        "objective": about["objective"],
        "data": about["data"],
        "length": steps,
        "stages": _stages(run),
        "panel": f"{about['panel']}, {about['probes']} probes, hash {run.panel_hash[:12]}",
        "read with": f"smoothing {_smoothings(run)}, baseline step {about['baseline']}" if run.views else None,
    }
    return {
        "name": run.name,
        "header": [[name, short(value, MAX_NAME)] for name, value in header.items() if value],
        "notes": _notes([*run.notes, *missing_samples(run), *metrics.notes]),
        "empty": run.empty,
        "total": run.total_steps,
        "stages": [_stage(stage, topics) for stage in run.stages],
        "edges": [[stage.first, short(stage.name, MAX_NAME)] for stage in run.parts],
        "models": [[step, short(name, MAX_NAME)] for step, name in run.models.items()],
        "views": {key: _view(view, topics) for key, view in run.views.items()},
        "beside": _beside(run, topics),
        "gates": [_gate(row) for row in _some(run.rows("gates"))],
        "support": [_rounded(row, without="run") for row in run.rows("support")],
        "capability": _capability(run),
        "cost": _cost(run),
        "training": [_line(metrics, chart) for chart in charts],
        "answers": sample_answers(run, topics, max_answers),
        "completions": completions(run),
    }


def _stages(run: Run) -> str | None:
    """The stages of a history and what they are."""
    if not run.stages:
        return None
    said = []
    for stage in run.stages:
        objective = stage.run.recipe.get("objective", {}).get("name")
        about = f"{objective}, " if objective and objective != stage.name else ""
        said.append(f"{stage.name} ({about}steps {stage.first:,} to {stage.last:,})")
    return "; ".join(said)


def _stage(stage: Stage, topics: Sequence[str]) -> dict[str, Any]:
    """A stage's own drift, by readout: since its own start, steps its own."""
    views: dict[str, Any] = {}
    for key, view in stage.run.views.items():
        analysis, scale = view.analysis, reading_of(view).scale
        primary = analysis.values.primary
        shown = _shown(analysis, topics)
        views[key] = {
            "drifts": {t: {primary: _drift(analysis, t, primary, scale)} for t in shown},
            "verdict": verdict(view)[0],
        }
    return {"name": short(stage.name, MAX_NAME), "first": stage.first, "last": stage.last, "views": views}


def _smoothings(run: Run) -> str:
    """How curves are smoothed, and of which readouts where not all are alike."""
    labels: dict[str, list[str]] = {}
    for view in run.views.values():
        labels.setdefault(view.analysis.smoothing, []).append("of answers" if view.kind == ANSWERS else "")
    if len(labels) == 1:
        return next(iter(labels))
    return ", ".join(f"{next(filter(None, kinds), '')} {name}".strip() for name, kinds in labels.items())


def _notes(notes: Sequence[str]) -> list[str]:
    """Sentences on what is not there, each bounded."""
    rest = [f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else []
    return [short(note, 2 * MAX_NAME) for note in notes[:MAX_NOTES]] + rest


def _some(rows: Sequence[Row]) -> list[Row]:
    """At most `MAX_SAMPLES` of the rows, evenly, the first and the last among them."""
    return [rows[i] for i in _evenly(len(rows))]


def _evenly(count: int) -> np.ndarray:
    """Indexes [m] int64 of at most `MAX_SAMPLES` of `count` things, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_SAMPLES)).round().astype(np.int64))


def _gate(row: Row) -> Row:
    """A row of the gates, and why it is closed."""
    why = "" if row["open"] else closed_because(row["kl"], row["ess"], row["pareto_k"])
    return _rounded(row, without="run") | {"why": why}


def _line(metrics: Metrics, chart: Chart) -> dict[str, Any] | None:
    """What a chart shows of a run; None: it has nothing of it."""
    line = metrics.line(chart)
    if line is None:
        return None
    drawn = line.thinned()
    known = line.values[np.isfinite(line.values)]
    return {
        "step": drawn.steps.tolist(),
        "value": [_round(float(value)) for value in drawn.values],
        "last": _round(float(known[-1])) if len(known) else None,
        "all": len(line.steps),
    }


def _capability(run: Run) -> list[dict[str, Any]]:
    """A curve for each task and metric, with its standard error, and its change from the first check to the last."""
    checks = run.checks
    if not checks:
        return []
    kept = [checks[i] for i in _evenly(len(checks))]
    found = []
    for key in checks[0].accuracies:
        moved = checks[-1].changes.get(key)
        curve = {
            "task": short(key[0], MAX_NAME),
            "metric": key[1],
            "rows": checks[-1].accuracies[key].rows,
            "step": [check.step for check in kept],
            "value": [_round(check.accuracies[key].value) for check in kept],
            "stderr": [_round(check.accuracies[key].stderr) for check in kept],
        }
        found.append(curve | {"change": None if moved is None else _rounded(asdict(moved))})
    return found


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
    analysis, reading = view.analysis, reading_of(view)
    values = analysis.values
    shown = _shown(analysis, topics)
    curve = analysis.curves["all", values.primary]
    points = None
    if curve.points is not None:
        points = _lines(view, shown, curve.points, lambda found: found.points or found)
    return {
        "reading": reading.name,
        "judge": view.judge,
        "primary": values.primary,
        "channels": list(values.channels),
        "baseline": analysis.baseline,
        "smoothing": analysis.smoothing,
        "samples": len(curve.steps),
        "kinds": None if values.kinds is None or points else _kept(values.kinds).tolist(),
        "points": points,
        "drifts": {t: {c: _drift(analysis, t, c, reading.scale) for c in values.channels} for t in shown},
        "strip": [_check(check, reading.scale) for check in checks(analysis)],
        "verdict": verdict(view),
        "caveats": caveats(view),
    } | _lines(view, shown, curve, lambda found: found)


def _lines(view: Readout, shown: Sequence[str], first: Curve, of: Callable[[Curve], Curve]) -> dict[str, Any]:
    """What is drawn of a readout over the run: curves and levels, or their points.

    Args:
        first: one of them, for the steps of all.
        of: what to take of each curve.
    """
    analysis, scale, primary = view.analysis, reading_of(view).scale, view.values.primary
    levels = LEVELS.get(view.kind, ())
    parts = ("question", "null") if view.kind == TEXT else ()
    return {
        "steps": _kept(first.steps).tolist(),
        "curves": {t: _curve(of(analysis.curves[t, primary]), scale) for t in shown},
        "parts": {t: {p: _curve(of(analysis.curves[t, p]), scale) for p in parts} for t in shown if parts},
        "levels": {t: {c: _curve(of(analysis.levels[t, c]), 1.0) for c in levels} for t in shown if levels},
    }


def _shown(analysis: Analysis, topics: Sequence[str]) -> list[str]:
    return [topic for topic in ("all", *topics) if topic == "all" or topic in analysis.topics]


def _beside(run: Run, topics: Sequence[str]) -> dict[str, Any]:
    """By judge: the levels of leads in its units, to be drawn beside answers; or why there are none."""
    found: dict[str, Any] = {}
    if LEAD not in run.views:
        return found
    view = run.views[LEAD]
    for judge in dict.fromkeys(v.judge for v in run.views.values() if v.judge):
        try:
            values = run.lead_values(judge=judge)
        except InputError as error:
            found[judge] = {"why": str(error)}
            continue
        analysis = analyse(values, baseline=view.baseline, smoothing=view.smoothing)
        levels = {t: _curve(analysis.levels[t, values.primary], 1.0) for t in _shown(analysis, topics)}
        found[judge] = {"steps": _kept(values.steps).tolist(), "levels": levels}
    return found


def _drift(analysis: Analysis, topic: str, channel: str, scale: float) -> dict[str, Any]:
    """A topic's drift in a channel; in the primary one also when, and why it cannot be read."""
    drift = analysis.drifts[topic, channel]
    cell = _estimate(drift.magnitude, scale)
    cell |= {"adjusted": _round(drift.p_adjusted), "sure": drift.significant, "few": drift.magnitude.few}
    cell |= {"step": drift.step, "unknown": drift.unknown}
    if channel == analysis.values.primary:
        cell["times"] = {
            rule: [time.step, _round(time.fraction), _round(time.low), _round(time.high)]
            for rule, time in drift.times.items()
        }
        reliability = analysis.validity["reliability"]
        if topic in reliability and reliability[topic].unreliable and not drift.unknown:
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
    """A curve's mean, interval and number of probes at the steps that are drawn."""
    series: dict[str, Any] = {
        name: [_round(float(value)) for value in _kept(getattr(curve, name)) * scale]
        for name in ("mean", "low", "high")
    }
    return series | {"n": _kept(curve.num_probes).tolist()}


def _kept(series: np.ndarray) -> np.ndarray:
    """Those of a series [S] over the run that are drawn."""
    return series[_evenly(len(series))]


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
