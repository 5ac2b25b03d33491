"""What a recipe does, from several runs of it that differ in their seed.

An interval over probes is about one run's weights. Another seed of the same recipe ends elsewhere, and more probes do
not say how far. With S runs of one recipe on the same P probes, a shift has three parts that vary:

    shift of run s on probe p  =  the recipe's  +  that of seed s  +  that of probe p  +  the rest

so the mean of all errs by that of S seeds and by that of P probes. Its interval joins the two (Zou and Donner 2008,
"Construction of confidence limits about effect measures"; the squares of their half widths add): Student's t with S - 1
degrees of freedom over the runs' means, what the rest gives them taken off, and the interval over probes
(`drift/intervals.py`) of the probes' means. A two-level bootstrap of so few seeds is too narrow (where seeds differ as
probes do, of three it covers 75%, of five 86%), and so is one t at Satterthwaite's degrees of freedom (92%). Simulated
with 3 and 5 seeds, 24 to 200 probes, and deviations of seeds from 0 to that of a probe, intervals cover in 93-97%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vdengine.drift.intervals import ALPHA, ROUNDING, group_of
from vdengine.drift.probe_values import LEAST_COVERAGE, ProbeValues
from vdengine.drift.run import Run
from vdengine.drift.trajectory import baseline_index
from vdengine.errors import InputError
from vdengine.outside import is_count
from vdengine.recipe import LEAD, Recipe

FEWEST_RUNS = 3  # with two, t has one degree of freedom, and the interval is 12.7 standard errors to either side


@dataclass(frozen=True)
class RecipeShift:
    """How far a recipe moves one topic, with the 95% interval over its seeds and over questions like the panel's."""

    topic: str  # "all": the whole panel
    mean: float  # over runs and probes, in the readout's unit; NaN where nothing can be said, as the interval is
    low: float
    high: float
    seed_deviation: float  # of a run's true shift around the recipe's, estimated: the rest taken off; 0 at least
    by_run: tuple[float, ...]  # the shift of each run
    num_probes: int
    unknown: str = ""  # why nothing can be said; "" where something can

    @property
    def significant(self) -> bool:
        """The interval excludes 0. Of many topics some will by chance."""
        return self.low > 0 or self.high < 0


def recipe_shifts(
    runs: Sequence[ProbeValues], channel: str | None = None, *, baseline: int | None = None
) -> dict[str, RecipeShift]:
    """How far a recipe moves values, from one readout of runs that are its `repeats`.

    Args:
        runs: values of the same probes and channels, of runs that differ in their seed.
        channel: Default: the primary one.
        baseline: the step that shifts are since, one that all have. Default: each one's first. The shift is the last,
            and the step of the last sample the same in all.

    Returns:
        By topic, "all" first. Probes that a run lacks, at the baseline or at its last sample, are left out; a topic
        of fewer than two has NaN. Of leads nothing is said of a topic (`RecipeShift.unknown`) where in a run fewer than
        `LEAST_COVERAGE` of answers begin with one at the last sample.

    Raises:
        InputError: fewer than `FEWEST_RUNS` runs, another readout, channel or other probes in one of them, a baseline
            that was not sampled, or a run whose last sample is at another step than that of the others.
    """
    if len(runs) < FEWEST_RUNS:
        raise InputError(
            f"an interval about the recipe takes {FEWEST_RUNS} runs of it that differ in run.seed; "
            f"{len(runs)} {'is' if len(runs) == 1 else 'are'} given"
        )
    first = runs[0]
    name = channel or first.primary
    for number, values in enumerate(runs, start=1):
        if (values.readout, values.unit) != (first.readout, first.unit) or name not in values.channels:
            raise InputError(f"run {number}: is read by {values.readout}, without {name!r} of {first.readout}")
        if not np.array_equal(values.probes, first.probes):
            raise InputError(f"run {number}: has other probes than the first; repeats are read by one panel")
    last = [last_step(values, name) for values in runs]
    # "The others'" is the step that most have, of as many the later one.
    shared = max(last, key=lambda step: (last.count(step), step))
    for number, step in enumerate(last, start=1):
        if step != shared:
            raise InputError(
                f"run {number}: its last sample is at step {step}, that of the others at {shared}: shifts of one "
                "recipe are compared at one step; leave it out, or finish it"
            )
    shifts = []
    for values in runs:
        v = values.channels[name]
        shifts.append(v[values.steps == shared][0] - v[baseline_index(values, baseline)])
    known = np.isfinite(shifts).all(0)
    of_all = np.where(known, shifts, np.nan)  # [runs, P]
    return {
        topic: _recipe_shift(first, of_all, topic, _too_few_leads(runs, topic, shared))
        for topic in ["all", *first.topic_names]
    }


