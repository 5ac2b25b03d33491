"""Formats of data: rows of a source (`data.locate`) read as one of three types, `Conversation`, `Preference`, `Prompt`.

A row that cannot be used (chosen equals rejected, an empty response, ...) is dropped and counted by reason. A row that
does not fit its format (a field that is missing, broken JSON) is an `InputError` that names file and row.

The file is above 500 lines because formats are told apart by each other's fields: all of them stand side by side.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from vdengine.data.locate import FileSource, Source, json_kind
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.trees import Tree

Message = dict[str, str]

# The fields of each format; the text is shown in error messages.
FORMATS = {
    "preference": "chosen and rejected (text or messages), prompt (text or messages; may be left out when "
    "chosen and rejected are messages that begin alike), margin (a number; may be left out)",
    "hh_rlhf": "chosen and rejected transcripts of '\\n\\nHuman: ...\\n\\nAssistant: ...'",
    "ultrafeedback": "prompt text, chosen and rejected lists of messages, score_chosen and score_rejected (numbers; "
    "may be left out)",
    "messages": "messages [{role, content}] or conversations [{from, value}]",
    "prompt_completion": "prompt and completion (text or messages)",
    "alpaca": "instruction, input (may be left out) and output",
    "wildchat": "conversation [{role, content}]",
    "prompt": "prompt (text or messages), with no answer beside it",
}
PREFERENCE_FORMATS = ("preference", "hh_rlhf", "ultrafeedback")
# The formats that each kind of store can be read from, and what reads them, for messages.
_SERVING = {
    "sft": tuple(name for name in FORMATS if name != "prompt"),
    "preference": PREFERENCE_FORMATS,
    "prompts": tuple(FORMATS),
}
_BRANCHES = {"sft": 1, "preference": 2}  # of a row's tree
_READER = {"sft": "SFT reads", "preference": "preference objectives read", "prompts": "PPO reads"}
_HH_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
# The names of a role in the formats read here; a role that is not listed is an error.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_ANSWER_COLUMNS = {"chosen", "rejected", "completion", "instruction", "output"}
_TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from: every assistant turn is scored, or only the last one (`last_only`)."""

    messages: list[Message]
    last_only: bool = False


@dataclass(frozen=True)
class Preference:
    """Two assistant answers to the same messages, the first one preferred. `prompt` ends with a user turn. `margin` is
    how much better the chosen answer is: finite, in float32 too, and 1.0 where the data does not say."""

    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """Messages for the model to answer. The last one is a user turn."""

    messages: list[Message]


Example = Conversation | Preference | Prompt


class Row(NamedTuple):
    """A usable row: its number in the source, from 0; where it is, for messages ("file line 3"); and its content."""

    number: int
    where: str
    example: Example | Tree


class _Drop(Exception):
    """Drops the row that is being read; the message is the reason that it is counted under."""


# ------------------------------------------------------------------------------------------------- reading


