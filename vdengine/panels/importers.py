"""Panels from other people's files: PRISM, persona statements, V-PRISM-like tables, and a user's own rows.

Each importer reads one file and gives an `Imported`: a panel that `Panel.save` writes, and what was left out and why.
Most files hold questions and nothing else. Their probes have no openings: they are read by sampled answers only. Where
a file does not say which way a question points, its polarity is 1 and its axis is `OWN_AXIS`: a stance is then
agreement with what the prompt proposes, and cannot be told from a tendency to say yes. `axis` and `polarity` in the
file tell them apart.

Texts are kept as they are, HTML, any Unicode and any length, but for white space at their ends. A line that violates
its format is an InputError with file, line and reason; a row that cannot be used is left out and counted.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdengine.errors import InputError
from vdengine.outside import printable
from vdengine.panels.collector import Collector, Imported, Skip, clean
from vdengine.panels.panel import SCHEMA
from vdengine.panels.row_files import csv_rows, json_rows, stem_of, text_field
from vdengine.panels.topics import OFF_TOPIC, TopicMatcher
from vdengine.settings import shown

OWN_AXIS = "agreement with what the prompt proposes"
CONVERSATION_TYPES = ("unguided", "values guided", "controversy guided")
KINDS = {
    "prism": "PRISM conversations.jsonl: opening prompts by conversation type; or its table of prompt clusters (.csv)",
    "persona": "an Anthropic-evals persona file (.jsonl): statements that one persona would say or would not",
    "vprism": "a table of prompts and topics (.csv, .tsv), as V-PRISM: 550 prompts over 11 topics",
    "jsonl": "your own rows (.jsonl, .json): a prompt each, and what else of a probe you have",
}

# Names that a column or field may have, in order of preference; compared without case, spaces, '_' and '-'.
_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "opening_prompt", "user_prompt", "text", "query", "input", "x"),
    "topic": ("topic", "topic_name", "category", "cluster", "theme", "gpt_description", "issue"),
    "id": ("id", "prompt_id", "question_id", "probe_id", "conversation_id"),
    "axis": ("axis",),
    "polarity": ("polarity", "sign", "direction"),
    "paraphrases": ("paraphrases", "paraphrase"),
    "openings": ("openings",),
}


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

    Args:
        topics: keep only these.
        limit: at most this many probes of each topic, the first of the file; of persona statements half of each
            polarity.
        types: conversation types of PRISM. Default: all.
        matcher: gives topics to prompts that have none (PRISM conversations; rows without a topic).
        openings: of persona statements: give them openings in a belief form; without, they are read by answers only.

    Raises:
        InputError: an unknown kind, a file that cannot be read or is not of its kind, a topic it does not have.
    """
    path = Path(path).expanduser()
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r} of panel file; it is one of {', '.join(KINDS)}")
    clusters = kind == "prism" and path.suffix == ".csv"
    if types is not None and (kind != "prism" or clusters):
        raise InputError(f"{path}: only PRISM's conversations.jsonl has conversation types to choose from")
    if not os.path.isfile(path):  # of a name too long, or with a NUL, too
        raise InputError(f"{printable(path)}: no such file")
    collector = Collector(topics, limit, halves=kind == "persona")
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


def _prism(path: Path, collector: Collector, matcher: TopicMatcher | None, types: Sequence[str] | None) -> Imported:
    """PRISM's opening prompts.

    A guided one that is on no topic of the matcher has its conversation type for a topic. Unguided ones are the
    off-topic control, without those that are on a topic.
    """
    for name in types or ():
        if name not in CONVERSATION_TYPES:
            raise InputError(f"unknown conversation type {name!r}; allowed are {', '.join(CONVERSATION_TYPES)}")
    for where, row in json_rows(path):
        kind = text_field(row, "conversation_type", where)
        if kind not in CONVERSATION_TYPES:
            raise InputError(f"{where}: conversation_type is {shown(kind)}; known are {', '.join(CONVERSATION_TYPES)}")
        text, name = text_field(row, "opening_prompt", where), text_field(row, "conversation_id", where)
        try:
            if types is not None and kind not in types:
                raise Skip(f"{kind}: not asked for")
            prompt = clean(text)
            topic = matcher.match(prompt).topic if matcher else None
            if kind == "unguided":
                if topic is not None:
                    raise Skip("unguided, but on a topic: no control")
                topic = OFF_TOPIC
            collector.add(_row(f"prism-{name}", topic or kind, prompt), where)
        except Skip as reason:
            collector.dropped[str(reason)] += 1
    return collector.finish(path)


def _prism_clusters(path: Path, collector: Collector) -> Imported:
    """PRISM's own clusters of opening prompts, five examples each: `gpt_description`, and a list in `top_texts`."""
    for where, row in csv_rows(path, ("gpt_description", "top_texts")):
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
                collector.add(_row(f"prism-{slug}-{i}", cluster, clean(text)), where)
            except Skip as reason:
                collector.dropped[str(reason)] += 1
    return collector.finish(path)


# In the belief form of the built-in panels. They are the same for every statement, so how likely their words are by
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


