"""Correlations of series that may have gaps, and their reliability from halves of the items behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Correlation:
    """The correlation of two series a and b, with the reliability of each where it is known (else NaN).

    Reliability is the correlation of two halves of a probe's items (openings or answers), stepped up to all of them
    (Spearman 1910, Brown 1910). The disattenuated r is Pearson's r over the root of the product of the two
    reliabilities: what r would be without noise in either series. It may exceed 1 by chance.
    """

    pearson: float
    spearman: float
    num: int  # pairs
    reliability_a: float = math.nan
    reliability_b: float = math.nan

    @property
    def disattenuated(self) -> float:
        """Pearson's r without noise; NaN where a reliability is unknown or not above 0."""
        product = self.reliability_a * self.reliability_b
        return self.pearson / math.sqrt(product) if self.reliability_a > 0 and product > 0 else math.nan


def correlate(a: np.ndarray, b: np.ndarray) -> Correlation:
    """The correlation of two series over all their cells, with reliabilities.

    Args:
        a, b: [3, ...] float64 of one shape, NaN where not sampled: the series, then the same from either half of the
            items.
    """
    (series_a, *halves_a), (series_b, *halves_b) = (each.reshape(3, -1) for each in (a, b))
    num = int((np.isfinite(series_a) & np.isfinite(series_b)).sum())
    reliability = [step_up(pearson(first, second)) for first, second in (halves_a, halves_b)]
    return Correlation(pearson(series_a, series_b), spearman(series_a, series_b), num, *reliability)


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
    """Spearman and Brown's formula: the reliability of the whole, from the correlation r of its halves.

    An r that is not above 0 is returned as it is: there is no reliability to step up.
    """
    return 2 * r / (1 + r) if r > 0 else r


def share_of(cells: np.ndarray) -> float:
    """The mean of `cells` [n], bool or float; NaN if there are none."""
    return float(np.mean(cells)) if len(cells) else math.nan
