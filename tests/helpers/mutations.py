"""Changes of JSON values and bytes as an attacker, or a damaged disk, would make them, from a seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vdengine.errors import InputError

VALUES: list[Any] = [
    None, True, False, "false", "", "x", 0, -1, 1, 2, 1.5, float("nan"), float("inf"), 1e-320, 1e308, 10**30, -(10**30),
    2**31, 2**32 - 1, 2**63, 10**400, [], [1], {}, {"a": 1}, [[[]]], "\ud800", "\x00", "linear", "yarn", ["default"],
]  # fmt: skip


def mutate(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three places taken away or replaced."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        if rng.random() < 0.25:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def damage(data: bytes, rng: random.Random, within: int) -> bytes:
    """The bytes with one to four of the first `within`, or runs of eight, replaced; sometimes cut short."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(within)
        if rng.random() < 0.3:
            changed[at : at + 8] = rng.choice((2**64 - 1, 2**63, 2**60, 2**40, 2**31, 0, 1, 33)).to_bytes(8, "little")
        else:
            changed[at] = rng.choice((0, 1, 2, 4, 8, 9, 127, 255, rng.randrange(256)))
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def read_or_refused(read: Callable[[], object]) -> bool:
    """Whether `read` came to an end; else it must have raised an InputError of one printable line."""
    try:
        read()
    except InputError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 800
        text.encode()
        return False
    except BaseException as error:
        pytest.fail(f"{type(error).__name__}: {error}")
    return True


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    for key, inner in items[:40]:
        yield value, key
        yield from _places(inner)
