"""v by probe and sample: the arrays that all estimates are made of, and how the raw log gives them.

The lead of an answer to q, with the sums over all ways s to spell a lead at its start (`panels/leads.py`):

    lead stance = polarity * (sum of p(s | q) over spellings of yes  -  the same over spellings of no)
    coverage    =             sum of p(s | q) over spellings of yes  +  the same over spellings of no

It is the side that an answer begins with, in probability; where coverage is low most answers begin otherwise, and it
says nothing of them.

Text likelihood, with l(c | q) the log-prob of opening c per UTF-8 byte after q, and "null" a prompt without content:

    stance(q)       = mean over support openings of l(c | q)  -  mean over oppose openings of l(c | q)
    text likelihood = polarity * (stance(q) - stance(null))

Only its shifts have a meaning: how much likelier the texts of one side became as answers to the question, beyond what
they became on their own. How answers give v: `drift/answer_values.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from vdengine.drift.importance import Gate
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.pooling import LeadPooling, TextPooling
from vdengine.errors import InputError
from vdengine.panels.panel import LEADS, OPENINGS
from vdengine.recipe import LEAD, TEXT

PRIMARY = {LEAD: "lead", "answers": "graded", TEXT: "stance"}

# Below it most answers begin with neither lead, and the lead says nothing of them. Reasoned, not measured yet.
LEAST_COVERAGE = 0.5

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

    readout: str  # "lead" | "answers" | "text_likelihood"
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
    anchor_shift: dict[str, np.ndarray] | None = None  # answers, by channel: [S, P] v less v of its answers unweighted
    anchor_halves: tuple[np.ndarray, np.ndarray] | None = None  # [S, P]: the same of `halves`
    leads: tuple[str, str] = ("yes", "no")  # the words that an answer begins with on either side, as texts name them
    num_bytes: float = math.nan  # text likelihood: UTF-8 bytes of a support or oppose opening, on average

    @property
    def primary(self) -> str:
        """The channel that is the readout's stance on the topic's axis."""
        return PRIMARY[self.readout]

    @property
    def has_levels(self) -> bool:
        """Whether v itself has a meaning, not only its shifts."""
        return self.readout != TEXT

    @cached_property
    def topic_names(self) -> list[str]:
        """Topics in order of first appearance."""
        return list(dict.fromkeys(self.topics.tolist()))

    def member(self, topic: str) -> np.ndarray:
        """[P] bool: the probes of a topic, or of the whole panel for "all"."""
        return np.full(len(self.topics), True) if topic == "all" else self.topics == topic


# ------------------------------------------------------------------------------------------------------- stages


def joined(parts: Sequence[tuple[int, ProbeValues]], total_steps: int) -> ProbeValues:
    """The values of stages as those of one run, whose steps count on.

    Args:
        parts: step of the whole at which each stage begins, ascending, and its values. Where two have sampled the same
            weights, at the edge between them, the later one's sample stands: of answers it has the more.
        total_steps: of the whole.

    Raises:
        InputError: they are of other probes.
    """
    first = parts[0][1]
    if any(not np.array_equal(values.probes, first.probes) for _, values in parts):
        raise InputError("the stages have read other probes")
    begins = [start + int(values.steps[0]) for start, values in parts]
    pieces = [
        _taken(values, start + values.steps < after, start)
        for (start, values), after in zip(parts, [*begins[1:], np.iinfo(np.int64).max], strict=True)
    ]
    series = {name: _concatenated([getattr(piece, name) for piece in pieces]) for name in _PER_SAMPLE}
    return replace(first, total_steps=total_steps, shift_noise=None, **series)


def stretch(values: ProbeValues, first: int, last: int) -> ProbeValues:
    """The samples from step `first` to step `last` as those of a run of their own: its step 0 is `first`."""
    part = _taken(values, (values.steps >= first) & (values.steps <= last), -first)
    return replace(part, total_steps=last - first, shift_noise=None)


# What a `ProbeValues` has of each sample; `shift_noise` is of shifts since the first one.
_PER_SAMPLE = ("steps", "channels", "kinds", "anchors", "gates", "halves", "noise", "anchor_noise", "anchor_shift",
               "anchor_halves")  # fmt: skip


def _taken(values: ProbeValues, keep: np.ndarray, start: int) -> ProbeValues:
    """Some samples, `keep` [S] bool, with their steps moved by `start`."""

    def of(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: of(each) for name, each in part.items()}
        if isinstance(part, tuple):
            return tuple(of(each) for each in part)
        if isinstance(part, list):
            return [each for each, kept in zip(part, keep, strict=True) if kept]
        return part if part is None else part[keep]

    moved = {"steps": values.steps + start, "anchors": None if values.anchors is None else values.anchors + start}
    return replace(values, **{name: of(moved.get(name, getattr(values, name))) for name in _PER_SAMPLE})


def _concatenated(parts: Sequence[Any]) -> Any:
    """Arrays or lists one after another, in dictionaries by the names that all have; None where one is None."""
    if any(part is None for part in parts):
        return None
    if isinstance(parts[0], dict):
        names = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: _concatenated([part[name] for part in parts]) for name in names}
    if isinstance(parts[0], tuple):
        return tuple(_concatenated(each) for each in zip(*parts, strict=True))
    if isinstance(parts[0], list):
        return [each for part in parts for each in part]
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------------- from the raw log


def lead_values(log: DriftLog, total_steps: int | None = None, variant: str = "question") -> ProbeValues:
    """v by probe and sample, from the probabilities of leads.

    Channels, in probability: `lead` (see the module), `yes_bias` (the same towards the prompt's proposition, polarity
    left out), `coverage`.

    Args:
        total_steps: of the stage. Default: the last sample's step.
        variant: what the leads follow: "question", or a control.

    Raises:
        InputError: the log has no samples, or no leads after this variant.
    """
    rows, logp = _branches(log, LEADS, variant)
    try:
        pooling = LeadPooling.of(rows)
    except InputError as error:
        raise InputError(f"{log.folder}: {error}") from None
    yes, no = np.moveaxis(pooling.probabilities(logp), -1, 0)  # [S, P] each
    values = _of_probes(log, LEAD, "probability", rows, pooling.probes, total_steps)
    channels = {"lead": values.polarity * (yes - no), "yes_bias": yes - no, "coverage": yes + no}
    return replace(values, channels=channels, leads=pooling.words)


def in_judges_units(values: ProbeValues, bare: tuple[float, float]) -> ProbeValues:
    """Leads in the units of a judge, to stand beside answers that it has judged.

    Args:
        values: of `lead_values`.
        bare: what the judge makes of an answer that is only a lead, as p(support) - p(oppose) towards what the question
            proposes: of "Yes." and of "No.".
    """
    coverage, bias = values.channels["coverage"], values.channels["yes_bias"]
    worth = (coverage + bias) / 2 * bare[0] + (coverage - bias) / 2 * bare[1]  # [S, P]
    channels = {"lead": values.polarity * worth, "yes_bias": worth, "coverage": coverage}
    return replace(values, channels=channels)


def text_values(log: DriftLog, total_steps: int | None = None, variant: str = "question") -> ProbeValues:
    """v by probe and sample, from the log-probs of openings pooled by probe and stance.

    Channels, in nats per byte: `stance` (text likelihood, see the module: question less null), its two parts `question`
    and `null`, `yes_bias` (`stance` without polarity), `neutral` (against the mean of support and oppose, question less
    null), `displacement` (the mean of the three stances after the question: how far all openings rise or fall
    together). Halves: every other opening of a kind, where each side has an even number of each (`Pooling.parallel`).

    Args:
        total_steps: of the stage. Default: the last sample's step.
        variant: what the openings follow: "question", or a control.

    Raises:
        InputError: the log has no samples, or no openings after this variant or after the null prompt.
    """
    rows, logp = _branches(log, OPENINGS, variant)
    null_rows, null_logp = _branches(log, OPENINGS, "null")
    try:
        pooling = TextPooling.of(rows, null_rows)
    except InputError as error:
        raise InputError(f"{log.folder}: {error}") from None
    after_question, after_null = pooling.means(logp, null_logp)  # [S, P, 3] each
    halves = pooling.half_means(logp, null_logp)  # [S, P, 3, 2]
    values = _of_probes(log, TEXT, "nats per byte", rows, pooling.probes, total_steps)
    question, null = (means[..., 0] - means[..., 2] for means in (after_question, after_null))  # [S, P] each
    support, neutral, oppose = np.moveaxis(after_question - after_null, -1, 0)
    first, second = (None, None) if halves is None else np.moveaxis(halves[:, :, 0] - halves[:, :, 2], -1, 0)
    return replace(
        values,
        halves=None if first is None or second is None else (values.polarity * first, values.polarity * second),
        channels={
            "stance": values.polarity * (question - null),
            "question": values.polarity * question,
            "null": values.polarity * null,
            "yes_bias": question - null,
            "neutral": neutral - (support + oppose) / 2,
            "displacement": after_question.mean(-1),
        },
        num_bytes=float(np.mean([row["num_bytes"] for row in rows if row["stance"] != "neutral"])),
    )


def control_values(log: DriftLog, readout: str, total_steps: int | None = None) -> dict[str, ProbeValues]:
    """The values of a readout after the log's controls, by name: those of "paraphrase" and "off-topic" that it has; of
    text likelihood also "null", the part of the shift that needs no question.

    Args:
        readout: "lead" or "text_likelihood".
        total_steps: of the stage. Default: the last sample's step.

    Raises:
        InputError: the log has controls but no samples.
    """
    make, channel = (lead_values, LEADS) if readout == LEAD else (text_values, OPENINGS)
    variants = {item["variant"] for item in log.items(channel)}
    controls = {
        variant: make(log, total_steps, variant) for variant in ("paraphrase", "off-topic") if variant in variants
    }
    if readout == TEXT:
        values = text_values(log, total_steps)
        controls["null"] = replace(values, channels={values.primary: values.channels["null"]}, halves=None)
    return controls


def _branches(log: DriftLog, channel: str, variant: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The items of a channel that follow a variant, B in number, and their log-probs [S, B] float32, nats."""
    items = log.items(channel)
    columns = [i for i, item in enumerate(items) if item["variant"] == variant]
    if not columns:
        has = ", ".join(dict.fromkeys(item["variant"] for item in items)) or "none"
        raise InputError(f"{log.folder}: has no {channel} after {variant!r}; it has {has}")
    count = len(log.steps)
    if not count:
        raise InputError(f"{log.folder}: no samples yet")
    return [items[i] for i in columns], log.channels[channel].values[:count, columns]


def _of_probes(
    log: DriftLog, readout: str, unit: str, rows: Sequence[dict[str, Any]], probes: list[str], total_steps: int | None
) -> ProbeValues:
    """The values of a readout, without channels. rows: of branches. probes: [P] ids."""
    first = {row["probe"]: row for row in reversed(rows)}
    steps = log.steps.astype(np.int64)
    return ProbeValues(
        readout=readout,
        unit=unit,
        steps=steps,
        total_steps=int(steps[-1]) if total_steps is None else total_steps,
        probes=np.array(probes),
        topics=np.array([topic_name(first[probe]["topic"]) for probe in probes]),
        polarity=np.array([first[probe]["polarity"] for probe in probes]),
        axes={topic_name(row["topic"]): row["axis"] for row in rows},
        channels={},
    )
