"""How far two judges agree, answer by answer: Cohen's kappa; and one judge with itself, its labels in another order."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


_INITIALS = "sno"
_LEAST_SIDED = 20  # questions on which a judge takes a side, before anything is said of its order
_CHANCE = 0.05  # of kappa's lower limit: labels that agree so little agree by chance
_FAR = 3.5  # standard errors of `OrderAgreement.first` from 0: by chance 1 in 2,000, so that looking often costs little


@dataclass(frozen=True)
class OrderAgreement:
    """A judge's labels of the same questions in two orders of the labels, opposite to each other.

    Of questions on which it takes a side in either order: those that are neutral in both say nothing of the order, and
    their agreement would hide that the others follow it. A judge that takes the label named first leans to support
    where support is first; a fair one leans the same way in both orders.
    """

    num: int  # questions that it takes a side on, in either order
    kappa: float  # Cohen's, of its labels in one order with those in the other; NaN: no such question, or no variation
    low: float  # 95% interval of kappa
    high: float
    first: float  # its lean (support 1, oppose -1) with support named first less that with oppose first, mean, -2 to 2
    error: float  # standard error of `first`

    @property
    def refusal(self) -> str:
        """Why such labels are not to be used: they agree no better than chance, and follow the order. "" where they
        may be, or there are too few to tell."""
        if self.num < _LEAST_SIDED or self.low > _CHANCE or abs(self.first) <= _FAR * self.error:
            return ""
        return (
            f"its labels follow the order in which they are named: where it takes a side, the two orders agree no "
            f"better than chance (kappa {self.kappa:.2f} [{self.low:.2f}, {self.high:.2f}] on {self.num} questions), "
            f"and the side named {'first' if self.first > 0 else 'last'} wins"
        )


def order_agreement(pairs: Sequence[str]) -> OrderAgreement:
    """How a judge's labels agree in two orders.

    Args:
        pairs: of each question, the initials of its label with support named first and with oppose named first: "sn".
    """
    labels = np.array([[_INITIALS.index(label) for label in pair] for pair in pairs if pair != "nn"]).reshape(-1, 2)
    if not len(labels):
        return OrderAgreement(0, math.nan, math.nan, math.nan, 0.0, math.inf)
    both = label_agreement(np.eye(3)[labels[:, 0]], np.eye(3)[labels[:, 1]], resamples=500)
    lean = labels[:, 1] - labels[:, 0]  # [n] int: a label is 0 for support, 2 for oppose
    error = float(lean.std(ddof=1) / math.sqrt(len(lean))) if len(lean) > 1 else math.inf
    return OrderAgreement(len(labels), both.kappa, both.low, both.high, float(lean.mean()), error)
