"""What a run reports: one JSON object per logged step, a console line, and clocks that do not stall the device."""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vdengine import recipe as recipes
from vdengine.errors import InputError

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


class Metrics(Mapping[str, Any]):
    """A step's metrics, a mapping that is filled when it is first looked at: until then nothing waits for the device.

    Whether it is empty (a step that is not logged) can be asked without a wait.
    """

    def __init__(self, read: Callable[[], dict[str, Any]] | None = None) -> None:
        self._read = read
        self._row: dict[str, Any] | None = {} if read is None else None

    @property
    def row(self) -> dict[str, Any]:
        """All of them; the first look waits for the step."""
        if self._row is None and self._read is not None:
            self._row, self._read = self._read(), None
        return self._row or {}

    def __bool__(self) -> bool:
        return bool(self._read or self._row)

    def __getitem__(self, name: str) -> Any:
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)

    def __repr__(self) -> str:
        return repr(self.row)


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
class Interval:
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


class Tracker(Protocol):
    """Where scalars go beside the run folder."""

    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, run_folder: Path, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("log.trackers: tensorboard is not installed: pip install tensorboard") from None
        self.writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=start_step)

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Hosted:
    """wandb, and trackio, which has the same calls."""

    def __init__(self, name: str, run_folder: Path, config: dict[str, Any]) -> None:
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            raise InputError(f"log.trackers: {name} is not installed: pip install {name}") from None
        self.run = module.init(project="vdengine", name=run_folder.name, config=config)

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.run.log(scalars, step=step)

    def close(self) -> None:
        self.run.finish()


class MetricsLog:
    """`metrics.jsonl`, and the trackers that the recipe names. Rank 0 only."""

    def __init__(self, run_folder: Path, start_step: int, recipe: recipes.Recipe) -> None:
        self.path = run_folder / "metrics.jsonl"
        rewind(self.path, start_step + 1)
        rewind(run_folder / SAMPLES_FILE, start_step)
        self.file = open(self.path, "a", encoding="utf-8")
        self.trackers: list[Tracker] = [
            _TensorBoard(run_folder, start_step + 1)
            if name == "tensorboard"
            else _Hosted(name, run_folder, recipes.to_tables(recipe))
            for name in recipe.log.trackers
        ]

    def write(self, row: dict[str, Any]) -> None:
        """A line of metrics; its `step` is that of the weights after it."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.file.write(json.dumps(finite, allow_nan=False) + "\n")  # JSON has no NaN
        self.file.flush()
        self.track({k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}, row["step"])

    def track(self, scalars: dict[str, float], step: int) -> None:
        """Scalars for the trackers alone. Steps may not fall: wandb drops what comes late."""
        for tracker in self.trackers:
            tracker.log(scalars, step)

    def close(self) -> None:
        self.file.close()
        for tracker in self.trackers:
            tracker.close()
