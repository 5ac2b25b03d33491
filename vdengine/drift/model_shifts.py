"""What the readouts say of several saved models, by topic, and their shifts since the first: data, and tables for a
terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.intervals import Estimate, group_of
from vdengine.drift.load import load_run
from vdengine.drift.probe_values import LEAST_COVERAGE, ProbeValues
from vdengine.panels.panel import LEADS, OPENINGS
from vdengine.recipe import LEAD, TEXT

PER = 100.0  # bytes: what text likelihood is shown per


def model_shifts(folder: str | Path, names: Sequence[str]) -> dict[str, Any]:
    """Each model's readouts by topic and for "all", and their shifts since the first, with 95% intervals over probes.

    Args:
        folder: with the raw scores of the models, in their order.
        names: of the models.

    Returns:
        {panel, panel_hash, leads, lead_words, units, axes: {topic: what + means}, models: [{model, step, topics,
        shifts}]}. `leads` are the token ids by spelling and stance of each set of leads, `lead_words` what texts call
        them. topics and shifts: {topic: {lead, lead_coverage, text_likelihood: {question, null, difference}}}, each
        {mean, low, high, num_probes}; null for what is not known. Of a lead also `covered`: False where so few of this
        model's answers begin with one that nothing is said.
        The first model has no shifts. Text likelihood is in nats per 100 bytes, the rest in probability.

    Raises:
        InputError: the folder has no scores.
    """
    run = load_run(folder)
    channels: dict[str, tuple[ProbeValues, np.ndarray, float]] = {}  # by name: [S, P], and its factor
    if run.log is not None and run.log.items(LEADS):
        values = run.lead_values()
        channels |= {"lead": (values, values.channels["lead"], 1.0)}
        channels |= {"lead_coverage": (values, values.channels["coverage"], 1.0)}
    if run.log is not None and run.log.items(OPENINGS):
        values = run.text_values()
        for name, channel in (("question", "question"), ("null", "null"), ("difference", values.primary)):
            channels[f"text_likelihood.{name}"] = values, values.channels[channel], PER
    words = channels["lead"][0].leads if "lead" in channels else ("yes", "no")
    any_values = next(iter(channels.values()))[0]
    topics = [*any_values.topic_names, "all"]

    def cells(sample: int, since: int | None) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for topic in topics:
            of_topic: dict[str, Any] = {}
            for name, (values, per_probe, factor) in channels.items():
                v = per_probe if since is None else per_probe - per_probe[since]
                readout, _, part = name.partition(".")
                cell = _cell(group_of(values, v[[sample]], topic).estimate(0), factor)
                if part:
                    of_topic.setdefault(readout, {})[part] = cell
                else:
                    of_topic[readout] = cell
            if LEAD in of_topic:  # whether enough answers of this model begin with either
                covered = group_of(*channels["lead_coverage"][:2], topic).mean[sample]
                of_topic[LEAD] |= {"covered": bool(covered >= LEAST_COVERAGE)}
            out[topic] = of_topic
        return out

    models: list[dict[str, Any]] = []
    for k, (name, step) in enumerate(zip(names, any_values.steps.tolist(), strict=True)):
        models.append({"model": name, "step": step, "topics": cells(k, None)} | ({"shifts": cells(k, 0)} if k else {}))
    return {
        "panel": run.manifest["panel"],
        "panel_hash": run.panel_hash,
        "leads": run.manifest.get("leads", []),
        "lead_words": list(words),
        "units": {LEAD: "probability", "lead_coverage": "probability", TEXT: "nats per 100 bytes"},
        "axes": dict(any_values.axes),
        "models": models,
    }


def _cell(estimate: Estimate, factor: float) -> dict[str, Any]:
    numbers = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    return {name: factor * x if math.isfinite(x) else None for name, x in numbers.items()} | {
        "num_probes": estimate.num_probes
    }


def models_table(found: dict[str, Any]) -> str:
    """Models down, topics across, a table a readout; `found` is of `model_shifts`, of two models or more."""
    first, *others = found["models"]
    yes, no = found["lead_words"]
    topics = list(others[0]["shifts"])
    width = max(10, *(min(len(topic), 14) + 2 for topic in topics))
    names = [f"{k} {model['model']}" for k, model in enumerate(others, 2)]
    name_width = min(max(map(len, names)), 44)
    of_all = others[0]["shifts"]["all"]
    tables = []
    for readout, title in (
        (LEAD, f"The side that an answer begins with: shift of p({yes}) - p({no}) on the topic's side"),
        (TEXT, "Text likelihood, after the question less after none: shift in nats per 100 bytes"),
    ):
        if readout not in of_all:
            continue
        lines = [f"{title}, since 1 {first['model']}", ""]
        lines.append(f"{'':{name_width}}" + "".join(f"{topic[: width - 2]:>{width}}" for topic in topics))
        for name, model in zip(names, others, strict=True):
            shown = name if len(name) <= name_width else f"{name[:2]}..{name[-(name_width - 4) :]}"
            cells = "".join(f"{_shown(model, topic, readout):>{width}}" for topic in topics)
            lines.append(f"{shown:{name_width}}{cells}")
        tables.append("\n".join(lines))
    notes = [f"+ {topic}: {axis}" for topic, axis in found["axes"].items()]
    notes += ["", "* where the 95% interval over probes excludes 0."]
    if LEAD in of_all:
        notes[-1] += f" -: under {LEAST_COVERAGE:.0%} of answers begin with {yes} or {no}."
    notes.append("Intervals, controls and drift of two of them: score these two alone.")
    return "\n\n".join([*tables, "\n".join(notes)])


def levels_table(found: dict[str, Any]) -> str:
    """What one model's leads say, by topic; text likelihood has no meaning but by its shifts."""
    topics = found["models"][0]["topics"]
    if LEAD not in topics["all"]:
        return "One model: a level of text likelihood says nothing, a shift needs two."
    width, (yes, no) = max(map(len, topics)), found["lead_words"]
    lines = [f"The side that an answer begins with: p({yes}) - p({no}) on the topic's side, and p({yes}) + p({no})", ""]
    lines.append(f"{'topic':{width}}  {'lead':>6}  {'95% interval':>16}  {'coverage':>8}")
    for topic, cells in topics.items():
        lead, coverage = cells[LEAD], cells["lead_coverage"]["mean"]
        numbers = map(lead.get, ("mean", "low", "high")) if lead["covered"] else (None, None, None)
        mean, low, high = (f"{x:+6.2f}" if x is not None else f"{'-':>6}" for x in numbers)
        share = "-" if coverage is None else f"{coverage:.0%}"
        lines.append(f"{topic:{width}}  {mean}  [{low}, {high}]  {share:>8}")
    return "\n".join([*lines, "", f"-: under {LEAST_COVERAGE:.0%} of answers begin with either, and nothing is said."])


def _shown(model: dict[str, Any], topic: str, readout: str) -> str:
    shift = model["shifts"][topic][readout]
    if readout == TEXT:
        shift = shift["difference"]
    elif not shift["covered"]:
        return "- "
    mean, low, high = shift["mean"], shift["low"], shift["high"]
    if mean is None:
        return "- "
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return f"{mean:+z.2f}{'*' if clear else ' '}"
