"""The launch table: block sizes and warps by kernel, dtype, width and architecture.

It is a table and not a search at start-up, so that equal shapes always run the same code and give the same bits, and
the first step of a run takes no longer than the others.

`table.json` is written by `python -m vdengine.kernels.tune` on a GPU. Each row has what it was measured on, or null if
it is a rule of thumb that has not been measured. Shapes without a row use the rule.
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
    """Block size and warps of a launch."""

    block: int  # elements of a row that a program processes at a time; a power of two
    warps: int  # of a program


class Entry(NamedTuple):
    """A row of the table."""

    kernel: str
    arch: int  # 90: sm_90
    dtype: str  # of the rows that are read: "bfloat16", "float32"
    width: int  # elements of a row: V for the head, H for norms
    block: int
    warps: int
    measured: str | None  # device, versions, date and rate of the measurement; None: not measured


def launch(kernel: str, dtype: torch.dtype, width: int, arch: int) -> Launch:
    """Block size and warps for rows of `width` elements, as measured on the newest architecture not above `arch`;
    without a measurement the rule's."""
    if kernel in _tried:
        return _tried[kernel]
    name = str(dtype).removeprefix("torch.")
    for row in rows(kernel, name, width):
        if row.arch <= arch:
            return Launch(row.block, row.warps)
    return rule(kernel, width)


_tried: dict[str, Launch] = {}  # set by `trying` in place of the table; empty except in `tune`


@contextmanager
def trying(kernel: str, config: Launch) -> Iterator[None]:
    """A context in which `kernel` is launched with `config`, in place of the table. It holds for all threads, because a
    backward runs on another one."""
    _tried[kernel] = config
    try:
        yield
    finally:
        del _tried[kernel]


def rule(kernel: str, width: int) -> Launch:
    """Block size and warps without a measurement. The head and the sampler loop over a row block by block. The others
    have a row, or a part of a flat tensor, in one block, with 8 elements (16 bytes of bf16) per thread."""
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
    """The smallest power of two that is at least n, and at least 16, for the interpreter and for tiny rows."""
    return max(16, 1 << (n - 1).bit_length())


@functools.cache
def table() -> tuple[Entry, ...]:
    """All rows of `table.json`."""
    text = resources.files("vdengine.kernels").joinpath("table.json").read_text(encoding="utf-8")
    return tuple(Entry(**row) for row in json.loads(text))


@functools.cache
def rows(kernel: str, dtype: str, width: int) -> tuple[Entry, ...]:
    """The table's rows of one shape, newest architecture first."""
    matching = [row for row in table() if (row.kernel, row.dtype, row.width) == (kernel, dtype, width)]
    return tuple(sorted(matching, key=lambda row: -row.arch))
