"""A task of multiple choice: rows with a prompt, choices, and which of them are right (format: docs/capability.md).

A task is read from a task file of lm-evaluation-harness (`tasks/task_files.py`), or from rows alone in a shape that is
known (`tasks/shapes.py`). Prompts are put together here as lm-evaluation-harness 0.4 does for `multiple_choice`, so
that accuracies are equal. Tokens play no part: `tasks/task_packs.py` has them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vdengine.data.locate import resolve_here
from vdengine.errors import InputError
from vdengine.files import json_hash
from vdengine.settings import shown
from vdengine.tasks.fields import FieldReader
from vdengine.tasks.shapes import read_rows
from vdengine.tasks.task_files import TaskConfig, read_task_file

ENDINGS = (".yaml", ".yml")  # of a task file; anything else is rows
FEWSHOT_SEED = 1234  # of the examples that are drawn: the default of lm-evaluation-harness


@dataclass(frozen=True)
class Turn:
    """A part of a prompt: a message of a chat, or text with the delimiter that follows it where there is no chat."""

    role: str  # "system" | "user" | "assistant"
    text: str
    delimiter: str = ""


@dataclass(frozen=True)
class Row:
    """One question."""

    number: int  # of the row in its split, from 0
    turns: tuple[Turn, ...]  # description, examples, question
    choices: tuple[str, ...]
    gold: tuple[int, ...]  # indexes of the right choices

    @property
    def text(self) -> str:
        """The prompt as plain text."""
        return "".join(turn.text + turn.delimiter for turn in self.turns)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as a chat; examples are turns of their own."""
        return [{"role": turn.role, "content": turn.text} for turn in self.turns]


@dataclass(frozen=True)
class Task:
    """A task whose prompts are made. `hash` identifies what is asked, whatever the file's name."""

    name: str
    metrics: tuple[str, ...]  # of `accuracy.METRICS`
    delimiter: str  # between a prompt and a choice, where there is no chat
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, source: str | Path, limit: int = 0) -> Task:
        """Read a task.

        Args:
            source: a task file (.yaml, .yml), or rows: whatever `data.locate.resolve` finds.
            limit: at most so many rows, the first; 0: all.

        Raises:
            InputError: a file that cannot be read, a task with code in it or of another output type, a row that is no
                question.
        """
        name = str(source)
        config = read_task_file(Path(name)) if name.endswith(ENDINGS) else read_rows(name)
        if not config.name.strip() or not config.name.isprintable():
            raise InputError(f"{config.where}: the task's name is {shown(config.name)}; it must be one line of text")
        return cls(config.name, config.metrics, config.delimiter, tuple(_rows(config, limit)))

    @cached_property
    def hash(self) -> str:
        """32 hex digits, of all prompts, choices and what is right."""
        rows = [[[[t.role, t.text, t.delimiter] for t in r.turns], r.choices, r.gold] for r in self.rows]
        return json_hash([self.delimiter, rows])


def load_tasks(sources: Sequence[str | Path], limit: int = 0) -> list[Task]:
    """The tasks of these sources.

    Raises:
        InputError: as `Task.load`; two of one name.
    """
    tasks = [Task.load(source, limit) for source in sources]
    check_names(tasks)
    return tasks


def check_names(tasks: Sequence[Task]) -> None:
    """Raises InputError where two tasks have one name."""
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"two tasks have the name {twice!r}; names must differ (`task` of a task file, or a file's name)"
        )


def is_here(source: str) -> bool:
    """Whether a task's rows are on this machine; those of a data set of the hub may not be."""
    return False if source.endswith(ENDINGS) else resolve_here(source) is not None


def _rows(config: TaskConfig, limit: int) -> list[Row]:
    """The questions of a task, with their examples."""
    docs = config.docs[:limit] if limit else config.docs
    reader = FieldReader(config.where, docs, config.fields | {"description": config.description})
    examples: list[tuple[Turn, Turn]] = []
    if config.num_fewshot:
        examples = _examples(config)
    draw = _Examples(config, examples)
    descriptions = reader.texts("description")
    texts, choices, targets = reader.texts("doc_to_text"), reader.choices(), reader.targets()
    rows = []
    for number, (place, doc) in enumerate(docs):
        turns = [Turn("system", descriptions[number])] if descriptions[number] else []
        for example in draw(place, doc):
            turns += example
        turns.append(Turn("user", texts[number]))
        gold = _gold(targets[number], choices[number], place)
        rows.append(Row(number, tuple(turns), tuple(choices[number]), gold))
    return rows


def _gold(target: Any, choices: Sequence[str], where: str) -> tuple[int, ...]:
    """The indexes of the right choices."""
    found = []
    for one in target if isinstance(target, list) else [target]:
        if isinstance(one, str) and one in choices:
            found.append(choices.index(one))
        elif type(one) is int and 0 <= one < len(choices):
            found.append(one)
        else:
            raise InputError(
                f"{where}: the target {str(one)[:60]!r} is none of the {len(choices)} choices, nor the number of one "
                "from 0"
            )
    if not found:
        raise InputError(f"{where}: no target: no choice is right")
    return tuple(dict.fromkeys(found))


def _examples(config: TaskConfig) -> list[tuple[Turn, Turn]]:
    """Every row that examples are drawn from, as question and answer."""
    reader = FieldReader(f"{config.where}: fewshot", config.examples, config.example_fields)
    turns = []
    texts, choices, targets = reader.texts("doc_to_text"), reader.choices(), reader.targets()
    for (place, _), text, of_row, target in zip(config.examples, texts, choices, targets, strict=True):
        answer = target[0] if isinstance(target, list) and target else target
        if type(answer) is int and 0 <= answer < len(of_row):
            answer = of_row[answer]
        if not isinstance(answer, str) or not answer:
            raise InputError(
                f"{place}: the target {str(target)[:60]!r} of an example is no text and no choice's number"
            )
        pair = Turn("user", text, config.example_delimiter), Turn("assistant", answer, config.fewshot_delimiter)
        turns.append(pair)
    return turns


class _Examples:
    """Draws the examples of one row after another, as the samplers of lm-evaluation-harness do."""

    def __init__(self, config: TaskConfig, turns: list[tuple[Turn, Turn]]) -> None:
        self.config, self.turns, self.random = config, turns, random.Random(FEWSHOT_SEED)
        self.pool = [doc for _, doc in config.examples]
        count, has = config.num_fewshot, len(self.pool) - config.leaves_out_row
        if count and count > has:
            raise InputError(
                f"{config.where}: num_fewshot is {count}; there are {max(has, 0)} rows to draw examples from"
            )

    def __call__(self, place: str, doc: dict[str, Any]) -> list[tuple[Turn, Turn]]:
        count, own = self.config.num_fewshot, self.config.leaves_out_row
        if not count:
            return []
        others = range(len(self.pool))
        if self.config.sampler == "first_n":
            chosen = list(itertools.islice((i for i in others if not (own and self.pool[i] == doc)), count))
        else:
            drawn = self.random.sample(others, count + own)
            chosen = [i for i in drawn if not (own and self.pool[i] == doc)][:count]
            if len(chosen) < count:  # a row that is there twice was drawn twice
                left = [i for i in others if self.pool[i] != doc]
                chosen = self.random.sample(left, min(count, len(left)))
        if len(chosen) < count:
            raise InputError(
                f"{self.config.where}: num_fewshot is {count}; only {len(chosen)} of the {len(self.pool)} rows to draw "
                f"examples from are not the question itself ({place}), and no more are allowed"
            )
        return [self.turns[i] for i in chosen]
