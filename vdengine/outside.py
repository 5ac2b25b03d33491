"""What comes from outside, read with bounds: files of other people, and other libraries' parsers of them.

Every reader of a file or a text that someone else has written goes through here, so that whatever is in it, the end is
a value of the expected kind or an `InputError` that names the place:

    text = read_text(path, "the panel")                  # a regular file, not above a size, UTF-8
    value = parse_json(line, f"{path} line {number}")    # any depth of brackets, any number of digits
    with parsing(path, "tokenizer"):                     # a library's parser, which has errors of its own
        tokenizer = Tokenizer.from_str(text)
"""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeGuard

from vdengine import errors
from vdengine.errors import InputError

MIB = 2**20
SMALL = 16 * MIB  # a file that a person could have written: a recipe, config.json, a manifest
LARGE = 1024 * MIB  # a file that is read whole all the same: a tokenizer, a log


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file for reading. A FIFO, a device or a folder is refused, and never waited for.

    Raises:
        InputError: there is no such file, it is none, or it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{printable(path)}: {_why(error)}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(f"{printable(path)}: not a regular file")
    return os.fdopen(fd, "rb")


def read_bytes(path: str | Path, limit: int = SMALL) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: as `open_regular`; it has more than `limit` bytes.
    """
    data, left = bytearray(), limit + 1
    with open_regular(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > limit:
                left = 0
            # in blocks: read(n) asks for n bytes of memory, however short the file; some have a size of 0, as in /proc
            while left and (block := file.read(min(left, MIB))):
                data += block
                left -= len(block)
        except OSError as error:
            raise InputError(f"{printable(path)}: {_why(error)}") from None
    if not left:
        raise InputError(f"{printable(path)}: has more than {limit // MIB} MiB, the most that is read of such a file")
    return bytes(data)


def read_text(path: str | Path, limit: int = SMALL) -> str:
    """The text of a UTF-8 file, line ends as they are.

    Raises:
        InputError: as `read_bytes`; it is not UTF-8.
    """
    return decode(read_bytes(path, limit), printable(path))


def decode(data: bytes, where: str) -> str:
    """UTF-8 bytes as text; a byte order mark at the start is left out.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        line = f"line {number}: " if b"\n" in data else ""
        raise InputError(f"{where}: {line}not UTF-8") from None


def parse_json(data: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        InputError: broken JSON, nested too deeply, an integer of thousands of digits, or an object with a key twice (of
            which json would keep the last value).
    """
    text = decode(data, where) if isinstance(data, bytes) else data
    try:
        return _JSON.decode(text)
    except _RepeatedKey as error:
        raise InputError(f"{where}: the key '{printable(error.args[0][:60])}' stands twice in one object") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if "\n" in text.strip() else ""
        raise InputError(f"{where}: {line}broken JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise InputError(f"{where}: broken JSON (nested too deeply)") from None
    except (ValueError, MemoryError) as error:  # an integer of thousands of digits
        raise InputError(f"{where}: broken JSON ({first_line(error).split(';')[0]})") from None


class _RepeatedKey(Exception):
    """The key."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        InputError: as `parse_json`.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{where}: not valid TOML: nested too deeply") from None
    except (ValueError, MemoryError) as error:  # tomllib.TOMLDecodeError is a ValueError
        raise InputError(f"{where}: not valid TOML: {first_line(error)}") from None


def json_object(path: str | Path, limit: int = SMALL) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: as `read_text` and `parse_json`; it holds something else than an object.
    """
    value = parse_json(read_text(path, limit), printable(path))
    if not isinstance(value, dict):
        raise InputError(f"{printable(path)}: holds a {type(value).__name__}, not a JSON object")
    return value


def json_lines(path: str | Path, limit: int = LARGE) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of a log of JSON; place: "FILE, line 3".

    Lines are split at newlines alone (a JSON text may hold U+2028). What follows the last newline was cut short by a
    crash, perhaps inside a character, and is left out; blank lines are skipped.

    Raises:
        InputError: as `read_bytes` and `parse_json`.
    """
    for number, line in enumerate(read_bytes(path, limit).split(b"\n")[:-1], start=1):
        if line.strip():
            place = f"{printable(path)}, line {number}"
            yield place, parse_json(line, place)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value from a JSON text is one that a file can hold: no half of a surrogate pair is in it."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def is_count(value: Any, limit: int = 2**53) -> TypeGuard[int]:
    """Whether a value from a JSON text is a whole number from 0 to below `limit`."""
    return type(value) is int and 0 <= value < limit


@contextmanager
def parsing(where: str | Path, what: str) -> Iterator[None]:
    """A context for another library's parser of something from outside: any error of it means bad input, because such
    parsers have errors of many types, some of which are no `Exception` (a panic in Rust).

    Nothing of our own belongs inside, as its faults would be taken for the input's.

    Raises:
        InputError: in place of whatever the library raises; an InputError goes through.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(
            f"{printable(where)}: not a usable {what} ({type(error).__name__}: {first_line(error)})"
        ) from None


def first_line(error: BaseException, width: int = 200) -> str:
    """The first line of an error's message, cut to `width` characters."""
    lines = str(error).strip().splitlines()
    text = printable(lines[0].strip()) if lines else "no message"
    return text if len(text) <= width else text[: width - 3] + "..."


def printable(text: str | Path) -> str:
    """A path or a text on one line, without control characters."""
    return errors.printable(str(text))


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror[0].lower()}{error.strerror[1:]}"
    return f"cannot be read: {first_line(error)}"
