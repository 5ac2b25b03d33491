"""What a key that is on no list of `data.meanings` seems to say, by the words in it.

Lists do not end: `exclude_from_loss`, `trainOnTurns` and `no_grad` are all spellings of one thing. So a key is split
into words, and words that speak of training, of the two sides of a pair, of thinking, of a system prompt or of media
give it a meaning. A guess is read only where it has one reading (`rm_score_chosen`); else `data.fields` looks at the
value, and refuses the row or passes by. Words of bookkeeping (`train_source`, `cot_type`) say that a key only describes
the row.
"""

from __future__ import annotations

import re
from functools import lru_cache

# 0: of the chosen answer, 1: of the rejected one.
_SIDES = {
    "chosen": 0, "preferred": 0, "winner": 0, "winning": 0, "better": 0,
    "rejected": 1, "dispreferred": 1, "loser": 1, "losing": 1, "worse": 1,
}  # fmt: skip
_SCORE = frozenset("score rating reward logit grade".split())
_DIFFERENCE = frozenset("diff difference delta gap".split())
# Speak of the loss whatever stands beside them, and of which rows and turns are taken.
_LOSS = frozenset(
    "loss train trained training trainable untrained mask masked masking unmask unmasked grad gradient supervise "
    "supervised supervision unsupervised backprop backpropagate freeze frozen tune finetune "
    "finetuned finetuning".split()
)
_LEAVE = frozenset(
    "ignore ignored skip skipped exclude excluded delete deleted discard discarded omit omitted remove removed "
    "drop dropped invalid bad unlearn".split()
)
_TAKE = frozenset("keep kept include included learn learned learnable target targeted".split())
_WEIGHT = frozenset("weight weighted weighting importance".split())
_MARKS = _LOSS | _LEAVE | _TAKE | _WEIGHT
_EVENT = frozenset("tie tied swap swapped flip flipped reversed inverted".split())
_VERDICT = _EVENT | frozenset("winner loser preferred preference better strength".split())
_WANTED = frozenset("desirable desired good wanted chosen preferred accept accepted approved valid".split())
_ANSWER = frozenset("answer response reply output completion message conversation text content".split())
_THOUGHT = frozenset("think thinking thought cot reasoning scratchpad".split())
_PERHAPS = frozenset("rationale analysis deliberation".split())  # the model's, or of who labelled the row
_OF_THOUGHT = frozenset(
    "content text trace step trajectory process chain of model deepseek gemini claude qwen gpt r 1 complex long "
    "internal hidden inner private assistant answer response output block".split()
)
_SYSTEM = frozenset("sys system msg message prompt text content instruction".split())
_BESIDE = frozenset("persona preamble developer context passage background guideline meta".split())
_OF_BESIDE = _SYSTEM | frozenset("bot ai assistant".split())
_MEDIA = frozenset("image img picture photo screenshot video audio pixel multimodal".split())
_TOOL = frozenset("tool".split())
# Describe a row or a turn, and ask for nothing.
_ABOUT = frozenset(
    "id uid uuid idx index source type category model dataset set date time timestamp version license language lang "
    "count num number length reason note comment status author annotator method hash split created updated".split()
)
_WHICH = frozenset("id idx index number num length split set status".split())  # of the loss: which turns have it
_OF_MEDIA = frozenset("description caption title transcript topic size width height duration prompt style".split())
# Of which a 0, 1, true or false of a message is no mark of it.
_HARMLESS = _ABOUT | frozenset(
    "toxic toxicity redacted flagged moderation moderated edited translated synthetic anonymous verified markdown "
    "human bot user turn round rank position order token seed temperature level depth sequence node parent child like "
    "vote upvote downvote language country state score rating reward quality header streaming cached "
    "cost latency".split()
)
# Columns of public data sets whose words say more than they mean.
_KNOWN = frozenset("skip_prompt_formatting used_in_training in_gsm8k_train".split())

_PIECES = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SMALL = "is|do|no|not|to|in|on|of|for|from|with|use|calc|turn|should|be|has"
_LUMP = re.compile(f"({_SMALL}|{'|'.join(sorted(_LOSS, key=len, reverse=True))})")


@lru_cache(maxsize=4096)
def words(key: str) -> tuple[str, ...]:
    """The words of a key in lower case, in the singular: `trainOnTurns` is train, on, turn."""
    found: list[str] = []
    for piece in _PIECES.findall(key.replace("CoT", "Cot")):
        word = piece.lower()
        parts = _LUMP.findall(word)
        found += parts if len(parts) > 1 and "".join(parts) == word and _LOSS & {*parts} else [_singular(word)]
    return tuple(found)


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "is", "us")) else word


def side(key: str) -> int | None:
    """The answer of a pair that a key belongs to, 0 for the chosen one and 1 for the rejected one; None: neither."""
    named = words(key)
    sides = {_SIDES[w] for w in named if w in _SIDES}
    if len(sides) != 1:
        return None
    return 1 if "non" in named or "not" in named else sides.pop()


