"""Value gaps of training data (`vdengine gap --out`), matched to the runs that were trained on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdengine.drift.probe_values import topic_name
from vdengine.drift.run import Run
from vdengine.errors import InputError
from vdengine.outside import parse_json, printable, read_bytes


@dataclass(frozen=True)
class Gap:
    """The value gap of one data set by one method, and a run that was trained on it."""

    source: str  # the data
    method: str  # of reading stances: "words", "scorer" or "judge <name>"
    run: Run
    topics: dict[str, dict[str, Any]]  # by topic and "all": "gap", "low", "high", "rows", "few"
    other_panel: bool  # the run has another panel: topics are matched by name only

    def rows(self, shown: Sequence[str]) -> list[dict[str, Any]]:
        """Gap and drift by topic, once for each readout of the run."""
        rows = []
        for view in self.run.own_views.values():  # the data are of the last stage alone
            for topic in shown:
                drift = view.analysis.drifts.get((topic, view.analysis.values.primary))
                gap = self.topics.get(topic)
                if drift is not None and gap is not None and math.isfinite(gap["gap"]):
                    rows.append(
                        {
                            "run": self.run.name,
                            "source": self.source,
                            "method": self.method,
                            "topic": topic,
                            **gap,
                            "readout": view.kind,
                            "judge": view.judge or None,
                            "part": view.part or None,
                            "unit": view.analysis.values.unit,
                            "drift": drift.magnitude.mean,
                            "drift_low": drift.magnitude.low,
                            "drift_high": drift.magnitude.high,
                            "significant": drift.significant,
                        }
                    )
        return rows


def load_gaps(files: Sequence[str | Path], runs: Sequence[Run]) -> list[Gap]:
    """Match audits to runs by what their recipes train on; with one run only, to that one.

    Raises:
        InputError: a file that cannot be read or is no audit of pairs; data that none of several runs was trained on.
    """
    return [gap for file in files for gap in _load(Path(file), runs)]


def _load(path: Path, runs: Sequence[Run]) -> list[Gap]:
    """The gaps in one file, by method and run."""
    try:
        result = parse_json(read_bytes(path), printable(path))
    except InputError as error:
        raise InputError(f"{error}; --gap takes what `vdengine gap --out` writes") from None
    if not isinstance(result, dict) or result.get("audit") != "gap":
        kind = f"an audit of kind {result.get('audit')!r}" if isinstance(result, dict) else "no audit"
        raise InputError(f"{path}: is {kind}; --gap takes what `vdengine gap --out` writes")
    try:
        source = str(result["source"])
        tables = {str(result["method"]): result}
        if "judge" in result:
            tables[f"judge {result['judge']['name']}"] = result["judge"]
        by_method = {
            method: {topic_name(topic): _entry(entry) for topic, entry in table["topics"].items()}
            | {"all": _entry(table["all"])}
            for method, table in tables.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path}: damaged, or of another version ({error!r})") from None
    matched = [run for run in runs if source in run.sources] or (list(runs) if len(runs) == 1 else [])
    if not matched:
        known = ", ".join(dict.fromkeys(s for run in runs for s in run.sources)) or "nothing that is known"
        raise InputError(f"{path}: is about {source}, which none of these runs was trained on; they were on {known}")
    panel = result.get("panel_hash")
    return [
        Gap(source, method, run, topics, panel != run.panel_hash)
        for method, topics in by_method.items()
        for run in matched
    ]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A topic's numbers; JSON's null is NaN."""
    numbers = {name: math.nan if entry[name] is None else float(entry[name]) for name in ("gap", "low", "high")}
    return {**numbers, "rows": int(entry["rows"]), "few": bool(entry["few"])}
