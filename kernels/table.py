"""Block sizes by kernel, dtype, width and architecture. A table, not a search at start-up: the same shapes always run
the same code, so the same bits, and a run's first step costs what the others do.

`table.json` is written by `python -m vdengine.kernels.tune` on a GPU; each row says what it was measured on, or
null where it is a rule of thumb that no GPU has confirmed. Shapes that have no row take the rule.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """How one kernel is launched."""

    block: int  # elements of a row that a program handles at a time; a power of two
    warps: int


class Entry(NamedTuple):
    """A row of the table."""

    kernel: str
    arch: int  # 90: sm_90
    dtype: str  # of the data that is streamed: "bfloat16", "float32"
    width: int  # of a row: V for the head, H for norms
    block: int
    warps: int
    measured: str | None  # device, versions, date and rate; None: not measured


def launch(kernel: str, dtype: torch.dtype, width: int, arch: int) -> Launch:
    """Block size and warps for rows of `width` elements. Rows of the newest architecture not above `arch` serve."""
    if kernel in _tried:
        return _tried[kernel]
    name = str(dtype).removeprefix("torch.")
    for row in rows(kernel, name, width):
        if row.arch <= arch:
            return Launch(row.block, row.warps)
    return rule(kernel, width)


_tried: dict[str, Launch] = {}  # what `trying` puts in place of the table; empty but in `tune`


@contextmanager
def trying(kernel: str, at: Launch) -> Iterator[None]:
    """Launch `kernel` as `at`, whatever the table says. Of the whole process: a backward runs on another thread."""
    _tried[kernel] = at
    try:
        yield
    finally:
        del _tried[kernel]


def rule(kernel: str, width: int) -> Launch:
    """Without a measurement. The head and the sampler stream a row through a block; the others hold a row, or a piece
    of a flat tensor, in one block, 8 elements (16 bytes of bf16) a thread."""
    if kernel in ("head", "sample"):
        block = min(4096, power_of_two(width))
        return Launch(block, min(16, max(1, block // 256)))
    if kernel == "swiglu":
        return Launch(1024, 4)
    if kernel == "decode":  # 64 keys
        return Launch(64 * power_of_two(width), 4)
    if kernel == "gather":
        block = min(1024, power_of_two(width))
        return Launch(block, min(4, max(1, block // 256)))
    block = power_of_two(width)
    return Launch(block, min(16, max(1, block // 256)))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n (and at least 16, for the interpreter's sake and tiny rows)."""
    return max(16, 1 << (n - 1).bit_length())


@functools.cache
def table() -> tuple[Entry, ...]:
    """All rows of `table.json`."""
    text = resources.files("vdengine.kernels").joinpath("table.json").read_text(encoding="utf-8")
    return tuple(Entry(**row) for row in json.loads(text))


@functools.cache
def rows(kernel: str, dtype: str, width: int) -> tuple[Entry, ...]:
    """The rows of one shape, newest architecture first."""
    found = [row for row in table() if (row.kernel, row.dtype, row.width) == (kernel, dtype, width)]
    return tuple(sorted(found, key=lambda row: -row.arch))
