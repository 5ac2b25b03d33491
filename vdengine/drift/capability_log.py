"""The raw log of tasks, and what it says. It is the folder `<run>/capability/`:

    manifest.json                schema, hash of the tokenizer, tasks with hashes and metrics
    choices.jsonl, choices.bin   a channel (`drift.channels`): the log-prob sum of every choice at each sample

Accuracies, and changes with paired errors, are made from it; nothing in it depends on how. A row's outcome is known at
every sample, so that any two samples can be compared row by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdengine.drift.channels import Channel, read_manifest
from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.outside import is_count, is_text, printable
from vdengine.runfolder import MANIFEST, RunFolder
from vdengine.tasks.accuracy import METRICS, Accuracy, Change, accuracy, change, predicted

if TYPE_CHECKING:
    from vdengine.tasks.task_packs import TaskPacks

SCHEMA = 1
CHOICES = "choices"
UNIT = "nats, natural log, summed over the choice's tokens"


@dataclass(frozen=True)
class LoggedTask:
    """A task as its log knows it: choices of n rows in one flat order."""

    name: str
    hash: str
    metrics: tuple[str, ...]
    first: int  # place of its first choice among those of all tasks
    numbers: tuple[int, ...]  # [n] of its rows, as in the data
    choices: tuple[tuple[str, ...], ...]  # [n] texts of each row
    right: tuple[frozenset[int], ...]  # [n] indexes of the right ones

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[n+1] int64: row i has the values offsets[i] .. offsets[i+1] of all tasks' choices."""
        return self.first + np.cumsum([0, *map(len, self.choices)])

    def predicted(self, values: NDArray[np.floating], metric: str) -> NDArray[np.int64]:  # [choices of all tasks], nats
        """[n] int64: what each row is answered with, as an index into its choices; -1: not scored."""
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        spans = zip(bounds, self.choices, strict=True)
        return np.array([predicted(values[a:b], choices, metric) for (a, b), choices in spans], np.int64)

    def outcomes(
        self, values: NDArray[np.floating], metric: str
    ) -> NDArray[np.float64]:  # [choices of all tasks], nats
        """[n] float64: 1 where a row is answered rightly, 0 where not; NaN: not scored."""
        answers = self.predicted(values, metric)
        return np.array(
            [np.nan if a < 0 else float(a in right) for a, right in zip(answers.tolist(), self.right, strict=True)]
        )


@dataclass(frozen=True)
class Check:
    """What one sample says of the tasks."""

    step: int
    accuracies: dict[tuple[str, str], Accuracy]  # by task and metric
    changes: dict[tuple[str, str], Change]  # likewise, since the first sample; {} of the first

    @property
    def scalars(self) -> dict[str, float]:
        """For a tracker: capability/{task}/{metric}, and capability/{task}/{metric}_stderr."""
        found = {f"capability/{task}/{metric}": a.value for (task, metric), a in self.accuracies.items()}
        return found | {f"capability/{task}/{metric}_stderr": a.stderr for (task, metric), a in self.accuracies.items()}


