"""Reading a folder of torch.distributed.checkpoint (DCP) without running what is in it.

DCP's `.metadata` is a pickle, and so is the head of every tensor in its shards, and a pickle can call anything. Here
both are read by an interpreter that calls nothing but functions of this file (`engine.pickles`); what else they name is
an `InputError`. What comes out is checked before DCP sees it: types, sizes, names of files and places in
them. So a stranger's checkpoint can hold wrong numbers, and nothing else.

    read_state(folder, state)   # in place of dcp.load(state, checkpoint_id=folder)

Memory: the metadata, and one tensor of a shard at a time.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from vdengine.engine.pickles import ClassName, Damaged, Instance, Names, shown, unpickle
from vdengine.errors import InputError
from vdengine.outside import MIB, first_line, open_regular, printable, read_bytes

METADATA = ".metadata"
_MOST_METADATA = 1024 * MIB  # about 5 million pieces of tensors
_MOST_HEAD = 64 * 1024  # bytes of a tensor in a shard beside its numbers: about 1 KiB is usual
_MOST_DIMS = 64  # as torch's own limit
_SHARD = re.compile(r"__\d{1,9}_\d{1,9}\.distcp")  # the names that DCP's writer gives: of this folder, never a path

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_state(folder: Path, state: dict[str, Any], *, no_dist: bool = False) -> None:
    """Read tensors of a DCP folder into those of `state`, by name. A collective, unless `no_dist`.

    Args:
        state: tensors, or DTensors of which every rank reads its own part; filled in place.
        no_dist: this process alone reads all.

    Raises:
        InputError: the folder is damaged or hostile, or has not what is asked for: a name, its shape.
    """
    reader = SafeReader(folder)
    try:
        with warnings.catch_warnings():
            if no_dist:
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=reader, no_dist=no_dist)
    except (RuntimeError, ValueError, dcp.api.CheckpointException) as error:
        if isinstance(reason := first_failure(error), InputError):
            raise InputError(str(reason)) from None
        raise InputError(f"{printable(folder)}: does not fit this model: {cause(error)}") from error


def first_failure(error: BaseException) -> BaseException:
    """What the first rank that failed has raised: DCP wraps that, for all ranks.

    Raises:
        KeyboardInterrupt, SystemExit: it was that, which DCP wraps too.
    """
    if not isinstance(error, dcp.api.CheckpointException) or not error.failures:
        return error
    _, (failure, _) = min(error.failures.items())
    if not isinstance(failure, Exception):
        raise failure
    return first_failure(failure)


def cause(error: BaseException) -> str:
    """A line of an error of DCP: what the first rank that failed says."""
    reason = first_failure(error)
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return first_line(reason)


# ----------------------------------------------------------------------------------------------------- metadata


def _size(dims: Any = ()) -> torch.Size:
    """A shape, or an offset into one."""
    if not isinstance(dims, tuple) or len(dims) > _MOST_DIMS:
        raise Damaged("a shape is none")
    for dim in dims:
        if type(dim) is not int or not 0 <= dim < 2**48:
            raise Damaged("a shape is none")
    return torch.Size(dims)


def _nothing(*_: Any) -> None:
    """Stands for what DCP writes and reading does not need."""


_CLASSES = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex")
_SHARED_NAMES: dict[tuple[str, str], Any] = {("torch", str(d).removeprefix("torch.")): d for d in _DTYPES.values()}
_METADATA_NAMES: Names = (
    _SHARED_NAMES
    | {("torch.distributed.checkpoint.metadata", kind): ClassName(kind) for kind in (*_CLASSES, "StorageMeta")}
    | {
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): ClassName("_StorageInfo"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): _nothing,
        ("torch.serialization", "_get_layout"): _nothing,
        ("torch", "Size"): _size,
        ("pathlib", "PosixPath"): _nothing,  # where it was saved
        ("pathlib._local", "PosixPath"): _nothing,  # Python 3.13's name of it
    }
)


class _Place(NamedTuple):
    """Where a piece of a tensor is."""

    file: str  # name in the folder
    offset: int  # bytes
    length: int  # bytes
    sizes: torch.Size
    dtype: torch.dtype


def _fields(value: Any, kind: str, *names: str) -> list[Any]:
    """The named fields of an instance of `kind`; None where it has no such field."""
    if not isinstance(value, Instance) or value.kind != kind or not isinstance(value.state, dict):
        raise Damaged(f"it has no {kind} where one belongs")
    return [value.state.get(name) for name in names]


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise Damaged(f"{what} is no such number")
    return value


def _checked(root: Any) -> tuple[dict[str, Any], dict[MetadataIndex, _Place]]:
    """The tensors by name, and the places of their pieces, out of what the pickle holds.

    Raises:
        Damaged: it is not what DCP writes for a state of tensors.
    """
    by_name, storage = _fields(root, "Metadata", "state_dict_metadata", "storage_data")
    if not isinstance(by_name, dict) or not isinstance(storage, dict):
        raise Damaged("it names no tensors")
    infos: dict[MetadataIndex, Any] = {}
    for key, info in storage.items():
        name, offset = _fields(key, "MetadataIndex", "fqn", "offset")
        if not isinstance(name, str) or not isinstance(offset, torch.Size):
            raise Damaged("a piece belongs to no tensor")
        infos[MetadataIndex(name, offset)] = info
    tensors: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _Place] = {}
    for name, tensor in by_name.items():
        if not isinstance(name, str):
            raise Damaged("a name is no text")
        properties, size, chunks = _fields(tensor, "TensorStorageMetadata", "properties", "size", "chunks")
        if not isinstance(properties, Instance) or properties.kind != "TensorProperties":
            raise Damaged(f"{shown(name)} has no properties")
        dtype = properties.state[0] if isinstance(properties.state, tuple) and properties.state else None
        if not isinstance(dtype, torch.dtype) or not isinstance(size, torch.Size) or not isinstance(chunks, list):
            raise Damaged(f"{shown(name)} has no dtype, shape or pieces")
        pieces = []
        for chunk in chunks:  # one list may stand for many tensors, but each piece is in `infos` once
            offsets, sizes = _fields(chunk, "ChunkStorageMetadata", "offsets", "sizes")
            if not isinstance(offsets, torch.Size) or not isinstance(sizes, torch.Size):
                raise Damaged(f"a piece of {shown(name)} has no shape")
            if not len(offsets) == len(sizes) == len(size) or any(
                o + n > whole for o, n, whole in zip(offsets, sizes, size, strict=True)
            ):
                raise Damaged(f"a piece of {shown(name)} is not within it")
            if (info := infos.pop(index := MetadataIndex(name, offsets), None)) is None:
                raise Damaged(f"a piece of {shown(name)} is nowhere")
            places[index] = _place(info, sizes, dtype)
            pieces.append(ChunkStorageMetadata(offsets, sizes))
        if sum(math.prod(piece.sizes) for piece in pieces) != math.prod(size):
            raise Damaged(f"the pieces of {shown(name)} are not the whole of it")
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, pieces)
    return tensors, places


def _place(info: Any, sizes: torch.Size, dtype: torch.dtype) -> _Place:
    name, offset, length, transforms = _fields(
        info, "_StorageInfo", "relative_path", "offset", "length", "transform_descriptors"
    )
    if not isinstance(name, str) or not _SHARD.fullmatch(name):
        raise Damaged(f"a file is called {shown(str(name))}; shards are __RANK_NUMBER.distcp")
    if transforms:
        raise Damaged("its shards are transformed, by which code it does not say")
    return _Place(name, _count(offset, "an offset"), _count(length, "a length"), sizes, dtype)


# -------------------------------------------------------------------------------------------------------- shards


class _Part(io.RawIOBase):
    """A part of a file as a file of its own, of which at most `budget` bytes are read."""

    def __init__(self, file: IO[bytes], start: int, length: int, budget: int) -> None:
        self._file, self._start, self._length, self._budget, self._at = file, start, length, budget, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        self._budget -= count
        if self._budget < 0:
            raise Damaged("what describes a tensor is too long")
        self._file.seek(self._start + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str  # of its record
    num_elements: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    size: torch.Size
    stride: torch.Size


def _storage(reference: Any) -> _Storage:
    """A persistent id of torch.save: ("storage", class, key, device, number of elements)."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise Damaged("a tensor has no storage")
    _, dtype, key, _, num_elements = reference
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
        raise Damaged("a tensor has no storage")
    return _Storage(dtype, key, _count(num_elements, "a number of elements"))


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    """The arguments of torch._utils._rebuild_tensor_v2."""
    if not isinstance(storage, _Storage):
        raise Damaged("a tensor has no storage")
    return _View(storage, _count(offset, "an offset"), _size(size), _size(stride))


