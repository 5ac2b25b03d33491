"""Chat templates: from messages to token ids and the mask of scored tokens.

The template of a checkpoint is a Jinja program that is not trusted, so it runs in a process of its own
(`text.template_worker`).

Text is tokenised in segments: the prompt up to an assistant turn is one, the turn is the next. No token crosses this
boundary, as none does when the model answers. Special tokens come from the template only: the same characters inside a
message are plain text.

The file is above 500 lines because the ids, the mask, the end of a turn and what stops an answer are all read off the
same rendering, turn by turn.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from vdengine.errors import InputError
from vdengine.files import json_hash
from vdengine.outside import read_text
from vdengine.text.template_worker import CLOSE_MARK, CPU_SECONDS, DATE, OPEN_MARK, TemplateWorker

# {"role": ..., "content": ...}; "reasoning_content", the thinking before an answer; "scored", False for an assistant
# turn that counts in no objective, which the template does not see; and other keys that the template reads
Messages = Sequence[dict[str, Any]]

RENDER_VERSION = 1  # part of the hash of stored rows; increase it when ids or masks change
# The content of an answer whose place in the rendered text is to be found. A noncharacter: valid in a Python string,
# but never in text.
_HOLE = "\ufdd2"
# The first of the private-use characters that replace special tokens inside messages while the template runs.
_PLACE = 0xF0000

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

# The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca); a system message replaces their first line.
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
    """What a renderer needs of a tokenizer. A protocol, because `text.tokenizer.Tokenizer` imports the renderer."""

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
    def added_tokens(self) -> list[Any]: ...

    @property
    def end_ids(self) -> list[int]: ...

    @property
    def hash(self) -> str: ...

    def token_id(self, token: str) -> int | None: ...

    def encode(self, text: str, special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Rendered(NamedTuple):
    """A prompt and the branches that continue it, as token ids; `scored` has one mask per branch."""

    prompt: list[int]
    branches: list[list[int]]
    scored: list[list[bool]]


class RenderedText(NamedTuple):
    """The token ids of a whole conversation, and which of them are scored."""

    ids: list[int]
    scored: list[bool]


class _Turn(NamedTuple):
    """Rendered text, the character spans that the template itself marks as scored, and the special tokens inside
    messages by the placeholder that replaces them in the text."""

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str]


class Renderer:
    """A chat template with its tokenizer. Its worker process starts with the first rendering and is kept.

    Args:
        template: "auto" (the tokenizer's own), "plain" ("User: ...", "Assistant: ..." and EOS, for base models),
            "alpaca" (one instruction, one answer), or the path of a .jinja file.
        variables: other variables of the template, e.g. {"enable_thinking": False} for Qwen-3.
        cpu_seconds: CPU time that one rendering may take.

    Raises:
        InputError: there is no such template. Later, in every method: the template cannot render the messages, or takes
            more than its limits of time or memory.
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
        # whether the template itself marks what is scored
        self._marks = re.search(r"\{%[-+]?\s*generation\b", self.template) is not None
        bos, adds_bos = tokenizer.bos_id, tokenizer.uses_bos if template in _BUILT_IN else tokenizer.add_bos
        self._bos = bos if adds_bos else None
        if template in _BUILT_IN and tokenizer.eos_id is None:
            raise InputError(f"{self.name}: the tokenizer {tokenizer.source} has no EOS to end an answer with")
        context = {"tools": None, "documents": None} | tokenizer.special_tokens | self.variables
        self._worker = TemplateWorker(self.name, self.template, context, cpu_seconds)
        specials = tokenizer.added_special_tokens
        texts = {t.content for t in specials} | set(tokenizer.special_tokens.values())
        longest_first = sorted(texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if texts else None
        # What is replaced in messages: special tokens, and characters that have a meaning here.
        reserved = f"[{chr(_PLACE)}-\U000ffffd{OPEN_MARK}-{_HOLE}]"
        self._reserved = re.compile(reserved)
        self._hide = re.compile("|".join([*map(re.escape, longest_first), reserved]))
        # Most text has no special token. To search for their common prefix ("<|") is 600x faster than to search for
        # 256 alternatives.
        self._prefix = os.path.commonprefix(longest_first)
        # A special token may include the white space around it, as the tokenizer says.
        around = {t.content: (r"\s*" if t.lstrip else "", r"\s*" if t.rstrip else "") for t in specials}
        parts = (around.get(t, ("", ""))[0] + re.escape(t) + around.get(t, ("", ""))[1] for t in longest_first)
        self._split = re.compile("(" + "|".join(parts) + ")") if texts else None

    @cached_property
    def hash(self) -> str:
        """Content hash of everything that decides the ids (tokenizer, template, variables, the version of this module):
        32 hex digits."""
        inputs = [RENDER_VERSION, DATE, self.tokenizer.hash, self.template, self.variables, self._bos]
        return json_hash(inputs)

    # ----------------------------------------------------------------------------------- for data and for probes

    def conversation_trees(self, messages: Messages) -> list[Rendered]:
        """The SFT trees of a conversation, scored on every assistant turn, its thinking included, through its
        end-of-turn token; not on turns whose "scored" is False.

        In general one tree of one branch, which starts after the first scored turn's header and ends with the last
        scored token. If the template rewrites earlier turns once others follow (Qwen-3 drops their thinking), one tree
        per scored turn instead, each as the model sees it at that turn.

        Raises:
            InputError: no assistant turn, nothing to score, or thinking that the template does not write.
        """
        turns = self._turns(messages)
        self._check_reasoning([messages[i] for i in turns])
        if self._marks:
            full = self._render([(messages, False)])[0]
            return [self._tree(full, 0, self._marked(full, messages))]
        full, prompts, answers = self._turn_by_turn(messages, turns)
        spans = self._spans(full, prompts, answers, messages, turns)
        if all(span is not None for span in spans):
            return [self._tree(full, 0, [span for span in spans if span is not None])]
        trees = []
        for i, prompt, answer in zip(turns, prompts, answers, strict=True):
            start = self._answer_start(prompt, answer, messages[:i])
            trees.append(self._tree(answer, 0, [(start, self._end(answer, start))]))
        return trees

    def response_tree(self, messages: Messages, responses: Sequence[str | dict[str, Any]]) -> Rendered:
        """The messages with the generation prompt, and each response (with its end-of-turn token) as a branch. A
        response is the content of an assistant turn, or such a turn.

        A branch is what the template renders for a final assistant turn, without the prompt: with Qwen-3 it begins with
        the empty thinking block. It ends with the end-of-turn token; a newline after that is left out. A response that
        renders to nothing is an empty branch.

        Raises:
            InputError: no response or one that is not scored, thinking that the template does not write, or a template
                that renders the prompt differently for different responses.
        """
        if not responses:
            raise InputError("response_tree: no response")
        turns = [r if isinstance(r, dict) else {"role": "assistant", "content": r} for r in responses]
        self._check_reasoning(turns)
        if not all(map(_is_scored, turns)):
            raise InputError("response_tree: a response is marked as not scored")
        prompt, *answers = self._render([(messages, True), *(([*messages, turn], False) for turn in turns)])
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
        """The ids of the messages with the generation prompt: what the model sees before it answers.

        Args:
            opening: also what the template puts before the words of an answer (Qwen-3: the empty thinking block), so
                that `opening_ids` can follow.
        """
        if opening:
            prompt, start = self._answer_probe(messages)
            return self._encode_start(prompt.text[: start - len(self._lead)], prompt.hidden)
        prompt = self._render([(messages, True)])[0]
        return self._encode_start(prompt.text, prompt.hidden)

    def prompt_text(self, messages: Messages) -> tuple[str, Callable[[str], list[int]]]:
        """The messages with the generation prompt as text, and what gives the ids of this text, or of one that begins
        with it, tokenised as a whole. Special tokens are those of the template: what stands in the messages, and after
        the prompt, is plain text."""
        turn = self._render([(messages, True)])[0]
        # What follows the prompt is not rendered, so the same characters there are hidden by hand.
        size = len(turn.text)

        def encode(text: str) -> list[int]:
            hidden = dict(turn.hidden)
            shown = {value: key for key, value in hidden.items()}

            def place(match: re.Match[str]) -> str:
                if match[0] not in shown:
                    shown[match[0]] = chr(_PLACE + len(shown))
                    hidden[shown[match[0]]] = match[0]
                return shown[match[0]]

            return self._encode_start(text[:size] + self._hide.sub(place, text[size:]), hidden)

        return turn.text, encode

    def opening_ids(self, text: str) -> list[int]:
        """The ids of the first words of an answer, without an end-of-turn token, that follow `prompt_ids`."""
        return self.tokenizer.encode(self._lead + text)

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> RenderedText:
        """The ids of a conversation as the template renders it, and the mask of the scored ones. Earlier turns that the
        template has rewritten, so that the model did not see them like this, are not scored; nor are those whose
        "scored" is False."""
        turns = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and _is_scored(m)]
        self._check_reasoning([messages[i] for i in turns])
        if self._marks or not turns:
            full = self._render([(messages, add_generation_prompt)])[0]
            spans = self._marked(full, messages)
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
        """The conversation as the template renders it, as text."""
        turn = self._render([(messages, add_generation_prompt)])[0]
        return _restore(turn.text, turn.hidden)

    # ------------------------------------------------------------------------------------------- turns and spans

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token that ends an assistant turn: the first special one that the template writes after an answer, else
        the first that was added to the vocabulary; None if it writes neither."""
        after = self._after_answer
        match = self._special.search(after) if self._special else None
        if match is None and (added := sorted((t.content for t in self.tokenizer.added_tokens), key=len, reverse=True)):
            match = re.search("|".join(map(re.escape, added)), after)
        return match[0] if match else None

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The id of `end_of_turn`; where the template writes nothing after an answer, EOS."""
        if self.end_of_turn is None:
            return None if self._after_answer.strip() else self.tokenizer.eos_id
        return self.tokenizer.token_id(self.end_of_turn)

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids that end sampling: the template's end of a turn, then the tokenizer's own (EOS, and what the
        checkpoint's generation config names).

        Raises:
            InputError: the template ends a turn with text that is no single token of the tokenizer, so that no token
                would end an answer; or neither has any end.
        """
        after, name = self._after_answer.strip(), self.tokenizer.source
        if self.end_of_turn_id is None and after:
            raise InputError(
                f"{self.name}: it ends an assistant turn with {after[:40]!r}, which is no single token of the "
                f"tokenizer {name}: no token could end a sampled answer; name a template that ends turns with a token"
            )
        ids = [self.end_of_turn_id, *self.tokenizer.end_ids]
        found = list(dict.fromkeys(i for i in ids if i is not None))
        if not found:
            raise InputError(f"{self.name}: it writes no end of a turn, and the tokenizer {name} has no EOS")
        return found

    @cached_property
    def missing_end(self) -> str | None:
        """A sentence, if no token that ends an answer is among the scored tokens of an answer: a model that learns from
        answers in this template does not learn to stop. None if there is one, or if the template cannot render a
        question and its answer (rows that it cannot render are refused one by one)."""
        try:
            messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            trees = self.conversation_trees(messages)
            after = self._after_answer.strip()
        except InputError:
            return None
        scored = {i for t in trees for i, counts in zip(t.branches[0], t.scored[0], strict=True) if counts}
        if scored & {self.end_of_turn_id, *self.tokenizer.end_ids}:
            return None
        how = "with nothing"
        if self.end_of_turn is not None:
            how = f"with {self.end_of_turn!r}, which it marks as not scored"
        elif after:
            how = f"with {after[:40]!r}, which is no single token of the tokenizer {self.tokenizer.source}"
        return (
            f"{self.name}: it ends an assistant turn {how}: answers are trained without an end, and a model that "
            'learns from them runs on until its longest answer; a template that ends them is "plain"'
        )

    @cached_property
    def written_ids(self) -> frozenset[int]:
        """The ids of a question and its answer with what the template writes around them; none if it cannot render
        these (rows that it cannot render are refused one by one)."""
        try:
            turn = self._render([([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], False)])[0]
        except InputError:
            return frozenset()
        return frozenset(self._encode_start(turn.text, turn.hidden))

    @property
    def saved_template(self) -> str:
        """The template as a chat_template.jinja that gives transformers the ids that this renderer gives: a BOS that
        the template does not write itself stands before it.

        Raises:
            InputError: the renderer has variables, which a file cannot hold.
        """
        if self.variables:
            raise InputError(f"{self.name}: variables ({', '.join(self.variables)}) cannot be saved with a template")
        if self._bos is None or self.template == self.tokenizer.chat_template:
            return self.template
        turn = self._render([([{"role": "user", "content": "?"}], True)])[0]
        writes_it = turn.text.startswith(self.tokenizer.special_tokens["bos_token"])
        return self.template if writes_it else "{{- bos_token -}}" + self.template

    @cached_property
    def reads_reasoning(self) -> bool:
        """Whether the template writes a message's "reasoning_content"."""
        turn = {"role": "assistant", "content": "!", "reasoning_content": _HOLE}
        return _HOLE in self._render([([{"role": "user", "content": "?"}, turn], False)], holes=True)[0].text

    def _check_reasoning(self, turns: Messages) -> None:
        """Raises InputError for thinking that would be left out without a word."""
        if any(turn.get("reasoning_content") for turn in turns) and not self.reads_reasoning:
            raise InputError(f"{self.name}: it does not write reasoning_content; take it out, or name another template")

    @cached_property
    def _after_answer(self) -> str:
        """What the template writes after the words of an answer."""
        turn, start = self._answer_probe([{"role": "user", "content": "?"}])
        return turn.text[start + 1 :]

    @cached_property
    def _lead(self) -> str:
        """Spaces that the template puts between its header and an answer ("Assistant: ..."). They are part of the first
        token of the answer."""
        turn, start = self._answer_probe([{"role": "user", "content": "?"}])
        before = turn.text[:start]
        return before[len(before.rstrip(" ")) :]

    def _answer_probe(self, messages: Messages) -> tuple[_Turn, int]:
        """The messages with an answer of one noncharacter, and the position of this character in the text."""
        turn = self._render([([*messages, {"role": "assistant", "content": _HOLE}], False)], holes=True)[0]
        start = turn.text.rfind(_HOLE)
        if start < 0:
            raise InputError(f"{self.name}: it yields no scored token: what the assistant says is not rendered")
        return turn, start

    def _header_end(self, messages: Messages) -> int:
        """The position in the text where the words of an answer to the messages begin."""
        return self._answer_probe(messages)[1]

    def _answer_start(self, prompt: _Turn, answer: _Turn, messages: Messages) -> int:
        """The position where the assistant turn begins in `answer`, whose messages are `messages` and one more.

        The generation prompt may contain text that the given answer does not have (DeepSeek-R1's opens the thinking).
        Then the turn begins after the header, with the words of the answer.
        """
        return len(prompt.text) if answer.text.startswith(prompt.text) else self._header_end(messages)

    def _end(self, answer: _Turn, start: int) -> int:
        """The position where the final assistant turn ends: after the last end-of-turn token.

        The last, because a template may end several channels of one turn. Some templates (Llama-3's first one) always
        continue with the next assistant header, which is not part of the turn.
        """
        if self.end_of_turn is None:
            return len(answer.text.rstrip())
        position = answer.text.rfind(self.end_of_turn, start)
        if position < 0:
            raise InputError(f"{self.name}: an assistant turn came out without its end token {self.end_of_turn!r}")
        return position + len(self.end_of_turn)

    def _turns(self, messages: Messages) -> list[int]:
        """The indexes of the assistant turns that are scored; InputError if there is none."""
        turns = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and _is_scored(m)]
        if not turns:
            any_turn = any(m.get("role") == "assistant" for m in messages)
            raise InputError(f"no {'scored ' if any_turn else ''}assistant turn among the messages")
        return turns

    def _turn_by_turn(
        self, messages: Messages, turns: list[int], add_generation_prompt: bool = False
    ) -> tuple[_Turn, list[_Turn], list[_Turn]]:
        """Renderings of the whole conversation, of the prompt of each assistant turn, and of the conversation through
        each assistant turn."""
        # the rendering through the last turn is that of the whole conversation
        ends_with_turn = not add_generation_prompt and turns[-1] == len(messages) - 1
        jobs = [(messages[:i], True) for i in turns] + [(messages[: i + 1], False) for i in turns]
        if not ends_with_turn:
            jobs.append((messages, add_generation_prompt))
        rendered = self._render(jobs)
        prompts, answers = rendered[: len(turns)], rendered[len(turns) : 2 * len(turns)]
        return rendered[-1], prompts, answers

    def _spans(
        self, full: _Turn, prompts: list[_Turn], answers: list[_Turn], messages: Messages, turns: list[int]
    ) -> list[tuple[int, int] | None]:
        """The span of each assistant turn in the whole text; None where the text is not the one that was answered."""
        spans: list[tuple[int, int] | None] = []
        for i, prompt, answer in zip(turns, prompts, answers, strict=True):
            start = self._answer_start(prompt, answer, messages[:i])
            end = self._end(answer, start)
            spans.append((start, end) if full.text.startswith(answer.text[:end]) else None)
        return spans

    def _marked(self, full: _Turn, messages: Messages) -> list[tuple[int, int]]:
        """The spans that the template itself marks, without those of turns that are not scored. Which spans a turn has
        follows from how many there are without it and with it.

        Raises:
            InputError: the template marks other turns once others follow, so that this cannot be known.
        """
        unscored = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and not _is_scored(m)]
        if not unscored or not full.spans:
            return full.spans
        counts = [len(t.spans) for t in self._render([(messages[: i + 1], False) for i in range(len(messages))])]
        if counts[-1] != len(full.spans) or sorted(counts) != counts:
            raise InputError(f"{self.name}: its marks do not tell which turn they belong to, and one is not scored")
        first = {i: counts[i - 1] if i else 0 for i in unscored}
        left_out = {k for i in unscored for k in range(first[i], counts[i])}
        return [span for k, span in enumerate(full.spans) if k not in left_out]

    # ------------------------------------------------------------------------------------------------ text to ids

    def _tree(self, turn: _Turn, start: int, spans: list[tuple[int, int]]) -> Rendered:
        """A tree of one branch, from the start of the first span to the end of the last; InputError if no token is
        scored."""
        if spans:
            start = spans[0][0]
            branch, mask = self._segments(turn, start, spans)
            if any(mask):
                return Rendered(self._encode_start(turn.text[:start], turn.hidden), [branch], [mask])
        raise InputError(f"{self.name}: it yields no scored token for these messages")

    def _segments(
        self, turn: _Turn, start: int, spans: Iterable[tuple[int, int]], tail: bool = False
    ) -> tuple[list[int], list[bool]]:
        """The ids and the mask of turn.text[start:], up to the end of the last span, or (tail) of the text."""
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
        """The ids of text at the start of a conversation, with exactly one BOS if the tokenizer uses one."""
        ids = self._encode(text, hidden)
        bos = self.tokenizer.bos_id
        if self._bos is not None and ids[:1] != [self._bos]:
            return [self._bos, *ids]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def _encode(self, text: str, hidden: dict[str, str]) -> list[int]:
        """The ids of rendered text, in which special tokens are those of the template."""
        if not hidden:
            return self.tokenizer.encode(text, special=True)
        # Messages have special tokens as text: the text is split at those of the template, the rest is encoded as plain
        ids: list[int] = []
        for i, part in enumerate(self._split.split(text) if self._split else [text]):
            if part:
                ids += self.tokenizer.encode(part if i % 2 else _restore(part, hidden), special=i % 2 == 1)
        return ids

    # ----------------------------------------------------------------------------------------------- the template

    def _render(self, jobs: Sequence[tuple[Messages, bool]], holes: bool = False) -> list[_Turn]:
        """Render pairs of (messages, add_generation_prompt) in one call of the worker. `holes`: messages may be the
        noncharacter of `_answer_probe`."""
        hidden: dict[str, str] = {}  # common to all jobs, because their texts are compared

        def hide(value: Any) -> Any:
            if isinstance(value, str):
                plain = self._prefix not in value and (value.isascii() or not self._reserved.search(value))
                return value if plain or (holes and value == _HOLE) else self._hide.sub(place, value)
            if isinstance(value, list):
                return [hide(v) for v in value]
            return {k: hide(v) for k, v in value.items()} if isinstance(value, dict) else value

        def place(match: re.Match[str]) -> str:
            if match[0] not in places:
                places[match[0]] = chr(_PLACE + len(places))
                hidden[places[match[0]]] = match[0]
            return places[match[0]]

        places: dict[str, str] = {}  # placeholders by what they replace; `hidden` is the inverse
        numbers: dict[int, int] = {}  # of messages by id(): jobs share messages, and each is sent to the worker once
        cleaned: list[dict[str, Any]] = []  # messages with placeholders
        numbered_jobs = []
        for messages, add_generation_prompt in jobs:
            for message in messages:
                if id(message) not in numbers:
                    _check_message(message)
                    numbers[id(message)] = len(cleaned)
                    cleaned.append({key: hide(value) for key, value in message.items() if key != "scored"})
            numbered_jobs.append(([numbers[id(m)] for m in messages], add_generation_prompt))
        turns = []
        for text in self._worker.render(cleaned, numbered_jobs):
            spans: list[tuple[int, int]] = []
            if self._marks:
                text, spans = _take_marks(text)
            turns.append(_Turn(text, spans, hidden))
        return turns


