"""v, its shifts, how far and when it drifted, and whether any of that can be read: everything that is shown of a run.

A probe has a value v at each sample (`drift/probe_values.py`). Of a topic, v is the mean over its probes; the shift at
a step is v less v at the baseline, each probe paired with itself; the magnitude M is the last shift, signed. Intervals
and p values are those of `drift/intervals.py`: over probes, not over training seeds. Drift times are taken over whole
trajectories (`drift/trajectory.py`): probes are resampled with Poisson weights, the same for all samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.drift.intervals import Estimate, Group, group_of, holm
from vdengine.drift.probe_values import ProbeValues
from vdengine.drift.trajectory import (
    RULES,
    DriftTime,
    baseline_index,
    drift_times,
    last_sample,
    parse_smoothing,
    smoothing_kernel,
)
from vdengine.drift.validity import TopicDrift, validity

RANGE = {"support": (0.0, 1.0), "neutral": (0.0, 1.0), "oppose": (0.0, 1.0), "graded": (-1.0, 1.0)}  # of levels


@dataclass(frozen=True)
class Curve:
    """One channel of one topic over the run, with its 95% interval at each step. Arrays [S], NaN where not sampled."""

    topic: str  # "all": the whole panel
    channel: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_probes: np.ndarray
    level: bool  # v itself; else its shift since the baseline
    noise: np.ndarray | None = None  # answers, unsmoothed: standard error, were others drawn for the same probes


@dataclass(frozen=True)
class Analysis:
    """What is known of a run. Keys of the tables: (topic or "all", channel).

    validity: of the last sample against the baseline, None where it was not measured
        displacement, neutral, yes_bias   Estimate over the panel
        null, off-topic                   Estimate of the primary channel on the controls; shown, never subtracted
        paraphrase                        {correlation: Pearson's r of last shifts over probes, shift: Estimate,
                                          agreement: Agreement} of the paraphrased questions
        half_panels                       HalfPanels
        items                             float: probes' last shifts, from half of their items against the other half,
                                          stepped up to all of them (Spearman and Brown)
        reliability                       {topic: Reliability}
        judges                            {name: Agreement} with each further judge
    """

    values: ProbeValues
    baseline: int  # step
    smoothing: str  # "none", or a name and its width, "ema:0.1"
    curves: dict[tuple[str, str], Curve]
    levels: dict[tuple[str, str], Curve]  # answers only: levels of openings say nothing
    drifts: dict[tuple[str, str], TopicDrift]
    validity: dict[str, Any]

    @property
    def topics(self) -> list[str]:
        """In order of first appearance, without "all"."""
        return self.values.topic_names

    def drift(self, topic: str = "all") -> TopicDrift:
        """The drift of the readout's own channel."""
        return self.drifts[topic, self.values.primary]


def analyse(
    values: ProbeValues, *, baseline: int | None = None, smoothing: str = "none", resamples: int = 2000, seed: int = 0,
    controls: Mapping[str, ProbeValues] | None = None, judges: Mapping[str, ProbeValues] | None = None,
) -> Analysis:  # fmt: skip
    """Everything that is shown of a run.

    Args:
        baseline: the step that shifts are since. Default: the first sample.
        smoothing: "none", "ema" or "local-linear", of curves and before drift times are taken; with a width as a
            fraction of the stage, "ema:0.05" (its time constant; default 0.1) or "local-linear:0.2" (half its window).
            The largest of many noisy values is above the truth: smooth those of rotating parts. The baseline stays.
        resamples, seed: of the bootstrap that drift times' intervals come from.
        controls: `control_values` the same log.
        judges: the same answers by further judges, by name.

    Raises:
        InputError: a baseline that is not a sample; an unknown smoothing.
    """
    index = baseline_index(values, baseline)
    name, width = parse_smoothing(smoothing)
    smoothing = name if name == "none" else f"{name}:{width:g}"
    draws = np.random.Generator(np.random.Philox(seed)).poisson(1.0, (resamples, len(values.probes)))
    weights = draws.astype(np.float32) - 1  # fp32: what they move is compared with intervals, and ends up as steps
    curves: dict[tuple[str, str], Curve] = {}
    levels: dict[tuple[str, str], Curve] = {}
    drifts: dict[tuple[str, str], TopicDrift] = {}

    def shown(group: Group) -> Group:
        if name == "none":
            return group
        return group.smoothed(smoothing_kernel(values, group.mean, index, name, width))

    noise = (values.noise, values.shift_noise if index == 0 else None) if name == "none" else (None, None)
    for channel, x in values.channels.items():
        shifts = {t: group_of(values, x - x[index], t) for t in ["all", *values.topic_names]}
        ends = {t: last_sample(g.mean, index) for t, g in shifts.items()}
        found = [
            Estimate(math.nan, math.nan, math.nan, 0, math.nan) if end is None else shifts[t].estimate(end)
            for t, end in ends.items()
        ]
        adjusted = [found[0].p, *holm(np.array([m.p for m in found[1:]])).tolist()]
        for (topic, group), m, p in zip(shifts.items(), found, adjusted, strict=True):
            smooth = shown(group)
            curves[topic, channel] = _curve(values, smooth, topic, channel, noise[1])
            if values.readout == "answers":
                level = shown(group_of(values, x, topic))
                levels[topic, channel] = _curve(values, level, topic, channel, noise[0], level=True)
            d = TopicDrift(topic, channel, m, p, {rule: DriftTime(rule, smoothing) for rule in RULES})
            if d.significant:
                mine = weights[:, values.member(topic)]
                d.times.update(drift_times(values, smooth, index, m.mean, smoothing, mine))
            drifts[topic, channel] = d
    checks = validity(values, index, drifts, seed, controls or {}, judges or {})
    return Analysis(values, int(values.steps[index]), smoothing, curves, levels, drifts, checks)


def _curve(
    values: ProbeValues, group: Group, topic: str, channel: str, noise: dict[str, np.ndarray] | None,
    level: bool = False,
) -> Curve:  # fmt: skip
    low, high, _ = group.inference
    if level and channel in RANGE:
        low, high = np.maximum(low, RANGE[channel][0]), np.minimum(high, RANGE[channel][1])
    error = None
    if noise is not None:
        variance = np.where(group.taken, noise[channel][:, values.member(topic)], 0.0)
        error = np.where(np.isfinite(group.mean), np.sqrt((group.share**2 * variance).sum(1)), np.nan)
    return Curve(topic, channel, values.steps, group.mean, low, high, group.num_probes, level, error)
