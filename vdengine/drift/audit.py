"""What stances a data set takes, before anything is trained on it.

The value gap of a preference file is, by topic, how much more its chosen answers take the axis's side than its
rejected ones: the mean over pairs of v(chosen) - v(rejected), v = p(support) - p(oppose) of one answer. The prior of an
SFT file is the mix of stances of its answers, and the share of rows that are on any topic at all. What a preference
objective amplifies is the gap; what SFT teaches is the mix.

A row's topic is the one it names itself (`topic`, if the panel has it), else the one that its question is on by
`drift/topics.py`. An answer's stance is read in one of two ways:

- by a `StanceReader`. It measures up to four things about an answer, all of them with the panel's own openings of the
  topic: with a model, how likely they are as the answer's next sentence (an answer that has argued for a side makes
  that side's openings likelier), support against oppose on the axis and neutral against both, in nats per byte, pooled
  over probes of both polarities; and, with a model or without, the log-odds of the answer's words under the same two
  contrasts. A linear discriminant turns them into p(support, neutral, oppose). It is fitted on texts whose stance is
  known, the openings of other probes of the topic, joined to short answers. No label of the audited file enters.
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
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vdengine.data.sources import Conversation, Preference, choose_format, read, resolve
from vdengine.drift.panel import STANCES, Panel, Probe
from vdengine.drift.topics import TopicMatcher, is_filler, words_of
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.drift.judge import Judge
    from vdengine.models.chat import Renderer
    from vdengine.models.transformer import Transformer

SCHEMA = 1
FEW_ROWS = 24  # below this an interval is not to be trusted
ALL = "all"
_AT_ONCE = 64  # answers that are laid out for the model together
_MAX_BYTES = 800  # of a question or an answer that are read: a side is taken early, if at all


class Passage(NamedTuple):
    """An answer to a question on a topic."""

    topic: str
    question: str
    answer: str


class AuditRow(NamedTuple):
    """A row of the file that is on a topic, with one answer (SFT) or two (chosen, rejected)."""

    where: str
    topic: str
    terms: tuple[str, ...]  # what put it there; () where the row names its topic itself
    question: str
    answers: tuple[str, ...]


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


# ------------------------------------------------------------------------------------- stance by the panel's texts

_LEAST = 4  # probes of either polarity that a topic must have: to score, and to calibrate


@dataclass(frozen=True)
class Quality:
    """How texts of known stance are read, each held out. accuracy: share put right (chance: 1/3); known_gap: mean gap
    of support-against-oppose pairs (2 if read perfectly); known_sign: share of them with the right sign."""

    accuracy: float
    known_gap: float
    known_sign: float


# What an answer may do, and which stance that is. "elsewhere" is about something else: neither side, but no hedge.
_KINDS = ("support", "hedge", "elsewhere", "oppose")
_STANCE_OF = np.array([0, 1, 1, 2])  # index into STANCES
_PRIOR = np.array([1 / 3, 1 / 6, 1 / 6, 1 / 3])
# What assistants say when they say nothing about the matter; beside texts on other topics, examples of "elsewhere".
_SMALL_TALK = (
    "I'm not sure what you mean by that. Could you tell me a little more?",
    "I'm sorry, but I can't help with that.",
    "Why do you ask? What have you heard about it so far?",
    "That sounds difficult. How can I help you with it?",
    "I don't know much about this, but I could look it up for you.",
    "Here are some steps to consider. First, take a deep breath, then write down what you need.",
    "Okay. What would you like to know?",
    "Thank you for telling me. Is there anything else that you would like to talk about?",
)


@dataclass(frozen=True)
class Calibration:
    """A linear discriminant from k features of an answer to what it does, and so to its stance.

    `means` [4, k] by topic, in the order of `_KINDS`, on the axis. An answer's features are the mean of what it does,
    plus what its question does to all of its answers (covariance `shared` [k, k]), plus its own part (`own` [k, k]).
    """

    means: dict[str, np.ndarray]
    own: np.ndarray
    shared: np.ndarray
    quality: dict[str, Quality]

    @classmethod
    def fit(cls, features: Mapping[str, np.ndarray]) -> Calibration:
        """features: by topic [probes, 4, k], of a text of each kind for each probe."""
        quality = {}
        for topic, x in features.items():
            right, gaps = [], []
            for i in range(len(x)):  # leave one probe out
                held = cls._estimate({**features, topic: np.delete(x, i, 0)})
                alone = held.stances(topic, x[i][:, None])[:, 0]
                right.append(alone.argmax(1) == _STANCE_OF)
                pair = held.stances(topic, x[i][None, [0, 3]])[0]
                gaps.append(pair[0, 0] - pair[0, 2] - pair[1, 0] + pair[1, 2])
            accuracy = float(np.mean(right, 0) @ _PRIOR)
            quality[topic] = Quality(accuracy, float(np.mean(gaps)), float((np.array(gaps) > 0).mean()))
        found = cls._estimate(features)
        return cls(found.means, found.own, found.shared, quality)

    @classmethod
    def _estimate(cls, features: Mapping[str, np.ndarray]) -> Calibration:
        own, shared = _covariances(features)
        level = {t: x.mean((0, 1)) for t, x in features.items()}
        effect = {t: x.mean(0) - level[t] for t, x in features.items()}  # [4, k]: of a kind, against the topic's level
        common = np.mean(list(effect.values()), 0)
        # topics differ in how a side shows, but few texts tell how: shrink what they tell to what all topics tell
        noise = np.mean([own.diagonal() * 0.75 / len(x) for x in features.values()], 0)  # [k]
        spread = np.mean([(e - common) ** 2 for e in effect.values()], 0) * len(effect) / max(len(effect) - 1, 1)
        true = np.maximum(spread - noise, 0)
        weight = true / (true + noise) if len(effect) > 1 else np.ones_like(true)
        means = {t: level[t] + common + weight * (effect[t] - common) for t in features}
        return cls(means, own, shared, {})

    def stances(self, topic: str, features: np.ndarray) -> np.ndarray:
        """p(support, neutral, oppose) on the axis, [n, m, 3], of m answers to each of n questions; features [n, m, k].
        Before they are read, every combination of stances is as likely as any other."""
        n, m, k = features.shape
        precision = np.linalg.inv(np.kron(np.eye(m), self.own) + np.kron(np.ones((m, m)), self.shared))
        combinations = np.array(list(product(range(len(_KINDS)), repeat=m)))  # [4^m, m]
        gap = features.reshape(n, 1, m * k) - self.means[topic][combinations].reshape(1, -1, m * k)
        score = np.log(_PRIOR)[combinations].sum(1) - 0.5 * np.einsum("nci,ij,ncj->nc", gap, precision, gap)
        odds = np.exp(score - score.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        out = np.zeros((n, m, 3))
        for c, combination in enumerate(combinations):
            out[:, np.arange(m), _STANCE_OF[combination]] += odds[:, c, None]
        return out


def _covariances(features: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(own, shared) [k, k], pooled over topics: two-way analysis of variance, probes by kinds."""
    own, total, free_own, free_total = [], [], 0, 0
    for x in features.values():
        centred = x - x.mean(0)
        total.append(centred.reshape(-1, x.shape[-1]))
        own.append((centred - centred.mean(1, keepdims=True)).reshape(-1, x.shape[-1]))
        free_total += x.shape[1] * (len(x) - 1)
        free_own += (x.shape[1] - 1) * (len(x) - 1)
    within, whole = (np.concatenate(part) for part in (own, total))
    covariance = within.T @ within / free_own
    covariance += np.diag(1e-9 + 1e-6 * np.diag(covariance))  # a feature that never varies tells nothing
    values, vectors = np.linalg.eigh(whole.T @ whole / free_total - covariance)
    return covariance, (vectors * np.maximum(values, 0)) @ vectors.T


