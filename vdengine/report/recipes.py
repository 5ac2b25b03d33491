"""The recipes of runs side by side: which keys differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vdengine.drift.run import Run
from vdengine.report.texts import MAX_NAME, short

_NOT_COMPARED = {"run.folder"}  # every run has one of its own


@dataclass(frozen=True)
class Recipes:
    """The keys of runs' recipes, "section.key"; a value is what TOML or JSON would write, None where it is not set."""

    differing: dict[str, list[str | None]]  # by key: the value of each run
    alike: dict[str, str]  # by key: the value of every run that has a recipe
    without: list[str]  # names of runs without a recipe that can be read; they are not compared


def compare(runs: Sequence[Run]) -> Recipes:
    """Which keys of the runs' recipes differ, in the order of the first recipe that has them."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    known = [each for each in flat if each]
    differing: dict[str, list[str | None]] = {}
    alike: dict[str, str] = {}
    for key in dict.fromkeys(key for each in flat for key in each):
        found = [each.get(key) for each in flat]
        compared = {each.get(key) for each in known}
        if len(compared) > 1 and key not in _NOT_COMPARED:
            differing[key] = [None if value is None else short(value, MAX_NAME) for value in found]
        elif len(compared) == 1:
            alike[key] = short(compared.pop(), MAX_NAME)
    return Recipes(differing, alike, [run.name for run, each in zip(runs, flat, strict=True) if not each])


def _flat(table: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The keys of nested tables, and their values as text; tables within tables become dotted keys."""
    found = []
    for name, value in table.items():
        key = short(f"{prefix}{name}", MAX_NAME)
        if isinstance(value, dict) and prefix.count(".") < 4:
            found += _flat(value, f"{key}.")
        else:
            found.append((key, _text(value)))
    return found


def _text(value: Any) -> str:
    """A value as one would write it."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "nested too deeply to show"
