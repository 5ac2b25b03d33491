"""One row of a source: its fields by name and by meaning, with their types checked.

`data.meanings` lists the keys, `data.words` guesses what others mean. What becomes of each meaning is decided here, for
rows of every format alike.
"""

from __future__ import annotations

import re
from typing import Any

from vdengine.data.examples import Conversation, Drop, Example, Message, Preference, turn
from vdengine.data.meanings import (
    CONTENT,
    UNREAD,
    absent,
    is_no,
    is_null_text,
    is_number,
    missing,
    row_meaning,
    said,
    yes_or_no,
)
from vdengine.data.rowfiles import json_kind
from vdengine.data.turns import NUMERIC, any_said, is_order, is_trained, one_of, read_turn, thoughts_of, valid
from vdengine.data.words import (
    both_sides,
    is_event,
    leaves_out,
    side,
    speaks_of_loss,
    takes,
    weighs,
    without_side,
    words,
)
from vdengine.errors import InputError

_UNWANTED = "marked as not to be trained on"
# Meanings that cannot be honoured in a row, and what to do instead.
_REFUSED = {
    "template": "asks for a rendering of its own; all rows are rendered by data.template. Leave the column out",
    "tokens": "has token ids; rows of text are read (vd.Trainer takes ids as vd.Tree). Leave the column out",
    "mask": 'says what is trained on in a way that is not read; mark an assistant turn by "train": true or false',
    "prefix": "is not read; make it part of the prompt or the answer",
}
_MARK_ROWS = '"train": false leaves a row or an assistant turn out; write that, or give data without the column'
# Where a text has an image: what LLaVA and others write, but for the elements of HTML, which are closed.
_MEDIA_MARK = re.compile(
    r"<\|?image(_?\d+|_pad)?\|?>|^<\|?(video|audio)(_?\d+|_pad)?\|?>|<\|?(video|audio)\|?>$", re.MULTILINE
)
_OF_MAKING = {"persona", "background", "passage", "meta"}  # beside a whole conversation: how it was made
_HTML = re.compile("</(image|video|audio)>")


