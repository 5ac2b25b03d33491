"""From the rows of a source (`data.locate`) to examples: which format they have, and the usable ones of them.

A row that cannot be used (chosen equals rejected, an empty response, ...) is dropped and counted by reason. A row that
does not fit its format (a field that is missing, broken JSON), or says what cannot be honoured, is an `InputError` that
names file and row. Columns that no meaning is known of are not read, and named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from vdengine.data.examples import Conversation, Drop, Example, Preference, Prompt, turn, unpair, usable
from vdengine.data.fields import Fields
from vdengine.data.locate import FileSource, Source
from vdengine.data.meanings import ALIASES, missing, plain
from vdengine.data.parsers import ANSWERS, FORMATS, PARSERS, PREFERENCE_FORMATS, is_transcript
from vdengine.data.turns import ROLES
from vdengine.errors import InputError
from vdengine.outside import printable

if TYPE_CHECKING:
    from vdengine.trees import Tree

__all__ = ["Account", "Conversation", "Preference", "Prompt", "Row", "check_branches", "choose_format", "read"]

# The formats that each kind of store can be read from, and what reads them, for messages.
_SERVING = {
    "sft": tuple(name for name in FORMATS if name != "prompt"),
    "preference": PREFERENCE_FORMATS,
    "unpaired": tuple(name for name in FORMATS if name not in ("wildchat", "prompt")),
    "prompts": tuple(FORMATS),
}
_BRANCHES = {"sft": 1, "preference": 2}  # of a row's tree
_READER = {
    "sft": "SFT reads",
    "preference": "preference objectives read",
    "unpaired": "KTO reads, with a label beside one answer,",
    "prompts": "PPO, GRPO and RLOO read",
}
_ANSWER_COLUMNS = ("chosen", "rejected", "completion", "instruction", "output")
# The fields that a format cannot do without, for messages.
_REQUIRED = {
    "preference": ("prompt", "chosen", "rejected"),
    "hh_rlhf": ("chosen", "rejected"),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt",),
}
_FIRST_ROWS = 1000  # in which a format is looked for, where the first ones are empty
_MAX_NAMES = 1000  # of columns that are not read


class Row(NamedTuple):
    """A usable row: its number in the source, from 0; where it is, for messages ("file line 3"); its content; and the
    topic that it names."""

    number: int
    where: str
    example: Example | Tree
    topic: str | None = None


@dataclass
class Account:
    """What there is to say of a source's usable rows."""

    noted: Counter[str] = field(default_factory=Counter)  # rows that are read otherwise than they may seem, by how
    unread: dict[str, None] = field(default_factory=dict)  # columns that were not read; a set in order


# ------------------------------------------------------------------------------------------------- which format


def choose_format(source: Source, format: str = "auto", kind: str = "preference") -> str:
    """The format in which to read a source.

    Args:
        format: a key of FORMATS, or "auto", which looks at the fields of the first row that has any.
        kind: of the store: "sft", "preference", "unpaired" or "prompts".

    Raises:
        InputError: an unknown format, fields that fit no format or several, or a format without what the kind needs:
            rejected answers for a preference objective, answers for SFT.
        ValueError: an unknown kind.
    """
    if kind not in _SERVING:
        raise ValueError(f"kind must be one of {', '.join(_SERVING)}, not {kind!r}")
    if source.format is not None:
        if format not in ("auto", source.format):
            raise InputError(f"data.format: '{format}' does not fit {source.name}; leave it 'auto'")
        if source.format == "trees" and kind not in _BRANCHES:
            why = "have no label" if kind == "unpaired" else "have their answers already, and prompts are needed"
            raise InputError(f"{source.name}: trees {why}; give rows of text")
        return source.format
    if format == "auto":
        format = _detect(source, kind)
    elif format not in FORMATS:
        raise InputError(f"data.format: unknown format '{format}'; use auto, {', '.join(FORMATS)}")
    if format not in _SERVING[kind]:
        lacks = "answer" if format == "prompt" else "label" if kind == "unpaired" else "rejected answer"
        reads = f"{_READER[kind]} {', '.join(_SERVING[kind])}"
        raise InputError(f"{source.name}: format '{format}' has no {lacks}; {reads}")
    return format


