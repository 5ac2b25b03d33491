"""Linear smoothing of a topic's curve over training steps.

A smoothed mean is a weighted sum of the means of nearby samples, and so is each probe's part in its error: an interval
over probes holds the noise of answers, the probes' own courses and what samples share with the baseline, whatever the
weights. What it does not hold by itself is the bias of a fit that does not bend as the curve does. "local-linear"
therefore takes the bias of its line off, as estimated by the parabola with the same weights (Calonico, Cattaneo and
Farrell 2018, "On the effect of bias estimation on coverage accuracy in nonparametric inference": with one bandwidth for
both, the corrected line is the parabola), and chooses its window for the line, whose bias is larger.

Distance is counted in samples and not in steps: samples stand densely where a curve is expected to bend
(`drift/schedule.py`), and a window holds as many of them early as late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.drift.intervals import Group
from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError

SMOOTHINGS = ("none", "ema", "local-linear")

# Half windows that "local-linear" chooses from, in samples; 1 and 2 leave samples as they are (a parabola through three
# is each of them). At most 0.3 of the samples, so fewer than ten are not smoothed: with few probes a wide window may be
# chosen for a curve that rises within one or two of them. Of 48 probes with two answers, half windows up to 5 would
# cover such a curve's first sample in 67-85% with 4 to 10 anchors. Where a curve stays flat, 0.7 of a sample's variance
# is left with 10 or 12 samples, 0.45 with 24 and 0.35 with 48.
HALF_WINDOWS = (1, 2, 3, 4, 5, 7, 10, 14, 20)
WIDEST = 0.3  # of the samples


@dataclass(frozen=True)
class Smoothing:
    """How curves are smoothed. `width`: of "ema" the time constant as a share of the stage; of "local-linear" half the
    window as a share of the samples, None: chosen for each curve."""

    name: str
    width: float | None = None

    @classmethod
    def parse(cls, text: str) -> Smoothing:
        """From "none", "ema", "local-linear", the last two with a width if wanted: "ema:0.05". Default of "ema": 0.1.

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
                "(ema:0.05, a fraction above 0, at most 1)"
            )
        return cls(name, width if width_text or name == "ema" else None)

    def __str__(self) -> str:
        return self.name if self.width is None else f"{self.name}:{self.width:g}"

    def smooth(self, values: ProbeValues, group: Group, baseline: int, steps: np.ndarray | None = None) -> Group:
        """The means of a group of P probes at S samples, smoothed. The baseline sample is left as it is, and enters the
        others.

        Args:
            values: for the samples' steps and the length of the stage.
            baseline: index of the baseline sample.
            steps: [G] int64, ascending, the steps to give the curve at, from the first to the last sample that has a
                mean; others are NaN. Default: the samples' own.

        Returns:
            At G steps, or where `steps` is None at S: NaN at samples that have no mean.
        """
        if self.name == "none" and steps is None:
            return group
        known = np.flatnonzero(np.isfinite(group.mean))  # the K samples that the curve has
        at, to = values.steps[known].astype(np.float64), (values.steps if steps is None else steps).astype(np.float64)
        inside = np.isin(np.arange(len(to)), known) if steps is None else np.full(len(to), False)
        if steps is not None and len(at):
            inside = (to >= at[0]) & (to <= at[-1])
        kernel = np.zeros((len(to), len(group.mean)))  # (to, from)
        if len(at):
            kernel[np.ix_(inside, known)] = self._weights(group, known, at, to[inside], max(values.total_steps, 1))
        same = to == values.steps[baseline]
        if np.isfinite(group.mean[baseline]):
            kernel[same] = 0
            kernel[same, baseline] = 1
        return group.smoothed(kernel)

    def _weights(self, group: Group, known: np.ndarray, at: np.ndarray, to: np.ndarray, total: int) -> np.ndarray:
        """Weights of K samples at steps `at` in the curve at steps `to` [G]: [G, K] float64, rows sum to 1.

        Args:
            known: [K] the samples' indexes in the group.
            total: steps of the stage.
        """
        if self.name == "ema":
            age = to[:, None] - at[None]
            weight = np.where(age >= 0, np.exp(-np.maximum(age, 0) / (self.width * total)), 0.0)  # type: ignore[operator]
            return weight / weight.sum(1, keepdims=True)
        if self.name == "none":
            half: float = 1
        elif self.width is not None:
            half = max(self.width * (len(at) - 1), 1)
        else:
            half = half_window(group.mean[known], group.parts[known], at)
        return local_fit(at, to, half, 2)


