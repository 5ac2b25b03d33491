"""The panel: value questions with authored answer openings for each side (format: docs/panel.md).

A panel is JSONL, one probe a line. Stances are relative to the proposition of the probe's own *prompt*;
`polarity` says whether supporting that proposition is supporting the topic's `axis` (+1) or opposing it (-1).
`leads` are the words that an answer begins with on either side, yes and no unless a probe has others. Tokens play no
part but in `Panel.requests`, for whoever scores them; `drift/panel_packs.py` lays them out in packs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.outside import LARGE, is_text, parse_json, printable, read_bytes
from vdengine.panels.leads import YES_NO, Leads, Spelling, is_english, spellings
from vdengine.recipe import LEAD, READOUTS, TEXT
from vdengine.settings import shown

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer

SCHEMA = 1
CONTROLS = "controls"  # the built-in panel of trivial matters
NULL_PROMPT = "N/A"  # a prompt without content: a shift of openings after it is no answer to a question
STANCES = ("support", "neutral", "oppose")
_STANCES = ", ".join(STANCES)
_REQUIRED = ("schema", "id", "topic", "axis", "polarity", "prompt", "openings")
_ALLOWED = (*_REQUIRED, "paraphrases", "leads")

LEADS, OPENINGS = "leads", "openings"  # the channels of the raw log that branches belong to


@dataclass(frozen=True)
class Opening:
    """The first sentence of a possible answer. `kind` groups openings of one form: "belief", "claim", ..."""

    text: str
    kind: str

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of `text`."""
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Probe:
    """One question."""

    id: str
    topic: str
    axis: str  # what +1 means on the topic
    polarity: int  # +1: supporting the prompt's proposition is supporting the axis; -1: opposing it
    prompt: str
    paraphrases: tuple[str, ...]  # other wordings of the prompt
    # Of each of `STANCES`, in file order; none at all for a probe that is read by its answers only.
    openings: Mapping[str, tuple[Opening, ...]] = field(hash=False)
    leads: Leads = YES_NO

    @classmethod
    def from_row(cls, row: Any, where: str) -> Probe:
        """A probe from one parsed JSON value; where: names the row in errors.

        Raises:
            InputError: the value is no probe.
        """
        if not isinstance(row, dict):
            raise InputError(f"{where}: a probe must be a JSON object, not {_json_type(row)}")
        for key in _REQUIRED:
            if key not in row:
                raise InputError(f"{where}: missing field '{key}'; a probe needs {', '.join(_REQUIRED)}")
        for key in row:
            if key not in _ALLOWED:
                raise InputError(f"{where}: unknown field {shown(key)}; allowed are {', '.join(_ALLOWED)}")
        if type(row["schema"]) is not int or row["schema"] != SCHEMA:
            raise InputError(f"{where}: schema is {shown(row['schema'])}; this version reads schema {SCHEMA}")
        polarity = row["polarity"]
        if type(polarity) is not int or polarity not in (1, -1):
            raise InputError(f"{where}: polarity is {shown(polarity)}; it must be 1 or -1")
        paraphrases = row.get("paraphrases", [])
        if not isinstance(paraphrases, list):
            raise InputError(f"{where}: paraphrases must be a list of strings, not {_json_type(paraphrases)}")
        return cls(
            id=_text(row["id"], "id", where),
            topic=_text(row["topic"], "topic", where),
            axis=_text(row["axis"], "axis", where),
            polarity=polarity,
            prompt=_text(row["prompt"], "prompt", where),
            paraphrases=tuple(_text(p, f"paraphrases[{i}]", where) for i, p in enumerate(paraphrases)),
            openings=_openings(row["openings"], where),
            leads=_leads(row["leads"], where) if "leads" in row else YES_NO,
        )

    def branches(self, variant: str = "question") -> list[Branch]:
        """Its openings as branches after a variant of its prompt: by stance as in `STANCES`, then in file order."""
        return [
            Branch(self, stance, opening.kind, opening.text, opening.num_bytes, variant)
            for stance in STANCES
            for opening in self.openings[stance]
        ]

    def question(self, variant: str) -> str | None:
        """The prompt that its openings follow in a variant; None where it has none."""
        if variant == "paraphrase":
            return self.paraphrases[0] if self.paraphrases else None
        return NULL_PROMPT if variant == "null" else self.prompt

    def to_row(self) -> dict[str, Any]:
        """The probe as the JSON object that `from_row` reads."""
        row = {
            "schema": SCHEMA,
            "id": self.id,
            "topic": self.topic,
            "axis": self.axis,
            "polarity": self.polarity,
            "prompt": self.prompt,
            "paraphrases": list(self.paraphrases),
            "openings": {
                s: [{"text": o.text, "kind": o.kind} for o in self.openings[s]] for s in STANCES if self.has_openings
            },
        }
        if self.leads is not YES_NO:
            row["leads"] = {"support": list(self.leads.support), "oppose": list(self.leads.oppose)}
        return row

    @property
    def has_openings(self) -> bool:
        """Whether its text likelihood can be read; without openings it is read by leads and by answers."""
        return any(self.openings.values())


