"""Times, memory and rates of a run, measured without making the host wait for the device."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Dense bf16 peak, FLOP/s, from the vendors' data sheets: what MFU is a share of.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak, or None if it is not in the table (CPUs are not)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Later:
    """A tensor's values as they are now, for the host to read later: on CUDA the copy is queued behind what is queued
    already, so reading them waits for that and for nothing that is queued afterwards (`.tolist()` would)."""

    def __init__(self, x: Tensor) -> None:
        self._copied: Any = None
        if x.device.type == "cuda":
            self._values = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._values.copy_(x.detach(), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._values = x.detach().clone()

    def get(self) -> Tensor:
        """The values, on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


class SectionClock:
    """Adds up the time spent in a section, entered many times: `with clock: ...`; then `clock.cut()()` seconds.

    On CUDA it records events: the time is the device's, and only reading it waits.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.total = 0.0
        self.events: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        if self.cuda:
            self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.events[-1][0].record()
        else:
            self.total -= time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.events[-1][1].record()
        else:
            self.total += time.perf_counter()

    def cut(self) -> Callable[[], float]:
        """Begin anew; what was measured since the last cut can be read, in seconds, when it is needed."""
        total, self.total = self.total, 0.0
        events, self.events = self.events, []

        def read() -> float:
            if events:
                events[-1][1].synchronize()
            return total + sum(start.elapsed_time(end) for start, end in events) / 1e3

        return read


@dataclass
class Totals:
    """What rates are made of: totals over the steps since the last logged one."""

    steps: int = 0
    tokens: int = 0
    scored: int = 0
    flops: float = 0.0  # forward and backward
    phases: dict[str, float] = field(default_factory=dict)  # seconds of a step before its updates

    def add(self, tokens: int, scored: int, phases: dict[str, float]) -> None:
        """Count a step."""
        self.steps += 1
        self.tokens += tokens
        self.scored += scored
        for name, x in phases.items():
            self.phases[name] = self.phases.get(name, 0.0) + x


def profiler(run_folder: Path, steps: int, rank: int) -> Any:
    """A context whose `.step()` counts steps: traces `steps` of them after two of warm-up, into
    `profile-rank<r>.json` (Chrome trace format). Does nothing for steps = 0."""
    if steps == 0:
        return _NoProfiler()
    return torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=2, active=steps, repeat=1),
        on_trace_ready=lambda p: p.export_chrome_trace(str(run_folder / f"profile-rank{rank}.json")),
    )


class _NoProfiler(nullcontext):  # type: ignore[type-arg]
    def __enter__(self) -> _NoProfiler:
        return self

    def step(self) -> None:
        """Nothing to count."""
