"""What the probes of a run cost: its time by kind of work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def finite(value: Any) -> float | None:
    """A finite number as a float, else None; for values that were read from a file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


@dataclass(frozen=True)
class Cost:
    """Where a run's time went, in seconds, over the steps that metrics.jsonl has."""

    steps: int
    total: float
    probes: float  # scoring openings and the answers of banks
    answers: float  # drawing answers at anchors

    @property
    def share(self) -> float:
        """Share of the time that probing took; NaN where no time was logged."""
        return (self.probes + self.answers) / self.total if self.total > 0 else math.nan

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Cost | None:
        """From the rows of metrics.jsonl, whose seconds are means over the steps since the row before.

        None where no row has any.
        """
        timed = [row for row in rows if finite(row.get("step_seconds")) is not None]
        if not timed:
            return None
        total, probes, answers, last = 0.0, 0.0, 0.0, 0
        for row in timed:
            num_steps, last = max(row["step"] - last, 1), row["step"]
            total += num_steps * row["step_seconds"]
            probes += num_steps * (finite(row.get("probe_seconds")) or 0.0)
            answers += num_steps * (finite(row.get("answers_seconds")) or 0.0)
        return cls(last, total, probes, answers)
