"""What is known of a run as rows of tidy tables: one observation a row, units raw (nats per byte, probability)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vdengine.drift.agreement import Agreement
from vdengine.drift.analysis import Analysis, Curve
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.importance import gate
from vdengine.drift.intervals import Estimate, mean_estimate
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import RULES

Row = dict[str, Any]


def as_frame(rows: Sequence[Row]) -> Any:
    """A pandas DataFrame where pandas is installed, else columns: {name: list}, None where a row has no such cell."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(c for row in rows for c in row)}
    if importlib.util.find_spec("pandas") is None:
        return columns
    import pandas

    return pandas.DataFrame(columns)


def finite(value: Any) -> float | None:
    """A finite number, or None: rows come from a file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


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
        timed = [row for row in rows if finite(row.get("step_seconds")) is not None]
        if not timed:
            return None
        total, probes, answers, last = 0.0, 0.0, 0.0, 0
        for row in timed:
            since, last = max(row["step"] - last, 1), row["step"]
            total += since * row["step_seconds"]
            probes += since * (finite(row.get("probe_seconds")) or 0.0)
            answers += since * (finite(row.get("answers_seconds")) or 0.0)
        return cls(last, total, probes, answers)


# ------------------------------------------------------------------------------------------------ rows of tables


def metric_rows(head: Row, metrics: Sequence[Row]) -> list[Row]:
    """Long form of metrics.jsonl: step, metric, value."""
    return [
        head | {"step": int(row["step"]), "metric": name, "value": value}
        for row in metrics
        for name, each in row.items()
        if name != "step" and (value := finite(each)) is not None
    ]


def cost_rows(head: Row, metrics: Sequence[Row]) -> list[Row]:
    """One row, or none where no time was logged."""
    cost = Cost.of(metrics)
    return (
        [] if cost is None else [head | {f.name: getattr(cost, f.name) for f in fields(cost)} | {"share": cost.share}]
    )


def probe_rows(head: Row, values: ProbeValues) -> list[Row]:
    """v of every probe at every sample, in every channel; what was not sampled is left out."""
    return [
        head | {
            "step": int(step), "probe": str(values.probes[p]), "topic": str(values.topics[p]),
            "polarity": int(values.polarity[p]), "channel": channel, "value": float(v[s, p]), "unit": values.unit,
        }
        for channel, v in values.channels.items()
        for s, step in enumerate(values.steps)
        for p in np.flatnonzero(np.isfinite(v[s]))
    ]  # fmt: skip


def opening_rows(head: Row, log: DriftLog) -> list[Row]:
    """The raw log: the log-prob sum of every branch at every sample, nats; what was not sampled is left out."""
    logp = log.logp
    return [
        head | {"step": int(step)} | log.table[b] | {"logp": float(logp[s, b])}
        for s, step in enumerate(log.steps)
        for b in np.flatnonzero(np.isfinite(logp[s]))
    ]


def answer_rows(head: Row, log: AnswerLog, stances: dict[str, np.ndarray]) -> list[Row]:
    """Every answer, once for each judge: p(support), p(neutral), p(oppose) towards the prompt's proposition; NaN where
    there is no verdict. stances: by judge, [answers, 3]. Without a judge once, with no verdict."""
    probes = {p.id: p for p in log.panel.probes}
    unjudged = np.full((len(log.answers), 3), np.nan)
    by_judge: list[tuple[str | None, np.ndarray]] = [*stances.items()] or [(None, unjudged)]
    return [
        head | {
            "step": a.anchor, "probe": a.probe, "topic": probes[a.probe].topic, "polarity": probes[a.probe].polarity,
            "sample": a.sample, "stopped": a.stopped, "text": a.text, "judge": judge,
            "support": float(x[i, 0]), "neutral": float(x[i, 1]), "oppose": float(x[i, 2]),
        }
        for judge, x in by_judge
        for i, a in enumerate(log.answers)
    ]  # fmt: skip


def _estimate(e: Estimate) -> Row:
    return {"mean": e.mean, "low": e.low, "high": e.high, "p": e.p, "num_probes": e.num_probes}


def curve_rows(head: Row, a: Analysis, shown: Sequence[str] | None = None) -> list[Row]:
    r = a.values

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
    return [row for (topic, _), curve in found if shown is None or topic in shown for row in rows(curve)]


def magnitude_rows(head: Row, a: Analysis, shown: Sequence[str] | None = None) -> list[Row]:
    out = []
    for (topic, channel), d in a.drifts.items():
        if shown is None or topic in shown:
            times = {f"{rule}_{f}": getattr(d.times[rule], f) for rule in RULES for f in _TIMES}
            out.append(
                head | {"topic": topic, "channel": channel, "unit": a.values.unit}
                | _estimate(d.magnitude)
                | {"p_adjusted": d.p_adjusted, "significant": d.significant, "few": d.magnitude.few} | times
            )  # fmt: skip
    return out


_TIMES = ("step", "fraction", "low", "high")


def validity_rows(head: Row, a: Analysis) -> list[Row]:
    return [head | {"check": c.name, "unit": c.unit} | c.numbers for c in checks(a)]


def reliability_rows(head: Row, a: Analysis, topics: Sequence[str] | None = None) -> list[Row]:
    found = a.validity["reliability"]
    return [
        head | {f.name: getattr(found[t], f.name) for f in fields(found[t])}
        for t in found
        if topics is None or t in topics
    ]


def agreement_rows(head: Row, a: Analysis, shown: Sequence[str] | None = None) -> list[Row]:
    v = a.validity
    found: dict[str, Agreement | None] = {f"judge {name}": a for name, a in (v["judges"] or {}).items()}
    if v["paraphrase"]:
        found["paraphrase"] = v["paraphrase"]["agreement"]
    out = []
    for name, agreement in found.items():
        for topic, m in agreement.matches.items() if agreement else ():
            if shown is None or topic in (*shown, "topics"):
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


def gate_rows(head: Row, log: AnswerLog) -> list[Row]:
    """Diagnostics of every reading between anchors. They need no judge: they are of log-probs alone."""
    anchors = set(log.anchors)
    first: dict[int, np.ndarray] = {}
    latest: dict[int, tuple[int, np.ndarray]] = {}  # step: newest anchor and its answers' log-probs
    for record in log.readings():
        step, anchor = int(record["step"]), int(record["anchor"])
        if step == anchor:
            first[anchor] = record["logp"]
        elif step not in anchors and anchor in first and (step not in latest or latest[step][0] < anchor):
            latest[step] = anchor, record["logp"]
    out = []
    for step, (anchor, logp) in sorted(latest.items()):
        g = gate(first[anchor], logp)
        row = head | {"step": step, "anchor": anchor, "kl": g.kl, "ess": g.ess, "pareto_k": g.pareto_k}
        out.append(row | {"mean_weight": g.mean_weight, "open": g.open})
    return out


def support_rows(head: Row, log: AnswerLog) -> list[Row]:
    """By anchor: the share of answers of kinds that the anchor before has not, beyond what chance gives."""
    out = []
    for s in log.support():
        e = mean_estimate(s.excess)
        out.append(head | {"anchor": s.anchor, "against": s.against} | _estimate(e))
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


def checks(a: Analysis) -> list[Check]:
    """What was measured, in the order of the strip. Shifts are marked where their interval excludes 0 and they are at
    least as large as the largest significant shift of a topic is half of."""
    v, primary = a.validity, a.values.primary
    largest = max(
        (abs(d.magnitude.mean) for (t, c), d in a.drifts.items() if c == primary and d.significant), default=0.0
    )
    out = []
    for name, label, what in _SHIFTS:
        e: Estimate | None = v[name]
        if e is not None and math.isfinite(e.mean):
            warn = name != "displacement" and e.significant and abs(e.mean) >= largest / 2
            out.append(Check(name, label, what, a.values.unit, _estimate(e), warn))
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
