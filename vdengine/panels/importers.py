"""Panels from other people's files: PRISM, persona statements, V-PRISM-like tables, and a user's own rows.

Each importer reads one file and gives an `Imported`: a panel that `Panel.save` writes, and what was left out and why.
Most files hold questions and nothing else. Their probes have no openings: they are read by sampled answers only. Where
a file does not say which way a question points, its polarity is 1 and its axis is `OWN_AXIS`: stance is then agreement
with what the prompt proposes, and cannot be told from a habit of saying yes. Give `axis` and `polarity` to tell them
apart.

Texts are kept as they are, HTML, any Unicode and any length, but for white space at their ends. A line that is not
what its format says is an InputError with file, line and reason; a row that only cannot be used is left out and
counted.
"""

from __future__ import annotations

import ast
import csv
import io
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdengine.data.locate import resolve
from vdengine.errors import InputError
from vdengine.panels.panel import SCHEMA, Panel, Probe
from vdengine.panels.topics import OFF_TOPIC, TopicMatcher

OWN_AXIS = "agreement with what the prompt proposes"
CONVERSATION_TYPES = ("unguided", "values guided", "controversy guided")
KINDS = {
    "prism": "PRISM conversations.jsonl: opening prompts by conversation type; or its table of prompt clusters (.csv)",
    "persona": "an Anthropic-evals persona file (.jsonl): statements that one persona would say or would not",
    "vprism": "a table of prompts and topics (.csv, .tsv), as V-PRISM: 550 prompts over 11 topics",
    "jsonl": "your own rows (.jsonl, .json): a prompt each, and what else of a probe you have",
}

# What a column or field may be called, in order of preference; compared without case, spaces, '_' and '-'.
_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "opening_prompt", "user_prompt", "text", "query", "input", "x"),
    "topic": ("topic", "topic_name", "category", "cluster", "theme", "gpt_description", "issue"),
    "id": ("id", "prompt_id", "question_id", "probe_id", "conversation_id"),
    "axis": ("axis",),
    "polarity": ("polarity", "sign", "direction"),
    "paraphrases": ("paraphrases", "paraphrase"),
    "openings": ("openings",),
}


