"""From raw log-prob sums to stance log-odds shifts, with intervals. Pure NumPy; runs on a finished log.

For a probe, with l(c) the log-prob of opening c per UTF-8 byte (so that no tokenizer enters):

    stance log-odds = mean over support openings of l  -  mean over oppose openings of l
    on the axis     = polarity * stance log-odds

Pooling is the mean: log-mean-exp and max follow a single opening. Only shifts from a baseline step are reported;
levels say nothing, and nothing here is what the model *says*: it is an early, cheap signal of direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vdengine.drift.log import DriftLog
from vdengine.drift.panel import STANCES

FEW_PROBES = 24  # below this a number's interval is not to be trusted


@dataclass(frozen=True)
class Estimate:
    """A mean over probes with its 95% interval, nats per byte."""

    mean: float
    low: float
    high: float
    num_probes: int

    @property
    def significant(self) -> bool:
        """The interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Drift:
    """Shifts since the baseline step, of one group of probes at one step. All in nats per byte."""

    step: int
    topic: str  # "all" for the whole panel
    shift: Estimate  # stance log-odds on the topic's axis
    yes_bias: Estimate  # the same towards the prompt's proposition, polarity left out: acquiescence
    displacement: Estimate  # mean log-prob of all candidates: how far they rise or fall together
    neutral: Estimate  # neutral openings against the mean of support and oppose


@dataclass(frozen=True)
class ProbeScores:
    """Per probe and sample, [samples, probes] float64, nats per byte; NaN where not sampled."""

    steps: np.ndarray  # [samples]
    topics: np.ndarray  # [probes] str
    axis: np.ndarray
    proposition: np.ndarray
    all_candidates: np.ndarray
    neutral: np.ndarray
    opening_bytes: np.ndarray  # [probes], mean bytes of support and oppose openings


def probe_scores(log: DriftLog) -> ProbeScores:
    """Pool a log's branches into per-probe scores."""
    probes = list(dict.fromkeys(row["probe"] for row in log.table))
    position = {p: i for i, p in enumerate(probes)}
    per_byte = log.logp.astype(np.float64) / np.array([row["num_bytes"] for row in log.table])
    which = np.array([position[row["probe"]] for row in log.table])
    stances = np.array([row["stance"] for row in log.table])
    pooled = {}
    for stance in STANCES:
        member = np.zeros((len(log.table), len(probes)))
        mask = stances == stance
        member[mask, which[mask]] = 1.0
        pooled[stance] = _pool(per_byte, member)
    first = {row["probe"]: row for row in reversed(log.table)}
    polarity = np.array([first[p]["polarity"] for p in probes])
    support, neutral, oppose = (pooled[s] for s in STANCES)
    stance_bytes = [
        np.mean([r["num_bytes"] for r in log.table if r["probe"] == p and r["stance"] != "neutral"]) for p in probes
    ]
    return ProbeScores(
        steps=log.steps,
        topics=np.array([first[p]["topic"] for p in probes]),
        axis=polarity * (support - oppose),
        proposition=support - oppose,
        all_candidates=(support + neutral + oppose) / 3,
        neutral=neutral - (support + oppose) / 2,
        opening_bytes=np.array(stance_bytes),
    )


def _pool(per_byte: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Means by probe, [samples, branches] @ [branches, probes]; NaN where a sample left the probe out."""
    out = np.nan_to_num(per_byte) @ member / member.sum(0)
    out[(np.isnan(per_byte).astype(float) @ member) > 0] = np.nan
    return out


def bootstrap(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of `values` [n] with the 95% percentile interval of a bootstrap over probes.

    `values` are shifts: each probe is paired with itself at the baseline, so differences between probes cancel.
    The interval holds the variation between probes, not that between training seeds.
    """
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    draws = np.random.Generator(np.random.Philox(seed)).integers(0, values.size, (resamples, values.size))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), int(values.size))


def drift(scores: ProbeScores, step: int, *, baseline: int | None = None) -> list[Drift]:
    """Shifts at `step` since `baseline` (default: the first sample): the whole panel first, then each topic.

    Raises:
        KeyError: a step that was not sampled.
    """
    index = {int(s): i for i, s in enumerate(scores.steps)}
    now, then = index[step], index[int(scores.steps[0]) if baseline is None else baseline]
    out = []
    for topic in ["all", *dict.fromkeys(scores.topics)]:
        mask = np.full(len(scores.topics), True) if topic == "all" else scores.topics == topic

        def shift(x: np.ndarray, mask: np.ndarray = mask) -> Estimate:
            return bootstrap((x[now] - x[then])[mask])

        out.append(
            Drift(
                step,
                str(topic),
                shift(scores.axis),
                shift(scores.proposition),
                shift(scores.all_candidates),
                shift(scores.neutral),
            )
        )
    return out
