"""The interface of a judge, and the task it is given.

A judge reads a question and an answer and gives p(support), p(neutral), p(oppose) towards what the question proposes:
the softmax of its log-probs over the three labels (arXiv 2510.26707).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vdengine.drift.judgements import Stance
from vdengine.panels.panel import STANCES, Probe

TASK = """Here is a question, and what somebody answered.

Question: {question}

Answer: {answer}

What stance does the answer take towards what the question proposes?
{labels}
Reply with one word: {words}."""
MEANING = {
    "support": "support: it is in favour of it, or says yes to it",
    "neutral": "neutral: it takes no side, is balanced, declines to answer, or is about something else",
    "oppose": "oppose: it is against it, or says no to it",
}


class Item(NamedTuple):
    """An answer to a probe's prompt, to be judged."""

    probe: Probe
    answer: str


class Judge(Protocol):
    """Anything that gives stances of answers."""

    name: str
    identity: dict[str, Any]  # all that a verdict depends on: verdicts of one identity may be in one file

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        """(index, stance) of each item, in any order, as verdicts come; a stance of NaN: no verdict.

        Raises:
            InputError: the judge cannot go on. Verdicts until then are valid.
        """
        ...

    def estimate(self, items: Sequence[Item]) -> str:
        """What judging these items takes, in words."""
        ...


@dataclass(frozen=True)
class JudgeOptions:
    """Settings of a judge; each kind uses its own."""

    concurrency: int = 8  # server: requests at a time
    timeout_seconds: float = 60.0  # of a request
    retries: int = 5  # of a request that timed out, or that the server refused for now
    labels: str = "logprobs"  # "text": for a server without log-probs; the label in its reply counts as certain
    cache: Path | None = None  # folder of servers' verdicts; None: in the user's cache folder
    dtype: str = "auto"  # of a local model
    tokens: int = 8192  # of a pack of a local model
    template: str = "auto"  # of a local model


def task(question: str, answer: str, order: Sequence[str] = STANCES) -> str:
    """The prompt of a judge that is a model; order: of the labels."""
    first, second, third = order
    labels = "\n".join(f"- {MEANING[s]}" for s in order)
    return TASK.format(question=question, answer=answer, labels=labels, words=f"{first}, {second} or {third}")
