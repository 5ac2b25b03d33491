"""Files: locks, logs of lines, whole writes, room."""

import json
import os
import subprocess
import sys
import time

import pytest

from vdengine import files
from vdengine.errors import InputError
from vdengine.files import Lock, bytes_before, check_space, digest, rewind, write_bytes


def test_a_lock_is_held_once_and_ends_with_its_process(tmp_path):
    """Guards a folder against two writers, and against a lock file that a killed process has left."""
    path = tmp_path / "run" / "lock"
    first = Lock(path, "it is being written")
    with pytest.raises(InputError, match=r"run: it is being written by this process$"):
        Lock(path, "it is being written")
    code = f"from pathlib import Path; from vdengine.files import Lock; Lock(Path({str(path)!r}), 'it is written')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"run: it is written by process {os.getpid()} on " in other.stderr.splitlines()[-1]
    first.close()
    first.close()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.exists()
    Lock(path, "it is being written").close()


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    """Guards a folder whose run was killed while processes that it had forked live on."""
    lock = Lock(tmp_path / "lock", "it is being written")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    try:
        lock._file.close()  # as the end of this process would
        Lock(tmp_path / "lock", "it is being written").close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_lock_knows_that_its_folder_has_gone(tmp_path):
    """Guards a run whose folder someone removes."""
    lock = Lock(tmp_path / "run" / "lock", "it is being written")
    assert not lock.removed
    (tmp_path / "run" / "lock").unlink()
    assert lock.removed
    lock.close()


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path):
    """Guards against folders of runs that never began; one that was there, or holds something, stays."""
    lock = Lock(tmp_path / "run" / "lock", "it is being written")
    lock.undo()
    assert not (tmp_path / "run").exists()
    lock = Lock(tmp_path / "run" / "lock", "it is being written")
    (tmp_path / "run" / "log").write_text("")
    lock.undo()
    assert (tmp_path / "run" / "log").exists()
    (tmp_path / "old").mkdir()
    Lock(tmp_path / "old" / "lock", "it is being written").undo()
    assert (tmp_path / "old").exists()


@pytest.mark.parametrize("path", ["file/run/lock", "\0/lock", "x" * 300 + "/lock"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, path):
    """Guards a run folder below a file, or with a name that no file system takes."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); name another folder") as error:
        Lock(tmp_path / path, "it is being written")
    assert "\n" not in str(error.value)


ROWS = [{"step": k, "text": text} for k, text in enumerate(["a", "b\u2028c", "d\u0085e", "é"])]


def write_rows(path, ensure_ascii=False):
    path.write_text("".join(json.dumps(r, ensure_ascii=ensure_ascii) + "\n" for r in ROWS), encoding="utf-8")


@pytest.mark.parametrize("step", range(6))
def test_rewind_splits_at_newlines_alone(tmp_path, step):
    """Guards the lines behind one with U+2028 or U+0085, which `str.splitlines` cuts."""
    path = tmp_path / "log.jsonl"
    write_rows(path)
    rewind(path, step)
    assert [json.loads(line) for line in path.read_bytes().split(b"\n") if line] == ROWS[:step]


def test_a_last_line_that_was_cut_goes(tmp_path):
    """Guards a resumed run against a log that a crash has cut at any byte, inside of a character as well."""
    path = tmp_path / "log.jsonl"
    write_rows(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        rewind(path, 100)
        assert path.read_bytes() == whole[: whole[:size].rfind(b"\n") + 1]


@pytest.mark.parametrize("line", [b"[1]\n", b'{"step": "x"}\n', b"{}\n", b"null\n", b"[" * 5000 + b"\n", b"\xff\n"])
def test_a_line_of_something_else_ends_what_is_kept(tmp_path, line):
    """Guards `bytes_before` against lines that no log of ours has."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n')
    assert bytes_before(path, 9) == 12
    assert bytes_before(tmp_path / "none", 9) == 0


def test_a_write_is_whole_or_not_there(tmp_path, monkeypatch):
    """Guards a file against a disk that is full: what was there stays, and nothing is left beside it."""
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_room_is_checked_where_the_folder_will_be(tmp_path, monkeypatch):
    """Guards a run against finding out at its end."""
    check_space(tmp_path / "not" / "yet", 1, "a checkpoint")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**29})())
    with pytest.raises(InputError, match=r"no room for a checkpoint: it takes 1.00 GiB, 0.50 GiB are free"):
        check_space(tmp_path / "not" / "yet", 2**30, "a checkpoint")


def test_a_digest_of_a_part(tmp_path):
    """Guards the hash of a log's first bytes: that of a file of just these."""
    path, part = tmp_path / "all", tmp_path / "part"
    path.write_bytes(bytes(range(256)) * 9000)
    part.write_bytes(path.read_bytes()[:1_500_000])
    assert digest(path, 1_500_000) == digest(part) != digest(path)


def test_a_digest_waits_for_nothing(tmp_path):
    """Guards against waiting for ever for a FIFO that stands where a shard or a log should be."""
    os.mkfifo(tmp_path / "fifo")
    for size in (None, 3):
        with pytest.raises(InputError, match="not a regular file"):
            digest(tmp_path / "fifo", size)
