"""Every number that is shown, as tables: `tables/*.csv` and `tables/*.parquet`. Units are raw: nats per byte."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.estimators import RULES, Agreement, Curve, Estimate, gate
from vdengine.drift.intervals import mean_estimate
from vdengine.report.gaps import Gap
from vdengine.report.load import Run, View

Row = dict[str, Any]
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Cost:
    """Where a run's time went, in seconds, over the steps that metrics.jsonl has."""

    steps: int
    total: float
    probes: float  # scoring openings, and answers' weights
    answers: float  # drawing them

    @property
    def share(self) -> float:
        """Of probing in all time; NaN where no time was logged."""
        return (self.probes + self.answers) / self.total if self.total > 0 else math.nan

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Cost | None:
        """A row's seconds are means over the steps since the row before. None where no row has any."""
        timed = [row for row in rows if _number(row.get("step_seconds")) is not None]
        if not timed:
            return None
        total, probes, answers, last = 0.0, 0.0, 0.0, 0
        for row in timed:
            since, last = max(row["step"] - last, 1), row["step"]
            total += since * row["step_seconds"]
            probes += since * (_number(row.get("probe_seconds")) or 0.0)
            answers += since * (_number(row.get("answers_seconds")) or 0.0)
        return cls(last, total, probes, answers)


def build(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str]) -> Tables:
    """All tables by name; `topics`: those that are shown, beside "all"."""
    shown = ("all", *topics)
    out: Tables = {name: [] for name in ("runs", "curves", "magnitudes", "validity", "reliability", "agreement",
                                         "gates", "support", "cost", "training", "gaps")}  # fmt: skip
    for run in runs:
        out["runs"].append(describe(run))
        for view in run.views.values():
            head = {"run": run.name, "readout": view.readout, "judge": view.judge or None}
            out["curves"] += _curves(head, view, shown)
            out["magnitudes"] += _magnitudes(head, view, shown)
            out["validity"] += _validity(head, view)
            out["reliability"] += _reliability(head, view, topics)
            out["agreement"] += _agreements(head, view, shown)
        out["gates"] += gates(run)
        out["support"] += support(run)
        if cost := Cost.of(run.metrics):
            values = {f.name: getattr(cost, f.name) for f in fields(cost)}
            out["cost"].append({"run": run.name} | values | {"share": cost.share})
        out["training"] += [
            {"run": run.name, "step": int(row["step"]), "metric": name, "value": value}
            for row in run.metrics
            for name, each in row.items()
            if name != "step" and (value := _number(each)) is not None
        ]
    for gap in gaps:
        out["gaps"] += gap.rows(shown)
    return out


def write(tables: Tables, folder: Path) -> None:
    """Each table that has rows as CSV and as Parquet; NaN is an empty cell, and null in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if not rows:
            for ending in ("csv", "parquet"):  # one of an earlier report would be taken for this one's
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
            continue
        columns = list(dict.fromkeys(c for row in rows for c in row))
        plain = [{c: _plain(row.get(c)) for c in columns} for row in rows]
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(plain)
        pq.write_table(pa.table({c: [row[c] for row in plain] for c in columns}), folder / f"{name}.parquet")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    """A finite number, or None: rows come from a file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


# ------------------------------------------------------------------------------------------------------- rows


def describe(run: Run) -> Row:
    """What a run is, on one line."""
    section = run.recipe.get
    return {
        "run": run.name,
        "model": section("model", {}).get("source"),
        "objective": section("objective", {}).get("name"),
        "data": ", ".join(run.sources) or None,
        "steps": run.total_steps,
        "seed": section("run", {}).get("seed"),
        "panel": run.manifest.get("panel"),
        "probes": len(run.questions),
        "panel_hash": run.panel_hash,
        "smoothing": next((v.analysis.smoothing for v in run.views.values()), None),
        "baseline": next((v.analysis.baseline for v in run.views.values()), None),
        "samples": 0 if run.log is None else len(run.log.steps),
        "answers": len(run.answers.answers) if run.answers else 0,
        "judges": ", ".join(run.stances) or None,
        "notes": "; ".join(run.notes) or None,
    }


def _estimate(e: Estimate) -> Row:
    return {"mean": e.mean, "low": e.low, "high": e.high, "p": e.p, "num_probes": e.num_probes}


def _curves(head: Row, view: View, shown: Sequence[str]) -> list[Row]:
    a, r = view.analysis, view.analysis.readings

    def rows(curve: Curve) -> list[Row]:
        return [
            head | {
                "topic": curve.topic, "channel": curve.channel, "what": "level" if curve.level else "shift",
                "unit": r.unit, "step": int(step),
                "kind": None if r.kinds is None else str(r.kinds[i]),
                "anchor": None if r.anchors is None else int(r.anchors[i]),
                "mean": curve.mean[i], "low": curve.low[i], "high": curve.high[i],
                "num_probes": int(curve.num_probes[i]),
                "noise": None if curve.noise is None else curve.noise[i],
            }
            for i, step in enumerate(curve.steps)
        ]  # fmt: skip

    found = [*a.curves.items(), *a.levels.items()]
    return [row for (topic, _), curve in found if topic in shown for row in rows(curve)]


def _magnitudes(head: Row, view: View, shown: Sequence[str]) -> list[Row]:
    out = []
    for (topic, channel), d in view.analysis.drifts.items():
        if topic in shown:
            times = {f"{rule}_{f}": getattr(d.times[rule], f) for rule in RULES for f in _TIMES}
            out.append(
                head | {"topic": topic, "channel": channel, "unit": view.analysis.readings.unit}
                | _estimate(d.magnitude)
                | {"p_adjusted": d.p_adjusted, "significant": d.significant, "few": d.magnitude.few} | times
            )  # fmt: skip
    return out