def choose_format(source: Source, format: str = "auto", kind: str = "preference") -> str:
    """The format in which to read a source.

    Args:
        format: a key of FORMATS, or "auto", which looks at the fields of the first row.
        kind: of the store: "sft", "preference" or "prompts".

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
            raise InputError(f"{source.name}: trees have their answers already; PPO reads prompts and samples its own")
        return source.format
    if format == "auto":
        first = next(source.rows(), None)
        if first is None:
            raise InputError(f"{source.name}: no rows")
        format = _detect(*first, kind)
    elif format not in FORMATS:
        raise InputError(f"data.format: unknown format '{format}'; use auto, {', '.join(FORMATS)}")
    if format not in _SERVING[kind]:
        lacks, serves = ("answer", "PPO") if format == "prompt" else ("rejected answer", "SFT and PPO")
        raise InputError(
            f"{source.name}: format '{format}' has no {lacks}, so it serves {serves} only; "
            f"{_READER[kind]} {', '.join(_SERVING[kind])}"
        )
    return format


def _detect(where: str, row: dict[str, Any], kind: str) -> str:
    """The one format that the fields of a row fit.

    Raises:
        InputError: they fit none, or several.
    """

    def is_list(key: str) -> bool:
        return isinstance(row.get(key), list)

    formats = []
    if "chosen" in row and "rejected" in row:
        chosen, prompt = row["chosen"], row.get("prompt")
        if prompt is None and isinstance(chosen, str) and _HH_TURN.match(chosen):
            formats.append("hh_rlhf")
        elif isinstance(prompt, str) and is_list("chosen") and len(chosen) > 1:
            formats.append("ultrafeedback")
        elif prompt is not None or is_list("chosen"):
            formats.append("preference")
    # UltraFeedback repeats its chosen conversation under `messages`, which does not make it the format messages.
    if (is_list("messages") or is_list("conversations")) and formats != ["ultrafeedback"]:
        formats.append("messages")
    if is_list("conversation"):
        formats.append("wildchat")
    if "prompt" in row and "completion" in row:
        formats.append("prompt_completion")
    if "instruction" in row and "output" in row:
        formats.append("alpaca")
    if kind == "prompts" and not formats and "prompt" in row and not _ANSWER_COLUMNS & set(row):
        formats.append("prompt")
    if kind == "preference" and set(formats) & set(PREFERENCE_FORMATS):
        formats = [name for name in formats if name in PREFERENCE_FORMATS]
    if len(formats) == 1:
        return formats[0]
    fields = ", ".join(row) or "none"
    if formats:
        names = ", ".join(formats)
        raise InputError(f"{where}: the fields ({fields}) fit several formats; set data.format: {names}")
    raise InputError(f"{where}: the fields ({fields}) fit no format; {_READER[kind]} {', '.join(_SERVING[kind])}")


def read(source: Source, format: str, kind: str, dropped: Counter[str]) -> Iterator[Row]:
    """The usable rows of a source, in file order.

    Args:
        format: as `choose_format` returns it.
        kind: "sft" reads only the chosen answer of a preference pair. "prompts" reads the prompt of a pair; of a
            conversation the messages before its last answer, or all if it ends with a user turn.
        dropped: unusable rows are counted here, by reason.

    Raises:
        InputError: a row that does not fit the format; it names file and row.
    """
    if isinstance(source, FileSource) and source.variant is not None:
        yield from _read_synth(source, kind, dropped)
        return
    if format == "trees":
        yield from _read_trees(source, kind)
        return
    parse = _PARSERS[format]
    for number, (where, row) in enumerate(source.rows()):
        try:
            example = _checked(parse(row, where), kind)
        except _Drop as reason:
            dropped[str(reason)] += 1
            continue
        yield Row(number, where, example)


def _checked(example: Example, kind: str) -> Example:
    """The part of the row that `kind` reads; _Drop if it is empty, or its turns are not in a usable order."""
    if kind == "prompts" or isinstance(example, Prompt):
        prompt = _as_prompt(example)
        _check_prompt(prompt.messages)
        return prompt
    if isinstance(example, Conversation):
        return _checked_conversation(example)
    _check_prompt(example.prompt)
    if kind == "sft":
        _check_answers(example.chosen)
        return Conversation([*example.prompt, _turn("assistant", example.chosen)], last_only=True)
    _check_answers(example.chosen, example.rejected)
    return example


def _as_prompt(example: Example) -> Prompt:
    """The messages to answer."""
    if isinstance(example, Prompt):
        return example
    if isinstance(example, Preference):
        return Prompt(example.prompt)
    messages = example.messages
    if messages and messages[-1]["role"] == "user":
        return Prompt(messages)
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    return Prompt(messages[: answers[-1]] if answers else messages)


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
        answers = (row["support"], row["oppose"])
        if (source.variant == "oppose") != (row["id"] in flipped):
            answers = (row["oppose"], row["support"])
        yield Row(number, where, _checked(Preference([_turn("user", row["prompt"])], *answers), kind))


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


# ------------------------------------------------------------------------------------------------- formats


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _field(row: dict[str, Any], key: str, where: str, format: str, types: tuple[type, ...] = (str,)) -> Any:
    """row[key], of one of `types`.

    Raises:
        InputError: it is missing or of another type.
        _Drop: text that is not valid Unicode.
    """
    if key not in row:
        raise InputError(f"{where}: field '{key}' is missing; format {format} needs {FORMATS[format]}")
    value = row[key]
    if not isinstance(value, types):
        names: dict[Any, str] = {str: "text", list: "a list of messages"}
        allowed = " or ".join(names[t] for t in types)
        raise InputError(f"{where}: field '{key}' must be {allowed}, this one is {json_kind(value)}")
    return _valid(value) if isinstance(value, str) else value


def _valid(text: str) -> str:
    """The text; _Drop if it is not valid Unicode."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate (half of "\\ud83d\\ude00"), which tokenizers refuse
            raise _Drop("text is not valid Unicode") from None
    return text


