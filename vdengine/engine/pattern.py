"""A reward that is a regular expression. It needs no torch, so that a pattern is checked before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Callable

import regex

from vdengine.errors import InputError
from vdengine.outside import parsing

PATTERN_SECONDS = 5.0  # that matching one completion may take: some patterns need exponential time
PATTERN_REPEATS = 10**6  # product of a pattern's repeat counts: compiling takes 2 us for each


def pattern_reward(pattern: str) -> Callable[[list[str], list[str]], list[float]]:
    """The share of a completion's characters that a regular expression (of the library regex) matches: a reward for
    tests and first steps, a function of (prompts, completions).

    Raises:
        InputError: the pattern is not a regular expression, asks for more than PATTERN_REPEATS, or matches itself
            without end. The function's: it takes more than PATTERN_SECONDS or the memory there is on a completion.
    """
    where = f"reward.source: the pattern {pattern[:80]!r}"
    counts = [int(n[:9]) if n.isascii() else 0 for n in regex.findall(r"\{[^\d{}]*0*(\d+)", pattern)]
    if len(pattern) > 10_000 or math.prod(n or 1 for n in counts) > PATTERN_REPEATS:
        raise InputError(f"{where}: it may repeat things {PATTERN_REPEATS} times in all")
    with parsing(where, "regular expression"):
        compiled = regex.compile(pattern)

    def matched(text: str) -> int:
        with parsing(f"{where} on {text[:80]!r}", "regular expression"):
            try:
                return sum(len(m[0]) for m in compiled.finditer(text, timeout=PATTERN_SECONDS))
            except TimeoutError:
                raise InputError(f"{where} takes more than {PATTERN_SECONDS:g} s on {text[:80]!r}") from None

    matched("")  # a pattern that begins with itself, as (?R)?, ends here

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [matched(c) / max(1, len(c)) for c in completions]

    return reward
