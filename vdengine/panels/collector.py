"""Collecting the probes of an imported panel, and counting what is left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdengine.errors import InputError
from vdengine.outside import printable
from vdengine.panels.panel import Panel, Probe
from vdengine.panels.row_files import stem_of
from vdengine.settings import shown


@dataclass(frozen=True)
class Imported:
    """A panel, and what of the file is not in it."""

    panel: Panel
    dropped: Counter[str]  # rows that were left out, by reason
    duplicates: dict[str, int]  # rows that repeat a prompt, by the id of the probe that has it
    columns: dict[str, str] = field(default_factory=dict)  # the file's name of each field that was read

    def summary(self) -> str:
        """Lines for a user: probes by topic, and every row that was left out, by reason."""
        probes = self.panel.probes
        num_scored = sum(probe.has_openings for probe in probes)
        lines = [f"{len(probes)} probes, {num_scored} with openings, hash {self.panel.hash}"]
        if self.columns:
            lines.append("read as " + ", ".join(f"{key}: {name!r}" for key, name in self.columns.items()))
        for topic in self.panel.topics:
            of_topic = [probe for probe in probes if probe.topic == topic]
            signs = Counter(probe.polarity for probe in of_topic)
            lines.append(
                f"  {topic}: {len(of_topic)} probes, {signs[1]} of polarity 1; towards {self.panel.axis(topic)}"
            )
        lines += [f"left out {count:,}: {reason}" for reason, count in self.dropped.most_common()]
        if self.duplicates:
            lines.append(f"left out {sum(self.duplicates.values()):,}: the prompt of another probe again")
            most = sorted(self.duplicates.items(), key=lambda item: -item[1])
            lines += [f"  {count} of {id}" for id, count in most[:10]]
            if len(most) > 10:
                lines.append(f"  ... and of {len(most) - 10} others")
        return "\n".join(lines)


class Skip(Exception):
    """A row is left out; the message is the reason that it is counted under."""


class Collector:
    """Collects probes row by row: one for each prompt, of the topics asked for, up to a limit of each topic.

    Args:
        topics: keep only these; None: all.
        limit: probes of a topic, at most; None: no limit.
        halves: of these, at most half of either polarity.

    Raises:
        InputError: a limit below 1, or below 2 with halves.
    """

    def __init__(self, topics: Sequence[str] | None, limit: int | None, halves: bool) -> None:
        if limit is not None and limit < 1 + halves:
            raise InputError(f"limit {limit}: it must be at least {1 + halves} (probes of a topic)")
        self.topics, self.limit, self.halves = topics, limit, halves
        self.probes: list[Probe] = []
        self.dropped: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        self.of_prompt: dict[str, Probe] = {}  # by normalised prompt
        self.place_of_id: dict[str, str] = {}  # by id: the row that has it
        self.axis_of: dict[str, tuple[str, str]] = {}  # by topic: its axis, and the row that gave it
        self.seen: Counter[str] = Counter()  # rows by topic
        self.kept: Counter[Any] = Counter()  # probes by topic, or by (topic, polarity)

    def add(self, row: dict[str, Any], where: str) -> None:
        """Check a row of a probe's fields and keep its probe; where: file and line.

        Raises:
            Skip: the row is left out.
            InputError: the row is no probe, or contradicts an earlier one.
        """
        probe, prompt = Probe.from_row(row, where), _normalised(row["prompt"])
        self.seen[probe.topic] += 1
        if self.topics is not None and probe.topic not in self.topics:
            raise Skip("of a topic that was not asked for")
        if (first := self.of_prompt.get(prompt)) is not None:
            if (first.topic, first.polarity) != (probe.topic, probe.polarity):
                raise Skip("the prompt of another probe, with another topic or polarity")
            self.duplicates[first.id] += 1
            return
        group, limit = (probe.topic, probe.polarity) if self.halves else probe.topic, self.limit
        if limit is not None and self.halves:
            limit = limit // 2 + (limit % 2 if probe.polarity > 0 else 0)
        if limit is not None and self.kept[group] >= limit:
            raise Skip(f"beyond the limit of {self.limit} a topic")
        if probe.id in self.place_of_id:
            raise InputError(f"{where}: duplicate id {shown(probe.id)}, first used at {self.place_of_id[probe.id]}")
        axis, place = self.axis_of.setdefault(probe.topic, (probe.axis, where))
        if axis != probe.axis:
            raise InputError(
                f"{where}: topic {shown(probe.topic)} has the axis {shown(probe.axis)} here but {shown(axis)} at "
                f"{place}; a topic has one axis (rows without one have their own)"
            )
        self.of_prompt[prompt], self.place_of_id[probe.id] = probe, where
        self.kept[group] += 1
        self.probes.append(probe)

    def finish(self, path: Path, columns: dict[str, str] | None = None) -> Imported:
        """The panel, named after the file.

        Raises:
            InputError: no probe was kept, or a topic that was asked for has no row.
        """
        for topic in self.topics or ():
            if not self.seen[topic]:
                known = ", ".join(f"{name} ({count})" for name, count in self.seen.most_common(20)) or "none"
                raise InputError(f"{printable(path)}: no row of topic {shown(topic)}; it has {printable(known[:500])}")
        if not self.probes:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
            raise InputError(f"{printable(path)}: nothing to import: {reasons or 'it has no rows'}")
        return Imported(Panel(stem_of(path), tuple(self.probes)), self.dropped, dict(self.duplicates), columns or {})


def clean(text: str) -> str:
    """A prompt without white space at its ends.

    Raises:
        Skip: it is empty, or not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Skip("text is not valid Unicode") from None
    if not (text := text.strip()):
        raise Skip("empty prompt")
    return text


def _normalised(text: str) -> str:
    """A prompt without case, spacing and Unicode form: equal for prompts that differ in those only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
