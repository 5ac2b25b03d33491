"""Verdicts of server judges in the user's cache folder, so that no question is paid for twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from vdengine.drift.judgements import Stance, read_stance, slug_of
from vdengine.errors import InputError
from vdengine.outside import LARGE, parse_json, read_bytes


def cache_folder() -> Path:
    """`vdengine/judgements` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdengine" / "judgements"


class VerdictCache:
    """One judge's verdicts by a digest of the question, in `<folder>/<judge>-<digest of its identity>.jsonl`.

    A line a verdict. A line that cannot be read is left out: its question is asked again.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        self.path = folder / f"{slug_of(name)}-{_digest(json.dumps(identity, sort_keys=True))}.jsonl"
        self._known: dict[str, Stance] = {}
        self._file: Any = None
        for line in read_bytes(self.path, LARGE).split(b"\n") if self.path.exists() else ():
            try:
                row = parse_json(line, self.path.name)
                if isinstance(row, dict) and isinstance(row.get("asked"), str) and "stance" in row:
                    self._known[row["asked"]] = read_stance(row["stance"], self.path.name)
            except InputError:
                continue

    def get(self, question: str) -> Stance | None:
        """The verdict on a question; NaN: it gave none. None: not asked yet."""
        return self._known.get(_digest(question))

    def add(self, question: str, stance: Stance) -> None:
        """Keep a verdict, in memory and on disk."""
        key = _digest(question)
        self._known[key] = stance
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            self._file.write("\n")  # ends a line that was cut short; empty lines are skipped
        self._file.write(json.dumps({"asked": key, "stance": None if math.isnan(stance[0]) else stance}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; `add` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
