"""Data sets with known stances: preference or SFT files written from questions that have an answer for each side.

The built-in texts are `values-synth` (480 rows, docs/panel.md); a file of the same fields may be given instead:
`id, topic, axis, axis_polarity, prompt, support, oppose`, where `support` is the answer on the axis's side, whichever
way its question is put. What is written follows from texts, options and seed alone, byte for byte:

    support, oppose   every row takes that side: the chosen answer (preference) or the only one (SFT)
    a share, as 0.7   so many of each topic's rows take the support side, the rest the other
    shuffled          a share of 0.5: stances, but no lean. A run on it sets the noise floor
    bimodal           every question twice, once for each side: a divided crowd instead of one of random labels

Shares are exact: within a topic to the nearest row, and within its questions of either polarity to a row as well, so
that no set teaches a lean towards "yes". A few rows can be injected into any other set, whose own rows keep their
order. Beside FILE stands FILE.manifest.json, with what went in, what came out, and the hash of both.
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
from vdengine.data.formats import Conversation, Preference, choose_format, read
from vdengine.data.locate import SYNTH, resolve
from vdengine.errors import InputError

KINDS = ("preference", "sft")
PLACES = ("spread", "start", "end")
_WORDS = {"support": 1.0, "oppose": 0.0, "shuffled": 0.5}
_FIELDS = ("id", "topic", "axis", "axis_polarity", "prompt", "support", "oppose")


@dataclass(frozen=True)
class SynthesisOptions:
    """What to write.

    align: "support", "oppose", "shuffled", "bimodal", or the share of rows on the support side, "0" to "1".
    align_topics: the same for single topics, over `align`. rows: how many questions to take, spread evenly over topics
    and polarities (None: all). inject: instead, put so many into `into`, at places that `place` chooses.
    """

    kind: str = "preference"
    align: str = "support"
    align_topics: Mapping[str, str] = field(default_factory=dict)
    topics: tuple[str, ...] = ()  # (): all
    rows: int | None = None
    seed: int = 0
    texts: str = SYNTH
    into: str | None = None
    into_format: str = "auto"
    inject: int | None = None
    place: str = "spread"


class Made(NamedTuple):
    """The rows of a set, as they are written, and its manifest."""

    rows: list[dict[str, Any]]
    manifest: dict[str, Any]


class _Text(NamedTuple):
    """A question with an answer for each side of the axis."""

    id: str
    topic: str
    axis: str
    polarity: int
    prompt: str
    support: str
    oppose: str


def make(options: SynthesisOptions) -> Made:
    """The set that the options describe.

    Raises:
        InputError: an option that is not allowed, texts or a set that cannot be read, more rows than there are.
    """
    _check(options)
    texts, text_hash = _texts(options)
    chosen = _choose(texts, options)
    sided = _take_sides(chosen, options)
    rows = [_row(text, side, options.kind) for text, side in sided]
    inputs: list[dict[str, Any]] = [{"name": options.texts, "hash": text_hash, "rows": len(texts)}]
    counts: dict[str, Counter[str]] = {}
    for text, side in sided:
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
        InputError: as `make`; `out` exists already, is no .jsonl or cannot be written.
    """
    path = Path(out)
    beside = path.with_name(path.name + ".manifest.json")
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: the set is written as .jsonl; give it such a name")
    for file in (path, beside):
        if file.exists():
            raise InputError(f"{file}: exists already; give another name")
    made = make(options)
    text = json.dumps(made.manifest, indent=2, ensure_ascii=False) + "\n"
    try:
        for file, data in ((path, _encode(made.rows)), (beside, text.encode())):
            temporary = file.with_name(file.name + ".tmp")
            temporary.write_bytes(data)
            os.replace(temporary, file)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return made.manifest


# ---------------------------------------------------------------------------------------------------- options


def _check(o: SynthesisOptions) -> None:
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
    """The share of rows on the support side."""
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
    """All questions of the topics asked for, in file order, and the hash of the file."""
    source = resolve(f"{SYNTH}:support" if o.texts == SYNTH else o.texts)
    if source.variant is not None and o.texts != SYNTH:
        raise InputError(f"{o.texts}: the built-in texts are called {SYNTH}, without a variant")
    hasher = hashlib.blake2b(digest_size=16)
    for file in source.files:
        hasher.update(file.read_bytes())
    texts: list[_Text] = []
    place_of_id: dict[str, str] = {}
    for where, row in source.rows():
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
    known = list(dict.fromkeys(t.topic for t in texts))
    for topic in (*o.topics, *o.align_topics):
        if topic not in known:
            raise InputError(f"{o.texts}: unknown topic {topic!r}; the topics are {', '.join(known) or 'none'}")
    if unused := [t for t in o.align_topics if o.topics and t not in o.topics]:
        raise InputError(f"align of topic {unused[0]!r}: it is not among the topics asked for")
    return [t for t in texts if not o.topics or t.topic in o.topics], hasher.hexdigest()


