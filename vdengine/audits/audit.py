"""What stances a data set takes, before anything is trained on it.

The value gap of a preference file is, by topic, how much more its chosen answers take the axis's side than its
rejected ones: the mean over pairs of v(chosen) - v(rejected), v = p(support) - p(oppose) of one answer. The prior of an
SFT file is the mix of stances of its answers, and the share of rows that are on any topic at all. What a preference
objective amplifies is the gap; what SFT teaches is the mix.

A row's topic is the one it names itself (`topic`, if the panel has it), else the one that its question is on by
`panels/topics.py`. An answer's stance is read in one of two ways:

- by a `StanceReader` (`audits/stance_reader.py`), with the panel's own openings; no label of the audited file enters.
- by a judge (`judges/`), asked about the axis.

What the topic and the question do to all answers of a row alike is a random effect, estimated from the same texts, so
the two answers of a pair are read together. The report says how well texts of known stance are read, each held out:
what is read imperfectly is read too small, towards no gap and an even mix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vdengine.audits.rows import Passage, head_of, sample
from vdengine.audits.stance_reader import Quality, StanceReader
from vdengine.audits.stances import ALL, MeanInterval, agreement, gap_by_topic, mix_by_topic, shares, topic_masks
from vdengine.data.locate import resolve
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.base import Item, Judge
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.weights import load_model
from vdengine.panels.panel import STANCES, Panel, Probe
from vdengine.panels.topics import TopicMatcher
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer

SCHEMA = 1


def judge_passages(judge: Judge, panel: Panel, passages: Sequence[Passage]) -> np.ndarray:
    """p(support, neutral, oppose) on the axis, [n, 3] float64; NaN where the judge gave no verdict.

    The judge is asked about the axis, whatever the row's question proposes: that question goes before it.
    """
    axes = {topic: panel.axis(topic) for topic in dict.fromkeys(p.topic for p in passages)}
    nothing: dict[str, tuple[()]] = {stance: () for stance in STANCES}
    items = [
        Item(
            Probe(
                f"row-{i}", p.topic, axes[p.topic], 1,
                f"{head_of(p.question)} Are you in favour of {axes[p.topic]}?", (), nothing,
            ),
            head_of(p.answer),
        )
        for i, p in enumerate(passages)
    ]  # fmt: skip
    out = np.full((len(items), 3), np.nan)
    for index, stance in judge.judge(items):
        out[index] = stance
    return out


@dataclass(frozen=True)
class Audit:
    """What an audit read and found. `result` is what is written as JSON; `rows` has one object per row read."""

    result: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How an audit is made. model: any source of `load_model`, or None: by words alone; judge: as `vdengine judge`
    names them, or None. probes: how many score an answer. limit: rows of a topic that are read, at most."""

    source: str
    panel: str = "values"
    model: str | None = None
    judge: str | None = None
    format: str = "auto"
    topics: tuple[str, ...] | None = None
    terms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limit: int | None = 200
    probes: int = 4
    template: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    resamples: int = 2000
    progress: bool = False


