"""The safetensors files of a folder: which there are, and their tensors by name, none of them read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from vdengine.errors import InputError
from vdengine.models.hf_config import some_names
from vdengine.outside import LARGE, json_object, open_regular, parsing, printable

INDEX = "model.safetensors.index.json"


def files_of(folder: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """The weight files of a folder, and what its index says: the file of each tensor; None for a single file."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if single.exists():
        try:
            others = {*_read_index(index).values()} - {single.name} if index.exists() else set()
            odd = f"{index.name} beside it names other files ({some_names(others)})" if others else ""
        except InputError as error:
            odd = f"what is beside it is no index: {error}"
        if odd:
            warnings.warn(f"{single} is read, as transformers does; {odd}", stacklevel=4)
        return None, [single]
    if not index.exists():
        other = next((f" (there is {p.name}: pickles are not read)" for p in _pickles(folder)), "")
        raise InputError(f"{folder}: no model.safetensors and no {INDEX}{other}")
    mapping = _read_index(index)
    files = sorted({folder / f for f in mapping.values()})
    for path in files:
        if not path.is_file():
            raise InputError(f"{index}: names {path.name}, which is not there")
    return mapping, files


def _read_index(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index.

    Raises:
        InputError: it is broken, names no file, or something that is no file of its folder.
    """
    mapping = json_object(index, LARGE).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(f, str) for f in mapping.values()):
        raise InputError(f"{index}: weight_map is missing; it must map each tensor to a file")
    if not mapping:
        raise InputError(f"{index}: weight_map is empty: it names no file")
    for file in mapping.values():
        # the name is checked, not resolve(): files of a hub cache are links into another folder
        if Path(file).name != file or not file.endswith(".safetensors") or not printable(file) == file:
            raise InputError(f"{index}: {file!r} is not the name of a .safetensors file in this folder")
    return mapping


def _pickles(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))


def open_file(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name, none of them read."""
    from safetensors import safe_open

    open_regular(file).close()
    with parsing(file, "safetensors file"):
        handle = safe_open(file, framework="pt", device="cpu")
        return {name: handle.get_slice(name) for name in handle.keys()}
