"""Settings from tables: dataclasses whose fields say their default and what is allowed, and one-line errors.

    @dataclass
    class Settings:
        beta: float = key(0.1, above=0)  # what it does

A table (of a TOML file, or a dictionary) is read into one by `read_section`: an unknown name, another type or a value
out of range is an `InputError` that names file, line and key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Any

from vdengine.errors import InputError
from vdengine.outside import is_text, printable

MOST = 2**31 - 1  # of a whole number whose key names no bound: what counts tokens, rows and ranks has 32 bits somewhere


def key(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    only: Callable[[Any], bool] | None = None,
    result: bool = True,
) -> Any:
    """A field of settings: its default and what is allowed.

    Args:
        low, high: inclusive bounds. A whole number without `high` is at most `MOST`.
        above: an exclusive lower bound.
        choices: all that a string may be.
        only: of an objective's declaration, whether it reads this key. Default: every objective does.
        result: False for a key that does not change the numbers of a run, so that a resumed run may change it.
    """
    meta = {"low": low, "high": high, "above": above, "choices": choices, "only": only, "result": result}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


class Where:
    """Names the file, and the line where a key stands, for error messages."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.lines, self.overridden = file, text.split("\n"), set[tuple[str, str | None]]()

    def __call__(self, section: str, name: str | None = None) -> str:
        if (section, name) in self.overridden:
            return "command line"
        dotted = section if name is None else f"{section}.{name}"
        table, current = re.compile(r"\s*\[([^\[\]]+)\]"), ""
        assigned = re.compile(r"\s*([\w.\-\"' ]+?)\s*=")
        for number, line in enumerate(self.lines, 1):
            if m := table.match(line):
                current = _bare(m[1])
                if current == dotted:
                    return f"{self.file}:{number}"
            elif m := assigned.match(line):
                path = f"{current}.{_bare(m[1])}" if current else _bare(m[1])
                if path == dotted or path.startswith(f"{dotted}."):
                    return f"{self.file}:{number}"
        return self.file


def _bare(key: str) -> str:
    """A TOML key without quotes and spaces: `"run" . seed` is run.seed."""
    return re.sub(r"[\s\"']", "", key)


def read_section(section: Any, name: str, table: dict[str, Any], where: Where, unknown: Callable[[str], str]) -> None:
    """Set the fields of `section`, a dataclass made of `key`s, from a table.

    Args:
        name: of the section, for messages.
        unknown: what to say of a key that the section does not have.

    Raises:
        InputError: a key that is unknown, mistyped or out of range.
    """
    known = {f.name: f for f in dataclasses.fields(section)}
    hints = typing.get_type_hints(type(section))
    for k, value in table.items():
        place = where(name, k)
        if k not in known:
            raise InputError(f"{place}: {unknown(k)}")
        value = coerce(value, hints[k], f"{name}.{k}", place)
        check_range(value, known[k].metadata, f"{name}.{k}", place)
        setattr(section, k, value)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the one that was meant, or all that there are."""
    close = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"


def coerce(value: Any, hint: Any, name: str, place: str) -> Any:
    """The value as the annotated type, or an error. int is a fine float, a string a fine one-item list."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is list:
            (item,) = typing.get_args(option)
            return [coerce(v, item, name, place) for v in (value if isinstance(value, list) else [value])]
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return _float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is str and isinstance(value, str):
            if "\0" in value or not is_text(value):
                raise InputError(f"{place}: {name} must be text; got {shown(value)}, which holds what no text has")
            return value
        if option is bool and isinstance(value, bool):
            return value
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    wanted = " or ".join(words[o] for o in options if o in words)
    raise InputError(f"{place}: {name} must be {wanted}; got {shown(value)}")


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer may have any number of digits
        return math.inf if value > 0 else -math.inf


def shown(value: Any, width: int = 80) -> str:
    """A value for a message: on one line, cut to `width` characters."""
    try:
        text = printable(repr(value)[: 4 * width])
    except (ValueError, RecursionError):  # thousands of digits, or nested so deep
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= width else text[: width - 3] + "..."


def check_range(value: Any, meta: Any, name: str, place: str) -> None:
    """Raises InputError unless the value, or each of a list, is what the key's metadata allows."""
    low, above, choices = meta["low"], meta["above"], meta["choices"]
    for v in value if isinstance(value, list) else [value]:
        if choices is not None and v not in choices:
            raise InputError(f"{place}: {name} = {shown(v)} is not known; allowed: {', '.join(choices)}")
        if not isinstance(v, int | float) or isinstance(v, bool):
            continue
        high = MOST if meta["high"] is None and isinstance(v, int) else meta["high"]
        too_low = (low is not None and v < low) or (above is not None and v <= above)
        infinite = isinstance(v, float) and not math.isfinite(v)
        if infinite or too_low or (high is not None and v > high):
            bounds = [f">= {low}"] if low is not None else [f"> {above}"] if above is not None else []
            bounds += [f"<= {high}"] if high is not None else ["finite"] if infinite else []
            raise InputError(f"{place}: {name} = {shown(v)} is out of range; allowed: {' and '.join(bounds)}")
