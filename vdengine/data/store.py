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

Trees of kind "prompts" have no branch: they are prompts for the model to answer, and end with the generation prompt.
The model's answers become the branches, so such a tree cannot be packed as it is.

The trees of a source are contiguous and in file order: `source_start` [sources + 1] int64.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vdengine.data.examples import Conversation, Message, Preference, Prompt
from vdengine.data.formats import Account, Row, choose_format, read
from vdengine.data.locate import FileSource, Source, resolve
from vdengine.data.parsers import PREFERENCE_FORMATS
from vdengine.data.rendering import RenderedRow, render
from vdengine.data.storefolder import ArrayFile, give_name, partial_folder
from vdengine.errors import InputError
from vdengine.files import digest, sync
from vdengine.outside import first_line, is_count, json_object, open_regular, parsing, printable
from vdengine.progress import progress as show
from vdengine.text.renderer import Rendered
from vdengine.trees import Tree

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer

STORE_VERSION = 4  # part of the hash; increase it when the same inputs give other arrays

MIN_ROWS = 4000  # a source with fewer rows takes only seconds, so this process tokenises it alone

# NFC, which Qwen's tokenizers apply, writes three bytes of nine at best (the jamo of a Hangul syllable).
_SHRINKS = 3

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
        self.margin = arrays["margin"]
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
            if manifest.pop("check", None) != _check(manifest):
                raise InputError(f"{MANIFEST} is damaged")
            if not manifest["hash"] == _key(manifest["inputs"]) == folder.name:
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
    lengths = {"prompt_start": trees, "prompt_len": trees, "tree_start": trees + 1, "margin": trees}
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
    if (arrays["row_index"] < 0).any() or not np.isfinite(arrays["margin"]).all():
        raise InputError("row_index.npy or margin.npy has a value that no row has")


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
    verify: bool = True,
    reserved: int = 0,
    vocab_size: int | None = None,
) -> Store:
    """Open the store of these sources. If there is no whole one in `cache`, tokenise them first.

    One process must call this alone, while the other ranks wait (`engine.parallel.main_first`).

    Args:
        paths: names of sources, as `locate.resolve` reads them, or sources.
        formats: one for all sources or one for each; see `formats.choose_format`.
        kind: "preference" (trees of two branches, chosen and rejected), "sft", or "prompts" (no branch).
        max_tokens: of prompt + branch.
        overlong: "drop" drops longer rows and counts them. "truncate" cuts the end of a branch, or drops the row if the
            prompt leaves no room; a prompt is never cut. A text that has too many bytes for `max_tokens` tokens of any
            kind is dropped in either case, without being tokenised.
        workers: processes that render and tokenise; default: one per core, at most 8; 1: only this one. The result does
            not depend on it.
        verify: whether a store that is there already is read whole to compare hashes. One rank is enough.
        reserved: tokens that data.max_tokens has above `max_tokens`; for messages, which name that key.
        vocab_size: the model's. A store with ids that are not below it is built again.

    Raises:
        InputError: bad input (the message names file and row), no usable row, or a cache that cannot be written.
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
    stamps = [_stamp(s) for s in sources]
    inputs = {
        "version": STORE_VERSION,
        "sources": [s.digest() for s in sources],
        "formats": source_formats,
        "kind": kind,
        "renderer": renderer.hash,
        "max_tokens": max_tokens,
        "overlong": overlong,
    }
    folder = _cache_folder(cache) / "store" / _key(inputs)
    names = [s.name for s in sources]
    try:
        return Store.open(folder, names, verify=verify, vocab_size=vocab_size)
    except InputError as error:
        if _exists(folder / MANIFEST):
            tqdm.write(f"{error}; it is built again", file=sys.stderr)
    if workers is None:
        # Forking is safe on Linux only, and the children only tokenise.
        workers = min(8, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    try:
        with partial_folder(folder) as partial:
            infos = _Builder(partial, inputs, renderer, progress, workers, reserved).build(sources, source_formats)
            for source, stamp in zip(sources, stamps, strict=True):
                if _stamp(source) != stamp:
                    raise InputError(f"{source.name}: changed while it was read; start again")
            _seal(partial, folder, inputs, infos)
    except OSError as error:  # of the cache: what is wrong with a source is an InputError already
        raise InputError(
            f"{folder.parent}: cannot be written ({error.strerror or first_line(error)}); "
            "make room there, or name another folder (data.cache)"
        ) from None
    return Store.open(folder, names, verify=False, vocab_size=vocab_size)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _cache_folder(cache: str | Path) -> Path:
    try:
        if "\0" not in str(cache):
            return Path(cache).expanduser()
    except RuntimeError:  # "~who" of someone who is not here
        pass
    raise InputError(f"data.cache: {printable(cache)} is no folder that could be made")


def _stamp(source: Source) -> Any:
    """What changes with a source's files while they are read."""
    return source.stamp() if isinstance(source, FileSource) else None


