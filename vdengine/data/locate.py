"""Finding the files of a data source.

A source is named by one string, as in a recipe's `data.train`:

- a local .jsonl, .json (both also .gz), .parquet or .arrow file, or a folder of such files (`folder:split` where the
  file names name splits), also one of `datasets.save_to_disk`;
- a hub data set `org/name[/folder or configuration][@revision][:split]` (default split: train);
- the built-in `values-synth:support | oppose | shuffled` (`?topics=a,b` keeps some of its topics).

Files are read as data only: code of a data set is never run.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import re
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

from vdengine.data.rowfiles import EXTENSIONS, count, is_data, raw_rows
from vdengine.errors import InputError
from vdengine.outside import first_line, is_text, json_object, open_regular, printable

SYNTH = "values-synth"
SYNTH_VARIANTS = ("support", "oppose", "shuffled")

_FILES = ", ".join(EXTENSIONS)
_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<folder>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.-]+))?"
)


class Source(Protocol):
    """Rows that a store is made of: in files (`FileSource`) or in memory (`data.memory`)."""

    @property
    def name(self) -> str:
        """As the user wrote it; for messages."""

    @property
    def format(self) -> str | None:
        """The only format in which the source can be read; None: one of `data.formats.FORMATS`."""

    def digest(self) -> str:
        """Content hash, 32 hex digits."""

    def count(self) -> int:
        """The number of rows, usable or not."""

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row as it is, in order, after its place for messages. May be called again."""


@dataclass(frozen=True)
class FileSource:
    """A source whose files have been found."""

    name: str  # as the user wrote it
    files: tuple[Path, ...]  # local paths, in reading order
    labels: tuple[str, ...]  # one per file: its name in messages
    commit: str | None = None  # of a hub data set
    variant: str | None = None  # of the built-in set
    topics: tuple[str, ...] = ()  # of the built-in set; (): all

    @property
    def format(self) -> str | None:
        """As `Source.format`: the built-in set has one of its own."""
        return None if self.variant is None else "values_synth"

    def digest(self) -> str:
        """Content hash, 32 hex digits. Of local and built-in files it covers the bytes and not the names; of a hub data
        set the commit and the names of the files.

        Raises:
            InputError: a file that cannot be read.
        """
        hasher = hashlib.blake2b(digest_size=16)
        hasher.update(json.dumps([self.commit, self.variant, sorted(self.topics)]).encode())
        for path, label in zip(self.files, self.labels, strict=True):
            if self.commit is not None:
                hasher.update(label.encode() + b"\0")
                continue
            with open_regular(path) as file:
                try:
                    hasher.update(hashlib.file_digest(file, "blake2b").digest())  # type: ignore[arg-type]
                except OSError as error:
                    raise InputError(f"{label}: cannot be read ({error.strerror})") from None
        return hasher.hexdigest()

    def stamp(self) -> list[tuple[int, ...]]:
        """What changes when a file is written or replaced, which costs nothing to look at.

        Raises:
            InputError: a file that is gone.
        """
        try:
            states = [os.stat(path) for path in self.files]
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read any more ({error.strerror})") from None
        return [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in states]

    def count(self) -> int:
        """The number of rows, usable or not.

        Raises:
            InputError: a file that cannot be read.
        """
        return sum(count(path, label) for path, label in zip(self.files, self.labels, strict=True))

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row as the file has it, in reading order, after its place for messages ("file line 3").

        Raises:
            InputError: a file that cannot be read, or a row that is not a JSON object.
        """
        return self.rows_with(())

    def rows_with(self, columns: Container[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """`rows`, with the values of these columns beside those that `data.meanings` knows."""
        for path, label in zip(self.files, self.labels, strict=True):
            yield from raw_rows(path, label, columns)


# ------------------------------------------------------------------------------------------------- resolving


def resolve(name: str) -> FileSource:
    """Find the files of a source; those of a hub data set are downloaded.

    Raises:
        InputError: there is nothing of that name, no file of that split, or the download failed.
    """
    here, match = resolve_here(name), _HUB_ID.fullmatch(name)
    if here is None and match is not None:
        return _resolve_hub(name, match)
    if here is None:
        raise RuntimeError("what is not here is the id of a hub data set")
    return here


def resolve_here(name: str) -> FileSource | None:
    """`resolve` on this machine: None for what can only be a hub data set.

    Raises:
        InputError: there is nothing of that name, and it is no hub data set's; no file of that split.
    """
    if name == SYNTH or name.startswith(SYNTH + ":"):
        return _resolve_synth(name)
    path, split = _local(name), None
    kind = _kind(path)
    if kind is None and ":" in name:
        base, _, ending = name.rpartition(":")
        if base and _kind(_local(base)) == "folder":
            path, kind, split = _local(base), "folder", ending
    if kind == "folder":
        return _resolve_folder(name, path, split)
    if kind == "other":
        raise InputError(f"{printable(name)}: not a regular file")
    if kind == "file":
        if not path.name.endswith(EXTENSIONS):
            raise InputError(f"{name}: not a data file; the name must end with {_FILES}")
        return FileSource(name, (path,), (name,))
    if _HUB_ID.fullmatch(name) and not name.endswith(EXTENSIONS):
        return None
    raise InputError(
        f"{printable(name)}: no such file or folder (a source is a {_FILES} file, a folder of them, "
        f"a hub data set 'org/name' or 'org/name:split', or {SYNTH}:{'|'.join(SYNTH_VARIANTS)})"
    )


def _local(name: str) -> Path:
    """A name as a path of this machine."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~who" of someone who is not here
        return Path(name)


