"""Our own files: written whole or not at all, logs of lines by step, locks, hashes, free space."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdengine.errors import InputError
from vdengine.outside import open_regular


@contextmanager
def partial(path: Path, *, folder: bool = False, leftovers: str = "") -> Iterator[Path]:
    """A new file or folder beside `path`, NAME.RANDOM.partial, for what is to take its name when it is complete. It is
    locked while it is written, and removed unless it is renamed.

    Any number of processes may write the same thing at once, and nobody removes what another is writing: what a process
    that was killed has left is told from it by the lock (flock), which the operating system has released.

    Args:
        leftovers: a pattern of names in the same folder; those that no one holds are removed. Default: those of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    with contextlib.ExitStack() as stack:
        with locked(path.parent):  # so that no one finds the new one before it is locked
            for leftover in path.parent.glob(leftovers or f"{glob.escape(path.name)}.{'[0-9a-f]' * 16}.partial"):
                _remove_unless_held(leftover)
            new.mkdir() if folder else new.touch(exist_ok=False)
            stack.callback(_remove, new)
            fd = os.open(new, os.O_RDONLY)
            stack.callback(os.close, fd)
            _flock(fd, wait=False)
        yield new


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the lock on a folder, and hold it for a moment."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        _flock(fd, wait=True)
        yield
    finally:
        os.close(fd)


def _flock(fd: int, wait: bool) -> bool | None:
    """Lock what is open: whether it could be had; None: this file system has no such locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # NFS, some parallel file systems: then renaming alone decides, and nothing is cleaned up
        return None
    return True


def _remove_unless_held(leftover: Path) -> None:
    try:
        fd = os.open(leftover, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if _flock(fd, wait=False):
            _remove(leftover)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: under a temporary name, synced, then renamed. After a crash there is the old
    file or the new one, whole; what the crash left beside it goes with the next write."""
    with partial(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def sync(path: Path) -> None:
    """Make a file durable, or the names in a folder: after a rename, which a power cut could undo otherwise."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems cannot; the rename is theirs to keep then
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def bytes_before(path: Path, step: int, name: str = "step") -> int:
    """The bytes at the start of a JSONL file that are lines of steps below `step`: those that a run which continues
    there keeps. Lines are split at newlines alone; the first that is no JSON object with a step, as one that a crash
    cut short, ends them. 0 where there is no file. name: of the step in a line."""
    kept = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    if not line.endswith(b"\n") or row[name] >= step:
                        break
                except (ValueError, KeyError, TypeError, RecursionError):
                    break
                kept += len(line)
    except FileNotFoundError:
        return 0
    return kept


def cut(path: Path, size: int) -> None:
    """Leave the first `size` bytes of a file, if there is one."""
    if path.exists() and path.stat().st_size != size:
        os.truncate(path, size)


def rewind(path: Path, step: int) -> None:
    """Remove the lines of a JSONL file that a run which continues at `step` will write again, and a last line that is
    cut short."""
    cut(path, bytes_before(path, step))


class Lock:
    """A lock on a file, held until `close` or the end of the process. It is the operating system's (flock): what the
    file says is for people. Readers take none.

    Raises:
        InputError: another process, or another object of this one, holds it; or it cannot be made.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._made = path, False  # whether the folder is of this lock alone
        me = f"process {os.getpid()} on {socket.gethostname()}"
        while True:  # again where the file was removed between opening and locking it (`undo` of another)
            try:
                self._made = self._made or not path.parent.exists()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "a+", encoding="utf-8", errors="replace")
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{path.parent}: cannot be written ({reason}); name another folder") from None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                holder = self._file.readline(200).strip() or "another process"
                self._file.close()
                raise InputError(f"{path.parent}: {what} by {'this process' if holder == me else holder}") from None
            except OSError as error:  # a file system without locks
                reason = f"{path}: cannot be locked ({error.strerror}): let one process alone write here"
                warnings.warn(reason, stacklevel=3)
            if not self.removed:
                break
            self._file.close()
        # A forked child shares the lock, and would hold it after this process has been killed.
        held = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_in_child(held()))
        self._file.truncate(0)
        self._file.write(f"{me}\n")
        self._file.flush()

    @property
    def removed(self) -> bool:
        """Whether someone has removed the file, or the folder around it, meanwhile."""
        return not self._file.closed and os.fstat(self._file.fileno()).st_nlink == 0

    def undo(self) -> None:
        """Release it, and remove the folder if it was made for the lock and holds nothing else."""
        if self._made and [p.name for p in self.path.parent.iterdir()] == [self.path.name]:
            self.path.unlink()
            with contextlib.suppress(OSError):  # another process has begun to use it
                self.path.parent.rmdir()
        self.close()

    def close(self) -> None:
        """Release it. Again is nothing."""
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # whatever a child that was forked just now still holds
            self._file.close()


def _close_in_child(lock: Lock | None) -> None:
    if lock is not None:
        lock._file.close()


def check_space(folder: Path, num_bytes: float, what: str) -> None:
    """Check that there is room for a file or folder before it is begun.

    Raises:
        InputError: there is less room where `folder` is, or will be.
    """
    free = shutil.disk_usage(existing(folder)).free
    if free < num_bytes:
        raise InputError(
            f"{folder}: no room for {what}: it takes {num_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
        )


def existing(path: Path) -> Path:
    """The path, or the nearest folder around it that is there already."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def digest(path: Path, size: int | None = None) -> str:
    """BLAKE2b of a file's bytes, or of its first `size`: 32 hex digits.

    Raises:
        InputError: no such file, or none that is regular.
    """
    hasher = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        if size is None:
            return hashlib.file_digest(file, lambda: hasher).hexdigest()  # type: ignore[arg-type]
        while size > 0 and (block := file.read(min(size, 2**20))):
            hasher.update(block)
            size -= len(block)
    return hasher.hexdigest()


def json_hash(value: Any) -> str:
    """BLAKE2b of a value as JSON with its keys sorted: 32 hex digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