class Fields:
    """The fields of one row.

    Args:
        needs: what its format needs, for messages.

    Attributes:
        where: the row's place, for messages.
        unread: names of the columns that nothing has read, in order; those of messages as "messages.id".
        notes: what was done about the row that its reader should know.
    """

    def __init__(self, row: dict[str, Any], where: str, needs: str = "") -> None:
        self.where, self.needs, self.notes = where, needs, list[str]()
        self._row = row
        self._meant: dict[str, dict[str, Any]] = {}  # values that are there, by meaning and key
        self._used: set[str] = set()
        self._label: bool | None = None  # of the row's answer, once `check` has looked
        self._other: dict[str, None] = {}
        for key, value in row.items():
            if key in CONTENT:
                continue
            meaning = row_meaning(key)
            if meaning is None:
                if value is UNREAD or not missing(value):
                    self._other[key] = None
            elif not (absent(value) if meaning in NUMERIC else missing(value)):
                self._meant.setdefault(meaning, {})[key] = value

    @property
    def unread(self) -> list[str]:
        """As the class says."""
        content = [k for k, v in self._row.items() if k in CONTENT and k not in self._used and not missing(v)]
        return [*content, *self._other]

    def error(self, message: str) -> InputError:
        """An error in this row."""
        return InputError(f"{self.where}: {message}")

    # ------------------------------------------------------------------------------------------------ by name

    def has(self, key: str) -> bool:
        """Whether a value is there."""
        return not missing(self._row.get(key))

    def value(self, key: str, types: tuple[type, ...]) -> Any:
        """The value of a field, of one of `types`.

        Raises:
            InputError: it is missing or of another type.
            Drop: it is there without a value (null, say), or text that is not valid Unicode.
        """
        self._used.add(key)
        if key not in self._row:
            raise self.error(f"field '{key}' is missing; {self.needs}")
        value = self._row[key]
        if value is None or (not isinstance(value, types) and missing(value)):
            raise Drop(f"no '{key}'")
        if not isinstance(value, types):
            names: dict[Any, str] = {str: "text", list: "a list of messages"}
            allowed = " or ".join(names[t] for t in types if t in names)
            raise self.error(f"field '{key}' must be {allowed}, this one is {json_kind(value)}")
        return valid(value) if isinstance(value, str) else value

    def text(self, key: str) -> str:
        """A field of text."""
        return self.value(key, (str,))  # type: ignore[no-any-return]

    def messages(self, key: str) -> list[Message]:
        """A field of messages, with the roles system, user and assistant.

        Raises:
            InputError: as `value`; an item that is not a message, a key of a message that cannot be honoured.
            Drop: as `value`; turns of tools, content that is not text, an answer that is only begun.
        """
        return self._messages(self.value(key, (list,)), key)

    def text_or_messages(self, key: str, role: str) -> list[Message]:
        """The messages of a field; text is one message of `role`, an object is one message."""
        value = self.value(key, (str, list, dict))
        if isinstance(value, str):
            return [turn(role, value)]
        return self._messages([value] if isinstance(value, dict) else value, key)

    def _messages(self, value: list[Any], field: str) -> list[Message]:
        found = []
        for number, item in enumerate(value, 1):
            place = f"{self.where}: field '{field}', message {number}"
            if not isinstance(item, dict):
                raise InputError(f"{place} must be an object with role and content, it is {json_kind(item)}")
            if item and all(map(missing, item.values())):
                continue
            found.append(read_turn(item, place, field, self._other))
        return found

    # --------------------------------------------------------------------------------------------- by meaning

    def check(self, kind: str, answers: int | None) -> None:
        """Look at what concerns the whole row, whatever its format.

        Args:
            kind: of the store, "preference", "sft", "unpaired" or "prompts"; of a prompt's answer nothing is asked.
            answers: that a row of its format has; None: a conversation, with as many as it likes.

        Raises:
            InputError: a key that cannot be honoured.
            Drop: a row that says of itself that it is not to be trained on, or that needs more than text.
        """
        meant = self._meant
        for meaning, why in _REFUSED.items():
            for key, value in meant.get(meaning, {}).items():
                if not is_no(value):
                    raise self.error(f"field '{key}' {why}")
        if any_said(meant.get("tools")):
            raise Drop("uses tools")
        if any_said(meant.get("media")):
            raise Drop("has images, audio or video")
        of_row: dict[str, dict[str, Any]] = {}
        for meaning in ("trained", "untrained"):
            for key, value in meant.get(meaning, {}).items():
                if not isinstance(value, list):
                    of_row.setdefault(meaning, {})[key] = value
                elif answers is not None:  # else `mark_turns` reads it
                    raise self.error(f"field '{key}' is a list, which marks messages; this row has none: true or false")
        if is_trained(of_row, self.where) is False:
            raise Drop(_UNWANTED)
        for key, value in meant.get("mark", {}).items():
            if _asks(key, value):
                raise self.error(
                    f"field '{key}' seems to say what is trained on, in a way that is not read; {_MARK_ROWS}"
                )
        unasked = ["mark"]
        if kind == "prompts":
            unasked += ["label", "wanted", "reasoning", "perhaps", "thoughts", "answer", "verdict"]
        if kind == "prompts" or answers != 2:
            unasked += ["ratings", "margin", "scores", "verdict", "thoughts"]
        self._other |= dict.fromkeys(k for m in unasked for k in meant.get(m, {}))
        if kind == "prompts":
            return
        self._check_label(pair=answers == 2, drops=kind != "unpaired")
        self._check_sides(answers)
        for key, value in meant.get("reasoning", {}).items():
            if answers != 1 and not is_no(value):  # else `thinking` reads it
                raise self.error(
                    f"field '{key}' does not say which answer it belongs to; put it into the assistant's message as "
                    "'reasoning_content'"
                )

    def _check_sides(self, answers: int | None) -> None:
        """Keys that speak of the two sides of a pair, or may be the thinking of an answer.

        Raises:
            InputError: one that may say something else than the row's format does.
        """
        meant = self._meant
        for key, value in meant.get("verdict", {}).items():
            agrees = said(value) is False if is_event(key) else isinstance(value, str) and side(value) == 0
            if answers == 2 and not agrees:
                raise self.error(
                    f"field '{key}' says which answer is the better one, or by how much, in a way that is not read; "
                    "'chosen', 'rejected' and 'margin' say it; write those, or give data without the column"
                )
            self._other[key] = None
        for key, value in meant.get("answer", {}).items():
            if answers != 2 and isinstance(value, str | list | dict):
                raise self.error(
                    f"field '{key}' is one answer of a pair, beside a row of another format; name the two 'chosen' and "
                    "'rejected', or give data without the column"
                )
            self._other[key] = None
        for key, bad in (("chosen", False), ("rejected", True)):
            if answers != 2 and yes_or_no(self._row.get(key)) is bad:
                raise Drop(f"{key} is {str(bad).lower()}: an answer that is not wanted")
        for key in meant.get("perhaps", {}):
            if answers == 1:
                raise self.error(
                    f"field '{key}' may be the thinking before the answer; then name it 'reasoning_content', else give "
                    "data without the column"
                )
            self._other[key] = None

    def check_read(self, example: Example, answers: int | None) -> None:
        """Look at what stands beside the fields that were read.

        Raises:
            InputError: text that seems to be part of the prompt or the answer, and is not.
            Drop: a turn that speaks of an image, a video or a sound.
        """
        if isinstance(example, Preference):
            messages = [*example.prompt, example.chosen, example.rejected]
        else:
            messages = example.messages
        for message in messages:
            text = message["content"]
            if "<" in text and message["role"] != "assistant" and _MEDIA_MARK.search(text) and not _HTML.search(text):
                raise Drop("has images, audio or video")
        beside = dict(self._meant.get("beside", {}))
        whole = isinstance(example, Conversation) and answers is None
        if not whole:  # of a conversation it may be how it was made
            beside |= {"prompt": self._row["prompt"]} if self.has("prompt") and "prompt" not in self._used else {}
        names = ("instruction", "input", "completion", "output")
        beside |= {key: self._row[key] for key in names if self.has(key) and key not in self._used}
        read = [m["content"] for m in messages] if beside else []
        read += [text for key in self._used if beside and isinstance(text := self._row.get(key), str)]
        for key, value in beside.items():
            if isinstance(value, str) and not is_null_text(value) and not _is_among(value, read):
                if whole and row_meaning(key) == "beside" and {*words(key)} & _OF_MAKING:
                    self._other[key] = None
                    continue
                raise self.error(
                    f"field '{key}' stands beside the fields that are read, and is no part of them; make it part of "
                    "the prompt, or name it 'system', or give data without the column"
                )
            if key not in CONTENT:
                self._other[key] = None

    def wanted(self) -> bool:
        """Whether the row's one answer is a wanted one, as its label says.

        Raises:
            InputError: it has no label.
        """
        if self._label is None:
            raise self.error(
                "field 'label' is missing: true or false, whether the answer is a wanted one; or give pairs, 'chosen' "
                "and 'rejected'"
            )
        return self._label

    def _check_label(self, pair: bool, drops: bool) -> None:
        """KTO's rows have one answer and whether it is a wanted one.

        Args:
            drops: whether an answer that is not wanted drops its row.
        """
        asked = dict(self._meant.get("label", {}))
        for key, value in self._meant.get("wanted", {}).items():
            if (flag := said(value)) is not None:
                asked[key] = flag
            elif pair and "preferred" in key.lower() and side(str(value)) != 0:
                raise self.error(f"field '{key}' says {repr(value)[:40]}, beside 'chosen' and 'rejected', which say it")
            else:
                self._other[key] = None
        for key, value in asked.items():
            wanted = yes_or_no(value)
            if wanted is None or (pair and not wanted):
                allowed = "must be true" if pair else "must be true or false (whether the answer is a wanted one)"
                raise self.error(
                    f"field '{key}' {allowed}, this one is {repr(value)[:40]}; rename the column if it means "
                    "something else"
                )
            if not wanted and drops:
                raise Drop(f"{key} is false: an answer that is not wanted")
            if self._label not in (None, wanted):
                raise self.error(f"field '{key}' says {repr(value)[:40]}, another one the opposite")
            self._label = wanted

    @property
    def topic(self) -> str | None:
        """The topic that the row names; None: it names none."""
        return next((v for v in self._meant.get("topic", {}).values() if isinstance(v, str)), None)

    def with_system(self, messages: list[Message]) -> list[Message]:
        """Messages after the row's own system prompt, if it has one.

        Raises:
            InputError: it is not text.
            Drop: the messages, or two fields, have another one.
        """
        for key, value in self._meant.get("system", {}).items():
            if is_null_text(value):
                continue
            if not isinstance(value, str):
                raise self.error(f"field '{key}' must be text, this one is {json_kind(value)}")
            if not messages or messages[0]["role"] != "system":
                messages = [turn("system", valid(value)), *messages]
            elif messages[0]["content"].split() != value.split():
                raise Drop("two system prompts that differ")
        return messages

    def history(self, of_text: bool = True) -> list[Message]:
        """The turns before a question that is text.

        Args:
            of_text: whether the question is text; messages have their earlier turns among them.

        Raises:
            InputError: not pairs of texts, nor messages; or beside messages.
        """
        found: list[Message] = []
        for key, value in self._meant.get("history", {}).items():
            if not of_text:
                raise self.error(f"field '{key}' stands beside messages; make it part of them")
            if isinstance(value, list) and all(isinstance(item, dict) for item in value):
                found += self._messages(value, key)
                continue
            for pair in value if isinstance(value, list) else [None]:
                if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
                    raise self.error(f"field '{key}' must be a list of [instruction, output] text pairs")
                found += [turn("user", valid(pair[0])), turn("assistant", valid(pair[1]))]
        return found

    def thinking(self, answer: Message, of: int | None = None) -> Message:
        """An answer with the thinking that stands in a field of its own.

        Args:
            of: 0 for the chosen answer of a pair, 1 for the rejected one; None: a row's only answer.

        Raises:
            InputError: two fields of thinking that differ.
        """
        if of is None:
            thoughts = thoughts_of(self._meant.get("reasoning", {}))
        else:
            thoughts = thoughts_of({k: v for k, v in self._meant.get("thoughts", {}).items() if side(k) == of})
        if not thoughts:
            return answer
        before = [answer["reasoning_content"]] if "reasoning_content" in answer else []
        return answer | {"reasoning_content": one_of([*thoughts, *before], self.where)}

    def mark_turns(self, messages: list[Message], key: str) -> list[Message]:
        """Messages with the row's own list of which turns count, one value a message (LLaMA-Factory's loss_mask).

        Raises:
            InputError: not as many values as messages, or other values than 0 and 1.
        """
        for meaning in ("trained", "untrained"):
            for name, value in self._meant.get(meaning, {}).items():
                if not isinstance(value, list):
                    continue
                marks = [yes_or_no(v) for v in value]
                if len(marks) != len(self._row[key]) or len(marks) != len(messages) or None in marks:
                    raise self.error(f"field '{name}' must have one 0 or 1 for each of {len(self._row[key])} messages")
                messages = [
                    m | {"scored": False} if m["role"] == "assistant" and mark != (meaning == "trained") else m
                    for m, mark in zip(messages, marks, strict=True)
                ]
        return messages

    def margin(self) -> float:
        """How much better the chosen answer is: `margin`, or the difference of two scores.

        Raises:
            InputError: something else than finite numbers, or two that say different things.
        """
        found: dict[str, float] = {}
        scores: dict[tuple[str, ...], dict[int | None, tuple[str, float]]] = {}
        sided = dict(self._meant.get("scores", {}))
        for key, value in self._meant.get("ratings", {}).items():
            if isinstance(value, dict) and {side(k) for k in value} == {0, 1}:
                sided |= {f"{key}.{k}": v for k, v in value.items()}
                continue
            if isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
                self.notes.append(f"margin 1: '{key}' does not say which of its numbers is the chosen answer's")
            self._other[key] = None
        for key, value in (self._meant.get("margin", {}) | sided).items():
            if not is_number(value):
                raise self.error(f"field '{key}' must be a finite number, this one is {repr(value)[:40]}")
            if key in sided:
                scores.setdefault(without_side(key), {})[side(key)] = (key, float(value))
            else:
                found[key] = float(value)
        for sides in scores.values():
            if len(sides) == 2:
                (better, high), (worse, low) = sides[0], sides[1]
                found[f"{better} less {worse}"] = high - low
            else:
                ((name, _),) = sides.values()
                self.notes.append(f"margin 1: only one of {' and '.join(both_sides(name))} is there")
        values = list(found.values())
        if any(abs(v - values[0]) > 1e-6 * max(1.0, abs(v), abs(values[0])) for v in values):
            raise self.error(f"{' and '.join(found)} say different margins: {', '.join(f'{v:g}' for v in values)}")
        return values[0] if values else Preference.margin


def _asks(key: str, value: Any) -> bool:
    """Whether a key of a row with words of training asks for something by its value."""
    flag = said(value)
    if isinstance(value, str) and flag is None:
        return is_order(key, value)
    if speaks_of_loss(key):
        return True
    if flag is not None:
        return flag if leaves_out(key) else not flag or not takes(key)
    if isinstance(value, list):
        return weighs(key) or all(yes_or_no(v) is not None for v in value)
    return weighs(key)


def _is_among(text: str, read: list[str]) -> bool:
    """Whether a text is part of one that is read, or has one in it; white space does not matter."""
    text = " ".join(text.split())
    for other in (" ".join(t.split()) for t in read):
        if text in other or (other and other in text and (len(other) >= 20 or 2 * len(other) > len(text))):
            return True
    return False
