"""Keys of rows and of messages that mean something in the formats of the field, and which meaning each has.

What becomes of a meaning is in `data.fields`: it is honoured, or refused by an InputError, or its row is dropped and
counted. No key on these lists is ever passed over. A key that is on none has the meaning that its words give it
(`data.words`), and if they give none (an id, a language, a source) it is not read, and the store says so.

A key is there if its value is: null, "", [], {} and structures of nothing else, with which merged data sets fill what a
row does not have, mean that it is not, and so does NaN, the null of pandas. Keys are compared without case and
punctuation, so `chosen-rating` is `chosen_rating`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeGuard

from vdengine.data.words import guess_message, guess_row

# What a format reads by its exact name (`data.parsers`).
CONTENT = frozenset(
    "prompt chosen rejected messages conversations conversation completion instruction input output".split()
)

_TRAINED = (  # 1 or true: to be trained on; 0 or false: not. axolotl, OpenAI, Mistral, ms-swift, verl and others
    "train training trained trainable is_train is_trained is_training is_trainable train_on train_on_turn scored "
    "calculate_loss compute_loss loss loss_mask loss_weight loss_scale weight sample_weight"
)
_UNTRAINED = "masked is_masked mask_loss ignore_loss skip_loss no_loss ignore_in_loss no_train skip_training"  # 1: not
_REASONING = (
    "reasoning_content reasoning reasoning_text thinking thinking_content thinking_text thought thoughts "
    "reasoning_details thinking_blocks"
)
_TOOLS = "tools functions tool_calls tool_call function_call function_calls tool_choice parallel_tool_calls"
_MEDIA = "images image image_url videos video video_url audios audio audio_url input_audio pixel_values objects"

# Keys of a row, by meaning.
ROW = {
    "system": "system system_prompt system_message",  # a system turn
    "history": "history",  # turns before the question (LLaMA-Factory)
    "margin": "margin",
    "reasoning": _REASONING,
    "trained": f"{_TRAINED} loss_masks weights",
    "untrained": _UNTRAINED,
    "label": "label labels kto_tag desirable is_desirable",  # whether the answer is a wanted one (KTO)
    "tools": _TOOLS,
    "media": _MEDIA,
    "template": "chat_template chat_template_kwargs template_kwargs enable_thinking add_generation_prompt "
    "continue_final_message documents",
    "tokens": "input_ids token_ids prompt_input_ids prompt_ids completion_ids chosen_input_ids rejected_input_ids "
    "chosen_ids rejected_ids",
    "mask": "mask masks completion_mask assistant_mask assistant_masks response_mask labels_mask prompt_mask "
    "train_detail training_detail",  # what they mask, and what 1 means in them, differs from format to format
    "prefix": "prefix suffix",
    "topic": "topic",  # read by audits
}
# Keys of a message, by meaning.
MESSAGE = {
    "content": "role content from value",
    "name": "name",  # for the template, as in transformers
    "reasoning": _REASONING,
    "trained": _TRAINED,
    "untrained": _UNTRAINED,
    "tools": f"{_TOOLS} tool function tool_call_id tool_responses tool_results tool_plan ipython",
    "media": _MEDIA,
    "prefix": "prefix partial",  # an answer that is only begun (Mistral, DeepSeek)
    "refusal": "refusal",  # in place of the content (OpenAI)
    "channel": "channel",  # of gpt-oss
    "eot": "eot",  # false: the turn goes on (torchtune)
    "mask": "mask masks label labels train_detail training_detail",
}
# Types of the parts of a content that is a list, by meaning.
PARTS = {"text": "text input_text output_text", "reasoning": "thinking reasoning thought"}

# Names in other tools of what a format reads, for messages only.
ALIASES = {
    "prompt": "question query problem user user_input human input_text input source",
    "completion": "answer response reply output target solution assistant output_text gpt",
    "chosen": "preferred preferred_output chosen_conversations chosen_messages chosen_response "
    "response_chosen winner winning better preferred_response",
    "rejected": "non_preferred_output dispreferred rejected_conversations rejected_response response_rejected "
    "loser losing worse dispreferred_response rejected_messages",
    "messages": "dialog dialogue turns chat chats dialogs conv",
    "instruction": "question query problem task",
    "output": "answer response target completion",
    "conversation": "dialog dialogue",
}


class Unread:
    """Stands for the value of a column that was not read."""

    def __repr__(self) -> str:
        return "(not read)"


UNREAD = Unread()


@lru_cache(maxsize=4096)
def plain(key: str) -> str:
    """A key without case and punctuation; one that cannot be printed as it is."""
    if not key.isprintable():
        return key
    return "".join(c for c in key.lower() if c.isalnum())


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {plain(key): meaning for meaning, keys in table.items() for key in keys.split()}


_ROW, _MESSAGE, _PARTS = _inverse(ROW), _inverse(MESSAGE), _inverse(PARTS)


def row_meaning(key: str) -> str | None:
    """The meaning of a row's key, listed or guessed (`data.words.guess_row`); None: it has none that is known."""
    return _ROW.get(plain(key)) or guess_row(key)


def message_meaning(key: str) -> str | None:
    """The meaning of a message's key, listed or guessed (`data.words.guess_message`); None: it has none that is
    known."""
    return _MESSAGE.get(plain(key)) or guess_message(key)


def part_meaning(kind: str) -> str | None:
    """The meaning of a type of content parts; None: it is not text."""
    return _PARTS.get(plain(kind))


def is_read(key: str) -> bool:
    """Whether the values of a column are read: it has a meaning. Others may be large, or hold what no row needs."""
    return key in CONTENT or row_meaning(key) is not None


def absent(value: Any) -> bool:
    """Whether a value says that nothing is there: null, blank text, or a list or object of nothing else."""
    if isinstance(value, str):
        return not value.strip()
    if value is None:
        return True
    if not isinstance(value, dict | list | tuple):
        return False
    pending: list[Any] = [value]  # not recursive: a row may be nested deeply
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
        elif not (item is None or (isinstance(item, str) and not item.strip())):
            return False
    return True


def missing(value: Any) -> bool:
    """Whether a value that should be text or messages is absent, or NaN, which pandas has in place of it."""
    return absent(value) or (isinstance(value, float) and math.isnan(value))


def is_null_text(value: Any) -> bool:
    """Whether it is the text of nothing, as columns of text have it ("[]", "None")."""
    return isinstance(value, str) and value.strip().lower() in ("[]", "{}", "null", "none", "nan")


def is_no(value: Any) -> bool:
    """Whether a value says no: it is missing, false, or the text of nothing."""
    return value is False or missing(value) or is_null_text(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and its difference from another one is finite in float32."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e38


def yes_or_no(value: Any) -> bool | None:
    """True or false, also as 1 or 0; None: it is neither."""
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def said(value: Any) -> bool | None:
    """`yes_or_no`, also of its text; None: it is neither."""
    if isinstance(value, str):
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            value.strip().lower()
        )
    return yes_or_no(value)
