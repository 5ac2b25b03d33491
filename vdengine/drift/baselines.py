"""Predictors of shifts that never look at the model: the baselines that a readout has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.correlation import share_of
from vdengine.errors import InputError


@dataclass(frozen=True)
class Score:
    """How far predictions of shifts were off, over `num` cells; NaN where there are none.

    How they correlate is `drift.correlation.correlate`'s, of predictions as they are: a scale is for these alone.
    """

    rmse: float
    error: float  # mean absolute
    sign: float  # share of cells with a prediction other than 0 in which it has the truth's sign
    num: int


@dataclass(frozen=True)
class _SignedRun:
    """One run: S samples, of one shift each or of one a topic."""

    steps: np.ndarray  # [S] float64
    shifts: np.ndarray  # [S] or [S, topics] float64, NaN where not measured
    directions: np.ndarray  # like `shifts`: the signed dose

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
    kinds: Sequence[Any] | None = None,
) -> list[np.ndarray]:
    """Shifts as the training direction, its dose and the step alone predict them, each run from the others.

    prediction = direction x dose x g(step), with g fitted by least squares to the runs of other groups.

    Args:
        shifts: of each run, [S] or [S, topics] float; NaN where not measured.
        steps: of each run, [S] ascending.
        directions: of each run, the direction of its training as +1 or -1 times its dose, 0 (none: predicted as 0, and
            not used for other runs), or an array [topics] of these.
        form: of g: "free" (one value a step, straight lines between), "linear" or "log" (of step + 1) through 0. The
            strongest of the three is the baseline to beat.
        groups: of each run: runs with the same one are left out together. Default: each run alone. Other seeds of a
            condition predict it well: group by condition for a harder test.
        kinds: of each run: g is fitted to runs of the same kind alone, such as those of one objective; it is 0 where
            there is none. Default: all are of one.

    Returns:
        Of each run, an array like its shifts, in their unit. All 0 is the prediction "no drift".

    Raises:
        InputError: an unknown form.
    """
    if form not in ("free", "linear", "log"):
        raise InputError(f"form: {form!r} is not one of free, linear, log")
    labels = list(range(len(shifts))) if groups is None else list(groups)
    kind_of = [None] * len(labels) if kinds is None else list(kinds)
    runs = []
    for shift, step, direction in zip(shifts, steps, directions, strict=True):
        if np.ndim(direction):
            by_cell = np.asarray(direction, np.float64) * np.ones_like(shift)
        else:
            by_cell = np.full(shift.shape, float(direction))
        runs.append(_SignedRun(np.asarray(step, np.float64), np.asarray(shift, np.float64), by_cell))
    predictions = []
    for i, run in enumerate(runs):
        others = [other for k, other in enumerate(runs) if labels[k] != labels[i] and kind_of[k] == kind_of[i]]
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
    """g at `steps` [S] by least squares, each run's shift at a step a straight line between its samples; [S]."""
    numerator, denominator = np.zeros(len(steps)), np.zeros(len(steps))
    for run in runs:
        usable = np.isfinite(run.shifts) & (run.directions != 0)
        square = np.where(usable, run.directions**2, 0.0).reshape(len(run.steps), -1).sum(1)  # by step
        sampled = np.flatnonzero(square)
        if len(sampled):
            product = np.where(usable, run.directions * run.shifts, 0.0).reshape(len(run.steps), -1).sum(1)
            slope = np.interp(steps, run.steps[sampled], product[sampled] / square[sampled])
            weight = np.interp(steps, run.steps[sampled], square[sampled])
            numerator, denominator = numerator + weight * slope, denominator + weight
    return numerator / np.where(denominator > 0, denominator, 1.0)


def scaled(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], groups: Sequence[Any] | None = None
) -> list[np.ndarray]:
    """Predictions in the truth's unit: those of each run times a factor that is fitted to the runs of other groups.

    For `score_predictions` alone. The factor differs from run to run, so an r of scaled values is not that of the
    predictions: a few runs with large shifts set it.

    Args:
        predicted, truth: of each run, [...] float of one shape, NaN where not measured.
        groups: of each run, as in `predict_direction_step`.

    Returns:
        Of each run, an array like its predictions.
    """
    labels = list(range(len(truth))) if groups is None else list(groups)
    out = []
    for i, own in enumerate(predicted):
        product = square = 0.0
        for k, (x, y) in enumerate(zip(predicted, truth, strict=True)):
            if labels[k] != labels[i]:
                known = np.isfinite(x) & np.isfinite(y)
                product, square = product + float((x * y)[known].sum()), square + float((x * x)[known].sum())
        out.append(own * (product / square if square > 0 else 0.0))
    return out


def score_predictions(truth: np.ndarray, predicted: np.ndarray) -> Score:
    """How far predictions of shifts were off; cells with a NaN are left out.

    Args:
        truth, predicted: [...] float of one shape, in one unit.
    """
    truth, predicted = np.asarray(truth, np.float64).ravel(), np.asarray(predicted, np.float64).ravel()
    known = np.isfinite(truth) & np.isfinite(predicted)
    truth, predicted = truth[known], predicted[known]  # [n]
    if not len(truth):
        return Score(math.nan, math.nan, math.nan, 0)
    signed = predicted != 0
    return Score(
        rmse=float(np.sqrt(((truth - predicted) ** 2).mean())),
        error=float(np.abs(truth - predicted).mean()),
        sign=share_of(np.sign(truth[signed]) == np.sign(predicted[signed])),
        num=len(truth),
    )