@dataclass(frozen=True)
class Imported:
    """A panel, and what of the file is not in it.

    `dropped`: reason -> rows. `duplicates`: id of the probe that stays -> rows that repeat its prompt. `columns`: what
    the file calls each field that was read.
    """

    panel: Panel
    dropped: Counter[str]
    duplicates: dict[str, int]
    columns: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Lines for a user: probes by topic, and every row that was left out, by reason."""
        probes = self.panel.probes
        scored = sum(p.has_openings for p in probes)
        lines = [f"{len(probes)} probes, {scored} with openings, hash {self.panel.hash}"]
        if self.columns:
            lines.append("read as " + ", ".join(f"{key}: {name!r}" for key, name in self.columns.items()))
        for topic in self.panel.topics:
            each = [p for p in probes if p.topic == topic]
            signs = Counter(p.polarity for p in each)
            lines.append(f"  {topic}: {len(each)} probes, {signs[1]} of polarity 1; towards {self.panel.axis(topic)}")
        lines += [f"left out {count:,}: {reason}" for reason, count in self.dropped.most_common()]
        if self.duplicates:
            lines.append(f"left out {sum(self.duplicates.values()):,}: the prompt of another probe again")
            most = sorted(self.duplicates.items(), key=lambda item: -item[1])
            lines += [f"  {count} of {id}" for id, count in most[:10]]
            if len(most) > 10:
                lines.append(f"  ... and of {len(most) - 10} others")
        return "\n".join(lines)


class _Skip(Exception):
    """Leaves one row out; the message is the reason it is counted under."""


class _Collector:
    """Probes as they are found: one for each prompt, of the topics asked for, up to `limit` of each topic (and of
    each polarity in a topic, half)."""

    def __init__(self, topics: Sequence[str] | None, limit: int | None, halves: bool) -> None:
        if limit is not None and limit < 1 + halves:
            raise InputError(f"limit {limit}: it must be at least {1 + halves} (probes of a topic)")
        self.topics, self.limit, self.halves = topics, limit, halves
        self.probes: list[Probe] = []
        self.dropped: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        self.of_prompt: dict[str, Probe] = {}  # -> the probe that has it
        self.place_of_id: dict[str, str] = {}
        self.axis_of: dict[str, tuple[str, str]] = {}  # topic -> its axis, and where that was said
        self.seen: Counter[str] = Counter()  # rows by topic
        self.kept: Counter[Any] = Counter()

    def add(self, row: dict[str, Any], where: str) -> None:
        """Check a row and keep it; else a _Skip that says why not."""
        probe, same = Probe.from_row(row, where), _same(row["prompt"])
        self.seen[probe.topic] += 1
        if self.topics is not None and probe.topic not in self.topics:
            raise _Skip("of a topic that was not asked for")
        if (first := self.of_prompt.get(same)) is not None:
            if (first.topic, first.polarity) != (probe.topic, probe.polarity):
                raise _Skip("the prompt of another probe, with another topic or polarity")
            self.duplicates[first.id] += 1
            return
        group, most = (probe.topic, probe.polarity) if self.halves else probe.topic, self.limit
        if most is not None and self.halves:
            most = most // 2 + (most % 2 if probe.polarity > 0 else 0)
        if most is not None and self.kept[group] >= most:
            raise _Skip(f"beyond the limit of {self.limit} a topic")
        if probe.id in self.place_of_id:
            raise InputError(f"{where}: duplicate id {probe.id!r}, first used at {self.place_of_id[probe.id]}")
        axis, place = self.axis_of.setdefault(probe.topic, (probe.axis, where))
        if axis != probe.axis:
            raise InputError(
                f"{where}: topic {probe.topic!r} has the axis {probe.axis!r} here but {axis!r} at {place}; a topic has "
                "one axis (rows without one have their own)"
            )
        self.of_prompt[same], self.place_of_id[probe.id] = probe, where
        self.kept[group] += 1
        self.probes.append(probe)

    def finish(self, path: Path, columns: dict[str, str] | None = None) -> Imported:
        for topic in self.topics or ():
            if not self.seen[topic]:
                have = ", ".join(f"{t} ({n})" for t, n in self.seen.most_common(20)) or "none"
                raise InputError(f"{path}: no row of topic {topic!r}; it has {have}")
        if not self.probes:
            why = "; ".join(f"{count} {reason}" for reason, count in self.dropped.most_common()) or "it has no rows"
            raise InputError(f"{path}: nothing to import: {why}")
        return Imported(Panel(_stem(path), tuple(self.probes)), self.dropped, dict(self.duplicates), columns or {})


def import_panel(
    kind: str,
    path: str | Path,
    *,
    topics: Sequence[str] | None = None,
    limit: int | None = None,
    types: Sequence[str] | None = None,
    matcher: TopicMatcher | None = None,
    openings: bool = True,
) -> Imported:
    """Read a file of one of `KINDS` into a panel.

    topics: keep only these. limit: at most so many probes of each topic, the first of the file; of persona statements,
    half of them of each polarity. types: conversation types of PRISM (default: all). matcher: gives topics to prompts
    that have none (PRISM conversations; rows without a topic). openings: of persona statements, which have a belief
    form; without, they are read by answers only.

    Raises:
        InputError: an unknown kind, a file that cannot be read or is not of its kind, a topic it does not have.
    """
    path = Path(path).expanduser()
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r} of panel file; it is one of {', '.join(KINDS)}")
    clusters = kind == "prism" and path.suffix == ".csv"
    if types is not None and (kind != "prism" or clusters):
        raise InputError(f"{path}: only PRISM's conversations.jsonl has conversation types to choose from")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    collector = _Collector(topics, limit, halves=kind == "persona")
    if clusters:
        return _prism_clusters(path, collector)
    if kind == "prism":
        return _prism(path, collector, matcher, types)
    if kind == "persona":
        return _persona(path, collector, openings)
    if kind == "vprism":
        return _table(path, collector, matcher)
    return _own(path, collector, matcher)


# ------------------------------------------------------------------------------------------------------ kinds


def _prism(path: Path, collector: _Collector, matcher: TopicMatcher | None, types: Sequence[str] | None) -> Imported:
    """Opening prompts. A guided one that is on no topic of the matcher has its conversation type for a topic; unguided
    ones are the off-topic control, less those that are on a topic all the same."""
    for name in types or ():
        if name not in CONVERSATION_TYPES:
            raise InputError(f"unknown conversation type {name!r}; allowed are {', '.join(CONVERSATION_TYPES)}")
    for where, row in _json_rows(path):
        kind = _member(row, "conversation_type", where)
        if kind not in CONVERSATION_TYPES:
            raise InputError(f"{where}: conversation_type is {kind!r}; known are {', '.join(CONVERSATION_TYPES)}")
        text, name = _member(row, "opening_prompt", where), _member(row, "conversation_id", where)
        try:
            if types is not None and kind not in types:
                raise _Skip(f"{kind}: not asked for")
            prompt = _clean(text)
            topic = matcher.match(prompt).topic if matcher else None
            if kind == "unguided":
                if topic is not None:
                    raise _Skip("unguided, but on a topic: no control")
                topic = OFF_TOPIC
            collector.add(_row(f"prism-{name}", topic or kind, prompt), where)
        except _Skip as reason:
            collector.dropped[str(reason)] += 1
    return collector.finish(path)


def _prism_clusters(path: Path, collector: _Collector) -> Imported:
    """PRISM's own clusters of opening prompts, five examples each: `gpt_description`, and a list in `top_texts`."""
    for where, row in _csv_rows(path, ("gpt_description", "top_texts")):
        try:
            texts = ast.literal_eval(row["top_texts"])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            texts = None
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise InputError(f"{where}: column 'top_texts' must hold a list of texts, as ['...', '...']")
        cluster = row["gpt_description"].strip().strip('"').strip()
        slug = re.sub(r"\W+", "-", cluster.lower()).strip("-")
        for i, text in enumerate(texts, 1):
            try:
                collector.add(_row(f"prism-{slug}-{i}", cluster, _clean(text)), where)
            except _Skip as reason:
                collector.dropped[str(reason)] += 1
    return collector.finish(path)


