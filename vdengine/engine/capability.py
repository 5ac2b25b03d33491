"""Tasks in a training run: when they are scored, and what their scores say. They ride in the training forward beside
the panel (`engine/readings.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdengine.drift.capability_log import CapabilityLog, Check, check_of, logged_tasks
from vdengine.drift.schedule import Schedule
from vdengine.engine.readings import Reading, Readings
from vdengine.recipe import CapabilityKeys
from vdengine.tasks.task import Task
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer


class Capability:
    """The tasks of a run. A check at step k measures the weights after k updates.

    Args:
        readings: of the run, which this is a source of.
        step_flops: of a training step, all ranks; NaN where it is not known.
        flops: `ModelConfig.flops`.

    Raises:
        InputError: as `TaskPacks.build`.
    """

    def __init__(
        self,
        settings: CapabilityKeys,
        tasks: Sequence[Task],
        renderer: Renderer,
        readings: Readings,
        *,
        total_steps: int,
        step_flops: float,
        flops: dict[str, float],
    ) -> None:
        self.readings, self.world, self.tokenizer_hash = readings, readings.world, renderer.hash
        self.packs = TaskPacks.build(tasks, renderer, settings.tokens, chat=settings.chat).to(self.world.device)
        self.schedule = check_schedule(settings, total_steps, self.packs.flops(flops), step_flops)
        self.log: CapabilityLog | None = None
        self.logged = -1  # step of the last check; it need not be made again
        self.latest: Check | None = None
        self.tasks = logged_tasks(self.packs)
        self._first: np.ndarray | None = None  # [choices] of the first check
        self._pending: list[Reading] = []  # not written yet
        readings.sources.append(self)

    def open_log(self, run_folder: Path, step: int) -> None:
        """Create the raw log, or continue it with the check of `step`. Rank 0 must call this before the other ranks."""
        log = CapabilityLog.create(run_folder, self.packs, self.tokenizer_hash)
        if self.world.is_main:
            self.log = log
            log.rewind(step)
        steps = log.steps
        self.logged = int(steps[-1]) if len(steps) else -1
        self._first = log.channel.values[0] if len(steps) else None

    def bytes_before(self, step: int) -> dict[Path, int]:
        """Of the file of the log the bytes that are of the steps before this one; {} on ranks that do not write it."""
        if self.log is None:
            return {}
        channel = self.log.channel
        return {channel.path: int((channel.steps < step).sum()) * channel.record_bytes}

    def due(self, step: int) -> list[Reading]:
        """The reading of `step`; [] if nothing is checked there."""
        if self.schedule.index(step) is None:
            return []
        found = [self.readings.new(step, self.packs)]
        self._pending += found
        return found

    def abandon(self) -> None:
        """Forget the readings whose forwards have not all run: of a step that ended with an error."""
        self._pending = [reading for reading in self._pending if reading.is_complete]

    def flush(self, before: int | None = None) -> list[Check]:
        """Evaluate pending readings, and on rank 0 write them to the log. The host waits for their forwards.

        Args:
            before: only readings of steps before this one; default: all.
        """
        ready = [reading for reading in self._pending if before is None or reading.step < before]
        self._pending = [reading for reading in self._pending if reading not in ready]
        checks = []
        for reading in ready:
            logp = reading.logp  # [choices]
            if self.log is not None:
                self.log.append(reading.step, logp)
            self.latest = check_of(self.tasks, reading.step, logp, self._first)
            self._first = logp if self._first is None else self._first
            checks.append(self.latest)
        return checks


def check_schedule(settings: CapabilityKeys, total: int, cost: float, step_cost: float) -> Schedule:
    """The steps at which tasks are checked: the first, every k-th, and the last.

    Args:
        total: training steps.
        cost, step_cost: FLOPs of scoring all tasks once, and of a training step.
    """
    return Schedule.make(total, every=settings.every or total, budget=None, panel_cost=cost, step_cost=step_cost)


def summary(packs: TaskPacks, schedule: Schedule) -> str:
    """What is checked, when, and what it takes."""
    counts = ", ".join(f"{task.name} ({len(task.rows)})" for task in packs.tasks)
    shown = schedule.steps if len(schedule.steps) <= 12 else (*schedule.steps[:8], "...", schedule.steps[-1])
    return (
        f"{counts}; {packs.num_tokens:,} tokens a check, at steps {', '.join(map(str, shown))}\n"
        f"estimated cost {schedule.cost:.1%} of the training FLOPs"
    )
