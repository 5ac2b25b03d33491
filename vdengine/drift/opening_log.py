"""The raw log of a run's openings: their log-probs at each sample.

It is the folder `<run>/drift/`:

    openings.jsonl   one line per branch (panel order): probe, topic, axis, polarity, variant, stance, kind, tokens,
                     bytes, text
    panel.jsonl      the panel
    manifest.json    schema, panel name and hash, tokenizer hash, number of branches
    scores.bin       one record per sample: step (int64), then one log-prob sum (float32, nats) per branch; NaN: not
                     sampled

Estimates are made from these files later; nothing in them depends on an estimator. Records have a fixed size and are
appended whole, so a log cut short by a crash loses at most its last record.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.errors import InputError
from vdengine.panels.panel import Branch, Panel
from vdengine.runfolder import MANIFEST, RunFolder

SCHEMA = 2


@dataclass
class DriftLog:
    """Samples of a run: `steps` [S] int64 and `logp` [S, B] float32 of B branches."""

    folder: Path  # <run>/drift
    manifest: dict[str, Any]
    table: list[dict[str, Any]]  # openings.jsonl: [B] rows

    @classmethod
    def create(
        cls, run_folder: str | Path, panel: Panel, branches: list[Branch], num_tokens: list[int], tokenizer_hash: str
    ) -> DriftLog:
        """Start or continue the log of a run.

        Args:
            branches: all that are scored, in order.
            num_tokens: of each branch.

        Raises:
            InputError: the folder holds the log of another panel or tokenizer.
        """
        folder = RunFolder.at(run_folder).drift
        manifest = {
            "schema": SCHEMA,
            "panel": panel.name,
            "panel_hash": panel.hash,
            "tokenizer_hash": tokenizer_hash,
            "num_branches": len(branches),
            "unit": "nats, natural log, summed over the branch's tokens",
        }
        table = []
        for branch, tokens in zip(branches, num_tokens, strict=True):
            probe = branch.probe
            table.append(
                {
                    "probe": probe.id,
                    "topic": probe.topic,
                    "axis": probe.axis,
                    "polarity": probe.polarity,
                    "variant": branch.variant,
                    "stance": branch.stance,
                    "kind": branch.kind,
                    "num_tokens": tokens,
                    "num_bytes": branch.num_bytes,
                    "text": branch.text,
                }
            )
        if (folder / MANIFEST).exists():
            old = cls.open(run_folder)
            if old.manifest != manifest or old.table != table:
                raise InputError(f"{folder}: holds the log of another panel or tokenizer; give run.folder a new name")
            return old
        folder.mkdir(parents=True, exist_ok=True)
        panel.save(folder / "panel.jsonl")
        (folder / "openings.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), encoding="utf-8"
        )
        (folder / "scores.bin").touch()
        # Last: where a manifest is, the folder is complete.
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        return cls(folder, manifest, table)

    @classmethod
    def open(cls, run_folder: str | Path) -> DriftLog:
        """Open the log of a run for reading.

        Raises:
            InputError: there is none, or it is damaged.
        """
        folder = RunFolder.at(run_folder).drift
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            table = [
                json.loads(line) for line in (folder / "openings.jsonl").read_text(encoding="utf-8").split("\n") if line
            ]
        except FileNotFoundError:
            raise InputError(f"{run_folder}: no drift data here (expected {folder / MANIFEST})") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{folder}: damaged: {error}") from None
        if manifest.get("schema") != SCHEMA or manifest.get("num_branches") != len(table):
            raise InputError(f"{folder}: manifest.json does not fit openings.jsonl (or is of another version)")
        return cls(folder, manifest, table)

    @property
    def scores_path(self) -> Path:
        """`scores.bin`."""
        return self.folder / "scores.bin"

    @property
    def record_bytes(self) -> int:
        """Bytes of one sample in `scores.bin`."""
        return self._record.itemsize

    @property
    def _record(self) -> np.dtype:
        return np.dtype([("step", "<i8"), ("logp", "<f4", (len(self.table),))])

    def _records(self) -> np.ndarray:
        """[S] of `_record`."""
        data = self.scores_path.read_bytes()
        whole = len(data) // self._record.itemsize
        return np.frombuffer(data[: whole * self._record.itemsize], dtype=self._record)

    @property
    def steps(self) -> np.ndarray:
        """[S] int64: the number of updates that the scored weights had had."""
        return self._records()["step"]

    @property
    def logp(self) -> np.ndarray:
        """[S, B] float32: log-prob sums over a branch's tokens, nats; NaN where a sample left a probe out."""
        return self._records()["logp"]

    def append(self, step: int, logp: np.ndarray) -> None:
        """Add a sample: log-prob sums logp [B] float32, nats."""
        record = np.zeros(1, dtype=self._record)
        record["step"], record["logp"] = step, logp
        with open(self.scores_path, "ab") as file:
            file.write(record.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Drop samples of `step` and later: a run resumed at `step` takes them again, with the same bits."""
        records = self._records()
        kept = records[records["step"] < step].tobytes()
        if len(kept) != self.scores_path.stat().st_size:
            temporary = self.folder / "scores.bin.tmp"
            temporary.write_bytes(kept)
            os.replace(temporary, self.folder / "scores.bin")
