"""Causal attention over packed segments: one call, three backends that agree.

Segment s has queries q[cu_seqlens_q[s] : cu_seqlens_q[s+1]] and keys k[cu_seqlens_k[s] : cu_seqlens_k[s+1]];
the mask is causal and bottom-right aligned: a branch's queries see all of its prompt's keys and its own past.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor,  # [T, heads, head_dim]
    k: Tensor,  # [K, kv_heads, head_dim]
    v: Tensor,  # [K, kv_heads, head_dim]
    cu_seqlens_q: Tensor,  # [S+1] int32
    cu_seqlens_k: Tensor,  # [S+1] int32
    max_q: int,
    max_k: int,
    *,
    backend: str = "auto",
    deterministic: bool = True,
) -> Tensor:  # [T, heads, head_dim]
    """Softmax attention with scale head_dim**-0.5, grouped-query where heads > kv_heads.

    backend: "auto" picks flash-attn when that package is installed, else torch's varlen attention (both CUDA,
    16-bit dtypes), else SDPA segment by segment (CPU; fp32 on CUDA). `deterministic` reaches flash-attn's backward.
    """
    if backend == "auto":
        half_on_cuda = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16)
        backend = "sdpa" if not half_on_cuda else "flash" if _has_flash_attn() else "varlen"
    if backend == "sdpa":
        return _attend_sdpa(q, k, v, cu_seqlens_q, cu_seqlens_k)
    if backend == "flash":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal=True, deterministic=deterministic
        )
    if backend == "varlen":
        return _attend_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k)
    raise ValueError(f"attend: unknown backend {backend!r}; allowed: auto, flash, varlen, sdpa")


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


@functools.cache
def _varlen_features() -> frozenset[str]:
    """Parameter names of torch's varlen_attn: they differ between 2.11 and 2.13."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _attend_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k):
    from torch.nn.attention.varlen import varlen_attn

    features = _varlen_features()
    options: dict[str, object] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in features:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    # its default window is (-1, -1): not causal
    options |= {"window_size": (-1, 0)} if "window_size" in features else {"is_causal": True}
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, **options)


def _attend_sdpa(q, k, v, cu_seqlens_q, cu_seqlens_k):
    """Segment by segment. `split` and `cat` are each other's backward: gradients need no scatter."""
    q_lengths, k_lengths = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    # Rows m-n .. m of the m x m causal mask are the bottom-right mask of n queries on m keys: one mask, sliced.
    longest = max((m for n, m in zip(q_lengths, k_lengths, strict=True) if n != m), default=0)
    mask = torch.full((longest, longest), -torch.inf, dtype=q.dtype, device=q.device).triu_(1) if longest else None
    out = []
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
