"""A channel of the raw log: one number per item and sample, in two files of the folder `<run>/drift/`.

    <name>.jsonl   what the numbers belong to: one item a line
    <name>.bin     one record per sample: step (int64), then one float32 per item; NaN: not sampled

Records have a fixed size and are appended whole, so a file cut short by a crash loses at most its last record.
"""

from __future__ import annotations

import json
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.errors import InputError
from vdengine.files import write_bytes
from vdengine.outside import LARGE, is_count, is_text, json_lines, json_object, printable, read_bytes
from vdengine.settings import shown

RECORDS = 4 * LARGE  # bytes of samples that are read

# How far above its bound a value may come out: 100 tokens whose log-softmax is rounded in fp32, at logits around 50
ROUNDING = 1e-3


def read_manifest(path: Path, schema: int, missing: str) -> dict[str, Any]:
    """The manifest of a log.

    Args:
        schema: that this version reads.
        missing: the message where there is none.

    Raises:
        InputError: there is none, it is damaged, or of another version.
    """
    if not path.exists():
        raise InputError(f"{missing} (expected {printable(path)})")
    manifest = json_object(path)
    if manifest.get("schema") != schema:
        raise InputError(f"{printable(path)}: schema is {shown(manifest.get('schema'))}; this version reads {schema}")
    return manifest


def is_name(name: str) -> bool:
    """Whether a channel may be called so: a plain word, and not one of the log's other files."""
    return name.isidentifier() and len(name) < 100 and name not in ("panel", "manifest")


@dataclass(frozen=True, eq=False)
class Channel:
    """The samples of one readout: `steps` [S] int64 and `values` [S, items] float32."""

    folder: Path  # <run>/drift
    name: str
    unit: str  # of a value, in words
    high: float | None  # the largest possible value; None: there is none
    items: list[dict[str, Any]]

    @property
    def manifest(self) -> dict[str, Any]:
        """What the manifest of the log says of it."""
        return {"items": len(self.items), "unit": self.unit, "high": self.high}

    @classmethod
    def open(cls, folder: Path, name: str, manifest: Any) -> Channel:
        """The channel that a manifest names.

        Raises:
            InputError: the name is none of a channel, the items are not those of the manifest, or cannot be read.
        """
        where = printable(folder)
        if not is_name(name) or not isinstance(manifest, dict):
            raise InputError(f"{where}: the manifest names a channel {printable(name)[:100]!r}, which cannot be one")
        unit, high = manifest.get("unit", ""), manifest.get("high")
        if not is_text(unit) or not (high is None or type(high) in (int, float) and abs(high) < 1e9):
            raise InputError(f"{where}: channel {name!r}: the manifest's unit or largest value is none")
        path = folder / f"{name}.jsonl"
        items = []
        for place, item in json_lines(path):
            if not isinstance(item, dict):
                raise InputError(f"{place}: damaged: not an object")
            items.append(item)
        if manifest.get("items") != len(items):
            raise InputError(f"{printable(path)}: has {len(items)} items; the manifest says {manifest.get('items')!r}")
        return cls(folder, name, unit, high, items)

    def create(self) -> None:
        """Write the items and an empty file of samples."""
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in self.items]
        (self.folder / f"{self.name}.jsonl").write_text("".join(lines), encoding="utf-8")
        self.path.touch()

    @property
    def path(self) -> Path:
        """The file of the samples."""
        return self.folder / f"{self.name}.bin"

    @property
    def record_bytes(self) -> int:
        """Bytes of one sample in the file."""
        return self._record.itemsize

    @property
    def steps(self) -> np.ndarray:
        """[S] int64: the number of updates that the scored weights had had."""
        return self._records()["step"]

    @property
    def values(self) -> np.ndarray:
        """[S, items] float32; NaN where a sample left an item out."""
        return self._records()["values"]

    @property
    def _record(self) -> np.dtype:
        return np.dtype([("step", "<i8"), ("values", "<f4", (len(self.items),))])

    def _records(self) -> np.ndarray:
        """[S] of `_record`.

        Raises:
            InputError: the file cannot be read, or a sample cannot be one.
        """
        data = read_bytes(self.path, RECORDS)
        records = np.frombuffer(data, dtype=self._record, count=len(data) // self._record.itemsize)
        steps = records["step"]
        if len(steps) and (steps[0] < 0 or not is_count(int(steps[-1])) or (steps[1:] <= steps[:-1]).any()):
            raise InputError(f"{printable(self.path)}: damaged: its steps do not ascend from 0")
        high = np.inf if self.high is None else self.high
        if bad := np.flatnonzero(
            (np.isinf(records["values"]) | (records["values"] > high + ROUNDING)).any(-1)
        ).tolist():
            raise InputError(f"{printable(self.path)}: damaged: the sample of step {steps[bad[0]]} has no such values")
        return records

    def check(self, step: int, values: Any) -> tuple[int, np.ndarray]:
        """A sample as `append` writes it: its step, and its values [items] float32.

        Args:
            step: the number of updates that the scored weights have had.
            values: [items] numbers, an array or a tensor; NaN where an item was not sampled.

        Raises:
            InputError: a step that is not above the last one, another number of values, or a value that is infinite or
                above the channel's bound.
        """
        where = f"{self.path}, step {step}"
        count = self.path.stat().st_size // self.record_bytes
        try:
            step = operator.index(step)
        except TypeError:
            raise InputError(f"{where}: a step is a whole number, not a {type(step).__name__}") from None
        with open(self.path, "rb") as file:
            file.seek(max(0, count - 1) * self.record_bytes)
            last = int.from_bytes(file.read(8), "little", signed=True) if count else -1
        if step >= 2**63:
            raise InputError(f"{where}: a step is below 2^63")
        if step <= last:
            reason = f"the last sample is of step {last}; steps must ascend" if count else "steps begin at 0"
            raise InputError(f"{where}: {reason}")
        if hasattr(values, "detach"):  # a tensor, which this module does without
            values = values.detach().float().cpu()
        try:
            row = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: the values are not numbers: {error}") from None
        if row.shape != (len(self.items),):
            raise InputError(f"{where}: the values have shape {row.shape}; there are {len(self.items)} items")
        high = np.inf if self.high is None else self.high
        if len(bad := np.flatnonzero(np.isinf(row) | (row > high + ROUNDING))):
            allowed = "finite" if self.high is None else f"finite and at most {self.high:g} ({self.unit})"
            raise InputError(f"{where}: item {bad[0]} has the value {row[bad[0]]:g}; it must be {allowed}")
        return step, row

    def append(self, step: int, values: Any) -> None:
        """Add a sample. Args and Raises: as `check`."""
        step, row = self.check(step, values)
        record = np.zeros(1, dtype=self._record)
        record["step"], record["values"] = step, row
        with open(self.path, "r+b") as file:
            file.seek(self.path.stat().st_size // self.record_bytes * self.record_bytes)  # over a record cut short
            file.truncate()
            file.write(record.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Drop samples of `step` and later: a run resumed at `step` takes them again, with the same bits."""
        records = self._records()
        kept = records[records["step"] < step].tobytes()
        if len(kept) != self.path.stat().st_size:
            write_bytes(self.path, kept)