def _detect(source: Source, kind: str) -> str:
    """The one format that the fields of a row fit: of the first row whose values are there, else of the first whose
    fields are.

    Raises:
        InputError: no rows; or they fit none, or several.
    """
    first: tuple[str, dict[str, Any]] | None = None
    for where, row in islice(source.rows(), _FIRST_ROWS):
        first = first or (where, row)
        there = {key: value for key, value in row.items() if not missing(value)}
        formats = _fitting(there, kind)
        if formats:
            break
    else:
        if first is None:
            raise InputError(f"{source.name}: no rows")
        where, row = first
        formats = _fitting({key: value for key, value in row.items() if value is not None}, kind)
    if len(formats) == 1:
        return formats[0]
    fields = _listed(row)
    if formats:
        names = ", ".join(formats)
        raise InputError(f"{where}: the fields ({fields}) fit several formats; set data.format: {names}")
    reads = f"{_READER[kind]} {', '.join(_SERVING[kind])}"
    raise InputError(f"{where}: the fields ({fields}) fit no format; {_nearest(row, kind)}{reads}")


def _fitting(row: dict[str, Any], kind: str) -> list[str]:
    """The formats that the values of a row fit."""

    def is_list(key: str) -> bool:
        return isinstance(row.get(key), list)

    formats = []
    talk = "messages" if is_list("messages") else "conversations"
    if "chosen" in row and "rejected" in row:
        chosen, prompt = row["chosen"], row.get("prompt")
        if prompt is None and is_transcript(chosen):
            formats.append("hh_rlhf")
        elif isinstance(prompt, str) and is_list("chosen") and len(chosen) > 1:
            formats.append("ultrafeedback")
        elif prompt is not None or isinstance(chosen, list | dict) or "instruction" in row or is_list(talk):
            formats.append("preference")
    # UltraFeedback repeats its chosen conversation under `messages`, which does not make it the format messages.
    # And a conversation that ends with a question is the prompt of a pair.
    asks = formats == ["preference"] and "prompt" not in row and _is_question(row[talk]) if is_list(talk) else False
    if is_list(talk) and formats != ["ultrafeedback"] and not asks:
        formats.append("messages")
    if is_list("conversation"):
        formats.append("wildchat")
    if "prompt" in row and "completion" in row:
        formats.append("prompt_completion")
    if "instruction" in row and "output" in row:
        formats.append("alpaca")
    if kind == "prompts" and not formats and "prompt" in row and not any(key in row for key in _ANSWER_COLUMNS):
        formats.append("prompt")
    if kind in ("preference", "unpaired") and set(formats) & set(PREFERENCE_FORMATS):
        formats = [name for name in formats if name in PREFERENCE_FORMATS]
    return formats


def _is_question(messages: list[Any]) -> bool:
    """Whether messages end with a user turn."""
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    roles = [role.strip().lower() for k in ("role", "from") if isinstance(role := last.get(k), str)]
    return "user" in [ROLES.get(role) for role in roles]


def _listed(names: Any) -> str:
    """Names of columns for a message; many of them are cut."""
    shown = [printable(str(name)[:40]) for name in islice(names, 20)]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if shown else "none"


def _nearest(row: dict[str, Any], kind: str) -> str:
    """The format whose fields most of a row's are, or seem to be, and what it lacks; "" if there is none."""
    best: tuple[float, str, list[str]] | None = None
    for format in _SERVING[kind]:
        needed = _REQUIRED.get(format, ())
        lacks, renames, found = [], [], 0.0
        for key in needed:
            if key in row and not missing(row[key]):
                found += 1
            elif (other := _meant_as(key, row)) is not None:
                found += 0.75
                renames.append(f"rename '{other}' to '{key}'")
            else:
                lacks.append(f"'{key}' is missing")
        problems = [*renames, *lacks]
        if problems and found and (best is None or found / len(needed) > best[0]):
            best = (found / len(needed), format, problems)
    return "" if best is None else f"nearest is {best[1]}: {', '.join(best[2])}; "


def _meant_as(key: str, row: dict[str, Any]) -> str | None:
    """The field of a row that another tool, or a slip, may have named so for `key`."""
    names = {plain(name): name for name in row if not missing(row[name]) and name not in FORMATS and name != key}
    others = {p: name for p, name in names.items() if name not in ("prompt", "messages", "chosen", "rejected")}
    for alias in (key, *ALIASES.get(key, "").split()):
        if (name := others.get(plain(alias))) is not None:
            inside = isinstance(row[name], dict) and "messages" in row[name]  # the input of OpenAI's pairs
            return printable(f"{name}.messages" if inside else name)
    close = get_close_matches(plain(key), others, n=1, cutoff=0.8)
    return printable(others[close[0]]) if close else None


