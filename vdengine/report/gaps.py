"""Audits of the training data (`vdengine gap --out`), each beside the run that it was an audit for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdengine.drift.run import Run
from vdengine.errors import InputError


@dataclass(frozen=True)
class Gap:
    """One reading (the scorer's or a judge's) of one data set, and a run that was trained on it."""

    source: str
    method: str
    run: Run
    topics: dict[str, dict[str, Any]]  # "gap", "low", "high", "rows", "few"
    other_panel: bool  # topics are matched by name only

    def rows(self, shown: Sequence[str]) -> list[dict[str, Any]]:
        """Gap and drift by topic, once for each readout of the run."""
        out = []
        for view in self.run.views.values():
            for topic in shown:
                d = view.analysis.drifts.get((topic, view.analysis.values.primary))
                gap = self.topics.get(topic)
                if d is not None and gap is not None and math.isfinite(gap["gap"]):
                    m = d.magnitude
                    out.append(
                        {"run": self.run.name, "source": self.source, "method": self.method, "topic": topic, **gap,
                         "readout": view.kind, "judge": view.judge or None, "unit": view.analysis.values.unit,
                         "drift": m.mean, "drift_low": m.low, "drift_high": m.high, "significant": d.significant}
                    )  # fmt: skip
        return out


def load_gaps(files: Sequence[str | Path], runs: Sequence[Run]) -> list[Gap]:
    """Match audits to runs by what their recipes train on; with one run only, to that one.

    Raises:
        InputError: a file that is no audit of pairs, or of data that none of several runs was trained on.
    """
    return [gap for file in files for gap in _load(Path(file), runs)]


def _load(path: Path, runs: Sequence[Run]) -> list[Gap]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not the JSON that `vdengine gap --out` writes ({error})") from None
    if not isinstance(found, dict) or found.get("audit") != "gap":
        kind = f"an audit of kind {found.get('audit')!r}" if isinstance(found, dict) else "no audit"
        raise InputError(f"{path}: is {kind}; --gap takes what `vdengine gap --out` writes")
    try:
        source = str(found["source"])
        tables = {str(found["method"]): found}
        if "judge" in found:
            tables[f"judge {found['judge']['name']}"] = found["judge"]
        read = {m: {t: _entry(e) for t, e in {**x["topics"], "all": x["all"]}.items()} for m, x in tables.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged, or of another version ({error!r})") from None
    matched = [run for run in runs if source in run.sources] or (list(runs) if len(runs) == 1 else [])
    if not matched:
        known = ", ".join(dict.fromkeys(s for run in runs for s in run.sources)) or "nothing that is known"
        raise InputError(f"{path}: is about {source}, which none of these runs was trained on; they were on {known}")
    panel = found.get("panel_hash")
    return [Gap(source, m, run, topics, panel != run.panel_hash) for m, topics in read.items() for run in matched]


def _entry(e: dict[str, Any]) -> dict[str, Any]:
    """A topic's numbers; JSON's null is NaN."""
    numbers = {k: math.nan if e[k] is None else float(e[k]) for k in ("gap", "low", "high")}
    return {**numbers, "rows": int(e["rows"]), "few": bool(e["few"])}
