"""Rows of data sets: written, read back, refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vdengine.data.formats import Row, choose_format, read
from vdengine.data.locate import resolve
from vdengine.errors import InputError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(name: str | Path, kind: str = "preference", format: str = "auto") -> tuple[list[Row], Counter[str], str]:
    source = resolve(str(name))
    format = choose_format(source, format, kind)
    dropped: Counter[str] = Counter()
    return list(read(source, format, kind, dropped)), dropped, format


def one(tmp_path: Path, row: dict[str, Any], kind: str = "preference") -> tuple[Any, str]:
    """The example of a file of one row, and the format found."""
    rows, dropped, format = load(write(tmp_path / "one.jsonl", [row]), kind)
    assert not dropped
    return rows[0].example, format


def error(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message