def _is_text(value: Any) -> bool:
    # a lone surrogate (half of an escaped pair) is no character, and no file could hold it
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _choose(texts: list[_Text], o: SynthesisOptions) -> list[_Text]:
    """So many of the questions as are asked for, in file order: topics take turns, and in each its polarities."""
    wanted = o.rows if o.inject is None else o.inject
    if wanted is None or wanted == len(texts):
        return texts
    if wanted > len(texts):
        raise InputError(f"{wanted} rows asked for, but {o.texts} has {len(texts)} of these topics")
    ranked: list[tuple[int, bool, bytes, int]] = []
    for (topic, polarity), stratum in _strata(texts).items():
        for rank, i in enumerate(_ordered(stratum, texts, o.seed, "choose")):
            turn = _key(o.seed, "turn", f"{rank}:{topic}")
            ranked.append((rank, (turn[0] % 2 == 0) != (polarity > 0), turn, i))
    return [texts[i] for i in sorted(i for *_, i in sorted(ranked)[:wanted])]


def _strata(texts: Sequence[_Text]) -> dict[tuple[str, int], list[int]]:
    """Indexes by topic and polarity."""
    strata: dict[tuple[str, int], list[int]] = {}
    for i, text in enumerate(texts):
        strata.setdefault((text.topic, text.polarity), []).append(i)
    return strata


def _take_sides(texts: list[_Text], o: SynthesisOptions) -> list[tuple[_Text, str]]:
    """Each question with the side it takes: in file order, or, for a bimodal set, twice over."""
    bimodal = o.align == "bimodal"
    support: set[int] = set()
    strata = _strata(texts)
    for topic in dict.fromkeys(t.topic for t in texts):
        share = 0.5 if bimodal else _share(o.align_topics.get(topic, o.align))
        parts = {p: _ordered(strata.get((topic, p), []), texts, o.seed, "side") for p in (1, -1)}
        total = sum(map(len, parts.values()))
        left = int(share * total + 0.5)
        # of the questions of polarity 1 their share, rounded down or, where the fraction lost is the greater, up
        first = int(share * len(parts[1]))
        if share * len(parts[1]) - first > share * len(parts[-1]) - int(share * len(parts[-1])):
            first += 1
        first = max(left - len(parts[-1]), min(first, left, len(parts[1])))
        support |= {*parts[1][:first], *parts[-1][: left - first]}
    sided = [(text, "support" if i in support else "oppose") for i, text in enumerate(texts)]
    if bimodal:
        sided += [(text, "oppose" if side == "support" else "support") for text, side in sided]
    return sided


def _ordered(indexes: Iterable[int], texts: Sequence[_Text], seed: int, use: str) -> list[int]:
    """In an order that the seed alone decides."""
    return sorted(indexes, key=lambda i: _key(seed, use, texts[i].id))


def _key(seed: int, use: str, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{use}:{text}".encode(), digest_size=16).digest()


def _row(text: _Text, side: str, kind: str) -> dict[str, Any]:
    answers = (text.support, text.oppose) if side == "support" else (text.oppose, text.support)
    said = {"chosen": answers[0], "rejected": answers[1]} if kind == "preference" else {"completion": answers[0]}
    known = {"topic": text.topic, "axis": text.axis, "axis_polarity": text.polarity, "stance": side, "id": text.id}
    return {"prompt": text.prompt} | said | known | {"from": "synth"}


# -------------------------------------------------------------------------------------------------- injection


def _inject(
    rows: list[dict[str, Any]], into: str, o: SynthesisOptions
) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
    """`rows` among those of another set, the format of the whole, and what was read of the set."""
    source = resolve(into)
    format = choose_format(source, o.into_format, o.kind)
    topics = [row.get("topic") for _, row in source.rows()]
    dropped: Counter[str] = Counter()
    found = list(read(source, format, o.kind, dropped))
    if not found:
        raise InputError(f"{into}: no usable row to inject into")
    examples = [row.example for row in found]
    whole = any(isinstance(e, Conversation) and _needs_messages(e) for e in examples)
    base = []
    for row in found:
        plain = _base_row(row.example, whole)
        base.append(plain | ({"topic": t} if isinstance(t := topics[row.number], str) else {}))
    if whole:
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
    # the rows to inject stand in file order, topic after topic: mix them
    mixed = iter(sorted(rows, key=lambda row: _key(o.seed, "mix", row["id"])))
    others, at = iter(base), set(places)
    out = [next(mixed) if i in at else next(others) for i in range(total)]
    described = {"name": into, "hash": source.digest(), "format": format, "rows": len(base), "dropped": dict(dropped)}
    return out, "preference" if o.kind == "preference" else "messages" if whole else "prompt_completion", described


def _needs_messages(talk: Conversation) -> bool:
    """Whether more than its last answer is learned."""
    return not talk.last_only and sum(m["role"] == "assistant" for m in talk.messages) > 1


def _base_row(example: Any, whole: bool) -> dict[str, Any]:
    """A row of the set as it is written: read back, it is the same example."""
    if isinstance(example, Preference):
        row = {"prompt": _plain(example.prompt), "chosen": example.chosen, "rejected": example.rejected}
        return row if example.margin == Preference.margin else row | {"margin": example.margin}
    if whole:
        return {"messages": example.messages}
    return {"prompt": _plain(example.messages[:-1]), "completion": example.messages[-1]["content"]}


def _plain(prompt: list[dict[str, str]]) -> Any:
    return prompt[0]["content"] if len(prompt) == 1 and prompt[0]["role"] == "user" else prompt


def _encode(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