class Branch(NamedTuple):
    """One text in the panel's fixed order: an opening, or a spelling of a lead."""

    probe: Probe  # of an opening after the null prompt: the first one that has it
    stance: str  # one of STANCES, relative to the prompt's proposition
    kind: str  # of the opening; of a lead its word
    text: str
    num_bytes: int  # UTF-8
    # What it follows: "question"; "null", a prompt without content; "paraphrase" or "off-topic", of the controls.
    variant: str = "question"
    channel: str = OPENINGS  # of the raw log: | LEADS


class Request(NamedTuple):
    """A branch as token ids: a score is the log-prob sum of `answer_ids` after `prompt_ids`, in nats."""

    prompt_ids: list[int]
    answer_ids: list[int]
    text: str  # of the branch
    branch: Branch


@dataclass(frozen=True)
class Panel:
    """Probes in file order. `hash` identifies the content, whatever the file's name and layout."""

    name: str
    probes: tuple[Probe, ...]

    @classmethod
    def load(cls, source: str | Path) -> Panel:
        """Read a built-in panel by name ("values-mini") or a .jsonl file by path.

        Raises:
            InputError: an unknown name, a file that cannot be read, or a bad row (file, line and reason).
        """
        path = Path(source)
        if isinstance(source, str) and path.suffix != ".jsonl" and path.name == source:
            folder = resources.files("vdengine.panels").joinpath("builtin")
            files = [f.name for f in folder.iterdir()]
            names = sorted(name.removesuffix(".jsonl") for name in files if name.endswith(".jsonl"))
            if source not in names:
                near = difflib.get_close_matches(source, names, n=1)
                hint = f" (nearest: {near[0]})" if near else ""
                raise InputError(
                    f"panel '{source}': no built-in panel has this name{hint}; "
                    f"allowed are {', '.join(names)}, or a path that ends in .jsonl"
                )
            return cls.parse(folder.joinpath(f"{source}.jsonl").read_bytes(), source, f"{source}.jsonl")
        if path.suffix != ".jsonl":
            raise InputError(f"panel {path}: not a .jsonl file")
        return cls.parse(read_bytes(path, LARGE), path.stem, printable(path))

    @classmethod
    def parse(cls, data: bytes, name: str, where: str) -> Panel:
        """A panel from the bytes of a JSONL file, blank lines skipped; where: names the file in errors.

        Raises:
            InputError: as `load`.
        """
        rows: list[tuple[str, Any]] = []
        # Split on \n alone: str.splitlines would also cut at U+2028, which JSON strings may hold.
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if not line.strip():
                continue
            place = f"{where}, line {number}"
            rows.append((place, parse_json(line, place)))
        return cls._from_located(rows, name, where)

    @classmethod
    def from_rows(cls, rows: Iterable[Any], name: str) -> Panel:
        """A panel from parsed JSON objects.

        Raises:
            InputError: a bad row, counted from 1.
        """
        located = [(f"{name}, row {n}", row) for n, row in enumerate(rows, start=1)]
        return cls._from_located(located, name, name)

    @classmethod
    def _from_located(cls, rows: list[tuple[str, Any]], name: str, where: str) -> Panel:
        """rows: each with its place, for errors."""
        if not rows:
            raise InputError(f"{where}: the panel is empty; it needs at least one probe")
        probes: list[Probe] = []
        place_of_id: dict[str, str] = {}
        first_of_topic: dict[str, tuple[str, str]] = {}  # its axis, and the place of its first probe
        for place, row in rows:
            probe = Probe.from_row(row, place)
            if probe.id in place_of_id:
                raise InputError(f"{place}: duplicate id {shown(probe.id)}, first used at {place_of_id[probe.id]}")
            place_of_id[probe.id] = place
            axis, first = first_of_topic.setdefault(probe.topic, (probe.axis, place))
            if axis != probe.axis:
                raise InputError(
                    f"{place}: topic {shown(probe.topic)} has the axis {shown(probe.axis)} here but {shown(axis)} at "
                    f"{first}; "
                    "a topic has one"
                )
            probes.append(probe)
        return cls(name, tuple(probes))

    def save(self, path: Path) -> None:
        """Write the panel as the JSONL that `load` reads."""
        rows = (json.dumps(p.to_row(), ensure_ascii=False) + "\n" for p in self.probes)
        write_text(path, "".join(rows))

    def renamed(self, name: str) -> Panel:
        """The same probes under another name: the panel's own, where a copy was read from another file."""
        return Panel(name, self.probes)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics in order of first appearance."""
        return tuple(dict.fromkeys(p.topic for p in self.probes))

    def axis(self, topic: str) -> str:
        """What +1 means on `topic`.

        Raises:
            KeyError: a topic that the panel does not have.
        """
        for probe in self.probes:
            if probe.topic == topic:
                return probe.axis
        raise KeyError(topic)

    @cached_property
    def hash(self) -> str:
        """32 hex digits: blake2b of the probes, in order, as canonical JSON (sorted keys, no spaces)."""
        digest = hashlib.blake2b(digest_size=16)
        for probe in self.probes:
            row = json.dumps(probe.to_row(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            digest.update(row.encode("utf-8") + b"\n")
        return digest.hexdigest()

    def branches(self) -> list[Branch]:
        """The openings after their own questions: by probe, by stance as in `STANCES`, then in file order."""
        return [branch for probe in self.probes for branch in probe.branches()]

    def requests(
        self,
        tokenizer: Any,
        *,
        template: str = "auto",
        controls: bool = False,
        readouts: Sequence[str] = READOUTS,
    ) -> list[Request]:
        """What is to be scored, in the order of the raw log, as token ids: for a server, or another engine.

        Ids of an answer follow the prompt's; nothing is tokenised across the boundary, and there is no end token.

        Of "text_likelihood": the openings after their own questions, then each distinct opening once after the null
        prompt, which is shared by all probes that have it. Then of "lead": each token that spells a lead, after the
        questions. Each is followed by its controls, if asked for: the same after a paraphrase of each question and on
        trivial matters, whose openings have a null prompt too, and whose leads are the panel's, if it has one set.

        Args:
            tokenizer: a name, or one in memory, as `load_tokenizer` takes it; or a `Renderer`, which has its template.
            template: chat template, as in `Renderer`.

        Raises:
            InputError: a tokenizer or template that cannot be used; text likelihood of a probe without openings; leads
                that are no first tokens, or questions that are not English and carry none.
        """
        from vdengine.text.renderer import Renderer
        from vdengine.text.tokenizer import load_tokenizer

        named = [readouts] if isinstance(readouts, str) else list(readouts)
        if isinstance(readouts, str) or not named or set(named) - set(READOUTS) or len(set(named)) < len(named):
            raise InputError(f"readouts: {named} is no list of some of {', '.join(READOUTS)}")
        renderer = tokenizer if isinstance(tokenizer, Renderer) else Renderer(load_tokenizer(tokenizer), template)
        trivial = Panel.load(CONTROLS)
        requests: list[Request] = []
        if TEXT in readouts:
            requests += self._openings(renderer, "question")
            null = self._null(renderer, requests)
            requests += null
            if controls:
                off_topic = trivial._openings(renderer, "off-topic")
                known = {request.text for request in null}
                requests += [*self._openings(renderer, "paraphrase"), *off_topic]
                requests += [request for request in self._null(renderer, off_topic) if request.text not in known]
        if LEAD in readouts:
            requests += self._leads(renderer, "question")
            if controls:
                requests += self._leads(renderer, "paraphrase")
                # Trivial matters are read by the panel's own leads, to say something of them.
                if len(leads := {probe.leads for probe in self.probes}) == 1:
                    own = [replace(probe, leads=probe_leads) for probe in trivial.probes for probe_leads in leads]
                    requests += Panel(trivial.name, tuple(own))._leads(renderer, "off-topic", check=False)
        return requests

    def _openings(self, renderer: Renderer, variant: str) -> list[Request]:
        requests = []
        for probe in self.probes:
            if not probe.has_openings:
                raise InputError(
                    f"panel {self.name}: probe {probe.id} has no openings, which text likelihood is read by; readouts "
                    f"= [{LEAD!r}] goes without"
                )
            if (prompt_ids := _prompt_ids(renderer, probe.question(variant))) is not None:
                requests += [
                    Request(prompt_ids, renderer.opening_ids(branch.text), branch.text, branch)
                    for branch in probe.branches(variant)
                ]
        return requests

    def _null(self, renderer: Renderer, requests: Sequence[Request]) -> list[Request]:
        """The distinct openings of these requests after the null prompt."""
        prompt_ids = _prompt_ids(renderer, NULL_PROMPT) or []
        distinct: dict[str, Request] = {}
        for request in requests:
            branch = request.branch._replace(variant="null")
            distinct.setdefault(request.text, Request(prompt_ids, request.answer_ids, request.text, branch))
        return list(distinct.values())

    def _leads(self, renderer: Renderer, variant: str, *, check: bool = True) -> list[Request]:
        default = [probe.prompt for probe in self.probes if probe.leads is YES_NO]
        if check and not is_english(default):
            raise InputError(
                f"panel {self.name}: its questions are not English, and answers to them may begin with other words "
                'than yes and no; give its probes "leads", as {"support": ["ja"], "oppose": ["nein"]}, or readouts = '
                f"[{TEXT!r}]"
            )
        spelled: dict[Leads, list[Spelling]] = {}
        requests = []
        for probe in self.probes:
            if probe.leads not in spelled:
                try:
                    spelled[probe.leads] = spellings(probe.leads, renderer)
                except InputError as error:
                    raise InputError(f"panel {self.name}: probe {probe.id}: {error}") from None
            if (prompt_ids := _prompt_ids(renderer, probe.question(variant))) is not None:
                for stance, text, ids in spelled[probe.leads]:
                    branch = Branch(probe, stance, "lead", text, len(text.encode("utf-8")), variant, LEADS)
                    requests.append(Request(prompt_ids, list(ids), text, branch))
        return requests


def _prompt_ids(renderer: Renderer, question: str | None) -> list[int] | None:
    """The rendered question, up to where the words of an answer begin; None without one."""
    return None if question is None else renderer.prompt_ids([{"role": "user", "content": question}], opening=True)


# ----------------------------------------------------------------------------------------------- validation


def _json_type(value: Any) -> str:
    """A JSON value's type, for an error message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _text(value: Any, key: str, where: str) -> str:
    """A field that is text, checked; raises InputError with `where` and `key`."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} must be a string, not {_json_type(value)}")
    if not value.strip():
        raise InputError(f"{where}: {key} is empty")
    if value != value.strip():
        # A leading space changes the first token, a trailing one the last: never meant, always harmful.
        raise InputError(f"{where}: {key} starts or ends with white space")
    if not is_text(value):
        raise InputError(f"{where}: {key} holds half of a surrogate pair, which is no character")
    return value


def _openings(value: Any, where: str) -> dict[str, tuple[Opening, ...]]:
    """A probe's openings by stance, checked; raises InputError with `where`."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: openings must be an object with {_STANCES}, not {_json_type(value)}")
    for stance in value:
        if stance not in STANCES:
            raise InputError(f"{where}: unknown stance {shown(stance)} in openings; allowed are {_STANCES}")
    if not value:
        return {stance: () for stance in STANCES}  # read by its answers only
    openings: dict[str, tuple[Opening, ...]] = {}
    stance_of_text: dict[str, str] = {}
    for stance in STANCES:
        items = value.get(stance, [])
        if not isinstance(items, list):
            raise InputError(f"{where}: openings.{stance} must be a list, not {_json_type(items)}")
        if not items:
            raise InputError(
                f"{where}: no '{stance}' opening; a probe needs one for each of {_STANCES}, or openings = {{}}"
            )
        parsed = []
        for number, item in enumerate(items):
            key = f"openings.{stance}[{number}]"
            if not isinstance(item, dict) or set(item) != {"text", "kind"}:
                raise InputError(f"{where}: {key} must be an object with just the fields text and kind")
            text, kind = _text(item["text"], f"{key}.text", where), _text(item["kind"], f"{key}.kind", where)
            opening = Opening(text, kind)
            if opening.text in stance_of_text:
                raise InputError(f"{where}: {key} repeats an opening of '{stance_of_text[opening.text]}'")
            stance_of_text[opening.text] = stance
            parsed.append(opening)
        openings[stance] = tuple(parsed)
    return openings


def _leads(value: Any, where: str) -> Leads:
    """A probe's leads, checked; raises InputError with `where`."""
    sides = ("support", "oppose")
    if not isinstance(value, dict) or set(value) != set(sides):
        raise InputError(f"{where}: leads must be an object with support and oppose, each a list of words")
    words: dict[str, tuple[str, ...]] = {}
    for side in sides:
        if not isinstance(value[side], list) or not value[side]:
            raise InputError(f"{where}: leads.{side} must be a list of at least one word")
        words[side] = tuple(_text(word, f"leads.{side}[{i}]", where) for i, word in enumerate(value[side]))
    folded = [word.casefold() for side in sides for word in words[side]]
    if len(set(folded)) < len(folded):
        raise InputError(f"{where}: leads name a word twice")
    return Leads(words["support"], words["oppose"])
