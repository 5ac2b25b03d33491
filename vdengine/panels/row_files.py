"""Rows of JSON and CSV files, each with its file and line for error messages."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdengine.data.locate import resolve
from vdengine.errors import InputError


def stem_of(path: Path) -> str:
    """A file's name up to its first dot."""
    return path.name.split(".")[0] or "panel"


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file line 3", row) of each row of a file of JSON objects: one a line, or one array.

    Raises:
        InputError: another kind of file, or one that cannot be read.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        raise InputError(f"{path}: this kind is read from a .jsonl or .json file (also .gz)")
    yield from resolve(str(path)).rows()


def text_field(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text field of a JSON row; where: file and line.

    Raises:
        InputError: it is missing, or no text.
    """
    if key not in row:
        raise InputError(f"{where}: no field '{key}' among {', '.join(row) or 'none'}: not a file of this kind")
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
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line}: not UTF-8 (byte {error.start + 1} of the file)") from None
    first_line = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first_line.count), strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # a long text is no error; the limit is that of the whole csv module
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise InputError(f"{path} line 1: column {repeated[0]!r} is there twice")
        for name in required:
            if name not in header:
                raise InputError(f"{path}: no column {name!r} among {', '.join(header) or 'none'}")
        rows = []
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(header):
                    raise InputError(
                        f"{path} line {line}: {len(cells)} cells, but the header names {len(header)} columns"
                    )
                rows.append((f"{path} line {line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path} line {line}: broken table ({error})") from None
    finally:
        csv.field_size_limit(limit)
    yield from rows
