"""What a sample of the openings says while the run goes on: shifts since the first sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdengine.drift.intervals import ROUNDING, Estimate, mean_estimate
from vdengine.drift.pooling import Pooling, on_axis
from vdengine.panels.panel import STANCES, Branch, Panel


@dataclass(frozen=True)
class Live:
    """Shifts of a sample since the first one on the topics' axes, nats per byte."""

    step: int
    stance: dict[str, Estimate]  # of each topic: support minus oppose
    scalars: dict[str, float]  # value/{topic}/{stance}: of each stance, minus the mean of the three


class LiveOpenings:
    """The samples of a run's openings, one after another.

    Args:
        branches: all that are scored, those of the panel's own questions first.
    """

    def __init__(self, panel: Panel, branches: Sequence[Branch]) -> None:
        questions = [b for b in branches if b.variant == "question"]
        self._pooling = Pooling.of(
            [b.probe.id for b in questions], [b.stance for b in questions], [b.num_bytes for b in questions]
        )
        self._polarity = np.array([probe.polarity for probe in panel.probes])  # [probes]
        self._members = {topic: np.array([p.topic == topic for p in panel.probes]) for topic in panel.topics}
        self.first: np.ndarray | None = None  # [3, probes], pooled openings of the first sample
        self.last: np.ndarray | None = None  # [3, probes], of the last one

    def pool(self, logp: np.ndarray) -> np.ndarray:  # [branches] fp32 -> [3, probes] float64
        """Mean log-prob per byte of each stance's openings, on the axis, in nats per byte; NaN where not scored."""
        means = self._pooling.means(logp[None, : len(self._pooling.num_bytes)])[0]  # [probes, 3]
        return on_axis(means, self._polarity).T

    def continue_from(self, logp: np.ndarray) -> None:  # [samples, branches] fp32
        """Take up a run that has these samples."""
        if len(logp):
            self.first, self.last = self.pool(logp[0]), self.pool(logp[-1])

    def add(self, step: int, logp: np.ndarray) -> Live:
        """A sample, with log-prob sums logp [branches] fp32, and what it says."""
        self.last = self.pool(logp)
        self.first = self.last if self.first is None else self.first
        shift = self.last - self.first  # [3, probes]
        change, centred = stance(shift), shift - shift.mean(0)  # [probes], [3, probes]
        estimates, scalars = {}, {}
        for topic, of_topic in self._members.items():
            members = of_topic & np.isfinite(change)  # [probes]
            if members.any():
                estimates[topic] = mean_estimate(change[members], ROUNDING["nats per byte"])
                for name, mean in zip(STANCES, centred[:, members].mean(1), strict=True):
                    scalars[f"value/{topic}/{name}"] = float(mean)
        return Live(step, estimates, scalars)


def stance(pooled: np.ndarray) -> np.ndarray:  # [3, probes] -> [probes]
    """Support minus oppose."""
    return pooled[STANCES.index("support")] - pooled[STANCES.index("oppose")]
