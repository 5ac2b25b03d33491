"""Files of rows: each kind reads the same, within bounds, and ends in one line whatever is wrong with it."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import assistant, error, load, user, write

from vdengine.data import rowfiles
from vdengine.data.locate import resolve
from vdengine.data.meanings import UNREAD
from vdengine.data.rowfiles import raw_rows

CHAT = {"messages": [user("q"), assistant("yes")]}
LATE = 10**18  # milliseconds: the year 31,690,708


def tables(tmp_path: Path, table: Any, chunk: int = 2) -> list[Path]:
    """A table as Parquet and in both of Arrow's formats."""
    import pyarrow.ipc
    import pyarrow.parquet

    paths = [tmp_path / name for name in ("a.parquet", "stream.arrow", "file.arrow")]
    pyarrow.parquet.write_table(table, paths[0])
    for path, new in zip(paths[1:], (pyarrow.ipc.new_stream, pyarrow.ipc.new_file), strict=True):
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk)
    return paths


def test_columns_that_no_row_needs_are_not_read(tmp_path: Path) -> None:
    """Guards against a time that Python's dates do not have, in a column or in messages; and names of what was not
    read, the topic among what was."""
    import pyarrow as pa

    turn = pa.struct({"role": pa.string(), "content": pa.string(), "timestamp": pa.timestamp("ms")})
    talk = [m | {"timestamp": LATE} for m in CHAT["messages"]]
    table = pa.table(
        {
            "created": pa.array([LATE] * 5, pa.timestamp("ms")),
            "messages": pa.array([talk] * 5, pa.list_(turn)),
            "topic": ["abortion"] * 5,
            "day": pa.array([1] * 5, pa.date32()),
        }
    )
    for path in tables(tmp_path, table):
        rows, dropped, format = load(path, "sft")
        assert [r.example.messages for r in rows] == [CHAT["messages"]] * 5 and not dropped  # type: ignore[union-attr]
        assert [r.topic for r in rows] == ["abortion"] * 5 and format == "messages"
        assert rows[4].where == f"{path} row 5" and resolve(str(path)).count() == 5
        (_, first), *_ = raw_rows(path, "x", also=("day",))
        assert list(first) == ["created", "messages", "topic", "day"]
        assert first["created"] is UNREAD and first["day"] == 1
    other = tables(tmp_path, pa.table({"when": pa.array([LATE], pa.timestamp("ms")), "text": ["q"]}))
    for path in other:
        assert error(load, path, "sft").startswith(f"{path} row 1: the fields (when, text) fit no format; ")


