"""Linear layers without gradient, for sampling: y = x @ w.T + b for several weights and one x.

A decoding step has few rows, and its time is that of reading the weights. On a CPU `csrc/decode.cpp` reads each weight
once, at the rate of memory; torch's GEMM takes three times as long (16 rows, two cores). Its sums have a fixed order,
so the bits of a row do not depend on the other rows or on their number. For more rows, a pack of prompts, the GEMM on a
CPU is oneDNN's, which is twice as fast as that of `F.linear` (AMD EPYC). On CUDA both cases use `F.linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdengine import _native
from vdengine.kernels.rows import RowKernel

MAX_ROWS = 64  # up to which "auto" is the native code; with more rows the time is that of arithmetic


def thin_linear(
    x: Tensor,  # [M, K] float32 or bfloat16 (any dtype with the reference)
    *weights: Tensor,  # each [N_i, K], of x's dtype
    biases: Sequence[Tensor | None] = (),  # one for each weight, [N_i] of x's dtype; (): none has one
    dtype: torch.dtype | None = None,  # of the results: x's (default), or float32
    backend: str = "auto",  # native (CPU; float32, bfloat16) | onednn (CPU; float32) | reference
) -> tuple[Tensor, ...]:  # each [M, N_i]; native ones are slices of one buffer
    """`x @ w.T + b` for each weight, with fp32 sums that are rounded once. Not differentiable.

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit; the message names the argument.
    """
    _check(x, weights, biases, dtype)
    biases = biases or [None] * len(weights)
    backend = _resolve(x, backend)
    if backend == "native":
        out = _thin_linear_op(x, list(weights))
        for part, b in zip(out.split([w.shape[0] for w in weights], dim=1), biases, strict=True):
            if b is not None:
                part += b
        return (out if dtype == torch.float32 else out.to(x.dtype)).split([w.shape[0] for w in weights], dim=1)
    if backend == "onednn":  # an op of torch.compile without a public name
        # a bias is read as if it were contiguous, whatever its strides
        pairs = [(w, None if b is None else b.contiguous()) for w, b in zip(weights, biases, strict=True)]
        return tuple(torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "") for w, b in pairs)
    return tuple(_linear(x, w, b, dtype or x.dtype) for w, b in zip(weights, biases, strict=True))


def _resolve(x: Tensor, backend: str) -> str:
    """The backend that runs; ValueError if it is unknown or cannot take x."""
    on_cpu, is_fp32 = x.device.type == "cpu", x.dtype == torch.float32
    supported = {
        "native": on_cpu and (is_fp32 or x.dtype == torch.bfloat16),
        "onednn": on_cpu and is_fp32 and hasattr(torch.ops.mkldnn, "_linear_pointwise"),
        "reference": True,
    }
    if backend == "auto":
        return next(
            name for name, can_run in supported.items() if can_run and (name != "native" or x.shape[0] <= MAX_ROWS)
        )
    if backend not in supported:
        raise ValueError(f"thin_linear: unknown backend {backend!r}; allowed: auto, {', '.join(supported)}")
    if not supported[backend]:
        raise ValueError(f"thin_linear: backend {backend!r} cannot take {x.dtype} on {x.device} here")
    return backend


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x @ weight.T + bias` in x's dtype, or in fp32 without rounding: [M, K], [N, K], [N] -> [M, N]."""
    if dtype == x.dtype:
        return F.linear(x, weight, bias)
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    RowKernel().logits(x, weight, out)
    return out if bias is None else out.add_(bias)


def _check(x: Tensor, weights: tuple[Tensor, ...], biases: Sequence[Tensor | None], dtype: torch.dtype | None) -> None:
    """Raise ValueError where shapes, dtypes or devices do not fit."""
    if x.ndim != 2 or x.shape[1] == 0 or not weights:
        raise ValueError(f"thin_linear: x must be [M, K], and there must be a weight; got x {list(x.shape)}")
    for w in weights:
        if w.ndim != 2 or w.shape[1] != x.shape[1]:
            raise ValueError(f"thin_linear: weights must be [N, K]; got x {list(x.shape)}, weight {list(w.shape)}")
        if w.dtype != x.dtype or w.device != x.device:
            raise ValueError(
                f"thin_linear: weights must have x's dtype and device; got x {x.dtype} on {x.device}, weight "
                f"{w.dtype} on {w.device}"
            )
    if biases and len(biases) != len(weights):
        raise ValueError(f"thin_linear: {len(biases)} biases for {len(weights)} weights")
    for w, b in zip(weights, biases, strict=False):
        if b is not None and (b.shape != w.shape[:1] or b.dtype != x.dtype or b.device != x.device):
            raise ValueError(
                f"thin_linear: biases must be [N], of x's dtype and device; got weight {list(w.shape)}, bias "
                f"{list(b.shape)} {b.dtype} on {b.device}"
            )
    if dtype not in (None, x.dtype, torch.float32):
        raise ValueError(f"thin_linear: dtype must be x's, or float32; got {dtype}")


@torch.library.custom_op("vdengine::thin_linear", mutates_args=(), schema="(Tensor x, Tensor[] weights) -> Tensor")
def _thin_linear_op(x: Tensor, weights: list[Tensor]) -> Tensor:
    """The native backend: [M, sum of N_i] fp32, from x [M, K] and weights [N_i, K]."""
    out = _thin_linear_fake(x, weights)
    name: Any = "float32" if x.dtype == torch.float32 else "bfloat16"
    x, weights = _unit_stride(x.float()), [_unit_stride(w) for w in weights]
    _native.thin_linear(
        x.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.stride(0),
        [(w.data_ptr(), w.shape[0], w.stride(0)) for w in weights],
        name,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


@_thin_linear_op.register_fake
def _thin_linear_fake(x, weights):
    return x.new_empty((x.shape[0], sum(w.shape[0] for w in weights)), dtype=torch.float32)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
