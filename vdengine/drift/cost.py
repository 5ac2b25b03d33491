"""What the probes of a run cost: its time by kind of work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def finite(value: Any) -> float | None:
    """A finite number as a float, else None; for values that were read from a file."""
    if type(value) is float:  # most are
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


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
        total, probes, answers, last = 0.0, 0.0, 0.0, 0
        for row in rows:
            seconds = finite(row.get("step_seconds"))
            if seconds is None:
                continue
            num_steps, last = max(row["step"] - last, 1), row["step"]
            total += num_steps * seconds
            probes += num_steps * (finite(row.get("probe_seconds")) or 0.0)
            answers += num_steps * (finite(row.get("answers_seconds")) or 0.0)
        return cls(last, total, probes, answers) if last else None
