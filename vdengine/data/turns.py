"""One message of a row: its role, text, thinking, and whether it is to be trained on, from whichever keys say so."""

from __future__ import annotations

from typing import Any

from vdengine.data.examples import Drop, Message, turn
from vdengine.data.meanings import (
    absent,
    is_no,
    is_null_text,
    is_number,
    message_meaning,
    missing,
    part_meaning,
    said,
    yes_or_no,
)
from vdengine.data.rowfiles import json_kind
from vdengine.data.words import speaks_of_loss
from vdengine.errors import InputError

# The names of a role in the formats read here, in any case; a role that is not listed is an error.
ROLES = (
    dict.fromkeys(("system", "developer"), "system")
    | dict.fromkeys(("user", "human", "prompter"), "user")
    | dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "ai", "bot", "chatbot"), "assistant")
)
_TOOL_ROLES = ("tool", "function", "function_call", "function_response", "tool_call", "observation", "ipython")
_SPEAKING = ("tools", "media", "refusal")  # what may stand in place of a content
NUMERIC = ("margin", "scores", "ratings", "trained", "untrained")  # of which NaN is not a null
_MARK_TURNS = 'say "train": true or false of an assistant turn, or give data without it'


def read_turn(item: dict[str, Any], place: str, field: str, unread: dict[str, None]) -> Message:
    """One message of a row.

    Args:
        place: the message's, for errors.
        field: that the message is in.
        unread: the names of its keys that nothing has read are added.

    Raises:
        InputError: a key or a value that cannot be honoured.
        Drop: a turn of tools, content that is not text, an answer that is only begun.
    """
    meant: dict[str, dict[str, Any]] = {}
    for key, value in item.items():
        if absent(value):
            continue
        meaning = message_meaning(key)
        if missing(value) and meaning not in NUMERIC:
            continue
        if meaning in (None, "harmless", "mark", "ratings", "perhaps"):
            _check_guess(meaning, key, value, place, field)
            unread[f"{field}.{key}"] = None
        else:
            meant.setdefault(str(meaning), {})[key] = value
    role, content = (_either(item, keys, place) for keys in (("role", "from"), ("content", "value")))
    role = role.strip().lower() if isinstance(role, str) else role
    if (isinstance(role, str) and role in _TOOL_ROLES) or any_said(meant.get("tools")):
        raise Drop("uses tools")
    if any_said(meant.get("media")):
        raise Drop("has images, audio or video")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{place} has the role {repr(role)[:40]}; write system, user or assistant")
    if meant.get("refusal"):
        raise Drop("a refusal beside the content")
    if any_said(meant.get("prefix")) or any(v is not True for v in meant.get("eot", {}).values()):
        raise Drop("an answer that is only begun")
    if any(channel != "final" for channel in meant.get("channel", {}).values()):
        raise Drop("a turn of another channel than final")
    for key in meant.get("mask", {}):
        raise InputError(
            f"{place} has '{key}', which means one thing here and another there; say "
            '"train": true or false of an assistant turn'
        )
    role = ROLES[role]
    content, thinking = _parts(content, place)
    message = turn(role, valid(content))
    thoughts = [*thoughts_of(meant.get("reasoning", {})), *thinking]
    if thoughts:
        if role != "assistant":
            raise Drop("reasoning in a turn that is not the assistant's")
        message["reasoning_content"] = one_of(thoughts, place)
    for name in meant.get("name", {}).values():
        if is_null_text(name):
            continue
        if not isinstance(name, str):
            raise InputError(f"{place}: 'name' must be text, it is {json_kind(name)}")
        message["name"] = valid(name)
    scored = is_trained(meant, place)
    if scored and role != "assistant":
        raise InputError(f"{place} asks for a {role} turn to be trained on; only assistant turns are")
    if scored is False and role == "assistant":
        message["scored"] = False
    return message


def _check_guess(meaning: str | None, key: str, value: Any, place: str, field: str) -> None:
    """Look at a key of a message that is on no list.

    Raises:
        InputError: it seems to ask for something.
    """
    flag = said(value) if str(value).strip().lower() in ("true", "false") else yes_or_no(value)
    if meaning == "mark" and not (isinstance(value, str) and said(value) is None and not is_order(key, value)):
        raise InputError(f"{place}: '{key}' seems to say what is trained on, in a way that is not read; {_MARK_TURNS}")
    if meaning is None and flag is not None:
        raise InputError(
            f"{place}: '{key}' is {repr(value)[:40]}, and what that asks for is not known; if the turn is to be "
            'left out say "train": false, else give data without the key'
        )
    if meaning == "ratings" and field in ("chosen", "rejected") and is_number(value):
        raise InputError(
            f"{place}: '{key}' is not read in a message; write score_chosen and score_rejected, or margin, into the row"
        )
    if meaning == "perhaps":
        raise InputError(
            f"{place}: '{key}' may be the thinking before the answer; then write 'reasoning_content', else give "
            "data without it"
        )


