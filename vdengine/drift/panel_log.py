"""The raw log of a run's drift. It is the folder `<run>/drift/`:

    manifest.json                  schema, panel and tokenizer with hashes, the spellings of leads, the channels by name
    panel.jsonl                    the panel
    openings.jsonl, openings.bin   the channel of openings: their log-prob sums at each sample
    leads.jsonl, leads.bin         the channel of leads: log-probs of the tokens that spell them
    <name>.jsonl, <name>.bin       another readout's channel

Each readout has a channel (`drift.channels`) and leaves the others' files alone; a reader passes over channels that it
does not know. Estimates are made from these files later; nothing in them depends on an estimator or on a judge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.channels import Channel, is_name, read_manifest
from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.outside import is_count, is_text, json_object, printable
from vdengine.panels.panel import LEADS, OPENINGS, STANCES, Panel, Request
from vdengine.runfolder import MANIFEST, RunFolder

SCHEMA = 4
UNITS = {
    OPENINGS: "nats, natural log, summed over the branch's tokens",
    LEADS: "nats, natural log, of the token as the first of an answer",
}


@dataclass
class DriftLog:
    """Samples of a run, by channel: of openings, of leads, of others."""

    folder: Path  # <run>/drift
    manifest: dict[str, Any]
    channels: dict[str, Channel]

    @classmethod
    def create(
        cls,
        run_folder: str | Path,
        panel: Panel,
        requests: Sequence[Request],
        tokenizer_hash: str | None = None,
        *,
        about: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> DriftLog:
        """Start or continue the log of a run. For scores that were computed elsewhere:

            requests = panel.requests(tokenizer)
            log = DriftLog.create("runs/x", panel, requests)
            log.append(step, logp)  # one log-prob sum per request, in order

        Args:
            requests: all that is scored, in the order of `Panel.requests`.
            tokenizer_hash: `Renderer.hash`; None: not known.
            about: what is known of a run that has no recipe, under the names of a recipe's sections and keys, for the
                report: {"run": {"steps": 100}, "model": {"source": "org/name"}}.

        Raises:
            InputError: the folder holds the log of another panel or tokenizer; nothing is scored.
        """
        run = RunFolder.at(run_folder)
        folder = run.drift
        if not requests:
            raise InputError(f"{folder}: nothing is scored: there are no requests")
        is_lead = [request.branch.channel == LEADS for request in requests]
        if sorted(is_lead) != is_lead:
            raise InputError(f"{folder}: leads stand before openings; requests are in the order of Panel.requests")
        channels = {}
        for name in UNITS:
            if items := [item_of(request) for request in requests if request.branch.channel == name]:
                channels[name] = Channel(folder, name, UNITS[name], 0.0, items)
        manifest = {
            "schema": SCHEMA,
            "panel": panel.name,
            "panel_hash": panel.hash,
            "tokenizer_hash": tokenizer_hash,
            "leads": _spelled(requests),
            "channels": {name: channel.manifest for name, channel in channels.items()},
        }
        if (folder / MANIFEST).exists():
            old = cls.open(run_folder)
            same = all(old.manifest.get(name) == value for name, value in manifest.items() if name != "channels")
            own = {name: channel.items for name, channel in old.channels.items() if name in UNITS}
            if not same or own != {name: channel.items for name, channel in channels.items()}:
                raise InputError(
                    f"{folder}: holds the log of another panel or tokenizer, or with other controls or readouts; name "
                    "another run folder"
                )
            if about:
                write_about(run, about)
            return old
        folder.mkdir(parents=True, exist_ok=True)
        panel.save(folder / "panel.jsonl")
        for channel in channels.values():
            channel.create()
        # Last: where a manifest is, the folder is complete.
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        if about:
            write_about(run, about)
        return cls(folder, manifest, channels)

    @classmethod
    def open(cls, run_folder: str | Path) -> DriftLog:
        """Open the log of a run for reading.

        Raises:
            InputError: there is none, it is damaged, or of another version.
        """
        folder = RunFolder.at(run_folder).drift
        path = folder / MANIFEST
        manifest = read_manifest(path, SCHEMA, f"{printable(run_folder)}: no drift data here")
        if not is_text(manifest.get("panel")) or not is_text(manifest.get("panel_hash")):
            raise InputError(f"{printable(path)}: names no panel")
        if not isinstance(named := manifest.get("channels"), dict):
            raise InputError(f"{printable(path)}: names no channels")
        channels = {name: Channel.open(folder, name, entry) for name, entry in named.items()}
        if not set(UNITS) & set(channels):
            raise InputError(
                f"{printable(path)}: has neither a channel {OPENINGS!r} nor {LEADS!r}, only "
                f"{', '.join(channels) or 'none'}"
            )
        about: dict[tuple[str, str], tuple[Any, ...]] = {}
        for name in UNITS:
            if name in channels:
                _check_items(name, channels[name].items, printable(folder / f"{name}.jsonl"), about)
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
        write_text(self.folder / MANIFEST, json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")
        return wanted

    def items(self, channel: str) -> list[dict[str, Any]]:
        """What the numbers of a channel belong to: of openings rows of probe, topic, axis, polarity, variant, stance,
        kind, num_tokens, num_bytes, text; of leads the same with the token's id and without kind and counts. [] where
        the log has no such channel."""
        return self.channels[channel].items if channel in self.channels else []

    @property
    def steps(self) -> np.ndarray:
        """[S] int64: the number of updates that the scored weights had had, of the samples that are whole."""
        own = [channel.steps for channel in self._own]
        whole = min(own, key=len)
        if any((steps[: len(whole)] != whole).any() for steps in own):
            raise InputError(f"{printable(self.folder)}: damaged: openings and leads have samples of other steps")
        return whole

    def samples(self) -> np.ndarray:
        """[S, B] float32, nats: what was appended, openings and then leads; NaN where a sample left something out."""
        count = len(self.steps)
        return np.concatenate([channel.values[:count] for channel in self._own], axis=1)

    @property
    def _own(self) -> list[Channel]:
        """The channels that are appended to together, in order."""
        return [self.channels[name] for name in UNITS if name in self.channels]

    def append(self, step: int, logp: Any) -> None:
        """Add a sample: log-prob sums logp [B] float32, nats, one a request, in order.

        Raises:
            InputError: a step that is not above the last one, another number of log-probs, or a log-prob above 0.
        """
        if hasattr(logp, "detach"):  # a tensor, which this module does without
            logp = logp.detach().float().cpu()
        try:
            row = np.asarray(logp, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.folder}, step {step}: the log-probs are not numbers: {error}") from None
        ends = np.cumsum([len(channel.items) for channel in self._own])
        if row.shape != (ends[-1],):
            raise InputError(
                f"{self.folder}, step {step}: the log-probs have shape {row.shape}; there are {ends[-1]} requests"
            )
        whole = self.steps
        for channel in self._own:
            if len(channel.steps) > len(whole):  # what a crash left of a sample
                channel.rewind(int(channel.steps[len(whole)]))
        parts = list(zip(self._own, np.split(row, ends[:-1]), strict=True))
        for channel, part in parts:
            channel.check(step, part)
        for channel, part in parts:
            channel.append(step, part)

    def rewind(self, step: int) -> None:
        """Drop samples of `step` and later from all channels: a run resumed at `step` takes them again, with the same
        bits. So does what a crash left of a sample in one channel alone."""
        whole = self.steps
        for name, channel in self.channels.items():
            end = step if name not in UNITS or len(channel.steps) == len(whole) else int(channel.steps[len(whole)])
            channel.rewind(min(step, end))


def item_of(request: Request) -> dict[str, Any]:
    """A request as a line of its channel's items."""
    branch, probe = request.branch, request.branch.probe
    item = {
        "probe": probe.id,
        "topic": probe.topic,
        "axis": probe.axis,
        "polarity": probe.polarity,
        "variant": branch.variant,
        "stance": branch.stance,
    }
    if branch.channel == LEADS:
        return item | {"ids": request.answer_ids, "text": branch.text}
    counts = {"num_tokens": len(request.answer_ids), "num_bytes": branch.num_bytes}
    return item | {"kind": branch.kind} | counts | {"text": branch.text}


