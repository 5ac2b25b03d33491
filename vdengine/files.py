"""Our own files: writing them whole, lines by step, locking, hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from pathlib import Path

from vdengine.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: under a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def rewind(path: Path, step: int) -> None:
    """Remove the lines of a JSONL file that a run which continues at `step` will write again, and a last line that is
    cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class Lock:
    """A lock on a file, held until `close` or the end of the process. It is the operating system's (flock): what the
    file says is for people.

    Raises:
        InputError: another process, or another object of this one, holds it; or it cannot be made.
    """

    def __init__(self, path: Path, what: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be written ({error.strerror}); name another folder") from None
        me = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.readline().strip() or "another process"
            self._file.close()
            raise InputError(f"{path.parent}: {what} by {'this process' if holder == me else holder}") from None
        self._file.truncate(0)
        self._file.write(f"{me}\n")
        self._file.flush()

    def close(self) -> None:
        """Release it. Again is nothing."""
        self._file.close()


def digest(path: Path) -> str:
    """BLAKE2b of a file's bytes: 32 hex digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