def _find_template(tokenizer: Vocabulary, template: str) -> str:
    """The Jinja text of a template; InputError if there is none of that name."""
    if template == "auto":
        if tokenizer.chat_template is None:
            raise InputError(
                f'{tokenizer.source}: no chat template; set template = "plain" (in a recipe data.template) or name a '
                ".jinja file"
            )
        return tokenizer.chat_template
    if template in _BUILT_IN:
        return _BUILT_IN[template]
    if not template.endswith(".jinja"):
        raise InputError(f"template: unknown value {template!r}; use auto, plain, alpaca or name a .jinja file")
    return read_text(os.path.expanduser(template))


def _check_message(message: Any) -> None:
    """Raises InputError for what is no message, or has a key of another type than the renderer reads."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"a message must have a role and a content; this one is {str(message)[:60]!r}")
    if not isinstance(message.get("reasoning_content"), str | None):
        raise InputError(f"reasoning_content is {str(message['reasoning_content'])[:60]!r}, not text")
    if not isinstance(message.get("scored", True), bool):
        raise InputError(f"scored is {str(message['scored'])[:60]!r}, not true or false")


def _is_scored(message: dict[str, Any]) -> bool:
    """Whether an assistant turn counts in the objective."""
    return message.get("scored") is not False


def _restore(text: str, hidden: dict[str, str]) -> str:
    """The text with what its placeholders replace."""
    return re.sub(f"[{chr(_PLACE)}-\U000ffffd]", lambda m: hidden.get(m[0], m[0]), text) if hidden else text


def _take_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of its {% generation %} blocks, and the spans of these blocks."""
    plain: list[str] = []
    spans: list[tuple[int, int]] = []
    position, block_start = 0, None
    for part in re.split(f"([{OPEN_MARK}{CLOSE_MARK}])", text):
        if part == OPEN_MARK:
            block_start = position
        elif part == CLOSE_MARK:
            if block_start is not None and position > block_start:
                spans.append((block_start, position))
            block_start = None
        else:
            plain.append(part)
            position += len(part)
    return "".join(plain), spans