def test_times_where_something_is_meant(tmp_path: Path) -> None:
    """Guards against a time that is read as a margin of 1e18 or a mark, in a column or in messages."""
    import pyarrow as pa

    texts = {"prompt": ["q"], "chosen": ["yes"], "rejected": ["no"]}
    for key, kind in (
        ("margin", pa.timestamp("us")), ("margin", pa.duration("s")), ("label", pa.timestamp("us")),
        ("weight", pa.date32()), ("chosen_scores", pa.time64("ns")), ("train_on", pa.time32("ms")),
    ):  # fmt: skip
        for path in tables(tmp_path, pa.table(texts | {key: pa.array([1], kind)})):
            assert f"{path}: '{key}' holds times ({kind})" in error(load, path)
        for path in tables(tmp_path, pa.table(texts | {key: pa.nulls(1, kind)})):
            assert len(load(path)[0]) == 1
    turn = pa.struct({"role": pa.string(), "content": pa.string(), "weight": pa.timestamp("ms")})
    talk = [m | {"weight": 1} for m in CHAT["messages"]]
    for path in tables(tmp_path, pa.table({"messages": pa.array([talk], pa.list_(turn))})):
        assert f"{path}: 'weight' holds times" in error(load, path, "sft")


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_broken_tables(tmp_path: Path, name: str) -> None:
    """Guards against a traceback of pyarrow, whatever it raises."""
    import pyarrow as pa

    tables(tmp_path, pa.table({"prompt": ["q"] * 50, "completion": [f"{i}" * 20 for i in range(50)]}))
    data = (tmp_path / name).read_bytes()
    for broken in (b"", b"x" * 40, data[: len(data) // 2], data[:-9], data[:12] + b"\xff" * 60 + data[72:]):
        (tmp_path / name).write_bytes(broken)
        try:
            load(tmp_path / name, "sft")
        except ValueError as caught:  # an InputError; a cut stream may read as a shorter one
            assert str(caught).startswith(str(tmp_path / name)) and "\n" not in str(caught)


def test_a_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the memory against one line of gigabytes in a small .gz, and against one array of them."""
    monkeypatch.setattr("vdengine.data.rowfiles.ROW_BYTES", 2**20)
    monkeypatch.setattr("vdengine.data.rowfiles.LARGE", 2**20)
    line = b'{"prompt": "' + b"x" * 2**21 + b'"}\n'
    for name, data, message in (
        ("a.jsonl.gz", gzip.compress(b"{}\n" + line), " line 2: has more than 1 MiB, the most of one row"),
        (
            "b.json.gz",
            gzip.compress(b"[" + line + b"]"),
            ": an array of more than 1 MiB; write one row a line (.jsonl)",
        ),
    ):
        (tmp_path / name).write_bytes(data)
        source = resolve(str(tmp_path / name))
        assert error(lambda s=source: list(s.rows())) == f"{tmp_path / name}{message}"
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x" * 2**21], "completion": ["a"]}), path)
    assert error(load, path, "sft") == f"{path}: its rows have more than 1 MiB each, the most of one row"


def test_hostile_tables(tmp_path: Path) -> None:
    """Guards the process: offsets of an Arrow file that point beyond its bytes, a Parquet file whose description of a
    column ends the process where pyarrow is asked for it, names that are no text."""
    import numpy as np
    import pyarrow as pa

    offsets = pa.py_buffer(np.array([0, 2**30, 4], np.int32).tobytes())
    words = pa.Array.from_buffers(pa.utf8(), 2, [None, offsets, pa.py_buffer(b"abcd")])
    batch = pa.RecordBatch.from_arrays([words, words], ["prompt", "completion"])
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(path, batch.schema) as writer:
        writer.write_batch(batch)
    assert "not a usable Arrow file" in error(load, path, "sft")
    tables(tmp_path, pa.table({"prompt": ["q"], "completion": ["a"]}))
    for name in ("stream.arrow", "file.arrow", "a.parquet"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"prompt", b"pr\x80mpt"))
        assert str(path) in error(load, path, "sft")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["\\ud800"]}')
    assert error(resolve, str(tmp_path / "saved")).endswith("'splits' must be a list of folders")


def test_a_damaged_parquet_file_does_not_end_the_process(tmp_path: Path) -> None:
    """Guards against asking pyarrow for a column's description: of this file that is an abort, for its histogram of
    definition levels has other entries than its levels have."""
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"prompt": ["q", None], "completion": ["a", "b"]}), path)
    whole = path.read_bytes()
    seen = set()
    for at in range(len(whole) - 600, len(whole) - 8):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            load(path, "sft")
        except ValueError as caught:  # an InputError
            seen.add(str(caught)[-60:])
    assert len(seen) > 5


def test_rows_that_repeat_a_long_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the memory against a small file with a long value once, which all of its rows have."""
    import pyarrow as pa

    monkeypatch.setattr("vdengine.data.rowfiles.LARGE", 2**20)
    words = pa.array(["x" * 2**17] * 100).dictionary_encode()
    made: list[int] = []
    real = rowfiles._as_dicts
    monkeypatch.setattr(rowfiles, "_as_dicts", lambda batch, *a: made.append(batch.num_rows) or real(batch, *a))
    for path in tables(tmp_path, pa.table({"prompt": words, "completion": ["a"] * 100}), 100):
        rows = list(raw_rows(path, "x"))
        assert len(rows) == 100 and rows[99][1]["prompt"] == "x" * 2**17 and rows[99][0] == "x row 100"
    assert max(made) <= 4 and sum(made) == 300


def test_what_is_no_file(tmp_path: Path) -> None:
    """Guards against waiting for a FIFO for ever, and tracebacks of the operating system for names."""
    os.mkfifo(tmp_path / "a.jsonl")
    assert error(resolve, str(tmp_path / "a.jsonl")) == f"{tmp_path / 'a.jsonl'}: not a regular file"
    assert error(load, tmp_path) == f"{tmp_path}/a.jsonl: not a regular file"
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    assert error(load, tmp_path) == f"{tmp_path}/b.jsonl: no such file"
    (tmp_path / "c.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (
        (str(tmp_path / "c.jsonl"), "no data file in this folder"),
        (f"{tmp_path}/file/x.jsonl", "no such file or folder"),
        ("x\0y.jsonl", "cannot be read"),
        ("x" * 5000 + ".jsonl", "cannot be read"),
        ("~nobody-here/x.jsonl", "no such file or folder"),
        ("", "no data file in this folder|no such file or folder"),
    ):
        text = error(resolve, name)
        assert any(m in text for m in message.split("|")) and "\0" not in text, text


def test_descriptions_beside_data_are_not_data(tmp_path: Path) -> None:
    """Guards against files that describe a data set and are read as rows of it."""
    write(tmp_path / "train.jsonl", [CHAT])
    for name in ("dataset_infos.json", "dataset_info.json", "state.json", "croissant.json"):
        (tmp_path / name).write_text(json.dumps({"default": {"features": {}}}, indent=1))
    (tmp_path / "README.md").write_text("# data")
    rows, _, _ = load(tmp_path, "sft")
    assert [row.where for row in rows] == [f"{tmp_path}/train.jsonl line 1"]
    clone = tmp_path / "clone"
    (clone / "data").mkdir(parents=True)
    write(clone / "data" / "train.jsonl", [CHAT])
    assert error(resolve, str(clone)).endswith("files; its folder 'data' has some")


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    """Guards what `datasets` saves: its Arrow files are read in order, one split of several is named; a state.json
    that names other files than those beside it; and rows beside them that would be passed over."""
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"q{i}", "completion": "a", "id": i} for i in range(10)]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(str(tmp_path / "one"), num_shards=3)
    datasets.DatasetDict({"train": one, "test": one.select(range(2))}).save_to_disk(str(tmp_path / "both"))
    for name, count in ((tmp_path / "one", 10), (f"{tmp_path}/both:train", 10), (f"{tmp_path}/both:test", 2)):
        found, dropped, _ = load(name, "sft")
        assert [r.example.messages[0]["content"] for r in found] == [f"q{i}" for i in range(count)]  # type: ignore[union-attr]
        assert resolve(str(name)).count() == count and not dropped
    both = tmp_path / "both"
    assert error(resolve, str(both)) == f"{both}: holds the splits train, test; name one, as '{both}:train'"
    assert error(resolve, f"{both}:dev") == f"{both}:dev: no split 'dev'; it has train, test"
    assert error(resolve, f"{tmp_path}/one:train").endswith("no split 'train'; it is one data set, saved by datasets")
    (tmp_path / "one" / "extra.jsonl").write_text("{}")
    assert error(resolve, str(tmp_path / "one")) == (
        f"{tmp_path}/one: holds extra.jsonl beside data-00000-of-00003.arrow, the data set that state.json names; "
        "move one of them elsewhere"
    )
    (tmp_path / "one" / "extra.jsonl").unlink()
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    for files, message in (
        ([{"filename": "../../x.arrow"}], "'_data_files' must be a list of .arrow files of this folder"),
        ([{"filename": "data-00009-of-00003.arrow"}], "no such file, though state.json names it"),
        ({"a": 1}, "'_data_files' must be a list of .arrow files of this folder"),
        ([3], "'_data_files' must be a list of .arrow files of this folder"),
    ):
        (tmp_path / "one" / "state.json").write_text(json.dumps(state | {"_data_files": files}))
        assert message in error(resolve, str(tmp_path / "one"))


def test_hostile_json(tmp_path: Path) -> None:
    """Guards against errors of the parser that are no JSONDecodeError, in both forms of JSON."""
    for text in ("[" * 100_000, '[{"a": ' + "9" * 5000 + "}]", '[{"a": "\ud800"}', "[1]", '[{"a": NaN, }]', "[\x00]"):
        (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        assert error(load, tmp_path / "a.json").startswith(f"{tmp_path / 'a.json'}")
