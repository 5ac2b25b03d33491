"""Rows that are in memory already, as a source for a store: dictionaries, a `datasets.Dataset`, or token ids as trees.

A source of files is read once to tokenise it, and again for its hash; so is one in memory, and both readings must give
the same rows. A sequence is never copied: of a data set on disk one row is in memory at a time. What can be read only
once (a generator) is made a list first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any

import numpy as np

from vdengine.data.locate import Source
from vdengine.data.meanings import UNREAD, absent, is_read, row_meaning
from vdengine.data.rowfiles import json_kind
from vdengine.errors import InputError
from vdengine.outside import first_line
from vdengine.trees import Tree


def rows_in_memory(rows: Iterable[Any], name: str, vocab_size: int) -> Source:
    """Rows as a source.

    Args:
        rows: dictionaries in any of `formats.FORMATS`, or `Tree`s. Anything with a length that can be iterated again,
            as a list or a `datasets.Dataset`, is used as it is; another iterable is read into a list.
        name: of the source, for messages ("data" gives "data row 3").
        vocab_size: the model's. The ids of trees must be below it.

    Raises:
        InputError: neither rows nor trees, no rows, or trees with ids that the model does not have.
    """
    if isinstance(rows, str | bytes):
        raise InputError(f"{name}: text; rows are dictionaries or trees (files are named in the recipe's data section)")
    if isinstance(rows, Mapping):
        parts = ", ".join(map(str, rows))
        raise InputError(f"{name}: a {type(rows).__name__} of {parts}; give one sequence of rows, not several parts")
    if not isinstance(rows, Iterable):
        raise InputError(f"{name}: a {type(rows).__name__}; an iterable of dictionaries or trees is needed")
    again = rows if isinstance(rows, Sized) else list(rows)
    first = next(iter(again), None)
    if first is None:
        raise InputError(f"{name}: no rows")
    return TreeRows(list(again), name, vocab_size) if isinstance(first, Tree) else DictRows(again, name)


class DictRows:
    """Dictionaries, one a row. Columns that `data.meanings` does not know are not read, as in a Parquet file.

    Args:
        rows: has a length, and can be iterated again.
    """

    format = None

    def __init__(self, rows: Iterable[Any], name: str) -> None:
        self.name, self._rows = name, rows

    def digest(self) -> str:
        """Content hash, 32 hex digits, of every row in order.

        Raises:
            InputError: a row that is not a dictionary, or holds what JSON has not.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        for where, row in self._each():
            hasher.update(_encoded(row, where))
        return hasher.hexdigest()

    def count(self) -> int:
        """The number of rows, usable or not."""
        return len(self._rows) if isinstance(self._rows, Sized) else sum(1 for _ in self._rows)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row in order, after its place for messages ("data row 3", counted from 1).

        Raises:
            InputError: a row that is not a dictionary; or, at the end, other rows than `digest` has seen.
        """
        hasher = hashlib.blake2b(digest_size=16)
        for where, row in self._each():
            yield where, row
            hasher.update(_encoded(row, where))
        if hasher.hexdigest() != self._digest:
            raise InputError(f"{self.name}: its rows are not the same each time they are read; give a list of them")

    def _each(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(self._rows, 1):
            where = f"{self.name} row {number}"
            if not isinstance(row, Mapping):
                kind = "a tree" if isinstance(row, Tree) else json_kind(row)
                raise InputError(f"{where}: a row must be a dictionary, as the first one is; this one is {kind}")
            yield where, {str(key): value if is_read(str(key)) else UNREAD for key, value in row.items()}


def _encoded(row: dict[str, Any], where: str) -> bytes:
    """The columns of a row that are read, for the hash. Names of others have no part in it, nor has their order. Images
    may be any objects, as their rows are dropped."""
    try:
        read = {
            key: type(value).__name__ if row_meaning(key) == "media" and not absent(value) else value
            for key, value in row.items()
            if value is not UNREAD
        }
        return json.dumps(read, sort_keys=True).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: rows hold text, numbers, lists and dictionaries ({first_line(error)})") from None


class TreeRows:
    """Trees of token ids, one a row.

    Raises:
        InputError: something else than a tree among them, or an id that the model does not have.
    """

    format = "trees"

    def __init__(self, trees: Sequence[Any], name: str, vocab_size: int) -> None:
        self.name, self._trees = name, trees
        for number, tree in enumerate(trees, 1):
            if not isinstance(tree, Tree):
                raise InputError(f"{name} row {number}: the first row is a tree, this one is not")
            check_ids(tree, f"{name} row {number}", vocab_size)

    def digest(self) -> str:
        """Content hash of ids and masks, 32 hex digits. The trees' own `id` has no part in it."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        for tree in self._trees:
            for span in (tree.prompt, *tree.branches):
                hasher.update(len(span).to_bytes(8, "little") + np.asarray(span, np.int32).tobytes())
            masks = tree.scored or [[True] * len(branch) for branch in tree.branches]
            hasher.update(b"scored" + b"".join(np.asarray(mask, np.uint8).tobytes() for mask in masks))
        return hasher.hexdigest()

    def count(self) -> int:
        """The number of trees."""
        return len(self._trees)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every tree in order as {"tree": tree}, after its place for messages."""
        for number, tree in enumerate(self._trees, 1):
            yield f"{self.name} row {number}", {"tree": tree}


def check_ids(tree: Tree, where: str, vocab_size: int) -> None:
    """Check that the model has every token id of a tree.

    Raises:
        InputError: it has not.
    """
    for span in (tree.prompt, *tree.branches):
        for bad in (min(span), max(span)):
            if not 0 <= bad < vocab_size:
                raise InputError(f"{where}: token id {bad}; the model has the ids 0 to {vocab_size - 1}")
