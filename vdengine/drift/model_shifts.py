"""Shifts of several saved models against the first, by topic: as data, and as a table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdengine.drift.load import load_run
from vdengine.drift.run import OPENINGS


def model_shifts(folder: str | Path, names: Sequence[str]) -> dict[str, Any]:
    """Each model's shift since the first, by topic and for "all", with its 95% interval over probes.

    Args:
        folder: with the raw scores of the models, in their order.
        names: of the models.

    Returns:
        {panel, unit, axes: {topic: what + means}, models: [{model, step, shifts: {topic: {shift, low, high}}}]}, in
        nats per 100 bytes; null for what is not known. The first model has no shifts.

    Raises:
        InputError: the folder has no scores, or those of one model only.
    """
    run = load_run(folder)
    analysis = run.analysis(OPENINGS)
    values = analysis.values
    models: list[dict[str, Any]] = []
    for k, (name, step) in enumerate(zip(names, values.steps.tolist(), strict=True)):
        shifts = {}
        for topic in [*analysis.topics, "all"] if k else []:
            curve = analysis.curves[topic, values.primary]
            ends = {"shift": curve.mean[k], "low": curve.low[k], "high": curve.high[k]}
            shifts[topic] = {what: 100 * float(x) if math.isfinite(x) else None for what, x in ends.items()}
        models.append({"model": name, "step": step, "shifts": shifts})
    return {
        "panel": run.manifest["panel"],
        "unit": "nats per 100 bytes",
        "axes": dict(values.axes),
        "models": models,
    }


def models_table(found: dict[str, Any]) -> str:
    """Models down, topics across; `found` is of `model_shifts`."""
    first, *others = found["models"]
    topics = list(others[0]["shifts"])
    width = max(10, *(min(len(topic), 14) + 2 for topic in topics))
    names = [f"{k + 1} {model['model']}" for k, model in enumerate(others, 1)]
    name_width = min(max(map(len, names)), 44)
    lines = [
        f"Shifts since 1 {first['model']}, in {found['unit']}; * where the 95% interval over probes excludes 0",
        "",
        f"{'':{name_width}}" + "".join(f"{topic[: width - 2]:>{width}}" for topic in topics),
    ]
    for name, model in zip(names, others, strict=True):
        shown = name if len(name) <= name_width else f"{name[:2]}..{name[-(name_width - 4) :]}"
        cells = "".join(f"{_cell(model['shifts'][topic]):>{width}}" for topic in topics)
        lines.append(f"{shown:{name_width}}{cells}")
    lines += ["", *(f"+ {topic}: {axis}" for topic, axis in found["axes"].items())]
    return "\n".join([*lines, "", "Intervals, controls and odds of two of them: score these two alone."])


def _cell(shift: dict[str, float | None]) -> str:
    mean, low, high = shift["shift"], shift["low"], shift["high"]
    if mean is None:
        return "- "
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return f"{mean:+z.2f}{'*' if clear else ' '}"