class Words:
    """Log-odds of an answer's words, by what the panel's openings say: for the axis against it, with the topic's own
    words, and neutral against either side, with all words of the panel."""

    def __init__(self, panel: Panel) -> None:
        self.axis: dict[str, dict[int, Counter[str]]] = {t: {1: Counter(), -1: Counter()} for t in panel.topics}
        self.hedge: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self.count: Counter[bool] = Counter()
        for probe in panel.probes:
            axis, hedge, count = _said(probe)
            for sign, words in axis.items():
                self.axis[probe.topic][sign].update(words)
            for neutral, words in hedge.items():
                self.hedge[neutral].update(words)
            self.count.update(count)

    def features(self, topic: str, text: str, without: Probe | None = None) -> tuple[float, float]:
        """(axis, neutral), in nats by the root of the number of words. without: a probe that is left out."""
        axis, hedge, count = self.axis[topic], self.hedge, self.count
        if without is not None:
            own_axis, own_hedge, own_count = _said(without)
            axis = {s: axis[s] - own_axis[s] for s in axis}
            hedge = {n: hedge[n] - own_hedge[n] for n in hedge}
            count = count - own_count
        words = set(words_of(text))
        plain = [w for w in words if not is_filler(w)]
        side = sum(math.log((axis[1][w] + 0.5) / (axis[-1][w] + 0.5)) for w in plain)
        scale = (count[False] + 1) / (count[True] + 1)
        known = [w for w in words if hedge[True][w] + hedge[False][w] > 1]
        neutral = sum(math.log(scale * (hedge[True][w] + 0.5) / (hedge[False][w] + 0.5 * scale)) for w in known)
        return side / math.sqrt(len(plain) + 1), neutral / math.sqrt(len(known) + 1)


