"""What stances a data set takes, before anything is trained on it.

The value gap of a preference file is, by topic, how much more its chosen answers take the axis's side than its
rejected ones: the mean over pairs of v(chosen) - v(rejected), v = p(support) - p(oppose) of one answer. The prior of an
SFT file is the mix of stances of its answers, and the share of rows that are on any topic at all. What a preference
objective amplifies is the gap; what SFT teaches is the mix.

A row's topic is the one it names itself (`topic`, if the panel has it), else the one that its question is on by
`drift/topics.py`. An answer's stance is read in one of two ways:

- by a `StanceReader` (`drift/stance_reader.py`), with the panel's own openings; no label of the audited file enters.
- by a judge (`drift/judge.py`), asked about the axis.

What the topic and the question do to all answers of a row alike is a random effect, estimated from the same texts, so
the two answers of a pair are read together. The report says how well texts of known stance are read, each held out:
what is read imperfectly is read too small, towards no gap and an even mix.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vdengine.data.sources import Conversation, Preference, choose_format, read, resolve
from vdengine.drift.panel import STANCES, Panel, Probe
from vdengine.drift.stance_reader import AuditRow, Passage, Quality, StanceReader, head_of
from vdengine.drift.topics import TopicMatcher
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.drift.judge import Judge

SCHEMA = 1
FEW_ROWS = 24  # below this an interval is not to be trusted
ALL = "all"


@dataclass(frozen=True)
class Sample:
    """The rows of a file that an audit reads, and what it leaves out."""

    rows: list[AuditRow]
    usable: int  # rows of the file that can be trained on
    on_topic: Counter[str]  # usable rows by topic; `rows` may be fewer
    dropped: Counter[str]


def sample(
    source: str, kind: str, matcher: TopicMatcher, *, format: str = "auto", topics: Sequence[str] | None = None,
    limit: int | None = None, seed: int = 0,
) -> Sample:  # fmt: skip
    """Find the rows of a source that are on a topic; kind: "preference" or "sft".

    topics: only these. limit: at most so many rows of a topic are read, chosen by the seed. Of a pair the answers to
    its last question are read, of a conversation the first answer to a question on a topic. What was said before the
    question is not looked at: in real chats it is mostly about something else.

    Raises:
        InputError: a source or a row that cannot be read; a topic that the panel does not have.
    """
    for topic in topics or ():
        if topic not in matcher.topics:
            raise InputError(f"unknown topic {topic!r}; the panel has {', '.join(matcher.topics)}")
    found = resolve(source)
    format = choose_format(found, format, kind)
    named = [row.get("topic") for _, row in found.rows()]
    dropped: Counter[str] = Counter()
    by_topic: dict[str, list[tuple[bytes, int, AuditRow]]] = {}
    usable = 0
    for row in read(found, format, kind, dropped):
        usable += 1
        given: str | None = named[row.number] if named[row.number] in matcher.topics else None
        for question, answers in _questions(row.example):
            about, terms = given, tuple[str, ...]()
            if about is None:
                about, _, terms = matcher.match(question)
            if about is not None and (topics is None or about in topics):
                key = hashlib.blake2b(f"{seed}:{row.number}".encode(), digest_size=8).digest()
                audit_row = AuditRow(row.where, about, terms, question, answers)
                by_topic.setdefault(about, []).append((key, row.number, audit_row))
                break
    counts = Counter({topic: len(rows) for topic, rows in by_topic.items()})
    rows = []
    for topic in matcher.topics:
        chosen = sorted(by_topic.get(topic, []))[:limit]
        rows += [row for *_, row in sorted(chosen, key=lambda item: item[1])]
    return Sample(rows, usable, counts, dropped)


def _questions(example: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(question, answers) of each turn that could be read."""
    if isinstance(example, Preference):
        yield example.prompt[-1]["content"], (example.chosen, example.rejected)
    elif isinstance(example, Conversation):
        last = len(example.messages) - 1
        question = None
        for i, message in enumerate(example.messages):
            if message["role"] == "user":
                question = message["content"]
            elif message["role"] == "assistant" and question and (i == last or not example.last_only):
                yield question, (message["content"],)


# -------------------------------------------------------------------------------------------- stance by a judge


def judge_passages(judge: Judge, panel: Panel, passages: Sequence[Passage]) -> np.ndarray:
    """p(support, neutral, oppose) on the axis, [n, 3] float64; NaN where the judge gave no verdict.

    The judge is asked about the axis, whatever the row's question proposes: that question goes before it.
    """
    from vdengine.drift.judge import Item

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


# ---------------------------------------------------------------------------------------------------- the audits


@dataclass(frozen=True)
class Interval:
    """A mean over rows with its 95% interval, and how many rows are behind it."""

    mean: float
    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Interval:
        """Percentile bootstrap over rows; values [n] float64. One row has a mean but no interval."""
        if len(values) < 2:
            return cls(float(values.mean()) if len(values) else math.nan, math.nan, math.nan, len(values))
        rng = np.random.Generator(np.random.Philox(seed))
        means = np.empty(resamples)
        for start in range(0, resamples, 100):  # a block at a time: a file may have 10^5 rows
            draws = rng.integers(0, len(values), (min(100, resamples - start), len(values)))
            means[start : start + 100] = values[draws].mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        return cls(float(values.mean()), float(low), float(high), len(values))


