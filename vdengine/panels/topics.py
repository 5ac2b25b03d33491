"""Which topic of a panel a text is about: a lexical matcher with the panel's own terms. No model, no training.

A term is a stemmed word, or two adjacent ones, of a panel's prompts, paraphrases and openings. It belongs to a topic if
at least `MIN_PROBES` of its probes use it and at least `CONCENTRATION` of all probes that use it are of that topic. Its
weight is the log of the ratio of two rates: how many of the topic's probes use it, and how many of the other probes.
Topics whose terms are everyday words have few such terms, so `KEY_TERMS` adds phrases for the built-in panel's topics,
and a caller may add more for any topic. A text is on the topic with the highest sum of weights, if that is at least
`THRESHOLD` and one of the matched terms is not an everyday word. The matched terms are reported, so that a reader can
see why a row was taken.

Precision comes before recall: rows that are missed make an interval wider, rows on other matters make an estimate
wrong. Measured on texts from other sources: docs/panel.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vdengine.errors import InputError
from vdengine.outside import json_object, printable
from vdengine.panels.panel import Panel, Probe
from vdengine.panels.vocabulary import EVERYDAY, FILLERS, KEY_TERMS
from vdengine.panels.words import content_words
from vdengine.settings import shown

OFF_TOPIC = "off-topic"  # the topic of control probes on trivial matters
MIN_PROBES = 2  # of a topic that use a term of it
CONCENTRATION = 0.7  # share of the topic's probes in all probes that use the term
THRESHOLD = 3.0  # sum of weights at which a text is on a topic
KEY_WEIGHT = 4.0  # of a key term, at least


def load_terms(path: str | Path) -> dict[str, list[str]]:
    """More key terms, from a JSON file {"topic": ["phrase", ...]}.

    Raises:
        InputError: the file cannot be read, or is not of this form.
    """
    value = json_object(path)
    if not all(
        isinstance(phrases, list) and all(isinstance(phrase, str) for phrase in phrases) for phrases in value.values()
    ):
        raise InputError(f'{printable(path)}: must be a JSON object of lists of phrases, {{"topic": ["phrase", ...]}}')
    return value


class Match(NamedTuple):
    """The topic of a text."""

    topic: str | None  # None: none of the panel's
    score: float  # sum of its terms' weights
    terms: tuple[str, ...]  # of the topic, that the text has


class TopicMatcher:
    """Matches texts to the topics of a panel.

    Args:
        keys: more phrases by topic, of up to four words each.

    Raises:
        InputError: a topic that the panel does not have, or a phrase of more words.
    """

    def __init__(self, panel: Panel, keys: Mapping[str, Sequence[str]] | None = None) -> None:
        self.topics = panel.topics
        for topic in keys or {}:
            if topic not in self.topics:
                raise InputError(
                    f"terms: panel {panel.name} has no topic {shown(topic)}; it has {', '.join(self.topics)}"
                )
        self.weights: dict[str, dict[str, float]] = defaultdict(dict)  # by term, by topic
        # Probes that use a term: by topic, and in all.
        counts = {t: Counter(term for p in panel.probes if p.topic == t for term in _terms(p)) for t in self.topics}
        total: Counter[str] = Counter()
        for of_topic in counts.values():
            total.update(of_topic)
        num_probes = Counter(probe.topic for probe in panel.probes)
        for topic, of_topic in counts.items():
            for term, count in of_topic.items():
                others = total[term] - count
                if count < MIN_PROBES or count < CONCENTRATION * (count + others):
                    continue
                rate = (count + 0.5) / (num_probes[topic] + 1)
                rate_of_others = (others + 0.5) / (len(panel.probes) - num_probes[topic] + 1)
                weight = math.log(rate / rate_of_others) * min(1.0, math.sqrt(count / 6))  # less for few probes
                if weight > 0:
                    self.weights[term][topic] = weight * (0.5 if _is_everyday(term) else 1.0)
        self.keys: set[str] = set()  # key terms of any topic
        for topic in self.topics:
            for phrase in (topic, *KEY_TERMS.get(topic, ()), *(keys or {}).get(topic, ())):
                words = tuple(words_of(phrase))
                if not 1 <= len(words) <= _LONGEST:
                    if phrase == topic:
                        continue
                    raise InputError(f"terms: {shown(phrase)} of topic {shown(topic)} must have 1 to {_LONGEST} words")
                term = " ".join(words)
                if phrase == topic and _is_everyday(term):
                    continue
                self.keys.add(term)
                self.weights[term][topic] = max(KEY_WEIGHT, self.weights[term].get(topic, 0.0))

    def match(self, text: str) -> Match:
        """The topic of one text."""
        score: dict[str, float] = defaultdict(float)
        matched: dict[str, list[str]] = defaultdict(list)  # terms by topic
        decided: set[str] = set()  # topics with a term that is not an everyday word
        for term in dict.fromkeys(_grams(words_of(text))):
            for topic, weight in self.weights.get(term, {}).items():
                score[topic] += weight
                matched[topic].append(term)
                if term in self.keys or not _is_everyday(term):
                    decided.add(topic)
        candidates = [topic for topic in self.topics if topic in decided and score[topic] >= THRESHOLD]
        if not candidates:
            return Match(None, 0.0, ())
        best = max(candidates, key=lambda topic: score[topic])
        return Match(best, score[best], tuple(matched[best]))


# ------------------------------------------------------------------------------------------------------ terms

_LONGEST = 4  # words of a key phrase
_SUFFIXES = ("ing", "ed", "es", "s", "ly", "e")


def stem(word: str) -> str:
    """A light stemmer: strips plural and verb endings, so that a word matches its own forms and few others."""
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4 and not word.endswith("ss"):
            return word[: -len(suffix)]
    return word


def words_of(text: str) -> list[str]:
    """Stems of all words of a text, in order; function words as they are."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("\u2019", "'"))
    return [w if is_filler(w) else stem(w) for w in words]


def _grams(words: Sequence[str]) -> Iterator[str]:
    """Runs of 1 to `_LONGEST` adjacent words."""
    for i in range(len(words)):
        for n in range(1, min(_LONGEST, len(words) - i) + 1):
            yield " ".join(words[i : i + n])


def _terms(probe: Probe) -> set[str]:
    """Words and pairs of adjacent words of a probe, without function words."""
    terms: set[str] = set()
    for text in (probe.prompt, *probe.paraphrases, *(branch.text for branch in probe.branches())):
        words = [None if is_filler(w) else w for w in words_of(text)]
        terms.update(w for w in words if w)
        terms.update(f"{a} {b}" for a, b in zip(words, words[1:], strict=False) if a and b)
    return terms


@lru_cache(maxsize=1 << 16)
def is_filler(word: str) -> bool:
    """Whether a word carries no subject matter."""
    return len(word) < 3 or word in FILLERS or not content_words(word)


def _is_everyday(term: str) -> bool:
    return term in _everyday() or (term.endswith("s") and term[:-1] in _everyday())


@lru_cache(maxsize=1)
def _everyday() -> frozenset[str]:
    """Stems of everyday words."""
    return frozenset(map(stem, EVERYDAY.split()))
