"""Means over probes, with 95% intervals and p values that hold from 24 probes up.

The unit of sampling is the probe. An interval is about the mean over the population of questions that the panel's
probes stand for, in the panel's own proportions of topic and polarity. It does not hold the variation between training
seeds.

Each end of an interval is the wider of two: the stratified t interval, and the same with Hall's correction for skewness
(Hall 1992, "On the removal of skewness by transformation"); degrees of freedom are Welch's. Either alone fails
somewhere: of 24 exponential shifts the t interval covers 92%, of 24 heavy-tailed ones (t, 3 degrees of freedom) the
corrected one 93%; the percentile bootstrap, its residuals scaled and its quantiles expanded, does as the first.
Together they cover 94-96% of normal, skewed and heavy-tailed shifts. The p value is the larger of the two tests'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vdengine.drift.probe_values import ProbeValues

FEW_PROBES = 24  # below this a number's interval is not to be trusted
ALPHA = 0.05

# What rounding alone can put into a mean shift, by a readout's unit: one that is no larger is not told from 0, however
# alike its probes are. With u = 2^-24, half a unit in the last place of fp32:
#   nats per byte  A token's log-prob is a logit less a log-sum-exp, both up to 64 in size: off by 64 u = 4e-6 nats. A
#                  stance's shift is made of four of them (both sides, then and now), and a token has about 4 bytes:
#                  4e-6 per byte. A sum of 100 tokens is off by 100 u of its size, about 1 nat per byte: 6e-6 more.
#   probability    A log weight is the difference of two sums over at most 64 tokens: 64 * 2 * 64 u = 5e-4. A mean of
#                  stances in [-1, 1] moves by no more than its weights do. Fresh answers have less: float64's rounding.
ROUNDING = {"nats per byte": 1e-5, "probability": 5e-4}


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
        """Fewer than `FEW_PROBES` probes: the interval is not to be trusted."""
        return self.num_probes < FEW_PROBES


UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0, math.nan)


def mean_estimate(values: np.ndarray, rounding: float = 0.0) -> Estimate:
    """The mean of `values` [P] float, one a probe, without strata; NaN is left out. rounding: as `Group` has it."""
    per_probe = np.asarray(values, np.float64)[None]
    return Group.of(per_probe, [np.zeros(per_probe.shape[1], np.int64)], rounding).estimate(0)


@dataclass(frozen=True)
class Group:
    """Stratified means over one group of P probes at S samples, and each probe's part in their error.

    With bootstrap weights [R, P] of mean 1 and variance 1 on the probes, mean + (weights - 1) @ parts.T is a bootstrap
    of the means in which all samples have the same weights. The parts are residuals scaled by sqrt(n / (n - 1)) in
    each stratum: the sum of their squares is the variance of the mean, the sum of their cubes its third cumulant.
    """

    mean: np.ndarray  # [S] float64, in the readout's unit; NaN where no probe was sampled
    parts: np.ndarray  # [S, P] float64, same unit; 0 where not sampled
    share: np.ndarray  # [S, P] float64, coefficient of each probe in the mean; 0 where not sampled
    taken: np.ndarray  # [S, P] bool, which probes a sample has
    strata: np.ndarray  # [P] int64, 0 to K - 1: the finest strata
    rounding: float = 0.0  # in the readout's unit: a mean that is no larger is not told from 0

    @classmethod
    def of(cls, per_probe: np.ndarray, ladder: Sequence[np.ndarray], rounding: float = 0.0) -> Group:
        """Stratified means of a group's probes.

        A sample that took a part of the panel gives the mean of stratum means, weighted by the panel's own stratum
        sizes: over parts that are random within strata its expectation is the panel's mean. Strata with fewer than two
        probes in a sample are pooled, polarities first. The weight of a topic without probes goes to the others.

        Args:
            per_probe: [S, P] float64 in the readout's unit, NaN where not sampled.
            ladder: stratum labels [P] int64, from the finest strata to the coarsest; the last is all one stratum.
            rounding: as the field.
        """
        taken = np.isfinite(per_probe)
        panel = taken.any(0)  # [P] probes of the panel: those that any sample has
        mean, parts, share = np.full(len(per_probe), np.nan), np.zeros(per_probe.shape), np.zeros(per_probe.shape)
        # Samples that took the same probes have the same strata and coefficients. For each such pattern of `taken`:
        # its first sample, and for each sample its pattern [S].
        packed = np.packbits(taken, axis=1)
        _, first, pattern_of = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        pattern_of = pattern_of.reshape(-1)
        for pattern, example in enumerate(first):
            samples, sampled = np.flatnonzero(pattern_of == pattern), taken[example]  # [s] int64, [P] bool
            if not sampled.any():
                continue
            # Strata of this pattern, numbered 0 to K - 1, of the panel's probes and of the n sampled ones.
            labels = _strata(sampled, panel, ladder)
            strata, stratum_in_panel = np.unique(labels[panel], return_inverse=True)
            columns = np.flatnonzero(sampled)  # [n]
            stratum = stratum_in_panel.reshape(-1)[sampled[panel]]  # [n]
            # Stratum sizes [K]: n_k in this sample, N_k in the panel (0 for strata without a sampled probe).
            count = np.bincount(stratum, minlength=len(strata))
            size = np.where(count > 0, np.bincount(stratum_in_panel.reshape(-1)), 0)
            count = np.maximum(count, 1)
            # A probe's coefficient in the stratified mean: (N_k / sum of N) / n_k, [n].
            coefficient = (size / size.sum() / count)[stratum]
            # Stratum means of each sample [s, K], by a matrix [n, K] that averages within strata.
            averaging = np.zeros((len(columns), len(strata)))
            averaging[np.arange(len(columns)), stratum] = 1 / count[stratum]
            sampled_values = per_probe[np.ix_(samples, columns)]  # [s, n]
            stratum_means = sampled_values @ averaging
            # sqrt(n_k / (n_k - 1)) makes squares of residuals unbiased for the variance, [n]. A stratum of one probe
            # has a residual of 0; `inference` gives no interval where the whole group has one probe.
            scale = np.sqrt(count / np.maximum(count - 1, 1))[stratum]
            mean[samples] = sampled_values @ coefficient
            parts[np.ix_(samples, columns)] = (sampled_values - stratum_means[:, stratum]) * coefficient * scale
            share[np.ix_(samples, columns)] = coefficient
        strata = np.unique(ladder[0], return_inverse=True)[1].reshape(-1)
        return cls(mean, parts, share, taken, strata, rounding)

    def smoothed(self, kernel: np.ndarray) -> Group:
        """The group under linear smoothing of its means: kernel [G, S] float64 (to, from); a row of zeros has no mean.

        A probe takes part in a smoothed mean if any of the samples in it has that probe.
        """
        mean = kernel @ np.nan_to_num(self.mean)
        mean[~kernel.any(1)] = np.nan
        taken = (kernel != 0) @ self.taken.astype(float) > 0
        return Group(mean, kernel @ self.parts, kernel @ self.share, taken, self.strata, self.rounding)

    @cached_property
    def num_probes(self) -> np.ndarray:
        """[S] int64: probes in each mean."""
        return self.taken.sum(1)

    @cached_property
    def inference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Low and high ends of the 95% intervals, in the readout's unit, and p values: [S] float64 each.

        NaN for means over fewer than two probes. Where all probes have one value, to rounding, the interval is the
        mean itself, and p is 0. A mean within `rounding` of 0 has p = 1 and an interval that holds 0.
        """
        from scipy.special import stdtr, stdtrit

        # Variance of the mean by stratum, and probes by stratum, [S, K] each.
        member = np.zeros((len(self.strata), int(self.strata.max(initial=0)) + 1))  # [P, K] one-hot
        member[np.arange(len(self.strata)), self.strata] = 1
        by_stratum = self.parts**2 @ member
        variance, count = by_stratum.sum(1), self.taken.astype(float) @ member
        error = np.sqrt(variance)  # [S] standard error of the mean
        varies = error > 1e-12 * np.abs(self.mean)  # else all probes have one value, to rounding
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Welch (1947); the 1 and the 2 make it unbiased for many small strata, and n - 1 for a single one.
            freedom = np.maximum(variance**2 / (by_stratum**2 / (count + 1)).sum(1) - 2, 1.0)
            # t statistics, and t under Hall's transform, whose skewness is 0 to first order; [S] each.
            skew = np.where(varies, (self.parts**3).sum(1) / error**3, 0.0)
            t = self.mean / error
            hall = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
            p = 2 * np.maximum(stdtr(freedom, -np.abs(t)), stdtr(freedom, -np.abs(hall)))
            # An interval's ends are where either statistic reaches the t quantile q: the wider end of the two.
            q = stdtrit(freedom, 1 - ALPHA / 2)
            low = self.mean - error * np.maximum(q, _hall_inverse(q, skew))
            high = self.mean - error * np.minimum(-q, _hall_inverse(-q, skew))
        alone = (self.num_probes < 2) | np.isnan(self.mean)
        p = np.where(varies, np.minimum(p, 1.0), 0.0)
        low, high = np.where(varies, low, self.mean), np.where(varies, high, self.mean)
        nothing = np.abs(self.mean) <= self.rounding
        p = np.where(nothing, 1.0, p)
        low, high = np.where(nothing, np.minimum(low, 0.0), low), np.where(nothing, np.maximum(high, 0.0), high)
        low, high, p = (np.where(alone, np.nan, each) for each in (low, high, p))
        return low, high, p

    def estimate(self, sample: int) -> Estimate:
        """The mean of one sample, by index."""
        mean, low, high, p = (float(each[sample]) for each in (self.mean, *self.inference))
        return Estimate(mean, low, high, int(self.num_probes[sample]), p)


