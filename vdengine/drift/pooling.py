"""Pooling of openings: from the log-prob of every branch to one number for each probe and stance.

A probe's stance is read by the mean, over its openings of that stance, of the log-prob per UTF-8 byte (bytes, so that
no tokenizer enters). The mean, because log-mean-exp and max follow a single opening.
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
        """Of the branches in their flat order, [B] each: probe id, stance, UTF-8 bytes. Every other opening of a stance
        is in the second half."""
        ids = list(dict.fromkeys(probes))
        place = {probe: i for i, probe in enumerate(ids)}
        count = np.zeros((len(ids), len(STANCES), 2))
        cell = np.empty(len(probes), np.int64)
        for branch, (probe, stance) in enumerate(zip(probes, stances, strict=True)):
            p, s = place[probe], STANCES.index(stance)
            half = int(count[p, s].sum()) % 2
            count[p, s, half] += 1
            cell[branch] = (p * len(STANCES) + s) * 2 + half
        order = np.argsort(cell, kind="stable")
        cells, starts = np.unique(cell[order], return_index=True)
        return cls(ids, np.asarray(num_bytes, np.float64), count, order, cells, starts)

    def _sums(self, logp: np.ndarray) -> np.ndarray:
        """Sums of log-probs per byte: [S, P, 3, 2] from logp [S, B]."""
        per_byte = logp[:, self.order].astype(np.float64) / self.num_bytes[self.order]
        flat = np.zeros((len(logp), self.count.size))
        # A sample leaves out whole probes, so a NaN stays in the sums of its own probe.
        flat[:, self.cells] = np.add.reduceat(per_byte, self.starts, axis=1)
        return flat.reshape(len(logp), *self.count.shape)

    def means(self, logp: np.ndarray) -> np.ndarray:
        """[S, P, 3] float64, nats per byte, from log-prob sums logp [S, B]; NaN where a sample left a probe out."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums(logp).sum(-1) / self.count.sum(-1)

    def half_means(self, logp: np.ndarray) -> np.ndarray:
        """The same from each half of a stance's openings: [S, P, 3, 2]; NaN where a half has none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums(logp) / self.count


def on_axis(means: np.ndarray, polarity: np.ndarray) -> np.ndarray:
    """Stances towards the prompt's proposition, turned to the topic's axis: where a probe's polarity [P] is -1, support
    and oppose change places. means: [..., P, 3]."""
    return np.where((polarity > 0)[:, None], means, means[..., ::-1])