def _seal(partial: Path, folder: Path, inputs: dict[str, Any], infos: list[SourceInfo]) -> None:
    """Write the manifest, and give the folder its name, unless another process has made the same store meanwhile."""
    tokens = np.load(partial / "tokens.npy", mmap_mode="r")
    manifest = {
        "hash": folder.name,
        "kind": inputs["kind"],
        "inputs": inputs,
        "sources": [asdict(info) for info in infos],
        "max_token_id": int(tokens.max(initial=-1)),
        "bytes": {name: (partial / f"{name}.npy").stat().st_size for name in DTYPES},
        "hashes": {name: digest(partial / f"{name}.npy") for name in DTYPES},
    }
    with open(partial / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest | {"check": _check(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(partial)
    give_name(partial, folder, _is_whole)


def _is_whole(folder: Path) -> bool:
    try:
        Store.open(folder)
    except InputError:
        return False
    return True


def _key(inputs: dict[str, Any]) -> str:
    """The name of the store of these inputs."""
    return hashlib.blake2b(json.dumps(inputs, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check(manifest: dict[str, Any]) -> str:
    """A hash of a manifest without its own."""
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()


class _Builder:
    """Writes the arrays of a store into a folder."""

    def __init__(
        self, folder: Path, inputs: dict[str, Any], renderer: Renderer, progress: bool, workers: int, reserved: int
    ) -> None:
        self.folder, self.renderer, self.progress, self.workers = folder, renderer, progress, workers
        self.kind: str = inputs["kind"]
        self.max_tokens: int = inputs["max_tokens"]
        self.overlong: str = inputs["overlong"]
        self.reserved = reserved

    @cached_property
    def _max_bytes(self) -> int:
        """Bytes that no text of `max_tokens` tokens can have. To look at all of a vocabulary takes up to a second."""
        return self.max_tokens * _longest_token(self.renderer) * _SHRINKS

    def build(self, sources: list[Source], formats: list[str]) -> list[SourceInfo]:
        """Write all arrays; what became of each source's rows."""
        files: dict[str, ArrayFile] = {}
        try:
            for name, dtype in DTYPES.items():
                files[name] = ArrayFile(self.folder / f"{name}.npy", dtype)
            files["tree_start"].append([0])
            infos = [self._add(source, format, files) for source, format in zip(sources, formats, strict=True)]
            for file in files.values():
                file.finish()
            return infos
        finally:
            for file in files.values():
                file.close()

    def _add(self, source: Source, format: str, files: dict[str, ArrayFile]) -> SourceInfo:
        """Append the rows of a source."""
        dropped: Counter[str] = Counter()
        account, lengths = Account(), list[int]()
        first_tree, truncated = len(files["row_index"]), 0
        rows = source.count()
        usable = read(source, format, self.kind, dropped, account)
        title = f"tokenising {source.name} ({format})"
        with show(None, title if self.progress else None, "row", rows) as bar:
            for row in self._rendered(self._of_readable_length(usable, dropped), source, rows):
                bar.update(row.number + 1 - bar.n)
                for tree in row.trees:
                    fitted = _fit(tree, self.max_tokens, self.overlong)
                    if isinstance(fitted, str):
                        dropped[fitted] += 1
                        if fitted in TOO_LONG:
                            lengths.append(len(tree.prompt) + max(map(len, tree.branches), default=0))
                        continue
                    truncated += fitted.branches is not tree.branches
                    _append(files, row, fitted)
            bar.update(rows - bar.n)
        trees = len(files["row_index"]) - first_tree
        overlong = _in_words(lengths, self.max_tokens, self.reserved)
        if trees == 0:
            counts = ", ".join(
                f"{reason}: {count}{overlong if reason in TOO_LONG else ''}"
                for reason, count in sorted(dropped.items())
            )
            raise InputError(f"{source.name}: no usable row (dropped {counts or 'none: it has no rows'})")
        return SourceInfo(
            source.name,
            format,
            rows,
            trees,
            truncated,
            dict(dropped),
            dict(account.noted),
            list(account.unread),
            overlong,
        )

    def _of_readable_length(self, rows: Iterator[Row], dropped: Counter[str]) -> Iterator[Row]:
        """The rows without those that are too long whatever their tokens; answers that will be cut are cut."""
        for row in rows:
            if _least_bytes(row.example) > self.max_tokens * _SHRINKS:  # a token may be a byte
                if self.overlong == "truncate":
                    row = row._replace(example=_cut(row.example, self._max_bytes))
                if _least_bytes(row.example) > self._max_bytes:
                    dropped[f"too long to be tokenised (a text of more than {self._max_bytes:,} bytes)"] += 1
                    continue
            yield row

    def _rendered(self, rows: Iterator[Row], source: Source, count: int) -> Iterator[RenderedRow]:
        try:
            yield from render(rows, self.renderer, self.workers if count >= MIN_ROWS else 1)
        except BrokenProcessPool:
            raise InputError(
                f"{source.name}: a process that tokenises was killed, as it is when memory runs out; start again"
            ) from None


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


def _append(files: dict[str, ArrayFile], row: RenderedRow, tree: Rendered) -> None:
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


def _longest_token(renderer: Renderer) -> int:
    """Bytes of the longest token, as the vocabulary spells it, which is never shorter than what it stands for."""
    tokenizer: Any = renderer.tokenizer
    return max((len((tokenizer.token(i) or "").encode()) for i in range(tokenizer.vocab_size)), default=1)


def _least_bytes(example: Any) -> int:
    """Bytes of the longest text of an example that every template keeps. One may leave out white space around a
    content, and the thinking of turns before the last."""
    if isinstance(example, Preference):
        messages, last = [*example.prompt, example.chosen, example.rejected], [example.chosen, example.rejected]
    elif isinstance(example, Conversation | Prompt):
        messages, last = example.messages, example.messages[-1:]
    else:
        return 0  # a tree
    texts = [m["content"].rpartition("</think>")[2] for m in messages]
    texts += [m.get("reasoning_content", "") for m in last]
    return max(len(text.strip().encode()) for text in texts)


def _cut(example: Any, size: int) -> Any:
    """An example whose answers have at most `size` bytes."""

    def cut(answer: Message) -> Message:
        text: str = answer["content"]
        if len(text) * 4 <= size or len(data := text.encode()) <= size:
            return answer
        return answer | {"content": data[:size].decode(errors="ignore")}

    if isinstance(example, Preference):
        return replace(example, chosen=cut(example.chosen), rejected=cut(example.rejected))
    if isinstance(example, Conversation):
        return replace(example, messages=[*example.messages[:-1], cut(example.messages[-1])])
    return example


def _in_words(lengths: list[int], max_tokens: int, reserved: int) -> str:
    """What the lengths [n] of rows that are too long say of data.max_tokens."""
    if not lengths:
        return ""
    lengths = sorted(length + reserved for length in lengths)
    n = len(lengths)
    keep = sorted({(share, lengths[-(-n * share // 100) - 1]) for share in (50, 90, 100)})
    last: dict[int, int] = {tokens: share for share, tokens in keep}  # by value the largest share that it keeps
    values = ", ".join(f"{tokens:,} would keep {share}%" for tokens, share in last.items())
    return f" for data.max_tokens = {max_tokens + reserved:,} (the longest has {lengths[-1]:,}; {values} of them)"
