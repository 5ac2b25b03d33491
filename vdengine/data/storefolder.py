"""The folder of a store while it is written: arrays that grow, and a name that no one else sees until all is there.

Any number of processes may build one store at once. The first that is ready gives it its name, the others then use it;
nobody removes what another has made or is making (`files.partial`).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from vdengine.files import locked, sync


def give_name(partial: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    """Rename a folder that is complete and synced, unless another process has made the same one meanwhile. One that is
    there but not whole gives way."""
    with locked(folder.parent):
        if folder.exists():
            if is_whole(folder):
                return
            damaged = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}.partial")
            os.rename(folder, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        os.rename(partial, folder)
    sync(folder.parent)


class ArrayFile:
    """A one-dimensional .npy file that values are appended to. NumPy pads the header for a longer shape, so the final
    length can be written over the first one in place."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._file = open(path, "wb")
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._pending: list[float] = []
        self._header()
        self._data_start = self._file.tell()

    def _header(self) -> None:
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, description)

    def __len__(self) -> int:
        return self._length

    def append(self, values: Sequence[float]) -> None:
        """Append values; they are written in blocks of 64k."""
        self._pending.extend(values)
        self._length += len(values)
        if len(self._pending) >= 1 << 16:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.asarray(self._pending, dtype=self._dtype).tobytes())
        self._pending.clear()

    def finish(self) -> None:
        """Write the remaining values and the final length, durably."""
        self._flush()
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._data_start:
            raise RuntimeError("the .npy header changed its size")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, finished or not."""
        with suppress(OSError):  # a full disk is said by what wrote before
            self._file.close()