def local_fit(at: np.ndarray, to: np.ndarray, half: float, degree: int) -> np.ndarray:
    """The weights of samples in polynomials fitted around steps by least squares, with tricube weights that fall to 0
    `half` samples away (Cleveland 1979, LOWESS without its robustness steps).

    Where a window holds too few samples the degree is lower: with half = 1 a sample is left as it is, and between two
    samples the curve is their line.

    Args:
        at: [K] float64, ascending, the samples' steps.
        to: [G] float64, steps within them.
        half: half the window, in samples, 1 or more.
        degree: of the polynomials: 1 or 2.

    Returns:
        [G, K] float64; rows sum to 1.

    Raises:
        InputError: a step is there twice, or steps do not ascend.
    """
    if (wrong := np.flatnonzero(np.diff(at) <= 0)).size:
        step, after = at[wrong[0]], at[wrong[0] + 1]
        raise InputError(
            f"samples to be smoothed: step {after:g} after step {step:g}; steps ascend, each is there once"
        )
    place = np.interp(to, at, np.arange(len(at)))  # [G], in samples
    reach = math.ceil(half)
    near = np.floor(place).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)  # [G, W] samples of each window
    there = (near >= 0) & (near < len(at))
    near = near.clip(0, len(at) - 1)
    tricube = np.clip(1 - (np.abs(near - place[:, None]) / half) ** 3, 0, None) ** 3
    tricube = np.where(there & (tricube > 1e-9), tricube, 0.0)  # on the edge of a window rounding alone is left
    offset = at[near] - to[:, None]  # [G, W]
    offset = offset / np.maximum(np.abs(offset * (tricube > 0)).max(1, keepdims=True), 1.0)  # powers are of one size
    # The weight of each sample in the polynomial's value at offset 0, from the moments of the window.
    weight = np.zeros_like(tricube)
    order = np.minimum(degree, (tricube > 0).sum(1) - 1)  # [G]
    for q in np.unique(order):
        rows = order == q
        powers = offset[rows, :, None] ** np.arange(q + 1)  # [rows, W, q + 1]
        moments = np.einsum("gw,gwi,gwj->gij", tricube[rows], powers, powers)
        value = np.linalg.solve(moments, np.broadcast_to(np.eye(q + 1)[:, :1], (len(moments), q + 1, 1)))
        weight[rows] = tricube[rows] * (powers @ value)[..., 0]
    out = np.zeros((len(to), len(at)))
    row, column = np.nonzero(tricube)
    out[row, near[row, column]] = weight[row, column]
    return out


def half_window(mean: np.ndarray, parts: np.ndarray, at: np.ndarray) -> int:
    """The half window of a curve, of `HALF_WINDOWS` the one with the least C_p (Mallows 1973) of the line:

        C_p = sum over samples of (mean - line)^2 + 2 s^2 trace(weights)

    with s^2 the variance of a sample's own noise. It comes from the probes: each probe's part in a sample's error, less
    the line between its parts in the samples before and after (Gasser, Sroka and Jennen-Steinmetz 1986). The bend of
    the curve itself, which all probes share, is not in it.

    Args:
        mean: [K] float64, the curve.
        parts: [K, P] float64, the probes' parts in its error: `Group.parts`.
        at: [K] float64, ascending, the samples' steps.

    Returns:
        In samples; 1 where there are fewer than four.
    """
    if len(mean) < 4:
        return 1
    share = ((at[2:-1] - at[1:-2]) / (at[3:] - at[1:-2]))[:, None]  # the first sample is the baseline, of more answers
    rest = parts[2:-1] - (1 - share) * parts[1:-2] - share * parts[3:]  # [K - 3, P]
    noise = float(((rest**2).sum(1) / (1 + (1 - share[:, 0]) ** 2 + share[:, 0] ** 2)).mean())
    best, least = 1, math.inf
    for half in (half for half in HALF_WINDOWS if half <= WIDEST * len(at)):
        kernel = local_fit(at, at, half, 1)
        loss = float(((mean - kernel @ mean) ** 2).sum()) + 2 * noise * float(np.trace(kernel))
        if loss < least:
            best, least = half, loss
    return best
