"""Pooling of openings: from the log-prob of every branch to one number for each probe and stance.

A probe's stance is read by the mean, over its openings of that stance, of the log-prob per UTF-8 byte. Bytes, so that
the tokenizer's cut of the text does not enter; the mean, because log-mean-exp and the maximum follow a single opening.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdengine.panels.panel import STANCES


@dataclass(frozen=True)
class Pooling:
    """Which of B branches belong to which of P probes and which stance, and to which half of its openings."""

    probes: list[str]  # [P] ids, in order of first appearance
    num_bytes: np.ndarray  # [B] float64
    count: np.ndarray  # [P, 3, 2] float64: openings by probe, stance and half
    order: np.ndarray  # [B] int64: branches sorted by (probe, stance, half)
    cells: np.ndarray  # [C] int64: the cells of `count`, flattened, that have an opening
    starts: np.ndarray  # [C] int64: where each of them begins in `order`

    @classmethod
    def of(cls, probes: Sequence[str], stances: Sequence[str], num_bytes: Sequence[int]) -> Pooling:
        """Sort branches into cells of probe, stance and half; every other opening of a stance is in the second half.

        Args:
            probes, stances, num_bytes: of each branch, [B]: its probe's id, its stance, its UTF-8 bytes.
        """
        ids = list(dict.fromkeys(probes))
        row_of = {probe: i for i, probe in enumerate(ids)}
        count = np.zeros((len(ids), len(STANCES), 2))
        cell = np.empty(len(probes), np.int64)  # [B] the branch's cell, flattened
        for branch, (probe, stance) in enumerate(zip(probes, stances, strict=True)):
            row, column = row_of[probe], STANCES.index(stance)
            half = int(count[row, column].sum()) % 2
            count[row, column, half] += 1
            cell[branch] = (row * len(STANCES) + column) * 2 + half
        order = np.argsort(cell, kind="stable")
        cells, starts = np.unique(cell[order], return_index=True)
        return cls(ids, np.asarray(num_bytes, np.float64), count, order, cells, starts)

    def _sums(self, logp: np.ndarray) -> np.ndarray:
        """Sums over each cell's openings of the log-prob per byte: [S, P, 3, 2] from logp [S, B] float32, nats."""
        per_byte = logp[:, self.order].astype(np.float64) / self.num_bytes[self.order]
        flat = np.zeros((len(logp), self.count.size))
        # A sample leaves out whole probes, so that a NaN stays in the sums of its own probe.
        flat[:, self.cells] = np.add.reduceat(per_byte, self.starts, axis=1)
        return flat.reshape(len(logp), *self.count.shape)

    def means(self, logp: np.ndarray) -> np.ndarray:
        """Mean log-prob per byte of each probe's openings, by stance.

        Args:
            logp: [S, B] float32, log-prob sums of the branches in nats, a row a sample.

        Returns:
            [S, P, 3] float64, nats per byte, stances as in `STANCES`; NaN where a sample left a probe out.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums(logp).sum(-1) / self.count.sum(-1)

    def half_means(self, logp: np.ndarray) -> np.ndarray:
        """As `means`, from each half of a stance's openings: [S, P, 3, 2] float64; NaN where a half has none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums(logp) / self.count


def on_axis(means: np.ndarray, polarity: np.ndarray) -> np.ndarray:
    """Stances towards the prompt's proposition, turned to the topic's axis: polarity -1 swaps support and oppose.

    Args:
        means: [..., P, 3] float, stances as in `STANCES`.
        polarity: [P] int, +1 or -1.

    Returns:
        [..., P, 3] like `means`.
    """
    return np.where((polarity > 0)[:, None], means, means[..., ::-1])
