"""Reading the rows of one file as they are: JSON (one object a line, or one array), Parquet, Arrow.

Memory is bounded: a line of text, and the mean row of a Parquet row group, may have `ROW_BYTES`; and of a table so few
rows are made at a time that even rows which all repeat one long value take `LARGE` bytes at most.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from vdengine.data.meanings import UNREAD, is_read, message_meaning
from vdengine.errors import InputError
from vdengine.outside import LARGE, MIB, first_line, open_regular, parse_json, parsing, printable

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow")
# What lies beside data and describes it, as `datasets`, the hub and other tools name it.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
# Of one row. A row that can be trained on has some texts of `max_tokens` (100,000 tokens are about 0.5 MB), and what
# else its line has is parsed with it. This is far above both, and keeps a line of a .gz from filling the memory.
ROW_BYTES = 64 * MIB
_BATCH = 256  # rows of a table that are made at a time, at most

T = TypeVar("T")


class _Every(Container[str]):
    """All names."""

    def __contains__(self, name: object) -> bool:
        return True


EVERY = _Every()  # for `also` of `raw_rows`: every column is read


def is_data(name: str) -> bool:
    """Whether a file of this name has rows."""
    return not name.startswith(".") and name.endswith(EXTENSIONS) and name not in METADATA


def raw_rows(path: Path, label: str, also: Container[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one file in order, each after its place for messages. Lines and rows are counted from 1 there.

    Of Parquet and Arrow only columns that `data.meanings` knows are read; the others have the value `UNREAD`.

    Args:
        also: other columns to read.

    Raises:
        InputError: a file that cannot be read, broken JSON, or a row that is not a JSON object.
    """
    if path.name.endswith((".parquet", ".arrow")):
        rows = _table_rows(path, label, also)
    elif _is_array(path, label):
        rows = _array_rows(path, label)
    else:
        rows = _line_rows(path, label)
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row must be a JSON object, this one is {json_kind(row)}")
        yield where, row


def count(path: Path, label: str) -> int:
    """The number of rows of a file.

    Raises:
        InputError: it cannot be read.
    """
    if path.name.endswith(".parquet"):
        import pyarrow.parquet

        with open_regular(path) as file, parsing(label, "Parquet file"):
            return int(pyarrow.parquet.read_metadata(file).num_rows)
    if path.name.endswith(".arrow"):
        return sum(batch.num_rows for _, batch in _arrow_batches(path, label))
    if _is_array(path, label):
        return sum(1 for _ in _array_rows(path, label))
    return sum(1 for _, line in _lines(path, label) if line.strip(b"\xef\xbb\xbf \t\r\n"))


def json_kind(value: Any) -> str:
    """The JSON type of a value, for messages: "an object"."""
    names: dict[Any, str] = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"of type {type(value).__name__}")


# ------------------------------------------------------------------------------------------------- JSON


def _reading(path: Path, label: str, read: Callable[[IO[bytes]], T]) -> T:
    """What `read` takes from the file, which may be compressed, with one kind of error."""
    with open_regular(path) as raw:
        return _guarded(label, lambda: read(_opened(path, raw)))


def _opened(path: Path, raw: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(fileobj=raw, mode="rb") if path.name.endswith(".gz") else raw  # type: ignore[return-value]


def _guarded(label: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: cannot be read ({type(error).__name__}: {first_line(error)})") from None


def _is_array(path: Path, label: str) -> bool:
    """Whether a .json file holds one array. Otherwise it holds one object per line, as many .json files do."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    return _reading(path, label, lambda file: file.read(4096)).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _lines(path: Path, label: str) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, from 1."""
    with open_regular(path) as raw:
        file = _opened(path, raw)
        number = 0
        while line := _guarded(label, lambda: file.readline(ROW_BYTES + 1)):
            number += 1
            if len(line) > ROW_BYTES:
                raise InputError(f"{label} line {number}: has more than {ROW_BYTES // MIB} MiB, the most of one row")
            yield number, line


def _line_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path, label):
        where = f"{label} line {number}"
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line := line.rstrip():
            yield where, parse_json(_text(line, where, "line"), where)


def _array_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    data = _reading(path, label, _all)
    if len(data) > LARGE:
        raise InputError(f"{label}: an array of more than {LARGE // MIB} MiB; write one row a line (.jsonl)")
    rows = parse_json(_text(data, label, "file"), label)
    del data
    for number, row in enumerate(rows, 1):
        yield f"{label} row {number}", row


def _all(file: IO[bytes]) -> bytearray:
    """What the file holds, or the first bytes of it, above `LARGE`. In blocks: read(n) asks for n bytes of memory,
    however short the file."""
    data = bytearray()
    while len(data) <= LARGE and (block := file.read(MIB)):
        data += block
    return data


def _text(data: bytes | bytearray, where: str, unit: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start + 1} of the {unit})") from None


# ------------------------------------------------------------------------------------------------- tables


