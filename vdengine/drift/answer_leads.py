"""The lead of a sampled answer: the side that its first word takes, and the rest, which is what it argues.

An answer leads with a side where its first word is one of its probe's leads (`panels/leads.py`: yes and no, unless the
panel has others), whatever its case and whatever marks, tags, number or "Answer:" stand before it: "Yes.", "**No**,",
"<b>No", "1. Yes". Repeated leads are one ("No, no, never"). What only looks like a lead is none:

    "No one", "No country should"   an English "no" that belongs to the next word: without a mark after it, a word that
                                    begins a clause must follow ("No it is not", "No I don't")
    "No. 1"                         a number's "no": on its line a whole number and nothing of its own follows ("No.
                                    18-year-olds can" and "No. 90% do" are leads)
    "No-brainer", "Yes-men"
    "Yes and no", "Yes/No"          both sides at once: with "and", "or" or a sign between them; or with any one short
    "Ja und nein.", "Yes but no"    word, where nothing follows the second in its clause ("Yes, I no longer" is a lead)

A lead is a word that no letter touches. So where a language does without spaces, or says yes in several words, a panel
names each ("\u662f" and "\u662f\u7684").

The lead readout sums over spellings at the start instead, before it is known what follows. So it differs: it counts
what only looks like a lead; and it does not count a lead behind a mark that is a token of its own ("**", a quote), a
number or "Answer:".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from vdengine.panels.leads import YES_NO, Leads


class Parts(NamedTuple):
    """An answer in two."""

    side: int  # +1: it begins with a lead for what the question proposes; -1: against; 0: with neither
    rest: str  # without its lead and the marks around it; the whole answer where it has none, "" for a lead alone


_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb\u300c\u300d\u300e\u300f"
_STOP = ".,:;!?\u2026\u2013\u2014\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f\u00a1\u00bf"
_BRACKETS = r"()\[\]\uff08\uff09"
_MARKS = rf"[\s*_#>~{_BRACKETS}{_QUOTES}]"
# Before a lead, and between it and the rest.
_STOPS = rf"(?:[\s*_#>~{_BRACKETS}{_QUOTES}{_STOP}-]|</?[a-z]{{1,10}}\s?/?>)"
# What an answer may begin with, before its first word: a number of a list, the word "answer".
_BEGINNING = re.compile(rf"{_STOPS}*(?:\d{{1,2}}[.)]\s{_STOPS}*)?(?:answer[\s*_]{{0,8}}:)?", re.I)
# What must follow a "no" that is no determiner: a stop, a quote or the end, or a word that begins a clause.
_AFTER_NO = re.compile(
    rf"[\s*_]{{0,8}}(?:$|[\n<{_QUOTES}{_BRACKETS}{_STOP}-])|[\s*_]{{1,8}}(?:i|i'm|i'd|i've|it|it's|its|we|we're|you|he|"
    r"she|they|they're|this|that|that's|there|there's|these|those|the|a|an|my|our|your|their|because|since|as|but|and|if|"
    r"no|not|while|although|though|thanks|thank|please|sir)\b",
    re.I,
)


@lru_cache(maxsize=64)
def _pattern(leads: Leads) -> re.Pattern[str]:
    """One lead and what stands before it; its word is in the group `support` or `oppose`."""

    def sided(name: str, words: tuple[str, ...], others: tuple[str, ...]) -> str:
        mine, theirs = ("|".join(re.escape(w) for w in sorted(ws, key=len, reverse=True)) for ws in (words, others))
        # The word alone: not the beginning of a longer one, or of "yes and no", "yes/no".
        return (
            rf"(?P<{name}>{mine})(?!\w|['\u2019-]\w)"
            rf"(?!{_MARKS}{{0,8}}(?:[/|&+\uff0f]|,?\s?\b(?:and|or)\b){_MARKS}{{0,8}}(?:{theirs})\b)"
            rf"(?!{_MARKS}{{0,8}},?\s?\b\w{{1,4}}\b{_MARKS}{{0,8}}(?:{theirs})\b(?:{_MARKS}{{0,8}}[{_STOP}]|\s{{0,8}}$))"
        )

    support, oppose = sided("support", leads.support, leads.oppose), sided("oppose", leads.oppose, leads.support)
    return re.compile(rf"{_STOPS}*(?:{support}|{oppose})", re.I)


# A number's "no": "No. 1", "No 1 priority"; not "No. 90%", "No. 18-year-olds", "No.\n1. First,".
_NUMBER = re.compile(r"\.?[^\S\r\n]?\d{1,9}\b(?![%\u2030\u00b0-]|[.,]\d)")


def _belongs(answer: str, end: int) -> bool:
    """Whether an English "no" that ends here belongs to what follows it."""
    return _NUMBER.match(answer, end) is not None or not _AFTER_NO.match(answer, end)


def split_lead(answer: str, leads: Leads = YES_NO) -> Parts:
    """The side that an answer begins with, and the rest of it; leads: of its probe."""
    side, end = 0, len(found[0]) if (found := _BEGINNING.match(answer)) else 0
    while (found := _pattern(leads).match(answer, end)) is not None:
        sign = 1 if found["support"] else -1
        if (side and sign != side) or (leads == YES_NO and sign < 0 and _belongs(answer, found.end())):
            break
        side, end = sign, found.end()
    if not side:
        return Parts(0, answer)
    rest = re.sub(rf"^{_STOPS}+", "", answer[end:])
    return Parts(side, rest if re.search(r"\w", rest) else "")
