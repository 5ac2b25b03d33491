"""Metrics of a run: one JSON object per logged step, in the run folder and to trackers."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vdengine import recipe as recipes
from vdengine.engine.clocks import Later
from vdengine.errors import InputError
from vdengine.files import bytes_before, rewind
from vdengine.runfolder import RunFolder


class Metrics(Mapping[str, Any]):
    """The metrics of a step, as a mapping that is filled when it is first read. Until then the host does not wait for
    the device; to ask whether it is empty (a step that is not logged) is not to wait either.

    Args:
        read: gives the metrics; None: there are none.
    """

    def __init__(self, read: Callable[[], dict[str, Any]] | None = None) -> None:
        self._read = read
        self._row: dict[str, Any] | None = {} if read is None else None

    @property
    def row(self) -> dict[str, Any]:
        """All metrics. The first call waits for the step."""
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


@dataclass(eq=False)
class Sums:
    """Sums of metrics over packs, which are summed over ranks as one tensor and then divided.

    Args:
        denominators: what the sum of a metric is divided by, under "" those of metrics that are not named. A pair
            (values, weights) brings its own.
    """

    denominators: Mapping[str, float]
    sums: dict[str, Tensor] = field(default_factory=dict)  # [] fp32 each
    weights: dict[str, Tensor] = field(default_factory=dict)  # [] fp32, of those that are pairs

    def add(self, metrics: Mapping[str, Tensor | tuple[Tensor, Tensor]], counts: float) -> None:
        """Add those of a pack; `counts` is 0 for an idle one, which only says what there is."""
        for name, values in metrics.items():
            if isinstance(values, tuple):
                values, weights = values
                self.weights[name] = self.weights.get(name, 0.0) + counts * weights.sum()
                values = values * weights
            self.sums[name] = self.sums.get(name, 0.0) + counts * values.sum()

    def tensor(self) -> Tensor:
        """All of them, [sums and weights] fp32, in an order that is the same on every rank."""
        return torch.stack([part[name] for part in (self.sums, self.weights) for name in sorted(part)])

    def means(self, totals: Sequence[float]) -> dict[str, float]:
        """Of totals over all ranks, in the order of `tensor`; a mean over nothing is left out."""
        names = sorted(self.sums)
        own = dict(zip(sorted(self.weights), totals[len(names) :], strict=False))
        divided = {name: self.denominators.get(name, self.denominators[""]) for name in names} | own
        return {name: x / divided[name] for name, x in zip(names, totals, strict=False) if divided[name] != 0}


@dataclass(frozen=True, eq=False)
class Logged:
    """A logged step whose numbers are on their way from the device."""

    metrics: Metrics
    skipped: Later  # `Skips.counts`
    finite: Later  # [packs]: whether the losses of each were
    packs: list[tuple[int, Tensor]]  # step and tree ids of each


class Tracker(Protocol):
    """A service or file that scalars are sent to, in addition to the run folder."""

    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """TensorBoard's event files in the run folder."""

    def __init__(self, run_folder: Path, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("log.trackers: tensorboard is not installed: pip install tensorboard") from None
        self.writer = SummaryWriter(str(RunFolder(run_folder).tensorboard), purge_step=start_step)

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Hosted:
    """wandb, or trackio, which has the same functions."""

    def __init__(self, name: str, run_folder: Path, config: dict[str, Any]) -> None:
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            raise InputError(f"log.trackers: {name} is not installed: pip install {name}") from None
        self.run = module.init(project="vdengine", name=run_folder.name, config=config)

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.run.log(scalars, step=step)

    def flush(self) -> None:
        """Its library sends by itself."""

    def close(self) -> None:
        self.run.finish()


class MetricsLog:
    """The file of metrics in the run folder, and the trackers that the recipe names. On rank 0 only.

    Args:
        start_step: updates so far.
        first: those of the stages before this run: the trackers count all, so that their curves go on.

    Raises:
        InputError: a tracker that is not installed.
    """

    def __init__(self, run_folder: Path, start_step: int, recipe: recipes.Recipe, first: int = 0) -> None:
        files, self._first = RunFolder(run_folder), first
        self.path, self._completions = files.metrics, files.completions
        rewind(self.path, start_step + 1)
        rewind(files.completions, start_step)
        self.file = open(self.path, "a", encoding="utf-8")
        self.trackers: list[Tracker] = [
            _TensorBoard(run_folder, first + start_step + 1)
            if name == "tensorboard"
            else _Hosted(name, run_folder, recipes.to_tables(recipe))
            for name in recipe.log.trackers
        ]

    def write(self, row: dict[str, Any]) -> None:
        """Write a line of metrics. row["step"] counts the updates, this step's included."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.file.write(json.dumps(finite, allow_nan=False) + "\n")  # JSON has no NaN
        self.file.flush()
        self.track({k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}, row["step"])

    def bytes_before(self, step: int) -> dict[Path, int]:
        """Of each file the bytes that are of the steps before this one."""
        return {
            self.path: bytes_before(self.path, step + 1),  # a row counts its own update
            self._completions: bytes_before(self._completions, step),
        }

    def track(self, scalars: dict[str, float], step: int) -> None:
        """Send scalars to the trackers alone. Steps must not decrease, because wandb drops scalars of earlier steps."""
        for tracker in self.trackers:
            tracker.log(scalars, self._first + step)

    def flush(self) -> None:
        """Have the trackers write what they hold."""
        for tracker in self.trackers:
            tracker.flush()

    def close(self) -> None:
        """Close the file and the trackers."""
        self.file.close()
        for tracker in self.trackers:
            tracker.close()
