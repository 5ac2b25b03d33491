"""The formats of rows: what each needs, and the function that reads one row of it.

All of them stand side by side, because what they share is much: whatever the format, a question that a row repeats is
read once, and what a key means is decided in `data.fields`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vdengine.data.examples import Conversation, Drop, Example, Message, Preference, Prompt, turn
from vdengine.data.fields import Fields

# What each format needs; the text is shown in error messages.
FORMATS = {
    "preference": "chosen and rejected (text or messages), prompt (text or messages; or instruction and input, or "
    "messages or conversations that end with the question; may be left out when chosen and rejected are messages that "
    "begin alike), margin (a number; may be left out)",
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
# Answers of a row; None: as many as its conversation has.
ANSWERS = dict.fromkeys(PREFERENCE_FORMATS, 2) | {
    "messages": None,
    "wildchat": None,
    "prompt_completion": 1,
    "alpaca": 1,
    "prompt": 0,
}
_REPEATED = "an answer repeats the prompt as text"
_HH_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")


def is_transcript(text: object) -> bool:
    """Whether it is text that begins as an HH-RLHF transcript."""
    return isinstance(text, str) and _HH_TURN.match(text) is not None


# ------------------------------------------------------------------------------------------------------ pieces


def _transcript(text: str, row: Fields, field: str) -> list[Message]:
    """The turns of an HH-RLHF transcript, stripped. Successive turns of one speaker are joined by a blank line."""
    if not text.strip():
        raise Drop(f"no '{field}'")
    parts = _HH_TURN.split(text)
    if len(parts) == 1:
        raise row.error(f"field '{field}' has no 'Human:' turn; {row.needs}")
    if parts[0].strip():
        raise Drop("text before the first turn")
    turns: list[Message] = []
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1] = turn(role, f"{turns[-1]['content']}\n\n{content.strip()}".strip())
        else:
            turns.append(turn(role, content.strip()))
    return turns


def _question(row: Fields) -> list[Message]:
    """The messages of the field "prompt", after the row's history and system prompt.

    Raises:
        InputError: as `Fields.text_or_messages`; an `input` beside it, which no format with a prompt has.
    """
    if row.has("input"):
        raise row.error("field 'input' stands beside 'prompt'; join them (format alpaca has instruction and input)")
    value = row.value("prompt", (str, list))
    if is_transcript(value) and value.rstrip().endswith("Assistant:"):
        messages = _transcript(value, row, "prompt")[:-1]  # a transcript up to the answer
    else:
        messages = row.text_or_messages("prompt", "user")
    return row.with_system([*row.history(isinstance(value, str)), *messages])


def _question_of_pair(row: Fields) -> list[Message]:
    """The messages that the answers of a pair follow: those of "prompt"; where it is not there those of "instruction"
    and "input", or of "messages" or "conversations" (LLaMA-Factory).

    Raises:
        InputError: as `_question`; messages that do not end with a user turn.
    """
    key = next((k for k in ("messages", "conversations") if row.has(k)), None)
    if row.has("prompt") or (key is None and not row.has("instruction")):
        return _question(row)
    if row.has("instruction"):
        return row.with_system([*row.history(), _instruction(row)])
    if key is None:
        raise RuntimeError("a row without a question")
    row.history(of_text=False)
    messages = row.messages(key)
    if messages and messages[-1]["role"] != "user":
        raise row.error(
            f"field '{key}' ends with an answer, beside 'chosen' and 'rejected'; give it without its answer"
        )
    return row.with_system(messages)


def _instruction(row: Fields) -> Message:
    """The user turn of "instruction" and "input"."""
    instruction, extra = row.text("instruction"), row.text("input") if row.has("input") else ""
    return turn("user", f"{instruction}\n\n{extra}" if extra.strip() else instruction)


def _joined(prompt: list[Message], before: list[Message]) -> list[Message]:
    """A prompt, and the turns before an answer that repeat it or go on from it: the turns of both, each once.

    Raises:
        Drop: they do not fit together.
    """
    size = len(prompt)
    if len(before) >= size and _alike(before[len(before) - size :], prompt):
        return [*before[: len(before) - size], *prompt]  # the prompt is the end of them
    for overlap in range(min(size, len(before)), 0, -1):
        if _alike(prompt[size - overlap :], before[:overlap]):
            return [*prompt, *before[overlap:]]
    if before and prompt and (before[0]["role"] == "system" or before[0]["role"] == prompt[-1]["role"] == "user"):
        raise Drop("the prompt is not what the answers follow")
    return [*prompt, *before]


def _alike(a: list[Message], b: list[Message]) -> bool:
    """Whether messages say the same, but for white space."""
    return len(a) == len(b) and all(
        x["role"] == y["role"] and x["content"].split() == y["content"].split() for x, y in zip(a, b, strict=True)
    )


def _pair(row: Fields, chosen: list[Message], rejected: list[Message]) -> Preference:
    """Two conversations, split at the first turn in which they differ. This must be an assistant turn and the last one
    of both (else Drop): after an earlier one the later turns of the two sides would answer different texts."""
    margin = row.margin()
    chosen, rejected = (
        [*turns[:-1], row.thinking(turns[-1], of)] if turns and turns[-1]["role"] == "assistant" else turns
        for of, turns in enumerate((chosen, rejected))
    )
    if chosen == rejected:
        raise Drop("chosen equals rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == min(len(chosen), len(rejected)):
        raise Drop("one transcript is the beginning of the other")
    if chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise Drop("transcripts differ in a turn that is not the assistant's")
    if shared != len(chosen) - 1 or shared != len(rejected) - 1:
        raise Drop("transcripts differ before the last turn")
    return Preference(chosen[:shared], chosen[shared], rejected[shared], margin)


# ------------------------------------------------------------------------------------------------------ formats


def _hh_rlhf(row: Fields) -> Preference:
    row.history(of_text=False)
    chosen, rejected = (row.with_system(_transcript(row.text(k), row, k)) for k in ("chosen", "rejected"))
    return _pair(row, chosen, rejected)


def _ultrafeedback(row: Fields) -> Preference:
    row.history(of_text=False)
    prompt = [turn("user", row.text("prompt"))]
    chosen, rejected = (row.messages(key) for key in ("chosen", "rejected"))
    pair = _pair(row, chosen, rejected)
    _joined(prompt, pair.prompt)  # it repeats a turn of the messages, else the row is dropped
    return Preference(row.with_system(pair.prompt), pair.chosen, pair.rejected, pair.margin)


def _preference(row: Fields) -> Preference:
    values = [row.value(key, (str, list, dict)) for key in ("chosen", "rejected")]
    if all(is_transcript(v) and "\n\nAssistant:" in v for v in values) and row.has("prompt"):
        chosen, rejected = (_transcript(row.text(key), row, key) for key in ("chosen", "rejected"))
    else:
        chosen, rejected = (row.text_or_messages(key, "assistant") for key in ("chosen", "rejected"))
    whole = all(any(m["role"] == "user" for m in side) for side in (chosen, rejected))
    asked = any(row.has(key) for key in ("prompt", "instruction", "messages", "conversations"))
    if not row.has("prompt") and not any(isinstance(value, str) for value in values) and (whole or not asked):
        row.history(of_text=False)
        chosen, rejected = (row.with_system(side) for side in (chosen, rejected))
        return _pair(row, chosen, rejected)
    prompt = _question_of_pair(row)
    if any(isinstance(text, str) and _repeats(text, prompt) for text in values):
        raise Drop(_REPEATED)
    if not chosen or not rejected:
        raise Drop("empty response")
    chosen, rejected = ([*_joined(prompt, side[:-1]), side[-1]] for side in (chosen, rejected))
    return _pair(row, chosen, rejected)


def _repeats(answer: str, prompt: list[Message]) -> bool:
    """Whether an answer begins with the whole text of the question, and goes on in a new line."""
    question = prompt[-1]["content"].strip() if prompt else ""
    if not question or not answer.strip().startswith(question):
        return False
    return re.match(r"[ \t]*\n", answer.strip()[len(question) :]) is not None


def _chat(row: Fields) -> Conversation:
    key = "conversations" if row.has("conversations") and not row.has("messages") else "messages"
    return _conversation(row, key)


def _wildchat(row: Fields) -> Conversation:
    return _conversation(row, "conversation")


def _conversation(row: Fields, key: str) -> Conversation:
    row.history(of_text=False)  # an error if there is one
    return Conversation(row.with_system(row.mark_turns(row.messages(key), key)))


def _prompt_completion(row: Fields) -> Conversation:
    prompt = _question(row)
    completion = row.text_or_messages("completion", "assistant")
    if len(completion) == 1 and _repeats(completion[0]["content"], prompt):
        raise Drop(_REPEATED)
    before, answer = completion[:-1], completion[-1:]
    joined = _joined(prompt, before)
    answered, given = (sum(m["role"] == "assistant" for m in turns) for turns in (joined, prompt))
    if not answer or answer[0]["role"] != "assistant" or answered > given:
        raise Drop("the completion is not one assistant turn")
    return Conversation([*joined, row.thinking(answer[0])], last_only=True)


def _alpaca(row: Fields) -> Conversation:
    question = _instruction(row)
    answer = row.thinking(turn("assistant", row.text("output")))
    return Conversation([*row.with_system(row.history()), question, answer], last_only=True)


def _prompt(row: Fields) -> Prompt:
    return Prompt(_question(row))


PARSERS: dict[str, Callable[[Fields], Example]] = {
    "preference": _preference,
    "hh_rlhf": _hh_rlhf,
    "ultrafeedback": _ultrafeedback,
    "messages": _chat,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "wildchat": _wildchat,
    "prompt": _prompt,
}
