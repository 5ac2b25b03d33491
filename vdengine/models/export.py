"""Export of a model, sharded by FSDP2 or not, as a Hugging Face folder that transformers can open."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from vdengine.errors import InputError
from vdengine.models.families import ModelConfig, expected_shapes
from vdengine.models.hf_config import config_to_hf
from vdengine.models.transformer import Transformer
from vdengine.models.weights import check_vocabulary, named_parameters

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # largest safetensors file, the Hugging Face hub's convention


@dataclass(frozen=True)
class _Words:
    """What an export says of its texts."""

    tokenizer: Tokenizer | None
    template: str | None  # None: the tokenizer's own
    ends: list[int]  # ids that end a text

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, renderer: Renderer | None) -> _Words:
        """Raises InputError for a renderer with variables."""
        if tokenizer is None or renderer is None:
            return cls(tokenizer, None, [] if tokenizer is None else tokenizer.stop_ids)
        try:
            ends = renderer.stop_ids
        except InputError:  # a template that ends a turn with no token: the model can be trained on it all the same
            ends = tokenizer.end_ids
        return cls(tokenizer, renderer.saved_template, ends)


def save_model(
    model: Transformer,
    tokenizer: Tokenizer | None,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    renderer: Renderer | None = None,
) -> None:
    """Write a Hugging Face folder: safetensors, config.json, generation_config.json and the tokenizer.

    A collective if the model is sharded (FSDP2): every rank must call it. Tensors are gathered one at a time, and
    rank 0 writes them, one file of at most 5 GB at a time. The folder is written under a temporary name and renamed
    when it is complete; it replaces an earlier export of the same name. A model that is not sharded is written by rank
    0 too, where there is a process group: the other ranks return at once, and do not wait for it.

    Args:
        tokenizer: None writes none.
        dtype: of the tensors in the files; default: that of the parameters.
        renderer: of the run that trained the model: its template is written as the tokenizer's, and the token that
            ends its turns as one that ends a text. Default: the tokenizer's own template.

    Raises:
        InputError: the folder holds files that are not part of an export, the tokenizer has ids beyond the embedding,
            or the renderer has variables.
        ValueError: the model has parameters that its family has not (an adapter's).
        OSError: writing failed, on this rank or on rank 0.
    """
    if tokenizer is not None:
        check_vocabulary(model.config.vocab_size, tokenizer, renderer)
    words = _Words.of(tokenizer, renderer)
    parameters = list(named_parameters(model))
    if foreign := sorted({name for name, _ in parameters} - expected_shapes(model.config).keys()):
        raise ValueError(f"save_model: {foreign[0]} is no parameter of a {model.config.model_type}: merge it first")
    sharded = any(isinstance(p, DTensor) for _, p in parameters)
    writer = not dist.is_initialized() or dist.get_rank() == 0
    if not writer and not sharded:
        return
    target = Path(folder).expanduser()
    partial = target.with_name(f".{target.name}.partial")
    failure: Exception | None = None
    if writer:
        try:
            check_replaceable(target)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except (OSError, InputError) as error:
            failure = error
    # From here on an error of the writer is kept until all ranks have left the collectives.
    files = _plan_files(parameters, dtype)
    for file, names in files.items():
        tensors = {}
        for name, parameter in parameters:
            if name not in names:
                continue
            # a collective, in which every rank takes part even after rank 0 has failed to write
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if writer and failure is None:
                tensors[name] = full.detach().to(dtype or full.dtype).cpu().contiguous()
            del full
        if writer and failure is None:
            failure = _attempt(_write_tensors, tensors, partial / file)
        del tensors
    if writer and failure is None:
        failure = _attempt(_finish_folder, model.config, parameters, files, words, partial, target, dtype)
    if writer and failure is not None:
        shutil.rmtree(partial, ignore_errors=True)
    if sharded and dist.is_initialized():  # every rank learns of rank 0's error
        message = [None if failure is None else str(failure)]
        dist.broadcast_object_list(message, src=0)
        if message[0] is not None and failure is None:
            raise OSError(f"rank 0: {message[0]}")
    if failure is not None:
        raise failure


def _attempt(function: Any, *arguments: Any) -> Exception | None:
    """Call the function and return its error, if any. Raised at once, it would leave the other ranks waiting in a
    collective."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def _plan_files(parameters: list[tuple[str, Tensor]], dtype: torch.dtype | None) -> dict[str, set[str]]:
    """The tensor names of each file, by file name and in order. A file has at most SHARD_BYTES, or one tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, parameter in parameters:
        num_bytes = parameter.numel() * (dtype or parameter.dtype).itemsize
        if groups[-1] and size + num_bytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    if len(groups) == 1:
        return {"model.safetensors": set(groups[0])}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": set(g) for i, g in enumerate(groups)}


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def _finish_folder(
    config: ModelConfig,
    parameters: list[tuple[str, Tensor]],
    files: dict[str, set[str]],
    words: _Words,
    partial: Path,
    target: Path,
    dtype: torch.dtype | None,
) -> None:
    """Write what stands beside the tensors in `partial`, and rename it to `target`, which it replaces."""
    written = dtype or parameters[0][1].dtype
    if len(files) > 1:
        total = sum(p.numel() * (dtype or p.dtype).itemsize for _, p in parameters)
        mapping = {name: file for file, names in files.items() for name in sorted(names)}
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        _write_json(partial / "model.safetensors.index.json", index)
    tokenizer = words.tokenizer
    raw = config_to_hf(config, str(written).removeprefix("torch."), tokenizer, words.ends)
    _write_json(partial / "config.json", raw)
    if tokenizer is not None and config.head == "causal":
        generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": words.ends, "pad_token_id": tokenizer.pad_id}
        _write_json(partial / "generation_config.json", {k: v for k, v in generation.items() if v not in (None, [])})
    if tokenizer is not None:
        tokenizer.save(partial, words.template)
    if target.exists():  # a rename cannot replace a folder that is not empty
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(partial, target)


# Names of the files of an export.
_EXPORTED = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(generation_|tokenizer_)?config\.json"
    r"|tokenizer\.json|chat_template\.jinja"
)


def check_replaceable(target: Path) -> None:
    """Check that an export may be written to `target`.

    Raises:
        InputError: it is not a folder, or a folder with a file that no export has.
    """
    if target.is_dir() and not target.is_symlink():
        foreign = sorted(p.name for p in target.iterdir() if not _EXPORTED.fullmatch(p.name))
        if foreign:
            raise InputError(f"{target}: holds {foreign[0]!r}, no part of an export; name a new or empty folder")
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target}: is not a folder")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
