"""Tokenised rows in memory-mapped flat arrays: written once per content, opened by every rank.

A store is a folder `<cache>/store/<hash>/` of .npy files and a manifest. The hash covers all that decides what is
in it: the sources' bytes, format, kind, tokenizer, template, `max_tokens`, `overlong`. It is written under a
temporary name and renamed when whole. Its arrays (n trees, B branches, L tokens) have the layout that
`trees.pack_store` reads:

    tokens         [L] int32    every prompt and branch, tree by tree
    scored         [L] uint8    1 where a token counts in the objective; 0 on prompts
    prompt_start   [n] int64    offsets into tokens
    prompt_len     [n] int64
    tree_start     [n+1] int64  branches of tree i: tree_start[i] .. tree_start[i+1]
    branch_start   [B] int64    offsets into tokens
    branch_len     [B] int64
    branch_scored  [B] int64    scored tokens of the branch
    row_index      [n] int64    the tree's row in its source, from 0 (a conversation may give several trees)
    margin         [n] float32  how much better the first branch of a preference pair is; 1.0 for other kinds

Trees of kind "prompts" have no branch: they are prompts for the model to answer, with the generation prompt at
their end. The model's answers become the branches, so such a tree cannot be packed as it is.

The trees of a source lie together, in file order: `source_start` [sources + 1].
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vdengine.data.formats import Preference, Prompt, Row, choose_format, read
from vdengine.data.locate import Source, resolve
from vdengine.errors import InputError
from vdengine.text.renderer import Rendered
from vdengine.trees import Tree

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer

STORE_VERSION = 2  # part of the hash: raise it when the same inputs would give other arrays

MIN_ROWS = 4000  # a source with fewer rows is tokenised in seconds by this process alone

_DTYPES: dict[str, type[np.generic]] = {
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
}


@dataclass(frozen=True)
class SourceInfo:
    """What one source gave. `format`: the one it was read in; `truncated`: trees cut to `max_tokens`; `dropped`:
    unusable rows (or trees of a row) by reason."""

    name: str
    format: str
    rows: int
    trees: int
    truncated: int
    dropped: dict[str, int]


class Store:
    """An opened store. Arrays are memory-mapped and read-only; safe to share among threads and processes."""

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
        self.margin = arrays["margin"]
        self.num_tokens: np.ndarray = self.prompt_len + self._sum_branches(self.branch_len)  # [n] int64
        self.num_scored: np.ndarray = self._sum_branches(self.branch_scored)  # [n] int64

    def _sum_branches(self, values: np.ndarray) -> np.ndarray:
        """Sums `values` [B] int64 over the branches of each tree: [n] int64; 0 where there is none."""
        return np.diff(np.concatenate(([0], np.cumsum(values)))[self.tree_start])

    @classmethod
    def open(cls, folder: str | Path, names: Sequence[str] | None = None) -> Store:
        """Opens a whole store. `names`: what to call its sources in messages (a store is found by content, so
        the names in its manifest may be old ones). InputError: not there, or files missing or cut short."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            for name, size in manifest["bytes"].items():
                if (folder / f"{name}.npy").stat().st_size != size:
                    raise InputError(f"{folder}: not a whole store ({name}.npy should have {size} bytes)")
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _DTYPES}
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{folder}: not a whole store ({type(error).__name__}: {error})") from error
        for info, name in zip(manifest["sources"], names or [], strict=False):
            info["name"] = name
        return cls(folder, manifest, arrays)

    def __len__(self) -> int:
        """Number of trees."""
        return len(self.row_index)

    @property
    def dropped(self) -> Counter[str]:
        """Rows (or trees of a row) that were left out, by reason, over all sources."""
        return sum((Counter(info.dropped) for info in self.sources), Counter())

    def prompt(self, i: int) -> list[int]:
        """Token ids of tree i's prompt."""
        return _span(self.tokens, int(self.prompt_start[i]), int(self.prompt_len[i]))

    def tree(self, i: int) -> Tree:
        """Tree `i`, with id = i. InputError: a tree without branches (kind "prompts")."""
        branches = range(int(self.tree_start[i]), int(self.tree_start[i + 1]))
        spans = [(int(self.branch_start[b]), int(self.branch_len[b])) for b in branches]
        return Tree(
            prompt=self.prompt(i),
            branches=[_span(self.tokens, *s) for s in spans],
            scored=[[bool(x) for x in _span(self.scored, *s)] for s in spans],
            id=i,
        )

    def source_of(self, i: int) -> int:
        """Index in `sources` of tree i's source."""
        return int(np.searchsorted(self.source_start, i, side="right")) - 1

    def where(self, i: int) -> str:
        """Tree i for messages: 'data.jsonl row 12' (rows counted from 1, blank lines left out)."""
        return f"{self.sources[self.source_of(i)].name} row {int(self.row_index[i]) + 1}"

    def arrays(self) -> dict[str, np.ndarray]:
        """The flat forest, as `trees.pack_store` takes it."""
        names = ("tokens", "scored", "tree_start", "prompt_start", "prompt_len", "branch_start", "branch_len")
        return {name: getattr(self, name) for name in names}

    def summary(self) -> str:
        """Lines for the console: rows, trees, tokens, and what was dropped, by source."""
        lines = []
        for k, info in enumerate(self.sources):
            tokens = int(self.num_tokens[self.source_start[k] : self.source_start[k + 1]].sum())
            counts = f"{info.rows:,} rows, {info.trees:,} examples, {tokens:,} tokens"
            lines.append(f"{info.name} ({info.format}): {counts}")
            if info.truncated:
                lines.append(f"  cut to max_tokens: {info.truncated:,}")
            lines += [f"  dropped {count:,}: {reason}" for reason, count in sorted(info.dropped.items())]
        return "\n".join(lines)


