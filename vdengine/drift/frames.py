"""A run's numbers as rows of tidy tables: one observation a row, units raw (nats per byte, probability).

Every function takes `head`, the cells that each of its rows begins with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from vdengine.drift.agreement import Agreement
from vdengine.drift.analysis import Analysis, Curve
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.checks import checks, estimate_cells
from vdengine.drift.correlation import Correlation
from vdengine.drift.cost import Cost, finite
from vdengine.drift.importance import gate
from vdengine.drift.intervals import mean_estimate
from vdengine.drift.panel_log import DriftLog
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


def moved(row: Row, steps: int) -> Row:
    """A row whose steps count from so many steps earlier."""
    named = {"step", "anchor", "against", "baseline", *(f"{rule}_step" for rule in RULES)}
    return {name: value + steps if name in named and value is not None else value for name, value in row.items()}


# ------------------------------------------------------------------------------------------------ training, cost


def metric_rows(head: Row, metrics: Sequence[Row]) -> list[Row]:
    """metrics.jsonl in long form: step, metric, value."""
    return [
        head | {"step": int(row["step"]), "metric": name, "value": number}
        for row in metrics
        for name, value in row.items()
        if name != "step" and (number := finite(value)) is not None
    ]


def cost_rows(head: Row, metrics: Sequence[Row]) -> list[Row]:
    """One row, or none where no time was logged."""
    cost = Cost.of(metrics)
    if cost is None:
        return []
    return [head | {field.name: getattr(cost, field.name) for field in fields(cost)} | {"share": cost.share}]


# ----------------------------------------------------------------------------------------------------- raw data


def probe_rows(head: Row, values: ProbeValues) -> list[Row]:
    """v of every probe at every sample, in every channel; cells that were not sampled are left out."""
    return [
        head
        | {
            "step": int(step),
            "probe": str(values.probes[probe]),
            "topic": str(values.topics[probe]),
            "polarity": int(values.polarity[probe]),
            "channel": channel,
            "value": float(v[sample, probe]),
            "unit": values.unit,
        }
        for channel, v in values.channels.items()
        for sample, step in enumerate(values.steps)
        for probe in np.flatnonzero(np.isfinite(v[sample]))
    ]


def branch_rows(head: Row, log: DriftLog, channel: str) -> list[Row]:
    """The log-prob of every lead or opening at every sample, nats; what was not sampled is left out. channel: "leads"
    or "openings"."""
    items = [
        item | {"ids": " ".join(map(str, item["ids"]))} if "ids" in item else item for item in log.items(channel)
    ]  # a cell holds no list
    if not items:
        return []
    logp = log.channels[channel].values[: len(log.steps)]
    return [
        head | {"step": int(step)} | items[branch] | {"logp": float(logp[sample, branch])}
        for sample, step in enumerate(log.steps)
        for branch in np.flatnonzero(np.isfinite(logp[sample]))
    ]


def answer_rows(head: Row, log: AnswerLog, stances: dict[str, np.ndarray]) -> list[Row]:
    """Every answer, once for each judge; without a judge once, with no verdict.

    Args:
        stances: by judge, [len(log.answers), 3] float64: p(support, neutral, oppose) towards the prompt's proposition;
            NaN where there is no verdict.
    """
    probes = {probe.id: probe for probe in log.panel.probes}
    unjudged = np.full((len(log.answers), 3), np.nan)
    by_judge: list[tuple[str | None, np.ndarray]] = [*stances.items()] or [(None, unjudged)]
    return [
        head
        | {
            "step": answer.anchor,
            "probe": answer.probe,
            "topic": probes[answer.probe].topic,
            "polarity": probes[answer.probe].polarity,
            "sample": answer.sample,
            "stopped": answer.stopped,
            "text": answer.text,
            "judge": judge,
            "support": float(of_answer[i, 0]),
            "neutral": float(of_answer[i, 1]),
            "oppose": float(of_answer[i, 2]),
        }
        for judge, of_answer in by_judge
        for i, answer in enumerate(log.answers)
    ]


# ----------------------------------------------------------------------------------------------------- analyses


def curve_rows(head: Row, analysis: Analysis, shown: Sequence[str] | None = None) -> list[Row]:
    """Every curve at every step that it has, and what samples say by themselves where it lies between them; shown: only
    these topics."""
    values = analysis.values

    def rows(curve: Curve, smoothed: bool = analysis.smoothing != "none") -> list[Row]:
        """`kind` and `anchor` are of samples: a curve between them has none."""
        sampled = curve.points is None
        own = [] if curve.points is None else rows(curve.points, smoothed=False)
        return own + [
            head
            | {
                "topic": curve.topic,
                "channel": curve.channel,
                "what": "level" if curve.level else "shift",
                "smoothed": smoothed,
                "unit": values.unit,
                "step": int(step),
                "kind": str(values.kinds[i]) if sampled and values.kinds is not None else None,
                "anchor": int(values.anchors[i]) if sampled and values.anchors is not None else None,
                "mean": curve.mean[i],
                "low": curve.low[i],
                "high": curve.high[i],
                "num_probes": int(curve.num_probes[i]),
                "noise": None if curve.noise is None else curve.noise[i],
            }
            for i, step in enumerate(curve.steps)
        ]

    curves = [*analysis.curves.items(), *analysis.levels.items()]
    return [row for (topic, _), curve in curves if shown is None or topic in shown for row in rows(curve)]


def magnitude_rows(head: Row, analysis: Analysis, shown: Sequence[str] | None = None) -> list[Row]:
    """Every magnitude with its drift times; shown: only these topics."""
    rows = []
    for (topic, channel), drift in analysis.drifts.items():
        if shown is None or topic in shown:
            times = {
                f"{rule}_{name}": getattr(drift.times[rule], name)
                for rule in RULES
                for name in ("step", "fraction", "low", "high")
            }
            rows.append(
                head
                | {"topic": topic, "channel": channel, "unit": analysis.values.unit}
                | estimate_cells(drift.magnitude)
                | {"p_adjusted": drift.p_adjusted, "significant": drift.significant, "few": drift.magnitude.few}
                | {"unknown": drift.unknown or None}
                | times
            )
    return rows


def validity_rows(head: Row, analysis: Analysis) -> list[Row]:
    """One row a check, as in `drift/checks.py`."""
    return [head | {"check": check.name, "unit": check.unit} | check.numbers for check in checks(analysis)]


def reliability_rows(head: Row, analysis: Analysis, topics: Sequence[str] | None = None) -> list[Row]:
    """One row a topic; topics: only these."""
    return [
        head | {field.name: getattr(reliability, field.name) for field in fields(reliability)}
        for topic, reliability in analysis.validity["reliability"].items()
        if topics is None or topic in topics
    ]


def agreement_rows(head: Row, analysis: Analysis, shown: Sequence[str] | None = None) -> list[Row]:
    """Agreement with further judges and with paraphrases, a row a topic; shown: only these topics, and "topics"."""
    validity = analysis.validity
    agreements: dict[str, Agreement | None] = {
        f"judge {name}": agreement for name, agreement in (validity["judges"] or {}).items()
    }
    if validity["paraphrase"]:
        agreements["paraphrase"] = validity["paraphrase"]["agreement"]
    rows = []
    for name, agreement in agreements.items():
        for topic, match in agreement.matches.items() if agreement else ():
            if shown is None or topic in (*shown, "topics"):
                correlations: Row = {}
                for series in ("level", "shift", "curve", "magnitude"):
                    r: Correlation = getattr(match, series)
                    cells = {"pearson": r.pearson, "low": r.interval[0], "high": r.interval[1], "spearman": r.spearman}
                    cells |= {"ceiling": r.ceiling, "disattenuated": r.disattenuated}
                    correlations |= {f"{series}_{statistic}": value for statistic, value in cells.items()}
                others = {
                    statistic: getattr(match, statistic)
                    for statistic in (
                        "sign",
                        "clear_sign",
                        "num_clear",
                        "error",
                        "coverage",
                        "difference",
                        "drift_time",
                    )
                }
                rows.append(head | {"with": name, "topic": topic} | correlations | others)
    return rows


# ------------------------------------------------------------------------------------------- answers and anchors


def gate_rows(head: Row, log: AnswerLog) -> list[Row]:
    """Diagnostics of every reading between anchors. They are of log-probs alone and need no judge."""
    anchors = set(log.anchors)
    first: dict[int, np.ndarray] = {}  # by anchor: [P * samples] log-prob sums at its own step, nats
    latest: dict[int, tuple[int, np.ndarray]] = {}  # by step: its newest anchor, and log-prob sums
    for record in log.readings():
        step, anchor = int(record["step"]), int(record["anchor"])
        if step == anchor:
            first[anchor] = record["logp"]
        elif step not in anchors and anchor in first and (step not in latest or latest[step][0] < anchor):
            latest[step] = anchor, record["logp"]
    rows = []
    for step, (anchor, logp) in sorted(latest.items()):
        diagnostics = gate(first[anchor], logp)
        rows.append(
            head
            | {
                "step": step,
                "anchor": anchor,
                "kl": diagnostics.kl,
                "ess": diagnostics.ess,
                "pareto_k": diagnostics.pareto_k,
                "mean_weight": diagnostics.mean_weight,
                "open": diagnostics.open,
            }
        )
    return rows


def support_rows(head: Row, log: AnswerLog) -> list[Row]:
    """By anchor: the share of answers of kinds that the anchor before it lacks, in excess of what chance gives."""
    return [
        head | {"anchor": support.anchor, "against": support.against} | estimate_cells(mean_estimate(support.excess))
        for support in log.support()
    ]
