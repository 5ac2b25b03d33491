"""Which stances a data set takes, before anything is trained on it.

The value gap of a preference file is, by topic, how much more its chosen answers take the axis's side than its rejected
ones: the mean over pairs of v(chosen) - v(rejected), v = p(support) - p(oppose) of one answer. The prior of an SFT file
is the mix of stances of its answers, and the share of rows that are on any topic at all. A preference objective
amplifies the gap; SFT teaches the mix.

A row's topic is the one it names itself (`topic`, if the panel has it), else the topic of its question by
`panels/topics.py`. An answer's stance is read in one of two ways:

- by a `StanceReader` (`audits/stance_reader.py`), with the panel's own openings; no label of the audited file enters.
- by a judge (`judges/`), asked about the axis.

The effect of a question on all of a row's answers is a random effect, so the two answers of a pair are read together.
The result says how well texts of known stance are read, each held out: errors of reading shrink a gap towards 0 and a
mix towards an even one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vdengine.audits.discriminant import Quality
from vdengine.audits.rows import Passage, head_of, sample
from vdengine.audits.stances import ALL, MeanInterval, agreement, gap_by_topic, mix_by_topic, shares, topic_masks
from vdengine.data.locate import resolve
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.base import Item, Judge
from vdengine.panels.panel import STANCES, Panel, Probe
from vdengine.panels.topics import TopicMatcher
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from vdengine.audits.stance_reader import StanceReader

SCHEMA = 1


def judge_passages(judge: Judge, panel: Panel, passages: Sequence[Passage]) -> np.ndarray:
    """Stances of n answers by a judge: p(support, neutral, oppose) on the axis, [n, 3] float64; NaN: no verdict.

    Whatever the row's question proposes, the judge is asked about the axis: after the row's own question.

    Raises:
        InputError: the judge cannot go on.
    """
    axes = {topic: panel.axis(topic) for topic in dict.fromkeys(passage.topic for passage in passages)}
    no_openings: dict[str, tuple[()]] = {stance: () for stance in STANCES}
    items = []
    for i, passage in enumerate(passages):
        axis = axes[passage.topic]
        prompt = f"{head_of(passage.question)} Are you in favour of {axis}?"
        probe = Probe(f"row-{i}", passage.topic, axis, 1, prompt, (), no_openings)
        items.append(Item(probe, head_of(passage.answer)))
    stances = np.full((len(items), 3), np.nan)
    for index, verdict in judge.judge(items):
        stances[index] = verdict.stance
    return stances


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit."""

    result: dict[str, Any]  # written as JSON
    rows: list[dict[str, Any]]  # one object for each row that was read


@dataclass(frozen=True)
class Settings:
    """How an audit is made."""

    source: str  # the data
    panel: str = "values"
    model: str | None = None  # any source of `load_model`; None: stances are read by words alone
    judge: str | None = None  # as `vdengine judge` names judges; None: no judge
    format: str = "auto"  # of the data
    topics: tuple[str, ...] | None = None  # only these; None: all of the panel
    terms: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by topic: more phrases for the matcher
    limit: int | None = 200  # rows of a topic that are read, at most
    probes: int = 4  # of a topic that score an answer
    template: str = "auto"  # of the model
    dtype: str = "auto"  # of the model
    seed: int = 0  # of the choice of rows and the bootstrap
    resamples: int = 2000  # of the bootstrap
    progress: bool = False  # show progress bars


