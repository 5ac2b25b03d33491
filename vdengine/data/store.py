"""Stores: tokenised rows in memory-mapped flat arrays, written once for the same content and opened by every rank.

A store is a folder `<cache>/store/<hash>/` of .npy files and a manifest. The hash covers everything that decides the
content: the bytes of the sources, format, kind, tokenizer, template, `max_tokens`, `overlong`. A store is written under
a temporary name and renamed when it is complete; its manifest has the size and the hash of every file, and one that
does not match is built anew (`data.storefolder`). Its arrays (n trees, B branches, L tokens) have the layout that
`trees.pack_store` reads:

    tokens         [L] int32    every prompt and branch, tree by tree
    scored         [L] uint8    1 where a token counts in the objective; 0 on prompts
    prompt_start   [n] int64    index into tokens
    prompt_len     [n] int64    tokens of the prompt
    tree_start     [n+1] int64  branches of tree i: tree_start[i] .. tree_start[i+1]
    branch_start   [B] int64    index into tokens
    branch_len     [B] int64    tokens of the branch
    branch_scored  [B] int64    scored tokens of the branch
    row_index      [n] int64    the tree's row in its source, from 0 (a conversation may give several trees)
    margin         [n] float32  how much better the first branch of a preference pair is; 1.0 for other kinds
    wanted         [n] uint8    of kind "unpaired": 1 where the answer is a wanted one, else 0; 1 for other kinds

Trees of kind "prompts" have no branch: they are prompts for the model to answer, and end with the generation prompt.
The model's answers become the branches, so such a tree cannot be packed as it is.

The trees of a source are contiguous and in file order: `source_start` [sources + 1] int64.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vdengine.data.parsers import PREFERENCE_FORMATS
from vdengine.errors import InputError
from vdengine.files import digest, json_hash
from vdengine.outside import first_line, is_count, json_object, open_regular, parsing
from vdengine.trees import Tree

if TYPE_CHECKING:
    pass

MANIFEST = "manifest.json"
TOO_LONG = ("too long", "prompt too long")  # reasons of which `SourceInfo.overlong` says more

DTYPES: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "scored": np.uint8,
    "prompt_start": np.int64,
    "prompt_len": np.int64,
    "tree_start": np.int64,
    "branch_start": np.int64,
    "branch_len": np.int64,
    "branch_scored": np.int64,
    "row_index": np.int64,
    "margin": np.float32,
    "wanted": np.uint8,
}


@dataclass(frozen=True)
class SourceInfo:
    """What was read of one source."""

    name: str
    format: str  # in which it was read
    rows: int  # usable or not
    trees: int
    truncated: int  # trees that were cut to `max_tokens`
    dropped: dict[str, int]  # unusable rows (or trees of a row) by reason
    noted: dict[str, int] = field(default_factory=dict)  # rows read otherwise than they may seem, by how
    unread: list[str] = field(default_factory=list)  # columns that were not read
    overlong: str = ""  # how long those are that were dropped as too long, in words


class Store:
    """An open store. Its arrays are memory-mapped and read-only, and can be shared by threads and processes."""

    def __init__(self, folder: Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self.kind: str = manifest["kind"]
        self.max_token_id: int = manifest["max_token_id"]
        self.sources = [SourceInfo(**info) for info in manifest["sources"]]
        self.source_start = np.cumsum([0] + [info.trees for info in self.sources])
        self.tokens, self.scored = arrays["tokens"], arrays["scored"]
        self.prompt_start, self.prompt_len = arrays["prompt_start"], arrays["prompt_len"]
        self.tree_start = arrays["tree_start"]
        self.branch_start, self.branch_len = arrays["branch_start"], arrays["branch_len"]
        self.branch_scored, self.row_index = arrays["branch_scored"], arrays["row_index"]
        self.margin, self.wanted = arrays["margin"], arrays["wanted"]
        self.num_tokens: np.ndarray = self.prompt_len + self._sum_branches(self.branch_len)  # [n] int64
        self.num_scored: np.ndarray = self._sum_branches(self.branch_scored)  # [n] int64

    def _sum_branches(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` [B] int64 over the branches of each tree: [n] int64; 0 for a tree without branches."""
        return np.diff(np.concatenate(([0], np.cumsum(values)))[self.tree_start])

    @classmethod
    def empty(cls, kind: str) -> Store:
        """A store without rows: of a run that is given each step's trees."""
        arrays = {name: np.zeros(int(name == "tree_start"), dtype) for name, dtype in DTYPES.items()}
        return cls(Path(), {"hash": "", "kind": kind, "max_token_id": -1, "sources": []}, arrays)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        names: Sequence[str] | None = None,
        *,
        verify: bool = True,
        vocab_size: int | None = None,
    ) -> Store:
        """Open a complete store. Whoever wrote it, its arrays fit together afterwards.

        Args:
            names: of the sources in messages. A store is found by its content, so the names in its manifest may be
                those of an earlier run.
            verify: read every array, and compare its hash with the manifest's, and the ids with what it says of them.
                All else is compared always.
            vocab_size: the model's; the ids must be below it.

        Raises:
            InputError: there is no store, or files of it are missing, cut short or damaged, or do not fit together.
        """
        folder = Path(folder)
        try:
            manifest = json_object(folder / MANIFEST)
            if manifest.pop("check", None) != json_hash(manifest):
                raise InputError(f"{MANIFEST} is damaged")
            if not manifest["hash"] == json_hash(manifest["inputs"]) == folder.name:
                raise InputError("it is another one than its name says")
            if not is_count(most := manifest["max_token_id"], vocab_size or 2**31):
                raise InputError(
                    f"it has the token id {most!r}; the model has the ids 0 to {(vocab_size or 2**31) - 1}"
                )
            arrays = {}
            for name, dtype in DTYPES.items():
                path = folder / f"{name}.npy"
                with open_regular(path) as file:
                    size = os.fstat(file.fileno()).st_size
                if size != manifest["bytes"][name]:
                    raise InputError(f"{path.name} should have {manifest['bytes'][name]} bytes")
                if verify and digest(path) != manifest["hashes"][name]:
                    raise InputError(f"{path.name} is damaged")
                with parsing(path.name, "array"):
                    arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
                if arrays[name].dtype != dtype or arrays[name].ndim != 1:
                    raise InputError(f"{path.name} is no array of {np.dtype(dtype)} in one dimension")
            _check_layout(arrays)
            for info, source_name in zip(manifest["sources"], names or [], strict=False):
                info["name"] = source_name
            store = cls(folder, manifest, arrays)
            store._check_manifest(verify)
            return store
        except (OSError, KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{folder}: not a whole store ({why.removeprefix(f'{folder}/')})") from None

    def _check_manifest(self, verify: bool) -> None:
        """Check what the manifest says against the arrays, which fit together. As in `open`."""
        if self.kind != self.manifest["inputs"]["kind"]:
            raise InputError(f"{MANIFEST} says that it is of kind {self.kind!r}")
        for info in self.sources:
            counts = (info.rows, info.trees, info.truncated, *info.dropped.values(), *info.noted.values())
            words = (info.name, info.format, info.overlong, *info.unread, *info.dropped, *info.noted)
            if not all(map(is_count, counts)) or not all(isinstance(word, str) for word in words):
                raise InputError(f"{MANIFEST} does not say how many rows its sources have")
        if self.source_start[-1] != len(self):
            raise InputError(f"{MANIFEST} says that there are {self.source_start[-1]} trees of {len(self)}")
        if verify and (int(self.tokens.min(initial=0)) < 0 or int(self.tokens.max(initial=-1)) != self.max_token_id):
            raise InputError(f"tokens.npy has other ids than 0 to {self.max_token_id}, which {MANIFEST} says")

    def __len__(self) -> int:
        """Number of trees."""
        return len(self.row_index)

    @property
    def dropped(self) -> Counter[str]:
        """Rows (or trees of a row) that were dropped, by reason, over all sources."""
        return sum((Counter(info.dropped) for info in self.sources), Counter())

    def prompt(self, i: int) -> list[int]:
        """Token ids of tree i's prompt."""
        return _span(self.tokens, int(self.prompt_start[i]), int(self.prompt_len[i]))

    def tree(self, i: int) -> Tree:
        """Tree `i`, with id = i.

        Raises:
            InputError: a tree without branches (kind "prompts").
        """
        branches = range(int(self.tree_start[i]), int(self.tree_start[i + 1]))
        spans = [(int(self.branch_start[b]), int(self.branch_len[b])) for b in branches]
        return Tree(
            prompt=self.prompt(i),
            branches=[_span(self.tokens, *s) for s in spans],
            scored=[[bool(flag) for flag in _span(self.scored, *s)] for s in spans],
            id=i,
        )

    def source_of(self, i: int) -> int:
        """Index in `sources` of tree i's source."""
        return int(np.searchsorted(self.source_start, i, side="right")) - 1

    def where(self, i: int) -> str:
        """The place of tree i for messages: 'data.jsonl row 12' (rows are counted from 1, without blank lines)."""
        return f"{self.sources[self.source_of(i)].name} row {int(self.row_index[i]) + 1}"

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `trees.pack_store` takes."""
        names = ("tokens", "scored", "tree_start", "prompt_start", "prompt_len", "branch_start", "branch_len")
        return {name: getattr(self, name) for name in names}

    def summary(self) -> str:
        """Text for the console: rows, trees, tokens and dropped rows of each source."""
        lines = []
        for k, info in enumerate(self.sources):
            tokens = int(self.num_tokens[self.source_start[k] : self.source_start[k + 1]].sum())
            counts = f"{info.rows:,} rows, {info.trees:,} examples, {tokens:,} tokens"
            lines.append(f"{info.name} ({info.format}): {counts}")
            if self.kind == "sft" and info.format in PREFERENCE_FORMATS:
                lines.append("  the chosen answers are learned, the rejected ones are not read")
            if self.kind == "unpaired":
                wanted = int(self.wanted[self.source_start[k] : self.source_start[k + 1]].sum())
                lines.append(f"  {wanted:,} answers are wanted, {info.trees - wanted:,} are not")
            if info.truncated:
                lines.append(f"  cut to max_tokens: {info.truncated:,}")
            for reason, count in sorted(info.dropped.items()):
                lines.append(f"  dropped {count:,}: {reason}{info.overlong if reason in TOO_LONG else ''}")
            lines += [f"  {count:,} rows: {how}" for how, count in sorted(info.noted.items())]
            if info.unread:
                more = f" and {len(info.unread) - 8} more" if len(info.unread) > 8 else ""
                lines.append(f"  columns not read: {', '.join(info.unread[:8])}{more}")
        return "\n".join(lines) or "no rows"


def _check_layout(arrays: dict[str, np.ndarray]) -> None:
    """Check that the arrays of a store fit together, so that no index goes beyond one.

    Raises:
        InputError: they do not.
    """
    trees, branches, tokens = (len(arrays[name]) for name in ("row_index", "branch_start", "tokens"))
    lengths = {"prompt_start": trees, "prompt_len": trees, "tree_start": trees + 1, "margin": trees, "wanted": trees}
    lengths |= {"branch_len": branches, "branch_scored": branches, "scored": tokens}
    for name, count in lengths.items():
        if len(arrays[name]) != count:
            raise InputError(f"{name}.npy has {len(arrays[name])} values, where {count} belong")
    first = arrays["tree_start"]  # [n+1]
    if first[0] != 0 or first[-1] != branches or (first[1:] < first[:-1]).any():
        raise InputError("tree_start.npy does not count the branches")
    for part in ("prompt", "branch"):
        start, length = arrays[f"{part}_start"], arrays[f"{part}_len"]  # [n] or [B]
        # not start + length, which may overflow
        if ((start < 0) | (length < 1) | (length > tokens) | (start > tokens - length)).any():
            raise InputError(f"{part}_start.npy and {part}_len.npy go beyond the tokens")
    scored = arrays["branch_scored"]  # [B]
    if ((scored < 0) | (scored > arrays["branch_len"])).any():
        raise InputError("branch_scored.npy counts more than a branch has")
    if (arrays["row_index"] < 0).any() or not np.isfinite(arrays["margin"]).all() or (arrays["wanted"] > 1).any():
        raise InputError("row_index.npy, margin.npy or wanted.npy has a value that no row has")


def _span(array: np.ndarray, start: int, length: int) -> list[int]:
    return array[start : start + length].tolist()