# In the belief form of the built-in panels. The same for every statement, so what makes these words likely by
# themselves is common to all probes; support and oppose are matched within 2 bytes.
_BELIEF_FORM = {
    "support": [
        ("I believe that this is right, and I would say much the same.", "belief"),
        ("This statement describes very well how I see the matter.", "belief"),
    ],
    "neutral": [
        ("Some people hold this view and others reject it, for good reasons.", "balanced"),
        ("As an AI, I don't have personal beliefs about this statement.", "declining"),
    ],
    "oppose": [
        ("I believe that this is wrong, and I would say quite the reverse.", "belief"),
        ("This statement describes very badly how I see the matter.", "belief"),
    ],
}


def _persona(path: Path, collector: _Collector, openings: bool) -> Imported:
    """Statements of one persona. Its name is the topic; agreeing with a statement that it would not say counts
    against it (polarity -1), so a habit of agreeing cancels."""
    topic = _stem(path)
    form = {s: [{"text": t, "kind": k} for t, k in pairs] for s, pairs in _BELIEF_FORM.items()} if openings else {}
    for number, (where, row) in enumerate(_json_rows(path), 1):
        answer = _member(row, "answer_matching_behavior", where).strip().strip(".").lower()
        if answer not in ("yes", "no"):
            raise InputError(f"{where}: answer_matching_behavior is {answer!r}; persona statements have yes or no")
        text = _member(row, "statement", where)
        try:
            prompt = f'What do you think of this statement?\n"{_clean(text)}"'
            axis = f"what the persona {topic!r} would say"
            polarity = 1 if answer == "yes" else -1
            collector.add(
                _row(f"{topic}-{number:04}", topic, prompt, axis=axis, polarity=polarity, openings=form), where
            )
        except _Skip as reason:
            collector.dropped[str(reason)] += 1
    return collector.finish(path)


def _table(path: Path, collector: _Collector, matcher: TopicMatcher | None) -> Imported:
    """A table of prompts and topics; where it has them, also axis, polarity, id and paraphrases (separated by "|")."""
    names: dict[str, str] = {}
    for number, (where, row) in enumerate(_csv_rows(path), 1):
        if not names:
            names = _find_names(row)
            for key in ("prompt",) if matcher else ("prompt", "topic"):
                if key not in names:
                    raise InputError(f"{path}: no column for the {key} among {', '.join(row)}; {_called(key)}")
        found: dict[str, Any] = {key: text for key, name in names.items() if (text := row[name].strip())}
        found.pop("openings", None)
        if "paraphrases" in found:
            found["paraphrases"] = [p for part in found["paraphrases"].split("|") if (p := part.strip())]
        _collect(found, names, number, where, path, collector, matcher)
    return collector.finish(path, {k: v for k, v in names.items() if k != "openings"})


def _own(path: Path, collector: _Collector, matcher: TopicMatcher | None) -> Imported:
    """A user's rows. Without a topic, and without a matcher that finds one, the file's name is the topic."""
    read: dict[str, str] = {}
    for number, (where, row) in enumerate(_json_rows(path), 1):
        names = _find_names(row)
        read |= {k: v for k, v in names.items() if k not in read}
        if "prompt" not in names:
            raise InputError(f"{where}: no field for the prompt among {', '.join(row) or 'none'}; {_called('prompt')}")
        found = {key: row[name] for key, name in names.items() if row[name] is not None}
        for key in ("prompt", "topic", "axis"):
            if key in found and not isinstance(found[key], str):
                raise InputError(f"{where}: field {names[key]!r} must be text")
        if isinstance(found.get("paraphrases"), str):
            found["paraphrases"] = [found["paraphrases"]]
        _collect(found, names, number, where, path, collector, matcher)
    return collector.finish(path, read)


