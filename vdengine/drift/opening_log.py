"""The raw log of a run's drift. It is the folder `<run>/drift/`:

    manifest.json                  schema, panel name and hash, tokenizer hash, and the channels by name
    panel.jsonl                    the panel
    openings.jsonl, openings.bin   the channel of openings: their log-prob sums at each sample
    <name>.jsonl, <name>.bin       another readout's channel

Each readout has a channel (`drift.channels`) and leaves the others' files alone; a reader passes over channels that it
does not know. Estimates are made from these files later; nothing in them depends on an estimator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.channels import Channel, is_name
from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.outside import is_count, is_text, json_object, printable
from vdengine.panels.panel import STANCES, Branch, Panel
from vdengine.runfolder import MANIFEST, RunFolder
from vdengine.settings import shown

SCHEMA = 3
OPENINGS = "openings"
UNIT = "nats, natural log, summed over the branch's tokens"


@dataclass
class DriftLog:
    """Samples of a run, by channel; of openings `steps` [S] int64 and `logp` [S, B] float32 of B branches."""

    folder: Path  # <run>/drift
    manifest: dict[str, Any]
    channels: dict[str, Channel]

    @classmethod
    def create(
        cls,
        run_folder: str | Path,
        panel: Panel,
        branches: Sequence[Branch] | None = None,
        num_tokens: Sequence[int] | None = None,
        tokenizer_hash: str | None = None,
        *,
        about: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> DriftLog:
        """Start or continue the log of a run. For scores that were computed elsewhere the folder and the panel suffice:

            requests = panel.requests(tokenizer)
            log = DriftLog.create("runs/x", panel)
            log.append(step, logp)  # one log-prob sum per request, in order

        Args:
            branches: all that are scored, in order; default: those of the panel's own questions.
            num_tokens: of each branch; None: not known.
            tokenizer_hash: `Renderer.hash`; None: not known.
            about: what is known of a run that has no recipe, under the names of a recipe's sections and keys, for the
                report: {"run": {"steps": 100}, "model": {"source": "org/name"}}.

        Raises:
            InputError: the folder holds the log of another panel or tokenizer.
        """
        run = RunFolder.at(run_folder)
        folder = run.drift
        branches = panel.branches() if branches is None else branches
        counts = [None] * len(branches) if num_tokens is None else num_tokens
        items = [_item(branch, count) for branch, count in zip(branches, counts, strict=True)]
        openings = Channel(folder, OPENINGS, UNIT, 0.0, items)
        manifest = {
            "schema": SCHEMA,
            "panel": panel.name,
            "panel_hash": panel.hash,
            "tokenizer_hash": tokenizer_hash,
            "channels": {OPENINGS: openings.manifest},
        }
        if (folder / MANIFEST).exists():
            old = cls.open(run_folder)
            same = all(old.manifest.get(name) == value for name, value in manifest.items() if name != "channels")
            if not same or OPENINGS not in old.channels or old.table != items:
                raise InputError(
                    f"{folder}: holds the log of another panel or tokenizer, or with other controls; name another run "
                    "folder"
                )
            if about:
                write_about(run, about)
            return old
        folder.mkdir(parents=True, exist_ok=True)
        panel.save(folder / "panel.jsonl")
        openings.create()
        # Last: where a manifest is, the folder is complete.
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        if about:
            write_about(run, about)
        return cls(folder, manifest, {OPENINGS: openings})

    @classmethod
    def open(cls, run_folder: str | Path) -> DriftLog:
        """Open the log of a run for reading.

        Raises:
            InputError: there is none, it is damaged, or of another version.
        """
        folder = RunFolder.at(run_folder).drift
        path = folder / MANIFEST
        if not path.exists():
            raise InputError(f"{printable(run_folder)}: no drift data here (expected {printable(path)})")
        manifest = json_object(path)
        if manifest.get("schema") != SCHEMA:
            raise InputError(
                f"{printable(path)}: schema is {shown(manifest.get('schema'))}; this version reads {SCHEMA}"
            )
        if not is_text(manifest.get("panel")) or not is_text(manifest.get("panel_hash")):
            raise InputError(f"{printable(path)}: names no panel")
        if not isinstance(named := manifest.get("channels"), dict):
            raise InputError(f"{printable(path)}: names no channels")
        channels = {name: Channel.open(folder, name, entry) for name, entry in named.items()}
        if OPENINGS not in channels:
            raise InputError(f"{printable(path)}: has no channel {OPENINGS!r}, only {', '.join(channels) or 'none'}")
        _check_items(channels[OPENINGS].items, printable(folder / f"{OPENINGS}.jsonl"))
        return cls(folder, manifest, channels)

    def channel(self, name: str, *, items: Sequence[dict[str, Any]], unit: str, high: float | None = None) -> Channel:
        """Another readout's channel of this name; added to the log if it is not there.

        Args:
            items: what its numbers belong to, each a JSON object.
            unit: of a value, in words.
            high: the largest possible value.

        Raises:
            InputError: the log has a channel of this name with other items, unit or bound; the name is no plain word.
        """
        if not is_name(name):
            raise InputError(f"{self.folder}: a channel's name must be a plain word; got {name!r}")
        wanted = Channel(self.folder, name, unit, high, list(items))
        if (old := self.channels.get(name)) is not None:
            if old.manifest != wanted.manifest or old.items != wanted.items:
                raise InputError(f"{self.folder}: has a channel {name!r} of other items; name another run folder")
            return old
        wanted.create()
        self.channels[name], self.manifest["channels"][name] = wanted, wanted.manifest
        write_text(self.folder / MANIFEST, json.dumps(self.manifest, indent=2) + "\n")
        return wanted

    @property
    def table(self) -> list[dict[str, Any]]:
        """[B] rows: probe, topic, axis, polarity, variant, stance, kind, num_tokens, num_bytes, text of each branch."""
        return self.channels[OPENINGS].items

    @property
    def steps(self) -> np.ndarray:
        """[S] int64: the number of updates that the scored weights had had."""
        return self.channels[OPENINGS].steps

    @property
    def logp(self) -> np.ndarray:
        """[S, B] float32: log-prob sums over a branch's tokens, nats; NaN where a sample left a probe out."""
        return self.channels[OPENINGS].values

    def append(self, step: int, logp: Any) -> None:
        """Add a sample of openings: log-prob sums logp [B] float32, nats.

        Raises:
            InputError: a step that is not above the last one, another number of log-probs, or a log-prob above 0.
        """
        self.channels[OPENINGS].append(step, logp)

    def rewind(self, step: int) -> None:
        """Drop samples of `step` and later from all channels: a run resumed at `step` takes them again, with the same
        bits."""
        for channel in self.channels.values():
            channel.rewind(step)


