"""v by probe and sample: the arrays that all estimates are made of, and how a log of openings gives them.

With l(c) the log-prob of opening c per UTF-8 byte:

    stance log-odds = mean over support openings of l  -  mean over oppose openings of l
    on the axis     = polarity * stance log-odds

Only shifts of these log-odds have a meaning, and they are not what the model would answer. How answers give v:
`drift/answer_values.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vdengine.drift.importance import Gate
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.pooling import Pooling
from vdengine.errors import InputError

PRIMARY = {"openings": "stance", "answers": "graded"}

# Keys beside the topics' names: of the panel's mean, and in `drift.agreement` of all topics together.
ALL, TOPICS = "all", "topics"


def topic_name(topic: str) -> str:
    """A panel's topic as analyses name it: one called "all" is not taken for the panel's mean. No two become one."""
    return f"{topic} (topic)" if re.fullmatch(rf"({ALL}|{TOPICS})( \(topic\))*", topic) else topic


@dataclass(frozen=True)
class ProbeValues:
    """v of one readout, by probe and sample.

    Arrays over S samples and P probes are [S, P] float64, NaN where not sampled. Channels and halves are in `unit`,
    variances in its square.
    """

    readout: str  # "openings" | "answers"
    unit: str  # "nats per byte" | "probability"
    steps: np.ndarray  # [S] int64, ascending
    total_steps: int  # of the stage
    probes: np.ndarray  # [P] str, ids
    topics: np.ndarray  # [P] str
    polarity: np.ndarray  # [P] int, +1 or -1
    axes: dict[str, str]  # topic: what +1 means
    channels: dict[str, np.ndarray]  # by name: [S, P]
    kinds: np.ndarray | None = None  # answers: [S] str, "anchor" | "weighted"
    anchors: np.ndarray | None = None  # answers: [S] int64, step at which a sample's answers were drawn
    gates: list[Gate | None] | None = None  # answers: one a sample, None at anchors
    halves: tuple[np.ndarray, np.ndarray] | None = None  # [S, P]: the primary channel from each half of a probe's items
    noise: dict[str, np.ndarray] | None = None  # answers, by channel: [S, P] variance of v under other answers
    shift_noise: dict[str, np.ndarray] | None = None  # the same of the shift since the first sample
    anchor_noise: dict[str, np.ndarray] | None = None  # the same of the shift since the answers' own anchor
    num_bytes: float = math.nan  # openings: UTF-8 bytes of a support or oppose opening, on average

    @property
    def primary(self) -> str:
        """The channel that is the readout's stance on the topic's axis."""
        return PRIMARY[self.readout]

    @cached_property
    def topic_names(self) -> list[str]:
        """Topics in order of first appearance."""
        return list(dict.fromkeys(self.topics.tolist()))

    def member(self, topic: str) -> np.ndarray:
        """[P] bool: the probes of a topic, or of the whole panel for "all"."""
        return np.full(len(self.topics), True) if topic == "all" else self.topics == topic


# ----------------------------------------------------------------------------------------------------- openings


def opening_values(log: DriftLog, total_steps: int | None = None, variant: str = "question") -> ProbeValues:
    """v by probe and sample, from the log-probs of openings pooled by probe and stance.

    Channels, in nats per byte: `stance` (support less oppose, on the topic's axis), `yes_bias` (the same towards the
    prompt's proposition, polarity left out), `neutral` (against the mean of support and oppose), `displacement` (the
    mean of the three stances: how far all openings rise or fall together). Halves: every other opening of a stance.

    Args:
        total_steps: of the stage. Default: the last sample's step.
        variant: what the openings follow, see `drift.openings.Openings`.

    Raises:
        InputError: the log has no samples, or nothing of this variant.
    """
    logp = log.logp  # [S, branches] nats
    steps = log.steps.astype(np.int64)[: len(logp)]  # [S]; a run that is going on may have added one since
    if not len(steps):
        raise InputError(f"{log.folder}: no samples yet")
    variants = [row.get("variant", "question") for row in log.table]
    columns = np.array([i for i, each in enumerate(variants) if each == variant], np.int64)  # [B] branches
    if not len(columns):
        raise InputError(f"{log.folder}: has no {variant!r} probes; it has {', '.join(dict.fromkeys(variants))}")
    rows = [log.table[i] for i in columns]
    pooling = Pooling.of(
        [row["probe"] for row in rows], [row["stance"] for row in rows], [row["num_bytes"] for row in rows]
    )
    first_row = {row["probe"]: row for row in reversed(rows)}
    polarity = np.array([first_row[probe]["polarity"] for probe in pooling.probes])  # [P]
    logp = logp[: len(steps), columns]  # [S, B]
    support, neutral, oppose = np.moveaxis(pooling.means(logp), -1, 0)  # [S, P] each, nats per byte
    by_half = pooling.half_means(logp)  # [S, P, 3, 2]
    stance_by_half = polarity[:, None] * (by_half[:, :, 0] - by_half[:, :, 2])  # [S, P, 2]
    takes_side = np.array([row["stance"] != "neutral" for row in rows])  # [B]
    return ProbeValues(
        readout="openings",
        unit="nats per byte",
        steps=steps,
        total_steps=int(steps[-1]) if total_steps is None else total_steps,
        probes=np.array(pooling.probes),
        topics=np.array([topic_name(first_row[probe]["topic"]) for probe in pooling.probes]),
        polarity=polarity,
        axes={topic_name(row["topic"]): row["axis"] for row in rows},
        channels={
            "stance": polarity * (support - oppose),
            "yes_bias": support - oppose,
            "neutral": neutral - (support + oppose) / 2,
            "displacement": (support + neutral + oppose) / 3,
        },
        halves=None if np.isnan(stance_by_half).all() else (stance_by_half[..., 0], stance_by_half[..., 1]),
        num_bytes=float(pooling.num_bytes[takes_side].mean()),
    )


def control_values(log: DriftLog, total_steps: int | None = None) -> dict[str, ProbeValues]:
    """The values of a log's control variants, by name: those of "paraphrase", "null", "off-topic" that it has.

    Args:
        total_steps: of the stage. Default: the last sample's step.

    Raises:
        InputError: the log has controls but no samples.
    """
    variants = dict.fromkeys(row.get("variant", "question") for row in log.table)
    return {variant: opening_values(log, total_steps, variant) for variant in variants if variant != "question"}
