"""Shared by the measurements of `test_kernels_gpu.py`: a case and its result; spread of times, memory, errors and
bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

SAMPLES = 20  # timings of each variant
GEMMS = "bare GEMMs"


@dataclass
class Case:
    """What is measured, as plain data that can be passed to a process of its own."""

    kind: str  # key of `measure_kernels.MEASURE`
    model: str  # key of `tune.MODELS`
    n: int = 0  # rows, of the head
    name: str = ""  # of the preference loss
    quick: bool = False
    samples: int = SAMPLES


class Measured(NamedTuple):
    """A table."""

    title: str
    rows: list[dict[str, Any]]
    notes: list[str]


class Spread(NamedTuple):
    """Median and quantiles, in milliseconds."""

    p50: float
    p20: float
    p80: float


def spread(seconds: list[float]) -> Spread:
    """The spread of times."""
    ms = torch.tensor(seconds, dtype=torch.float64) * 1e3
    return Spread(*(float(torch.quantile(ms, q)) for q in (0.5, 0.2, 0.8)))


def peak_mb(function: Callable[[], Any], device: torch.device) -> float | None:
    """Peak memory of `function` above what is allocated when it starts, in MB; None on a CPU."""
    if device.type != "cuda":
        function()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def same_bits(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    """Whether two lists of results are equal to the bit."""
    return all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )


def error(result: Tensor, true: Tensor) -> float:
    """|result - true| / |true|, in fp64."""
    return float((result.double() - true).norm() / true.norm())


def nothing() -> None:
    """The `mark` of `tune.interleaved` where nothing is timed."""
