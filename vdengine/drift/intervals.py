"""Means over probes, with intervals and p values that hold from 24 probes up.

Intervals are about the mean over the population of questions that the panel's probes stand for, in the panel's own
proportions of topic and polarity: the probe is the unit. They do not hold the variation between training seeds.

Each is the wider, on either side, of the stratified t interval and the same with Hall's correction for skewness (Hall
1992, "On the removal of skewness by transformation"); degrees of freedom are Welch's. Alone either fails somewhere: of
24 exponential shifts the t interval covers 92%, of 24 heavy-tailed ones (t, 3 degrees of freedom) the corrected one
93%; the percentile bootstrap, its residuals scaled and its quantiles expanded, does as the first. Together they cover
94-96% of normal, skewed and heavy-tailed shifts. p values belong to the same two tests: the larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vdengine.drift.probe_values import ProbeValues

FEW_PROBES = 24  # below this a number's interval is not to be trusted
ALPHA = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over probes with its 95% interval, in the readout's unit."""

    mean: float
    low: float
    high: float
    num_probes: int
    p: float  # two-sided, of a mean of 0

    @property
    def significant(self) -> bool:
        """The interval excludes 0. Of many topics some will by chance: see `TopicDrift.significant`."""
        return self.low > 0 or self.high < 0

    @property
    def few(self) -> bool:
        """Fewer probes than an interval can be trusted with."""
        return self.num_probes < FEW_PROBES


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of `values` [n] over probes that are not stratified, NaN left out."""
    x = np.asarray(values, np.float64)[None]
    return Group.of(x, [np.zeros(x.shape[1], np.int64)]).estimate(0)


@dataclass(frozen=True)
class Group:
    """Stratified means over one group of probes, and each probe's part in their error.

    With weights [R, P] of mean 1 and variance 1 on the probes, mean + (weights - 1) @ parts.T is a bootstrap of the
    means, all samples under the same weights. The parts are residuals, scaled by sqrt(n / (n - 1)) in each stratum: the
    sum of their squares is the variance of the mean, that of their cubes its third cumulant.
    """

    mean: np.ndarray  # [S]
    parts: np.ndarray  # [S, P], 0 where not sampled
    share: np.ndarray  # [S, P] coefficient of each probe in the mean
    taken: np.ndarray  # [S, P] bool
    strata: np.ndarray  # [P] int

    @classmethod
    def of(cls, x: np.ndarray, ladder: Sequence[np.ndarray]) -> Group:
        """x [S, P], NaN where not sampled; ladder: [P] labels of strata, fine to coarse, the last all one.

        A sample that took a part of the panel gives the mean of stratum means, weighted by the panel's own sizes: over
        parts that are random within strata, its expectation is the panel's mean. Strata with fewer than two probes in
        a sample are pooled, polarities first; a topic that is not there gives its weight to the others.
        """
        taken = np.isfinite(x)
        panel = taken.any(0)
        mean, parts, share = np.full(len(x), np.nan), np.zeros(x.shape), np.zeros(x.shape)
        packed = np.packbits(taken, axis=1)
        _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        which = which.reshape(-1)
        for pattern, example in enumerate(first):
            rows, here = np.flatnonzero(which == pattern), taken[example]
            if not here.any():
                continue
            labels = _strata(here, panel, ladder)
            found, label = np.unique(labels[panel], return_inverse=True)
            at = np.flatnonzero(here)
            own = label.reshape(-1)[here[panel]]
            count = np.bincount(own, minlength=len(found))  # in this sample
            size = np.where(count > 0, np.bincount(label.reshape(-1)), 0)  # in the panel
            count = np.maximum(count, 1)
            coefficient = (size / size.sum() / count)[own]
            member = np.zeros((len(at), len(found)))
            member[np.arange(len(at)), own] = 1 / count[own]
            y = x[np.ix_(rows, at)]
            of_stratum = y @ member
            spread = np.sqrt(count / np.maximum(count - 1, 1))[own]  # one probe alone has no interval, see below
            mean[rows] = y @ coefficient
            parts[np.ix_(rows, at)] = (y - of_stratum[:, own]) * coefficient * spread
            share[np.ix_(rows, at)] = coefficient
        return cls(mean, parts, share, taken, np.unique(ladder[0], return_inverse=True)[1].reshape(-1))

    def smoothed(self, kernel: np.ndarray) -> Group:
        """Under linear smoothing [S, S] of the means; a probe takes part where any of its samples does."""
        mean = kernel @ np.nan_to_num(self.mean)
        mean[np.isnan(self.mean)] = np.nan
        return Group(
            mean, kernel @ self.parts, kernel @ self.share, (kernel != 0) @ self.taken.astype(float) > 0, self.strata
        )

    @cached_property
    def num_probes(self) -> np.ndarray:  # [S]
        return self.taken.sum(1)

    @cached_property
    def inference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """low, high, p: each [S]."""
        from scipy.special import stdtr, stdtrit

        member = np.zeros((len(self.strata), int(self.strata.max(initial=0)) + 1))
        member[np.arange(len(self.strata)), self.strata] = 1
        by_stratum = self.parts**2 @ member
        variance, count = by_stratum.sum(1), self.taken.astype(float) @ member
        deviation = np.sqrt(variance)
        moved = deviation > 1e-12 * np.abs(self.mean)  # else all probes say the same, to rounding
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Welch (1947); the 1 and the 2 make it unbiased for many small strata, and n - 1 for a single one
            freedom = np.maximum(variance**2 / (by_stratum**2 / (count + 1)).sum(1) - 2, 1.0)
            skew = np.where(moved, (self.parts**3).sum(1) / deviation**3, 0.0)
            t = self.mean / deviation
            hall = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
            p = 2 * np.maximum(stdtr(freedom, -np.abs(t)), stdtr(freedom, -np.abs(hall)))
            q = stdtrit(freedom, 1 - ALPHA / 2)
            low = self.mean - deviation * np.maximum(q, _unhall(q, skew))
            high = self.mean - deviation * np.minimum(-q, _unhall(-q, skew))
        alone = (self.num_probes < 2) | np.isnan(self.mean)
        p = np.where(moved, np.minimum(p, 1.0), np.where(self.mean == 0, 1.0, 0.0))
        low, high = np.where(moved, low, self.mean), np.where(moved, high, self.mean)
        low, high, p = (np.where(alone, np.nan, z) for z in (low, high, p))
        return low, high, p

    def estimate(self, sample: int) -> Estimate:
        """Of one sample, by index."""
        mean, low, high, p = (float(z[sample]) for z in (self.mean, *self.inference))
        return Estimate(mean, low, high, int(self.num_probes[sample]), p)


def _unhall(q: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Where Hall's transform t + g t^2 / 3 + g^2 t^3 / 27 + g / 6 of a t statistic is q; g = skew."""
    g = np.where(np.abs(skew) < 1e-5, 1.0, skew)
    return np.where(np.abs(skew) < 1e-5, q, 3 / g * (np.cbrt(1 + g * (q - g / 6)) - 1))


