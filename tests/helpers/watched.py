"""A run that is watched from within: it counts the operations that change its files, says where it is, and ends itself.

What is looked at is Python's: audit events, and `open`, `os.fsync`, `os.rename` and safetensors, which are replaced by
ones that count, in a process that is there for one run. The package knows nothing of it. Linux only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.kills import Kill


class Board:
    """What the ranks of a run say of themselves, in memory that outlives them."""

    SLOT = 1024

    def __init__(self, ranks: int) -> None:
        self._memory = mmap.mmap(-1, ranks * self.SLOT)
        for rank in range(ranks):
            self.write(rank, {})

    def write(self, rank: int, state: dict[str, Any]) -> None:
        text = json.dumps(state).encode()[: self.SLOT]
        self._memory[rank * self.SLOT : (rank + 1) * self.SLOT] = text.ljust(self.SLOT)

    def read(self, rank: int) -> dict[str, Any]:
        try:
            return json.loads(self._memory[rank * self.SLOT : (rank + 1) * self.SLOT])
        except ValueError:  # the kill came while it was written
            return {}


# Faults that a run may be given, to see that they are found: a checkpoint that never gets its name; a line of metrics,
# the first that a process writes, twice; an export of which one bit is wrong.
PLANTS = ("lost rename", "repeated line", "flipped bit")


class Watch:
    """Counts a process's operations under some folders, says on the board where it is, and ends the process before the
    operation that it was told. plant: one of PLANTS, or "".
    """

    def __init__(self, folder: Path, board: Board, rank: int, kill: Kill | None, plant: str) -> None:
        self.run, self.roots = f"{folder}/run/", (f"{folder}/run/", f"{folder}/cache/")
        self.trace = os.open(folder / f"operations-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        self.board, self.rank, self.plant = board, rank, plant
        self.kill = kill if kill is not None and kill.how != "time" and kill.rank == rank else None
        self.lock = threading.RLock()  # a checkpoint may be written by a thread of its own
        self.state: dict[str, Any] = {"ops": 0, "stage": "start", "step": 0, "last": "", "writing": []}

    def under(self, path: Any, folder: int = -1) -> str | None:
        """The path if it is watched. folder: a descriptor that it is relative to."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        if not os.path.isabs(path):
            path = os.path.join(os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}"), path)
        return path if path.startswith(self.roots) else None

    def operation(self, kind: str, path: str, write: Callable[[float], Any] = lambda share: None) -> None:
        """An operation is about to come. write: does a share of it, where a share can be done."""
        with self.lock:
            state, place = self.state, area(path, self.run)
            state["ops"] += 1
            torch = sys.modules.get("torch")
            state["group"] = torch is not None and torch.distributed.is_initialized()
            state["last"] = f"{kind} {path[-300:]}"
            os.write(self.trace, f"{place} {kind}\n".encode())
            state["phase"] = f"{place}, {kind}" if kind in ("rename", "remove") else place
            if self.kill is not None and state["ops"] >= self.kill.at:
                self._meet(self.kill, kind, write)
            if place in ("checkpoint", "export") and kind != "remove":
                state["writing"] = [] if kind == "rename" else [place]
            self.board.write(self.rank, state)

    def _meet(self, kill: Kill, kind: str, write: Callable[[float], Any]) -> None:
        """The operation has come, or for a full disk one behind it."""
        first = not self.state.get("hit")
        if kill.how == "full" and kind != "write":
            return
        if first:
            write(kill.cut)
            self.state |= {"hit": True, "at": f"{'disk full: ' * (kill.how == 'full')}{self.state['phase']}"}
            self.board.write(self.rank, self.state)
        if kill.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        end(kill.alone)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A hook of `sys.addaudithook`."""
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and (found := self.under(path)):
                self.operation("open", found)
        elif event == "os.rename":
            source, target, _, folder = arguments
            if self.under(source) and (found := self.under(target, folder)):
                self.operation("rename", found)
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            folder = arguments[-1] if event != "os.truncate" else -1
            if found := self.under(arguments[0], folder):
                self.operation("remove" if event in ("os.remove", "os.rmdir") else event.removeprefix("os."), found)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What the main thread is at."""
        before = self.state["stage"]
        self._stage(name)
        try:
            yield
        finally:
            self._stage(before)

    def _stage(self, name: str) -> None:
        with self.lock:
            self.state["stage"] = name
            self.board.write(self.rank, self.state)

    def install(self) -> None:
        """Watch from now on. For good: the process ends with the run."""
        import numpy.lib.format as arrays
        import safetensors.torch as tensors

        from vdengine.engine.trainer import Trainer

        plain_open, plain_fsync, plain_rename = io.open, os.fsync, os.rename
        plain_serialize = tensors.serialize_file

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or not self.under(file):
                return plain_open(file, mode, *arguments, **options)
            return open_watched(self, file, mode, *arguments, **options)

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            if found := self.under(number):
                self.operation("fsync", found)
            plain_fsync(descriptor)

        def rename(source: Any, target: Any, **folders: Any) -> None:
            if self.plant == "lost rename" and area(str(self.under(target)), self.run) == "checkpoint":
                return
            plain_rename(source, target, **folders)

        def serialize(data: Any, file: Any, *arguments: Any, **options: Any) -> None:
            def partly(share: float) -> None:
                plain_serialize(data, file, *arguments, **options)
                os.truncate(file, int(share * os.path.getsize(file)))

            if found := self.under(file):
                self.operation("write", found, partly)
            plain_serialize(data, file, *arguments, **options)
            if self.plant == "flipped bit":
                with plain_open(file, "r+b") as written:
                    written.seek(-1, os.SEEK_END)
                    last = written.read()[0]
                    written.seek(-1, os.SEEK_END)
                    written.write(bytes([last ^ 1]))

        import builtins

        builtins.open = io.open = opened  # type: ignore[assignment]
        os.fsync, os.rename, os.replace = fsync, rename, rename  # type: ignore[assignment]
        tensors.serialize_file = serialize
        arrays.isfileobj = lambda file: False  # NumPy writes through the file, not past it
        for name in ("step", "evaluate", "save", "finish"):
            setattr(Trainer, name, self._staged(getattr(Trainer, name), name))
        Trainer.__init__ = self._opened(Trainer.__init__)  # type: ignore[method-assign]
        sys.addaudithook(self.audit)

    def _staged(self, method: Any, name: str) -> Any:
        @functools.wraps(method)
        def run(trainer: Any, *arguments: Any, **options: Any) -> Any:
            with self.stage("compute" if name == "step" else name):
                self.state["step"] = trainer.step_count
                return method(trainer, *arguments, **options)

        return run

    def _opened(self, method: Any) -> Any:
        @functools.wraps(method)
        def run(trainer: Any, *arguments: Any, **options: Any) -> None:
            method(trainer, *arguments, **options)
            self.state["resumed"] = self.state["step"] = trainer.step_count
            self._stage("loop")

        return run


