"""Export of a model, sharded by FSDP2 or not, as a Hugging Face folder that transformers can open."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

import vdengine
from vdengine.errors import InputError
from vdengine.files import check_space, partial, sync, write_bytes, write_text
from vdengine.models.adapters import peft_name
from vdengine.models.families import expected_shapes
from vdengine.models.hf_config import config_to_hf
from vdengine.models.lora import LoraLinear, adapted_layers, is_factor, merged
from vdengine.models.peft_config import CONFIG, TENSORS, peft_config, trained_whole
from vdengine.models.transformer import Transformer
from vdengine.models.weights import all_finite, check_vocabulary, named_parameters
from vdengine.outside import is_count, json_object, printable
from vdengine.runfolder import MARK

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # largest safetensors file, the Hugging Face hub's convention
SPARE = 64 * 2**20  # bytes that an export takes beside its tensors, at most: the tokenizer's files


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
        except InputError:  # a model can be trained on such a template all the same; `missing_end` says it
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
    """Write a Hugging Face folder: safetensors, config.json, generation_config.json and the tokenizer. Adapters are
    merged into their weights, in fp32 (`save_adapter` writes them by themselves).

    A collective if the model is sharded (FSDP2): every rank must call it. Tensors are gathered one at a time, and
    rank 0 writes them, one file of at most 5 GB at a time. The folder is written under a temporary name and renamed
    when it is complete. It replaces an empty folder, or an earlier export that holds the files which its vdengine.json
    names and no other. A model that is not sharded is written by rank 0 too, where there is a process group: the other
    ranks return at once, and do not wait for it. A warning says if the renderer's template ends answers with no token.

    Args:
        tokenizer: None writes none.
        dtype: of the tensors in the files; default: that of the parameters.
        renderer: of the run that trained the model: its template is written as the tokenizer's, and the token that
            ends its turns as one that ends a text. Default: the tokenizer's own template.

    Raises:
        InputError: the folder holds files that are not part of an export, there is no room, a tensor is not finite as
            `dtype`, the tokenizer has ids beyond the embedding, or the renderer has variables. What was there is there
            still.
        ValueError: the model has parameters that its family has not.
        OSError: writing failed, on this rank or on rank 0.
    """
    if tokenizer is not None:
        check_vocabulary(model.config.vocab_size, tokenizer, renderer)
    words = _Words.of(tokenizer, renderer)
    parameters = dict(named_parameters(model))
    if foreign := sorted(parameters.keys() - expected_shapes(model.config).keys()):
        raise ValueError(f"save_model: {foreign[0]} is no parameter of a {model.config.model_type}: merge it first")
    adapters = {f"{name}.weight": layer for name, layer in adapted_layers(model)}
    written = dtype or model.model.norm.weight.dtype
    tensors = {name: _Part(parameter, adapters.get(name), written) for name, parameter in parameters.items()}
    files = _plan_files(tensors)
    _warn_of_end(folder, model, renderer)

    def finish(temporary: Path) -> None:
        if len(files) > 1:
            total = sum(part.size for part in tensors.values())
            mapping = {name: file for file, names in files.items() for name in sorted(names)}
            index = {"metadata": {"total_size": total}, "weight_map": mapping}
            _write_json(temporary / "model.safetensors.index.json", index)
        raw = config_to_hf(model.config, str(written).removeprefix("torch."), tokenizer, words.ends)
        _write_json(temporary / "config.json", raw)
        if tokenizer is not None and model.config.head == "causal":
            ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": words.ends, "pad_token_id": tokenizer.pad_id}
            _write_json(temporary / "generation_config.json", {k: v for k, v in ids.items() if v not in (None, [])})

    _write_folder(tensors, files, words, folder, finish, {})


@dataclass(frozen=True)
class Base:
    """What an adapter is trained on."""

    name: str  # as `load_model` takes it
    hash: str  # of its weights


def save_adapter(
    model: Transformer,
    tokenizer: Tokenizer | None,
    folder: str | os.PathLike[str],
    base: Base | str,
    *,
    renderer: Renderer | None = None,
) -> None:
    """Write the adapter of a model as PEFT does: adapter_model.safetensors in fp32, adapter_config.json, and the
    tokenizer. Of a scalar model the head is in it too. Like `save_model` else.

    Args:
        base: what it is an adapter of. With the hash of its weights another base is refused later.

    Raises:
        InputError, OSError: as `save_model`.
        ValueError: the model has no adapter.
    """
    if model.lora is None:
        raise ValueError("save_adapter: the model has no adapter (add_lora)")
    lora, name, extra = model.lora, base if isinstance(base, str) else base.name, {}
    if isinstance(base, Base):
        extra = {"base": base.hash}
    _warn_of_end(folder, model, renderer)
    parameters = {n: p for n, p in model.named_parameters() if is_factor(n) or n in trained_whole(model.config)}
    tensors = {peft_name(n): _Part(p, None, torch.float32) for n, p in parameters.items()}

    def finish(temporary: Path) -> None:
        _write_json(temporary / CONFIG, peft_config(lora, model.config, name))

    _write_folder(tensors, {TENSORS: {*tensors}}, _Words.of(tokenizer, renderer), folder, finish, extra)


def _warn_of_end(folder: str | os.PathLike[str], model: Transformer, renderer: Renderer | None) -> None:
    writer = not dist.is_initialized() or dist.get_rank() == 0
    if writer and renderer is not None and model.config.head == "causal" and renderer.missing_end is not None:
        warnings.warn(f"{folder}: {renderer.missing_end}", stacklevel=3)


@dataclass(frozen=True, eq=False)
class _Part:
    """A tensor of an export."""

    parameter: Tensor
    adapter: LoraLinear | None  # that is merged into it
    dtype: torch.dtype  # in the file

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.parameter.numel() * self.dtype.itemsize

    @property
    def sharded(self) -> bool:
        """Whether ranks have parts of it."""
        return isinstance(self.parameter, DTensor)

    def gathered(self) -> list[Tensor]:
        """The whole of it, and the factors of its adapter. A collective if it is sharded."""
        factors = [] if self.adapter is None else [self.adapter.lora_A, self.adapter.lora_B]
        return [p.full_tensor() if isinstance(p, DTensor) else p for p in (self.parameter, *factors)]

    def written(self, whole: Tensor, *factors: Tensor) -> Tensor:
        """What is written of the whole of it, on the CPU."""
        if self.adapter is not None:
            whole = merged(whole, factors[0], factors[1], self.adapter.scale)
        return whole.detach().to(self.dtype).cpu().contiguous()


def _write_folder(
    tensors: dict[str, _Part],
    files: dict[str, set[str]],
    words: _Words,
    folder: str | os.PathLike[str],
    finish: Callable[[Path], None],
    mark: dict[str, Any],
) -> None:
    """Write a folder of tensors, by file, and what `finish` and `words` write beside them. A collective if they are
    sharded."""
    sharded = any(part.sharded for part in tensors.values())
    writer = not dist.is_initialized() or dist.get_rank() == 0
    if not writer and not sharded:
        return
    target = Path(os.path.abspath(Path(folder).expanduser()))
    failure: Exception | None = None
    with contextlib.ExitStack() as stack:  # what is not complete at its end goes
        folders: list[Path] = []  # of the writer: where it writes, once it is known that it may
        # From here on an error of the writer is kept until all ranks have left the collectives.
        if writer:
            size = sum(part.size for part in tensors.values())
            failure = _attempt(_begin_folder, target, size, stack, folders)
        for file, names in files.items():
            ready: dict[str, Tensor] = {}
            for name, part in tensors.items():
                if name not in names:
                    continue
                # a collective, in which every rank takes part even after rank 0 has failed to write
                gathered = part.gathered()
                if folders and failure is None:
                    ready[name] = part.written(*gathered)
                    failure = _attempt(_check_finite, name, ready[name], target)
                del gathered
            if folders and failure is None:
                failure = _attempt(_write_tensors, ready, folders[0] / file)
            del ready
        if folders and failure is None:
            failure = _attempt(_finish_folder, words, finish, folders[0], target, mark)
    if sharded and dist.is_initialized():  # every rank learns of rank 0's error
        told: list[Any] = [(None if failure is None else str(failure), isinstance(failure, InputError))]
        dist.broadcast_object_list(told, src=0)
        message, is_input = told[0]
        if message is not None and failure is None:
            raise (InputError if is_input else OSError)(f"rank 0: {message}")
    if failure is not None:
        raise failure


def add_to_export(folder: Path, files: dict[str, bytes]) -> None:
    """Write further files into an export, as parts of it: by name their contents.

    Raises:
        InputError: the folder is no export.
    """
    check_replaceable(folder)
    mark = json_object(folder / MARK)
    mark["files"] |= {name: len(data) for name, data in files.items()}
    write_text(
        folder / MARK, json.dumps(mark, indent=2, ensure_ascii=False) + "\n"
    )  # first: it may name what is missing
    for name, data in files.items():
        write_bytes(folder / name, data)


def export_files(folder: Path) -> list[str]:
    """The names of an export's files."""
    return [*json_object(folder / MARK)["files"], MARK]


