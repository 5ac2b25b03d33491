"""What a row is read as: a `Conversation`, a `Preference` or a `Prompt`; and whether its turns can be trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

# {"role", "content"}; where the row has them "reasoning_content" (text, the thinking before an answer), "name" (text),
# and "scored": False (an assistant turn that is context only).
Message = dict[str, Any]


class Drop(Exception):
    """Drops the row that is being read; the message is the reason that it is counted under."""


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from: every assistant turn is scored but those with "scored": False, or only the last one
    (`last_only`). `wanted` is whether that one is a wanted answer, where the data says so."""

    messages: list[Message]
    last_only: bool = False
    wanted: bool | None = None


@dataclass(frozen=True)
class Preference:
    """Two assistant turns that answer the same messages, the first one preferred. `prompt` ends with a user turn.
    `margin` is how much better the chosen answer is: finite, in float32 too, and 1.0 where the data does not say."""

    prompt: list[Message]
    chosen: Message
    rejected: Message
    margin: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """Messages for the model to answer. The last one is a user turn."""

    messages: list[Message]


Example = Conversation | Preference | Prompt


def turn(role: str, content: str) -> Message:
    """A message."""
    return {"role": role, "content": content}


def usable(example: Example, kind: str) -> Example:
    """The part of an example that a kind of store holds.

    Args:
        kind: "preference", "sft", "unpaired" or "prompts". For "unpaired" a pair has both of its answers (`unpair`).

    Raises:
        Drop: it is empty, its turns are not in a usable order, or its answers are not to be trained on.
    """
    if kind == "prompts" or isinstance(example, Prompt):
        prompt = _as_prompt(example)
        _check_prompt(prompt.messages)
        return Prompt(unmarked(prompt.messages))
    if isinstance(example, Conversation):
        return _usable_conversation(replace(example, last_only=True) if kind == "unpaired" else example)
    _check_prompt(example.prompt)
    answers = [example.chosen] if kind == "sft" else [example.chosen, example.rejected]
    if not all(map(is_scored, answers)):
        raise Drop("marked as not to be trained on")
    _check_answers(answers)
    *messages, chosen, rejected = unmarked([*example.prompt, example.chosen, example.rejected])
    if kind == "sft":
        return Conversation([*messages, chosen], last_only=True)
    return Preference(messages, chosen, rejected, example.margin)


def unpair(example: Example) -> list[Example]:
    """A pair as two answers, the wanted one first; anything else as it is."""
    if not isinstance(example, Preference):
        return [example]
    sides = ((example.chosen, True), (example.rejected, False))
    return [Conversation([*example.prompt, answer], last_only=True, wanted=wanted) for answer, wanted in sides]


def is_scored(message: Message) -> bool:
    """Whether an assistant turn is to be trained on."""
    return message.get("scored", True)  # type: ignore[no-any-return]


def unmarked(messages: list[Message]) -> list[Message]:
    """Messages without the mark that says which turns count: where all of them are context, or one is the answer."""
    if not any("scored" in m for m in messages):
        return messages
    return [{key: value for key, value in m.items() if key != "scored"} for m in messages]


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


def _check_prompt(prompt: list[Message]) -> None:
    """Raise Drop unless the prompt begins and ends with a user turn (after the system message) that is not empty."""
    if not prompt or prompt[-1]["role"] != "user":
        raise Drop("the prompt does not end with a user turn" if prompt else "empty prompt")
    if not prompt[-1]["content"].strip():
        raise Drop("empty prompt")
    if next(m["role"] for m in prompt if m["role"] != "system") != "user":
        raise Drop("the first turn is not the user's")


def _check_answers(answers: list[Message]) -> None:
    """Raise Drop if an answer is empty."""
    if not all(answer["content"].strip() for answer in answers):
        raise Drop("empty response")


def _usable_conversation(conversation: Conversation) -> Conversation:
    """The conversation through its last scored turn; Drop if there is none, the prompt cannot be used, or an answer
    that would be scored is empty."""
    messages = list(conversation.messages)
    answers = [m for m in (messages[-1:] if conversation.last_only else messages) if m["role"] == "assistant"]
    if answers and not any(map(is_scored, answers)):
        raise Drop("marked as not to be trained on")
    while messages and not (messages[-1]["role"] == "assistant" and is_scored(messages[-1])):
        messages.pop()  # no scored turn follows it
    if not messages:
        raise Drop("no assistant turn")
    first_answer = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    _check_prompt(messages[: -1 if conversation.last_only else first_answer])
    scored = messages[-1:] if conversation.last_only else messages
    _check_answers([m for m in scored if m["role"] == "assistant" and is_scored(m)])
    return replace(conversation, messages=unmarked(messages) if conversation.last_only else messages)
