"""Causal attention over packed segments: one function, three backends with the same result up to rounding.

Segment s has queries q[cu_seqlens_q[s] : cu_seqlens_q[s+1]] and keys k[cu_seqlens_k[s] : cu_seqlens_k[s+1]];
the mask is causal and bottom-right aligned: query i of n sees the first m - n + i + 1 of its segment's m keys. So the
queries of a branch see all keys of its prompt, and those of the branch up to their own position.

With a window (sliding-window attention, arXiv 2310.06825) a query sees the last `window` of those keys, its own among
them. A branch follows its prompt in position as in the segment, so in both a distance is the same.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import warnings
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vdengine.errors import InputError
from vdengine.trees import Lengths

# SDPA backends whose backward can add in a fixed order.
_DETERMINISTIC_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    q: Tensor,  # [T, heads, head_dim]
    k: Tensor,  # [K, kv_heads, head_dim]
    v: Tensor,  # [K, kv_heads, head_dim]
    cu_seqlens_q: Tensor,  # [S+1] int32
    cu_seqlens_k: Tensor,  # [S+1] int32
    max_q: int,  # longest segment, in queries
    max_k: int,  # longest segment, in keys
    *,
    scale: float | None = None,
    window: int | None = None,
    lengths: Lengths | None = None,
    backend: str = "auto",
    deterministic: bool = True,
) -> Tensor:  # [T, heads, head_dim], q's dtype
    """Softmax attention; grouped-query (arXiv 2305.13245) where heads > kv_heads.

    Args:
        scale: of the scores; default: head_dim**-0.5.
        window: most keys that a query sees, its own included; None: no bound.
        lengths: queries and keys of each segment, on the host. Only SDPA needs them; without them it reads the
            `cu_seqlens` from the device and waits for it.
        backend: "auto" is flash-attn (arXiv 2307.08691) where that package can be imported, else torch's varlen
            attention (both need CUDA and a 16-bit dtype), else SDPA segment by segment (on a CPU, and fp32 on CUDA).
        deterministic: flash-attn's backward adds in a fixed order. Torch's own attention does so only while
            `torch.use_deterministic_algorithms(True)` is on without `warn_only` (`engine.parallel.ordered`).

    Raises:
        ValueError: an unknown backend, or flash-attn asked for where it cannot be imported.
        InputError: a window or a scale that the backend lacks in its installed version.
    """
    if backend == "auto":
        half_on_cuda = q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16)
        backend = "sdpa" if not half_on_cuda else "flash" if _has_flash_attn() else "varlen"
    if backend == "sdpa":
        return _attend_sdpa(q, k, v, lengths or Lengths.of(cu_seqlens_q, cu_seqlens_k), scale, window)
    if backend == "flash":
        if (problem := flash_attn_problem()) is not None:
            raise ValueError(f"attend: backend 'flash': {problem}")
        from flash_attn import flash_attn_varlen_func

        options = _window_option("flash", window, frozenset(inspect.signature(flash_attn_varlen_func).parameters))
        return flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            max_q,
            max_k,
            softmax_scale=scale,
            causal=True,
            deterministic=deterministic,
            **options,
        )
    if backend == "varlen":
        return _attend_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, window)
    raise ValueError(f"attend: unknown backend {backend!r}; allowed: auto, flash, varlen, sdpa")


def _window_option(backend: str, window: int | None, features: frozenset[str]) -> dict[str, tuple[int, int]]:
    """The argument of flash-attention's functions for a window: keys before the query's own, and after it. They align
    it to the bottom right, as the causal mask.

    Args:
        features: names of the function's parameters.

    Raises:
        InputError: it has no such parameter.
    """
    if window is None:
        return {}
    if "window_size" not in features:
        raise InputError(f"attend: backend {backend!r} has no sliding window in its installed version; sdpa has")
    return {"window_size": (window - 1, 0)}


@functools.cache
def flash_attn_problem() -> str | None:
    """Why the package flash-attn cannot be used; None if it can. The answer is cached.

    The package is imported to find out: `find_spec` also finds a build for another torch or CUDA version, and such a
    build fails at its first import, with one of many exception types.
    """
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    try:
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018  # AttributeError if it is missing
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"flash-attn is installed but cannot be imported ({type(error).__name__}: {reason})"
    return None


@functools.cache
def _has_flash_attn() -> bool:
    """Whether "auto" is flash-attn. A build that cannot be imported gives one warning."""
    problem = flash_attn_problem()
    if problem is not None and "cannot be imported" in problem:
        warnings.warn(f"{problem}: torch's varlen attention is used instead", stacklevel=2)
    return problem is None


@functools.cache
def _varlen_features() -> frozenset[str]:
    """Parameter names of torch's varlen_attn: they differ between 2.11 and 2.13."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _attend_varlen(
    q: Tensor,  # [T, heads, head_dim]
    k: Tensor,  # [K, kv_heads, head_dim]
    v: Tensor,  # [K, kv_heads, head_dim]
    cu_seqlens_q: Tensor,  # [S+1] int32
    cu_seqlens_k: Tensor,  # [S+1] int32
    max_q: int,
    max_k: int,
    scale: float | None,
    window: int | None,
) -> Tensor:  # [T, heads, head_dim]
    """`attend` with torch's varlen attention, of any version from 2.11 on."""
    from torch.nn.attention.varlen import varlen_attn

    features = _varlen_features()
    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1] and "enable_gqa" in features:
        # torch 2.11 lacks the option and needs none: it does not compare head counts, and its kernel handles GQA
        options["enable_gqa"] = True
    # the default window, (-1, -1), is not causal
    options |= {"window_size": (-1, 0)} if "window_size" in features else {"is_causal": True}
    options |= _window_option("varlen", window, features)
    if scale is not None:
        if "scale" not in features:
            raise InputError("attend: backend 'varlen' takes no scale in its installed version; sdpa does")
        options["scale"] = scale
    # a tuple only if asked for the log-sum-exp
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, **options)  # type: ignore[return-value]


