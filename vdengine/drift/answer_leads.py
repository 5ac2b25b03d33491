"""The lead of a sampled answer: the side that its first word takes, and the rest, which is what it argues.

An answer leads with a side where its first word is one of its probe's leads (`panels/leads.py`: yes and no, unless the
panel has others), whatever its case and whatever marks stand around it: "Yes.", "**No**,", "\u201cNO\u201d". Repeated
leads are one ("No, no, never"). What only looks like a lead is none:

    "No one", "No country should"   a "no" that belongs to the next word: without a mark after it, a word that begins a
                                    clause must follow ("No it is not", "No I don't")
    "No-brainer", "Yes-men", "No. 1"
    "Yes and no", "Yes/No"          both sides at once

The lead readout sums over first tokens instead, before it is known what follows. So it differs: it counts what only
looks like a lead; and it does not count a lead behind a mark that is a token of its own ("**", a quote).
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


_QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_MARKS = rf"[\s*_#>~()\[\]{_QUOTES}]"
_STOPS = rf"[\s*_#>~()\[\]{_QUOTES}.,:;!?\u2026\u2013\u2014-]"  # before a lead, and between it and the rest
# What must follow a "no" that is no determiner: a stop, a quote or the end, or a word that begins a clause.
_AFTER_NO = re.compile(
    rf"[\s*_]{{0,8}}(?:$|[\n{_QUOTES}().,:;!?\u2026\u2013\u2014-])|[\s*_]{{1,8}}(?:i|i'm|i'd|i've|it|it's|its|we|we're|you|he|"
    r"she|they|they're|this|that|that's|there|there's|these|those|the|a|an|my|our|your|their|because|since|as|but|and|if|"
    r"no|not|while|although|though|thanks|thank|please|sir)\b",
    re.I,
)


@lru_cache(maxsize=64)
def _pattern(leads: Leads) -> re.Pattern[str]:
    """One lead and what stands before it; its word is in the group `support` or `oppose`."""

    def sided(name: str, words: tuple[str, ...], others: tuple[str, ...]) -> str:
        mine, theirs = ("|".join(re.escape(w) for w in sorted(ws, key=len, reverse=True)) for ws in (words, others))
        # The word alone: not the beginning of a longer one, of a number ("No. 1") or of "yes and no", "yes/no".
        return (
            rf"(?P<{name}>{mine})(?!\w|['\u2019-]\w|\.?\s?\d)"
            rf"(?!{_MARKS}{{0,8}}(?:/|,?\s?\b(?:and|or)\b){_MARKS}{{0,8}}(?:{theirs})\b)"
        )

    support, oppose = sided("support", leads.support, leads.oppose), sided("oppose", leads.oppose, leads.support)
    return re.compile(rf"{_STOPS}*(?:{support}|{oppose})", re.I)


def split_lead(answer: str, leads: Leads = YES_NO) -> Parts:
    """The side that an answer begins with, and the rest of it; leads: of its probe."""
    side, end = 0, 0
    while (found := _pattern(leads).match(answer, end)) is not None:
        word = found["support"] or found["oppose"]
        sign = 1 if found["support"] else -1
        if (side and sign != side) or (word.lower() == "no" and not _AFTER_NO.match(answer, found.end())):
            break
        side, end = sign, found.end()
    if not side:
        return Parts(0, answer)
    rest = re.sub(rf"^{_STOPS}+", "", answer[end:])
    return Parts(side, rest if re.search(r"\w", rest) else "")
