"""The default device and dtype of a model."""

from __future__ import annotations

import torch


def default_device() -> str:
    """ "cuda" where there is a CUDA device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The torch dtype of that name ("bfloat16"); "auto" is bfloat16 on CUDA and float32 on a CPU.

    Raises:
        AttributeError: torch has no such name.
        ValueError: torch's object of that name is not a dtype.
    """
    if name == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return dtype