@dataclass
class CapabilityLog:
    """Samples of a run's tasks."""

    folder: Path  # <run>/capability
    manifest: dict[str, Any]
    channel: Channel
    tasks: list[LoggedTask]

    @classmethod
    def create(cls, run_folder: str | Path, packs: TaskPacks, tokenizer_hash: str | None = None) -> CapabilityLog:
        """Start or continue the log of a run.

        Args:
            packs: all that is scored.
            tokenizer_hash: `Renderer.hash`; None: not known.

        Raises:
            InputError: the folder holds the log of other tasks or of another tokenizer.
        """
        folder = RunFolder.at(run_folder).capability
        channel = Channel(folder, CHOICES, UNIT, 0.0, _items(packs))
        manifest = {
            "schema": SCHEMA,
            "tokenizer_hash": tokenizer_hash,
            "chat": packs.chat,
            "tasks": _entries(packs),
            "channel": channel.manifest,
        }
        if (folder / MANIFEST).exists():
            old = cls.open(run_folder)
            if old.manifest != manifest or old.channel.items != channel.items:
                raise InputError(
                    f"{folder}: holds the log of other tasks or another tokenizer; name another run folder"
                )
            return old
        folder.mkdir(parents=True, exist_ok=True)
        channel.create()
        # Last: where a manifest is, the folder is complete.
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return cls(folder, manifest, channel, logged_tasks(packs))

    @classmethod
    def open(cls, run_folder: str | Path) -> CapabilityLog:
        """Open the log of a run for reading.

        Raises:
            InputError: there is none, it is damaged, or of another version.
        """
        folder = RunFolder.at(run_folder).capability
        path = folder / MANIFEST
        manifest = read_manifest(path, SCHEMA, f"{printable(run_folder)}: no tasks were scored here")
        channel = Channel.open(folder, CHOICES, manifest.get("channel"))
        return cls(folder, manifest, channel, _tasks(manifest.get("tasks"), channel.items, printable(path)))

    @property
    def steps(self) -> NDArray[np.int64]:
        """[S] int64: the number of updates that the scored weights had had."""
        return self.channel.steps

    def append(self, step: int, logp: Any) -> None:
        """Add a sample: log-prob sums [choices] float32, nats, in the order of `TaskPacks.requests`.

        Raises:
            InputError: as `Channel.check`.
        """
        self.channel.append(step, logp)

    def rewind(self, step: int) -> None:
        """Drop samples of `step` and later."""
        self.channel.rewind(step)

    def task(self, name: str) -> LoggedTask:
        """The task of this name.

        Raises:
            InputError: there is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise InputError(f"{self.folder}: no task {name!r}; there are {', '.join(t.name for t in self.tasks)}")

    def outcomes(self, name: str, metric: str = "acc") -> NDArray[np.float64]:
        """[S, rows of the task] float64: 1 where a row is answered rightly, 0 where not; NaN: not scored."""
        task, values = self.task(name), self.channel.values
        found = [task.outcomes(row, metric) for row in values]
        return np.array(found).reshape(len(values), len(task.choices))

    def change(self, name: str, before: int, after: int, metric: str = "acc") -> Change:
        """The change of a task's metric from one step to another, paired over rows.

        Raises:
            InputError: no such task, or a step that was not sampled.
        """
        task, steps = self.task(name), self.steps.tolist()
        for step in (before, after):
            if step not in steps:
                raise InputError(f"{self.folder}: step {step} was not checked; {', '.join(map(str, steps))} were")
        values = self.channel.values
        return change(*(task.outcomes(values[steps.index(step)], metric) for step in (before, after)))

    def checks(self) -> list[Check]:
        """What each sample says."""
        return checks_of([(0, self)])


def same_tasks(a: CapabilityLog, b: CapabilityLog) -> bool:
    """Whether two logs are of the same choices after the same prompts: then their samples may be compared by row."""
    return a.channel.items == b.channel.items and all(
        a.manifest.get(name) == b.manifest.get(name) for name in ("tasks", "chat")
    )


def checks_of(logs: Sequence[tuple[int, CapabilityLog]]) -> list[Check]:
    """What each sample of a history says; changes are since its first one. Where one stage ends and the next begins,
    the weights are the same, and the later sample stands for both.

    Args:
        logs: of stages in order, with the step of the history at which each begins, at least one. Those with other
            tasks than the last one (`same_tasks`) are left out.
    """
    last = logs[-1][1]
    samples = {
        first + step: log.channel.values[i]
        for first, log in logs
        if same_tasks(log, last)
        for i, step in enumerate(log.steps.tolist())
    }
    start = next(iter(samples.values()), None)
    return [check_of(last.tasks, step, values, None if values is start else start) for step, values in samples.items()]


def check_of(
    tasks: Sequence[LoggedTask],
    step: int,
    values: NDArray[np.floating],  # [choices of all tasks], nats
    first: NDArray[np.floating] | None,  # of the first sample; None: this is the first
) -> Check:
    """What a sample says of the tasks."""
    accuracies, changes = {}, {}
    for task in tasks:
        for metric in task.metrics:
            now = task.outcomes(values, metric)
            accuracies[task.name, metric] = accuracy(now)
            if first is not None:
                changes[task.name, metric] = change(task.outcomes(first, metric), now)
    return Check(step, accuracies, changes)


def logged_tasks(packs: TaskPacks) -> list[LoggedTask]:
    """The tasks of these packs as their log will know them."""
    return _tasks(_entries(packs), _items(packs), "tasks")


def _entries(packs: TaskPacks) -> list[dict[str, Any]]:
    """The tasks as the manifest has them."""
    return [{"name": task.name, "hash": task.hash, "metrics": list(task.metrics)} for task in packs.tasks]


def _items(packs: TaskPacks) -> list[dict[str, Any]]:
    """The choices as the log's items."""
    return [
        {
            "task": request.task.name,
            "row": request.row.number,
            "choice": request.choice,
            "text": request.text,
            "right": request.choice in request.row.gold,
            "num_tokens": len(request.answer_ids),
        }
        for request in packs.requests
    ]


def _tasks(entries: Any, items: Sequence[dict[str, Any]], where: str) -> list[LoggedTask]:
    """The tasks of a manifest, with their choices.

    Raises:
        InputError: they are not as `create` writes them.
    """
    damaged = InputError(f"{where}: damaged: its tasks and choices are not those of one log")
    if not isinstance(entries, list) or not entries:
        raise damaged
    tasks, place = [], 0
    for entry in entries:
        if not isinstance(entry, dict) or not is_text(entry.get("name")) or not is_text(entry.get("hash")):
            raise damaged
        metrics = entry.get("metrics")
        if not isinstance(metrics, list) or not metrics or not set(map(str, metrics)) <= set(METRICS):
            raise damaged
        first, numbers, texts, right = place, list[int](), list[list[str]](), list[set[int]]()
        while place < len(items) and items[place].get("task") == entry["name"]:
            item = items[place]
            number, choice, text = item.get("row"), item.get("choice"), item.get("text")
            if not is_count(number) or not is_count(choice) or not is_text(text) or not text:
                raise damaged
            if choice == 0:
                numbers.append(number)
                texts.append([])
                right.append(set())
            if not texts or number != numbers[-1] or choice != len(texts[-1]) or type(item.get("right")) is not bool:
                raise damaged
            texts[-1].append(text)
            if item["right"]:
                right[-1].add(choice)
            place += 1
        if not texts:
            raise damaged
        rows = tuple(map(tuple, texts))
        tasks.append(
            LoggedTask(
                entry["name"], entry["hash"], tuple(metrics), first, tuple(numbers), rows, tuple(map(frozenset, right))
            )
        )
    if place != len(items) or len({task.name for task in tasks}) < len(tasks):
        raise damaged
    return tasks
