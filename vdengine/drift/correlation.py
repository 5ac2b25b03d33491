"""Correlations of series that may have gaps: reliabilities and the ceiling they set, partial ones, and intervals.

Cells of one run, topic or probe depend on one another, so an interval is over clusters of cells, not over cells. It is
jackknifed, a cluster left out at a time, on Fisher's z = atanh(r), with Student's t at clusters - 1 degrees of freedom.
Two kinds of clusters may cross, such as runs and topics: the variance is then that over the one, plus that over the
other, less that over their cells (Cameron, Gelbach and Miller 2011), at Satterthwaite's degrees of freedom (1946). A
bootstrap over so few clusters is too narrow. Simulated rates are in tests/drift/test_correlation.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vdengine.drift.intervals import ALPHA

NOT_KNOWN = (math.nan, math.nan)
FEW_CLUSTERS = 3  # with fewer of a kind there is no interval

Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]  # of sums of products [..., c, c], one for each set of columns


@dataclass(frozen=True)
class Correlation:
    """The correlation of two series a and b, with the reliability of each where it is known (else NaN).

    Reliability is the correlation of parallel halves of a cell's items (openings or answers), stepped up to all of them
    (Spearman 1910, Brown 1910); 1 of a series that has no noise of its own, such as a prediction. Intervals are of 95%,
    over clusters, low and high end; NaN without clusters, and with fewer than `FEW_CLUSTERS`.
    """

    pearson: float
    spearman: float
    num: int  # pairs
    reliability_a: float = math.nan
    reliability_b: float = math.nan
    interval: tuple[float, float] = NOT_KNOWN  # of `pearson`
    disattenuated_interval: tuple[float, float] = NOT_KNOWN
    partial: float = math.nan  # r of what is left of both after a regression on what is given
    partial_interval: tuple[float, float] = NOT_KNOWN

    @property
    def ceiling(self) -> float:
        """The largest r that these reliabilities leave to two series of one truth; NaN where one is not known."""
        product = self.reliability_a * self.reliability_b
        return math.sqrt(product) if self.reliability_a > 0 and product > 0 else math.nan

    @property
    def disattenuated(self) -> float:
        """Pearson's r over the ceiling: what r would be without noise in either series. It may exceed 1 by chance."""
        return self.pearson / self.ceiling


