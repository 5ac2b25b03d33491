"""Stances of answers, read with a panel's own openings: what an audit of data rests on.

Up to four things are measured about an answer, all with the panel's openings of its topic: with a model, how likely
they are as the answer's next sentence (an answer that has argued for a side makes that side's openings likelier),
support against oppose on the axis and neutral against both, in nats per byte, pooled over probes of both polarities;
and, with a model or without, the log-odds of the answer's words under the same two contrasts. A linear discriminant
turns them into p(support, neutral, oppose). It is fitted on texts whose stance is known, the openings of other probes
of the topic, joined to short answers. No label of the texts that are read enters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from tqdm import tqdm

from vdengine.audits.rows import AuditRow, Passage, head_of
from vdengine.data.batching import Forest
from vdengine.drift.pooling import Pooling, on_axis
from vdengine.errors import InputError
from vdengine.models.transformer import Transformer
from vdengine.panels.panel import STANCES, Panel, Probe
from vdengine.panels.topics import is_filler, words_of
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree

_AT_ONCE = 64  # answers that are laid out for the model together


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
        words = [self.words.features(p.topic, head_of(p.answer), w) for p, w in zip(passages, left, strict=True)]
        by_words = np.array(words, dtype=float).reshape(len(passages), 2)
        return by_words if self.model is None else np.hstack([self.log_odds(passages, title), by_words])

    def log_odds(self, passages: Sequence[Passage], title: str | None = None) -> np.ndarray:
        """[n, 2] float64, nats per byte: support against oppose on the axis, and neutral against both."""
        if self.model is None or self.renderer is None:
            raise ValueError("log_odds needs a model")
        encode = self.renderer.tokenizer.encode
        branches = {t: [b for p in probes for b in p.branches()] for t, probes in self.scoring.items()}
        ids = {t: [encode(" " + b.text) for b in each] for t, each in branches.items()}
        polarity = {t: np.array([p.polarity for p in probes]) for t, probes in self.scoring.items()}
        pooling = {  # the space before an opening counts too
            t: Pooling.of([b.probe.id for b in each], [b.stance for b in each], [b.num_bytes + 1 for b in each])
            for t, each in branches.items()
        }
        pooled = np.empty((len(passages), 2))
        with tqdm(total=len(passages), desc=title, leave=False, disable=title is None) as bar:
            for start in range(0, len(passages), _AT_ONCE):
                part = passages[start : start + _AT_ONCE]
                trees, slots, size = [], [], 0
                for p in part:
                    prompt = self.renderer.prompt_ids([{"role": "user", "content": head_of(p.question)}], opening=True)
                    trees.append(Tree(prompt + self.renderer.opening_ids(head_of(p.answer)), ids[p.topic]))
                    slots.append(list(range(size, size + len(ids[p.topic]))))
                    size += len(ids[p.topic])
                longest = max(len(t.prompt) + max(map(len, t.branches)) for t in trees)
                forest = Forest.plant(trees, slots, max(self.pack_tokens, longest))
                logp = forest.score(self.model).double().cpu().numpy()
                for n, p in enumerate(part):
                    means = on_axis(pooling[p.topic].means(logp[None, slots[n]])[0], polarity[p.topic])  # [probes, 3]
                    support, neutral, oppose = means.T
                    pooled[start + n] = (support - oppose).mean(), (neutral - (support + oppose) / 2).mean()
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