_TENSOR_NAMES: Names = {
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("collections", "OrderedDict"): _nothing,  # of hooks: empty
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


def _tensor(file: IO[bytes], place: _Place) -> torch.Tensor:
    """The piece at a place, on the CPU; file: that of the place.

    torch.save writes a zip archive: data.pkl has shape, strides and dtype, data/0 the numbers, uncompressed.

    Raises:
        Damaged: there is no such tensor at this place.
    """
    end = file.seek(0, io.SEEK_END)
    num_bytes = math.prod(place.sizes) * place.dtype.itemsize
    if place.offset + place.length > end or num_bytes > place.length:
        raise Damaged("a tensor goes beyond the end of the file")
    try:
        with zipfile.ZipFile(_Part(file, place.offset, place.length, _MOST_HEAD)) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
                raise Damaged("a tensor is compressed")
            view = unpickle(io.BytesIO(archive.read(records["data.pkl"])), _TENSOR_NAMES, _storage)
            if not isinstance(view, _View) or archive.read(records["byteorder"]) != b"little":
                raise Damaged("a tensor is none, or its bytes are in another order")
            record = records[f"data/{view.storage.key}"]
    except (zipfile.BadZipFile, zipfile.LargeZipFile, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"a tensor cannot be read: {first_line(error)}") from None
    if view.size != place.sizes or view.storage.dtype != place.dtype or len(view.stride) != len(view.size):
        raise Damaged("a tensor is not the one that the metadata names")
    count = view.storage.num_elements
    last = view.offset + sum((n - 1) * step for n, step in zip(view.size, view.stride, strict=True))
    if not record.file_size == count * place.dtype.itemsize == num_bytes:  # DCP saves a piece and nothing beside it
        raise Damaged("a tensor has not as many bytes as it says")
    if num_bytes and last >= count:
        raise Damaged("a tensor goes beyond its storage")
    part = _Part(file, place.offset, place.length, place.length + _MOST_HEAD)
    part.seek(record.header_offset)
    head = part.read(30)  # of the record: the lengths of its name and extra field are at the end
    if len(head) < 30:
        raise Damaged("a tensor goes beyond the end of the file")
    start = record.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
    if start + record.file_size > place.length:
        raise Damaged("a tensor goes beyond the end of the file")
    numbers = torch.empty(record.file_size, dtype=torch.uint8)
    file.seek(place.offset + start)
    if record.file_size and file.readinto(numbers.numpy()) != record.file_size:  # type: ignore[attr-defined]
        raise Damaged("a tensor goes beyond the end of the file")
    return numbers.view(place.dtype).as_strided(view.size, view.stride, view.offset)


class SafeReader(StorageReader):
    """A storage reader for `dcp.load`: as DCP's own, but no code of the folder runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.places: dict[MetadataIndex, _Place] = {}
        self.error: InputError | None = None  # of the metadata

    def read_metadata(self) -> Metadata:
        """What the folder holds; nothing where it cannot be read, for DCP would log a traceback and look elsewhere."""
        path = self.folder / METADATA
        tensors: dict[str, Any] = {}
        try:
            tensors, self.places = _checked(unpickle(io.BytesIO(read_bytes(path, _MOST_METADATA)), _METADATA_NAMES))
        except InputError as error:
            self.error = error
        except Damaged as error:
            self.error = InputError(f"{printable(path)}: not the metadata of a checkpoint: {error}")
        return Metadata(tensors, storage_data=self.places, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Here DCP tells an error of one rank to all of them.

        Raises:
            InputError: the metadata cannot be read, or is not that of tensors.
        """
        if self.error is not None:
            raise self.error

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what is planned, a shard after the other."""
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.places[item.storage_index].file, []).append(item)
        for name, items in by_file.items():
            with open_regular(self.folder / name) as file:
                for item in items:
                    if item.type != LoadItemType.TENSOR:
                        raise InputError(f"{printable(self.folder)}: only tensors are read from a checkpoint")
                    try:
                        tensor = _tensor(file, self.places[item.storage_index])
                    except Damaged as error:
                        raise InputError(f"{printable(self.folder / name)}: damaged: {error}") from None
                    for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        tensor = tensor.narrow(dim, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(tensor)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: Any = None) -> None:
        """DCP's hook for a new folder; a reader is of one folder."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """DCP's hook; a rank's plan is good as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """DCP's hook; so are all ranks' plans."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """DCP's hook."""
        return True
