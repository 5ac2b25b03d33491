"""Stores: tokenised rows in memory-mapped flat arrays, written once for the same content and opened by every rank.

A store is a folder `<cache>/store/<hash>/` of .npy files and a manifest. The hash covers everything that decides the
content: the bytes of the sources, format, kind, tokenizer, template, `max_tokens`, `overlong`. A store is written under
a temporary name and renamed when it is complete. Its arrays (n trees, B branches, L tokens) have the layout that
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

Trees of kind "prompts" have no branch: they are prompts for the model to answer, and end with the generation prompt.
The model's answers become the branches, so such a tree cannot be packed as it is.

The trees of a source are contiguous and in file order: `source_start` [sources + 1] int64.
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

STORE_VERSION = 2  # part of the hash; increase it when the same inputs give other arrays

MIN_ROWS = 4000  # a source with fewer rows takes only seconds, so this process tokenises it alone

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
    """What was read of one source."""

    name: str
    format: str  # in which it was read
    rows: int  # usable or not
    trees: int
    truncated: int  # trees that were cut to `max_tokens`
    dropped: dict[str, int]  # unusable rows (or trees of a row) by reason


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
        self.margin = arrays["margin"]
        self.num_tokens: np.ndarray = self.prompt_len + self._sum_branches(self.branch_len)  # [n] int64
        self.num_scored: np.ndarray = self._sum_branches(self.branch_scored)  # [n] int64

    def _sum_branches(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` [B] int64 over the branches of each tree: [n] int64; 0 for a tree without branches."""
        return np.diff(np.concatenate(([0], np.cumsum(values)))[self.tree_start])

    @classmethod
    def empty(cls, kind: str) -> Store:
        """A store without rows: of a run that is given each step's trees."""
        arrays = {name: np.zeros(int(name == "tree_start"), dtype) for name, dtype in _DTYPES.items()}
        return cls(Path(), {"hash": "", "kind": kind, "max_token_id": -1, "sources": []}, arrays)

    @classmethod
    def open(cls, folder: str | Path, names: Sequence[str] | None = None) -> Store:
        """Open a complete store.

        Args:
            names: of the sources in messages. A store is found by its content, so the names in its manifest may be
                those of an earlier run.

        Raises:
            InputError: there is no store, or files of it are missing or cut short.
        """
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
            if info.truncated:
                lines.append(f"  cut to max_tokens: {info.truncated:,}")
            lines += [f"  dropped {count:,}: {reason}" for reason, count in sorted(info.dropped.items())]
        return "\n".join(lines) or "no rows"


def _span(array: np.ndarray, start: int, length: int) -> list[int]:
    return array[start : start + length].tolist()


