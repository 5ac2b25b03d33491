"""Progress of what takes long: a bar for a person who watches, a line for a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T] | None, title: str | None, unit: str, total: int | None = None) -> tqdm[T]:
    """The items, with a bar on stderr if that is a terminal, and else one plain line at the start.

    Args:
        items: None: the bar is a context, moved by its `update`.
        title: None shows nothing.
        total: default: the length of `items`.
    """
    count = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
    watched = sys.stderr.isatty()
    if title is not None and not watched:
        print(title if count is None else f"{title}: {count:,} {unit}{'s' * (count != 1)}", file=sys.stderr, flush=True)
    return tqdm(
        items, desc=title, unit=unit, total=count, leave=False, disable=title is None or not watched, dynamic_ncols=True
    )
