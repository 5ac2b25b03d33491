"""Predictors that never look at the model: what a readout has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.agreement import pearson, share_of, spearman
from vdengine.errors import InputError


@dataclass(frozen=True)
class Score:
    """How well something predicted shifts."""

    pearson: float
    spearman: float
    rmse: float
    error: float  # mean absolute
    sign: float  # share of cells of one sign; NaN where nothing is predicted
    num: int
    partial: float = math.nan  # Pearson's r with a given predictor taken out of both


def predict_direction_step(
    shifts: Sequence[np.ndarray], steps: Sequence[np.ndarray], directions: Sequence[Any], *, form: str = "free",
    groups: Sequence[Any] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """What knowing the training direction and the step alone gives, each run predicted from the others.

    prediction = direction x g(step), with g fitted by least squares to the runs of other groups.

    Args:
        shifts: of each run, [S] or [S, topics]; NaN where not measured.
        steps: of each run, [S] ascending.
        directions: of each run, +1, -1 or 0 (no direction: predicted as 0, and of no use to others); or [topics].
        form: g: "free" (one value a step, straight lines between), "linear" or "log" (of step + 1) through 0. Report
            the best of them: the baseline to beat is the strongest.
        groups: of each run; what is left out together (default: each run alone). With several seeds of a condition the
            other seeds predict well: group by condition to ask for more.

    Returns:
        Of each run, an array like its shifts. "No drift" is zeros.

    Raises:
        InputError: an unknown form.
    """
    if form not in ("free", "linear", "log"):
        raise InputError(f"form: {form!r} is not one of free, linear, log")
    own = list(range(len(shifts))) if groups is None else list(groups)
    signed = []  # of each run: steps, and shifts in the direction of training
    for y, t, d in zip(shifts, steps, directions, strict=True):
        cells = np.asarray(d, np.float64) * np.ones_like(y) if np.ndim(d) else np.full(y.shape, float(d))
        signed.append((np.asarray(t, np.float64), np.asarray(y, np.float64), cells))
    out = []
    for i, (t, y, d) in enumerate(signed):
        others = [signed[k] for k in range(len(signed)) if own[k] != own[i]]
        curve = _free(t, others) if form == "free" else _slope(form, others) * _clock(form, t)
        out.append(d * curve.reshape(-1, *[1] * (y.ndim - 1)))
    return out


def _clock(form: str, t: np.ndarray) -> np.ndarray:
    return t if form == "linear" else np.log1p(t)


def _slope(form: str, runs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    above = below = 0.0
    for t, y, d in runs:
        g = d * _clock(form, t).reshape(-1, *[1] * (y.ndim - 1))
        known = np.isfinite(y)
        above, below = above + float((g * y)[known].sum()), below + float((g**2)[known].sum())
    return above / below if below > 0 else 0.0


def _free(t: np.ndarray, runs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    total, weight = np.zeros(len(t)), np.zeros(len(t))
    for u, y, d in runs:
        used = np.isfinite(y) & (d != 0)
        count = used.reshape(len(u), -1).sum(1)
        at = np.flatnonzero(count)
        if len(at):
            mean = np.where(used, d * y, 0.0).reshape(len(u), -1).sum(1)[at] / count[at]
            total += np.interp(t, u[at], mean)
            weight += 1
    return total / np.maximum(weight, 1)


def score_predictions(truth: np.ndarray, predicted: np.ndarray, given: np.ndarray | None = None) -> Score:
    """How well `predicted` meets `truth`, arrays of one shape, cells with a NaN left out.

    given: another prediction (say, of `predict_direction_step`): `partial` is then what `predicted` adds to it.
    """
    t, p = np.asarray(truth, np.float64).ravel(), np.asarray(predicted, np.float64).ravel()
    g = None if given is None else np.asarray(given, np.float64).ravel()
    known = np.isfinite(t) & np.isfinite(p) & (True if g is None else np.isfinite(g))
    t, p = t[known], p[known]
    if not len(t):
        return Score(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    said = p != 0
    partial = math.nan
    if g is not None and len(t) > 3:
        basis = np.stack([np.ones(len(t)), g[known]], 1)
        rest = [z - basis @ np.linalg.lstsq(basis, z, rcond=None)[0] for z in (t, p)]
        partial = pearson(rest[0], rest[1])
    return Score(
        pearson(t, p), spearman(t, p), float(np.sqrt(((t - p) ** 2).mean())), float(np.abs(t - p).mean()),
        share_of(np.sign(t[said]) == np.sign(p[said])), len(t), partial,
    )  # fmt: skip
