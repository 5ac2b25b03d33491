"""The course of judged answers over a run: a few answers a probe at many anchors, made into one curve.

The same probes answer at every anchor, so their levels cancel in a shift. One anchor with two answers a probe says
little; the curve is a local linear fit over the anchors, corrected for its bias (`drift/smoothing.py`), and is given
between them as well (`analyse`, `steps`). Each probe goes through the same fit and the interval is over probes, so it
counts the noise of answers, the probes' own courses, and what all shifts share with the first anchor's answers; the
bias of the fit is taken off. An interval is about one step at a time, not about the whole curve at once. Between two
anchors the curve is as good as its being smooth there: a turn that no anchor saw is not in it.

Simulated with 2 answers a probe, 24, 48 or 550 probes and 3 to 24 anchors that are dense early, 95% intervals cover 92%
to 97% of flat, straight, early, saturating and late curves: `benchmarks/anchors.py`. Fewer than `FEWEST` anchors are
joined by lines, not smoothed.
"""

from __future__ import annotations

import numpy as np

from vdengine.drift.probe_values import ProbeValues

SMOOTHING = "local-linear"  # of answers, unless another is asked for
FEWEST = 10  # anchors of a curve: of fewer `SMOOTHING` leaves each as it is (`smoothing.WIDEST`)
GRID = 100  # steps of a curve, about, in a stage that has more


def curve_steps(values: ProbeValues, smoothing: str = SMOOTHING) -> np.ndarray | None:
    """The steps at which the curve of answers is given: those of the stage up to the last anchor, in a long one about
    `GRID` of them, and the anchors.

    Returns:
        [G] int64, ascending. None where the curve stays at the samples: there are fewer than `FEWEST` anchors with
        verdicts, some samples are of weighted answers (nothing is said where their gate is closed), the values are of
        no answers, or nothing is to be smoothed.
    """
    if smoothing == "none" or values.kinds is None or not (values.kinds == "anchor").all():
        return None
    if np.isfinite(values.channels[values.primary]).any(1).sum() < FEWEST:
        return None
    stride = max(round(values.total_steps / GRID), 1)
    return np.union1d(np.arange(values.steps[0], values.steps[-1], stride), values.steps)
