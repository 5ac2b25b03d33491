"""What a task file says of a row's text, choices and target: a column's name, a jinja2 template, or the value itself.

The rules are those of lm-evaluation-harness 0.4: a text that is the name of a column means the column; other text is a
template; a template that gives digits is the number of a choice, one that gives a list of Python's is the list.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdengine.errors import InputError
from vdengine.outside import is_text, parsing
from vdengine.settings import shown
from vdengine.text.template_worker import RowTemplates

Place = tuple[str, dict[str, Any]]  # a row after its place for messages

MAX_CHOICES = 1000


class FieldReader:
    """Reads the fields of rows.

    Args:
        where: names the task in errors.
        fields: by name: "doc_to_text", "doc_to_choice", "doc_to_target" and "description", as the file has them.
    """

    def __init__(self, where: str, rows: Sequence[Place], fields: Mapping[str, Any]) -> None:
        self._where, self._fields = where, fields
        self._rows = [(place, {name: value for name, value in row.items() if _is_json(value)}) for place, row in rows]
        self._columns = {name for _, row in self._rows for name in row}
        templates = {n: f for n, f in fields.items() if isinstance(f, str) and f not in self._columns}
        self._worker = RowTemplates(where, templates)

    def texts(self, name: str) -> list[str]:
        """A text of every row; "" where the file has no such field."""
        if self._fields.get(name) in (None, ""):
            return [""] * len(self._rows)
        found = []
        for (place, _), value in zip(self._rows, self._values(name), strict=True):
            if name == "doc_to_text" and (type(value) is int or isinstance(value, str) and value.isdigit()):
                raise InputError(
                    f"{place}: {name} gives the number {shown(value)}: choices that are put into the prompt (several "
                    "inputs) are not supported"
                )
            if not isinstance(value, str) or not is_text(value):
                raise InputError(f"{place}: {name} gives {shown(value)}; it must be text")
            found.append(value)
        return found

    def choices(self) -> list[list[str]]:
        """The choices of every row."""
        name, found = "doc_to_choice", []
        for (place, _), value in zip(self._rows, self._values(name), strict=True):
            if isinstance(value, dict):
                value = list(value.values())
            if isinstance(value, str):
                value = _literal(value, f"{place}: {name}", "list of choices")
            if not isinstance(value, list) or not all(isinstance(c, str) and is_text(c) and c for c in value):
                raise InputError(
                    f"{place}: {name} gives {shown(value)}; it must be a list of texts, none of them empty"
                )
            if not 2 <= len(value) <= MAX_CHOICES:
                raise InputError(f"{place}: {name} gives {len(value)} choices; 2 to {MAX_CHOICES} are allowed")
            found.append(value)
        return found

    def targets(self) -> list[Any]:
        """The target of every row: a number, a text, or a list of either."""
        name, found = "doc_to_target", []
        is_template = isinstance(field := self._fields.get(name), str) and field not in self._columns
        for (place, _), value in zip(self._rows, self._values(name), strict=True):
            if is_template and value.isdigit() and value.isascii() and len(value) < 10:
                value = int(value)
            elif is_template and value[:1] == "[" and value[-1:] == "]":
                try:
                    value = _literal(value, f"{place}: {name}", "list")
                except InputError:
                    pass  # a text in brackets
            found.append(value)
        return found

    def _values(self, name: str) -> list[Any]:
        """What the field gives for every row, as it is."""
        field = self._fields.get(name)
        if field is None:
            raise InputError(f"{self._where}: {name} is missing")
        if not isinstance(field, str):
            return [field] * len(self._rows)
        if field not in self._columns:
            return list(self._worker.render([(name, place, row) for place, row in self._rows]))
        for place, row in self._rows:
            if field not in row:
                raise InputError(f"{place}: {name} names the column {shown(field)}, which the row does not have")
        return [row[field] for _, row in self._rows]


def checked(rows: Iterable[Place]) -> list[Place]:
    """Rows whose texts are text.

    Raises:
        InputError: as `check_texts`.
    """
    found = []
    for place, row in rows:
        check_texts(row, place)
        found.append((place, row))
    return found


def check_texts(table: Mapping[str, Any], where: str) -> None:
    """Raises InputError where half of a surrogate pair stands in a text of a table, at any depth: no file and no
    tokenizer can take it."""
    for name, value in table.items():
        left = [name, value]
        while left:
            one = left.pop()
            if isinstance(one, str) and not is_text(one):
                raise InputError(f"{where}: {shown(name)} has half of a surrogate pair in it, which is no text")
            if isinstance(one, dict):
                left += [*one, *one.values()]
            elif isinstance(one, list | tuple):
                left += one


def _literal(text: str, where: str, what: str) -> Any:
    """The value of a literal of Python."""
    with parsing(where, what):
        return ast.literal_eval(text)


def _is_json(value: Any) -> bool:
    """Whether a template may see a value: pictures and sounds are none."""
    if isinstance(value, str | int | float | None):
        return True
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