def _attempt(function: Any, *arguments: Any) -> Exception | None:
    """Call the function and return its error, if any. Raised at once, it would leave the other ranks waiting in a
    collective."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def _plan_files(tensors: dict[str, _Part]) -> dict[str, set[str]]:
    """The tensor names of each file, by file name and in order. A file has at most SHARD_BYTES, or one tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, part in tensors.items():
        if groups[-1] and size + part.size > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += part.size
    if len(groups) == 1:
        return {"model.safetensors": set(groups[0])}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": set(g) for i, g in enumerate(groups)}


def _begin_folder(target: Path, size: int, stack: contextlib.ExitStack, folders: list[Path]) -> None:
    """Make the folder that is to become `target`, beside it, where there is room for so many bytes of tensors. It is
    added to `folders`, and removed with the stack."""
    check_replaceable(target)
    check_space(target, size + SPARE, "the export")
    folders.append(stack.enter_context(partial(target.with_name(f".{target.name}"), folder=True)))


def _check_finite(name: str, tensor: Tensor, target: Path) -> None:
    if not all_finite(tensor):
        hint = " (at most 65504; take bfloat16 or float32)" * (tensor.dtype == torch.float16)
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{target}: not written: {name} has values that are not finite as {dtype}{hint}")


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def _finish_folder(
    words: _Words, finish: Callable[[Path], None], folder: Path, target: Path, mark: dict[str, Any]
) -> None:
    """Write what stands beside the tensors in `folder`, and rename it to `target`, which it replaces."""
    finish(folder)
    if words.tokenizer is not None:
        words.tokenizer.save(folder, words.template)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    _write_json(folder / MARK, {"vdengine": vdengine.__version__, "files": sizes} | mark)
    for file in (*folder.iterdir(), folder):  # on the disk before it takes the name
        sync(file)
    _publish(folder, target)


