"""Chat templates: messages in, token ids and the mask of scored tokens out.

A checkpoint's template is a Jinja program from outside: it runs in a process of its own (`text.template_worker`).

Text becomes ids in segments: the prompt up to an assistant turn is one, the turn the next. Nothing is tokenised
across that boundary, as nothing is when the model answers. Special tokens come from the template only: the same
characters inside a message are plain text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vdengine.errors import InputError
from vdengine.text.template_worker import CLOSE_MARK, CPU_SECONDS, DATE, OPEN_MARK, TemplateWorker

Messages = Sequence[dict[str, Any]]  # {"role": ..., "content": ...} and what else the template reads

RENDER_VERSION = 1  # part of the hash of stored rows: raise it when ids or masks change
# Noncharacters: valid in a Python string, never in text.
_HOLE = "\ufdd2"
_PLACE = 0xF0000  # private plane: where special tokens inside messages hide while the template runs

PLAIN = """\
{%- for message in messages -%}
{%- if not loop.first -%}{{ '\\n\\n' }}{%- endif -%}
{%- if message.role == 'assistant' -%}
{{ 'Assistant:' }}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
{%- elif message.role == 'user' -%}{{ 'User: ' + message.content }}
{%- else -%}{{ message.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n\\nAssistant:' }}{%- endif -%}
"""

# The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca); a system message stands for its first line.
ALPACA = """\
{%- if messages[0].role == 'system' -%}
{%- set head, rest = messages[0].content, messages[1:] -%}
{%- else -%}
{%- set head, rest = 'Below is an instruction that describes a task. Write a response that appropriately completes \
the request.', messages -%}
{%- endif -%}
{%- set roles = rest | map(attribute='role') | list -%}
{%- if roles != ['user'] and roles != ['user', 'assistant'] -%}
{{ raise_exception('the alpaca template takes one instruction (user) and one answer (assistant)') }}
{%- endif -%}
{{ head + '\\n\\n### Instruction:\\n' + rest[0].content + '\\n\\n### Response:' }}
{%- if rest | length == 2 -%}
{% generation %}{{ rest[1].content + eos_token }}{% endgeneration %}
{%- endif -%}
"""

_BUILT_IN = {"plain": PLAIN, "alpaca": ALPACA}


class Vocabulary(Protocol):
    """What a renderer needs of a tokenizer (`text.tokenizer.Tokenizer`, which knows its own renderer)."""

    source: str
    special_tokens: dict[str, str]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None
    chat_template: str | None

    @property
    def uses_bos(self) -> bool: ...

    @property
    def added_special_tokens(self) -> list[Any]: ...

    @property
    def stop_ids(self) -> list[int]: ...

    @property
    def hash(self) -> str: ...

    def encode(self, text: str, special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Rendered(NamedTuple):
    """A prompt and the branches that continue it, as ids; `scored` has one mask per branch."""

    prompt: list[int]
    branches: list[list[int]]
    scored: list[list[bool]]


class RenderedText(NamedTuple):
    """A whole conversation: ids, and which of them are scored."""

    ids: list[int]
    scored: list[bool]


class _Turn(NamedTuple):
    """Rendered text with the character spans that are scored; `hidden` maps placeholders to what they stand for."""

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str]


class Renderer:
    """A chat template bound to a tokenizer. Make it once; its worker process starts with the first rendering.

    template: "auto" (the tokenizer's own), "plain" ("User: ...", "Assistant: ..." and EOS, for base models),
        "alpaca" (one instruction, one answer), or the path of a .jinja file.
    variables: what else the template reads, e.g. {"enable_thinking": False} for Qwen-3.

    Raises InputError: no such template; later, in every method, a template or messages that do not go together, and
    a template that breaks its limits of time or memory.
    """

    def __init__(
        self,
        tokenizer: Vocabulary,
        template: str = "auto",
        variables: dict[str, Any] | None = None,
        cpu_seconds: float = CPU_SECONDS,
    ) -> None:
        self.tokenizer = tokenizer
        self.name = f"template {template}" if template != "auto" else f"{tokenizer.source}: chat template"
        self.template = _find_template(tokenizer, template)
        self.variables = dict(variables or {})
        self._marks = re.search(r"\{%[-+]?\s*generation\b", self.template) is not None
        bos, wanted = tokenizer.bos_id, tokenizer.uses_bos if template in _BUILT_IN else tokenizer.add_bos
        self._bos = bos if wanted else None
        if template in _BUILT_IN and tokenizer.eos_id is None:
            raise InputError(f"{self.name}: the tokenizer {tokenizer.source} has no EOS to end an answer with")
        context = {"tools": None, "documents": None} | tokenizer.special_tokens | self.variables
        self._worker = TemplateWorker(self.name, self.template, context, cpu_seconds)
        specials = tokenizer.added_special_tokens
        texts = {t.content for t in specials} | set(tokenizer.special_tokens.values())
        longest_first = sorted(texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if texts else None
        odd = f"[{chr(_PLACE)}-\U000ffffd{OPEN_MARK}-{_HOLE}]"
        self._odd, self._hide = re.compile(odd), re.compile("|".join([*map(re.escape, longest_first), odd]))
        # most text holds none: looking for what all of them begin with ("<|") is 600x faster than 256 alternatives
        self._prefix = os.path.commonprefix(longest_first)
        # how a special token takes part of the text around it, when the text is split by hand
        around = {t.content: (r"\s*" if t.lstrip else "", r"\s*" if t.rstrip else "") for t in specials}
        parts = (around.get(t, ("", ""))[0] + re.escape(t) + around.get(t, ("", ""))[1] for t in longest_first)
        self._split = re.compile("(" + "|".join(parts) + ")") if texts else None

    @cached_property
    def hash(self) -> str:
        """Content hash of all that decides the ids: tokenizer, template, variables, this module's version."""
        what = [RENDER_VERSION, DATE, self.tokenizer.hash, self.template, self.variables, self._bos]
        return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()

    # --- what the data layer and the probes call ---

    def conversation_trees(self, messages: Messages) -> list[Rendered]:
        """SFT trees of a conversation, scored on every assistant turn through its end-of-turn token.

        One tree of one branch, which starts after the first assistant header and ends with the last scored token.
        Where the template rewrites earlier turns once others follow (Qwen-3 drops their thinking), one tree
        per assistant turn instead, each as the model sees it at that turn.
        """
        turns = self._turns(messages)
        if self._marks:
            full = self._render([(messages, False)])[0]
            return [self._tree(full, 0, full.spans)]
        full, prompts, answers = self._turn_by_turn(messages, turns)
        spans = self._spans(full, prompts, answers, messages, turns)
        if all(span is not None for span in spans):
            return [self._tree(full, 0, [span for span in spans if span is not None])]
        trees = []
        for i, prompt, answer in zip(turns, prompts, answers, strict=True):
            start = self._answer_start(prompt, answer, messages[:i])
            trees.append(self._tree(answer, 0, [(start, self._end(answer, start))]))
        return trees

    def response_tree(self, messages: Messages, responses: Sequence[str]) -> Rendered:
        """The messages with the generation prompt, and each response (with its end-of-turn token) as a branch.

        A branch is what the template renders for a final assistant turn, less the prompt: with Qwen-3 it begins
        with the empty thinking block. It ends with the end-of-turn token; a newline after it is left out.
        A response that renders to nothing is an empty branch.
        """
        if not responses:
            raise InputError("response_tree: no response")
        jobs = [(messages, True)] + [([*messages, {"role": "assistant", "content": r}], False) for r in responses]
        prompt, *answers = self._render(jobs)
        if all(a.text.startswith(prompt.text) for a in answers):
            start = len(prompt.text)
        else:
            start = self._header_end(messages)
            if not all(a.text[:start] == answers[0].text[:start] for a in answers):
                raise InputError(f"{self.name}: the prompt comes out differently for different responses")
        branches, scored = [], []
        for answer in answers:
            spans = answer.spans if self._marks else [(start, self._end(answer, start))]
            branch, mask = self._segments(answer, start, spans)
            branches.append(branch)
            scored.append(mask)
        return Rendered(self._encode_start(answers[0].text[:start], answers[0].hidden), branches, scored)

    def prompt_ids(self, messages: Messages, opening: bool = False) -> list[int]:
        """Ids of the messages with the generation prompt: what the model sees before it answers.

        opening: also what the template puts before the answer's own words (Qwen-3: the empty thinking block), so
        that `opening_ids` can follow.
        """
        if opening:
            prompt, start = self._answer_probe(messages)
            return self._encode_start(prompt.text[: start - len(self._lead)], prompt.hidden)
        prompt = self._render([(messages, True)])[0]
        return self._encode_start(prompt.text, prompt.hidden)

    def opening_ids(self, text: str) -> list[int]:
        """Ids of the first words of an answer, without an end-of-turn token; they follow `prompt_ids`."""
        return self.tokenizer.encode(self._lead + text)

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> RenderedText:
        """All ids of a conversation as the template renders it, and the mask of the scored ones.

        With a template that rewrites earlier turns, those that no longer stand as the model saw them are unscored.
        """
        turns = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
        if self._marks or not turns:
            full = self._render([(messages, add_generation_prompt)])[0]
            spans = full.spans
        else:
            full, prompts, answers = self._turn_by_turn(messages, turns, add_generation_prompt)
            spans = [s for s in self._spans(full, prompts, answers, messages, turns) if s is not None]
        if not spans:
            ids = self._encode_start(full.text, full.hidden)
            return RenderedText(ids, [False] * len(ids))
        prompt = self._encode_start(full.text[: spans[0][0]], full.hidden)
        ids, mask = self._segments(full, spans[0][0], spans, tail=True)
        return RenderedText(prompt + ids, [False] * len(prompt) + mask)

    def text(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text."""
        turn = self._render([(messages, add_generation_prompt)])[0]
        return _restore(turn.text, turn.hidden)

    # --- turns and spans ---

    @cached_property
    def end_of_turn(self) -> str | None:
        """The special token that ends an assistant turn; None when the template writes none."""
        turn, start = self._answer_probe([{"role": "user", "content": "?"}])
        match = self._special.search(turn.text, start + 1) if self._special else None
        return match[0] if match else None

    @cached_property
    def _lead(self) -> str:
        """Spaces that the template puts between its header and an answer ("Assistant: ..."): part of the answer's
        first token."""
        turn, start = self._answer_probe([{"role": "user", "content": "?"}])
        before = turn.text[:start]
        return before[len(before.rstrip(" ")) :]

    def _answer_probe(self, messages: Messages) -> tuple[_Turn, int]:
        """The messages with an answer of one odd character, and where that stands."""
        turn = self._render([([*messages, {"role": "assistant", "content": _HOLE}], False)], holes=True)[0]
        start = turn.text.rfind(_HOLE)
        if start < 0:
            raise InputError(f"{self.name}: it yields no scored token: what the assistant says is not rendered")
        return turn, start

    def _header_end(self, messages: Messages) -> int:
        return self._answer_probe(messages)[1]

    def _answer_start(self, prompt: _Turn, answer: _Turn, messages: Messages) -> int:
        """Where the assistant turn begins in `answer`, whose messages are `messages` and one more.

        The generation prompt may hold what a given answer does not (DeepSeek-R1's opens the thinking): then behind
        the header, where the answer's own words begin.
        """
        return len(prompt.text) if answer.text.startswith(prompt.text) else self._header_end(messages)

    def _end(self, answer: _Turn, start: int) -> int:
        """The end of the final assistant turn: behind the last end-of-turn token.

        Behind the last, because a template may end several channels of one turn. Some templates (Llama-3's first
        one) go on with the next assistant header, asked or not; that is not part of the turn.
        """
        if self.end_of_turn is None:
            return len(answer.text.rstrip())
        at = answer.text.rfind(self.end_of_turn, start)
        if at < 0:
            raise InputError(f"{self.name}: an assistant turn came out without its end token {self.end_of_turn!r}")
        return at + len(self.end_of_turn)

    def _turns(self, messages: Messages) -> list[int]:
        turns = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
        if not turns:
            raise InputError("no assistant turn among the messages")
        return turns

    def _turn_by_turn(
        self, messages: Messages, turns: list[int], add_generation_prompt: bool = False
    ) -> tuple[_Turn, list[_Turn], list[_Turn]]:
        """The whole conversation, and for each assistant turn its prompt and the conversation through it."""
        whole = not add_generation_prompt and turns[-1] == len(messages) - 1  # the last turn's rendering is the whole's
        jobs = [(messages[:i], True) for i in turns] + [(messages[: i + 1], False) for i in turns]
        if not whole:
            jobs.append((messages, add_generation_prompt))
        out = self._render(jobs)
        prompts, answers = out[: len(turns)], out[len(turns) : 2 * len(turns)]
        return out[-1], prompts, answers

    def _spans(
        self, full: _Turn, prompts: list[_Turn], answers: list[_Turn], messages: Messages, turns: list[int]
    ) -> list[tuple[int, int] | None]:
        """Each assistant turn's place in the whole text; None where it does not stand there as it was answered."""
        spans: list[tuple[int, int] | None] = []
        for i, prompt, answer in zip(turns, prompts, answers, strict=True):
            start = self._answer_start(prompt, answer, messages[:i])
            end = self._end(answer, start)
            spans.append((start, end) if full.text.startswith(answer.text[:end]) else None)
        return spans

    # --- text to ids ---

    def _tree(self, turn: _Turn, start: int, spans: list[tuple[int, int]]) -> Rendered:
        """One branch, from the first span to the end of the last."""
        if spans:
            start = spans[0][0]
            branch, mask = self._segments(turn, start, spans)
            if any(mask):
                return Rendered(self._encode_start(turn.text[:start], turn.hidden), [branch], [mask])
        raise InputError(f"{self.name}: it yields no scored token for these messages")

    def _segments(
        self, turn: _Turn, start: int, spans: Iterable[tuple[int, int]], tail: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids and mask of turn.text[start:], through the last span or (tail) to its end."""
        ids: list[int] = []
        mask: list[bool] = []

        def add(first: int, last: int, scored: bool) -> None:
            part = self._encode(turn.text[first:last], turn.hidden) if last > first else []
            ids.extend(part)
            mask.extend([scored] * len(part))

        for first, last in spans:
            if last <= start:
                continue
            add(start, first, False)
            add(max(start, first), last, True)
            start = last
        if tail:
            add(start, len(turn.text), False)
        return ids, mask

    def _encode_start(self, text: str, hidden: dict[str, str]) -> list[int]:
        """Ids of text at the very start: with exactly one BOS if the tokenizer uses one."""
        ids = self._encode(text, hidden)
        bos = self.tokenizer.bos_id
        if self._bos is not None and ids[:1] != [self._bos]:
            return [self._bos, *ids]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def _encode(self, text: str, hidden: dict[str, str]) -> list[int]:
        if not hidden:
            return self.tokenizer.encode(text, special=True)
        # Messages that hold special tokens as text: the template's own ones are cut out first, then the rest is plain
        ids: list[int] = []
        for i, part in enumerate(self._split.split(text) if self._split else [text]):
            if part:
                ids += self.tokenizer.encode(part if i % 2 else _restore(part, hidden), special=i % 2 == 1)
        return ids

    # --- the template ---

    def _render(self, jobs: Sequence[tuple[Messages, bool]], holes: bool = False) -> list[_Turn]:
        """Renders (messages, add_generation_prompt) pairs in one call of the worker."""
        hidden: dict[str, str] = {}  # one for all jobs: their texts are compared

        def hide(value: Any) -> Any:
            if isinstance(value, str):
                plain = self._prefix not in value and (value.isascii() or not self._odd.search(value))
                return value if plain or (holes and value == _HOLE) else self._hide.sub(place, value)
            if isinstance(value, list):
                return [hide(v) for v in value]
            return {k: hide(v) for k, v in value.items()} if isinstance(value, dict) else value

        def place(match: re.Match[str]) -> str:
            if match[0] not in places:
                places[match[0]] = chr(_PLACE + len(places))
                hidden[places[match[0]]] = match[0]
            return places[match[0]]

        places: dict[str, str] = {}
        numbers: dict[int, int] = {}  # the jobs share their messages: each crosses the pipe once
        cleaned: list[dict[str, Any]] = []
        ready = []
        for messages, add_generation_prompt in jobs:
            for message in messages:
                if id(message) not in numbers:
                    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                        raise InputError(f"a message must have a role and a content; this one is {str(message)[:60]!r}")
                    numbers[id(message)] = len(cleaned)
                    cleaned.append(hide(message))
            ready.append(([numbers[id(m)] for m in messages], add_generation_prompt))
        turns = []
        for text in self._worker.render(cleaned, ready):
            spans: list[tuple[int, int]] = []
            if self._marks:
                text, spans = _take_marks(text)
            turns.append(_Turn(text, spans, hidden))
        return turns


def _find_template(tokenizer: Vocabulary, template: str) -> str:
    if template == "auto":
        if tokenizer.chat_template is None:
            raise InputError(f'{tokenizer.source}: no chat template; set data.template = "plain" or name a .jinja file')
        return tokenizer.chat_template
    if template in _BUILT_IN:
        return _BUILT_IN[template]
    if not template.endswith(".jinja"):
        raise InputError(f"data.template: unknown value {template!r}; use auto, plain, alpaca or name a .jinja file")
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{template}: cannot be read: {error}") from None


def _restore(text: str, hidden: dict[str, str]) -> str:
    return re.sub(f"[{chr(_PLACE)}-\U000ffffd]", lambda m: hidden.get(m[0], m[0]), text) if hidden else text


def _take_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of its {% generation %} blocks, and the blocks' spans."""
    plain: list[str] = []
    spans: list[tuple[int, int]] = []
    at, opened = 0, None
    for part in re.split(f"([{OPEN_MARK}{CLOSE_MARK}])", text):
        if part == OPEN_MARK:
            opened = at
        elif part == CLOSE_MARK:
            if opened is not None and at > opened:
                spans.append((opened, at))
            opened = None
        else:
            plain.append(part)
            at += len(part)
    return "".join(plain), spans