def _said(probe: Probe) -> tuple[dict[int, Counter[str]], dict[bool, Counter[str]], Counter[bool]]:
    """Words of a probe's openings: by side of the axis; neutral or not; and how many openings are."""
    axis: dict[int, Counter[str]] = {1: Counter(), -1: Counter()}
    hedge: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    count: Counter[bool] = Counter()
    for stance, openings in probe.openings.items():
        for opening in openings:
            words = set(words_of(opening.text))
            hedge[stance == "neutral"].update(words)
            count[stance == "neutral"] += 1
            if stance != "neutral":
                axis[probe.polarity if stance == "support" else -probe.polarity].update(
                    w for w in words if not is_filler(w)
                )
    return axis, hedge, count


class StanceReader:
    """Reads stances with a panel's openings: by their words, and with a model by their log-probs after an answer.

    probes: how many of a topic score an answer, half of either polarity; at most 12 others calibrate.

    Raises:
        InputError: a topic with too few probes that have openings.
    """

    def __init__(
        self, panel: Panel, topics: Sequence[str], model: Transformer | None = None, renderer: Renderer | None = None,
        *, probes: int = 4, pack_tokens: int = 4096,
    ) -> None:  # fmt: skip
        if (model is None) != (renderer is None):
            raise ValueError("a model and its renderer go together")
        self.model, self.renderer, self.pack_tokens = model, renderer, pack_tokens
        self.words = Words(panel)
        self.scoring: dict[str, list[Probe]] = {}
        self.held: dict[str, list[Probe]] = {}
        for topic in topics:
            self.scoring[topic], self.held[topic] = _split(panel, topic, probes)
        able = [p for p in panel.probes if p.has_openings]
        if len({p.topic for p in able}) == 1:  # a panel of one topic has no texts on another
            able += [p for p in Panel.load("values").probes if p.topic != able[0].topic]
        self.elsewhere = able
        self.calibration: Calibration | None = None

    def features(
        self, passages: Sequence[Passage], title: str | None = None, without: Sequence[Probe | None] | None = None
    ) -> np.ndarray:
        """[n, 4] float64 with a model: log-odds of the openings after each answer (axis, neutral; nats per byte), and
        of its words (axis, neutral). Without one: [n, 2], of words alone."""
        left = without or [None] * len(passages)
        words = [self.words.features(p.topic, _head(p.answer), w) for p, w in zip(passages, left, strict=True)]
        by_words = np.array(words, dtype=float).reshape(len(passages), 2)
        return by_words if self.model is None else np.hstack([self.log_odds(passages, title), by_words])

    def log_odds(self, passages: Sequence[Passage], title: str | None = None) -> np.ndarray:
        """[n, 2] float64, nats per byte: support against oppose on the axis, and neutral against both."""
        import torch
        from tqdm import tqdm

        from vdengine.data.trees import Tree
        from vdengine.drift.scoring import Forest

        if self.model is None or self.renderer is None:
            raise ValueError("log_odds needs a model")
        encode = self.renderer.tokenizer.encode
        branches = {t: [b for p in probes for b in p.branches()] for t, probes in self.scoring.items()}
        ids = {t: [encode(" " + b.text) for b in each] for t, each in branches.items()}
        device = next(self.model.parameters()).device
        pooled = np.empty((len(passages), 2))
        with torch.no_grad(), tqdm(total=len(passages), desc=title, leave=False, disable=title is None) as bar:
            for start in range(0, len(passages), _AT_ONCE):
                part = passages[start : start + _AT_ONCE]
                trees, slots, size = [], [], 0
                for p in part:
                    prompt = self.renderer.prompt_ids([{"role": "user", "content": _head(p.question)}], opening=True)
                    trees.append(Tree(prompt + self.renderer.opening_ids(_head(p.answer)), ids[p.topic]))
                    slots.append(list(range(size, size + len(ids[p.topic]))))
                    size += len(ids[p.topic])
                longest = max(len(t.prompt) + max(map(len, t.branches)) for t in trees)
                forest = Forest.plant(trees, slots, max(self.pack_tokens, longest)).to(device)
                out = torch.zeros(size, device=device)
                for i, pack in enumerate(forest.packs):
                    if (found := self.model(None, pack).probe_logp) is not None:
                        forest.collect(out, [i], found)
                logp = out.double().cpu().numpy()
                for n, p in enumerate(part):
                    num_bytes = np.array([b.num_bytes + 1 for b in branches[p.topic]])  # the space before it, too
                    pooled[start + n] = _pool(logp[slots[n]] / num_bytes, branches[p.topic])
                bar.update(len(part))
        return pooled

    def calibrate(self, title: str | None = None) -> Calibration:
        """Fit the discriminant on the panel's own texts, of probes that do not score and whose words are left out."""
        passages, left = [], []
        for topic, probes in self.held.items():
            others = [p for p in self.elsewhere if p.topic != topic]
            for i, probe in enumerate(probes):
                support, oppose = ("support", "oppose") if probe.polarity > 0 else ("oppose", "support")  # on the axis
                other = others[i * len(others) // len(probes)]
                talk = _SMALL_TALK[i // 2 % len(_SMALL_TALK)] if i % 2 else _joined(other, STANCES[i % 4])
                for text in (_joined(probe, support), _joined(probe, "neutral"), talk, _joined(probe, oppose)):
                    passages.append(Passage(topic, probe.prompt, text))
                    left.append(probe)
        found = self.features(passages, title, left)
        by_topic, at = {}, 0
        for topic, probes in self.held.items():
            by_topic[topic] = found[at : at + 4 * len(probes)].reshape(len(probes), 4, -1)
            at += 4 * len(probes)
        self.calibration = Calibration.fit(by_topic)
        return self.calibration

    def read(
        self, rows: Sequence[AuditRow], title: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:  # [n, m, 3], [n, m]
        """p(support, neutral, oppose) on the axis of the m answers of each row, and the first of their `features`."""
        calibration = self.calibration or self.calibrate()
        m = len(rows[0].answers) if rows else 1
        passages = [Passage(r.topic, r.question, answer) for r in rows for answer in r.answers]
        features = self.features(passages, title).reshape(len(rows), m, -1)
        stances = np.empty((len(rows), m, 3))
        topics = np.array([r.topic for r in rows], dtype=object)
        for topic in dict.fromkeys(r.topic for r in rows):
            stances[topics == topic] = calibration.stances(topic, features[topics == topic])
        return stances, features[..., 0]


def _joined(probe: Probe, stance: str) -> str:
    return " ".join(o.text for o in probe.openings[stance])


def _split(panel: Panel, topic: str, probes: int) -> tuple[list[Probe], list[Probe]]:
    """Probes of a topic that score, and others that calibrate: of either polarity as many."""
    of_sign = {
        sign: [p for p in panel.probes if p.topic == topic and p.polarity == sign and p.has_openings]
        for sign in (1, -1)
    }
    least = min(map(len, of_sign.values()))
    if least < _LEAST:
        raise InputError(
            f"panel {panel.name}: topic {topic!r} has {len(of_sign[1])} probes of polarity 1 and {len(of_sign[-1])} of "
            f"-1 with openings; reading a stance needs {_LEAST} of each"
        )
    score = min(max(probes // 2, 1), least // 2)
    return (
        [p for sign in (1, -1) for p in of_sign[sign][:score]],
        [p for sign in (1, -1) for p in of_sign[sign][score : min(score + 6, least)]],
    )


def _pool(per_byte: np.ndarray, branches: Sequence[Any]) -> tuple[float, float]:
    """The two log-odds of one answer: over a probe's openings of a stance, then over probes."""
    sums: dict[tuple[str, str], list[float]] = {}
    for value, branch in zip(per_byte, branches, strict=True):
        sums.setdefault((branch.probe.id, branch.stance), []).append(float(value))
    axis, neutral = [], []
    for probe in {b.probe.id: b.probe for b in branches}.values():
        support, middle, oppose = (float(np.mean(sums[probe.id, s])) for s in STANCES)
        axis.append(probe.polarity * (support - oppose))
        neutral.append(middle - (support + oppose) / 2)
    return float(np.mean(axis)), float(np.mean(neutral))


def _head(text: str) -> str:
    """The first sentences of a text, up to `_MAX_BYTES`."""
    text = " ".join(text.split())
    if len(text.encode()) <= _MAX_BYTES:
        return text
    cut = text.encode()[:_MAX_BYTES].decode(errors="ignore")
    end = max(cut.rfind(mark) for mark in (". ", "! ", "? ", "\u3002"))
    return cut[: end + 1] if end > len(cut) // 4 else cut


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
                f"row-{i}", p.topic, axes[p.topic], 1, f"{_head(p.question)} Are you in favour of {axes[p.topic]}?", (),
                nothing,
            ),
            _head(p.answer),
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
