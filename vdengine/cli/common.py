"""What all verbs share: one way to end with an error, and lists of names."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from vdengine.errors import InputError


class Verb(Protocol):
    """A command: its arguments (default: the process's own) to an exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def verb(main: Callable[[Sequence[str] | None], int]) -> Verb:
    """Bad input ends a verb with status 2 and one line on stderr, which names the rank where there are several."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except InputError as error:
            rank = os.environ.get("RANK", "0")
            where = "" if rank == "0" else f" (rank {rank})"
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
            return 2

    return run


def names(text: str | None) -> list[str] | None:
    """The names in "a, b"; None where nothing was given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