def last_step(values: ProbeValues, channel: str | None = None) -> int:
    """The step of the last sample that has a number in a channel (default: the primary one); the first one's where
    none has."""
    sampled = np.flatnonzero(np.isfinite(values.channels[channel or values.primary]).any(1))
    return int(values.steps[sampled[-1] if len(sampled) else 0])


def _too_few_leads(runs: Sequence[ProbeValues], topic: str, step: int) -> str:
    """Why nothing can be said of the leads of a topic: the first run in which too few answers begin with one at a step;
    "" where there is none."""
    for number, values in enumerate(runs, start=1):
        if values.readout == LEAD:
            coverage = float(group_of(values, values.channels["coverage"][values.steps == step], topic).mean[0])
            if coverage < LEAST_COVERAGE:
                yes, no = values.leads
                return (
                    f"run {number}: {coverage:.0%} of answers begin with {yes} or {no} at step {step}, below "
                    f"{LEAST_COVERAGE:.0%}"
                )
    return ""


def _recipe_shift(values: ProbeValues, shifts: np.ndarray, topic: str, unknown: str) -> RecipeShift:
    """The recipe's shift of one topic.

    Args:
        values: for the probes' topics and polarities.
        shifts: [runs, P] float64, of every probe by all runs or by none.
        unknown: why nothing can be said.
    """
    from scipy.special import stdtrit

    count = len(shifts)
    of_runs = group_of(values, shifts, topic)  # one sample a run
    of_mean = group_of(values, shifts.mean(0, keepdims=True), topic)
    mean, low, high = (float(each[0]) for each in (of_mean.mean, *of_mean.inference[:2]))
    # The variance of the runs' means: that of seeds, and what the rest gives: the squares of the probes' parts in a
    # run's error, those in the mean's taken off.
    between = float(of_runs.mean.var(ddof=1))
    rest = float(((of_runs.parts - of_mean.parts) ** 2).sum()) / (count - 1)
    of_seeds = max(between - rest, 0.0)
    half = float(stdtrit(count - 1, 1 - ALPHA / 2)) * math.sqrt(of_seeds / count)
    low, high = mean - math.hypot(mean - low, half), mean + math.hypot(high - mean, half)
    if abs(mean) <= ROUNDING.get(values.unit, 0.0):
        low, high = min(low, 0.0), max(high, 0.0)
    by_run, spread, num_probes = tuple(of_runs.mean.tolist()), math.sqrt(of_seeds), int(of_mean.num_probes[0])
    if unknown:
        mean = low = high = spread = math.nan
    return RecipeShift(topic, mean, low, high, spread, by_run, num_probes, unknown)


def repeats(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of two runs or more that are repeats: of one recipe and panel, in all that changes a run's numbers, and of
    seeds of their own.

    Runs without a recipe, or without a seed in it, repeat nothing. Of two runs with one recipe and seed the second is
    left out: it is the same run again.
    """
    groups: dict[str, dict[Any, Run]] = {}
    for run in runs:
        seed = run.recipe.get("run", {}).get("seed")
        if is_count(seed):
            groups.setdefault(repr((_shared(run.recipe), run.panel_hash)), {}).setdefault(seed, run)
    return [list(of_recipe.values()) for of_recipe in groups.values() if len(of_recipe) > 1]


def _shared(recipe: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(section, key, value) of a recipe's tables, ordered, without the seed and what changes no number of a run."""
    default = Recipe()
    aside = {("run", "seed")} | {
        (section.name, key.name)
        for section in fields(default)
        for key in fields(getattr(default, section.name))
        if not key.metadata["result"]
    }
    return sorted(
        (section, key, repr(value))
        for section, table in recipe.items()
        for key, value in table.items()
        if (section, key) not in aside
    )