class WatchedFile(io.FileIO):
    """A file whose writes are operations."""

    def __init__(self, watch: Watch, file: Any, mode: str, *, opener: Any = None) -> None:
        super().__init__(file, mode, opener=opener)
        self.watch, self.path = watch, str(watch.under(file))
        self.written = 0  # calls

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        plain = super().write
        self.watch.operation("write", self.path, lambda share: plain(data[: int(share * len(data))]))
        if self.watch.plant == "repeated line" and self.path.endswith("metrics.jsonl") and not self.written:
            plain(data)
        self.written += 1
        return plain(data)


def open_watched(
    watch: Watch,
    file: Any,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """`io.open` of a path, for writing, over a `WatchedFile`."""
    raw = WatchedFile(watch, file, mode.replace("b", "").replace("t", ""), opener=opener)
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffer = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
    if "b" in mode:
        return buffer
    return io.TextIOWrapper(buffer, io.text_encoding(encoding), errors, newline, line_buffering=buffering == 1)


def area(path: str, run: str) -> str:
    """The part of a run that a file belongs to."""
    if not path.startswith(run):
        return "reference" if "/reference/" in path else "data"
    top = path.removeprefix(run).split("/")[0]
    if top.startswith((".export", "export")):
        return "export"
    names = {"checkpoints": "checkpoint", "drift": "log", "reference": "reference"}
    return names.get(top, "log" if top.endswith((".jsonl", ".txt")) or "metrics" in top else "settings")


def end(alone: bool) -> None:
    """SIGKILL: to this process, or to all of the run."""
    if alone:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    time.sleep(60)


def phase(state: dict[str, Any]) -> str:
    """Where a run was, by a rank's last words."""
    if state.get("hit"):
        return state["at"]
    stage, writing = state.get("stage", "start"), state.get("writing", [])
    return " + ".join([stage, *writing])