def _kind(path: Path) -> str | None:
    """What a path is: "file", "folder" or "other"; None: nothing is there.

    Raises:
        InputError: it cannot be looked at (a name with NUL or that is too long, a folder without permission).
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{printable(str(path)[:200])}: cannot be read: {why}") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def _resolve_folder(name: str, path: Path, split: str | None) -> FileSource:
    """`resolve` of a folder: of data files, or one of `datasets.save_to_disk`."""
    if _kind(path / "dataset_dict.json") == "file":
        splits = json_object(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(isinstance(s, str) and _is_plain(s) for s in splits) or not splits:
            raise InputError(f"{path / 'dataset_dict.json'}: 'splits' must be a list of folders")
        if split is None and len(splits) > 1:
            raise InputError(f"{name}: holds the splits {', '.join(splits)}; name one, as '{name}:{splits[0]}'")
        if split is not None and split not in splits:
            raise InputError(f"{name}: no split '{split}'; it has {', '.join(splits)}")
        path, split = path / (split or splits[0]), None
    try:
        names = sorted(entry.name for entry in os.scandir(path) if not entry.is_dir())
        folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    if "state.json" in names and (saved := _saved_files(path)) is not None:
        if split is not None:
            raise InputError(f"{name}: no split '{split}'; it is one data set, saved by datasets")
        if more := [f for f in names if is_data(f) and f not in saved]:
            raise InputError(
                f"{name}: holds {printable(more[0])} beside {saved[0]}, the data set that state.json names; "
                "move one of them elsewhere"
            )
        return FileSource(name, tuple(path / f for f in saved), tuple(f"{path}/{f}" for f in saved))
    files = [f for f in names if is_data(f)]
    if not files:
        inside = [f for f in folders if any(is_data(p.name) for p in (path / f).glob("*"))]
        hint = f"; its folder '{inside[0]}' has some" if inside else ""
        raise InputError(f"{name}: no data file in this folder; it needs {_FILES} files{hint}")
    chosen = _of_split(files, split, name, default=None)
    return FileSource(name, tuple(path / f for f in chosen), tuple(f"{path}/{f}" for f in chosen))


def _saved_files(path: Path) -> list[str] | None:
    """The files of a data set that `datasets.save_to_disk` wrote, in order; None: its state.json is another's.

    Raises:
        InputError: a state.json that cannot be read as it should, or files that are not there.
    """
    state = json_object(path / "state.json")
    if "_data_files" not in state:
        return None
    entries = state["_data_files"]
    names = [e.get("filename") for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    files = [f for f in names if isinstance(f, str) and _is_plain(f) and f.endswith(".arrow")]
    if not files or len(files) != len(entries):
        raise InputError(f"{path / 'state.json'}: '_data_files' must be a list of .arrow files of this folder")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{path}: only a selection of its rows counts; save dataset.flatten_indices() instead")
    for file in files:
        if _kind(path / file) != "file":
            raise InputError(f"{path / file}: no such file, though state.json names it")
    return files


def _is_plain(name: str) -> bool:
    """Whether a name is one of a file, and stays in its folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name and is_text(name)


def _split_of(file_name: str) -> str | None:
    """The split that a file name names: 'data/train-00000-of-00001.parquet' -> 'train'; None if it names none."""
    stem = file_name.rsplit("/", 1)[-1].split(".", 1)[0]
    stem = re.sub(r"-\d{5}-of-\d{5}.*$", "", stem)
    match = re.fullmatch(r"(?:.*[-_])?((?:train|test|valid|validation|dev|eval)(?:_[A-Za-z]+)?)", stem)
    return match.group(1) if match else None


def _of_split(files: list[str], split: str | None, name: str, default: str | None) -> list[str]:
    """The files of `split`. Without one those of `default`, or all files if their names do not name several splits."""
    splits = sorted({s for s in map(_split_of, files) if s is not None})
    if split is None:
        if len(splits) <= 1 and (default is None or not splits or splits == [default]):
            return files
        if default is None or default not in splits:
            names = ", ".join(splits)
            raise InputError(f"{name}: holds the splits {names}; name one, as '{name}:{splits[0]}'")
        split = default
    split_files = [f for f in files if _split_of(f) == split]
    if not split_files:
        names = ", ".join(splits) or "no named splits"
        raise InputError(f"{name}: no file of split '{split}'; it has {names}")
    return split_files


