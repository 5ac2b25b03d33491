"""The analysis of one readout of a run: curves, magnitudes, drift times and validity checks.

A probe has a value v at each sample (`drift/probe_values.py`). A topic's v is the mean over its probes. The shift at a
step is v less v at the baseline, each probe paired with itself; the magnitude M is the last shift, signed and never
smoothed. Intervals and p values are those of `drift/intervals.py`: over probes, not over training seeds. Drift times
are read off the curve of shifts, resampled over whole trajectories (`drift/trajectory.py`): probes get Poisson weights,
the same ones at all samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vdengine.drift.intervals import UNKNOWN, Estimate, Group, group_of, holm
from vdengine.drift.probe_values import LEAST_COVERAGE, ProbeValues
from vdengine.drift.smoothing import Smoothing
from vdengine.drift.trajectory import RULES, DriftTime, baseline_index, drift_times, last_sample, listed
from vdengine.drift.validity import TopicDrift, validity
from vdengine.errors import InputError
from vdengine.recipe import LEAD

# Of levels, by channel.
RANGE = dict.fromkeys(("support", "neutral", "oppose", "coverage"), (0.0, 1.0))
RANGE |= dict.fromkeys(("graded", "lead", "yes_bias"), (-1.0, 1.0))


@dataclass(frozen=True)
class Curve:
    """One channel of one topic over the run, with its 95% interval at each step.

    Arrays [S], at the samples; or [G], where it is given at other steps (`analyse`, `steps`). Float64 in the readout's
    unit, NaN where not sampled, unless said otherwise.
    """

    topic: str  # "all": the whole panel
    channel: str
    steps: np.ndarray  # int64
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_probes: np.ndarray  # int64
    level: bool  # v itself; else its shift since the baseline
    noise: np.ndarray | None = None  # answers, unsmoothed: standard error under other answers to the same probes
    points: Curve | None = None  # at other steps than the samples': what each sample says by itself, unsmoothed


@dataclass(frozen=True)
class Analysis:
    """What is known of one readout of a run. `curves`, `levels` and `drifts` are by (topic or "all", channel).

    `validity`: of the last sample against the baseline, None where it was not measured
        displacement, neutral, yes_bias   Estimate over the panel
        null, off-topic                   Estimate of the primary channel on the controls; never subtracted
        paraphrase                        {correlation: Pearson's r of last shifts over probes, shift: Estimate,
                                          agreement: Agreement} of the paraphrased questions
        half_panels                       HalfPanels
        items                             float: probes' last shifts, half of their items against the other half,
                                          stepped up to all of them (Spearman and Brown)
        reliability                       {topic: Reliability}
        judges                            {name: Agreement} with each further judge
    """

    values: ProbeValues
    baseline: int  # step
    smoothing: str  # "none", or a name and its width, "ema:0.1"
    curves: dict[tuple[str, str], Curve]
    levels: dict[tuple[str, str], Curve]  # of readouts whose v has a meaning of its own (`ProbeValues.has_levels`)
    drifts: dict[tuple[str, str], TopicDrift]
    validity: dict[str, Any]

    @property
    def topics(self) -> list[str]:
        """Topics in order of first appearance, without "all"."""
        return self.values.topic_names

    def drift(self, topic: str = "all") -> TopicDrift:
        """A topic's drift in the readout's primary channel."""
        return self.drifts[topic, self.values.primary]


def analyse(
    values: ProbeValues,
    *,
    baseline: int | None = None,
    smoothing: str = "none",
    steps: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
    controls: Mapping[str, ProbeValues] | None = None,
    judges: Mapping[str, ProbeValues] | None = None,
) -> Analysis:
    """Curves, magnitudes, drift times and validity checks of one readout of a run.

    Args:
        baseline: the step that shifts are since. Default: the first sample.
        smoothing: "none", "ema" or "local-linear", of curves and before drift times are taken, as
            `drift.smoothing.Smoothing.parse` has it. The largest of many noisy values is above the truth: smooth curves
            of answers and of rotating parts of the panel. The baseline is not smoothed.
        steps: [G] int64, ascending: where curves and levels are given, and drift times found; NaN before the first
            sample and after the last. Default: the samples' own. Of answers: `drift.answer_curves.curve_steps`.
        resamples, seed: of the bootstrap that drift times' intervals come from.
        controls: `control_values` of the same log.
        judges: the same answers by further judges, by name.

    Raises:
        InputError: a baseline that is not a sample, or has no value; an unknown smoothing; steps that do not ascend, or
            end before the baseline.
    """
    index = baseline_index(values, baseline)
    if baseline is not None and not np.isfinite(values.channels[values.primary][index]).any():
        why = (
            ": none is judged there, or they are weighted and the gate is closed" if values.readout == "answers" else ""
        )
        raise InputError(f"baseline: step {baseline} has no value in {values.readout}{why}")
    if steps is not None and (not len(steps) or (np.diff(steps) <= 0).any() or steps[-1] < values.steps[index]):
        raise InputError(f"steps: {listed(steps)}: must ascend, and reach the baseline, step {values.steps[index]}")
    how = Smoothing.parse(smoothing)
    smoothing = str(how)
    # Poisson bootstrap of the probes: weights less 1, [resamples, P]. fp32 is enough: what they move is compared with
    # intervals, and the results are steps.
    draws = np.random.Generator(np.random.Philox(seed)).poisson(1.0, (resamples, len(values.probes)))
    weights = draws.astype(np.float32) - 1
    curves: dict[tuple[str, str], Curve] = {}
    levels: dict[tuple[str, str], Curve] = {}
    drifts: dict[tuple[str, str], TopicDrift] = {}

    on_steps = values if steps is None else replace(values, steps=steps)
    start = int(np.searchsorted(on_steps.steps, values.steps[index]))  # the baseline's place among them, or the next
    # Variances under other answers are known of samples as they are, and of shifts since the first of them.
    level_noise, shift_noise = values.noise, values.shift_noise if index == 0 else None

    def curve(
        group: Group, topic: str, channel: str, noise: dict[str, np.ndarray] | None, level: bool = False
    ) -> tuple[Group, Curve]:
        """The group as it is shown, and its curve."""
        shown = how.smooth(values, group, index, steps)
        if shown is group:
            return group, _curve(values, group, topic, channel, noise, level)
        points = None if steps is None else _curve(values, group, topic, channel, noise, level)
        return shown, replace(_curve(on_steps, shown, topic, channel, None, level), points=points)

    for channel, per_probe in values.channels.items():  # [S, P]
        shifts = {t: group_of(values, per_probe - per_probe[index], t) for t in ["all", *values.topic_names]}
        ends = {topic: last_sample(group.mean, index) for topic, group in shifts.items()}
        magnitudes = [UNKNOWN if end is None else shifts[topic].estimate(end) for topic, end in ends.items()]
        # Holm over the topics; "all", the first, is not one of them.
        adjusted = [magnitudes[0].p, *holm(np.array([m.p for m in magnitudes[1:]])).tolist()]
        for (topic, group), magnitude, p in zip(shifts.items(), magnitudes, adjusted, strict=True):
            shown, curves[topic, channel] = curve(group, topic, channel, shift_noise)
            if values.has_levels:
                level = group_of(values, per_probe, topic)
                _, levels[topic, channel] = curve(level, topic, channel, level_noise, level=True)
            end = ends[topic]
            drift = TopicDrift(
                topic,
                channel,
                magnitude,
                p,
                {rule: DriftTime(rule, smoothing) for rule in RULES},
                None if end is None else int(values.steps[end]),
                _unknown(values, channel, topic, index, end, magnitude),
            )
            if drift.significant:
                of_topic = weights[:, values.member(topic)]
                drift.times.update(drift_times(on_steps, shown, start, magnitude.mean, smoothing, of_topic))
            drifts[topic, channel] = drift
    checks = validity(values, index, drifts, seed, controls or {}, judges or {})
    return Analysis(values, int(values.steps[index]), smoothing, curves, levels, drifts, checks)


def _unknown(values: ProbeValues, channel: str, topic: str, index: int, end: int | None, magnitude: Estimate) -> str:
    """Why nothing can be said of a topic's magnitude in a channel; "" where something can.

    Args:
        index: of the baseline sample.
        end: of the sample that the magnitude is of; None: there is none.
    """
    known = np.isfinite(values.channels[channel])
    if not known[index, values.member(topic)].any():
        return f"no number at the baseline, step {values.steps[index]}"
    if end is None:
        return f"no number after the baseline, step {values.steps[index]}"
    if values.readout != "answers":
        # A sample may take a part of the panel, but the last one of a run takes all of it, and none takes nothing.
        lost = ~known.any(1) | (values.steps >= values.total_steps)
        if lost[end + 1 :].any():
            return f"no number at step {values.steps[end + 1 :][lost[end + 1 :]][-1]}"
    if not math.isfinite(magnitude.p):
        return "one probe has no interval"
    if values.readout == LEAD and channel != "coverage":
        coverage = group_of(values, values.channels["coverage"], topic).mean[end]
        if coverage < LEAST_COVERAGE:
            return f"{coverage:.0%} of answers begin with a lead, below {LEAST_COVERAGE:.0%}"
    return ""


def _curve(
    values: ProbeValues,
    group: Group,
    topic: str,
    channel: str,
    noise: dict[str, np.ndarray] | None,
    level: bool = False,
) -> Curve:
    """The curve of a group's means.

    Args:
        noise: by channel, [S, P] float64 variance of each probe under other answers; None: not known.
        level: the means are of v itself, not of shifts; intervals then stay in the channel's range.
    """
    low, high, _ = group.inference
    if level and channel in RANGE:
        low, high = np.maximum(low, RANGE[channel][0]), np.minimum(high, RANGE[channel][1])
    error = None
    if noise is not None:
        # Answers to different probes are independent: the mean's variance is the sum of share^2 times the probe's.
        variance = np.where(group.taken, noise[channel][:, values.member(topic)], 0.0)
        error = np.where(np.isfinite(group.mean), np.sqrt((group.share**2 * variance).sum(1)), np.nan)
    return Curve(topic, channel, values.steps, group.mean, low, high, group.num_probes, level, error)
