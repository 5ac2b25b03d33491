"""Causal attention over packed segments: one call, three backends that agree.

Segment s has queries q[cu_seqlens_q[s] : cu_seqlens_q[s+1]] and keys k[cu_seqlens_k[s] : cu_seqlens_k[s+1]];
the mask is causal and bottom-right aligned: a branch's queries see all of its prompt's keys and its own past.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import warnings
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vdengine.trees import Lengths

_ORDERED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    q: Tensor,  # [T, heads, head_dim]
    k: Tensor,  # [K, kv_heads, head_dim]
    v: Tensor,  # [K, kv_heads, head_dim]
    cu_seqlens_q: Tensor,  # [S+1] int32
    cu_seqlens_k: Tensor,  # [S+1] int32
    max_q: int,
    max_k: int,
    *,
    lengths: Lengths | None = None,
    backend: str = "auto",
    deterministic: bool = True,
) -> Tensor:  # [T, heads, head_dim]
    """Softmax attention with scale head_dim**-0.5, grouped-query where heads > kv_heads.

    Args:
        lengths: of the segments, on the host, where the caller has them; else SDPA reads them from the device.
        backend: "auto" picks flash-attn where that package can be imported, else torch's varlen attention (both CUDA,
            16-bit dtypes), else SDPA segment by segment (CPU; fp32 on CUDA).
        deterministic: flash-attn's backward adds in a fixed order. Torch's own attention does only while
            `torch.use_deterministic_algorithms(True)` is on and not as a mere warning (`engine.parallel.ordered`).

    Raises:
        ValueError: an unknown backend, or flash-attn asked for where it cannot be imported.
    """
    if backend == "auto":
        half_on_cuda = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16)
        backend = "sdpa" if not half_on_cuda else "flash" if _has_flash_attn() else "varlen"
    if backend == "sdpa":
        return _attend_sdpa(q, k, v, lengths or Lengths.of(cu_seqlens_q, cu_seqlens_k))
    if backend == "flash":
        if (problem := flash_attn_problem()) is not None:
            raise ValueError(f"attend: backend 'flash': {problem}")
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal=True, deterministic=deterministic
        )
    if backend == "varlen":
        return _attend_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    raise ValueError(f"attend: unknown backend {backend!r}; allowed: auto, flash, varlen, sdpa")


@functools.cache
def flash_attn_problem() -> str | None:
    """Why the package flash-attn cannot be used, or None: it is imported, once. A build for another torch or CUDA is
    found by `find_spec` like any other, and fails at its first import, in one of many ways."""
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    try:
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018  # is it there?
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"flash-attn is installed but cannot be imported ({type(error).__name__}: {reason})"
    return None


@functools.cache
def _has_flash_attn() -> bool:
    """Whether "auto" takes it. A broken build is said once."""
    problem = flash_attn_problem()
    if problem is not None and "cannot be imported" in problem:
        warnings.warn(f"{problem}: torch's varlen attention is used instead", stacklevel=2)
    return problem is None


@functools.cache
def _varlen_features() -> frozenset[str]:
    """Parameter names of torch's varlen_attn: they differ between 2.11 and 2.13."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _attend_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k):
    from torch.nn.attention.varlen import varlen_attn

    features = _varlen_features()
    options: dict[str, object] = {}
    if q.shape[1] != k.shape[1] and "enable_gqa" in features:
        # 2.11 has no such option and needs none: it does not compare head counts, and the kernel below is GQA-native
        options["enable_gqa"] = True
    # its default window is (-1, -1): not causal
    options |= {"window_size": (-1, 0)} if "window_size" in features else {"is_causal": True}
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, **options)


def _attend_sdpa(q, k, v, lengths):
    """Segment by segment. `split` and `cat` are each other's backward: gradients need no scatter."""
    q_lengths, k_lengths = lengths.q, lengths.k
    # Rows m-n .. m of the m x m causal mask are the bottom-right mask of n queries on m keys: one mask, sliced.
    longest = max((m for n, m in zip(q_lengths, k_lengths, strict=True) if n != m), default=0)
    mask = torch.full((longest, longest), -torch.inf, dtype=q.dtype, device=q.device).triu_(1) if longest else None
    out = []
    # cuDNN's, which comes first on Hopper, has no ordered backward, and builds a graph for every new shape
    with sdpa_kernel(_ORDERED) if q.device.type == "cuda" else nullcontext():
        for q_s, k_s, v_s in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True):
            n, m = q_s.shape[0], k_s.shape[0]
            out.append(
                F.scaled_dot_product_attention(
                    *(x.transpose(0, 1).unsqueeze(0) for x in (q_s, k_s, v_s)),  # [1, heads, length, head_dim]
                    attn_mask=None if n == m or mask is None else mask[m - n : m, :m],
                    is_causal=n == m,
                    enable_gqa=q.shape[1] != k.shape[1],
                )[0].transpose(0, 1)
            )
    return torch.cat(out)
