"""Runs of a report that repeat one recipe with other seeds, and what may be said of the recipe (`drift/seeds.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vdengine.drift.intervals import FEW_PROBES
from vdengine.drift.run import Readout, Run
from vdengine.drift.seeds import RecipeShift, last_step, recipe_shifts, repeats
from vdengine.errors import InputError


@dataclass(frozen=True)
class Repeats:
    """Runs of one recipe, and how far it moves each topic; or one that is left out of them, and why."""

    runs: list[Run]
    shifts: dict[str, dict[str, RecipeShift]]  # by readout's key, then by topic and "all"
    refused: dict[str, str]  # by readout's key: why there is no interval

    @property
    def seeds(self) -> list[Any]:
        """Of the runs, in their order."""
        return [run.recipe["run"]["seed"] for run in self.runs]

    def views(self, key: str) -> list[Readout]:
        """A readout of the runs that have it."""
        return [run.own_views[key] for run in self.runs if key in run.own_views]

    def unknown(self, key: str, topic: str) -> str:
        """Why nothing can be said of a topic: the first reason that a run has; "" where something can."""
        return next((why for view in self.views(key) if (why := view.analysis.drift(topic).unknown)), "")

    def rows(self, topics: Sequence[str]) -> list[dict[str, Any]]:
        """A row a readout and topic; topics: only these. The same columns begin as in the tables of runs."""
        names, rows = ", ".join(run.name for run in self.runs), []
        for key, by_topic in self.shifts.items():
            view = self.views(key)[0]
            head = {"runs": names, "readout": view.kind, "judge": view.judge or None, "part": view.part or None}
            for topic, shift in by_topic.items():
                if topic in topics:
                    rows.append(head | {"topic": topic, "unit": view.values.unit} | self.cells(key, shift))
        return rows

    def cells(self, key: str, shift: RecipeShift) -> dict[str, Any]:
        """A recipe's shift as cells of a row."""
        return {
            "mean": shift.mean,
            "low": shift.low,
            "high": shift.high,
            "significant": shift.significant,
            "unknown": shift.unknown or self.unknown(key, shift.topic),
            "seed_deviation": shift.seed_deviation,
            "num_seeds": len(shift.by_run),
            "num_probes": shift.num_probes,
            "few": shift.num_probes < FEW_PROBES,
        }


def repeats_of(runs: Sequence[Run]) -> list[Repeats]:
    """The runs that repeat a recipe, by recipe, with its shifts in each readout; a run that has not come as far as the
    others stands alone after them, with the reason."""
    found = []
    for of_recipe in repeats(runs):
        ends = [max((last_step(view.values) for view in run.own_views.values()), default=0) for run in of_recipe]
        group = [run for run, end in zip(of_recipe, ends, strict=True) if end == max(ends)]
        shifts: dict[str, dict[str, RecipeShift]] = {}
        refused: dict[str, str] = {}
        for key in dict.fromkeys(key for run in group for key in run.own_views):
            views = [run.own_views[key] for run in group if key in run.own_views]
            try:
                shifts[key] = recipe_shifts([view.values for view in views], baseline=views[0].baseline)
            except InputError as error:
                refused[key] = str(error)
        found.append(Repeats(group, shifts, refused))
        for run, end in zip(of_recipe, ends, strict=True):
            if end < max(ends):
                why = f"its last sample is at step {end}, that of the recipe's other runs at {max(ends)}: left out"
                found.append(Repeats([run], {}, dict.fromkeys(run.own_views, why)))
    return found