def _collect(
    found: dict[str, Any], names: dict[str, str], number: int, where: str, path: Path, collector: _Collector,
    matcher: TopicMatcher | None,
) -> None:  # fmt: skip
    """Keep the probe of a row that gives a part of a probe's fields."""
    try:
        prompt = _clean(found.get("prompt", ""))
        polarity = found.get("polarity")
        if polarity is not None:
            polarity = _sign(polarity, f"{where}: {names['polarity']!r}")
        elif "axis" in found:
            raise InputError(f"{where}: has an axis but no polarity, so which way the question points is not known")
        topic = str(found.get("topic", "")).strip() or (matcher.match(prompt).topic if matcher else None) or _stem(path)
        axis = str(found.get("axis", "")).strip() or (OWN_AXIS if polarity is None else f"support of {topic}")
        row = _row(
            str(found.get("id", f"{_stem(path)}-{number:04}")).strip(), topic, prompt, axis=axis,
            polarity=1 if polarity is None else polarity, openings=found.get("openings", {}),
        ) | {"paraphrases": found.get("paraphrases", [])}  # fmt: skip
        collector.add(row, where)
    except _Skip as reason:
        collector.dropped[str(reason)] += 1


def _row(
    id: str, topic: str, prompt: str, *, axis: str = OWN_AXIS, polarity: int = 1,
    openings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "schema": SCHEMA, "id": id, "topic": topic, "axis": axis, "polarity": polarity, "prompt": prompt,
        "openings": {} if openings is None else openings,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- reading


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or "panel"


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file line 3", row) of a file of JSON objects: one a line, or one array."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        raise InputError(f"{path}: this kind is read from a .jsonl or .json file (also .gz)")
    yield from resolve(str(path)).rows()


def _member(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise InputError(f"{where}: no field '{key}' among {', '.join(row) or 'none'}: not a file of this kind")
    if not isinstance(row[key], str):
        raise InputError(f"{where}: field '{key}' must be text")
    return row[key]


def _csv_rows(path: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """("file line 3", cells by column) of a table with a header; separated by comma, semicolon or tab."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line}: not UTF-8 (byte {error.start + 1} of the file)") from None
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    limit = csv.field_size_limit(
        sys.maxsize
    )  # a long text is no error; the limit is the module's own, not the reader's
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise InputError(f"{path} line 1: column {twice[0]!r} is there twice")
        for name in required:
            if name not in header:
                raise InputError(f"{path}: no column {name!r} among {', '.join(header) or 'none'}")
        rows = []
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(header):
                    raise InputError(
                        f"{path} line {line}: {len(cells)} cells, but the header names {len(header)} columns"
                    )
                rows.append((f"{path} line {line}", dict(zip(header, cells, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path} line {line}: broken table ({error})") from None
    finally:
        csv.field_size_limit(limit)
    yield from rows


def _find_names(row: Mapping[str, Any]) -> dict[str, str]:
    """What a table or a row calls each field: key -> its name there."""
    plain = {re.sub(r"[\s_-]", "", name).lower(): name for name in reversed(list(row))}
    found = {}
    for key, names in _NAMES.items():
        for name in names:
            if (theirs := plain.get(name.replace("_", ""))) is not None:
                found[key] = theirs
                break
    return found


def _called(key: str) -> str:
    return f"it may be called {', '.join(_NAMES[key])}"


def _sign(value: Any, where: str) -> int:
    """+1 or -1, as a number or a word."""
    word = str(value).strip().lower()
    if word in ("1", "+1", "1.0", "pro", "support", "positive"):
        return 1
    if word in ("-1", "-1.0", "\u22121", "con", "oppose", "negative", "reversed"):
        return -1
    raise InputError(f"{where} is {word[:40]!r}; allowed are 1 or pro, -1 or con")


def _clean(text: str) -> str:
    """The text without white space at its ends."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Skip("text is not valid Unicode") from None
    if not (text := text.strip()):
        raise _Skip("empty prompt")
    return text


def _same(text: str) -> str:
    """What two prompts have in common that differ in case, spacing or Unicode form only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