def build_store(
    paths: Sequence[str | Source],
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
    """Open the store of these sources. If there is no complete one in `cache`, tokenise them first.

    One process must call this alone, while the other ranks wait (`engine.parallel.main_first`).

    Args:
        paths: names of sources, as `locate.resolve` reads them, or sources.
        formats: one for all sources or one for each; see `formats.choose_format`.
        kind: "preference" (trees of two branches, chosen and rejected), "sft", or "prompts" (no branch).
        max_tokens: of prompt + branch.
        overlong: "drop" drops longer rows and counts them. "truncate" cuts the end of a branch, or drops the row if the
            prompt leaves no room; a prompt is never cut.
        workers: processes that render and tokenise; default: one per core, at most 8; 1: only this one. The result does
            not depend on it.

    Raises:
        InputError: bad input (the message names file and row), or no usable row.
    """
    if overlong not in ("drop", "truncate"):
        raise InputError(f"data.overlong: unknown value '{overlong}'; use drop or truncate")
    if not paths:
        raise InputError("data.train: no source is named")
    source_formats = [formats] * len(paths) if isinstance(formats, str) else list(formats)
    if len(source_formats) != len(paths):
        raise InputError(f"data.format: {len(source_formats)} formats for {len(paths)} sources")
    sources: list[Source] = [resolve(path) if isinstance(path, str) else path for path in paths]
    source_formats = [choose_format(s, f, kind) for s, f in zip(sources, source_formats, strict=True)]
    inputs = {
        "version": STORE_VERSION,
        "sources": [s.digest() for s in sources],
        "formats": source_formats,
        "kind": kind,
        "renderer": renderer.hash,
        "max_tokens": max_tokens,
        "overlong": overlong,
    }
    key = hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = Path(cache).expanduser() / "store" / key
    names = [s.name for s in sources]
    try:
        return Store.open(folder, names)
    except InputError:  # there is none yet, or a full disk or a copy has cut it short
        shutil.rmtree(folder, ignore_errors=True)
    if workers is None:
        # Forking is safe on Linux only, and the children only tokenise.
        workers = min(8, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    _build(folder, sources, source_formats, inputs, renderer, progress, workers)
    return Store.open(folder, names)


def _build(
    folder: Path,
    sources: list[Source],
    formats: list[str],
    inputs: dict[str, Any],
    renderer: Renderer,
    progress: bool,
    workers: int,
) -> None:
    """Write the store under a temporary name beside `folder`, then rename it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for leftover in folder.parent.glob(f"{folder.name}.{host}.*.partial"):
        if not _is_running(int(leftover.name.split(".")[-3])):
            shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    partial = folder.with_name(f"{folder.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        files = {name: _ArrayFile(partial / f"{name}.npy", dtype) for name, dtype in _DTYPES.items()}
        files["tree_start"].append([0])
        infos, max_token_id = [], -1
        for source, format in zip(sources, formats, strict=True):
            dropped: Counter[str] = Counter()
            first_tree, truncated = len(files["row_index"]), 0
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
            trees = len(files["row_index"]) - first_tree
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
            # else another run has made the same store in the meantime
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _RenderedRow(NamedTuple):
    """A row's number in its source, its margin (1.0 if it is not a preference pair) and its trees."""

    number: int
    margin: float
    trees: list[Rendered]


def _render(rows: Iterator[Row], renderer: Renderer, workers: int) -> Iterator[_RenderedRow]:
    """The rendered rows, in order."""
    if workers <= 1:
        for row in rows:
            yield _render_row(row, renderer)
        return
    # The workers are forked, so they have a copy of the renderer. They use nothing else of the parent.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_set_renderer, initargs=(renderer,)) as pool:
        pending: deque[Future[list[_RenderedRow]]] = deque()
        try:
            while chunk := list(islice(rows, 32)):
                pending.append(pool.submit(_render_chunk, chunk))
                if len(pending) > 4 * workers:  # bounds the memory of rows that wait
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
    """The token ids of a row: one tree, or several of a conversation whose earlier turns the template rewrites.

    Raises:
        InputError: the template cannot render the row; it names the row.
    """
    example = row.example
    if isinstance(example, Tree):
        return [
            Rendered(example.prompt, example.branches, example.scored or [[True] * len(b) for b in example.branches])
        ]
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
    """The tree, cut to `max_tokens` if necessary; or the reason why it is dropped."""
    prompt, branches, scored = rendered
    if not prompt:
        return "empty prompt"
    room = max_tokens - len(prompt)
    if not branches:  # a prompt to answer; a cut would remove its generation prompt
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
        return "chosen equals rejected"  # in tokens: the template strips text, or they differ after the cut
    return rendered._replace(branches=branches, scored=scored)


def _append(files: dict[str, _ArrayFile], row: _RenderedRow, tree: Rendered) -> None:
    """Append a tree to the arrays."""
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
    """A one-dimensional .npy file that values are appended to. NumPy pads the header for a longer shape, so the final
    length can be written over the first one in place."""

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
        """Append values; they are written in blocks of 64k."""
        self._pending.extend(values)
        self._length += len(values)
        if len(self._pending) >= 1 << 16:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.asarray(self._pending, dtype=self._dtype).tobytes())
        self._pending.clear()

    def close(self) -> None:
        """Write the remaining values and the final length."""
        self._flush()
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._data_start:
            raise RuntimeError("the .npy header changed its size")
        self._file.close()