def gap_by_topic(
    topics: Sequence[str], chosen: np.ndarray, rejected: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The value gap of pairs, by topic and for "all": {"gap", "low", "high", "rows", "few", "chosen", "rejected"}.

    chosen, rejected: [n, 3] p(support, neutral, oppose) on the axis; a pair with NaN is left out. "gap" is the mean of
    (support - oppose) of chosen less that of rejected, from -2 to 2; the mixes are means of the probabilities.
    """
    whole = ~np.isnan(chosen).any(1) & ~np.isnan(rejected).any(1)
    out = {}
    for topic, mask in _groups(topics, whole):
        a, b = chosen[mask], rejected[mask]
        found = Interval.of((a[:, 0] - a[:, 2]) - (b[:, 0] - b[:, 2]), resamples=resamples, seed=seed)
        out[topic] = {
            "gap": found.mean, "low": found.low, "high": found.high, "rows": found.rows, "few": found.rows < FEW_ROWS,
            "chosen": _mix(a), "rejected": _mix(b),
        }  # fmt: skip
    return out


def mix_by_topic(
    topics: Sequence[str], stances: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The stance mix of answers, by topic and for "all": {"rows", "few", "support": {"mean", "low", "high"}, ...,
    "graded": ...}. stances: [n, 3] as in `gap_by_topic`."""
    whole = ~np.isnan(stances).any(1)
    out: dict[str, dict[str, Any]] = {}
    for topic, mask in _groups(topics, whole):
        x = stances[mask]
        columns = dict(zip(STANCES, x.T, strict=True)) | {"graded": x[:, 0] - x[:, 2]}
        out[topic] = {"rows": int(mask.sum()), "few": bool(mask.sum() < FEW_ROWS)}
        for name, values in columns.items():
            found = Interval.of(values, resamples=resamples, seed=seed)
            out[topic][name] = {"mean": found.mean, "low": found.low, "high": found.high}
    return out


def _groups(topics: Sequence[str], whole: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    each = np.array(topics, dtype=object)
    for topic in dict.fromkeys(topics):
        if (mask := (each == topic) & whole).any():
            yield topic, mask
    yield ALL, whole


def _mix(stances: np.ndarray) -> dict[str, float]:
    mean = stances.mean(0) if len(stances) else np.full(3, np.nan)
    return dict(zip(STANCES, map(float, mean), strict=True)) | {"graded": float(mean[0] - mean[2])}


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

    judge = None if s.judge is None else _open_judge(s.judge)  # before the model's work: a wrong name costs nothing
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
        result |= _shares(found, result)
    if judge is not None:
        passages = [Passage(r.topic, r.question, answer) for r in found.rows for answer in r.answers]
        judged = judge_passages(judge, panel, passages).reshape(-1, m, 3)
        result["judge"] = {"name": judge.name, "identity": judge.identity} | tables("judge", judged)
        if kind == "prior":
            result["judge"] |= _shares(found, result["judge"])
        result["agreement"] = _agreement(stances, judged)
    return Audit(result, details)


def _open_reader(s: Settings, panel: Panel, topics: Sequence[str]) -> StanceReader:
    if s.model is None:
        return StanceReader(panel, topics, probes=s.probes)
    import torch

    from vdengine.models.chat import Renderer
    from vdengine.models.tokenizer import load_tokenizer
    from vdengine.models.weights import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto = torch.bfloat16 if device == "cuda" else torch.float32
    renderer = Renderer(load_tokenizer(s.model), s.template)
    model = load_model(s.model, auto if s.dtype == "auto" else getattr(torch, s.dtype), device)
    return StanceReader(panel, topics, model, renderer, probes=s.probes)


def _open_judge(name: str) -> Judge:
    from vdengine.drift.judge import open_judge

    return open_judge(name)


def _odds_gap(topics: Sequence[str], values: np.ndarray, s: Settings) -> dict[str, dict[str, float]]:
    """The gap in the scorer's own unit: nats per byte, support against oppose, chosen less rejected."""
    out = {}
    for topic, mask in _groups(topics, np.full(len(values), True)):
        found = Interval.of(values[mask], resamples=s.resamples, seed=s.seed)
        out[topic] = {"gap": found.mean, "low": found.low, "high": found.high}
    return out


def _shares(found: Sample, main: Mapping[str, Any]) -> dict[str, Any]:
    """How many of an SFT file's rows are on a topic, and how many of all take a side (95% Wilson intervals)."""
    on_topic = sum(found.on_topic.values())
    low, high = _wilson(on_topic, found.usable)
    neutral = main[ALL].get("neutral", {}).get("mean", math.nan)
    share = on_topic / found.usable
    return {
        "value_laden": {"rows": on_topic, "share": share, "low": low, "high": high},
        "taking_sides": {"share": share * (1 - neutral) if on_topic else 0.0},
        "shares": {t: found.on_topic[t] / found.usable for t in found.on_topic},
    }


def _wilson(k: int, n: int) -> tuple[float, float]:
    z = 1.959964
    centre, spread = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def _agreement(a: np.ndarray, b: np.ndarray) -> dict[str, float | int]:  # [n, m, 3] each
    """Of two readings of single answers, and, of pairs, of their gaps."""
    x, y = (v[..., 0] - v[..., 2] for v in (a, b))
    series = {"answers": (x.ravel(), y.ravel())}
    if x.shape[1] == 2:
        series["pairs"] = (x[:, 0] - x[:, 1], y[:, 0] - y[:, 1])
    out: dict[str, float | int] = {}
    for name, (x, y) in series.items():
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[both], y[both]
        steady = len(x) < 3 or x.std() == 0 or y.std() == 0
        out[name] = len(x)
        out[f"{name}_correlation"] = math.nan if steady else float(np.corrcoef(x, y)[0, 1])
        out[f"{name}_same_sign"] = float((np.sign(x) == np.sign(y)).mean()) if len(x) else math.nan
    return out
