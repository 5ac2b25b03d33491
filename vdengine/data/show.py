"""Printing rows of a store as the model sees them, so that a user can check the template and the scored tokens."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from vdengine.data.store import Store
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.text.tokenizer import Tokenizer

_PROMPT, _UNSCORED, _SCORED = "\x1b[36m", "\x1b[33m", "\x1b[32;1m"  # cyan, yellow, bold green
_RESET = "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show_batch(
    store: Store,
    tokenizer: Tokenizer,
    rows: Iterable[int],
    file: TextIO | None = None,
    color: bool | None = None,
) -> None:
    """Print trees of a store: the prompt, then each branch, with its scored and its unscored tokens marked, special
    tokens included, and token counts.

    Args:
        rows: numbers of the trees.
        file: default: stdout.
        color: whether to mark by ANSI colours; default: if `file` is a terminal. Otherwise scored text is in
            [[double brackets]].

    Raises:
        InputError: a row that the store does not have.
    """
    out = sys.stdout if file is None else file
    if color is None:
        color = out.isatty()

    def paint(style: str, text: str) -> str:
        # every line is coloured by itself, because a pager resets colours at line ends
        return "\n".join(f"{style}{line}{_RESET}" if line else "" for line in text.split("\n")) if color else text

    def text(ids: list[int]) -> str:
        # control characters in the data must not reach the terminal
        return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", tokenizer.decode(ids))

    mark = f"{paint(_SCORED, 'scored')}, {paint(_UNSCORED, 'not scored')}" if color else "[[scored]], not scored"
    print(f"{paint(_PROMPT, 'prompt')}; answer: {mark}", file=out)
    for i in rows:
        if not 0 <= i < len(store):
            raise InputError(f"row {i}: the store has the rows 0 to {len(store) - 1}")
        if store.kind == "prompts":
            prompt = store.prompt(i)
            print(f"\n=== prompt {i} ({store.where(i)}): {len(prompt)} tokens", file=out)
            print(paint(_PROMPT, text(prompt)), file=out)
            continue
        tree = store.tree(i)
        lengths = f"{store.num_tokens[i]} tokens, {store.num_scored[i]} scored"
        print(f"\n=== example {i} ({store.where(i)}): {lengths}", file=out)
        print(f"--- prompt: {len(tree.prompt)} tokens", file=out)
        print(paint(_PROMPT, text(tree.prompt)), file=out)
        masks = tree.scored or [[True] * len(branch) for branch in tree.branches]
        for k, (branch, mask) in enumerate(zip(tree.branches, masks, strict=True)):
            name = ("chosen", "rejected")[k] if store.kind == "preference" else f"answer {k + 1}"
            if len(tree.branches) == 1:
                name = "answer" if store.wanted[i] else "unwanted answer"
            print(f"--- {name}: {len(branch)} tokens, {sum(mask)} scored", file=out)
            pieces = []
            # tokens with equal masks are decoded together, because one character may be several tokens
            for scored, pairs in groupby(zip(mask, branch, strict=True), key=lambda pair: pair[0]):
                piece = text([token for _, token in pairs])
                if color:
                    pieces.append(paint(_SCORED if scored else _UNSCORED, piece))
                else:
                    pieces.append(f"[[{piece}]]" if scored else piece)
            print("".join(pieces), file=out)
