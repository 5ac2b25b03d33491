"""Tasks as prompt trees in fixed packs.

A row is one tree: its prompt, and every choice as a branch, a choice of one token as a first. As of a panel, packs are
a pure function of (tasks, tokenizer and template, token budget): a row's numbers are the same bits wherever it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vdengine.data.batching import Forest, branch_tree
from vdengine.errors import InputError
from vdengine.tasks.task import Row, Task
from vdengine.text.renderer import Renderer


class TaskRequest(NamedTuple):
    """A choice as token ids: a score is the log-prob sum of `answer_ids` after `prompt_ids`, in nats."""

    prompt_ids: list[int]
    answer_ids: list[int]
    text: str  # of the choice
    task: Task
    row: Row
    choice: int  # index into row.choices


@dataclass
class TaskPacks(Forest):
    """What is scored of some tasks: by task, by row, by choice."""

    tasks: list[Task]
    requests: list[TaskRequest]  # of each branch, in the flat order
    chat: bool  # prompts are chats

    @classmethod
    def build(cls, tasks: Sequence[Task], renderer: Renderer, max_tokens: int, *, chat: bool = False) -> TaskPacks:
        """Tokenise and pack tasks.

        Args:
            max_tokens: of a pack.
            chat: whether a prompt is a chat in the renderer's template, its examples turns of their own; else text.

        Raises:
            InputError: a prompt that cannot be rendered, a choice without a token of its own, or a row that does not
                fit `max_tokens`.
        """
        requests: list[TaskRequest] = []
        trees, slots = [], []
        for task in tasks:
            for row in task.rows:
                where = f"task {task.name}, row {row.number}"
                prompt, answers = row_ids(row, task.delimiter, renderer, chat=chat, where=where)
                places = range(len(requests), len(requests) + len(answers))
                requests += [TaskRequest(prompt, a, row.choices[i], task, row, i) for i, a in enumerate(answers)]
                of_row = dict(zip(places, answers, strict=True))
                tree, slot = branch_tree(prompt, of_row, firsts=[k for k, ids in of_row.items() if len(ids) == 1])
                if (size := len(prompt) + max(map(len, answers))) > max_tokens:
                    raise InputError(
                        f"{where} has {size} tokens; a pack has at most {max_tokens} (capability.tokens); raise it, or "
                        "take fewer examples (num_fewshot)"
                    )
                trees.append(tree)
                slots.append(slot)
        forest = Forest.plant(trees, slots, max_tokens)
        return cls(forest.packs, forest.slots, forest.num_branches, list(tasks), requests, chat)


def row_ids(
    row: Row, delimiter: str, renderer: Renderer, *, chat: bool, where: str
) -> tuple[list[int], list[list[int]]]:
    """The ids of a row's prompt, and those of each choice after it.

    As in lm-evaluation-harness, prompt and choice are tokenised together, white space at the end of the prompt belongs
    to the choice, and what is beyond the number of the prompt's own tokens is the choice.

    Raises:
        InputError: the prompt cannot be rendered, or a choice has no token beyond the prompt's.
    """
    encode: Callable[[str], list[int]]
    if chat:
        try:
            context, encode = renderer.prompt_text(row.messages)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        delimiter = ""  # a chat's answer begins at once
    else:
        tokenizer, context = renderer.tokenizer, row.text
        start = [tokenizer.bos_id] if tokenizer.uses_bos and tokenizer.bos_id is not None else []

        def encode(text: str) -> list[int]:
            return start + tokenizer.encode(text)

    stripped = context.rstrip()
    space = context[len(stripped) :]
    prompt = encode(stripped) if stripped else []
    if not stripped and not (prompt := _first_id(renderer)):
        raise InputError(f"{where}: the prompt is empty, and the tokenizer has no token to begin a text with")
    answers = []
    for number, choice in enumerate(row.choices):
        text = space + delimiter + choice
        ids = encode(stripped + text)[len(prompt) :] if stripped else renderer.tokenizer.encode(text)
        if not ids:
            raise InputError(f"{where}: choice {number} ({choice[:40]!r}) has no token beyond the prompt's")
        answers.append(ids)
    return prompt, answers


def _first_id(renderer: Renderer) -> list[int]:
    """What stands before a text whose prompt is empty: BOS, or else EOS, as in lm-evaluation-harness."""
    first = renderer.tokenizer.bos_id if renderer.tokenizer.bos_id is not None else renderer.tokenizer.eos_id
    return [] if first is None else [first]
