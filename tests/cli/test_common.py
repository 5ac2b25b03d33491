"""How every verb ends with an error."""

import errno
import json
import os
import subprocess
import sys

import pytest

from vdengine.cli import common
from vdengine.cli.common import verb
from vdengine.errors import InputError


def ending(error):
    """A verb that ends with this error."""

    @verb
    def main(argv=None):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("recipe.toml:3: wrong"), "recipe.toml:3: wrong"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "runs/x"), "runs/x: Is a directory"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x/log.txt"), "runs/x/log.txt: Read-only file system"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9), "xxxxxxxxx: File name too long"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"a\nb"), r"a\x0ab: No such file or directory"),
        (OSError("no number"), "no number"),
        (MemoryError(), "out of memory"),
    ],
)
@pytest.mark.parametrize("rank", [None, "1"])
def test_what_is_not_the_programs_fault_is_one_line(error, line, rank, capsys, monkeypatch):
    """Guards users against tracebacks: one line, status 2, on every rank under its number."""
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert ending(error)([]) == 2
    assert capsys.readouterr().err == f"error{' (rank 1)' if rank else ''}: {line}\n"


def test_a_full_disk_says_that_the_run_goes_on(capsys):
    """Guards the user's next thought."""
    assert ending(OSError(errno.ENOSPC, "No space left on device", "log"))([]) == 2
    assert "log: No space left on device; started again, a run goes on" in capsys.readouterr().err


def test_a_lost_rank_is_said_and_lets_the_launcher_see_who(capsys, monkeypatch):
    """Guards torchrun's report: the rank that only lost another is not its first."""
    waits = []
    monkeypatch.setattr(common.time, "sleep", waits.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ending(RuntimeError("[pair.cc:537] Read error: Connection reset by peer."))([]) == 1
    assert "another rank has ended, and this one with it" in capsys.readouterr().err and waits == [common.LOST_SECONDS]


def test_a_fault_of_the_program_keeps_its_traceback():
    """Guards the reports of our own mistakes."""
    with pytest.raises(RuntimeError, match="shape"):
        ending(RuntimeError("shape mismatch"))([])
    with pytest.raises(KeyError):
        ending(KeyError("x"))([])


def test_torchrun_is_told(tmp_path, monkeypatch, capsys):
    """Guards the root cause in torchrun's report: the line, without the way it came."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    ending(InputError("data.train: nothing there"))([])
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    assert told["message"] == "InputError: data.train: nothing there"
    assert len(told["extraInfo"]["py_callstack"].splitlines()) <= 5


def test_an_interrupt_and_a_closed_pipe_are_quiet(capsys):
    """Guards Ctrl-C in any verb, and `vdengine score ... | head`: the status that a shell gives for SIGPIPE."""
    assert ending(KeyboardInterrupt())([]) == 130 and capsys.readouterr().err == "interrupted\n"
    code = (
        "from vdengine.cli.common import verb\n@verb\ndef main(argv=None):\n    for k in range(10**6):\n"
        "        print(k)\n    return 0\nraise SystemExit(main([]))"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 141
