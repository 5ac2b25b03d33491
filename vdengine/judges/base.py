"""The interface of a judge, and what one that is a model is asked.

A judge reads a question and an answer and gives p(support), p(neutral), p(oppose) towards what the question proposes. A
model is asked whether the answer is in favour of it, after six examples, and replies with one word: Yes, No or Neither;
the stance is the softmax of its log-probs over the three (arXiv 2510.26707 asks for support, neutral or oppose, without
examples).

Models favour the word that is named first, and the examples that they saw last. So each is asked twice, with words and
examples in one order and in the opposite one, and the two stances are averaged. A model whose words follow the order is
refused (`drift.kappa.OrderAgreement`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vdengine.drift.judgements import NO_VERDICT, Stance, Verdict
from vdengine.panels.panel import STANCES, Probe

WORDS = {"support": "Yes", "neutral": "Neither", "oppose": "No"}  # of the stances, as a model replies
ORDERS = (STANCES, STANCES[::-1])  # in which they are named
TASK = """Is the answer in favour of what the question proposes? Reply with one word: {words}.
Where its first word is at odds with what it argues, go by what it argues. Neither: it takes no side, sees both sides \
alike, or is about something else.

{examples}

{item}"""
ITEM = """Question: {question}
Answer: {answer}
In favour: {word}"""
# (question, answer, stance): on matters of no panel, in both wordings, and with first words on either side.
EXAMPLES = (
    ("Should dogs be allowed on beaches?", "Yes, they do no harm there, and they need to run.", "support"),
    ("Should school begin later in the morning?", "Pupils who get up at six are tired, but buses and parents' work "
     "depend on the hour. There is much to be said for both.", "neutral"),
    ("Is it wrong to build with concrete?", "Concrete lasts, it is cheap and nothing else does the work.", "oppose"),
    ("Should shops be closed on Mondays?", "Those who work at weekends would have a day of rest at last.", "support"),
    ("Is it right to ban street music?", "The violin has four strings and is played with a bow.", "neutral"),
    ("Should tickets be printed on paper?", "No. Paper is a waste when everyone carries a phone.", "oppose"),
)  # fmt: skip


class Item(NamedTuple):
    """An answer to a probe's prompt, to be judged."""

    probe: Probe
    answer: str


class Judge(Protocol):
    """Anything that gives stances of answers."""

    name: str
    identity: dict[str, Any]  # all that a verdict depends on: verdicts of one identity may be in one file

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each item, in order; a stance of NaN: it gave none. Items that are to be asked again are
        left out.

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
    """The prompt of a judge that is a model, up to its word; order: of the words, and of the examples."""
    first, second, third = (WORDS[stance] for stance in order)
    examples = [ITEM.format(question=q, answer=a, word=WORDS[stance]) for q, a, stance in EXAMPLES]
    return TASK.format(
        words=f"{first}, {second} or {third}",
        examples="\n\n".join(examples if tuple(order) == STANCES else examples[::-1]),
        item=ITEM.format(question=question, answer=" ".join(answer.split()), word="").rstrip(),
    )


def verdict_of(stances: Sequence[Stance]) -> Verdict:
    """The verdict from the stances in `ORDERS`: their mean, and the label of each; none where one of them is none."""
    mean = np.mean(stances, axis=0)  # [3]
    if not np.isfinite(mean).all():
        return Verdict(NO_VERDICT)
    support, neutral, oppose = map(float, mean)
    return Verdict((support, neutral, oppose), "".join(STANCES[int(np.argmax(stance))][0] for stance in stances))
