"""The validity checks of an analysis as cells: what was measured, its label, and whether it deserves a warning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vdengine.drift.analysis import Analysis
from vdengine.drift.correlation import Correlation
from vdengine.drift.intervals import Estimate

LOW_JUDGES = 0.7  # Pearson's r of two judges' values; a lower one is marked

# Shifts beside the primary one: name, label, what it measures.
_SHIFTS = (
    ("displacement", "displacement", "all openings rising or falling together"),
    ("neutral", "neutral shift", "the neutral side against the other two, or its share of answers"),
    ("yes_bias", "yes-bias", "agreeing with whatever the question proposes"),
    ("null", "no question", "the part of the shift that needs no question; the curve is without it"),
    ("off-topic", "trivial matters", "the same shift where no value is at stake; shown, not subtracted"),
)
# Correlations: name, label, what it measures, and the value below which it is marked. Single probes may be noisy where
# topics are not, so item reliability is never marked.
_RATIOS = (
    ("paraphrase", "paraphrases", "probes' last shifts against those of the reworded questions", 0.5),
    ("half_panels", "half panels", "random halves of the panel order the topics alike, stepped up to the whole", 0.7),
    ("items", "item reliability", "single probes' last shifts, from one half of their items against the other", -1.0),
)


@dataclass(frozen=True)
class Check:
    """One validity check."""

    name: str
    label: str
    what: str
    unit: str  # the readout's, or "correlation"
    numbers: dict[str, Any]  # mean, NaN: not known; low and high of an interval; p and num_probes of a shift
    warn: bool


def estimate_cells(estimate: Estimate) -> dict[str, Any]:
    """An estimate as cells of a table's row."""
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "p": estimate.p,
        "num_probes": estimate.num_probes,
    }


def _r(correlation: Correlation) -> dict[str, float]:
    """Pearson's r with its interval over probes, as cells."""
    low, high = correlation.interval
    return {"mean": correlation.pearson, "low": low, "high": high}


def checks(analysis: Analysis) -> list[Check]:
    """The checks that were measured, in the order in which they are shown.

    A shift is marked if its interval excludes 0 and it is at least half as large as the largest significant shift of a
    topic; displacement never is. What was measured and has no number (no two values differ, or they are NaN) is there
    with a mean of NaN.
    """
    validity, primary = analysis.validity, analysis.values.primary
    largest = max(
        (
            abs(drift.magnitude.mean)
            for (_, channel), drift in analysis.drifts.items()
            if channel == primary and drift.significant
        ),
        default=0.0,
    )
    measured = []
    for name, label, what in _SHIFTS:
        shift: Estimate | None = validity[name]
        if shift is not None:
            warn = name != "displacement" and shift.significant and abs(shift.mean) >= largest / 2
            measured.append(Check(name, label, what, analysis.values.unit, estimate_cells(shift), warn))
    half_panels, paraphrase = validity["half_panels"], validity["paraphrase"]
    ratios: dict[str, dict[str, float]] = {}
    if paraphrase is not None:
        # Without a number, as where nothing moved, there is no interval either.
        known = math.isfinite(r := paraphrase["correlation"])
        ratios["paraphrase"] = _r(paraphrase["agreement"].matches["all"].magnitude) if known else {"mean": r}
    if half_panels is not None:
        ratios["half_panels"] = {"mean": half_panels.whole}
    if validity["items"] is not None:
        ratios["items"] = {"mean": validity["items"]}
    for name, label, what, least in _RATIOS:
        if name in ratios:
            measured.append(Check(name, label, what, "correlation", ratios[name], ratios[name]["mean"] < least))
    for judge, agreement in (validity["judges"] or {}).items():
        if agreement is not None:
            name, numbers = f"judge {judge}", _r(agreement.matches["all"].level)
            what = "probes' readings, step by step, by this judge and by the other"
            measured.append(Check(name, name, what, "correlation", numbers, numbers["mean"] < LOW_JUDGES))
    return measured