def _persona(path: Path, collector: Collector, openings: bool) -> Imported:
    """Statements of one persona, whose name is the topic.

    Statements that it would not say have polarity -1, so a tendency to agree cancels.
    """
    topic = stem_of(path)
    form: dict[str, Any] = {}
    if openings:
        form = {s: [{"text": text, "kind": kind} for text, kind in pairs] for s, pairs in _BELIEF_FORM.items()}
    for number, (where, row) in enumerate(json_rows(path), 1):
        answer = text_field(row, "answer_matching_behavior", where).strip().strip(".").lower()
        if answer not in ("yes", "no"):
            raise InputError(f"{where}: answer_matching_behavior is {shown(answer)}; persona statements have yes or no")
        text = text_field(row, "statement", where)
        try:
            prompt = f'What do you think of this statement?\n"{clean(text)}"'
            axis = f"what the persona {topic!r} would say"
            polarity = 1 if answer == "yes" else -1
            collector.add(
                _row(f"{topic}-{number:04}", topic, prompt, axis=axis, polarity=polarity, openings=form), where
            )
        except Skip as reason:
            collector.dropped[str(reason)] += 1
    return collector.finish(path)


def _table(path: Path, collector: Collector, matcher: TopicMatcher | None) -> Imported:
    """A table of prompts and topics; where it has them, also axis, polarity, id and paraphrases (separated by "|")."""
    names: dict[str, str] = {}
    for number, (where, row) in enumerate(csv_rows(path), 1):
        if not names:
            names = _find_names(row)
            for key in ("prompt",) if matcher else ("prompt", "topic"):
                if key not in names:
                    raise InputError(f"{printable(path)}: no column for the {key} among {_listed(row)}; {_called(key)}")
        fields: dict[str, Any] = {key: text for key, name in names.items() if (text := row[name].strip())}
        fields.pop("openings", None)
        if "paraphrases" in fields:
            parts = [part.strip() for part in fields["paraphrases"].split("|")]
            fields["paraphrases"] = [part for part in parts if part]
        _collect(fields, names, number, where, path, collector, matcher)
    return collector.finish(path, {key: name for key, name in names.items() if key != "openings"})


def _own(path: Path, collector: Collector, matcher: TopicMatcher | None) -> Imported:
    """A user's rows. Without a topic, and without a matcher that finds one, the file's name is the topic."""
    columns: dict[str, str] = {}
    for number, (where, row) in enumerate(json_rows(path), 1):
        names = _find_names(row)
        columns |= {key: name for key, name in names.items() if key not in columns}
        if "prompt" not in names:
            raise InputError(f"{where}: no field for the prompt among {_listed(row)}; {_called('prompt')}")
        fields = {key: row[name] for key, name in names.items() if row[name] is not None}
        for key in ("prompt", "topic", "axis"):
            if key in fields and not isinstance(fields[key], str):
                raise InputError(f"{where}: field {shown(names[key])} must be text")
        if isinstance(fields.get("paraphrases"), str):
            fields["paraphrases"] = [fields["paraphrases"]]
        _collect(fields, names, number, where, path, collector, matcher)
    return collector.finish(path, columns)


def _collect(
    fields: dict[str, Any],
    names: dict[str, str],
    number: int,
    where: str,
    path: Path,
    collector: Collector,
    matcher: TopicMatcher | None,
) -> None:
    """Keep the probe of a row that has some of a probe's fields.

    Args:
        fields: by key, as in `_NAMES`.
        names: by key: the file's name of it.
        number: of the row.
        where: file and line.
        matcher: gives a topic to a prompt that has none; without one the file's name is the topic.
    """
    try:
        prompt = clean(fields.get("prompt", ""))
        polarity = fields.get("polarity")
        if polarity is not None:
            polarity = _sign(polarity, f"{where}: {shown(names['polarity'])}")
        elif "axis" in fields:
            raise InputError(f"{where}: has an axis but no polarity, so which way the question points is not known")
        topic = str(fields.get("topic", "")).strip()
        topic = topic or (matcher.match(prompt).topic if matcher else None) or stem_of(path)
        axis = str(fields.get("axis", "")).strip() or (OWN_AXIS if polarity is None else f"support of {topic}")
        id = str(fields.get("id", f"{stem_of(path)}-{number:04}")).strip()
        openings, paraphrases = fields.get("openings", {}), fields.get("paraphrases", [])
        row = _row(id, topic, prompt, axis=axis, polarity=1 if polarity is None else polarity, openings=openings)
        collector.add(row | {"paraphrases": paraphrases}, where)
    except Skip as reason:
        collector.dropped[str(reason)] += 1


def _row(
    id: str,
    topic: str,
    prompt: str,
    *,
    axis: str = OWN_AXIS,
    polarity: int = 1,
    openings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A row that `Probe.from_row` reads."""
    return {
        "schema": SCHEMA,
        "id": id,
        "topic": topic,
        "axis": axis,
        "polarity": polarity,
        "prompt": prompt,
        "openings": {} if openings is None else openings,
    }


def _find_names(row: Mapping[str, Any]) -> dict[str, str]:
    """The file's names of fields, by key as in `_NAMES`, from a row."""
    plain = {re.sub(r"[\s_-]", "", name).lower(): name for name in reversed(list(row))}
    names = {}
    for key, candidates in _NAMES.items():
        for candidate in candidates:
            if (name := plain.get(candidate.replace("_", ""))) is not None:
                names[key] = name
                break
    return names


def _listed(names: Iterable[str]) -> str:
    """A file's names of fields, for an error message."""
    return printable(", ".join(names)[:200]) or "none"


def _called(key: str) -> str:
    """Which names a field may have, for an error message."""
    return f"it may be called {', '.join(_NAMES[key])}"


def _sign(value: Any, where: str) -> int:
    """+1 or -1, from a number or a word; where: file, line and field."""
    word = str(value).strip().lower()
    if word in ("1", "+1", "1.0", "pro", "support", "positive"):
        return 1
    if word in ("-1", "-1.0", "\u22121", "con", "oppose", "negative", "reversed"):
        return -1
    raise InputError(f"{where} is {shown(word)}; allowed are 1 or pro, -1 or con")
