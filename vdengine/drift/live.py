"""What a sample of the panel says while the run goes on: shifts since the first sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vdengine.drift.intervals import ROUNDING, Estimate, Group
from vdengine.drift.panel_log import item_of
from vdengine.drift.pooling import LeadPooling, TextPooling
from vdengine.panels.panel import LEADS, OPENINGS, Panel, Request


@dataclass(frozen=True)
class Live:
    """Shifts of a sample since the first one on the topics' axes, by topic."""

    step: int
    leads: tuple[str, str] = ("yes", "no")  # the words on either side, as texts name them
    lead: dict[str, Estimate] = field(default_factory=dict)  # of p(yes) - p(no), in probability
    coverage: dict[str, tuple[float, float]] = field(default_factory=dict)  # p(yes) + p(no), at first and now
    text: dict[str, Estimate] = field(default_factory=dict)  # text likelihood, question less null, nats per byte

    @property
    def scalars(self) -> dict[str, float]:
        """For a tracker: lead/{topic}, lead_coverage/{topic}, text_likelihood/{topic} (nats per 100 bytes)."""
        return (
            {f"lead/{topic}": estimate.mean for topic, estimate in self.lead.items()}
            | {f"lead_coverage/{topic}": now for topic, (_, now) in self.coverage.items()}
            | {f"text_likelihood/{topic}": 100 * estimate.mean for topic, estimate in self.text.items()}
        )


@dataclass(frozen=True)
class Reading:
    """v of one sample by probe of the panel, [probes] float64 each; NaN where not scored or not asked for."""

    lead: np.ndarray  # on the axis, in probability
    coverage: np.ndarray
    text: np.ndarray  # on the axis, question less null, nats per byte


class LivePanel:
    """The samples of a run, one after another.

    Args:
        requests: all that is scored, in order.
    """

    def __init__(self, panel: Panel, requests: Sequence[Request]) -> None:
        number = {probe.id: i for i, probe in enumerate(panel.probes)}
        self._polarity = np.array([probe.polarity for probe in panel.probes])  # [probes]
        self._members = {topic: np.array([p.topic == topic for p in panel.probes]) for topic in panel.topics}

        def of(channel: str, variant: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
            """Places in the order of the requests, and items."""
            chosen = [
                (k, item_of(request))
                for k, request in enumerate(requests)
                if request.branch.channel == channel and request.branch.variant == variant
            ]
            return np.array([k for k, _ in chosen], np.int64), [item for _, item in chosen]

        self._leads, rows = of(LEADS, "question")
        self._lead_pooling = LeadPooling.of(rows) if rows else None
        self._questions, rows = of(OPENINGS, "question")
        self._null, null_rows = of(OPENINGS, "null")
        self._text_pooling = TextPooling.of(rows, null_rows) if rows else None
        self._lead_places = [number[id] for id in self._lead_pooling.probes] if self._lead_pooling else []
        self._text_places = [number[id] for id in self._text_pooling.probes] if self._text_pooling else []
        self.first: Reading | None = None  # of the first sample
        self.last: Reading | None = None

    def read(self, logp: np.ndarray) -> Reading:  # [branches] fp32, nats
        """v of a sample."""
        lead, coverage, text = (np.full(len(self._polarity), np.nan) for _ in range(3))
        if self._lead_pooling is not None:
            yes, no = self._lead_pooling.probabilities(logp[None, self._leads])[0].T
            lead[self._lead_places], coverage[self._lead_places] = yes - no, yes + no
        if self._text_pooling is not None:
            question, null = self._text_pooling.means(logp[None, self._questions], logp[None, self._null])
            shift = (question - null)[0]  # [P, 3]
            text[self._text_places] = shift[:, 0] - shift[:, 2]
        return Reading(self._polarity * lead, coverage, self._polarity * text)

    def continue_from(self, logp: np.ndarray) -> None:  # [samples, branches] fp32
        """Take up a run that has these samples."""
        if len(logp):
            self.first, self.last = self.read(logp[0]), self.read(logp[-1])

    def add(self, step: int, logp: np.ndarray) -> Live:
        """A sample, with log-prob sums logp [branches] fp32, and what it says."""
        self.last = self.read(logp)
        self.first = first = self.last if self.first is None else self.first
        live = Live(step, self._lead_pooling.words) if self._lead_pooling else Live(step)
        for topic, members in self._members.items():
            strata = [(self._polarity[members] > 0).astype(np.int64), np.zeros(int(members.sum()), np.int64)]
            for shifts, start, now, unit in (
                (live.lead, first.lead, self.last.lead, "probability"),
                (live.text, first.text, self.last.text, "nats per byte"),
            ):
                # As the analysis does it: the start is there to say which probes the panel has.
                both = np.stack([start - start, now - start])[:, members]
                if np.isfinite(both[1]).any():
                    shifts[topic] = Group.of(both, strata, ROUNDING[unit]).estimate(1)
            known = members & np.isfinite(self.last.coverage) & np.isfinite(first.coverage)
            if known.any():
                live.coverage[topic] = float(first.coverage[known].mean()), float(self.last.coverage[known].mean())
        return live
