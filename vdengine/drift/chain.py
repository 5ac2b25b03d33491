"""The runs before a run: each names the one that it starts from (`run.after`). Together they are one history."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError
from vdengine.outside import MIB, is_text, parse_toml, printable, read_text
from vdengine.panels.panel import LEADS, OPENINGS
from vdengine.recipe import run_path
from vdengine.runfolder import RunFolder

Planned = Mapping[Path, Mapping[str, Any]]  # by real path of a run folder: the table [run] of the recipe to come there


def earlier_runs(folder: str | Path, after: str | None = None, planned: Planned | None = None) -> list[Path]:
    """The folders of the runs before one, the first of them first.

    Args:
        folder: of the run; it need not be there if `after` is given.
        after: the run before it. Default: what its own recipe.toml says.
        planned: runs that are to be trained before this one.

    Raises:
        InputError: one of them is not there, no run or no name of a folder, or they go in a circle.
    """
    found: list[Path] = []
    here = run_path(str(folder), "the folder of the run")
    before = _before(here, planned) if after is None else run_path(after, "run.after")
    seen = [_real(here)]
    while before is not None:
        if _real(before) in seen:
            names = " after ".join(printable(path) for path in (before, *found, here))
            raise InputError(f"run.after: goes in a circle: {names}")
        if not os.path.isdir(before) and _real(before) not in (planned or {}):
            raise InputError(
                f"{printable(found[0] if found else here)}: run.after: {printable(before)}: no such folder"
            )
        seen.append(_real(before))
        found.insert(0, before)
        before = _before(before, planned)
    return found


def difference(before: DriftLog, after: DriftLog) -> float:
    """By how much the first sample of a run differs from the last one of the run before, where the weights are the
    same: the largest difference of a log-prob sum, nats, over what both have scored. 0.0: the bits are the same. NaN:
    either has no sample, or they have nothing in common."""
    if not len(before.steps) or not len(after.steps):
        return float("nan")
    last, first = _sample(before, -1), _sample(after, 0)
    gaps = [abs(last[name] - first[name]) for name in last.keys() & first.keys()]
    known = np.array([gap for gap in gaps if np.isfinite(gap)])
    return float(known.max()) if len(known) else float("nan")


def edge(before: str, gap: float) -> str:
    """A sentence on `difference`. before: the name of the stage before."""
    if gap == 0:
        return f"the first sample is the last one of {before}, to the bit"
    if np.isnan(gap):
        return f"the first sample cannot be compared with the last one of {before}: they have no score in common"
    return (
        f"the first sample differs from the last one of {before} by up to {gap:.2g} nats: other weights, an adapter "
        "that was merged in between, another kind of machine, or other packs (probes.tokens)"
    )


def _sample(log: DriftLog, index: int) -> dict[tuple[str, ...], float]:
    """A sample of a log: log-prob sums, nats, by what they are of."""
    found = {}
    for channel in (OPENINGS, LEADS):
        if items := log.items(channel):
            values = log.channels[channel].values[len(log.steps) - 1 if index < 0 else index]
            for item, value in zip(items, values.tolist(), strict=True):
                about = (item[name] for name in ("probe", "variant", "stance", "text"))
                found[channel, *about, str(item.get("ids"))] = value
    return found


def _before(folder: Path, planned: Planned | None) -> Path | None:
    """The folder of the run before one; None: it is the first."""
    run = (planned or {}).get(_real(folder))
    if run is None:
        path = RunFolder(folder).recipe
        tables = parse_toml(read_text(path, MIB), printable(path)) if os.path.exists(path) else {}
        run = tables.get("run", {})
    after, named = (run.get(name) for name in ("after", "folder")) if isinstance(run, Mapping) else (None, None)
    if not is_text(after) or not after:
        return None
    there = run_path(after, f"{printable(folder)}: run.after")
    if is_text(named):  # both may have moved together, and a recipe names them from where it was trained
        was = run_path(named, f"{printable(folder)}: run.folder")
        moved = Path(os.path.normpath(Path(os.path.abspath(folder)) / os.path.relpath(there, was)))
        if _real(moved) != _real(there) and os.path.isdir(moved):
            return moved
    return there


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