def _hall_inverse(q: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """The t statistic [S] whose Hall transform t + g t^2 / 3 + g^2 t^3 / 27 + g / 6, g = skew [S], is q [S]."""
    g = np.where(np.abs(skew) < 1e-5, 1.0, skew)
    return np.where(np.abs(skew) < 1e-5, q, 3 / g * (np.cbrt(1 + g * (q - g / 6)) - 1))


def _strata(sampled: np.ndarray, panel: np.ndarray, ladder: Sequence[np.ndarray]) -> np.ndarray:
    """Strata that each hold none or at least two of the sampled probes, where that is possible.

    Args:
        sampled: [P] bool, the probes that a sample has.
        panel: [P] bool, the probes that any sample has.
        ladder: labels [P] int64, fine to coarse, as in `Group.of`.

    Returns:
        [P] int64 labels, not consecutive.
    """
    labels = ladder[0].copy()
    for coarse in ladder[1:]:
        count = np.bincount(labels[sampled], minlength=int(labels.max()) + 1)  # sampled probes by label
        if (count[labels[panel]] >= 2).all():
            break
        last = coarse is ladder[-1]
        # Within each coarser stratum, pool strata with one sampled probe and, unless all are one, those with none.
        for parent in np.unique(coarse[panel]):
            inside = np.unique(labels[panel & (coarse == parent)])
            thin = [k for k in inside.tolist() if count[k] == 1 or (count[k] == 0 and not last)]
            rich = [k for k in inside.tolist() if count[k] >= 2]
            if thin and sum(count[k] for k in thin) < 2 and rich:  # too few even together: join the largest
                thin.append(max(rich, key=lambda k: (count[k], k)))
            if thin:
                labels[panel & np.isin(labels, thin)] = int(labels.max()) + 1
    return labels


def _ladder(values: ProbeValues, topic: str) -> list[np.ndarray]:
    """Strata of a group's P probes, fine to coarse, [P] int64 each: topic x polarity, topic, all."""
    polarity = (values.polarity[values.member(topic)] > 0).astype(np.int64)
    one = np.zeros(len(polarity), np.int64)
    if topic != "all":
        return [polarity, one]
    of_topic = np.unique(values.topics, return_inverse=True)[1].reshape(-1)
    return [2 * of_topic + polarity, of_topic, one]


def group_of(values: ProbeValues, per_probe: np.ndarray, topic: str) -> Group:
    """Means over a topic's probes ("all": the panel's), stratified by topic and polarity; `ROUNDING` of their unit.

    Args:
        values: for the probes' topics and polarities.
        per_probe: [S, P] float64, one number a sample and probe of `values`; NaN where not sampled.
    """
    return Group.of(per_probe[:, values.member(topic)], _ladder(values, topic), ROUNDING.get(values.unit, 0.0))


def holm(p: np.ndarray) -> np.ndarray:
    """p values adjusted for their number (Holm 1979): [n] float64 for p [n] float64; NaN stays and is not counted."""
    adjusted, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    largest = 0.0  # adjusted values must not fall where p rises
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
