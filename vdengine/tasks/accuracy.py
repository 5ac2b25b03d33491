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
    low: float  # of the 95% interval, mean +- 1.96 stderr
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
    margin = _Z * mean.stderr
    return Change(
        mean.value, mean.stderr, mean.value - margin, mean.value + margin, lost, gained, mcnemar(lost, gained)
    )


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided p-value of McNemar's exact test (McNemar 1947): of lost + gained rows whose outcome changed, each
    way with probability 1/2, so uneven a split or a more uneven one."""
    from scipy.stats import binomtest

    n = lost + gained
    return float(binomtest(lost, n, 0.5).pvalue) if n else 1.0
