"""Pooling of log-probs: from that of every branch to one number for each probe and side.

A probe's stance is read by the mean, over its openings of that stance, of the log-prob per UTF-8 byte. Bytes, so that
the tokenizer's cut of the text does not enter; the mean, because log-mean-exp and the maximum follow a single opening.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vdengine.errors import InputError
from vdengine.panels.leads import lead_words
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
    parallel: bool  # both halves of every side of every probe have as many openings of each kind

    @classmethod
    def of(
        cls,
        probes: Sequence[str],
        stances: Sequence[str],
        num_bytes: Sequence[int],
        kinds: Sequence[str] | None = None,
    ) -> Pooling:
        """Sort branches into cells of probe, stance and half; every other opening of a kind is in the second half.

        Args:
            probes, stances, num_bytes: of each branch, [B]: its probe's id, its stance, its UTF-8 bytes.
            kinds: of each opening, such as "belief" and "claim"; halves are parallel where each side has an even number
                of each. None: there are no halves.
        """
        ids = list(dict.fromkeys(probes))
        row_of = {probe: i for i, probe in enumerate(ids)}
        count = np.zeros((len(ids), len(STANCES), 2))
        cell = np.empty(len(probes), np.int64)  # [B] the branch's cell, flattened
        seen: Counter[tuple[str, str, str]] = Counter()  # openings so far, by probe, stance and kind
        for branch, opening in enumerate(zip(probes, stances, kinds or [""] * len(probes), strict=True)):
            row, column, half = row_of[opening[0]], STANCES.index(opening[1]), seen[opening] % 2
            seen[opening] += 1
            count[row, column, half] += 1
            cell[branch] = (row * len(STANCES) + column) * 2 + half
        order = np.argsort(cell, kind="stable")
        cells, starts = np.unique(cell[order], return_index=True)
        even = all(number % 2 == 0 for (_, stance, _), number in seen.items() if stance != "neutral")
        parallel = kinds is not None and bool(seen) and even
        return cls(ids, np.asarray(num_bytes, np.float64), count, order, cells, starts, parallel)

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
        """As `means`, from each half of a stance's openings: [S, P, 3, 2] float64; NaN where a half has none.

        Of one make-up where `parallel`: else no reliability follows from them.
        """
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


@dataclass(frozen=True)
class TextPooling:
    """Openings after a question and the same ones after the null prompt, pooled alike.

    Probes with the same opening share its score after the null prompt: they are matched by text.
    """

    questions: Pooling  # of B openings after a question
    null: np.ndarray  # [B] int64: the column, among those after the null prompt, of each opening's text

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], null_rows: Sequence[Mapping[str, Any]]) -> TextPooling:
        """rows: items of `openings.jsonl` after a question. null_rows: those after the null prompt.

        Raises:
            InputError: an opening that was not scored after the null prompt.
        """
        column = {row["text"]: i for i, row in enumerate(null_rows)}
        if missing := [row["text"] for row in rows if row["text"] not in column]:
            raise InputError(f"opening {missing[0][:60]!r} was not scored after the null prompt")
        questions = Pooling.of(*([row[name] for row in rows] for name in ("probe", "stance", "num_bytes", "kind")))
        return cls(questions, np.array([column[row["text"]] for row in rows], np.int64))

    @property
    def probes(self) -> list[str]:
        """[P] ids."""
        return self.questions.probes

    def means(self, logp: np.ndarray, null_logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Pooling.means` after the questions and after the null prompt: [S, P, 3] float64 each.

        Args:
            logp: [S, B] float32, nats, of the rows.
            null_logp: [S, null rows] float32, nats.
        """
        return self.questions.means(logp), self.questions.means(null_logp[:, self.null])

    def half_means(self, logp: np.ndarray, null_logp: np.ndarray) -> np.ndarray | None:
        """`Pooling.half_means` after the questions less those after the null prompt: [S, P, 3, 2] float64; None where
        halves are not parallel. Arguments are those of `means`."""
        if not self.questions.parallel:
            return None
        return self.questions.half_means(logp) - self.questions.half_means(null_logp[:, self.null])


@dataclass(frozen=True)
class LeadPooling:
    """Which of B spellings belong to which of P probes and which side."""

    probes: list[str]  # [P] ids, in order of first appearance
    order: np.ndarray  # [B] int64: spellings sorted by (probe, side)
    starts: np.ndarray  # [2 P] int64: where each probe's support and oppose begin in `order`
    words: tuple[str, str]  # what leads of either side are called in texts

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> LeadPooling:
        """rows: items of `leads.jsonl`.

        Raises:
            InputError: a probe without a lead on either side.
        """
        probes = list(dict.fromkeys(row["probe"] for row in rows))
        number = {probe: i for i, probe in enumerate(probes)}
        cell = np.array([2 * number[row["probe"]] + (row["stance"] == "oppose") for row in rows], np.int64)
        count = np.bincount(cell, minlength=2 * len(probes))
        if lacking := np.flatnonzero(count == 0).tolist():
            raise InputError(f"probe {probes[lacking[0] // 2]}: has no {('support', 'oppose')[lacking[0] % 2]} lead")
        words = lead_words((row["stance"], row["text"]) for row in rows)
        return cls(probes, np.argsort(cell, kind="stable"), np.cumsum(count) - count, words)

    def probabilities(self, logp: np.ndarray) -> np.ndarray:
        """Probability that an answer begins with a lead of either side.

        Args:
            logp: [S, B] float32, log-probs of the spellings in nats.

        Returns:
            [S, P, 2] float64: support, oppose; NaN where a sample left a probe out.
        """
        each = np.exp(logp[:, self.order].astype(np.float64))
        return np.add.reduceat(each, self.starts, axis=1).reshape(len(logp), len(self.probes), 2)
