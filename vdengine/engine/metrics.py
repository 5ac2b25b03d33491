"""What a run reports: one JSON object per logged step, a console line, and clocks that do not stall the device."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# Dense bf16 peak, FLOP/s, from the vendors' data sheets: what MFU is a share of.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}


SAMPLES_FILE = "completions.jsonl"  # of a PPO run: a line per completion, its step that of the weights that made it


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


class SectionClock:
    """Adds up the time spent in a section, entered many times: `with clock: ...`; then `clock.take()` seconds.

    On CUDA it records events and reads them in `take`, which waits for the device.
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

    def take(self) -> float:
        """Seconds since the last `take`."""
        if self.events:
            self.events[-1][1].synchronize()
            self.total = sum(start.elapsed_time(end) for start, end in self.events) / 1e3
            self.events = []
        total, self.total = self.total, 0.0
        return total


@dataclass
class Interval:
    """What rates are made of: totals over the steps since the last logged one."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    scored: int = 0
    flops: float = 0.0  # forward and backward
    phases: dict[str, float] = field(default_factory=dict)  # seconds of a step before its updates

    def add(self, seconds: float, tokens: int, scored: int, phases: dict[str, float]) -> None:
        """Count a step."""
        self.steps += 1
        self.seconds += seconds
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


def rewind(path: Path, step: int) -> None:
    """Drop the lines of a JSONL file that a run going on at `step` will write again, and a last one cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class MetricsLog:
    """`metrics.jsonl`, and TensorBoard if asked for. Rank 0 only."""

    def __init__(self, run_folder: Path, start_step: int, tensorboard: bool) -> None:
        self.path = run_folder / "metrics.jsonl"
        rewind(self.path, start_step + 1)
        rewind(run_folder / SAMPLES_FILE, start_step)
        self.file = open(self.path, "a")
        self.tensorboard = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.file.write(json.dumps(finite, allow_nan=False) + "\n")  # JSON has no NaN
        self.file.flush()
        if self.tensorboard is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self.tensorboard.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
