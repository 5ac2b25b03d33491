"""The printed batch."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers.stores import ByteRenderer, ByteTokenizer, Rendered, build, pair, write

from vdengine.data.show import show_batch
from vdengine.data.store import Store
from vdengine.errors import InputError


def show(store: Store, rows: list[int], color: bool | None) -> str:
    out = io.StringIO()
    show_batch(store, ByteTokenizer(), rows, out, color)  # type: ignore[arg-type]
    return out.getvalue()


def test_show_marks_scored_text(tmp_path: Path) -> None:
    """Guards against a display that hides special tokens, splits characters, or lets data drive the terminal."""
    store = build(write(tmp_path / "a.jsonl", [pair("q", "sí\n😀", "n\x1b[2Jo")]), tmp_path)
    assert show(store, [0], None) == (
        "prompt; answer: [[scored]], not scored\n"
        f"\n=== example 0 ({tmp_path / 'a.jsonl'} row 1): 23 tokens, 16 scored\n"
        "--- prompt: 7 tokens\n"
        "<s>u:q\na:\n"
        "--- chosen: 9 tokens, 9 scored\n"
        "[[sí\n😀</s>]]\n"
        "--- rejected: 7 tokens, 7 scored\n"
        "[[n\\x1b[2Jo</s>]]\n"
    )
    colored = show(store, [0], True)
    assert "\x1b[32;1msí\x1b[0m\n\x1b[32;1m😀</s>\x1b[0m" in colored
    assert "\x1b[36m<s>u:q\x1b[0m" in colored and "\x1b[2J" not in colored


def test_show_tells_unscored_from_scored(tmp_path: Path) -> None:
    """Guards against a wrong mask that the display would hide."""

    class Masked(ByteRenderer):
        def conversation_trees(self, messages: list[dict[str, str]]) -> list[Rendered]:
            (tree,) = super().conversation_trees(messages)
            return [tree._replace(scored=[[i % 2 == 0 for i in range(len(tree.branches[0]))]])]

    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc"}]}
    store = build(write(tmp_path / "a.jsonl", [row]), tmp_path, Masked(), kind="sft")
    assert show(store, [0], False).endswith("--- answer: 4 tokens, 2 scored\n[[a]]b[[c]]</s>\n")
    with pytest.raises(InputError, match="^row 1: the store has the rows 0 to 0$"):
        show(store, [1], False)