def _attend_sdpa(
    q: Tensor,  # [T, heads, head_dim]
    k: Tensor,  # [K, kv_heads, head_dim]
    v: Tensor,  # [K, kv_heads, head_dim]
    lengths: Lengths,
    scale: float | None,
    window: int | None,
) -> Tensor:  # [T, heads, head_dim]
    """`attend` with one SDPA call per segment. `split` and `cat` are each other's backward, so no gradient needs a
    scatter."""
    q_lengths, k_lengths = lengths.q, lengths.k

    def is_masked(n: int, m: int) -> bool:
        """Whether n queries on m keys need a mask: others are the plain causal case."""
        return n != m or (window is not None and m > window)

    # Rows m-n .. m of the m x m mask are the bottom-right mask of n queries on m keys, so one mask of the longest
    # segment that needs one is sliced for all: [longest, longest].
    longest = max((m for n, m in zip(q_lengths, k_lengths, strict=True) if is_masked(n, m)), default=0)
    mask = torch.full((longest, longest), -torch.inf, dtype=q.dtype, device=q.device).triu_(1) if longest else None
    if mask is not None and window is not None:
        mask += torch.full_like(mask, -torch.inf).tril_(-window)
    out = []
    # cuDNN, torch's first choice on Hopper, has no backward of fixed order, and builds a graph for every new shape
    with sdpa_kernel(_DETERMINISTIC_BACKENDS) if q.device.type == "cuda" else nullcontext():
        for q_s, k_s, v_s in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True):
            n, m = q_s.shape[0], k_s.shape[0]  # queries, keys
            q_s, k_s, v_s = (x.transpose(0, 1).unsqueeze(0) for x in (q_s, k_s, v_s))  # [1, heads, n or m, head_dim]
            out.append(
                F.scaled_dot_product_attention(
                    q_s,
                    k_s,
                    v_s,
                    attn_mask=mask[m - n : m, :m] if mask is not None and is_masked(n, m) else None,  # [n, m]
                    is_causal=not is_masked(n, m),
                    scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )[0].transpose(0, 1)  # [n, heads, head_dim]
            )
    return torch.cat(out)
