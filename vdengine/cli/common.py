"""What all verbs share: one way to end with an error, and lists of names."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from vdengine.errors import InputError
from vdengine.outside import first_line, printable

# How the backends of torch.distributed say that another rank is gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out",
)

LOST_SECONDS = 3  # a rank that has lost another lets torchrun see that one first: it names the first as the cause


class Verb(Protocol):
    """A command: its arguments (default: the process's own) to an exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def verb(main: Callable[[Sequence[str] | None], int]) -> Verb:
    """Bad input and errors of the operating system end a verb with status 2 and one line on stderr, which names the
    rank where there are several; torchrun shows it too, as the cause. What is left is a fault of the program: it keeps
    its traceback."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except Exception as error:
            told = sentence(error)
            if told is None:
                _record(error)
                raise
            rank = os.environ.get("RANK", "0")
            several = os.environ.get("WORLD_SIZE", "1") != "1"
            print(f"error{f' (rank {rank})' if several else ''}: {told}", file=sys.stderr, flush=True)
            if is_lost(error):
                time.sleep(LOST_SECONDS)
                return 1
            try:
                raise InputError(told) from None
            except InputError as short:  # without the way it came: torchrun shows all that it is given
                _record(short)
            return 2

    return run


def sentence(error: Exception) -> str | None:
    """What to say of an error that is not the program's fault; None: it is."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        advice = "; started again, a run goes on from its newest checkpoint" if error.errno == errno.ENOSPC else ""
        return f"{place}{error.strerror or first_line(error)}{advice}"
    if isinstance(error, MemoryError):
        return "out of memory"
    if is_lost(error):
        return f"another rank has ended, and this one with it ({first_line(error)})"
    return None


def is_lost(error: Exception) -> bool:
    """Whether this rank fails only because another one is gone."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return several and isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


def _record(error: Exception) -> None:
    """Give torchrun the error, which shows the one that came first as the cause of a job's end."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def names(text: str | None) -> list[str] | None:
    """The names in "a, b"; None where nothing was given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
