"""Hostile inputs for readers of what comes from outside, and the rule that a reader must keep.

A reader returns, or raises an `InputError` whose message is one line that can be printed. A finding is anything else:
another exception, the end of the process, more than `SECONDS`, or a request for more than `MEMORY_BYTES`. So inputs
are read in a process of their own, which may die.

An input is a folder of small files: a whole one (a seed) with one to three mutations. It is a function of (seed of the
campaign, format, number), so that a finding is named by these and can be made again.
"""

from __future__ import annotations

import csv
import faulthandler
import gzip
import io
import json
import math
import multiprocessing
import os
import pickletools
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from vdengine.errors import LONGEST, InputError

SECONDS = 10.0
MEMORY_BYTES = 1 << 30  # of addresses, above what the process has when it begins
RUN = 400  # inputs that a process reads before a fresh one takes its place

ODD = ("missing", "folder", "fifo", "loop", "device")  # what may stand where a file should be
Files = dict[str, bytes | str]  # content, or one of ODD, by path in the folder


@dataclass(frozen=True)
class Format:
    """What a reader reads."""

    name: str
    room: str  # whose reader it is
    seeds: Callable[[], list[Files]]  # whole inputs, which the reader takes
    target: Callable[[Path], object]  # reads such a folder
    mutated: str = ""  # a regular expression: only files whose path it matches are changed
    share: float = 1.0  # of a campaign's inputs, beside the other formats'
    repair: Callable[[Files], Files] | None = None  # makes hashes right again, for most of the inputs


