"""The data of the page: everything that its program draws and shows, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from vdengine.drift.run import ANSWERS, Readout, Run, judges_of
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES
from vdengine.recipe import LEAD, TEXT
from vdengine.report.gaps import Gap
from vdengine.report.metrics import CHARTS, Chart, Metrics, missing_samples, other_charts
from vdengine.report.recipes import compare
from vdengine.report.repeats import Repeats, repeats_of
from vdengine.report.sentences import READINGS, Reading, caveats, reading_of, verdict
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
    head = {name: getattr(reading, name) for name in ("name", "kind", "part", "label", "sentence", "unit")}
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
        "panel": f"{about['panel']}, {about['probes']} probes, hash {run.panel_hash[:12]}",
        "read with": f"smoothing {_smoothings(run)}, baseline step {about['baseline']}" if run.views else None,
    }
    return {
        "name": run.name,
        "header": [[name, short(value, MAX_NAME)] for name, value in header.items() if value],
        "notes": _notes([*run.notes, *missing_samples(run), *metrics.notes]),
        "empty": run.empty,
        "total": run.total_steps,
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
    log = run.capability
    checks = log.checks() if log is not None else []
    if log is None or not checks:
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
    kept = _evenly(len(values.steps))  # samples that are drawn
    shown = _shown(analysis, topics)
    levels = LEVELS.get(view.kind, ())
    parts = ("question", "null") if view.kind == TEXT else ()
    return {
        "reading": reading.name,
        "judge": view.judge,
        "primary": values.primary,
        "channels": list(values.channels),
        "baseline": analysis.baseline,
        "smoothing": analysis.smoothing,
        "samples": len(values.steps),
        "steps": values.steps[kept].tolist(),
        "kinds": None if values.kinds is None else values.kinds[kept].tolist(),
        "curves": {t: _curve(analysis.curves[t, values.primary], reading.scale, kept) for t in shown},
        "parts": {t: {p: _curve(analysis.curves[t, p], reading.scale, kept) for p in parts} for t in shown if parts},
        "levels": {t: {c: _curve(analysis.levels[t, c], 1.0, kept) for c in levels} for t in shown if levels},
        "drifts": {t: {c: _drift(analysis, t, c, reading.scale) for c in values.channels} for t in shown},
        "strip": [_check(check, reading.scale) for check in checks(analysis)],
        "verdict": verdict(view),
        "caveats": caveats(view),
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
        kept = _evenly(len(values.steps))
        levels = {t: _curve(analysis.levels[t, values.primary], 1.0, kept) for t in _shown(analysis, topics)}
        found[judge] = {"steps": values.steps[kept].tolist(), "levels": levels}
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


def _curve(curve: Curve, scale: float, kept: np.ndarray) -> dict[str, Any]:
    """A curve's mean, interval and number of probes; kept: [m] int64 indexes of the samples that are drawn."""
    series: dict[str, Any] = {
        name: [_round(float(value)) for value in getattr(curve, name)[kept] * scale] for name in ("mean", "low", "high")
    }
    return series | {"n": curve.num_probes[kept].tolist()}


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