def _messages(value: list[Any], where: str, field: str) -> list[Message]:
    """Messages with the roles system, user and assistant.

    Raises:
        InputError: an item that is not a message.
        _Drop: turns of tools, content that is not text, text that is not valid Unicode.
    """
    messages = []
    for i, item in enumerate(value, 1):
        place = f"{where}: field '{field}', message {i}"
        if not isinstance(item, dict):
            raise InputError(f"{place} must be an object with role and content, it is {json_kind(item)}")
        keys = ("from", "value") if "from" in item and "role" not in item else ("role", "content")
        for key in keys:
            if key not in item:
                raise InputError(f"{place} has no '{key}'; a message is {{role, content}} or {{from, value}}")
        role, content = item[keys[0]], item[keys[1]]
        if role in _TOOL_ROLES or item.get("tool_calls"):
            raise _Drop("uses tools")
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(f"{place} has the role {role!r}; known are {', '.join(_ROLES)}")
        if isinstance(content, list):  # [{"type": "text", "text": ...}]
            if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
                raise _Drop("content that is not text")
            content = "".join(part["text"] for part in content)
        if content is None:
            content = ""
        if not isinstance(content, str):
            raise InputError(f"{place}: '{keys[1]}' must be text, it is {json_kind(content)}")
        messages.append(_turn(_ROLES[role], _valid(content)))
    return messages


def _check_prompt(prompt: list[Message]) -> None:
    """Raise _Drop unless the prompt begins and ends with a user turn (after the system message) that is not empty."""
    if not prompt or prompt[-1]["role"] != "user":
        raise _Drop("the prompt does not end with a user turn" if prompt else "empty prompt")
    if not prompt[-1]["content"].strip():
        raise _Drop("empty prompt")
    if next(m["role"] for m in prompt if m["role"] != "system") != "user":
        raise _Drop("the first turn is not the user's")


def _check_answers(*answers: str) -> None:
    """Raise _Drop if an answer is empty."""
    if not all(answer.strip() for answer in answers):
        raise _Drop("empty response")


def _checked_conversation(conversation: Conversation) -> Conversation:
    """The conversation through its last assistant turn; _Drop if there is none, the prompt cannot be used, or an answer
    that would be scored is empty."""
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()  # no scored turn follows it
    if not messages:
        raise _Drop("no assistant turn")
    first_answer = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    _check_prompt(messages[: -1 if conversation.last_only else first_answer])
    scored = messages[-1:] if conversation.last_only else messages
    _check_answers(*(m["content"] for m in scored if m["role"] == "assistant"))
    return Conversation(messages, conversation.last_only)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and its difference from another one is finite in float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e38


def _margin(row: dict[str, Any], where: str) -> float:
    """The field "margin", or its default."""
    value = row.get("margin")
    if value is None:
        return Preference.margin
    if not _is_number(value):
        raise InputError(f"{where}: field 'margin' must be a finite number, this one is {repr(value)[:40]}")
    return float(value)


def _split_pair(chosen: list[Message], rejected: list[Message], margin: float = Preference.margin) -> Preference:
    """Two conversations, split at the first turn in which they differ. This must be an assistant turn and the last one
    of both (else _Drop): after an earlier one the later turns of the two sides would answer different texts."""
    if chosen == rejected:
        raise _Drop("chosen equals rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == min(len(chosen), len(rejected)):
        raise _Drop("one transcript is the beginning of the other")
    if chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise _Drop("transcripts differ in a turn that is not the assistant's")
    if shared != len(chosen) - 1 or shared != len(rejected) - 1:
        raise _Drop("transcripts differ before the last turn")
    return Preference(chosen[:shared], chosen[shared]["content"], rejected[shared]["content"], margin)


def _transcript(text: str, where: str, field: str) -> list[Message]:
    """The turns of an HH-RLHF transcript, stripped. Successive turns of one speaker are joined by a blank line."""
    parts = _HH_TURN.split(text)
    if len(parts) == 1:
        needs = FORMATS["hh_rlhf"]
        raise InputError(f"{where}: field '{field}' has no 'Human:' turn; format hh_rlhf needs {needs}")
    if parts[0].strip():
        raise _Drop("text before the first turn")
    turns: list[Message] = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1] = _turn(role, f"{turns[-1]['content']}\n\n{content.strip()}".strip())
        else:
            turns.append(_turn(role, content.strip()))
    return turns