def _publish(folder: Path, target: Path) -> None:
    """Rename the folder to `target`, in place of what may be replaced there."""
    # named so that a later export removes it where this one is killed
    old = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    while not _renamed(folder, target):
        check_replaceable(target)  # again: writing may have taken long
        with contextlib.suppress(FileNotFoundError):  # another export has moved it away just now
            os.replace(target, old)
        try:
            if _renamed(folder, target):
                break
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _renamed(folder: Path, target: Path) -> bool:
    """Rename a folder; False if `target` is a folder that is not empty, of which a rename takes no place."""
    try:
        os.replace(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def check_replaceable(target: Path, sources: Iterable[str] = ()) -> None:
    """Check that an export may be written to `target`: nothing is there, or an empty folder, or an export that is as it
    was written.

    Args:
        sources: names of models and tokenizers. The folder may be none of them, nor lie within or around one.

    Raises:
        InputError: it may not.
    """
    target = target.expanduser()
    here = Path(os.path.realpath(target))
    for source in sources:
        there = Path(os.path.realpath(Path(source).expanduser()))
        if here == there or here in there.parents or there in here.parents:
            raise InputError(f"{target}: is in one place with {source}, which the run reads; name another folder")
    if not target.is_dir() or target.is_symlink():
        if target.exists() or target.is_symlink():
            raise InputError(f"{target}: is not a folder")
        return
    found = sorted(target.iterdir())
    if not found:
        return
    other, first = "name a new or empty folder", printable(found[0].name)
    if not (target / MARK).exists():
        raise InputError(f"{target}: holds {first!r} and no {MARK}: it is no export of vdengine; {other}")
    sizes = json_object(target / MARK).get("files")
    if not isinstance(sizes, dict) or not all(map(is_count, sizes.values())):
        raise InputError(f"{target / MARK}: does not say which files the export has; {other}")
    for path in found:
        if path.name == MARK:
            continue
        if path.name not in sizes:
            raise InputError(f"{target}: holds {printable(path.name)!r}, no part of the export; {other}")
        if path.is_symlink() or not path.is_file() or path.stat().st_size != sizes[path.name]:
            raise InputError(f"{path}: has changed since the export; {other}")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