# ------------------------------------------------------------------------------------------------------ mutations

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    -(2**63) - 1, 10**400, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"),
    "", " ", "\0", "a\0b", "\ud800", "x\udfff", "\u2028", "a\u0085b", "\r\n", "\x1b[31m", "../../x", "/dev/zero",
    "a" * 3000,
    "\U0001f642" * 50, "NaN", "1", "8.0", "true", "(a+)+$", "{{ 7 * 7 }}", "<script>", "=1+1", "{{", "regex:(a|a)*b",
    [], [[]], [None], [1, "a", None], ["a"] * 2000, {}, {"": {}}, {"a": None}, [[[[[[[[1]]]]]]]], [{"a": [{"b": {}}]}],
]  # fmt: skip
NAMES = [  # of keys, some of which say something in a format that others write
    "", "x", "\ud800", "a\nb", "__class__", "tools", "functions", "images", "label", "weight", "train", "mask", "score",
    "reasoning_content", "thinking", "chat_template", "input_ids", "prefix", "system", "topic", "messages", "content",
    "rope_scaling", "quantization_config", "auto_map", "layer_types", "sliding_window", "tie_word_embeddings",
    "type", "added_tokens", "byte_fallback", "weight_map", "step", "hash", "schema", "id",
]  # fmt: skip
NUMBERS = [
    0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1
]  # fmt: skip
RAW = [  # tokens that no value is written as
    "9" * 5000, "-" + "9" * 5000, "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity", "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000, "[" * 100_000, "", "nul", "'x'", "0x10", "01", "1_000", '"\\u0000"',
    '"\\ud800"', '"\\ud83d\\ude00"', '"\\x"', '"', "/**/1", "[1,]", '{"a":1,"a":2}', "\0", "\ufeff1",
]  # fmt: skip
TOML = [
    "0", "-1", "1", "2", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" * 5000, "1e400",
    "1e308",
    "1e-320", "-0.0", "nan", "inf", "-inf", "true", "false", "''", "' '", '"\\u0000"', '"\\u2028"', '"\\ud800"',
    '"' + "a" * 3000 + '"',
    "[]", "[[]]", "['']", "['a', 'b']", "[1, 'a']", "[nan]", "{}", "{a = 1}", "{a = {b = {}}}", "[" * 600 + "]" * 600,
    "{a=" * 2000, "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "0x7fffffffffffffff", "1_000", "'../../x'",
    "'/dev/zero'",
    '"""', "", "a b", "'regex:(a|a)*b'", "'auto'", "'none'", "'regex:('", "[0.9, 0.999]", "[1.0, 1.0]", "[[1]]",
    "'hf/x y'",
]  # fmt: skip


def mutate(rng: Random, path: str, data: bytes) -> bytes | str:
    """A content with one thing in it changed, or one of ODD in its place."""
    return rng.choice((*ODD, b"")) if rng.random() < 0.02 else damage(rng, path, data)


def damage(rng: Random, path: str, data: bytes) -> bytes:
    """A content with one thing in it changed, as its suffix says or byte by byte."""
    by_suffix = _BY_SUFFIX.get(Path(path).suffix or Path(path).name)
    if by_suffix is not None and rng.random() < 0.75:
        try:
            return by_suffix(rng, data)
        except Exception:  # an earlier mutation has broken its structure
            pass
    return _bytes(rng, data)


def _bytes(rng: Random, data: bytes) -> bytes:
    """Bytes flipped, cut, lost, put in, repeated or overwritten by a number."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    size = rng.choice((1, 1, 2, 4, 8, 64, 1000))
    match rng.randrange(8):
        case 0 | 1 if out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        case 2:
            del out[at:]
        case 3:
            del out[at : at + size]
        case 4:
            out[at:at] = rng.randbytes(size)
        case 5:
            out[at:at] = out[at : at + size]
        case 6:
            out[at : at + size] = rng.choice((b"\0", b"\xff", b"\n", b" ", b"\xe2\x80\xa8", b"\x80", b'"')) * min(
                size, 64
            )
        case _:
            out[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
    return bytes(out)


def change_value(rng: Random, value: Any) -> Any:
    """A JSON value with one place in it changed."""
    places = list(_places(value))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    old = holder[key]
    match rng.randrange(12):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice((*NAMES, key + " ", key.upper()))] = holder.pop(key)
        case 2:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        case 3:
            holder[key] = [old]
        case 4 if isinstance(old, str):
            at = rng.randrange(len(old) + 1)
            holder[key] = old[:at] + rng.choice([v for v in VALUES if isinstance(v, str)]) + old[at:]
        case 5 if isinstance(old, list) and old:
            holder[key] = rng.choice((old[:-1], old[::-1], old + old, old * 50, old[1:]))
        case 6 if isinstance(old, int | float):
            holder[key] = rng.choice((-old, old + 1, old - 1, old * 1.5, float(old), str(old), old * 2**20))
        case 7:
            holder[key] = f"@raw{rng.randrange(len(RAW))}@"
        case _:
            holder[key] = rng.choice(VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of what a JSON value holds. Of a long list only some, so that the rest has its share."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items if len(items) < 40 else items[:4] + items[-4:]:
        yield value, key
        yield from _places(inner)


def _json_text(rng: Random, value: Any) -> bytes:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    finally:
        sys.set_int_max_str_digits(limit)
    return re.sub(r'"@raw(\d+)@"', lambda m: RAW[int(m[1])], text).encode("utf-8", "surrogatepass")


def _json(rng: Random, data: bytes) -> bytes:
    return _json_text(rng, change_value(rng, json.loads(data)))


def _lines(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(10):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        case 2:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        case 3:
            lines.insert(
                at, rng.choice((b"{}", b"[]", b"null", b"\0", b"\xff", b"1", b'"a"', b"\r", b"\xef\xbb\xbf{}", b" "))
            )
        case 4:
            return rng.choice((b"\r\n", b"\n\n", b"", "\u2028".encode())).join(lines)
        case _:
            lines[at] = _json(rng, lines[at] or lines[0])
    return b"\n".join(lines)


def _toml(rng: Random, data: bytes) -> bytes:
    lines = data.decode().split("\n")
    keys = [i for i, line in enumerate(lines) if "=" in line]
    at = rng.choice(keys)
    name, _, value = lines[at].partition("=")
    match rng.randrange(10):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        case 2:
            lines[at] = (
                rng.choice((name.strip() + "x", "a.b.c", '""', '"\\n"', name.strip() + ".a", "run.seed")) + "=" + value
            )
        case 3:
            lines[at] = name + "=" + lines[rng.choice(keys)].partition("=")[2]
        case 4:
            lines.insert(at, rng.choice(("[run]", "[a.b]", "[[data]]", "[data", "[]", "[run.x]", "x", "\0", "[" * 600)))
        case _:
            lines[at] = name + "= " + rng.choice(TOML)
    return "\n".join(lines).encode()


def _csv(rng: Random, data: bytes) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    row = rng.choice(rows)
    match rng.randrange(8):
        case 0:
            rows.remove(row)
        case 1:
            rows.append(row)
        case 2:
            row.pop()
        case 3:
            row.append("x")
        case 4:
            row[rng.randrange(len(row))] = "a" * 200_000  # above the csv module's limit of a field
        case _:
            row[rng.randrange(len(row))] = str(rng.choice(VALUES))[:5000]
    out = io.StringIO()
    csv.writer(out, delimiter=rng.choice((",", ",", ",", ";", "\t"))).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _inside(head: float) -> Callable[[Random, bytes], bytes]:
    """Changes of bytes, half of them in the last part of the file, where its description is."""

    def change(rng: Random, data: bytes) -> bytes:
        at = int(len(data) * head) if rng.random() < 0.5 else 0
        return data[:at] + _bytes(rng, data[at:])

    return change


def _npy(rng: Random, data: bytes) -> bytes:
    """Another number in an array, or another header."""
    array = np.load(io.BytesIO(data)).copy()
    match rng.randrange(6):
        case 0:
            array = rng.choice((array[:-1], np.append(array, array[-1:]), array.reshape(1, -1), array[::-1]))
        case 1:
            array = array.astype(rng.choice(("int8", "float64", ">i8", "complex64", "S4", "bool")))
        case 2:
            head, sep, rest = data.partition(b"\n")
            fields = rng.choice((b"(1099511627776,)", b"(-1,)", b"(True,)", b"()", b"(2**60,)", b"(5", b"'x'"))
            return re.sub(rb"\(\d*,?\)", fields, head)[: len(head)].ljust(len(head)) + sep + rest
        case _:
            flat = array.view(f"u{array.itemsize}")
            for _ in range(rng.choice((1, 1, 3))):
                at, old = rng.randrange(len(flat)), int(flat[rng.randrange(len(flat))])
                number = rng.choice((*NUMBERS, old, old + 1, old - 1, -1))
                flat[at] = number % 2 ** (8 * array.itemsize)
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _gz(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.02:
        return gzip.compress(b'{"a":"') + 256 * gzip.compress(b"a" * (1 << 20))  # one line of 256 MiB
    text = gzip.decompress(data)
    return gzip.compress(_json(rng, text) if text.startswith(b"[") else _lines(rng, text), 1)


def _safetensors(rng: Random, data: bytes) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + size]
    if rng.random() < 0.4:  # what the library takes, and a model may not
        tensors = json.loads(header)
        name = rng.choice([name for name in tensors if name != "__metadata__"])
        tensor = tensors[name]
        match rng.randrange(4):
            case 0:
                tensor["dtype"] = rng.choice(("I32", "U32", "F32"))
            case 1:  # of half the bytes, twice as many
                tensor |= {
                    "dtype": rng.choice(("BF16", "F16", "I16")),
                    "shape": [*tensor["shape"][:-1], tensor["shape"][-1] * 2],
                }
            case 2:
                tensor["shape"] = rng.choice(
                    (tensor["shape"][::-1], [1, *tensor["shape"]], [math.prod(tensor["shape"])])
                )
            case _:
                tensors[rng.choice((name + "x", name.replace("0", "1"), "\ud800", "lm_head.weight"))] = tensors.pop(
                    name
                )
        header = json.dumps(tensors).encode()
    else:
        header = _json(rng, header)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _gguf(rng: Random, data: bytes) -> bytes:
    at, size = rng.choice(list(_gguf_fields(data)))
    number = (
        rng.choice(NUMBERS)
        if rng.random() < 0.6
        else int.from_bytes(data[at : at + size], "little") + rng.choice((-1, 1))
    )
    return data[:at] + (number % 2 ** (8 * size)).to_bytes(size, "little") + data[at + size :]


def _gguf_fields(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of the numbers of a GGUF header: counts, lengths, types, values, shapes, offsets."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def number(at: int, size: int) -> int:
        if at > len(data):  # an earlier mutation has broken a count or a length
            raise ValueError("past the end")
        return int.from_bytes(data[at : at + size], "little")

    def value(at: int, kind: int) -> Iterator[tuple[int, int]]:
        """The fields of a value; the last one, of no bytes, is where it ends."""
        if kind in sizes and at < len(data):
            yield at, sizes[kind]
            yield at + sizes[kind], 0
        elif kind == 8:
            yield at, 8
            yield at + 8 + number(at, 8), 0
        elif kind == 9:
            inner, count = number(at, 4), number(at + 4, 8)
            yield from ((at, 4), (at + 4, 8))
            at += 12
            for i in range(count):
                *fields, (at, _) = value(at, inner)
                yield from fields if i < 3 else ()
            yield at, 0

    yield from ((0, 4), (4, 4), (8, 8), (16, 8))
    tensors, pairs, at = number(8, 8), number(16, 8), 24
    for _ in range(pairs):
        yield at, 8
        at += 8 + number(at, 8)
        yield at, 4
        *fields, (at, _) = value(at + 4, number(at, 4))
        yield from fields
    for _ in range(tensors):
        yield at, 8
        at += 8 + number(at, 8)
        dimensions = min(number(at, 4), 8)
        yield at, 4
        yield from ((at + 4 + 8 * i, 8) for i in range(dimensions))
        at += 4 + 8 * dimensions
        yield from ((at, 4), (at + 4, 8))
        at += 12


def _text(rng: Random, data: bytes) -> bytes:
    text = data.decode()
    at = rng.randrange(len(text) + 1)
    word = rng.choice(
        [v for v in VALUES if isinstance(v, str)] + RAW + ["{% if", "%}", "}}", "{#", "</think>", "support"]
    )
    return (text[:at] + word + text[at + rng.choice((0, 0, 1, 5)) :]).encode("utf-8", "surrogatepass")


def _pickle(rng: Random, data: bytes) -> bytes:
    """Another number or text, opcodes lost, repeated or swapped, or a call put in that ends the process."""
    opcodes = [(opcode.name, value, place or 0) for opcode, value, place in pickletools.genops(data)]
    places = [place for _, _, place in opcodes] + [len(data)]
    i = rng.randrange(len(opcodes))
    at, end = places[i : i + 2]
    match rng.randrange(7):
        case 0:
            return data[:at] + data[end:]
        case 1:
            return data[:end] + data[at:end] * rng.choice((1, 2, 1000)) + data[end:]
        case 2:
            other = rng.randrange(len(opcodes))
            return data[:at] + data[places[other] : places[other + 1]] + data[end:]
        case 3:
            return data[:at] + rng.choice((b"cos\n_exit\n(K\x42tR", b"cbuiltins\nexec\n(X\x01\0\0\x001tR")) + data[at:]
    values = [(k, value) for k, (_, value, _) in enumerate(opcodes) if type(value) in (int, str)]
    k, value = rng.choice(values)
    if opcodes[k][0] in ("BININT", "BININT1", "BININT2", "LONG1"):
        number = rng.choice((*NUMBERS, value - 1, value + 1, -1)).to_bytes(9, "little", signed=True)
        new = b"\x8a\x09" + number
    elif isinstance(value, str):
        text = rng.choice((value[:-1], value + "x", "../" + value, "/dev/zero", "", "\0", value.replace("0", "1")))
        new = b"X" + struct.pack("<I", len(text.encode())) + text.encode()
    else:  # an index of the memo, a protocol
        new = data[places[k] : places[k] + 1] + bytes([rng.randrange(256)]) + data[places[k] + 2 : places[k + 1]]
    return data[: places[k]] + new + data[places[k + 1] :]


_BY_SUFFIX: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": _json, ".jsonl": _lines, ".toml": _toml, ".csv": _csv, ".gz": _gz, ".safetensors": _safetensors,
    ".gguf": _gguf, ".txt": _text, ".jinja": _text, ".metadata": _pickle, ".npy": _npy,
    ".parquet": _inside(0.6), ".arrow": _inside(0.5),
}  # fmt: skip


def make_input(format: Format, seeds: Sequence[Files], seed: int, number: int) -> Files:
    """Input `number` of a campaign. The first ones are the seeds as they are."""
    if number < len(seeds):
        return seeds[number]
    rng = Random(f"{seed} {format.name} {number}")
    files = dict(rng.choice(seeds))
    names = [name for name in files if re.search(format.mutated, name)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(names)
        content = files[name]
        if isinstance(content, bytes):
            files[name] = mutate(rng, name, content)
    return format.repair(files) if format.repair and rng.random() < 0.8 else files


def lay(folder: Path, files: Files) -> None:
    """Make `folder` hold these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "folder":
            path.mkdir()
        elif content == "fifo":
            os.mkfifo(path)
        elif content == "loop":
            path.symlink_to(path.name)
        elif content == "device":
            path.symlink_to("/dev/zero")


# ------------------------------------------------------------------------------------------------------ the rule


def verdict(target: Callable[[Path], object], folder: Path, *, whole: bool = False) -> tuple[str, str]:
    """("accepted", ""), ("refused", where) or ("finding", what was seen). A `whole` input must be accepted."""
    try:
        target(folder)
    except InputError as error:
        message = str(error)
        fault = "refuses a whole input" if whole else ""
        if len(message.splitlines()) != 1:
            fault = "message is not one line"
        elif len(message) > LONGEST:
            fault = f"message above {LONGEST} characters"
        elif not message.isprintable():
            fault = "message holds what cannot be printed"
        return ("finding", f"{fault} at {_place(error)}: {message[:200]!r}") if fault else ("refused", _place(error))
    except BaseException as error:  # a panic in Rust and SystemExit are no Exceptions
        first = (str(error).splitlines() or [""])[0][:200]
        return "finding", f"{type(error).__name__} at {_place(error)}: {first!r}"
    return "accepted", ""


def read_or_refused(read: Callable[[], object]) -> bool:
    """Whether `read` came to an end; else it must have kept the rule."""
    outcome, what = verdict(lambda _: read(), Path())
    if outcome == "finding":
        raise AssertionError(what)
    return outcome == "accepted"


def _place(error: BaseException) -> str:
    """The innermost line of the package that the error, or the one it stands for, passed through; not a guard's."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = error
    while isinstance(inner, InputError) and inner.__context__ is not None:
        inner = inner.__context__
        frames += traceback.extract_tb(inner.__traceback__)
    ours = [f for f in frames if "/vdengine/" in f.filename or "/kernels/" in f.filename]
    at = ([f for f in ours if not f.filename.endswith("/outside.py")] or ours or frames)[-1]
    return f"{'/'.join(Path(at.filename).parts[-2:])}:{at.lineno} {at.name}"


@dataclass(frozen=True)
class Finding:
    """A broken rule."""

    format: str
    room: str
    number: int
    what: str

    @property
    def kind(self) -> str:
        """Equal for findings of one cause: all but the message."""
        return f"{self.format}: {self.what.partition(': ')[0]}"


@dataclass
class Tally:
    """What became of a format's inputs."""

    format: Format
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0  # in the reader
    slowest: float = 0.0  # seconds of one input
    peak_bytes: int = 0  # resident, above what the process had at its beginning
    places: Counter[str] = field(default_factory=Counter)  # lines of the package that refused
    findings: list[Finding] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------ a campaign


@dataclass
class _Worker:
    """A process that reads inputs numbers[at:] of a format."""

    tally: Tally
    numbers: range
    process: Any
    at: int = 0
    since: tuple[float, float] = (0.0, 0.0)  # the clock's and the processor's seconds when it began this input

    def begins(self) -> None:
        self.since = time.monotonic(), self._cpu_seconds()

    def hangs(self, seconds: float) -> bool:
        """Whether this input has taken `seconds` of the processor, or thrice that of a clock: on a machine with other
        work the clock alone says nothing."""
        waited = time.monotonic() - self.since[0]
        return waited > 3 * seconds or waited > seconds < self._cpu_seconds() - self.since[1]

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def campaign(
    formats: Sequence[Format], inputs: int, *, seed: int = 0, jobs: int = 1, seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES, folder: Path, told: Callable[[Finding], None] = lambda finding: None,
) -> list[Tally]:  # fmt: skip
    """Read about `inputs` inputs, dealt to the formats by their shares.

    Args:
        folder: for the inputs; a file system in memory is best.
        told: hears of each finding at once.
    """
    total = sum(f.share for f in formats)
    seeds = {f.name: f.seeds() for f in formats}
    tallies = {f.name: Tally(f) for f in formats}
    waiting = deque[tuple[Tally, range]]()
    for f in formats:
        count = max(len(seeds[f.name]) + 1, round(inputs * f.share / total))
        waiting.extend((tallies[f.name], range(i, min(i + RUN, count))) for i in range(0, count, RUN))
    active: dict[Connection, _Worker] = {}
    context = multiprocessing.get_context("fork")  # a new process in milliseconds, with all that is imported

    def ended(pipe: Connection, worker: _Worker, fault: str | None) -> None:
        del active[pipe]
        pipe.close()
        worker.process.kill()
        worker.process.join()
        if fault is not None:
            note(worker, ("finding", fault), 0.0, 0)
            waiting.appendleft((worker.tally, worker.numbers[worker.at :]))

    def note(worker: _Worker, found: tuple[str, str], seconds: float, peak: int) -> None:
        tally, number = worker.tally, worker.numbers[worker.at]
        worker.at += 1
        tally.inputs += 1
        tally.seconds += seconds
        tally.slowest, tally.peak_bytes = max(tally.slowest, seconds), max(tally.peak_bytes, peak)
        if found[0] == "finding":
            tally.findings.append(Finding(tally.format.name, tally.format.room, number, found[1]))
            told(tally.findings[-1])
        else:
            tally.accepted += found[0] == "accepted"
            tally.refused += found[0] == "refused"
            tally.places.update([found[1]] if found[1] else [])

    while waiting or active:
        while waiting and len(active) < jobs:
            tally, numbers = waiting.popleft()
            if not numbers:
                continue
            ours, theirs = context.Pipe(duplex=False)
            place = folder / f"{len(active)}-{tally.format.name}-{numbers[0]}"
            arguments = (theirs, tally.format, seeds[tally.format.name], seed, numbers, place, memory_bytes)
            process = context.Process(target=_read_all, args=arguments, daemon=True)
            process.start()
            theirs.close()
            active[ours] = _Worker(tally, numbers, process)
            active[ours].begins()
        ready = wait(list(active), timeout=0.05)
        for pipe in ready:
            assert isinstance(pipe, Connection)
            worker = active[pipe]
            try:
                note(worker, *pipe.recv())
                worker.begins()
            except EOFError:
                worker.process.join()
                code = worker.process.exitcode
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                ended(pipe, worker, f"process died ({how})" if worker.at < len(worker.numbers) else None)
        for pipe, worker in list(active.items()):
            if pipe not in ready and worker.hangs(seconds):
                ended(pipe, worker, f"no end within {seconds:g} s")
    return list(tallies.values())


def _read_all(
    pipe: Connection, format: Format, seeds: Sequence[Files], seed: int, numbers: range, folder: Path, memory_bytes: int
) -> None:
    """In the process that may die: read inputs, and send of each what was seen, the seconds and the peak memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.disable()  # an end by a signal is reported once
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory_bytes, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        lay(folder, make_input(format, seeds, seed, number))
        begin = time.monotonic()
        found = verdict(format.target, folder, whole=number < len(seeds))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        pipe.send((found, time.monotonic() - begin, peak))
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # without what the parent registered for its own end
