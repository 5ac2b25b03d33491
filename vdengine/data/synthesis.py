"""Synthesis of data sets with known stances: preference or SFT files made from questions with an answer for each side.

The built-in texts are `values-synth` (480 rows, docs/panel.md). Instead, a file with the same fields may be given: `id,
topic, axis, axis_polarity, prompt, support, oppose`. `support` is the answer on the side of the axis, whichever way the
question is put. The output is a function of texts, options and seed alone, byte for byte:

    support, oppose   every row takes that side: it is the chosen answer (preference) or the only one (SFT)
    a share, as 0.7   this share of each topic's rows takes the support side, the rest the other side
    shuffled          a share of 0.5: stances without a lean. A run on it gives the noise floor
    bimodal           every question twice, once for each side: divided labels instead of random ones

Shares are exact: to the nearest row within a topic, and to one row within its questions of either polarity. So no set
teaches a lean towards "yes". Rows can be injected into any other set, whose rows keep their order. Beside FILE is
FILE.manifest.json, with the inputs, the output's counts, and the hash of both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vdengine import __version__
from vdengine.data.examples import Conversation, Message, Preference, turn
from vdengine.data.formats import choose_format, read
from vdengine.data.locate import SYNTH, resolve
from vdengine.errors import InputError
from vdengine.outside import LARGE, read_bytes

KINDS = ("preference", "sft")
PLACES = ("spread", "start", "end")
_WORDS = {"support": 1.0, "oppose": 0.0, "shuffled": 0.5}  # share of the support side
_FIELDS = ("id", "topic", "axis", "axis_polarity", "prompt", "support", "oppose")


@dataclass(frozen=True)
class SynthesisOptions:
    """The options of a set."""

    kind: str = "preference"  # | "sft"
    align: str = "support"  # | "oppose" | "shuffled" | "bimodal" | share of rows on the support side, "0" to "1"
    align_topics: Mapping[str, str] = field(default_factory=dict)  # `align` of single topics
    topics: tuple[str, ...] = ()  # (): all
    rows: int | None = None  # questions to take, spread evenly over topics and polarities; None: all
    seed: int = 0
    texts: str = SYNTH  # | a file
    into: str | None = None  # a set to inject rows into
    into_format: str = "auto"
    inject: int | None = None  # rows to inject, in place of `rows`
    place: str = "spread"  # | "start" | "end": where rows are injected


class Made(NamedTuple):
    """The rows of a set as they are written, and its manifest."""

    rows: list[dict[str, Any]]
    manifest: dict[str, Any]


class _Text(NamedTuple):
    """A question with an answer for each side of the axis."""

    id: str
    topic: str
    axis: str
    polarity: int  # 1: to agree with the question is to support the axis; -1: to disagree is
    prompt: str
    support: str
    oppose: str


def make(options: SynthesisOptions) -> Made:
    """Make the set that the options describe.

    Raises:
        InputError: an option out of range, texts or a set that cannot be read, more rows than there are.
    """
    _check(options)
    texts, text_hash = _texts(options)
    chosen = _choose(texts, options)
    texts_with_side = _take_sides(chosen, options)
    rows = [_row(text, side, options.kind) for text, side in texts_with_side]
    inputs: list[dict[str, Any]] = [{"name": options.texts, "hash": text_hash, "rows": len(texts)}]
    counts: dict[str, Counter[str]] = {}
    for text, side in texts_with_side:
        counts.setdefault(text.topic, Counter())[side] += 1
    manifest: dict[str, Any] = {
        "schema": 1,
        "vdengine": __version__,
        "options": asdict(options) | {"align_topics": dict(options.align_topics), "topics": list(options.topics)},
        "inputs": inputs,
        "format": {"preference": "preference", "sft": "prompt_completion"}[options.kind],
        "rows": len(rows),
        "counts": {topic: {side: count[side] for side in ("support", "oppose")} for topic, count in counts.items()},
    }
    if options.into is not None:
        rows, manifest["format"], base = _inject(rows, options.into, options)
        places = [i for i, row in enumerate(rows) if row.get("from") == "synth"]
        inputs.append(base)
        manifest |= {"rows": len(rows), "injected": {"rows": len(places), "at": places}}
    manifest["hash"] = _hash(_encode(rows))
    return Made(rows, manifest)


def write(options: SynthesisOptions, out: str | Path) -> dict[str, Any]:
    """Write the set to `out` and its manifest to `out`.manifest.json; returns the manifest.

    Raises:
        InputError: as `make`; `out` exists already, is not named .jsonl, or cannot be written.
    """
    path = Path(out)
    manifest_path = path.with_name(path.name + ".manifest.json")
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: the set is written as .jsonl; give it such a name")
    for file in (path, manifest_path):
        if file.exists():
            raise InputError(f"{file}: exists already; give another name")
    synthesis = make(options)
    text = json.dumps(synthesis.manifest, indent=2, ensure_ascii=False) + "\n"
    try:
        for file, data in ((path, _encode(synthesis.rows)), (manifest_path, text.encode())):
            temporary = file.with_name(file.name + ".tmp")
            temporary.write_bytes(data)
            os.replace(temporary, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return synthesis.manifest


# ---------------------------------------------------------------------------------------------------- options


def _check(o: SynthesisOptions) -> None:
    """Check the options against each other.

    Raises:
        InputError: one is out of range, or two exclude each other.
    """
    if o.kind not in KINDS:
        raise InputError(f"kind {o.kind!r}: allowed are {', '.join(KINDS)}")
    if o.place not in PLACES:
        raise InputError(f"place {o.place!r}: allowed are {', '.join(PLACES)}")
    if o.rows is not None and o.rows < 1:
        raise InputError(f"rows {o.rows}: at least 1 is needed")
    if (o.into is None) != (o.inject is None):
        raise InputError("injection needs both: the set to inject into, and how many rows")
    if o.inject is not None and o.inject < 1:
        raise InputError(f"inject {o.inject}: at least 1 row is needed")
    if o.inject is not None and o.rows is not None:
        raise InputError("rows and inject both say how many rows to write; give inject alone")
    if o.into is None and o.place != "spread":
        raise InputError("place is where rows are injected; there is nothing to inject into")
    if o.align == "bimodal" and o.inject is not None:
        raise InputError("bimodal rows come in pairs; inject 'shuffled' ones instead")
    for align in (o.align, *o.align_topics.values()):
        if not (align == "bimodal" and align is o.align):
            _share(align)
    if o.align == "bimodal" and o.align_topics:
        raise InputError("a bimodal set has both sides of every topic; single topics cannot be aligned")


def _share(align: str) -> float:
    """The share of rows on the support side, for any `align` but "bimodal"."""
    if align in _WORDS:
        return _WORDS[align]
    try:
        share = float(align)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InputError(
            f"align {align!r}: allowed are {', '.join(_WORDS)}, bimodal (the whole set only), or a share of the "
            "support side from 0 to 1"
        )
    return share


# ------------------------------------------------------------------------------------------------------ texts


def _texts(o: SynthesisOptions) -> tuple[list[_Text], str]:
    """The questions of the wanted topics, in file order, and the hash of the file.

    Raises:
        InputError: a row with a field that is missing or not valid, a duplicate id, or an unknown topic.
    """
    source = resolve(f"{SYNTH}:support" if o.texts == SYNTH else o.texts)
    if source.variant is not None and o.texts != SYNTH:
        raise InputError(f"{o.texts}: the built-in texts are called {SYNTH}, without a variant")
    hasher = hashlib.blake2b(digest_size=16)
    for file in source.files:
        hasher.update(read_bytes(file, LARGE))
    texts: list[_Text] = []
    place_of_id: dict[str, str] = {}
    for where, row in source.rows_with(_FIELDS):
        for key in _FIELDS:
            if key not in row:
                raise InputError(f"{where}: missing field '{key}'; the texts need {', '.join(_FIELDS)}")
            if key != "axis_polarity" and not _is_text(row[key]):
                raise InputError(f"{where}: field '{key}' must be text (not empty, valid Unicode)")
        if type(row["axis_polarity"]) is not int or row["axis_polarity"] not in (1, -1):
            raise InputError(f"{where}: axis_polarity is {row['axis_polarity']!r}; it must be 1 or -1")
        if row["support"] == row["oppose"]:
            raise InputError(f"{where}: support and oppose are the same text")
        text = _Text(*(row[key] for key in _FIELDS))
        if text.id in place_of_id:
            raise InputError(f"{where}: duplicate id {text.id!r}, first used at {place_of_id[text.id]}")
        place_of_id[text.id] = where
        texts.append(text)
    all_topics = list(dict.fromkeys(t.topic for t in texts))
    for topic in (*o.topics, *o.align_topics):
        if topic not in all_topics:
            raise InputError(f"{o.texts}: unknown topic {topic!r}; the topics are {', '.join(all_topics) or 'none'}")
    if unused := [t for t in o.align_topics if o.topics and t not in o.topics]:
        raise InputError(f"align of topic {unused[0]!r}: it is not among the topics asked for")
    return [t for t in texts if not o.topics or t.topic in o.topics], hasher.hexdigest()


def _is_text(value: Any) -> bool:
    # a lone surrogate (half of an escaped pair) is not a character and cannot be encoded in a file
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _choose(texts: list[_Text], o: SynthesisOptions) -> list[_Text]:
    """As many questions as the options ask for, in file order. Topics take turns, and within a topic its polarities."""
    wanted = o.rows if o.inject is None else o.inject
    if wanted is None or wanted == len(texts):
        return texts
    if wanted > len(texts):
        raise InputError(f"{wanted} rows asked for, but {o.texts} has {len(texts)} of these topics")
    ranked: list[tuple[int, bool, bytes, int]] = []  # the sort key of each question, and its index
    for (topic, polarity), stratum in _strata(texts).items():
        for rank, i in enumerate(_ordered(stratum, texts, o.seed, "choose")):
            turn = _key(o.seed, "turn", f"{rank}:{topic}")
            ranked.append((rank, (turn[0] % 2 == 0) != (polarity > 0), turn, i))
    return [texts[i] for i in sorted(i for *_, i in sorted(ranked)[:wanted])]


def _strata(texts: Sequence[_Text]) -> dict[tuple[str, int], list[int]]:
    """The indexes of the questions of each topic and polarity."""
    strata: dict[tuple[str, int], list[int]] = {}
    for i, text in enumerate(texts):
        strata.setdefault((text.topic, text.polarity), []).append(i)
    return strata


def _take_sides(texts: list[_Text], o: SynthesisOptions) -> list[tuple[_Text, str]]:
    """Each question with the side that it takes, in file order; of a bimodal set all questions twice."""
    bimodal = o.align == "bimodal"
    support: set[int] = set()  # indexes of questions on the support side
    strata = _strata(texts)
    for topic in dict.fromkeys(t.topic for t in texts):
        share = 0.5 if bimodal else _share(o.align_topics.get(topic, o.align))
        by_polarity = {p: _ordered(strata.get((topic, p), []), texts, o.seed, "side") for p in (1, -1)}
        total = sum(map(len, by_polarity.values()))
        wanted = int(share * total + 0.5)
        # Of the questions of polarity 1 this share: rounded up if rounding down would lose a larger fraction than it
        # does for polarity -1, else down.
        positive = int(share * len(by_polarity[1]))
        if share * len(by_polarity[1]) - positive > share * len(by_polarity[-1]) - int(share * len(by_polarity[-1])):
            positive += 1
        positive = max(wanted - len(by_polarity[-1]), min(positive, wanted, len(by_polarity[1])))
        support |= {*by_polarity[1][:positive], *by_polarity[-1][: wanted - positive]}
    texts_with_side = [(text, "support" if i in support else "oppose") for i, text in enumerate(texts)]
    if bimodal:
        texts_with_side += [(text, "oppose" if side == "support" else "support") for text, side in texts_with_side]
    return texts_with_side


def _ordered(indexes: Iterable[int], texts: Sequence[_Text], seed: int, purpose: str) -> list[int]:
    """The indexes in an order that only seed, purpose and ids decide."""
    return sorted(indexes, key=lambda i: _key(seed, purpose, texts[i].id))


def _key(seed: int, purpose: str, text: str) -> bytes:
    """A hash to sort by: 16 bytes."""
    return hashlib.blake2b(f"{seed}:{purpose}:{text}".encode(), digest_size=16).digest()


def _row(text: _Text, side: str, kind: str) -> dict[str, Any]:
    """A row of the set."""
    answers = (text.support, text.oppose) if side == "support" else (text.oppose, text.support)
    response = {"chosen": answers[0], "rejected": answers[1]} if kind == "preference" else {"completion": answers[0]}
    labels = {"topic": text.topic, "axis": text.axis, "axis_polarity": text.polarity, "stance": side, "id": text.id}
    return {"prompt": text.prompt} | response | labels | {"from": "synth"}


# -------------------------------------------------------------------------------------------------- injection


def _inject(
    rows: list[dict[str, Any]], into: str, o: SynthesisOptions
) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
    """Inject rows into another set.

    Returns:
        The rows of the whole set, its format, and the manifest's entry for the other set.

    Raises:
        InputError: a set that cannot be read, or that has no usable row.
    """
    source = resolve(into)
    format = choose_format(source, o.into_format, o.kind)
    dropped: Counter[str] = Counter()
    usable = list(read(source, format, o.kind, dropped))
    if not usable:
        raise InputError(f"{into}: no usable row to inject into")
    examples = [row.example for row in usable]
    as_messages = any(isinstance(e, Conversation) and _needs_messages(e) for e in examples)
    base = []  # the rows of the other set
    for row in usable:
        base_row = _base_row(row.example, as_messages)
        base.append(base_row | ({"topic": row.topic} if row.topic is not None else {}))
    if as_messages:
        rows = [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
            | {k: v for k, v in row.items() if k not in ("prompt", "completion")}
            for row in rows
        ]
    total = len(base) + len(rows)
    if o.place == "spread":
        places = sorted(sorted(range(total), key=lambda i: _key(o.seed, "place", str(i)))[: len(rows)])
    else:
        places = list(range(len(rows))) if o.place == "start" else list(range(len(base), total))
    # the rows to inject are in file order, topic after topic, so they are mixed
    injected = iter(sorted(rows, key=lambda row: _key(o.seed, "mix", row["id"])))
    others, injected_places = iter(base), set(places)
    out = [next(injected) if i in injected_places else next(others) for i in range(total)]
    entry = {"name": into, "hash": source.digest(), "format": format, "rows": len(base), "dropped": dict(dropped)}
    return out, "preference" if o.kind == "preference" else "messages" if as_messages else "prompt_completion", entry


def _needs_messages(conversation: Conversation) -> bool:
    """Whether more than its last answer is scored, which only the format messages can express."""
    return not conversation.last_only and sum(m["role"] == "assistant" for m in conversation.messages) > 1


def _base_row(example: Any, as_messages: bool) -> dict[str, Any]:
    """An example of the other set as a row that reads back as the same example."""
    if isinstance(example, Preference):
        row = {
            "prompt": _plain(example.prompt, "user"),
            "chosen": _plain([example.chosen], "assistant"),
            "rejected": _plain([example.rejected], "assistant"),
        }
        return row if example.margin == Preference.margin else row | {"margin": example.margin}
    if as_messages:
        return {"messages": example.messages}
    *prompt, answer = example.messages
    return {"prompt": _plain(prompt, "user"), "completion": _plain([answer], "assistant")}


def _plain(messages: list[Message], role: str) -> Any:
    """One turn of a role that has nothing but its content as text, anything else as messages."""
    only = messages[0] if len(messages) == 1 else {}
    return only["content"] if only == turn(role, only.get("content", "")) else messages


def _encode(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
