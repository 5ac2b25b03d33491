"""Accuracies of a task, with standard errors, and what has changed between two samples of the same rows.

The definitions are those of lm-evaluation-harness 0.4 (`multiple_choice`). With s_c the summed log-prob of choice c:

    acc         argmax_c s_c is right
    acc_norm    argmax_c s_c / (characters of c) is right
    acc_bytes   argmax_c s_c / (UTF-8 bytes of c) is right

each averaged over rows; stderr is the sample deviation of the row's 0 and 1, divided by sqrt(rows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METRICS = ("acc", "acc_norm", "acc_bytes")
_Z = 1.959963984540054  # of a two-sided interval of 95%


@dataclass(frozen=True)
class Accuracy:
    """The mean of a metric over rows."""

    value: float  # NaN without rows
    stderr: float  # NaN below two rows
    rows: int


@dataclass(frozen=True)
class Change:
    """A metric at one sample less that at another, over the rows that both have: as the rows are the same, its standard
    error is that of the paired differences."""

    mean: float
    stderr: float
    low: float  # of the 95% interval, `paired_interval`
    high: float
    lost: int  # rows that were right and are wrong
    gained: int  # rows that were wrong and are right
    p: float  # McNemar's exact test: lost and gained are equally likely; 1 where there are none


def lengths(choices: Sequence[str], metric: str) -> NDArray[np.float64]:
    """What each choice's log-prob is divided by: [choices] float64."""
    if metric == "acc_norm":
        return np.array([float(len(choice)) for choice in choices])
    if metric == "acc_bytes":
        return np.array([float(len(choice.encode("utf-8"))) for choice in choices])
    return np.ones(len(choices))


def predicted(
    logp: NDArray[np.floating],  # [choices], nats: log-prob sums
    choices: Sequence[str],
    metric: str,
) -> int:
    """The choice that a row is answered with, the first of equal ones; -1 where it was not scored."""
    if not np.isfinite(logp).all():
        return -1
    return int(np.argmax(logp.astype(np.float64) / lengths(choices, metric)))


def accuracy(right: NDArray[np.float64]) -> Accuracy:  # [rows], 0 or 1; NaN: not scored
    """The mean with its standard error, over the rows that were scored."""
    known = right[np.isfinite(right)]
    n = len(known)
    if not n:
        return Accuracy(math.nan, math.nan, 0)
    stderr = float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Accuracy(float(known.mean()), stderr, n)


def change(before: NDArray[np.float64], after: NDArray[np.float64]) -> Change:  # [rows] each, 0 or 1; NaN: not scored
    """The change of a metric between two samples of the same rows."""
    difference = after - before
    mean = accuracy(difference)
    known = difference[np.isfinite(difference)]
    lost, gained = int((known < 0).sum()), int((known > 0).sum())
    kept = int((before[np.isfinite(difference)] * after[np.isfinite(difference)]).sum())
    low, high = paired_interval(kept, lost, gained, len(known))
    return Change(mean.value, mean.stderr, low, high, lost, gained, mcnemar(lost, gained))


def paired_interval(kept: int, lost: int, gained: int, n: int) -> tuple[float, float]:
    """The 95% interval of the change of a share over n rows, of which `kept` are right before and after: score
    intervals of both shares, put together by their correlation (Newcombe 1998, "Improved confidence intervals for the
    difference between binomial proportions based on paired data", method 10). Within -1 and 1, and wide where few rows
    changed, where the mean +- 1.96 standard errors is too narrow. NaN without rows."""
    if not n:
        return math.nan, math.nan
    wrong = n - kept - lost - gained  # before and after
    first, last = (kept + lost) / n, (kept + gained) / n
    (low_first, high_first), (low_last, high_last) = (_wilson(p, n) for p in (first, last))
    product = float(kept * wrong - lost * gained)
    if product > 0:
        product = max(product - n / 2, 0.0)
    sizes = (kept + lost) * (gained + wrong) * (kept + gained) * (lost + wrong)
    phi = product / math.sqrt(sizes) if sizes else 0.0

    def margin(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    change = last - first
    return change - margin(last - low_last, high_first - first), change + margin(high_last - last, first - low_first)


def _wilson(p: float, n: int) -> tuple[float, float]:
    """The score interval of a share p of n (Wilson 1927)."""
    middle, half = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    return (middle - half) / (1 + _Z**2 / n), (middle + half) / (1 + _Z**2 / n)


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided p-value of McNemar's exact test (McNemar 1947): of lost + gained rows whose outcome changed, each
    way with probability 1/2, so uneven a split or a more uneven one."""
    from scipy.stats import binomtest

    n = lost + gained
    return float(binomtest(lost, n, 0.5).pvalue) if n else 1.0