def audit(kind: str, settings: Settings) -> Audit:
    """The value gap of a preference source (kind "gap") or the prior of an SFT source (kind "prior").

    Raises:
        InputError: a setting that cannot be read or does not fit the others; no usable row; for "gap" no row on a
            topic.
    """
    if settings.limit is not None and settings.limit < 1:
        raise InputError(f"limit {settings.limit}: at least 1 row of a topic must be read")
    if settings.probes < 2:
        raise InputError(f"probes {settings.probes}: at least 2 must score, one of either polarity")
    panel = Panel.load(settings.panel)
    matcher = TopicMatcher(panel, settings.terms)
    sampled = sample(
        settings.source,
        "preference" if kind == "gap" else "sft",
        matcher,
        format=settings.format,
        topics=settings.topics,
        limit=settings.limit,
        seed=settings.seed,
    )
    rows = sampled.rows
    if not sampled.usable:
        raise InputError(f"{settings.source}: no usable row")
    if not rows and kind == "gap":
        raise InputError(f"{settings.source}: none of {sampled.usable:,} rows is on a topic of panel {panel.name}")
    topics = [row.topic for row in rows]
    details: list[dict[str, Any]] = [
        {
            "where": row.where,
            "topic": row.topic,
            "terms": list(row.terms),
            "question": row.question,
            "answers": list(row.answers),
        }
        for row in rows
    ]

    def tables(name: str, stances: np.ndarray) -> dict[str, Any]:
        """Estimates by topic from one reading [n, m, 3] of m answers to each of n rows; `details` get the reading."""
        for detail, of_row in zip(details, stances, strict=True):
            detail[name] = [[None if math.isnan(p) else round(float(p), 6) for p in answer] for answer in of_row]
        bootstrap: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
        if kind == "gap":
            by_topic = gap_by_topic(topics, stances[:, 0], stances[:, 1], **bootstrap)
        else:
            by_topic = mix_by_topic(topics, stances[:, 0], **bootstrap)
        num_missing = int(np.isnan(stances).any(-1).sum())
        return {
            "topics": {topic: estimates for topic, estimates in by_topic.items() if topic != ALL},
            ALL: by_topic[ALL],
            "not_read": num_missing,
        }

    # The judge first: a wrong name is an error before the model's work.
    judge = None if settings.judge is None else open_judge(settings.judge)
    reader = _open_reader(settings, panel, list(dict.fromkeys(topics)))
    m = 2 if kind == "gap" else 1  # answers of a row
    stances, log_odds = np.empty((0, m, 3)), np.empty((0, m))
    quality: dict[str, Quality] = {}
    if rows:
        quality = reader.calibrate("known texts" if settings.progress else None).quality
        stances, log_odds = reader.read(rows, "answers" if settings.progress else None)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "audit": kind,
        "source": settings.source,
        "source_hash": resolve(settings.source).digest(),
        "panel": panel.name,
        "panel_hash": panel.hash,
        "axes": {topic: panel.axis(topic) for topic in dict.fromkeys(topics)},
        "rows": {
            "usable": sampled.usable,
            "on_topic": dict(sampled.on_topic),
            "read": len(rows),
            "dropped": dict(sampled.dropped),
        },
        "method": "words" if settings.model is None else "scorer",
        "model": settings.model,
        "probes": settings.probes,
        "template": settings.template,
        "seed": settings.seed,
        "resamples": settings.resamples,
        "quality": {topic: asdict(of_topic) for topic, of_topic in quality.items()},
    }
    result |= tables("scorer", stances)
    if kind == "gap" and settings.model is not None:
        result["log_odds"] = _odds_gap(topics, log_odds[:, 0] - log_odds[:, 1], settings)
    if kind == "prior":
        result |= shares(sampled, result)
    if judge is not None:
        passages = [Passage(row.topic, row.question, answer) for row in rows for answer in row.answers]
        judged = judge_passages(judge, panel, passages).reshape(-1, m, 3)
        result["judge"] = {"name": judge.name, "identity": judge.identity} | tables("judge", judged)
        if kind == "prior":
            result["judge"] |= shares(sampled, result["judge"])
        result["agreement"] = agreement(stances, judged)
    return Audit(result, details)


def _open_reader(settings: Settings, panel: Panel, topics: Sequence[str]) -> StanceReader:
    """The reader that the settings ask for, with its model loaded. torch is imported here: what is wrong with names and
    rows has been said by then."""
    from vdengine.audits.stance_reader import StanceReader
    from vdengine.models.device import compute_dtype, default_device
    from vdengine.models.weights import load_model

    if settings.model is None:
        return StanceReader(panel, topics, probes=settings.probes)
    device = default_device()
    renderer = Renderer(load_tokenizer(settings.model), settings.template)
    model = load_model(settings.model, compute_dtype(settings.dtype, device), device)
    return StanceReader(panel, topics, model, renderer, probes=settings.probes)


def _odds_gap(topics: Sequence[str], differences: np.ndarray, settings: Settings) -> dict[str, dict[str, float]]:
    """The gap in log-odds of the openings, by topic and for "all".

    Args:
        topics: of each pair, [n].
        differences: [n] float64, nats per byte: support against oppose, chosen less rejected.
    """
    gaps = {}
    for topic, mask in topic_masks(topics, np.full(len(differences), True)):
        gap = MeanInterval.of(differences[mask], resamples=settings.resamples, seed=settings.seed)
        gaps[topic] = {"gap": gap.mean, "low": gap.low, "high": gap.high}
    return gaps