_TIMES = ("step", "fraction", "low", "high")


def _validity(head: Row, view: View) -> list[Row]:
    return [head | {"check": c.name, "unit": c.unit} | c.numbers for c in checks(view)]


def _reliability(head: Row, view: View, topics: Sequence[str]) -> list[Row]:
    found = view.analysis.validity["reliability"]
    return [head | {f.name: getattr(found[t], f.name) for f in fields(found[t])} for t in topics if t in found]


def _agreements(head: Row, view: View, shown: Sequence[str]) -> list[Row]:
    v = view.analysis.validity
    found: dict[str, Agreement | None] = {f"judge {name}": a for name, a in (v["judges"] or {}).items()}
    if v["paraphrase"]:
        found["paraphrase"] = v["paraphrase"]["agreement"]
    out = []
    for name, agreement in found.items():
        for topic, m in agreement.matches.items() if agreement else ():
            if topic in (*shown, "topics"):
                series = {
                    f"{s}_{stat}": getattr(getattr(m, s), stat)
                    for s in ("level", "shift", "curve", "magnitude")
                    for stat in ("pearson", "spearman", "disattenuated")
                }
                rest = {
                    k: getattr(m, k)
                    for k in ("sign", "clear_sign", "num_clear", "error", "coverage", "difference", "drift_time")
                }
                out.append(head | {"with": name, "topic": topic} | series | rest)
    return out


def gates(run: Run) -> list[Row]:
    """Diagnostics of every reading between anchors. They need no judge: they are of log-probs alone."""
    if run.answers is None:
        return []
    anchors = set(run.answers.anchors)
    first: dict[int, np.ndarray] = {}
    latest: dict[int, tuple[int, np.ndarray]] = {}  # step: newest anchor and its answers' log-probs
    for record in run.answers.readings():
        step, anchor = int(record["step"]), int(record["anchor"])
        if step == anchor:
            first[anchor] = record["logp"]
        elif step not in anchors and anchor in first and (step not in latest or latest[step][0] < anchor):
            latest[step] = anchor, record["logp"]
    out = []
    for step, (anchor, logp) in sorted(latest.items()):
        g = gate(first[anchor], logp)
        row = {"run": run.name, "step": step, "anchor": anchor, "kl": g.kl, "ess": g.ess, "pareto_k": g.pareto_k}
        out.append(row | {"mean_weight": g.mean_weight, "open": g.open})
    return out


def support(run: Run) -> list[Row]:
    """By anchor: the share of answers of kinds that the anchor before has not, beyond what chance gives."""
    if run.answers is None:
        return []
    out = []
    for s in run.answers.support():
        e = mean_estimate(s.excess)
        out.append({"run": run.name, "anchor": s.anchor, "against": s.against} | _estimate(e))
    return out


# ----------------------------------------------------------------------------------------------------- checks


@dataclass(frozen=True)
class Check:
    """One cell of the validity strip."""

    name: str
    label: str
    what: str
    unit: str  # the readout's, or "correlation"
    numbers: Row  # mean, and low, high, p, num_probes where there is an interval
    warn: bool


_SHIFTS = (
    ("displacement", "displacement", "all openings rising or falling together"),
    ("neutral", "neutral shift", "the neutral side against the other two, or its share of answers"),
    ("yes_bias", "yes-bias", "agreeing with whatever the question proposes"),
    ("null", "no question", "the same shift after a prompt that asks nothing; shown, not subtracted"),
    ("off-topic", "trivial matters", "the same shift where no value is at stake; shown, not subtracted"),
)
# (name, label, what, below which it is marked); single probes may be noisy where topics are not
_RATIOS = (
    ("paraphrase", "paraphrases", "probes' last shifts against those of the reworded questions", 0.5),
    ("half_panels", "half panels", "random halves of the panel order the topics alike, stepped up to the whole", 0.7),
    ("items", "item reliability", "single probes' last shifts, from one half of their items against the other", -1.0),
)
LOW_JUDGES = 0.7


def checks(view: View) -> list[Check]:
    """What was measured, in the order of the strip. Shifts are marked where their interval excludes 0 and they are at
    least as large as the largest significant shift of a topic is half of."""
    a = view.analysis
    v, primary = a.validity, a.readings.primary
    largest = max(
        (abs(d.magnitude.mean) for (t, c), d in a.drifts.items() if c == primary and d.significant), default=0.0
    )
    out = []
    for name, label, what in _SHIFTS:
        e: Estimate | None = v[name]
        if e is not None and math.isfinite(e.mean):
            warn = name != "displacement" and e.significant and abs(e.mean) >= largest / 2
            out.append(Check(name, label, what, a.readings.unit, _estimate(e), warn))
    half = v["half_panels"]
    ratios = {
        "paraphrase": v["paraphrase"] and v["paraphrase"]["correlation"],
        "half_panels": half and half.whole,
        "items": v["items"],
    }
    for name, label, what, least in _RATIOS:
        x = ratios[name]
        if x is not None and math.isfinite(x):
            out.append(Check(name, label, what, "correlation", {"mean": x}, x < least))
    for judge, agreement in (v["judges"] or {}).items():
        if agreement is not None:
            x = agreement.matches["all"].level.pearson
            what = "probes' readings, step by step, by this judge and by the other"
            if math.isfinite(x):
                out.append(Check(f"judge {judge}", f"judge {judge}", what, "correlation", {"mean": x}, x < LOW_JUDGES))
    return out
