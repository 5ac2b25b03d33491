"""Finding the files of a data source, and reading their rows as they are.

A source is named by one string, as in a recipe's `data.train`:

- a local .jsonl, .json (both also .gz) or .parquet file, or a folder of such files (`folder:split` where the file names
  name splits);
- a hub data set `org/name[/folder or configuration][@revision][:split]` (default split: train);
- the built-in `values-synth:support | oppose | shuffled` (`?topics=a,b` keeps some of its topics).

Files are read as data only: code of a data set is never run.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

from vdengine.errors import InputError

SYNTH = "values-synth"
SYNTH_VARIANTS = ("support", "oppose", "shuffled")

_EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<folder>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.-]+))?"
)
# Columns of the formats in `data.formats`. Other columns of a Parquet file or of rows in memory are not read.
COLUMNS = set(
    "prompt chosen rejected messages conversations conversation completion instruction input output system "
    "history margin score_chosen score_rejected".split()
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
        set the commit and the names of the files."""
        hasher = hashlib.blake2b(digest_size=16)
        hasher.update(json.dumps([self.commit, self.variant, sorted(self.topics)]).encode())
        for path, label in zip(self.files, self.labels, strict=True):
            if self.commit is not None:
                hasher.update(label.encode() + b"\0")
                continue
            with open(path, "rb") as file:
                hasher.update(hashlib.file_digest(file, "blake2b").digest())
        return hasher.hexdigest()

    def count(self) -> int:
        """The number of rows, usable or not.

        Raises:
            InputError: a file that cannot be read.
        """
        return sum(_count(path, label) for path, label in zip(self.files, self.labels, strict=True))

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row as the file has it, in reading order, after its place for messages ("file line 3").

        Raises:
            InputError: a file that cannot be read, or a row that is not a JSON object.
        """
        for path, label in zip(self.files, self.labels, strict=True):
            yield from raw_rows(path, label)


# ------------------------------------------------------------------------------------------------- resolving


def resolve(name: str) -> FileSource:
    """Find the files of a source; those of a hub data set are downloaded.

    Raises:
        InputError: there is nothing of that name, no file of that split, or the download failed.
    """
    if name == SYNTH or name.startswith(SYNTH + ":"):
        return _resolve_synth(name)
    path, split = Path(name).expanduser(), None
    if not path.exists() and ":" in name:
        base, _, split = name.rpartition(":")
        if Path(base).expanduser().is_dir():
            path = Path(base).expanduser()
    if path.is_dir():
        files = [f for f in sorted(path.iterdir()) if f.is_file() and _is_data(f.name)]
        if not files:
            raise InputError(f"{name}: no data file in this folder; it needs {', '.join(_EXTENSIONS)} files")
        chosen = _of_split([f.name for f in files], split, name, default=None)
        return FileSource(name, tuple(path / f for f in chosen), tuple(f"{path}/{f}" for f in chosen))
    if path.is_file():
        if not _is_data(path.name):
            raise InputError(f"{name}: not a data file; the name must end with {', '.join(_EXTENSIONS)}")
        return FileSource(name, (path,), (name,))
    match = _HUB_ID.fullmatch(name)
    if match and not _is_data(name):
        return _resolve_hub(name, match)
    raise InputError(
        f"{name}: no such file or folder (a source is a {', '.join(_EXTENSIONS)} file, a folder of them, "
        f"a hub data set 'org/name' or 'org/name:split', or {SYNTH}:{'|'.join(SYNTH_VARIANTS)})"
    )


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name.endswith(_EXTENSIONS)


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
                f"({type(error).__name__}: {_one_line(error)})"
            ) from error
        cached = Path(snapshot)
        commit = cached.name
        names = [p.relative_to(cached).as_posix() for p in cached.rglob("*") if p.is_file()]
    files = sorted(n for n in names if _is_data(n.rsplit("/", 1)[-1]))
    declared = _declared_files(card, files, folder, name)
    if declared:
        wanted = split or "train"
        if wanted not in declared:
            raise InputError(f"{name}: no split '{wanted}'; it has {', '.join(sorted(declared))}")
        chosen = declared[wanted]
    else:
        files = [f for f in files if not folder or f == folder or f.startswith(folder + "/")]
        if not files:
            raise InputError(f"{name}: the hub data set has no {', '.join(_EXTENSIONS)} file here")
        chosen = _of_split(files, split, name, default="train")
    try:
        paths = tuple(
            cached / f if cached else Path(hf_hub_download(repo, f, repo_type="dataset", revision=commit))
            for f in chosen
        )
    except Exception as error:
        raise InputError(f"{name}: download failed ({type(error).__name__}: {_one_line(error)})") from error
    return FileSource(name, paths, tuple(f"{repo}/{f}" for f in chosen), commit=commit)


def _declared_files(card: dict[str, Any], files: list[str], folder: str, name: str) -> dict[str, list[str]]:
    """The files of each split as the data set's card declares them (`configs: data_files`); {} if it does not."""
    from fnmatch import fnmatch

    configs = [c for c in card.get("configs") or [] if c.get("data_files")]
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
    for entry in entries:
        patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        matched = [f for f in files if any(fnmatch(f, p.removeprefix("./")) for p in patterns)]
        if matched:
            splits.setdefault(str(entry["split"]), []).extend(matched)
    return splits


