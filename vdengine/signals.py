"""Signals as requests: the first one asks a run to stop after its step, a second one ends the process at once.

They are read by a thread (`signal.set_wakeup_fd`), because Python's own handlers run in the main thread between two
instructions, and that thread may be waiting in a collective of which the other side is dead.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # that ask a run to stop

REPEAT_SECONDS = 0.5  # a launcher may pass on what the process has had from its scheduler already: that is one request


class Requests:
    """A context in which these signals are requests. In another thread than the main one, where Python sets no
    handlers, it does nothing.

    Until `tell` is called nothing can be saved, so the first one ends the process too. The exit status of a process
    that a signal ends is 128 + its number.

    Args:
        announce: whether to say on stderr what a signal does: on one rank.
    """

    def __init__(self, signals: Iterable[int], announce: bool = True) -> None:
        self._signals, self._announce = tuple(signals), announce
        self._tell: Callable[[int], None] | None = None
        self._first: float | None = None
        self._active = False

    def tell(self, ask: Callable[[int], None]) -> None:
        """Whom to ask to stop; it is called from another thread."""
        self._tell = ask

    def __enter__(self) -> Requests:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # SIGINT too where a shell has had it ignored, for a job in the background: whoever sends it means it.
        self._old = {s: signal.signal(s, lambda signum, frame: None) for s in self._signals}
        self._active = True
        held = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _in_child(held()))
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._active:
            return
        self._active = False
        for signum, handler in self._old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        signal.set_wakeup_fd(self._old_fd)
        os.write(self._write, b"\0")  # ends the thread
        self._thread.join()
        os.close(self._write)
        os.close(self._read)

    def _listen(self) -> None:
        while b"\0" not in (data := os.read(self._read, 64)):
            for signum in data:
                if signum in self._signals:
                    self._take(signal.Signals(signum))

    def _take(self, signum: signal.Signals) -> None:
        now = time.monotonic()
        if self._first is not None and now - self._first < REPEAT_SECONDS:
            return
        if self._first is not None or self._tell is None:
            what = "again: leaving at once" if self._first is not None else "nothing is learned yet: leaving"
            self._say(f"{signum.name}, {what}")
            os._exit(128 + signum)
        self._first = now
        self._say(f"{signum.name}: stopping after this step, with a checkpoint (once more to leave at once)")
        self._tell(signum)

    def _say(self, text: str) -> None:
        if self._announce:
            sys.stderr.write(f"\n{text}\n")
            sys.stderr.flush()


def _in_child(requests: Requests | None) -> None:
    """A forked child has signals of its own."""
    if requests is not None and requests._active:
        signal.set_wakeup_fd(-1)
        os.close(requests._write)
        os.close(requests._read)
        for signum in requests._signals:
            signal.signal(signum, signal.SIG_DFL)
