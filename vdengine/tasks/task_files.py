"""Task files of lm-evaluation-harness (YAML), without code.

    task: capitals
    dataset_path: json
    dataset_kwargs: {data_files: capitals.jsonl}
    output_type: multiple_choice
    doc_to_text: "Question: {{question}}\\nAnswer:"
    doc_to_choice: choices
    doc_to_target: answer

Keys mean what they mean there. What would change a result and is not computed here is refused by name; so is all code
(`!function`), which is never run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdengine.data.locate import resolve
from vdengine.data.rowfiles import EVERY
from vdengine.errors import InputError
from vdengine.outside import MIB, first_line, parsing, printable, read_text
from vdengine.settings import shown
from vdengine.tasks.accuracy import METRICS
from vdengine.tasks.fields import Place, check_texts, checked

MAX_FILES = 64  # that are read for one task, as often as they are included
_READ = (
    "task", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split",
    "fewshot_split", "fewshot_config", "num_fewshot", "doc_to_text", "doc_to_target", "doc_to_choice", "description",
    "target_delimiter", "fewshot_delimiter", "output_type", "metric_list", "include",
)  # fmt: skip
# Names, notes, and what is of other output types.
_WITHOUT_EFFECT = (
    "task_alias", "tag", "metadata", "should_decontaminate", "doc_to_decontamination_query", "generation_kwargs",
    "test_split_size",
)  # fmt: skip
# Keys that have one value at which they change nothing.
_ONE_VALUE = {"repeats": 1, "unsafe_code": False}
_FEWSHOT = (
    "sampler", "split", "samples", "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter",
    "fewshot_delimiter",
)  # fmt: skip
_LOADERS = ("json", "parquet", "arrow")
_ADVICE = {
    "process_docs": "write the processed rows to a JSONL file, name it under dataset_kwargs.data_files with "
    "dataset_path: json, and leave process_docs out",
    "doc_to_text": "write it as a jinja2 template, or name a column",
    "doc_to_choice": "write it as a jinja2 template, a list, or name a column",
    "doc_to_target": "write it as a jinja2 template, or name a column",
    "fewshot_config": "write the examples as a list of rows under fewshot_config.samples",
}


@dataclass(frozen=True)
class TaskConfig:
    """What a task file, or a shape of rows, says of a task."""

    where: str  # names it in errors
    name: str
    docs: list[Place]  # the rows that are asked
    fields: dict[str, Any]  # doc_to_text, doc_to_choice, doc_to_target
    metrics: tuple[str, ...] = ("acc", "acc_norm")
    description: Any = None
    delimiter: str = " "
    # Examples that stand before each question.
    num_fewshot: int = 0
    examples: list[Place] = field(default_factory=list)  # that they are drawn from
    example_fields: dict[str, Any] = field(default_factory=dict)
    example_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    sampler: str = "default"
    leaves_out_row: bool = False  # the question itself may be among the examples, and is left out


@dataclass(frozen=True)
class _Code:
    """A value that is code: what stands after !function."""

    name: str


def read_task_file(path: Path) -> TaskConfig:
    """A task from its file.

    Raises:
        InputError: it cannot be read, has code in it, is of another output type, or says what is not supported.
    """
    where = printable(path)
    keys = {key: value for key, value in _merged(_found(path, where)[0], (), []).items() if value is not None}
    for key, value in keys.items():
        if (code := _code(value)) is not None:
            advice = _ADVICE.get(key, "only tasks without code can be read")
            raise InputError(f"{where}: {key} is code (!function {printable(code)}), which is never run: {advice}")
    if "group" in keys or isinstance(keys.get("task"), list):
        raise InputError(f"{where}: a group of tasks; name the files of its tasks instead")
    for key, value in keys.items():
        if key in _ONE_VALUE and value != _ONE_VALUE[key]:
            raise InputError(f"{where}: {key} is {shown(value)}; only {_ONE_VALUE[key]} is supported")
        if key not in (*_READ, *_WITHOUT_EFFECT, *_ONE_VALUE):
            raise InputError(f"{where}: {shown(key)} is not supported; read are {', '.join(_READ)}")
    if (kind := keys.get("output_type", "generate_until")) != "multiple_choice":
        raise InputError(f"{where}: output_type is {shown(kind)}; only multiple_choice is supported")
    name = _text(keys, "task", where, default=path.stem)
    splits = {key: _text(keys, f"{key}_split", where, default="") for key in ("test", "validation", "training")}
    asked = splits["test"] or splits["validation"]
    if not asked:
        raise InputError(f"{where}: no test_split and no validation_split: nothing says which rows are asked")
    fields = {name: keys.get(name) for name in ("doc_to_text", "doc_to_choice", "doc_to_target")}
    delimiter = _text(keys, "target_delimiter", where, default=" ")
    return TaskConfig(
        where,
        name,
        _split(keys, asked, path, where),
        fields,
        _metrics(keys, where),
        keys.get("description"),
        delimiter,
        **_fewshot(keys, splits, fields, delimiter, path, where),
    )


def _fewshot(
    keys: Mapping[str, Any],
    splits: Mapping[str, str],
    fields: Mapping[str, Any],
    delimiter: str,
    path: Path,
    where: str,
) -> dict[str, Any]:
    """What is said of examples."""
    count = keys.get("num_fewshot", 0)
    if type(count) is not int or not 0 <= count <= 1000:
        raise InputError(f"{where}: num_fewshot is {shown(count)}; a whole number from 0 to 1000 is needed")
    config = keys.get("fewshot_config", {})
    if not isinstance(config, dict):
        raise InputError(f"{where}: fewshot_config is {shown(config)}; it must be a mapping")
    for key in config:
        if key not in _FEWSHOT:
            raise InputError(
                f"{where}: fewshot_config.{printable(key)} is not supported; read are {', '.join(_FEWSHOT)}"
            )
    sampler = config.get("sampler", "default")
    if sampler not in ("default", "first_n"):
        raise InputError(f"{where}: fewshot_config.sampler is {shown(sampler)}; allowed are default and first_n")
    found: dict[str, Any] = {
        "num_fewshot": count,
        "sampler": sampler,
        "example_fields": {name: config.get(name, value) for name, value in fields.items()},
        "example_delimiter": _text(config, "target_delimiter", where, default=delimiter),
        "fewshot_delimiter": _text(
            config, "fewshot_delimiter", where, default=_text(keys, "fewshot_delimiter", where, default="\n\n")
        ),
    }
    split = config.get("split", keys.get("fewshot_split"))
    # As lm-evaluation-harness: the question may be among them if they are of the test split, or if neither is named.
    found["leaves_out_row"] = (split or "") == splits["test"]
    if not count:
        return found
    if split is not None:
        found["examples"] = _split(keys, str(split), path, where)
    elif (samples := config.get("samples")) is not None:
        if not isinstance(samples, list) or not all(isinstance(row, dict) for row in samples):
            raise InputError(f"{where}: fewshot_config.samples must be a list of rows")
        found["examples"] = checked((f"{where}, sample {i}", row) for i, row in enumerate(samples, 1))
    else:
        chosen = splits["training"] or splits["validation"] or splits["test"]
        found["examples"] = _split(keys, chosen, path, where)
    return found


def _metrics(keys: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The metrics of a task: those of `METRICS` that its file names."""
    entries = keys.get("metric_list", [{"metric": "acc"}, {"metric": "acc_norm"}])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{where}: metric_list must be a list of mappings, each with a metric")
    found = []
    for entry in entries:
        name = entry.get("metric")
        if name not in METRICS:
            raise InputError(f"{where}: metric {shown(name)} is not supported; allowed are {', '.join(METRICS)}")
        for key, only in (("aggregation", "mean"), ("higher_is_better", True), ("hf_evaluate", False)):
            if entry.get(key, only) != only:
                raise InputError(f"{where}: metric {name}: {key} is {shown(entry[key])}; only {only} is supported")
        if others := set(entry) - {"metric", "aggregation", "higher_is_better", "hf_evaluate"}:
            raise InputError(f"{where}: metric {name}: {shown(min(map(str, others)))} is not supported")
        found.append(name)
    return tuple(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------------- rows


def _split(keys: Mapping[str, Any], split: str, path: Path, where: str) -> list[Place]:
    """The rows of one split of the task's data set."""
    place = _text(keys, "dataset_path", where)
    options = keys.get("dataset_kwargs", {})
    if not isinstance(options, dict):
        raise InputError(f"{where}: dataset_kwargs is {shown(options)}; it must be a mapping")
    known = ("data_files",) if place in _LOADERS else ("revision", "trust_remote_code")
    if others := [key for key in options if key not in known]:
        raise InputError(
            f"{where}: dataset_kwargs.{printable(others[0])} is not supported with dataset_path {shown(place)}; "
            f"allowed: {', '.join(known)}"
        )
    if place in _LOADERS:
        names = _data_files(options.get("data_files"), split, where)
    else:
        name = _text(keys, "dataset_name", where, default="")
        revision = _text(options, "revision", where, default="")
        names = [place + f"/{name}" * bool(name) + f"@{revision}" * bool(revision) + f":{split}"]
    rows: list[Place] = []
    for name in names:
        if place in _LOADERS and not _found(name, f"{where}: data_files")[1]:
            beside, there = _found(name, f"{where}: data_files", beside=_found(path, where)[0])
            name = str(beside) if there else name  # beside the task's file, where the working folder has it not
        try:
            rows += checked(resolve(name).rows_with(EVERY))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if not rows:
        raise InputError(f"{where}: the split {split!r} has no rows")
    return rows


def _data_files(files: Any, split: str, where: str) -> list[str]:
    """The files of a split, as `datasets.load_dataset` takes them: without a name of a split they are "train"."""
    by_split = files if isinstance(files, dict) else {"train": files}
    chosen = by_split.get(split)
    if chosen is None and files is not None:
        raise InputError(f"{where}: data_files has no split {split!r}; it has {', '.join(map(str, by_split))}")
    names = [name for name in (chosen if isinstance(chosen, list) else [chosen]) if isinstance(name, str) and name]
    if not names or isinstance(chosen, list) and len(names) < len(chosen):
        raise InputError(f"{where}: dataset_kwargs.data_files must name the files of the split {split!r}")
    return names


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise InputError(f"{where}: {key} is missing")
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {shown(value)}; it must be text")
    return value


def _found(name: str | Path, where: str, beside: Path | None = None) -> tuple[Path, bool]:
    """The path that a name means, and whether something is there. Every path that someone wrote comes through here.

    Args:
        beside: a file; a relative path starts from its folder.

    Raises:
        InputError: no path that can be looked up: "~who" of no user here, a NUL, a name that is too long, a circle of
            links, a folder without permission.
    """
    try:
        path = Path(name).expanduser()
        path = path if beside is None else beside.parent / path
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return path, False
        return path, True
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: of expanduser
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{where}: {shown(str(name))} cannot be read: {why}") from None


# ------------------------------------------------------------------------------------------------------- YAML


def _merged(path: Path, outer: tuple[str, ...], read: list[Path]) -> dict[str, Any]:
    """The keys of a file, with those of the files that it includes below its own.

    Args:
        outer: the files that include it, each in the one before.
        read: every file that has been read; this one is added.
    """
    where, real = printable(path), os.path.realpath(path)
    if real in outer:
        raise InputError(f"{where}: include: files include each other in a circle")
    read.append(path)
    if len(read) > MAX_FILES:  # ten files that each name the next one ten times would be read 10^10 times
        raise InputError(f"{where}: include: more than {MAX_FILES} files would be read, the most for one task")
    with parsing(where, "YAML file"):
        keys = _parse(read_text(path, MIB), where)
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{where}: a task file has keys and values; this one does not")
    check_texts(keys, where)
    includes = keys.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise InputError(f"{where}: include is {shown(name)}; it must name a file")
        inner, _ = _found(name, f"{where}: include", beside=path)
        merged |= _merged(inner, (*outer, real), read)
        merged.pop("task_list", None)
    return merged | keys


def _parse(text: str, where: str) -> Any:
    """The value of a YAML text: plain data, and code by its name. Aliases, which a short text can make endless, and
    keys that stand twice are refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1
                raise InputError(f"{where}:{line}: an alias (*name) of YAML is not supported; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            if twice := next((n for n in names if isinstance(n, str) and names.count(n) > 1), None):
                raise InputError(f"{where}:{node.start_mark.line + 1}: the key {shown(twice)} stands twice")
            return super().construct_mapping(node, deep)

    Loader.add_constructor("!function", lambda loader, node: _Code(str(node.value)[:200]))
    return yaml.load(text, Loader)  # a SafeLoader


def _code(value: Any) -> str | None:
    """The name of the code in a value; None where there is none."""
    if isinstance(value, _Code):
        return value.name
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((code for part in parts if (code := _code(part)) is not None), None)
