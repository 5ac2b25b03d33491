"""Rows of multiple choice without a task file, in the shapes of well-known sets, known by their columns.

Each shape has the prompt that lm-evaluation-harness 0.4 gives to the set of its name, without examples.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdengine.data.locate import resolve
from vdengine.data.rowfiles import EVERY
from vdengine.errors import InputError
from vdengine.outside import first_line, printable
from vdengine.tasks.fields import Place, checked
from vdengine.tasks.task_files import TaskConfig

Doc = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A set's columns, and how its rows become questions."""

    name: str
    columns: tuple[str, ...]  # by which it is known; a row may have others
    doc_to_text: str
    doc_to_choice: Any
    doc_to_target: str
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    description: str | None = None
    prepare: Callable[[Doc], Doc] = dict  # a row as the fields above read it


def _hellaswag(row: Doc) -> Doc:
    """Hellaswag's texts come from WikiHow, with its marks in brackets."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return row | {"query": clean(query), "choices": [clean(ending) for ending in row["endings"]]}


def _gpqa(row: Doc) -> Doc:
    """The order of the choices is drawn by what the row says: the same in any file, on any machine.
    lm-evaluation-harness draws it by a random state that its version and its other tasks decide."""

    def clean(text: str) -> str:
        return text.strip().replace(" [title]", ". ").replace("  ", " ")

    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    drawn = sorted(names, key=lambda name: hashlib.blake2b(f"{row['Question']}\0{row[name]}".encode()).digest())
    choices = {f"choice{i}": clean(row[name]) for i, name in enumerate(drawn, 1)}
    return row | choices | {"answer": f"({'ABCD'[drawn.index(names[0])]})"}


def _letters(row: Doc) -> Doc:
    """The answer of a row with lettered choices as its letter."""
    letters = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return row | {"letters": letters, "subject": str(row.get("subject") or "").replace("_", " ")}


SHAPES = (
    Shape(
        "hellaswag",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        "{{query}}",
        "choices",
        "{{label}}",
        prepare=_hellaswag,
    ),
    Shape("piqa", ("goal", "sol1", "sol2", "label"), "Question: {{goal}}\nAnswer:", "{{[sol1, sol2]}}", "{{label}}"),
    Shape(
        "gpqa",
        ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        "What is the correct answer to this question:{{Question}}\nChoices:\n(A) {{choice1}}\n(B) {{choice2}}\n"
        "(C) {{choice3}}\n(D) {{choice4}}\nAnswer:",
        ["(A)", "(B)", "(C)", "(D)"],
        "{{answer}}",
        prepare=_gpqa,
    ),
    Shape(
        "mmlu",
        ("question", "choices", "answer"),
        "{{question.strip()}}\n{% for choice in choices %}{{letters[loop.index0]}}. {{choice}}\n{% endfor %}Answer:",
        "letters",
        "{{answer}}",
        ("acc",),
        "{% if subject %}The following are multiple choice questions (with answers) about {{subject}}.\n\n{% endif %}",
        _letters,
    ),
    Shape("query", ("query", "choices", "gold"), "{{query}}", "choices", "{{gold}}"),
)


def read_rows(source: str) -> TaskConfig:
    """The task of rows in a known shape, named after their file.

    Raises:
        InputError: they cannot be read, fit no shape, or do not have its columns throughout.
    """
    rows = checked(resolve(source).rows_with(EVERY))
    if not rows:
        raise InputError(f"{printable(source)}: has no rows")
    fitting = [shape for shape in SHAPES if all(column in rows[0][1] for column in shape.columns)]
    if not fitting:
        known = "; ".join(f"{shape.name}: {', '.join(shape.columns)}" for shape in SHAPES)
        raise InputError(
            f"{rows[0][0]}: the columns {printable(', '.join(rows[0][1])[:200])} are of no task that is known "
            f"({known}); write a task file (.yaml) that says what they mean"
        )
    shape = fitting[0]
    fields = {name: getattr(shape, name) for name in ("doc_to_text", "doc_to_choice", "doc_to_target")}
    stem = Path(source.rpartition(":")[0] or source).name.split(".")[0] or shape.name
    docs = list(_prepared(rows, shape))
    return TaskConfig(printable(source), stem, docs, fields, shape.metrics, shape.description)


def _prepared(rows: list[Place], shape: Shape) -> Iterator[Place]:
    for place, row in rows:
        try:
            yield place, shape.prepare(row)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{place}: not a row of the shape {shape.name}, which has the columns {', '.join(shape.columns)} "
                f"({type(error).__name__}: {first_line(error)})"
            ) from None