def correlate(
    a: np.ndarray, b: np.ndarray, *, given: Sequence[np.ndarray] = (), clusters: Sequence[np.ndarray] = ()
) -> Correlation:
    """The correlation of two series over all their cells, which must not share noise.

    Neither is scaled: r asks for no scale, and one that is fitted with groups left out changes it.

    Args:
        a, b: [3, ...] float64 of one shape, NaN where not sampled: the series, then the same from either half of the
            items behind it (NaN: there are none). Or [1, ...]: a series without noise, whose reliability is 1.
        given: [...] float64 each: what `Correlation.partial` holds constant.
        clusters: none, one, or two that cross: labels that broadcast to the cells' shape [...].
    """
    shape = a.shape[1:]
    (series_a, *halves_a), (series_b, *halves_b) = (each.reshape(len(each), -1) for each in (a, b))
    bases = [np.broadcast_to(each, shape).reshape(-1) for each in given]
    known = np.isfinite(series_a) & np.isfinite(series_b)
    kinds = _kinds([np.broadcast_to(each, shape).reshape(-1)[known] for each in clusters])

    def sums(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
        return _sums([column[known] for column in columns], kinds)

    reliability_a, reliability_b = (
        step_up(pearson(*(half[known] for half in halves))) if halves else 1.0 for halves in (halves_a, halves_b)
    )
    found = Correlation(
        pearson(series_a, series_b), spearman(series_a, series_b), int(known.sum()), reliability_a, reliability_b
    )
    plain = sums([series_a, series_b])
    found = replace(found, interval=_fisher(plain))
    if not math.isnan(found.ceiling):
        halves = [sums(each) for each in (halves_a, halves_b) if each]
        found = replace(found, disattenuated_interval=jackknife_interval(_disattenuated, [plain, *halves]))
    if bases:
        left = sums([series_a, series_b, *bases])
        found = replace(found, partial=float(_r(left[0].sum(0))), partial_interval=_fisher(left))
    return found


def _kinds(labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Clusters of n cells by kind, [n] int64 each, from 0: the kind with the most first, the crossing of two last.

    Args:
        labels: none, one, or two arrays [n].
    """
    numbered = [np.unique(each, return_inverse=True)[1].reshape(-1) for each in labels]
    numbered.sort(key=lambda each: -int(each.max(initial=-1)))
    if len(numbered) == 2:
        crossing = numbered[0] * (int(numbered[1].max(initial=0)) + 1) + numbered[1]
        numbered.append(np.unique(crossing, return_inverse=True)[1].reshape(-1))
    return numbered


def _sums(columns: Sequence[np.ndarray], kinds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sums of products over the cells of each cluster, by kind: [clusters, c, c] float64.

    Rows and columns are those of the two series, 1, and the others; standardised, which no r depends on, so that what
    is left without a cluster does not cancel. Cells without one of them count nowhere.

    Args:
        columns: [n] float64 each, the two series first.
        kinds: as `_kinds` gives them; without any, all cells are one cluster.
    """
    matrix = np.stack(columns, 1)  # [n, c - 1]
    known = np.isfinite(matrix).all(1)
    matrix = matrix[known]
    if len(matrix):
        deviation = matrix.std(0)
        matrix = (matrix - matrix.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    matrix = np.insert(matrix, 2, 1.0, axis=1)  # [n, c]
    products = matrix[:, :, None] * matrix[:, None]  # [n, c, c]
    by_kind = []
    for labels in kinds or [np.zeros(len(known), np.int64)]:
        total = np.zeros((int(labels.max(initial=-1)) + 1, *products.shape[1:]))
        np.add.at(total, labels[known], products)
        by_kind.append(total)
    return by_kind


def _r(sums: np.ndarray) -> np.ndarray:
    """r of the two series, what the other columns explain left out: [...] for sums of products [..., c, c]; NaN where
    nothing is left of one."""
    own, cross, rest = sums[..., :2, :2], sums[..., :2, 2:], sums[..., 2:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / rest if rest.shape[-1] == 1 else np.linalg.pinv(rest, hermitian=True)
        left = own - cross @ inverse @ np.swapaxes(cross, -1, -2)
    a, b, both = left[..., 0, 0], left[..., 1, 1], left[..., 0, 1]
    # Of a series that is explained, rounding is left: 1e-12 of what it was.
    varies = (a > 1e-12 * own[..., 0, 0]) & (b > 1e-12 * own[..., 1, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varies, both / np.sqrt(a * b), np.nan)


def _disattenuated(sums: Sequence[np.ndarray]) -> np.ndarray:
    """r over its ceiling, from sums of products of the two series and of each one's halves, [..., 3, 3] each."""
    r, *of_halves = (_r(each) for each in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        reliability = [np.where(half > 0, 2 * half / (1 + half), np.nan) for half in of_halves]
        return r / np.sqrt(np.prod(reliability, axis=0)) if reliability else r


def _fisher(sums: list[np.ndarray]) -> tuple[float, float]:
    """The interval of r, from sums of products by kind of cluster."""
    most = 1 - 1e-12  # an r of 1 has an infinite z
    low, high = jackknife_interval(lambda of: np.arctanh(np.clip(_r(of[0]), -most, most)), [sums])
    return math.tanh(low), math.tanh(high)


def jackknife_interval(statistic: Statistic, sums: Sequence[list[np.ndarray]]) -> tuple[float, float]:
    """The jackknife's 95% interval of a statistic of sums of products over clusters.

    Args:
        statistic: of the whole, and of what is left without each cluster.
        sums: of each set of columns, by kind of cluster: [clusters, ...]. A cluster counts in a set where it has a
            cell: where its sums are not all 0. The interval has the degrees of freedom of the set with the fewest.
    """
    from scipy.special import stdtrit

    whole = float(statistic([each[0].sum(0) for each in sums]))
    variance, freedom = [], []  # of each kind
    for of_kind in zip(*sums, strict=True):
        there = np.stack([each.any(tuple(range(1, each.ndim))) for each in of_kind])  # [sets, clusters]
        count, fewest = int(there.any(0).sum()), int(there.sum(1).min())
        if fewest < FEW_CLUSTERS:
            return NOT_KNOWN
        without = statistic([each.sum(0) - each for each in of_kind])  # [clusters]; an empty one changes nothing
        squares = float(((without - whole)[there.any(0)] ** 2).sum())
        variance.append((count - 1) / count * squares)
        freedom.append(fewest - 1)
    if len(variance) == 3 and freedom[1] > freedom[0]:  # cells that are missing may turn the order of the two
        variance[:2], freedom[:2] = variance[1::-1], freedom[1::-1]
    total, degrees = variance[0], float(freedom[0])
    if len(variance) == 3:
        added = max(variance[1] - variance[2], 0.0)  # by the second kind, over what cells give by themselves
        total += added
        if total > 0:
            degrees = total**2 / (variance[0] ** 2 / freedom[0] + added**2 / freedom[1])
            degrees = min(max(degrees, freedom[1]), freedom[0])
    half = float(stdtrit(degrees, 1 - ALPHA / 2)) * math.sqrt(total)
    return whole - half, whole + half


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two series [n] float64, pairs with a NaN left out.

    NaN below three pairs, and where a series does not vary.
    """
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if len(a) < 3:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / size if size > 0 else math.nan


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two series [n] float64, as `pearson` of their ranks."""
    known = np.isfinite(a) & np.isfinite(b)
    return pearson(_ranks(a[known]), _ranks(b[known]))


def _ranks(series: np.ndarray) -> np.ndarray:
    """Ranks [n] float64 of a series [n], from 1; ties have their mean rank."""
    _, position, count = np.unique(series, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[position.reshape(-1)]


def step_up(r: float) -> float:
    """Spearman and Brown's formula: the reliability of the whole, from the correlation r of parallel halves.

    An r that is not above 0 is returned as it is: there is no reliability to step up.
    """
    return 2 * r / (1 + r) if r > 0 else r


def share_of(cells: np.ndarray) -> float:
    """The mean of `cells` [n], bool or float; NaN if there are none."""
    return float(np.mean(cells)) if len(cells) else math.nan
