"""Files: the lock of a folder."""

import os
import subprocess
import sys

import pytest

from vdengine.errors import InputError
from vdengine.files import Lock


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


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    """Guards a run folder below a file, or on a disk that cannot be written."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot be written \(Not a directory\); name another folder"):
        Lock(tmp_path / "file" / "run" / "lock", "it is being written")
