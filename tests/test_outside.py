"""What comes from outside: one InputError line, whatever it is."""

from __future__ import annotations

import os

import pytest

from vdengine.errors import InputError
from vdengine.outside import (
    MIB,
    decode,
    first_line,
    is_count,
    is_text,
    json_lines,
    json_object,
    open_regular,
    parse_json,
    parse_toml,
    parsing,
    printable,
    read_bytes,
    read_text,
)


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_regular_files_are_opened(tmp_path):
    """Guards against waiting for ever at a FIFO, and against reading a device without end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "secret").write_text("x")
    for name, message in (
        ("fifo", "not a regular file"), ("device", "not a regular file"), (".", "not a regular file"),
        ("loop", "cannot be read"), ("none", "no such file"), ("secret/x", "cannot be read"),
        ("x" * 300, "cannot be read"), ("a\0b", r"a\x00b: cannot be read"),
        ("two\nlines", r"two\x0alines: no such file"),
    ):  # fmt: skip
        assert message in refusal(open_regular, tmp_path / name)


def test_a_file_is_read_up_to_a_size(tmp_path):
    """Guards memory: a file without end, or a sparse one of a terabyte, is not read whole."""
    with open(path := tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    assert "has more than 2 MiB" in refusal(read_bytes, path, 2 * MIB)
    path.write_bytes(b"x" * 10)
    assert read_bytes(path, 10) == b"x" * 10


def test_text_is_utf8(tmp_path):
    """Guards the line in the message, and files that begin with a byte order mark."""
    (path := tmp_path / "t").write_bytes(b"a\nb\xff\n")
    assert refusal(read_text, path) == f"{path}: line 2: not UTF-8"
    assert refusal(decode, b"\xff", "row 3") == "row 3: not UTF-8"
    path.write_bytes(b"\xef\xbb\xbfa\r\n")
    assert read_text(path) == "a\r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"), ("{", "column 2"), ("[" * 10**6, "nested too deeply"), ('{"a":' * 10**5, "deeply"),
        ("9" * 5000, "Exceeds the limit"), (b"\xff", "not UTF-8"), ('"\t"', "Invalid control character"),
        ("[1,\n2,\n}]", "line 3: "), ('"\\ud8', "broken JSON"), ("1" * 10**7, "Exceeds"), ("1\0", "Extra data"),
        ('[{"train": 0, "a": {}, "train": 1}]', "the key 'train' stands twice in one object"),
        ('{"a": {"x\\n": 1, "x\\n": 1}}', r"the key 'x\x0a' stands twice in one object"),
    ],
)  # fmt: skip
def test_broken_json(text, message):
    """Guards json.loads, which ends in four kinds of exceptions."""
    assert message in refusal(parse_json, text, "here") and refusal(parse_json, text, "here").startswith("here")


@pytest.mark.parametrize(
    "text",
    ["a", "a=", "a = " + "[" * 10**5, "a = " + "{a=" * 10**5, "a = " + "9" * 5000, "a=1\na=2", "[a]\n[a]", "a = 'b\0'",
     "a = 2026-99-99", "a = 25:61:00", "[a]\nb=1\n[a.b]\nc=1", 'a = "\\ud800"', "a = \"\"\"", "\ufeffa = 1"],
)  # fmt: skip
def test_broken_toml(text):
    """Guards tomllib, which has three."""
    assert "not valid TOML" in refusal(parse_toml, text, "here")


def test_json_objects_and_nothing_else(tmp_path):
    """Guards manifests that are a list, a number or null."""
    path = tmp_path / "m.json"
    for text, kind in (("[]", "list"), ("null", "NoneType"), ("1", "int"), ('"a"', "str"), ("true", "bool")):
        path.write_text(text)
        assert refusal(json_object, path) == f"{path}: holds a {kind}, not a JSON object"


def test_lines_of_a_log(tmp_path):
    """Guards against lost lines: newlines alone end them, and what a crash cut short, inside a character too, is left
    out; what is broken before the end is an error."""
    path = tmp_path / "log.jsonl"
    lines = ['{"a": "x\u2028y\u0085z"}', "", '{"a": "\u00e9"}\r']
    path.write_bytes("\n".join(lines).encode() + b"\n" + '{"a": "\u00e9'.encode()[:-1])
    assert list(json_lines(path)) == [
        (f"{path}, line 1", {"a": "x\u2028y\u0085z"}),
        (f"{path}, line 3", {"a": "\u00e9"}),
    ]
    path.write_bytes(b'{"a": 1}\n{"a": "\xc3\n{}\n')
    with pytest.raises(InputError, match=r"log\.jsonl, line 2: not UTF-8"):
        list(json_lines(path))
    path.write_bytes(b"")
    assert list(json_lines(path)) == []


def test_what_a_value_is():
    """Guards fields of a JSON value: no boolean is a count, and half a surrogate pair is no text."""
    assert is_count(0) and is_count(2**53 - 1) and not any(map(is_count, (True, -1, 1.0, 2**53, 10**400, "1", None)))
    assert is_text("") and is_text("\U0001f600\u2028") and not any(map(is_text, ("a\ud800", "\udfff", None, 1, b"a")))


def test_a_librarys_errors_become_one_line():
    """Guards other people's parsers, whose errors are of any type, panics of Rust included; not Ctrl-C, and not an
    error that says already what is wrong."""

    class Panic(BaseException):
        pass

    def failing(error):
        with parsing("f.json", "tokenizer"):
            raise error

    assert refusal(failing, Panic("index\nout of range")) == "f.json: not a usable tokenizer (Panic: index)"
    assert refusal(failing, RecursionError()) == "f.json: not a usable tokenizer (RecursionError: no message)"
    assert refusal(failing, InputError("row 3: no")) == "row 3: no"
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            failing(error())


def test_messages_are_one_line_that_can_be_printed():
    """Guards terminals against control sequences in names and in other libraries' messages."""
    assert printable("a\x1b[31m\n\u202e") == "a\\x1b[31m\\x0a\\x202e"
    assert first_line(ValueError("x" * 500 + "\ny")) == "x" * 197 + "..."
    assert first_line(ValueError("\n a\tb \nc")) == "a\\x09b"
