"""The content words of a text, by which questions, topics and answers are compared."""

from __future__ import annotations

import re

# Words without subject matter; left out when two questions are compared.
_FUNCTION_WORDS = frozenset(
    """a about all also am an and any are as at be been before being but by can could did do does for from
    get give had has have having how i if in into is it its just like make may me might more most much must
    my of on or ought our out over should so some such than that the their them then there these they this
    those to too under up us very was we were what when where which while who whom whose why will with would
    you your think believe opinion view support favour agree right good idea country government people
    state""".split()
)


def content_words(text: str) -> frozenset[str]:
    """The lower-case words of `text` less function words and the usual words of an opinion question."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("\u2019", "'"))
    return frozenset(w for w in words if w not in _FUNCTION_WORDS)


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity of two word sets, 0 to 1; 0 when both are empty."""
    union = len(a | b)
    return len(a & b) / union if union else 0.0
