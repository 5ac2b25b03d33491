"""Where a model runs and in what, when nobody says."""

from __future__ import annotations

import torch


def default_device() -> str:
    """CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The dtype that `name` says; "auto": bfloat16 on CUDA, float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is no dtype")
    return dtype
