"""How far two judges agree, answer by answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.errors import InputError


@dataclass(frozen=True)
class LabelAgreement:
    """Two judges on the answers that both have judged, each taken at its likeliest stance."""

    num: int
    accuracy: float  # share on which they agree
    kappa: float  # Cohen's: agreement beyond that of two who give the same shares at random; NaN: no variation
    low: float  # 95% interval of kappa, bootstrap over answers
    high: float
    sign: float  # of the answers on which both take a side: share with the same side
    num_sided: int
    table: np.ndarray  # [3, 3] counts: rows are the first's stances, columns the second's, in the order of STANCES


def label_agreement(a: np.ndarray, b: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> LabelAgreement:
    """a, b: [n, 3] p(support, neutral, oppose), NaN where not judged.

    Raises:
        InputError: no answer that both have judged.
    """
    both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    if not both.any():
        raise InputError("the two judges have no answer in common")
    x, y = a[both].argmax(1), b[both].argmax(1)
    cells = x * 3 + y
    table = np.bincount(cells, minlength=9).reshape(3, 3)
    rng = np.random.Generator(np.random.Philox(seed))
    draws = rng.multinomial(len(cells), table.ravel() / len(cells), resamples).reshape(-1, 3, 3)
    spread = np.array([kappa(t) for t in draws])
    known = spread[np.isfinite(spread)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    sided = table[::2, ::2]
    return LabelAgreement(
        int(both.sum()), float(np.trace(table) / table.sum()), kappa(table), float(low), float(high),
        float(np.trace(sided) / sided.sum()) if sided.sum() else math.nan, int(sided.sum()), table,
    )  # fmt: skip


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa (1960) of a table of counts [k, k]; NaN where chance alone agrees wholly."""
    p = table / table.sum()
    by_chance = float(p.sum(1) @ p.sum(0))
    return (float(np.trace(p)) - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
