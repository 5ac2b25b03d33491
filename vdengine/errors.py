"""The one exception type for bad input from outside: a recipe, a file, a row, a checkpoint, a panel."""

from __future__ import annotations

LONGEST = 1000  # characters of a message: what it quotes may come from anyone


class InputError(ValueError):
    """Bad input. The message is one line: which file, line or key, what is wrong, what is allowed.

    Verbs print it as `error: ...` and exit with status 2; embedders may catch it as a `ValueError`. What it quotes may
    be hostile, so it is made printable and cut here, where every message comes through.
    """

    def __init__(self, message: object = "") -> None:
        text = printable(str(message))
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST - 60]} ... {text[-50:]}")


def printable(text: str) -> str:
    """A text on one line, with escapes in place of control characters, line separators and halves of characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