# ------------------------------------------------------------------------------------------------- reading


def read(
    source: Source, format: str, kind: str, dropped: Counter[str], account: Account | None = None
) -> Iterator[Row]:
    """The usable rows of a source, in file order.

    Args:
        format: as `choose_format` returns it.
        kind: "sft" reads only the chosen answer of a preference pair. "prompts" reads the prompt of a pair; of a
            conversation the messages before its last answer, or all if it ends with a user turn. "unpaired" reads one
            answer with its label, or both of a pair as two rows of the same number.
        dropped: unusable rows are counted here, by reason.
        account: what else there is to say of the rows is added to it.

    Raises:
        InputError: a row that does not fit the format, or a key of it that cannot be honoured; it names file and row.
    """
    if isinstance(source, FileSource) and source.variant is not None:
        yield from _read_synth(source, kind, dropped)
        return
    if format == "trees":
        yield from _read_trees(source, kind)
        return
    account = Account() if account is None else account
    parse, needs = PARSERS[format], f"format {format} needs {FORMATS[format]}"
    for number, (where, raw) in enumerate(source.rows()):
        row = Fields(raw, where, needs)
        try:
            row.check(kind, ANSWERS[format])
            example = parse(row)
            row.check_read(example, ANSWERS[format])
            if kind == "unpaired" and isinstance(example, Conversation):
                example = replace(example, wanted=row.wanted())
            example = usable(example, kind)
        except Drop as reason:
            dropped[str(reason)] += 1
            continue
        if len(account.unread) < _MAX_NAMES:
            account.unread |= dict.fromkeys(printable(name[:60]) for name in row.unread)
        account.noted.update(row.notes)
        for part in unpair(example) if kind == "unpaired" else [example]:
            yield Row(number, where, part, row.topic)


def _read_synth(source: FileSource, kind: str, dropped: Counter[str]) -> Iterator[Row]:
    """`read` of the built-in values-synth, whose rows have an answer for each side: the source's variant decides which
    one is chosen."""
    all_rows = [(number, where, row) for number, (where, row) in enumerate(source.rows())]
    rows = [item for item in all_rows if not source.topics or item[2]["topic"] in source.topics]
    if len(rows) < len(all_rows):
        dropped["not of the topics asked for"] = len(all_rows) - len(rows)
    flipped: set[str] = set()  # ids of rows of a shuffled set that prefer the oppose answer
    if source.variant == "shuffled":
        by_topic: dict[str, list[dict[str, Any]]] = {}
        for _, _, row in rows:
            by_topic.setdefault(row["topic"], []).append(row)
        for group in by_topic.values():
            # Every second row in hash order, one polarity after the other: half of each topic's rows (rounded down)
            # and half of each polarity's. This defines the data set, so it does not depend on the seed of a run.
            group.sort(key=lambda row: (row["axis_polarity"], _key(f"shuffled:{row['id']}")))
            flipped.update(row["id"] for row in group[1::2])
    for number, where, row in rows:
        chosen, rejected = (turn("assistant", row[side]) for side in ("support", "oppose"))
        if (source.variant == "oppose") != (row["id"] in flipped):
            chosen, rejected = rejected, chosen
        pair = usable(Preference([turn("user", row["prompt"])], chosen, rejected), kind)
        for part in unpair(pair) if kind == "unpaired" else [pair]:
            yield Row(number, where, part, row["topic"])


def _read_trees(source: Source, kind: str) -> Iterator[Row]:
    """`read` of trees, which are token ids already."""
    for number, (where, row) in enumerate(source.rows()):
        tree = row["tree"]
        check_branches(tree, where, _BRANCHES[kind])
        yield Row(number, where, tree)


def check_branches(tree: Tree, where: str, wanted: int) -> None:
    """Check that a tree has as many branches as the objective reads of a row, each with a token that is scored.

    Raises:
        InputError: it has not.
    """
    if len(tree.branches) != wanted:
        what = "a preference pair has 2, chosen and rejected" if wanted == 2 else "an answer is 1"
        raise InputError(f"{where}: a tree of {len(tree.branches)} branches; {what}")
    for i, mask in enumerate(tree.scored or []):
        if not any(mask):
            raise InputError(f"{where}: branch {i} has no scored token: its log-prob would be 0")


def _key(text: str) -> bytes:
    """A hash to sort by: 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