Spelled = dict[str, list[dict[str, Any]]]  # by stance: text and ids of each spelling


def _spelled(requests: Sequence[Request]) -> list[Spelled]:
    """The spellings of each set of leads."""
    sets: list[Spelled] = []
    by_probe: dict[str, Spelled] = {}
    for request in requests:
        if request.branch.channel == LEADS and request.branch.variant == "question":
            of_probe = by_probe.setdefault(request.branch.probe.id, {})
            way: dict[str, Any] = {"text": request.text, "ids": request.answer_ids}
            of_probe.setdefault(request.branch.stance, []).append(way)
    for spelled in by_probe.values():
        if spelled not in sets:
            sets.append(spelled)
    return sets


_VARIANTS = ("question", "paraphrase", "null", "off-topic")


def _check_items(
    channel: str, items: Sequence[Mapping[str, Any]], where: str, about: dict[tuple[str, str], tuple[Any, ...]]
) -> None:
    """Raises InputError unless every line of a channel's items is as `item_of` makes them, and every probe has both
    sides.

    Args:
        where: names the file.
        about: by probe and variant, what all its branches share, in all channels; added to.
    """
    sides: dict[tuple[str, str], set[str]] = {}  # by probe and variant: its stances
    for number, item in enumerate(items, start=1):
        probe, variant = item.get("probe"), item.get("variant")
        shared = tuple(item.get(name) for name in ("topic", "axis", "polarity"))
        fits = (
            all(is_text(item.get(name)) for name in ("probe", "topic", "axis", "text"))
            and variant in _VARIANTS
            and item.get("stance") in STANCES
            and type(item.get("polarity")) is int
            and item["polarity"] in (1, -1)
            and about.setdefault((str(probe), str(variant)), shared) == shared
        )
        if fits and channel == LEADS:
            ids = item.get("ids")
            fits = (
                isinstance(ids, list) and 0 < len(ids) < 9 and all(map(is_count, ids)) and item["stance"] != "neutral"
            )
        elif fits:
            count = item.get("num_bytes")
            fits = is_text(item.get("kind")) and is_count(item.get("num_tokens")) and is_count(count) and bool(count)
        if not fits:
            what = "a lead" if channel == LEADS else "an opening"
            raise InputError(f"{where}, line {number}: damaged: not {what} of a panel")
        if variant != "null":
            sides.setdefault((str(probe), str(variant)), set()).add(item["stance"])
    wanted = {"support", "oppose"} if channel == LEADS else set(STANCES)
    for (probe, variant), found in sides.items():
        if lacking := wanted - found:
            raise InputError(f"{where}: damaged: {printable(probe)} ({variant}) lacks {', '.join(sorted(lacking))}")


def write_about(run: RunFolder, about: Mapping[str, Mapping[str, Any]], steps: int | None = None) -> None:
    """Write what is known of a run without a recipe, under the names of a recipe's sections and keys; what stood there
    and is not said anew stays. steps: planned ones."""
    known = json_object(run.trainer) if run.trainer.exists() else {}
    tables = {name: table for name, table in known.items() if isinstance(table, dict)}
    given = {**about, "run": {**about.get("run", {}), **({} if steps is None else {"steps": steps})}}
    merged = {name: {**tables.get(name, {}), **given.get(name, {})} for name in {**tables, **given}}
    write_text(run.trainer, json.dumps(merged, indent=2, ensure_ascii=False, default=str) + "\n")