def _table_rows(path: Path, label: str, also: Container[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    batches = _parquet_batches(path, label, also) if path.name.endswith(".parquet") else _arrow_batches(path, label)
    number = 0
    for names, batch in batches:
        columns = [name for name in names if is_read(name) or name in also]
        unread = dict.fromkeys(names, UNREAD)
        for first, size in _parts(batch, label):
            with parsing(f"{label} rows {number + 1} to {number + size}", "table"):
                rows = _as_dicts(batch.slice(first, size), columns, also, label)
            for row in rows:
                number += 1
                yield f"{label} row {number}", {**unread, **row}


def _parts(batch: Any, label: str) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the parts in which a record batch is made into rows."""
    with parsing(label, "table"):
        size = _at_once(batch.nbytes)
    for first in range(0, batch.num_rows, size):
        yield first, min(size, batch.num_rows - first)


def _at_once(num_bytes: int) -> int:
    """How many rows to make at a time of values that have `num_bytes` together where they are stored. A dictionary has
    a value once that all rows may have, so each row may become as large as all that is stored."""
    return max(1, min(_BATCH, LARGE // 2 // max(num_bytes, 1)))  # as columns, and as rows made of them


def _parquet_batches(path: Path, label: str, also: Container[str]) -> Iterator[tuple[list[str], Any]]:
    """The names of all columns, and a batch of those that are read."""
    import pyarrow.parquet

    with open_regular(path) as raw:
        with parsing(label, "Parquet file"):
            file = pyarrow.parquet.ParquetFile(raw)
            names: list[str] = file.schema_arrow.names
            columns = [name for name in names if is_read(name) or name in also]
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            # Of all columns: to ask pyarrow for one column of a damaged file may end the process.
            sizes = [(group.total_byte_size, group.num_rows) for group in groups]
        if any(size > ROW_BYTES * max(rows, 1) for size, rows in sizes):
            raise InputError(f"{label}: its rows have more than {ROW_BYTES // MIB} MiB each, the most of one row")
        at_once = _at_once(max((size for size, _ in sizes), default=0))
        with parsing(label, "Parquet file"):
            batches = file.iter_batches(batch_size=at_once, columns=columns)
        for batch in _each(batches, label, "Parquet file"):
            yield names, batch


def _arrow_batches(path: Path, label: str) -> Iterator[tuple[list[str], Any]]:
    """The names of the columns, and a record batch, of a file in either of Arrow's formats."""
    import pyarrow.ipc

    with open_regular(path) as raw:
        begin = raw.read(6)
        raw.seek(0)
        with parsing(label, "Arrow file"):
            if begin == b"ARROW1":
                table = pyarrow.ipc.open_file(raw)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(raw))
        for batch in _each(batches, label, "Arrow file"):
            with parsing(label, "Arrow file"):
                batch.validate(full=True)  # offsets of the file are addresses otherwise
                names = batch.schema.names
            yield names, batch


def _each(items: Iterator[T], label: str, what: str) -> Iterator[T]:
    """The items of another library's iterator, with one kind of error."""
    while True:
        with parsing(label, what):
            item = next(items, None)
        if item is None:
            return
        yield item


def _as_dicts(batch: Any, columns: list[str], also: Container[str], label: str) -> list[dict[str, Any]]:
    """The rows of a record batch. Times are integers: no row needs them, and not all of them are dates of Python's.

    Raises:
        InputError: times where a number or a text has a meaning, as a margin or a weight.
    """
    import pyarrow

    if not columns:
        return [{} for _ in range(batch.num_rows)]
    table = pyarrow.Table.from_batches([batch]).select(columns)
    there = [name for name in columns if is_read(name) and name not in also]
    meant = [n if n in there and table[n].null_count < len(table) else None for n in table.schema.names]
    types = [_timeless(f.type, label, name) for f, name in zip(table.schema, meant, strict=True)]
    if types != table.schema.types:
        table = table.cast(pyarrow.schema([f.with_type(t) for f, t in zip(table.schema, types, strict=True)]))
    return table.to_pylist()  # type: ignore[no-any-return]


def _timeless(type: Any, label: str, meant: str | None) -> Any:
    """An Arrow type with integers in place of times and dates.

    Args:
        meant: the column or field that it is the type of, if it has a meaning; None: it has none.

    Raises:
        InputError: times in what has a meaning.
    """
    import pyarrow
    from pyarrow import types

    if types.is_temporal(type) and meant is not None:
        raise InputError(f"{label}: '{printable(meant)}' holds times ({type}), which say nothing there; leave it out")
    if types.is_temporal(type) and not types.is_interval(type):
        return pyarrow.int32() if type.bit_width == 32 else pyarrow.int64()
    if types.is_struct(type):
        fields = [type.field(i) for i in range(type.num_fields)]
        named = [f.name if message_meaning(f.name) not in (None, "harmless") else None for f in fields]
        return pyarrow.struct([f.with_type(_timeless(f.type, label, n)) for f, n in zip(fields, named, strict=True)])
    if types.is_list(type) or types.is_large_list(type):
        inner = type.value_field.with_type(_timeless(type.value_type, label, meant))
        return pyarrow.list_(inner) if types.is_list(type) else pyarrow.large_list(inner)
    return type
