"""Stores of rows rendered as bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from vdengine.data.building import build_store
from vdengine.data.store import Store
from vdengine.errors import InputError


class Rendered(NamedTuple):
    prompt: list[int]
    branches: list[list[int]]
    scored: list[list[bool]]


class ByteRenderer:
    """The renderer's interface over bytes: token = byte + 3; 1 begins, 2 ends a turn, '?' stands for a role."""

    def __init__(self, name: str = "bytes") -> None:
        self.hash = name
        self.calls = 0
        self.tokenizer = ByteTokenizer()

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        text = "".join(f"{m['role'][0]}:{m['content']}\n" for m in messages) + "a:"
        return [1, *(byte + 3 for byte in text.encode())]

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        self.calls += 1
        if messages[0]["content"] == "refuse":
            raise InputError("the chat template refuses: roles must alternate")
        return self._prompt(messages)

    def response_tree(self, messages: list[dict[str, str]], responses: list[Any]) -> Rendered:
        """A response is an assistant turn; its thinking, if it has any, stands before it in brackets."""
        prompt = self.prompt_ids(messages)
        texts = [
            f"<{r['reasoning_content']}>{r['content']}" if "reasoning_content" in r else r["content"] for r in responses
        ]
        branches = [[*(byte + 3 for byte in text.strip().encode()), 2] for text in texts]
        return Rendered(prompt, branches, [[True] * len(b) for b in branches])

    def conversation_trees(self, messages: list[dict[str, str]]) -> list[Rendered]:
        """One tree per scored turn, as with templates that are not prefix-stable."""
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("scored", True)]
        return [self.response_tree(messages[:i], [messages[i]]) for i in turns]


class ByteTokenizer:
    vocab_size = 259

    def token(self, id: int) -> str | None:
        return None if id < 3 else "x"  # one byte each

    def decode(self, ids: list[int]) -> str:
        special = {1: b"<s>", 2: b"</s>"}
        return b"".join(special.get(i) or bytes([i - 3]) for i in ids).decode(errors="replace")


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def build(paths: str | list[str], cache: Path, renderer: Any = None, **changes: Any) -> Store:
    options: dict[str, Any] = {"kind": "preference", "max_tokens": 64, "overlong": "drop", "formats": "auto"}
    options |= changes
    paths = [paths] if isinstance(paths, str) else paths
    return build_store(paths, renderer=renderer or ByteRenderer(), cache=cache, progress=False, **options)