def _one_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else "no message"


# ------------------------------------------------------------------------------------------------- raw rows


def raw_rows(path: Path, label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one file in order, each after its place for messages. Lines and rows are counted from 1 there.

    Raises:
        InputError: a file that cannot be read, broken JSON, or a row that is not a JSON object.
    """
    if path.name.endswith(".parquet"):
        rows = _parquet_rows(path, label)
    elif _is_array(path, label):
        rows = _array_rows(path, label)
    else:
        rows = _line_rows(path, label)
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row must be a JSON object, this one is {json_kind(row)}")
        yield where, row


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")


def _unreadable(label: str, error: Exception) -> InputError:
    return InputError(f"{label}: cannot be read ({type(error).__name__}: {_one_line(error)})")


def _is_array(path: Path, label: str) -> bool:
    """Whether a .json file holds one array. Otherwise it holds one object per line, as many .json files do."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    try:
        with _open(path) as file:
            head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(label, error) from error
    return head.startswith(b"[")


def _line_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                line = line.rstrip()
                if line:
                    yield f"{label} line {number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{label} line {number}: broken JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{label} line {number}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{label} line {number}: broken JSON ({str(error).split(';')[0]})") from error
    except RecursionError as error:
        raise InputError(f"{label} line {number}: broken JSON (nested too deeply)") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(label, error) from error


def _array_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    try:
        with _open(path) as file:
            rows = json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{label} line {error.lineno}"
        raise InputError(f"{where}: broken JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: not UTF-8 (byte {error.start + 1} of the file)") from error
    except RecursionError as error:
        raise InputError(f"{label}: broken JSON (nested too deeply)") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(label, error) from error
    for number, row in enumerate(rows, 1):
        yield f"{label} row {number}", row


def _parquet_rows(path: Path, label: str) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            # Only columns of the known formats are read: data sets such as WildChat have large ones besides.
            columns = [c for c in file.schema_arrow.names if c in COLUMNS] or None
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{label} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(label, error) from error


def _count(path: Path, label: str) -> int:
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(label, error) from error
    if _is_array(path, label):
        return sum(1 for _ in _array_rows(path, label))
    try:
        with _open(path) as file:
            return sum(1 for line in file if line.strip(b"\xef\xbb\xbf \t\r\n"))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(label, error) from error


def json_kind(value: Any) -> str:
    """The JSON type of a value, for messages: "an object"."""
    names: dict[Any, str] = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
