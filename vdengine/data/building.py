"""Building a store: the rows of sources tokenised, cut or dropped, and written once for the same content."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from vdengine.data.examples import Conversation, Message, Preference, Prompt
from vdengine.data.formats import Account, Row, choose_format, read
from vdengine.data.locate import FileSource, Source, resolve
from vdengine.data.rendering import RenderedRow, render
from vdengine.data.store import DTYPES, MANIFEST, TOO_LONG, SourceInfo, Store
from vdengine.data.storefolder import ArrayFile, give_name
from vdengine.errors import InputError
from vdengine.files import digest, json_hash, partial, sync
from vdengine.outside import first_line, printable
from vdengine.progress import progress as show
from vdengine.text.renderer import Rendered

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer

STORE_VERSION = 5  # part of the hash; increase it when the same inputs give other arrays

MIN_ROWS = 4000  # a source with fewer rows takes only seconds, so this process tokenises it alone

# NFC, which Qwen's tokenizers apply, writes three bytes of nine at best (the jamo of a Hangul syllable).
_SHRINKS = 3


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
        kind: "preference" (trees of two branches, chosen and rejected), "sft", "unpaired" (one branch and its label),
            or "prompts" (no branch).
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
    folder = _cache_folder(cache) / "store" / json_hash(inputs)
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
        with partial(folder, folder=True, leftovers="*.partial") as unfinished:
            infos = _Builder(unfinished, inputs, renderer, progress, workers, reserved).build(sources, source_formats)
            for source, stamp in zip(sources, stamps, strict=True):
                if _stamp(source) != stamp:
                    raise InputError(f"{source.name}: changed while it was read; start again")
            _seal(unfinished, folder, inputs, infos)
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
        json.dump(manifest | {"check": json_hash(manifest)}, file, indent=1)
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
    files["wanted"].append([row.wanted])
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
