"""Predictors of shifts that never look at the model: the baselines that a readout has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.correlation import pearson, share_of, spearman
from vdengine.errors import InputError


@dataclass(frozen=True)
class Score:
    """How well shifts were predicted, over `num` cells; NaN where there are too few."""

    pearson: float
    spearman: float
    rmse: float
    error: float  # mean absolute
    sign: float  # share of cells with a prediction other than 0 in which it has the truth's sign
    num: int
    partial: float = math.nan  # Pearson's r with a given prediction partialled out of both


@dataclass(frozen=True)
class _SignedRun:
    """One run: S samples, of one shift each or of one a topic."""

    steps: np.ndarray  # [S] float64
    shifts: np.ndarray  # [S] or [S, topics] float64, NaN where not measured
    directions: np.ndarray  # like `shifts`: +1, -1 or 0

    def by_cell(self, curve: np.ndarray) -> np.ndarray:
        """A curve over steps [S], shaped [S] or [S, 1] so that it broadcasts over the run's topics."""
        return curve.reshape(-1, *[1] * (self.shifts.ndim - 1))


def predict_direction_step(
    shifts: Sequence[np.ndarray],
    steps: Sequence[np.ndarray],
    directions: Sequence[Any],
    *,
    form: str = "free",
    groups: Sequence[Any] | None = None,
) -> list[np.ndarray]:
    """Shifts as the training direction and the step alone predict them, each run from the others.

    prediction = direction x g(step), with g fitted by least squares to the runs of other groups.

    Args:
        shifts: of each run, [S] or [S, topics] float; NaN where not measured.
        steps: of each run, [S] ascending.
        directions: of each run, +1, -1 or 0 (no direction: predicted as 0, and not used for other runs), or an array
            [topics] of these.
        form: of g: "free" (one value a step, straight lines between), "linear" or "log" (of step + 1) through 0. The
            strongest of the three is the baseline to beat.
        groups: of each run: runs with the same one are left out together. Default: each run alone. Other seeds of a
            condition predict it well: group by condition for a harder test.

    Returns:
        Of each run, an array like its shifts, in their unit. All 0 is the prediction "no drift".

    Raises:
        InputError: an unknown form.
    """
    if form not in ("free", "linear", "log"):
        raise InputError(f"form: {form!r} is not one of free, linear, log")
    labels = list(range(len(shifts))) if groups is None else list(groups)
    runs = []
    for shift, step, direction in zip(shifts, steps, directions, strict=True):
        if np.ndim(direction):
            by_cell = np.asarray(direction, np.float64) * np.ones_like(shift)
        else:
            by_cell = np.full(shift.shape, float(direction))
        runs.append(_SignedRun(np.asarray(step, np.float64), np.asarray(shift, np.float64), by_cell))
    predictions = []
    for i, run in enumerate(runs):
        others = [other for k, other in enumerate(runs) if labels[k] != labels[i]]
        if form == "free":
            curve = _mean_curve(run.steps, others)
        else:
            curve = _slope(form, others) * _clock(form, run.steps)
        predictions.append(run.directions * run.by_cell(curve))
    return predictions


def _clock(form: str, steps: np.ndarray) -> np.ndarray:
    """What g is proportional to, [S] float64 for steps [S]: the step, or the log of step + 1."""
    return steps if form == "linear" else np.log1p(steps)


def _slope(form: str, runs: Sequence[_SignedRun]) -> float:
    """The slope of g by least squares through 0 over all cells: sum(g * shift) / sum(g^2); 0 without cells."""
    numerator = denominator = 0.0
    for run in runs:
        regressor = run.directions * run.by_cell(_clock(form, run.steps))  # like the shifts
        known = np.isfinite(run.shifts)
        numerator += float((regressor * run.shifts)[known].sum())
        denominator += float((regressor**2)[known].sum())
    return numerator / denominator if denominator > 0 else 0.0


def _mean_curve(steps: np.ndarray, runs: Sequence[_SignedRun]) -> np.ndarray:
    """g at `steps` [S]: the mean over runs of the mean shift in the training direction, linearly interpolated; [S]."""
    total, num_runs = np.zeros(len(steps)), np.zeros(len(steps))
    for run in runs:
        usable = np.isfinite(run.shifts) & (run.directions != 0)
        count = usable.reshape(len(run.steps), -1).sum(1)  # cells by step
        sampled = np.flatnonzero(count)
        if len(sampled):
            towards = np.where(usable, run.directions * run.shifts, 0.0).reshape(len(run.steps), -1)
            total += np.interp(steps, run.steps[sampled], towards.sum(1)[sampled] / count[sampled])
            num_runs += 1
    return total / np.maximum(num_runs, 1)


def score_predictions(truth: np.ndarray, predicted: np.ndarray, given: np.ndarray | None = None) -> Score:
    """How well shifts were predicted; cells with a NaN are left out.

    Args:
        truth, predicted: [...] float of one shape, in one unit.
        given: another prediction, of the same shape: `Score.partial` is then what `predicted` adds to it, the
            correlation of what is left of `truth` and `predicted` after a regression of each on `given`.
    """
    truth, predicted = np.asarray(truth, np.float64).ravel(), np.asarray(predicted, np.float64).ravel()
    given = None if given is None else np.asarray(given, np.float64).ravel()
    known = np.isfinite(truth) & np.isfinite(predicted) & (True if given is None else np.isfinite(given))
    truth, predicted = truth[known], predicted[known]  # [n]
    if not len(truth):
        return Score(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    signed = predicted != 0
    partial = math.nan
    if given is not None and len(truth) > 3:
        basis = np.stack([np.ones(len(truth)), given[known]], 1)  # [n, 2]
        residuals = [each - basis @ np.linalg.lstsq(basis, each, rcond=None)[0] for each in (truth, predicted)]
        partial = pearson(residuals[0], residuals[1])
    return Score(
        pearson(truth, predicted),
        spearman(truth, predicted),
        rmse=float(np.sqrt(((truth - predicted) ** 2).mean())),
        error=float(np.abs(truth - predicted).mean()),
        sign=share_of(np.sign(truth[signed]) == np.sign(predicted[signed])),
        num=len(truth),
        partial=partial,
    )