def _span(array: np.ndarray, start: int, length: int) -> list[int]:
    return array[start : start + length].tolist()


def build_store(
    paths: Sequence[str],
    formats: str | Sequence[str],
    kind: str,
    renderer: Renderer,
    *,
    max_tokens: int,
    overlong: str = "drop",
    cache: str | Path,
    progress: bool = True,
    workers: int | None = None,
) -> Store:
    """Opens the store of these sources, tokenising them first when no whole one is in `cache`.

    Called by one process (the caller holds back the other ranks). `formats`: one for all sources or one each.
    `kind`: "preference" (trees of two branches: chosen, rejected), "sft", or "prompts" (no branch). `max_tokens`
    bounds prompt + branch; `overlong` "drop" leaves longer rows out and counts them, "truncate" cuts a branch's end,
    or drops the row where the prompt leaves no room; a prompt itself is never cut. `workers`: processes that render
    and tokenise (None: one per core, 8 at most; 1: none); the result does not depend on it. InputError: bad input
    (with file and row), or no row left.
    """
    if overlong not in ("drop", "truncate"):
        raise InputError(f"data.overlong: unknown value '{overlong}'; use drop or truncate")
    if not paths:
        raise InputError("data.train: no source is named")
    each = [formats] * len(paths) if isinstance(formats, str) else list(formats)
    if len(each) != len(paths):
        raise InputError(f"data.format: {len(each)} formats for {len(paths)} sources")
    found = [resolve(path) for path in paths]
    each = [choose_format(s, f, kind) for s, f in zip(found, each, strict=True)]
    inputs = {
        "version": STORE_VERSION,
        "sources": [s.digest() for s in found],
        "formats": each,
        "kind": kind,
        "renderer": renderer.hash,
        "max_tokens": max_tokens,
        "overlong": overlong,
    }
    key = hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = Path(cache).expanduser() / "store" / key
    names = [s.name for s in found]
    try:
        return Store.open(folder, names)
    except InputError:  # not there yet, or cut short by a full disk or a copy
        shutil.rmtree(folder, ignore_errors=True)
    if workers is None:
        # Forking is safe on Linux only, where the children do no more than tokenise.
        workers = min(8, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    _build(folder, found, each, inputs, renderer, progress, workers)
    return Store.open(folder, names)


def _build(
    folder: Path,
    found: list[Source],
    formats: list[str],
    inputs: dict[str, Any],
    renderer: Renderer,
    progress: bool,
    workers: int,
) -> None:
    """Writes the store under a temporary name beside `folder`, then renames it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for left in folder.parent.glob(f"{folder.name}.{host}.*.partial"):
        if not _is_running(int(left.name.split(".")[-3])):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    partial = folder.with_name(f"{folder.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        files = {name: _ArrayFile(partial / f"{name}.npy", dtype) for name, dtype in _DTYPES.items()}
        files["tree_start"].append([0])
        infos, max_token_id = [], -1
        for source, format in zip(found, formats, strict=True):
            dropped: Counter[str] = Counter()
            first, truncated = len(files["row_index"]), 0
            rows = source.count()
            usable = read(source, format, inputs["kind"], dropped)
            title = f"tokenising {source.name} ({format})"
            with tqdm(total=rows, desc=title, unit="row", disable=not progress) as bar:
                for row in _render(usable, renderer, workers if rows >= MIN_ROWS else 1):
                    bar.update(row.number + 1 - bar.n)
                    for tree in row.trees:
                        fitted = _fit(tree, inputs["max_tokens"], inputs["overlong"])
                        if isinstance(fitted, str):
                            dropped[fitted] += 1
                            continue
                        truncated += fitted.branches is not tree.branches
                        _append(files, row, fitted)
                        max_token_id = max(max_token_id, *map(max, [fitted.prompt, *fitted.branches]))
                bar.update(rows - bar.n)
            trees = len(files["row_index"]) - first
            if trees == 0:
                counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
                raise InputError(f"{source.name}: no usable row (dropped {counts or 'none: it has no rows'})")
            infos.append(SourceInfo(source.name, format, rows, trees, truncated, dict(dropped)))
        for file in files.values():
            file.close()
        manifest = {
            "hash": folder.name,
            "kind": inputs["kind"],
            "inputs": inputs,
            "sources": [asdict(info) for info in infos],
            "max_token_id": max_token_id,
            "bytes": {name: (partial / f"{name}.npy").stat().st_size for name in _DTYPES},
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        try:
            os.replace(partial, folder)
        except OSError:
            if not (folder / "manifest.json").exists():
                raise
            # Another run made the same store in the meantime.
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _RenderedRow(NamedTuple):
    """A row's number in its source, its margin (1.0 where it is no pair) and its trees."""

    number: int
    margin: float
    trees: list[Rendered]


def _render(rows: Iterator[Row], renderer: Renderer, workers: int) -> Iterator[_RenderedRow]:
    """The rows, rendered, in order."""
    if workers <= 1:
        for row in rows:
            yield _render_row(row, renderer)
        return
    # Forked: each worker has the renderer as it is, and touches nothing else of the parent.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_set_renderer, initargs=(renderer,)) as pool:
        pending: deque[Future[list[_RenderedRow]]] = deque()
        try:
            while chunk := list(islice(rows, 32)):
                pending.append(pool.submit(_render_chunk, chunk))
                if len(pending) > 4 * workers:  # bounds what waits in memory
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_renderer: Renderer | None = None  # of a worker process


def _set_renderer(renderer: Renderer) -> None:
    global _renderer
    _renderer = renderer


def _render_chunk(chunk: list[Row]) -> list[_RenderedRow]:
    if _renderer is None:
        raise RuntimeError("not a worker process")
    return [_render_row(row, _renderer) for row in chunk]


def _render_row(row: Row, renderer: Renderer) -> _RenderedRow:
    margin = row.example.margin if isinstance(row.example, Preference) else 1.0
    return _RenderedRow(row.number, margin, _trees(row, renderer))


def _trees(row: Row, renderer: Renderer) -> list[Rendered]:
    example = row.example
    try:
        if isinstance(example, Prompt):
            return [Rendered(renderer.prompt_ids(example.messages), [], [])]
        if isinstance(example, Preference):
            return [renderer.response_tree(example.prompt, [example.chosen, example.rejected])]
        if example.last_only:
            *prompt, answer = example.messages
            return [renderer.response_tree(prompt, [answer["content"]])]
        return renderer.conversation_trees(example.messages)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from error


def _fit(rendered: Rendered, max_tokens: int, overlong: str) -> Rendered | str:
    """The tree within `max_tokens`, or the reason why it is dropped."""
    prompt, branches, scored = rendered
    if not prompt:
        return "empty prompt"
    room = max_tokens - len(prompt)
    if not branches:  # a prompt to answer: cut, it would lose its generation header
        return rendered if room >= 0 else "prompt too long"
    if not all(branches) or not any(any(mask) for mask in scored):
        return "empty response"
    if room <= 0:
        return "prompt too long"
    if max(map(len, branches)) > room:
        if overlong == "drop":
            return "too long"
        branches, scored = [b[:room] for b in branches], [s[:room] for s in scored]
        if not all(any(mask) for mask in scored):
            return "nothing scored after truncation"
    if len(branches) == 2 and branches[0] == branches[1]:
        return "chosen equals rejected"  # as tokens: the template trims text, or they differ beyond the cut
    return rendered._replace(branches=branches, scored=scored)


def _append(files: dict[str, _ArrayFile], row: _RenderedRow, tree: Rendered) -> None:
    start = len(files["tokens"])
    files["row_index"].append([row.number])
    files["margin"].append([row.margin])
    files["prompt_start"].append([start])
    files["prompt_len"].append([len(tree.prompt)])
    files["tokens"].append(tree.prompt)
    files["scored"].append([0] * len(tree.prompt))
    for branch, mask in zip(tree.branches, tree.scored, strict=True):
        files["branch_start"].append([len(files["tokens"])])
        files["branch_len"].append([len(branch)])
        files["branch_scored"].append([sum(mask)])
        files["tokens"].append(branch)
        files["scored"].append(mask)
    files["tree_start"].append([len(files["branch_start"])])


class _ArrayFile:
    """A one-dimensional .npy file that grows. NumPy pads the header for a longer shape, so that the final length
    can be written over the first one in place."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._file = open(path, "wb")
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._pending: list[float] = []
        self._header()
        self._data_start = self._file.tell()

    def _header(self) -> None:
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, description)

    def __len__(self) -> int:
        return self._length

    def append(self, values: Sequence[float]) -> None:
        self._pending.extend(values)
        self._length += len(values)
        if len(self._pending) >= 1 << 16:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.asarray(self._pending, dtype=self._dtype).tobytes())
        self._pending.clear()

    def close(self) -> None:
        self._flush()
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._data_start:
            raise RuntimeError("the .npy header changed its size")
        self._file.close()