def _item(branch: Branch, num_tokens: int | None) -> dict[str, Any]:
    """A branch as a line of openings.jsonl."""
    probe = branch.probe
    return {
        "probe": probe.id,
        "topic": probe.topic,
        "axis": probe.axis,
        "polarity": probe.polarity,
        "variant": branch.variant,
        "stance": branch.stance,
        "kind": branch.kind,
        "num_tokens": num_tokens,
        "num_bytes": branch.num_bytes,
        "text": branch.text,
    }


_VARIANTS = ("question", "paraphrase", "null", "off-topic")


def _check_items(items: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises InputError unless every line of openings.jsonl is as `_item` makes them; where: names the file."""
    about: dict[tuple[str, str], tuple[Any, ...]] = {}  # by probe and variant: what all its openings share
    for number, item in enumerate(items, start=1):
        probe, variant = item.get("probe"), item.get("variant", "question")
        shared = tuple(item.get(name) for name in ("topic", "axis", "polarity"))
        count = item.get("num_tokens")
        if not (
            all(is_text(item.get(name)) for name in ("probe", "topic", "axis", "kind", "text"))
            and variant in _VARIANTS
            and item.get("stance") in STANCES
            and type(item.get("polarity")) is int
            and item["polarity"] in (1, -1)
            and (count is None or is_count(count))
            and is_count(item.get("num_bytes"))
            and item["num_bytes"] > 0
            and about.setdefault((str(probe), variant), shared) == shared
        ):
            raise InputError(f"{where}, line {number}: damaged: not an opening of a panel")


def write_about(run: RunFolder, about: Mapping[str, Mapping[str, Any]], steps: int | None = None) -> None:
    """Write what is known of a run without a recipe, under the names of a recipe's sections and keys; what stood there
    and is not said anew stays. steps: planned ones."""
    known = json_object(run.trainer) if run.trainer.exists() else {}
    tables = {name: table for name, table in known.items() if isinstance(table, dict)}
    given = {**about, "run": {**about.get("run", {}), **({} if steps is None else {"steps": steps})}}
    merged = {name: {**tables.get(name, {}), **given.get(name, {})} for name in {**tables, **given}}
    write_text(run.trainer, json.dumps(merged, indent=2, ensure_ascii=False, default=str) + "\n")
