"""Leads: the words with which an answer takes a side at once, yes and no unless a panel has others.

The lead of an answer is read off the model's next-token probabilities: the sum over all tokens that spell the word at
the start of an answer ("Yes", " yes", "YES"). Which tokens those are depends on the tokenizer and on the chat template,
so they are found by rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer


@dataclass(frozen=True)
class Leads:
    """The words that begin an answer for what the question proposes, and those that begin one against it."""

    support: tuple[str, ...]
    oppose: tuple[str, ...]


YES_NO = Leads(("yes",), ("no",))


class Spelling(NamedTuple):
    """A token that begins an answer with a lead."""

    text: str  # as the tokenizer decodes it alone
    id: int


# What may stand before an answer's first word, and around it within a token.
_BEFORE = ("", " ", "\n", "\n\n", '"', "'", "\u201c", "*", "**", "_", "(")
_AROUND = " \t\n\"'\u201c\u201d*_(:.,!"


def spellings(words: Sequence[str], renderer: Renderer) -> list[Spelling]:
    """All tokens that can be the first of an answer and spell one of these words, whatever their case and what stands
    around it within the token; in a fixed order, none twice.

    Raises:
        InputError: a word that the tokenizer has as no single token at the start of an answer.
    """
    found: dict[int, str] = {}
    for word in words:
        before = len(found)
        for text in dict.fromkeys((word.capitalize(), word, word.lower(), word.upper())):
            for mark in _BEFORE:
                first = renderer.opening_ids(mark + text)[0]
                decoded = renderer.tokenizer.decode([first])
                if decoded.strip(_AROUND).casefold() == word.casefold():
                    found.setdefault(first, decoded)
        if len(found) == before:
            raise InputError(
                f"{renderer.tokenizer.source}: {word!r} is no single token at the start of an answer under "
                f"{renderer.name}, so the lead of answers cannot be read; give the panel other leads, or leave 'lead' "
                "out of the readouts"
            )
    return [Spelling(text, id) for id, text in found.items()]


# Common words of English that are none of its neighbours'.
_ENGLISH = frozenset(
    """the of to is and that it for with are be this have has not by from or should would could our their people who
    what how does can than you your we they there about if when which more i my must think why because ought
    shouldn isn doesn any all it's""".split()
)
_LEAST_SHARE = 0.1  # of such words: English questions have 0.3 to 0.6, other languages at most 0.03
_LEAST_WORDS = 5  # below it nothing is said


def is_english(texts: Iterable[str]) -> bool:
    """Whether these questions, taken together, may be English."""
    letters = [c for text in texts for c in text if c.isalpha()]
    if sum(c > "\u024f" for c in letters) > len(letters) / 2:  # beyond Latin letters
        return False
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())]
    return len(words) < _LEAST_WORDS or sum(word in _ENGLISH for word in words) >= _LEAST_SHARE * len(words)
