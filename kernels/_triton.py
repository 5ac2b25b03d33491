"""Triton, and where it can run: on CUDA, or anywhere in its interpreter (`TRITON_INTERPRET=1`, for tests).

Without the package the kernels' files still import, and only asking for a Triton backend is an error.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl

    jit: Any = triton.jit
except ImportError:  # macOS, some CPUs: the CPU backends need none
    triton = tl = None  # type: ignore[assignment]

    def jit(function: Any) -> Any:
        return function


# A launch goes to the current device and its stream; every launch is made within this context of one of its tensors.
device_of = torch.cuda.device_of

__all__ = ["INTERPRETED", "arch", "device_of", "jit", "resolve", "tl", "triton"]


# Whether kernels are run by Triton's interpreter, which takes CPU tensors: decided, as for `jit`, on import.
INTERPRETED: bool = triton is not None and triton.knobs.runtime.interpret


def resolve(op: str, backend: str, device: torch.device, *, cpu: str = "reference", more: tuple[str, ...] = ()) -> str:
    """The backend that runs: "auto" is Triton on CUDA and `cpu` elsewhere. Dispatch by device is here alone.

    Raises:
        ValueError: an unknown backend; Triton asked for where it cannot run.
    """
    allowed = ("auto", "triton", *dict.fromkeys((cpu, *more, "reference")))
    if backend not in allowed:
        raise ValueError(f"{op}: unknown backend {backend!r}; allowed: {', '.join(allowed)}")
    if backend == "auto":
        return "triton" if device.type == "cuda" and triton is not None else cpu
    if backend == "triton" and triton is None:
        raise ValueError(f"{op}: backend 'triton' needs the package triton, which is not installed")
    if backend == "triton" and device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"{op}: backend 'triton' is for CUDA tensors; got {device}")
    return backend


def arch(device: torch.device) -> int:
    """Compute capability as one number, 90 for sm_90; 0 off CUDA."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