def _strata(here: np.ndarray, panel: np.ndarray, ladder: Sequence[np.ndarray]) -> np.ndarray:
    """[P] labels, such that each holds none or at least two of the probes `here`, if that can be."""
    labels = ladder[0].copy()
    for coarse in ladder[1:]:
        count = np.bincount(labels[here], minlength=int(labels.max()) + 1)
        if (count[labels[panel]] >= 2).all():
            break
        last = coarse is ladder[-1]
        for parent in np.unique(coarse[panel]):
            inside = np.unique(labels[panel & (coarse == parent)])
            thin = [k for k in inside.tolist() if count[k] == 1 or (count[k] == 0 and not last)]
            rich = [k for k in inside.tolist() if count[k] >= 2]
            if thin and sum(count[k] for k in thin) < 2 and rich:
                thin.append(max(rich, key=lambda k: (count[k], k)))
            if thin:
                labels[panel & np.isin(labels, thin)] = int(labels.max()) + 1
    return labels


def _ladder(values: ProbeValues, topic: str) -> list[np.ndarray]:
    """Strata of a group: topic x polarity, topic, all."""
    polarity = (values.polarity[values.member(topic)] > 0).astype(np.int64)
    one = np.zeros(len(polarity), np.int64)
    if topic != "all":
        return [polarity, one]
    of_topic = np.unique(values.topics, return_inverse=True)[1].reshape(-1)
    return [2 * of_topic + polarity, of_topic, one]


def group_of(values: ProbeValues, x: np.ndarray, topic: str) -> Group:
    """The means of x [S, P] over a topic's probes ("all": the panel's), stratified by topic and polarity."""
    return Group.of(x[:, values.member(topic)], _ladder(values, topic))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values [n]; NaN stays."""
    out, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p[i]))
        out[i] = worst
    return out