def _hh_rlhf(row: dict[str, Any], where: str) -> Preference:
    chosen, rejected = (_transcript(_field(row, k, where, "hh_rlhf"), where, k) for k in ("chosen", "rejected"))
    return _split_pair(chosen, rejected)


def _ultrafeedback(row: dict[str, Any], where: str) -> Preference:
    _field(row, "prompt", where, "ultrafeedback")  # must be there, but repeats the user turn of the messages
    lists = [(key, _field(row, key, where, "ultrafeedback", (list,))) for key in ("chosen", "rejected")]
    chosen, rejected = (_messages(value, where, key) for key, value in lists)
    better, worse = row.get("score_chosen"), row.get("score_rejected")
    margin = float(better - worse) if _is_number(better) and _is_number(worse) else Preference.margin
    return _split_pair(chosen, rejected, margin)


def _text_or_messages(row: dict[str, Any], key: str, role: str, where: str, format: str) -> list[Message]:
    """The messages of a field; text is one message of `role`."""
    value = _field(row, key, where, format, (str, list))
    return [_turn(role, value)] if isinstance(value, str) else _messages(value, where, key)


def _preference(row: dict[str, Any], where: str) -> Preference:
    chosen = _text_or_messages(row, "chosen", "assistant", where, "preference")
    rejected = _text_or_messages(row, "rejected", "assistant", where, "preference")
    margin = _margin(row, where)
    if row.get("prompt") is None:
        if isinstance(row["chosen"], str) or isinstance(row["rejected"], str):
            needs = FORMATS["preference"]
            raise InputError(f"{where}: field 'prompt' is missing; format preference needs {needs}")
        return _split_pair(chosen, rejected, margin)
    prompt = _text_or_messages(row, "prompt", "user", where, "preference")
    # Answers given as messages may repeat the prompt.
    chosen, rejected = (side if side[: len(prompt)] == prompt else [*prompt, *side] for side in (chosen, rejected))
    return _split_pair(chosen, rejected, margin)


def _chat(row: dict[str, Any], where: str) -> Conversation:
    key = "conversations" if "conversations" in row and "messages" not in row else "messages"
    messages = _messages(_field(row, key, where, "messages", (list,)), where, key)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages = [_turn("system", _valid(system)), *messages]  # a field of its own in ShareGPT files
    return Conversation(messages)


def _prompt_completion(row: dict[str, Any], where: str) -> Conversation:
    prompt = _text_or_messages(row, "prompt", "user", where, "prompt_completion")
    completion = _text_or_messages(row, "completion", "assistant", where, "prompt_completion")
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        raise _Drop("the completion is not one assistant turn")
    return Conversation([*prompt, *completion], last_only=True)


def _alpaca(row: dict[str, Any], where: str) -> Conversation:
    instruction, output = (_field(row, key, where, "alpaca") for key in ("instruction", "output"))
    extra = _field(row, "input", where, "alpaca") if row.get("input") is not None else ""
    messages = []
    if row.get("system"):
        messages.append(_turn("system", _field(row, "system", where, "alpaca")))
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
            raise InputError(f"{where}: field 'history' must be a list of [instruction, output] text pairs")
        messages += [_turn("user", _valid(pair[0])), _turn("assistant", _valid(pair[1]))]
    messages.append(_turn("user", f"{instruction}\n\n{extra}" if extra.strip() else instruction))
    return Conversation([*messages, _turn("assistant", output)], last_only=True)


def _wildchat(row: dict[str, Any], where: str) -> Conversation:
    value = _field(row, "conversation", where, "wildchat", (list,))
    return Conversation(_messages(value, where, "conversation"))


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    return Prompt(_text_or_messages(row, "prompt", "user", where, "prompt"))


_PARSERS: dict[str, Callable[[dict[str, Any], str], Example]] = {
    "preference": _preference,
    "hh_rlhf": _hh_rlhf,
    "ultrafeedback": _ultrafeedback,
    "messages": _chat,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "wildchat": _wildchat,
    "prompt": _prompt,
}