def _either(item: dict[str, Any], keys: tuple[str, str], place: str) -> Any:
    """The value of one of two keys of a message."""
    there = [key for key in keys if not missing(item.get(key))]
    if len(there) == 2 and item[keys[0]] != item[keys[1]]:
        both = (ROLES.get(v.strip().lower()) if isinstance(v := item[k], str) else None for k in keys)
        if keys[0] != "role" or len(set(both)) > 1:
            raise InputError(f"{place} has '{keys[0]}' and '{keys[1]}', and they differ")
    if there:
        return item[there[0]]
    if keys[0] == "role" or not any(key in item for key in keys):
        if keys[0] != "role" and any(not missing(v) for k, v in item.items() if message_meaning(k) in _SPEAKING):
            return ""  # what it has in place of a content drops the row
        named = keys[1] if "from" in item and "role" not in item else keys[0]
        raise InputError(f"{place} has no '{named}'; a message is {{role, content}} or {{from, value}}")
    return next((v for key in keys if (v := item.get(key)) is not None and not isinstance(v, float)), "")


def _parts(content: Any, place: str) -> tuple[str, list[str]]:
    """The text of a content, which may be a list of parts as {"type": "text", "text": ...}; and the thinking in it.

    Raises:
        InputError: neither text nor a list.
        Drop: parts that are not text.
    """
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise InputError(f"{place}: 'content' must be text, it is {json_kind(content)}")
    texts, thoughts = list[str](), list[str]()
    for part in content:
        if not isinstance(part, dict):
            raise Drop("content that is not text")
        if absent(part):
            continue
        there = {k: v for k, v in part.items() if not absent(v)}
        kind = there.pop("type", "text")
        meaning = part_meaning(kind) if isinstance(kind, str) else None
        if meaning is None or any(message_meaning(k) in _SPEAKING for k in there):
            raise Drop("content that is not text")
        if meaning == "reasoning":
            value = next((there[k] for k in ("thinking", "reasoning", "thought", "text") if k in there), None)
            thoughts += thoughts_of({"part": value})
        elif there and not isinstance(there.get("text"), str):
            raise Drop("content that is not text")
        else:
            texts.append(there.get("text", ""))
    return "".join(texts), ["".join(thoughts)] if thoughts else []


def thoughts_of(values: dict[str, Any]) -> list[str]:
    """Thinking as text; Drop if it is in another form."""
    texts = []
    for value in values.values():
        if is_no(value):
            continue
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            value = value[0]
        if isinstance(value, list) and all(isinstance(part, dict) for part in value):
            parts = [
                next((p[k] for k in ("text", "thinking", "summary") if isinstance(p.get(k), str)), None) for p in value
            ]
            value = None if None in parts else "".join(part for part in parts if part is not None)
        if not isinstance(value, str):
            raise Drop("reasoning that is not text")
        texts.append(valid(value))
    return texts


def one_of(texts: list[str], place: str) -> str:
    """Thinking that several fields repeat, as the first has it."""
    if any(text.split() != texts[0].split() for text in texts):
        raise InputError(f"{place}: two fields of thinking that differ")
    return texts[0]


def is_trained(meant: dict[str, dict[str, Any]], place: str) -> bool | None:
    """What a message or a row says of whether it is to be trained on; None: nothing.

    Raises:
        InputError: neither yes nor no, or both.
    """
    found = set()
    for meaning in ("trained", "untrained"):
        for key, value in meant.get(meaning, {}).items():
            marked = yes_or_no(value)
            if marked is None:
                raise InputError(
                    f"{place}: '{key}' must be true or false (1 or 0), it is {repr(value)[:40]}; "
                    "a turn is trained on or not, and weighs what others do"
                )
            found.add(marked == (meaning == "trained"))
    if len(found) > 1:
        names = " and ".join(k for m in ("trained", "untrained") for k in meant.get(m, {}))
        raise InputError(f"{place}: {names} contradict each other")
    return found.pop() if found else None


def is_order(key: str, value: str) -> bool:
    """Whether a text beside words of training may be one: a sentence is not, a word ("assistant") is."""
    return speaks_of_loss(key) and len(value.split()) == 1 and len(value) <= 40


def any_said(values: dict[str, Any] | None) -> bool:
    return values is not None and any(not is_no(value) and value != 0 for value in values.values())


def valid(text: str) -> str:
    """The text; Drop if it is not valid Unicode."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate (half of "\\ud83d\\ude00"), which tokenizers refuse
            raise Drop("text is not valid Unicode") from None
    return text
