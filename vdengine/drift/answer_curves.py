"""The course of judged answers over a run: a few answers a probe at many anchors, made into one curve.

The same probes answer at every anchor, so their levels cancel in a shift. One anchor with two answers a probe says
little; the curve is a local linear fit over the anchors, corrected for its bias (`drift/smoothing.py`). Each probe goes
through the same fit and the interval is over probes, so it counts the noise of answers, the probes' own courses, and
what all shifts share with the first anchor's answers; the bias of the fit is taken off. An interval is about one step
at a time, not about the whole curve at once. Between two anchors the curve is as good as its being smooth there: a turn
that no anchor saw is not in it.

Simulated with 2 answers a probe, 24, 48 or 550 probes and 3 to 24 anchors that are dense early, 95% intervals cover 92%
to 97% of flat, straight, early, saturating and late curves: `benchmarks/anchors.py`. Fewer than ten anchors are joined
by lines, not smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vdengine.drift.analysis import RANGE, Analysis, Curve
from vdengine.drift.intervals import Group, group_of
from vdengine.drift.smoothing import Smoothing
from vdengine.drift.trajectory import RULES, DriftTime, baseline_index, drift_times

GRID = 200  # steps of a curve, about, over a stage that has more


@dataclass(frozen=True)
class AnswerCurve:
    """One channel of one topic's answers, smoothed, at G steps."""

    shift: Curve  # since the baseline
    level: Curve  # v itself
    times: dict[str, DriftTime]  # by rule, to a step of the grid; all None where the analysis' M is not significant


def answer_curves(
    analysis: Analysis,
    *,
    channel: str | None = None,
    steps: np.ndarray | None = None,
    smoothing: str = "local-linear",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, AnswerCurve]:
    """Smoothed curves of a readout by topic, and for "all".

    Magnitudes and their significance stay those of the analysis: M is what the last anchor's answers say, unsmoothed.

    Args:
        analysis: of answers, as any judge reads any part of them. Another readout does as well.
        channel: Default: the primary one.
        steps: [G] int64, ascending, where curves are given; they are NaN before the first anchor and after the last.
            Default: every step of the stage, in a long one about `GRID` of them, and the anchors.
        smoothing: as `Smoothing.parse` has it; "none" joins the anchors by lines.
        resamples, seed: of the bootstrap that drift times' intervals come from.

    Raises:
        InputError: an unknown smoothing.
    """
    values, how = analysis.values, Smoothing.parse(smoothing)
    channel, index = channel or values.primary, baseline_index(values, analysis.baseline)
    if steps is None:
        stride = max(round(values.total_steps / GRID), 1)
        steps = np.union1d(np.arange(0, values.total_steps + 1, stride), values.steps)
    on_grid = replace(values, steps=steps)
    start = int(np.searchsorted(steps, values.steps[index]))  # the baseline's place, or that of the step after it
    per_probe = values.channels[channel]  # [S, P]
    draws = np.random.Generator(np.random.Philox(seed)).poisson(1.0, (resamples, len(values.probes)))
    weights = draws.astype(np.float32) - 1
    curves = {}
    for topic in ["all", *values.topic_names]:
        shift = how.smooth(values, group_of(values, per_probe - per_probe[index], topic), index, steps)
        level = how.smooth(values, group_of(values, per_probe, topic), index, steps)
        drift = analysis.drifts[topic, channel]
        times = {rule: DriftTime(rule, str(how)) for rule in RULES}
        if drift.significant:
            of_topic = weights[:, values.member(topic)]
            times.update(drift_times(on_grid, shift, start, drift.magnitude.mean, str(how), of_topic))
        curves[topic] = AnswerCurve(
            _curve(shift, topic, channel, steps), _curve(level, topic, channel, steps, True), times
        )
    return curves


def _curve(group: Group, topic: str, channel: str, steps: np.ndarray, level: bool = False) -> Curve:
    low, high, _ = group.inference
    if level and channel in RANGE:
        low, high = np.maximum(low, RANGE[channel][0]), np.minimum(high, RANGE[channel][1])
    return Curve(topic, channel, steps, group.mean, low, high, group.num_probes, level)