def _resolve_synth(name: str) -> FileSource:
    """`resolve` of the built-in values-synth."""
    head, _, query = name.partition("?")
    variant = head.partition(":")[2]
    if variant not in SYNTH_VARIANTS:
        allowed = ", ".join(f"{SYNTH}:{v}" for v in SYNTH_VARIANTS)
        raise InputError(f"{name}: unknown variant '{variant}' of the built-in set; use {allowed}")
    options = parse_qs(query, keep_blank_values=True)
    for option in options:
        if option != "topics":
            raise InputError(f"{name}: unknown option '{option}'; the only one is topics=a,b")
    topics = tuple(t for value in options.get("topics", []) for t in value.split(","))
    # The package has a compiled module, so it is installed as plain files and the resource is a path.
    path = Path(str(importlib.resources.files("vdengine.data") / "synth" / f"{SYNTH}.jsonl"))
    if not path.is_file():
        raise InputError(f"{name}: the package data file synth/{SYNTH}.jsonl is missing; reinstall vdengine")
    if topics:
        all_topics = sorted({row["topic"] for _, row in raw_rows(path, path.name)})
        unknown = [t for t in topics if t not in all_topics]
        if unknown:
            raise InputError(f"{name}: unknown topic '{unknown[0]}'; the topics are {', '.join(all_topics)}")
    return FileSource(name, (path,), (path.name,), variant=variant, topics=topics)


def _resolve_hub(name: str, match: re.Match[str]) -> FileSource:
    """`resolve` of a hub data set: lists and downloads the files of one split. Without a network the files of an
    earlier download are used."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repo, split, revision = match["repo"], match["split"], match["revision"]
    folder = match["folder"].strip("/")
    cached: Path | None = None
    card: dict[str, Any] = {}
    try:
        info = HfApi().dataset_info(repo, revision=revision)
        commit, names = str(info.sha), [s.rfilename for s in info.siblings or []]
        card = info.card_data.to_dict() if info.card_data else {}
    except Exception as error:  # the hub's client raises its HTTP library's types too, which have no common base
        try:
            snapshot = snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True)
        except OSError:
            raise InputError(
                f"{name}: no such local file, and the hub data set '{repo}' cannot be read "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        cached = Path(snapshot)
        commit = cached.name
        names = [p.relative_to(cached).as_posix() for p in cached.rglob("*") if p.is_file()]
    files = sorted(n for n in names if is_data(n.rsplit("/", 1)[-1]))
    declared = _declared_files(card, files, folder, name)
    if declared:
        wanted = split or "train"
        if wanted not in declared:
            raise InputError(f"{name}: no split '{wanted}'; it has {', '.join(sorted(declared))}")
        chosen = declared[wanted]
    else:
        files = [f for f in files if not folder or f == folder or f.startswith(folder + "/")]
        if not files:
            raise InputError(f"{name}: the hub data set has no {_FILES} file here")
        chosen = _of_split(files, split, name, default="train")
    try:
        paths = tuple(
            cached / f if cached else Path(hf_hub_download(repo, f, repo_type="dataset", revision=commit))
            for f in chosen
        )
    except Exception as error:
        raise InputError(f"{name}: download failed ({type(error).__name__}: {first_line(error)})") from error
    return FileSource(name, paths, tuple(f"{repo}/{f}" for f in chosen), commit=commit)


def _declared_files(card: dict[str, Any], files: list[str], folder: str, name: str) -> dict[str, list[str]]:
    """The files of each split as the data set's card declares them (`configs: data_files`); {} if it does not."""
    from fnmatch import fnmatch

    configs = card.get("configs")
    configs = [c for c in configs if isinstance(c, dict) and c.get("data_files")] if isinstance(configs, list) else []
    if not configs:
        return {}
    selected = [c for c in configs if c.get("config_name") == folder]
    if folder and not selected:
        return {}  # `folder` is a folder of the repository and not a configuration
    if not folder:
        selected = [c for c in configs if c.get("default") or c.get("config_name") == "default"] or configs
        if len(selected) > 1:
            names = [str(c.get("config_name")) for c in configs]
            raise InputError(f"{name}: has the configurations {', '.join(names)}; name one, as '{name}/{names[0]}'")
    entries = selected[0]["data_files"]
    if isinstance(entries, str | list) and all(isinstance(e, str) for e in entries):
        entries = [{"split": "train", "path": entries}]
    splits: dict[str, list[str]] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        patterns = entry.get("path") if isinstance(entry, dict) else None
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns) or "split" not in entry:
            raise InputError(f"{name}: its card's data_files must say split and path of each entry")
        matched = [f for f in files if any(fnmatch(f, p.removeprefix("./")) for p in patterns)]
        if matched:
            splits.setdefault(str(entry["split"]), []).extend(matched)
    return splits
