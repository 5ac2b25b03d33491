"""Which rows of a data file an audit reads: those whose question is on a topic of the panel."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vdengine.data.examples import Conversation, Preference, is_scored
from vdengine.data.formats import choose_format, read
from vdengine.data.locate import resolve
from vdengine.errors import InputError
from vdengine.panels.topics import TopicMatcher

_MAX_BYTES = 800  # of a question or an answer that is read: a side is taken early, if at all


class Passage(NamedTuple):
    """An answer to a question on a topic."""

    topic: str
    question: str
    answer: str


class AuditRow(NamedTuple):
    """A row of the file that is on a topic, with one answer (SFT) or two (chosen, rejected)."""

    where: str  # file and line
    topic: str
    terms: tuple[str, ...]  # that matched the topic; () where the row names its topic itself
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """The rows of a file that an audit reads, and what it leaves out."""

    rows: list[AuditRow]
    usable: int  # rows of the file that can be trained on
    on_topic: Counter[str]  # usable rows by topic; `rows` may be fewer
    dropped: Counter[str]  # rows that cannot be trained on, by reason


def sample(
    source: str,
    kind: str,
    matcher: TopicMatcher,
    *,
    format: str = "auto",
    topics: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Sample:
    """Find the rows of a source that are on a topic.

    Of a pair the answers to its last question are read, of a conversation the first answer to a question on a topic.
    Turns before the question are not read: in real chats they are mostly about something else.

    Args:
        kind: "preference" or "sft".
        format: of the source; "auto": by its content.
        topics: only these.
        limit: at most this many rows of a topic are read, chosen by the seed.

    Raises:
        InputError: a source or a row that cannot be read; a topic that the panel does not have.
    """
    for topic in topics or ():
        if topic not in matcher.topics:
            raise InputError(f"unknown topic {topic!r}; the panel has {', '.join(matcher.topics)}")
    data = resolve(source)
    format = choose_format(data, format, kind)
    dropped: Counter[str] = Counter()
    by_topic: dict[str, list[tuple[bytes, int, AuditRow]]] = {}  # (random key, row number, row)
    usable = 0
    for row in read(data, format, kind, dropped):
        usable += 1
        given = row.topic if row.topic in matcher.topics else None
        for question, answers in _questions(row.example):
            row_topic, terms = given, tuple[str, ...]()
            if row_topic is None:
                row_topic, _, terms = matcher.match(question)
            if row_topic is not None and (topics is None or row_topic in topics):
                key = hashlib.blake2b(f"{seed}:{row.number}".encode(), digest_size=8).digest()
                audit_row = AuditRow(row.where, row_topic, terms, question, answers)
                by_topic.setdefault(row_topic, []).append((key, row.number, audit_row))
                break
    counts = Counter({topic: len(rows) for topic, rows in by_topic.items()})
    rows = []
    for topic in matcher.topics:
        chosen = sorted(by_topic.get(topic, []))[:limit]
        rows += [row for *_, row in sorted(chosen, key=lambda item: item[1])]
    return Sample(rows, usable, counts, dropped)


def _questions(example: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(question, answers) of each turn of a training example that could be read."""
    if isinstance(example, Preference):
        yield example.prompt[-1]["content"], (example.chosen["content"], example.rejected["content"])
    elif isinstance(example, Conversation):
        last = len(example.messages) - 1
        question = None
        for i, message in enumerate(example.messages):
            if message["role"] == "user":
                question = message["content"]
            elif (
                question
                and message["role"] == "assistant"
                and (i == last or not example.last_only)
                and is_scored(message)
            ):
                yield question, (message["content"],)


def head_of(text: str) -> str:
    """The first sentences of a text, up to `_MAX_BYTES`."""
    text = " ".join(text.split())
    if len(text.encode()) <= _MAX_BYTES:
        return text
    cut = text.encode()[:_MAX_BYTES].decode(errors="ignore")
    end = max(cut.rfind(mark) for mark in (". ", "! ", "? ", "\u3002"))
    return cut[: end + 1] if end > len(cut) // 4 else cut
