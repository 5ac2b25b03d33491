"""Linear smoothing of a topic's curve over training steps."""

from __future__ import annotations

import math

import numpy as np

from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError

SMOOTHINGS = ("none", "ema", "local-linear")


def parse_smoothing(text: str) -> tuple[str, float]:
    """Name and width of a smoothing, from "none", "ema", "local-linear:0.2" and the like.

    The width is a fraction of the stage: the time constant of "ema", half the window of "local-linear". Default: 0.1.

    Raises:
        InputError: an unknown name, a width outside (0, 1], or a width for "none".
    """
    name, _, width_text = text.partition(":")
    try:
        width = float(width_text) if width_text else 0.1
    except ValueError:
        width = math.nan
    if name not in SMOOTHINGS or not 0 < width <= 1 or (name == "none" and width_text):
        raise InputError(
            f"smoothing: {text!r} is not one of none, ema, local-linear, the last two with a width if wanted "
            "(ema:0.05, a fraction of the stage above 0, at most 1)"
        )
    return name, width


def smoothing_kernel(values: ProbeValues, mean: np.ndarray, baseline: int, name: str, width: float) -> np.ndarray:
    """Weights that smooth a curve over its samples: smoothed mean = kernel @ mean.

    "ema" is an exponential average of the samples up to each step. "local-linear" fits a line around each step by
    least squares with tricube weights (Cleveland 1979, LOWESS without its robustness steps). The baseline sample is
    left as it is, and enters the others.

    Args:
        values: for the S steps and the length of the stage.
        mean: [S] float64, the curve; only where it is finite matters.
        baseline: index of the baseline sample.
        name, width: as `parse_smoothing` returns them; name: "ema" or "local-linear".

    Returns:
        [S, S] float64 (to, from). Rows sum to 1; rows and columns of samples that `mean` lacks are 0.
    """
    known = np.flatnonzero(np.isfinite(mean))  # the K samples that the curve has
    kernel, steps = np.zeros((len(mean), len(mean))), values.steps[known].astype(np.float64)
    bandwidth = width * max(values.total_steps, 1)  # in steps
    distance = steps[None] - steps[:, None]  # [K, K] (to, from), in steps
    if name == "ema":
        weight = np.where(distance <= 0, np.exp(np.minimum(distance, 0) / bandwidth), 0.0)
    else:
        tricube = np.clip(1 - np.abs(distance / bandwidth) ** 3, 0, None) ** 3  # [K, K]
        # The weight of each sample in the fitted line's value at distance 0, from the first two moments, [K, 1].
        first, second = (tricube * distance).sum(1, keepdims=True), (tricube * distance**2).sum(1, keepdims=True)
        weight = tricube * (second - first * distance)
        # A sample without neighbours in its window has no line: it is left as it is.
        weight = np.where(np.abs(weight.sum(1, keepdims=True)) > 1e-9 * bandwidth**2, weight, tricube)
    kernel[np.ix_(known, known)] = weight / weight.sum(1, keepdims=True)
    kernel[baseline] = 0
    kernel[baseline, baseline] = 1
    return kernel
