"""GGUF files: a header reader with bounds checks, and rows of tensors dequantised to fp32.

The header is read here and not by the gguf library, because a hostile header makes the library loop or allocate without
bound, and because the library needs 2.3 s for 50,000 token strings that take 0.09 s here. Only the block sizes and the
dequantisation come from the library. The layout is that of the GGUF specification (github.com/ggml-org/ggml,
docs/gguf.md), versions 2 and 3, little endian. Dimensions are stored innermost first; shapes here are NumPy's, with the
outermost dimension first.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdengine.errors import InputError
from vdengine.outside import open_regular, parsing

# Bounds far above any real model. Everything else is bounded by the size of the file.
MAX_ENTRIES = 1 << 16  # of metadata keys, and of tensors
MAX_ARRAY_STRINGS = 1 << 23  # over all arrays of strings (tokens, merges)
MAX_STRING_BYTES = 1 << 24
MAX_DIMENSION = 1 << 40

# NumPy dtypes of GGUF's scalar value types, and the two types that are not scalar.
_SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """The place of a tensor in the file. A row (along the last dimension) is a whole number of quantisation blocks."""

    name: str
    shape: tuple[int, ...]
    type_id: int  # ggml type
    offset: int  # bytes from the start of the file
    row_bytes: int

    @property
    def num_rows(self) -> int:
        """The product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.num_rows * self.row_bytes


@dataclass(frozen=True)
class GGUFFile:
    """A file with a checked header: every tensor is inside the file."""

    path: Path
    metadata: dict[str, Any]  # scalars are bool, int, float, str; arrays are list[str] or NumPy arrays
    tensors: dict[str, GGUFTensor]
    data: NDArray[np.uint8]  # [file size], memory-mapped

    def rows(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a tensor, dequantised: [n, shape[-1]] fp32. A tensor of one dimension is one row.

        Raises:
            InputError: the tensor has a type that cannot be dequantised.
        """
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        t = self.tensors[name]
        packed = self.data[t.offset : t.offset + t.num_bytes].reshape(t.num_rows, t.row_bytes)[rows]  # [n, row_bytes]
        if packed.shape[0] == 0:
            return np.empty((0, t.shape[-1]), np.float32)
        kind = GGMLQuantizationType(t.type_id)
        try:
            with np.errstate(all="ignore"):  # scales that are not finite: who asks for the rows sees the values
                # copied, because the memory map is read-only and rows chosen by index are not contiguous
                return np.asarray(dequantize(np.array(packed), kind), np.float32).reshape(-1, t.shape[-1])
        except NotImplementedError:
            raise InputError(
                f"{self.path}: tensor {name[:80]!r} has type {kind.name}, which cannot be dequantised"
            ) from None


class _Reader:
    """Reads values of the header one after another, never past the end of the file. Every method but `fail` raises an
    InputError if the file ends too early."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path, self.data, self.position = path, memoryview(data.data), 0
        self.strings_left = MAX_ARRAY_STRINGS

    def fail(self, what: str) -> InputError:
        """An error that names the file and the present position."""
        return InputError(f"{self.path}: {what} (byte {self.position}); not a whole GGUF file")

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        if size > len(self.data) - self.position:
            raise self.fail(f"the file ends {size - (len(self.data) - self.position)} bytes short in its header")
        view = self.data[self.position : self.position + size]
        self.position += size
        return view

    def u32(self) -> int:
        """An unsigned 32-bit integer."""
        return struct.unpack("<I", self.take(4))[0]

    def u64(self) -> int:
        """An unsigned 64-bit integer."""
        return struct.unpack("<Q", self.take(8))[0]

    def string(self) -> str:
        """A string, preceded by its size."""
        size = self.u64()
        if size > MAX_STRING_BYTES:
            raise self.fail(f"a string of {size} bytes; at most {MAX_STRING_BYTES}")
        # some converters write tokens of byte-level vocabularies that are not UTF-8: decoded so that they stay distinct
        return str(self.take(size), "utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        """A value of a GGUF value type."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            number = self.array(kind, 1)[0]
            # 1e-05 is stored as float32: through its shortest decimal form it is 1e-05 again, not 9.99999974e-06
            return float(str(number)) if kind == 6 else number.item()
        if kind == _ARRAY:
            return self.array(self.u32(), self.u64())
        raise self.fail(f"unknown value type {kind}")

    def array(self, kind: int, count: int) -> Any:
        """`count` values of a scalar type or strings: an array [count], or a list of strings."""
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == _STRING:
            self.strings_left -= count
            if self.strings_left < 0:
                raise self.fail(f"more than {MAX_ARRAY_STRINGS} strings in arrays")
            return [self.string() for _ in range(count)]
        raise self.fail(f"an array of value type {kind}; arrays of numbers or strings are read")


def read_gguf(path: Path) -> GGUFFile:
    """Read and check the header, and memory-map the file.

    Raises:
        InputError: the file is missing, cut short or not GGUF, or its header does not fit the file.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    with open_regular(path) as opened:
        if (size := os.fstat(opened.fileno()).st_size) < 24:
            raise InputError(f"{path}: {size} bytes; not a whole GGUF file")
        with parsing(path, "GGUF file"):
            data = np.memmap(opened, np.uint8, mode="r")
    r = _Reader(path, data)
    if bytes(r.take(4)) != b"GGUF":
        raise InputError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    version = r.u32()
    if version not in (2, 3):
        raise InputError(f"{path}: GGUF version {version}; versions 2 and 3, little endian, are read")
    num_tensors, num_keys = r.u64(), r.u64()
    if max(num_tensors, num_keys) > MAX_ENTRIES:
        raise r.fail(f"{num_tensors} tensors and {num_keys} metadata keys; at most {MAX_ENTRIES} of each")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = r.string()
        if key in metadata:
            raise r.fail(f"metadata key {key[:80]!r} occurs twice")
        metadata[key] = r.value(r.u32())
    headers: list[tuple[str, tuple[int, ...], int, int]] = []  # name, shape, type, offset from the first tensor
    for _ in range(num_tensors):
        name, dims = r.string(), r.u32()
        if not 1 <= dims <= 4:
            raise r.fail(f"tensor {name[:80]!r} has {dims} dimensions; 1 to 4 are allowed")
        shape = tuple(r.u64() for _ in range(dims))[::-1]
        headers.append((name, shape, r.u32(), r.u64()))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise InputError(f"{path}: general.alignment is {alignment!r}; a power of two up to 65536 is allowed")
    start = -(-r.position // alignment) * alignment  # of the first tensor
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, type_id, offset in headers:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_id)]
        except (ValueError, KeyError):
            raise InputError(f"{path}: tensor {name[:80]!r} has the unknown type {type_id}") from None
        if name in tensors:
            raise InputError(f"{path}: tensor {name[:80]!r} occurs twice")
        if not all(1 <= n <= MAX_DIMENSION for n in shape) or shape[-1] % block:
            raise InputError(f"{path}: tensor {name[:80]!r} has shape {shape}, not whole blocks of {block}")
        tensor = GGUFTensor(name, shape, type_id, start + offset, shape[-1] // block * block_bytes)
        if offset % alignment or tensor.offset + tensor.num_bytes > len(data):
            raise InputError(
                f"{path}: tensor {name[:80]!r} needs bytes {tensor.offset} to {tensor.offset + tensor.num_bytes} of "
                f"{len(data)}; the file is cut short or its header is wrong"
            )
        tensors[name] = tensor
    return GGUFFile(path, metadata, tensors, data)
