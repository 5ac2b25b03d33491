"""Leads: the words with which an answer takes a side at once, yes and no unless a panel has others.

The lead of an answer is read off the model's probabilities: the sum over all ways to spell the word at the start of an
answer ("Yes", " yes", "YES"). Which tokens those are depends on the tokenizer and on the chat template, so they are
found by rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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


YES_NO = Leads(("yes",), ("no",))  # this object: a probe whose panel says nothing of leads


def lead_words(spelled: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """What a lead of either side is called in texts: "yes" and "no"; of several words the first two, as "yes/ja".

    Args:
        spelled: (stance, spelling) of leads, in any case and with marks around them.
    """
    words: dict[str, list[str]] = {"support": [], "oppose": []}
    for stance, text in spelled:
        if (word := text.strip(_AROUND).casefold()) not in words[stance]:
            words[stance].append(word)
    support, oppose = ("/".join([*each[:2], *["..."] * (len(each) > 2)]) for each in words.values())
    return support, oppose


class Spelling(NamedTuple):
    """One way to begin an answer with a lead."""

    stance: str  # "support" | "oppose"
    text: str
    ids: tuple[int, ...]


# What may stand before an answer's first word, and around it within its first token.
_BEFORE = ("", " ", "\n", "\n\n", '"', "'", "\u201c", "*", "**", "_", "(")
_AROUND = " \t\n\"'\u201c\u201d*_(:.,!"
_CASES = (str.capitalize, str, str.lower, str.upper)
_MOST_TOKENS = 2  # of a spelling: "Disagree" is two; a tokenizer that cuts yes into more has no words


def spellings(leads: Leads, renderer: Renderer) -> list[Spelling]:
    """The ways to begin an answer with these leads, in a fixed order, none twice.

    A way is a case and what stands before the word ("Yes", " yes", "YES", a quote before it). It counts if the words of
    both sides can be spelled so, each by one token or two, with nothing in front of the first: what one side alone has
    would count for it and not against it.

    Raises:
        InputError: a word that takes more tokens at the start of an answer; leads of which one begins the other.
    """
    sides = [(stance, word) for stance in ("support", "oppose") for word in getattr(leads, stance)]
    found: dict[tuple[int, ...], Spelling] = {}
    for number, (mark, case) in enumerate((mark, case) for mark in _BEFORE for case in _CASES):
        ways = [_way(stance, word, mark + case(word), renderer) for stance, word in sides]
        lacking = [word for way, (_, word) in zip(ways, sides, strict=True) if way is None]
        if lacking and not number:  # the plainest way, which every tokenizer of words has
            raise InputError(
                f"{renderer.tokenizer.source}: {lacking[0].capitalize()!r} takes more than {_MOST_TOKENS} tokens at "
                f"the start of an answer under {renderer.name}, so the lead of answers cannot be read; give the panel "
                "other leads, or leave 'lead' out of the readouts"
            )
        if not lacking:
            for way in ways:
                if way is not None and (other := found.setdefault(way.ids, way)).stance != way.stance:
                    raise InputError(f"leads {other.text!r} and {way.text!r} of both sides are the same tokens")
    for ids, long in found.items():
        if len(ids) > 1 and (short := found.get(ids[:1])) is not None:
            raise InputError(f"lead {long.text!r} begins with the lead {short.text!r}: answers would count twice")
    return list(found.values())


def _way(stance: str, word: str, text: str, renderer: Renderer) -> Spelling | None:
    """A way to spell a word; None where its tokens are too many, or the first is a mark alone."""
    ids = renderer.opening_ids(text)
    if len(ids) > _MOST_TOKENS:
        return None
    decoded = renderer.tokenizer.decode(ids)
    first = renderer.tokenizer.decode(ids[:1])
    if decoded.strip(_AROUND).casefold() != word.casefold() or not first.strip(_AROUND):
        return None
    return Spelling(stance, decoded, tuple(ids))


# Common words of English that its neighbours do not have, and common words of others that English does not have.
_ENGLISH = frozenset(
    """the and that it with are be this has not or should would could our their people who what how does can than you
    your they about if when which more must think why because ought shouldn isn doesn of is to do we there from by my
    any all it's""".split()
)
_OTHERS = frozenset(
    """der das und ist nicht sollte sollten werden ein eine einen mehr unser unsere sind wir kann soll oder auch den dem
    le les des et est une dans pour que qui devrait devraient plus nous notre doit faut sont au aux sur
    el los las es una para por deber\u00eda deber\u00edan nuestro nuestra m\u00e1s hay del se
    il gli della di \u00e8 pi\u00f9 per che dovrebbe dovrebbero nel alla sono \u00e8 anche nostro
    os uma mais n\u00e3o deve deveria deveriam pelo nosso nossa dos das ao
    het een niet moeten zouden moet voor onze meer zijn wij worden van zou
    det \u00e4r och inte ett ska att b\u00f6r er og ikke et skal b\u00f8r til av f\u00f6r vi som
    czy jest nie powinien powinno powinna si\u0119 na do\u015b\u0107 oraz przez
    onko pit\u00e4isi ei ja mi m\u0131 bir ve daha i\u00e7in by m\u011bl m\u011bla jsou nebo ar trebui \u0219i mai
    kell egy nem hogy apakah harus yang tidak bi li trebao treba els una amb""".split()
) - frozenset("do by per via das".split())


def is_english(texts: Iterable[str]) -> bool:
    """Whether these questions, taken together, may be English: False on the evidence of another language alone."""
    texts = list(texts)
    letters = [c for text in texts for c in text if c.isalpha()]
    if sum(c > "\u024f" for c in letters) > len(letters) / 2:  # beyond Latin letters
        return False
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())]
    return sum(word in _OTHERS for word in words) <= sum(word in _ENGLISH for word in words)
