"""Triton, and the choice of a kernel's backend. Triton runs on CUDA, or on any device in its interpreter
(`TRITON_INTERPRET=1`, for tests).

Without the package triton the kernels' modules can still be imported; only to ask for a Triton backend is an error.
"""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton
    import triton.language as tl

    jit: Any = triton.jit
except ImportError:  # macOS, some CPUs: the CPU backends do not need it
    triton = tl = None  # type: ignore[assignment]

    def jit(function: Any) -> Any:
        return function


# Triton launches on the current device and its stream. Every launch is made in this context of one of its tensors.
device_of = torch.cuda.device_of

__all__ = ["INTERPRETED", "arch", "device_of", "jit", "resolve", "tl", "triton"]


# Whether kernels run in Triton's interpreter, which takes CPU tensors. It is decided when triton is imported.
INTERPRETED: bool = triton is not None and triton.knobs.runtime.interpret


def resolve(op: str, backend: str, device: torch.device, *, cpu: str = "reference", more: tuple[str, ...] = ()) -> str:
    """The backend that runs an op: "auto" is Triton on CUDA and `cpu` elsewhere. All kernels choose by this function.

    Args:
        op: name of the function, for errors.
        cpu: the backend of "auto" on a CPU.
        more: other backends that the op has.

    Raises:
        ValueError: an unknown backend, or Triton where it cannot run.
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
    """Compute capability as one number, 90 for sm_90; 0 if the device is not CUDA."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
