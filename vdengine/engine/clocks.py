"""Times, memory and rates of a run, measured without a wait of the host for the device."""

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

from vdengine.runfolder import RunFolder

# Dense bf16 peak in FLOP/s, from the vendors' data sheets. MFU is a share of it.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None if it is not in the table (CPUs are not)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in PEAK_FLOPS.items() if model in name), None)


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process in bytes: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB on Linux
    return peak if sys.platform == "darwin" else peak * 1024


class Later:
    """The present values of a tensor, for the host to read later. On CUDA a copy is put in the queue of the device.
    Reading it waits only for work that was queued before; `.tolist()` would wait for all work."""

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
    """Adds up the time that a section of code takes, entered many times: `with clock: ...`; then `clock.cut()()` gives
    the seconds.

    On CUDA it records events: the time is that of the device, and only reading it waits.
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
        """Start again from 0. Returns a function that gives the seconds since the last cut, and waits for them."""
        total, self.total = self.total, 0.0
        events, self.events = self.events, []

        def read() -> float:
            if events:
                events[-1][1].synchronize()
            return total + sum(start.elapsed_time(end) for start, end in events) / 1e3

        return read


@dataclass
class Totals:
    """Totals over the steps since the last logged one, from which rates are computed."""

    steps: int = 0
    tokens: int = 0
    scored: int = 0
    flops: float = 0.0  # of forward and backward
    phases: dict[str, float] = field(default_factory=dict)  # seconds of the parts of a step before its updates

    def add(self, tokens: int, scored: int, phases: dict[str, float]) -> None:
        """Add a step."""
        self.steps += 1
        self.tokens += tokens
        self.scored += scored
        for name, seconds in phases.items():
            self.phases[name] = self.phases.get(name, 0.0) + seconds


def profiler(run_folder: Path, steps: int, rank: int) -> Any:
    """A context whose `.step()` counts steps. After two of warm-up it traces `steps` of them, into a file of the run
    folder (Chrome trace format). For steps = 0 it does nothing."""
    if steps == 0:
        return _NoProfiler()
    return torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=2, active=steps, repeat=1),
        on_trace_ready=lambda p: p.export_chrome_trace(str(RunFolder(run_folder).profile(rank))),
    )


class _NoProfiler(nullcontext):  # type: ignore[type-arg]
    """The context that does nothing."""

    def __enter__(self) -> _NoProfiler:
        return self

    def step(self) -> None:
        """Do nothing."""
