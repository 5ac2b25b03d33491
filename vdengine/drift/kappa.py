"""How far two judges agree, answer by answer: Cohen's kappa."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vdengine.errors import InputError


@dataclass(frozen=True)
class LabelAgreement:
    """Two judges on the answers that both have judged, each judge's likeliest stance taken as its label."""

    num: int
    accuracy: float  # share on which they agree
    kappa: float  # Cohen's: agreement beyond that of two who give the same shares at random; NaN: no variation
    low: float  # 95% interval of kappa, percentile bootstrap over answers
    high: float
    sign: float  # of the answers on which both take a side: share with the same side
    num_sided: int  # answers on which both take a side
    table: np.ndarray  # [3, 3] int64 counts in the order of STANCES: rows are the first's labels, columns the second's


def label_agreement(a: np.ndarray, b: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> LabelAgreement:
    """How far two judges agree on the same answers.

    Args:
        a, b: [n, 3] float64, each judge's p(support, neutral, oppose); NaN where not judged.
        resamples, seed: of the bootstrap.

    Raises:
        InputError: no answer that both have judged.
    """
    both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    if not both.any():
        raise InputError("the two judges have no answer in common")
    labels_a, labels_b = a[both].argmax(1), b[both].argmax(1)
    cells = labels_a * 3 + labels_b
    table = np.bincount(cells, minlength=9).reshape(3, 3)
    # To resample answers is to draw a table from a multinomial with the observed shares, [resamples, 3, 3].
    rng = np.random.Generator(np.random.Philox(seed))
    draws = rng.multinomial(len(cells), table.ravel() / len(cells), resamples).reshape(-1, 3, 3)
    kappas = np.array([kappa(draw) for draw in draws])
    known = kappas[np.isfinite(kappas)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    sided = table[::2, ::2]  # [2, 2]: neither label is neutral
    return LabelAgreement(
        num=int(both.sum()),
        accuracy=float(np.trace(table) / table.sum()),
        kappa=kappa(table),
        low=float(low),
        high=float(high),
        sign=float(np.trace(sided) / sided.sum()) if sided.sum() else math.nan,
        num_sided=int(sided.sum()),
        table=table,
    )


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa (1960) of a table of counts [k, k]; NaN where chance alone gives full agreement."""
    shares = table / table.sum()
    by_chance = float(shares.sum(1) @ shares.sum(0))
    return (float(np.trace(shares)) - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