def without_side(key: str) -> tuple[str, ...]:
    """The words of a key, its side left open: equal for the two keys of a pair."""
    return tuple("*" if word in _SIDES else word for word in words(key))


@lru_cache(maxsize=4096)
def guess_row(key: str) -> str | None:
    """The meaning that the words of a row's key give it; None: none.

    "scores" (of one side), "margin", "ratings" (of no side), "thoughts" (of one side), "reasoning", "perhaps"
    (thinking, or a note), "system", "beside" (content that no format reads), "answer" (of one side), "wanted", "mark",
    "verdict" (which side is the better one), "media", "tools".
    """
    named = frozenset(words(key))
    if key.lower() in _KNOWN:
        return None
    about = bool(named & (_ABOUT - _WHICH if named & _LOSS else _ABOUT))
    of_side = side(key) is not None
    thought = _thinking(named - _SIDES.keys() if of_side else named)
    if thought is not None and (of_side or thought != "perhaps" or not about):
        return "thoughts" if of_side else thought
    if about or (named & _THOUGHT and not named & _LOSS):
        return None
    if "margin" in named or (named & _DIFFERENCE and named & (_SCORE | {"preference", "quality"})):
        return "margin"
    if named & _SCORE:
        return "scores" if of_side else "ratings"
    if named & _LOSS or named & _WEIGHT:
        return "mark"
    if of_side and named & _ANSWER:
        return "answer"
    if named & _MEDIA:
        return None if named & _OF_MEDIA else "media"
    if named & _TOOL:
        return "tools"
    if named & {"sys", "system"} and named <= _SYSTEM:
        return "system"
    if named == {"instruction"} or named & _BESIDE and named <= _BESIDE | _OF_BESIDE:
        return "beside"
    if _is_wish(named):
        return "wanted"
    if named & _VERDICT:
        return "verdict"
    return "mark" if named & _MARKS else None


@lru_cache(maxsize=4096)
def guess_message(key: str) -> str | None:
    """The meaning that the words of a message's key give it, as `guess_row`; "harmless": a 0 or 1 is no mark of it."""
    named = frozenset(words(key))
    if (thought := _thinking(named)) is not None:
        return thought
    if named & _THOUGHT and not named & _LOSS:
        return None
    if named & _SCORE | named & {"margin"}:
        return "ratings"
    if named & _MARKS:
        return "mark"
    if named & _MEDIA and not named & (_OF_MEDIA | _ABOUT):
        return "media"
    return "harmless" if named & _HARMLESS else None


def _thinking(named: frozenset[str]) -> str | None:
    """ "reasoning" or "perhaps" if words speak of thinking and of nothing else."""
    if named & _THOUGHT and named <= _THOUGHT | _PERHAPS | _OF_THOUGHT:
        return "reasoning"
    return "perhaps" if named & _PERHAPS and named <= _PERHAPS | _OF_THOUGHT else None


def _is_wish(named: frozenset[str]) -> bool:
    """Whether words ask if an answer is a wanted one, as `is_good` and `completion_label` do."""
    if not named <= _WANTED | _ANSWER | {"is", "was", "kto", "label", "tag"}:
        return False
    return bool(named & _WANTED) or bool(named & {"label", "tag"} and named & (_ANSWER | {"kto"}))


def leaves_out(key: str) -> bool:
    """Whether 1 or true of a key of the meaning "mark" leaves its row out, and 0 or false asks for nothing."""
    named = {*words(key)}
    return bool(named & _LEAVE) and not named & (_LOSS | _WEIGHT)


def takes(key: str) -> bool:
    """The opposite of `leaves_out`: 1 or true asks for nothing."""
    named = {*words(key)}
    return bool(named & (_TAKE | _WEIGHT)) and not named & (_LOSS | _LEAVE)


def both_sides(key: str) -> tuple[str, str]:
    """A key of one side and that of the other, for messages, the chosen one first."""
    pairs = dict(zip([w for w, s in _SIDES.items() if not s], [w for w, s in _SIDES.items() if s], strict=True))
    other = pairs | {rejected: chosen for chosen, rejected in pairs.items()}
    word = next((w for w in sorted(other, key=len, reverse=True) if w in key.lower()), "")
    partner = re.sub(word, other.get(word, ""), key, flags=re.IGNORECASE)
    return (partner, key) if side(key) else (key, partner)


def weighs(key: str) -> bool:
    """Whether a mark is a weight, of which 1 asks for nothing."""
    return bool(_WEIGHT & {*words(key)})


def is_event(key: str) -> bool:
    """Whether a verdict is about something that may have happened to the pair (a tie, a swap): false is harmless."""
    return bool(_EVENT & {*words(key)})


def speaks_of_loss(key: str) -> bool:
    """Whether a mark speaks of the loss itself, so that any value but a sentence is one."""
    return bool(_LOSS & {*words(key)})
