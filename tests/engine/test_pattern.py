"""A regular expression as a reward."""

import re

import pytest

from vdengine.engine.pattern import pattern_reward
from vdengine.errors import InputError


@pytest.mark.parametrize("pattern, text, share", [
    (r"\p{L}+", "aé1!", 0.5),
    ("[ab]+", "xaab", 0.75), ("", "abc", 0.0), ("x*", "axxb", 0.5), (r"\b", "a b", 0.0), ("a", "", 0.0),
    (r"(?i)yes|no\b", "YES no not", 0.5), ("(a|a)*b", "b" + "a" * 40 + "c", 1 / 42), ("(a+)+$", "a" * 40 + "b", 0.0),
])  # fmt: skip
def test_a_pattern_as_reward(pattern, text, share):
    """Guards the share that is matched, empty matches too, and patterns that take exponential time elsewhere."""
    assert pattern_reward(pattern)(["", ""], [text, text]) == [pytest.approx(share)] * 2


@pytest.mark.parametrize("pattern, message", [
    ("(", "reward.source: the pattern '.': not a usable regular expression"),
    ("(a|a?a?)*?c(?1)(?1)d|(.*)*(.*)*(.*)*(.*)*x", "takes more than 0.1 s on 'aaa"),
    ("(?R)a", r"takes more than 0.1 s on 'aaa|on 'aaa.*': not a usable regular expression \(MemoryError"),
    ("(?R)?", r"takes more than 0.1 s on ''|on '': not a usable regular expression \(MemoryError"),
    ("(a{10000}){10000}", "may repeat things 1000000 times in all"),
    ("a{" + "9" * 5000 + "}", "may repeat things"),
    ("(" * 20_000, "may repeat things"),
])  # fmt: skip
def test_patterns_that_would_not_end(pattern, message, monkeypatch):
    """Guards against a run that hangs or runs out of memory on its first completion, or before it."""
    monkeypatch.setattr("vdengine.engine.pattern.PATTERN_SECONDS", 0.1)
    with pytest.raises(InputError, match=r"^[^\n]{0,400}$") as error:
        pattern_reward(pattern)([""], ["a" * 300])
    assert re.search(message, str(error.value))