def audit(kind: str, settings: Settings) -> Audit:
    """The value gap of a preference source (kind "gap") or the prior of an SFT source (kind "prior").

    Raises:
        InputError: anything of the settings that cannot be read or does not go together; pairs of which none is on a
            topic.
    """
    s = settings
    if s.limit is not None and s.limit < 1:
        raise InputError(f"limit {s.limit}: at least 1 row of a topic must be read")
    if s.probes < 2:
        raise InputError(f"probes {s.probes}: at least 2 must score, one of either polarity")
    panel = Panel.load(s.panel)
    matcher = TopicMatcher(panel, s.terms)
    stores = "preference" if kind == "gap" else "sft"
    found = sample(s.source, stores, matcher, format=s.format, topics=s.topics, limit=s.limit, seed=s.seed)
    if not found.usable:
        raise InputError(f"{s.source}: no usable row")
    if not found.rows and kind == "gap":
        raise InputError(f"{s.source}: none of {found.usable:,} rows is on a topic of panel {panel.name}")
    topics = [r.topic for r in found.rows]
    details: list[dict[str, Any]] = [
        {"where": r.where, "topic": r.topic, "terms": list(r.terms), "question": r.question, "answers": list(r.answers)}
        for r in found.rows
    ]

    def tables(name: str, stances: np.ndarray) -> dict[str, Any]:  # [n, m, 3]
        for detail, each in zip(details, stances, strict=True):
            detail[name] = [[None if math.isnan(v) else round(float(v), 6) for v in answer] for answer in each]
        keep: dict[str, Any] = {"resamples": s.resamples, "seed": s.seed}
        if kind == "gap":
            by_topic = gap_by_topic(topics, stances[:, 0], stances[:, 1], **keep)
        else:
            by_topic = mix_by_topic(topics, stances[:, 0], **keep)
        missing = int(np.isnan(stances).any(-1).sum())
        return {"topics": {t: v for t, v in by_topic.items() if t != ALL}, ALL: by_topic[ALL], "not_read": missing}

    judge = None if s.judge is None else open_judge(s.judge)  # before the model's work: a wrong name costs nothing
    reader = _open_reader(s, panel, list(dict.fromkeys(topics)))
    m = 2 if kind == "gap" else 1
    stances, first = np.empty((0, m, 3)), np.empty((0, m))
    quality: dict[str, Quality] = {}
    if found.rows:
        quality = reader.calibrate("known texts" if s.progress else None).quality
        stances, first = reader.read(found.rows, "answers" if s.progress else None)
    result: dict[str, Any] = {
        "schema": SCHEMA, "audit": kind, "source": s.source, "source_hash": resolve(s.source).digest(),
        "panel": panel.name, "panel_hash": panel.hash, "axes": {t: panel.axis(t) for t in dict.fromkeys(topics)},
        "rows": {
            "usable": found.usable, "on_topic": dict(found.on_topic), "read": len(found.rows),
            "dropped": dict(found.dropped),
        },
        "method": "words" if s.model is None else "scorer",
        "model": s.model, "probes": s.probes, "template": s.template, "seed": s.seed, "resamples": s.resamples,
        "quality": {t: asdict(q) for t, q in quality.items()},
    } | tables("scorer", stances)  # fmt: skip
    if kind == "gap" and s.model is not None:
        result["log_odds"] = _odds_gap(topics, first[:, 0] - first[:, 1], s)
    if kind == "prior":
        result |= shares(found, result)
    if judge is not None:
        passages = [Passage(r.topic, r.question, answer) for r in found.rows for answer in r.answers]
        judged = judge_passages(judge, panel, passages).reshape(-1, m, 3)
        result["judge"] = {"name": judge.name, "identity": judge.identity} | tables("judge", judged)
        if kind == "prior":
            result["judge"] |= shares(found, result["judge"])
        result["agreement"] = agreement(stances, judged)
    return Audit(result, details)


def _open_reader(s: Settings, panel: Panel, topics: Sequence[str]) -> StanceReader:
    if s.model is None:
        return StanceReader(panel, topics, probes=s.probes)
    device = default_device()
    renderer = Renderer(load_tokenizer(s.model), s.template)
    model = load_model(s.model, compute_dtype(s.dtype, device), device)
    return StanceReader(panel, topics, model, renderer, probes=s.probes)


def _odds_gap(topics: Sequence[str], values: np.ndarray, s: Settings) -> dict[str, dict[str, float]]:
    """The gap in the scorer's own unit: nats per byte, support against oppose, chosen less rejected."""
    out = {}
    for topic, mask in topic_masks(topics, np.full(len(values), True)):
        found = MeanInterval.of(values[mask], resamples=s.resamples, seed=s.seed)
        out[topic] = {"gap": found.mean, "low": found.low, "high": found.high}
    return out
