"""Rows of JSON and CSV files, each with its file and line for error messages."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdengine.data.locate import resolve
from vdengine.errors import InputError
from vdengine.outside import LARGE, first_line, printable, read_bytes


def stem_of(path: Path) -> str:
    """A file's name up to its first dot."""
    return path.name.split(".")[0] or "panel"


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file line 3", row) of each row of a file of JSON objects: one a line, or one array.

    Raises:
        InputError: another kind of file, or one that cannot be read.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        raise InputError(f"{printable(path)}: this kind is read from a .jsonl or .json file (also .gz)")
    yield from resolve(str(path)).rows()


def text_field(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text field of a JSON row; where: file and line.

    Raises:
        InputError: it is missing, or no text.
    """
    if key not in row:
        known = printable(", ".join(row)[:200]) or "none"
        raise InputError(f"{where}: no field '{key}' among {known}: not a file of this kind")
    if not isinstance(row[key], str):
        raise InputError(f"{where}: field '{key}' must be text")
    return row[key]


def csv_rows(path: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """("file line 3", cells by column) of each row of a table; separated by comma, semicolon or tab.

    Args:
        required: columns that the header must have.

    Raises:
        InputError: a file that cannot be read, or is no table.
    """
    data, name = read_bytes(path, LARGE), printable(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {line}: not UTF-8; save the table as CSV UTF-8") from None
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # a long text is no error; the limit is that of the whole csv module
    line = 1
    try:
        header = [column.strip() for column in next(reader, [])]
        names = printable(", ".join(header)[:200]) or "none"
        if repeated := [column for column, count in Counter(header).items() if count > 1]:
            raise InputError(f"{name} line 1: column {printable(repeated[0][:100])!r} is there twice")
        for column in required:
            if column not in header:
                raise InputError(f"{name}: no column {column!r} among {names}")
        rows = []
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(header):
                    raise InputError(
                        f"{name} line {line}: {len(cells)} cells, but the header names {len(header)} columns"
                    )
                rows.append((f"{name} line {line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name} line {line}: broken table ({first_line(error)})") from None
    finally:
        csv.field_size_limit(limit)
    yield from rows
