"""Peers: other implementations of what our kernels compute, each with a small adapter.

An adapter is a function that imports its package and returns the method. If it raises an error, the peer is skipped
with this reason. No code of a peer is copied here; what is not installed is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Maker = Callable[[], Callable[..., Any]]

EAGER = frozenset({"torch eager", "F.linear_cross_entropy", "F.linear_cross_entropy chunked", "TRL formula"})
TORCH = EAGER | {"torch.compile", "TRL formula, torch.compile"}  # compiling takes a minute per shape
_HEAD = {
    "Liger FLCE": "liger_kernel", "Liger scaled CE": "liger_kernel", "CCE": "cut_cross_entropy",
    "CCE exact": "cut_cross_entropy", "QuACK": "quack",
}  # fmt: skip
PACKAGES: dict[str, dict[str, str]] = {  # the package that each peer needs, other than torch
    "linear_logprob": _HEAD,
    "cross_entropy": {name: package for name, package in _HEAD.items() if name != "Liger scaled CE"},
    "preference": {"Liger": "liger_kernel"},
    "memory_bound": {"Liger": "liger_kernel"},
}
SUMMARY = frozenset({"Liger FLCE", "CCE exact", "QuACK", "Liger"})  # peers that are measured without --full too


def chosen(makers: dict[str, Maker], names: frozenset[str]) -> dict[str, Maker]:
    """The adapters of these names."""
    return {name: make for name, make in makers.items() if name in names}


class Absent(Exception):
    """A method cannot be measured here; the message is the reason."""


def collect(makers: dict[str, Maker]) -> tuple[dict[str, Callable[..., Any]], list[str]]:
    """The methods that can be measured here, and a note for each other one."""
    methods, notes = {}, []
    for name, make in makers.items():
        try:
            methods[name] = make()
        except Exception as e:  # the import of a peer may fail in any way; the benchmark continues without it
            notes.append(f"{name}: skipped, {_line(e)}")
    return methods, notes


def attempt(name: str, notes: list[str], function: Callable[[], Any]) -> Any:
    """`function()`; None and a note if a peer fails. An error of ours is raised."""
    try:
        return function()
    except Exception as e:
        if name.startswith("vdengine"):
            raise
        notes.append(f"{name}: failed, {_line(e)}")
        return None


def _line(e: Exception) -> str:
    """An error in one line."""
    text = str(e).strip().split("\n")[0]
    return text if isinstance(e, Absent) else f"{type(e).__name__}: {text}"


def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        raise Absent("needs a CUDA device")


def compiled(function: Callable[..., Any], quick: bool) -> Maker:
    """`torch.compile` of a formula, for static shapes, because every shape of a run is different."""

    def make() -> Callable[..., Any]:
        if quick:
            raise Absent("not compiled with --quick")
        torch.compiler.reset()  # after eight shapes of one function torch would run it eagerly without a message
        return torch.compile(function, dynamic=False)

    return make


# ------------------------------------------------------------- log-probs: (hidden, weight, targets) -> [N]


def logprob_formula(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The formula in trainers: logits of the compute dtype, log-softmax in fp32."""
    return F.log_softmax((hidden @ weight.t()).float(), -1).gather(1, targets[:, None])[:, 0]


def logprob_peers(quick: bool) -> dict[str, Maker]:
    return {
        "torch eager": lambda: logprob_formula,
        "torch.compile": compiled(logprob_formula, quick),
        "F.linear_cross_entropy": lambda: _negated(_torch_fused(None, reduction="none")),
        "F.linear_cross_entropy chunked": lambda: _negated(_torch_fused(4096, reduction="none")),
        "Liger FLCE": lambda: _negated(_liger("none")),
        "Liger scaled CE": lambda: _negated(_liger_scaled()),
        "CCE": lambda: _negated(_cce(exact=False, reduction="none")),
        "CCE exact": lambda: _negated(_cce(exact=True, reduction="none")),
        "QuACK": lambda: _negated(_quack_unreduced()),
    }


def _negated(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Log-probs in fp32, from a loss."""
    return lambda hidden, weight, targets: -method(hidden, weight, targets).float()


def _torch_fused(chunk: int | None, reduction: str) -> Callable[..., Tensor]:
    if not hasattr(F, "linear_cross_entropy"):
        raise Absent(f"torch {torch.__version__} does not have it")
    options = None if chunk is None else torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    return lambda h, w, t: F.linear_cross_entropy(h, w, t, reduction=reduction, options=options)


def _liger(reduction: str) -> Callable[..., Tensor]:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused

    _needs_cuda()
    # bias, class weights, ignore_index, z-loss, label smoothing, reduction
    return lambda h, w, t: Fused.apply(h, w, t, None, None, -100, 0.0, 0.0, reduction)[0]


def _liger_scaled() -> Callable[..., Tensor]:
    """Liger's newer op: Hopper kernels if these and cutlass are installed, else a fallback in chunks of torch."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Scaled

    _needs_cuda()
    return lambda h, w, t: Scaled.apply(h, w, t)


def _cce(exact: bool, reduction: str) -> Callable[..., Tensor]:
    """exact: with whole gradients. By default CCE leaves blocks with small softmax values out of the gradients."""
    from cut_cross_entropy import linear_cross_entropy
    from cut_cross_entropy.linear_cross_entropy import LinearCrossEntropyImpl

    _needs_cuda()
    options: dict[str, Any] = {"impl": "cce"}
    if exact:  # a preset of newer releases, an argument in 25.1
        options = {"impl": "cce_exact"} if hasattr(LinearCrossEntropyImpl, "CCE_EXACT") else {"filter_eps": None}
    return lambda h, w, t: linear_cross_entropy(h, w, t, reduction=reduction, **options)


def _quack_unreduced() -> Callable[..., Tensor]:
    from quack.linear_cross_entropy import linear_cross_entropy_func

    _needs_cuda()
    return lambda h, w, t: linear_cross_entropy_func(h, w, None, t, reduction="none")


# ------------------------------------------------------------ cross-entropy: (hidden, weight, targets) -> []


def cross_entropy_formula(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def cross_entropy_peers(quick: bool) -> dict[str, Maker]:
    return {
        "torch eager": lambda: cross_entropy_formula,
        "torch.compile": compiled(cross_entropy_formula, quick),
        "F.linear_cross_entropy": lambda: _torch_fused(None, reduction="mean"),
        "F.linear_cross_entropy chunked": lambda: _torch_fused(4096, reduction="mean"),
        "Liger FLCE": lambda: _liger("mean"),
        "CCE": lambda: _cce(exact=False, reduction="mean"),
        "CCE exact": lambda: _cce(exact=True, reduction="mean"),
        "QuACK": _quack_mean,
    }


def _quack_mean() -> Callable[..., Tensor]:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    _needs_cuda()
    return lambda h, w, t: chunked_linear_cross_entropy(h, w, t)


# ------- preference losses on padded rows: (hidden [2n, T, H], weight, targets [2n, T]) -> []; chosen first


def preference_formula(name: str, beta: float, gamma: float) -> Callable[..., Tensor]:
    """TRL's formula: log-softmax of all padded logits, then masked sums. gamma is SimPO's margin itself."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        scored = targets != -100
        logp = F.log_softmax((hidden @ weight.t()).float(), -1)
        logp = logp.gather(-1, torch.where(scored, targets, 0)[..., None])[..., 0]
        sums = (logp * scored).sum(-1)
        if name == "simpo":
            sums = sums / scored.sum(-1)
        chosen, rejected = sums.chunk(2)
        return -F.logsigmoid(beta * (chosen - rejected) - gamma).mean()

    return loss


def preference_peers(name: str, beta: float, gamma: float, quick: bool) -> dict[str, Maker]:
    formula = preference_formula(name, beta, gamma)
    return {
        "TRL formula": lambda: formula,
        "TRL formula, torch.compile": compiled(formula, quick),
        "Liger": lambda: _liger_preference(name, beta, gamma),
    }


def _liger_preference(name: str, beta: float, gamma: float) -> Callable[..., Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearSimPOLoss

    _needs_cuda()
    if name == "simpo":
        loss = LigerFusedLinearSimPOLoss(beta=beta, gamma=gamma, compute_nll_loss=False)
    else:
        loss = LigerFusedLinearDPOLoss(beta=beta, use_ref_model=False, compute_nll_loss=False)
    return lambda h, w, t: loss(w, h, t)[0]


# ------------------------------------------------------------------------------------ memory-bound kernels


def rms_norm_formula(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The formula of Hugging Face's models, which rounds before the weight and after it."""
    s = x + residual
    wide = s.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(s.dtype) * weight, s


def rms_norm_peers(quick: bool) -> dict[str, Maker]:
    def liger() -> Callable[..., Any]:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction as Fused

        _needs_cuda()
        return lambda x, r, w: Fused.apply(x, r, w, 1e-6)

    return {
        "torch eager": lambda: rms_norm_formula,
        "torch.compile": compiled(rms_norm_formula, quick),
        "Liger": liger,
    }


def qk_rope_formula(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """The formula of Hugging Face's models, with norms of the heads if there are weights."""

    def rotated(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            wide = x.float()
            x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight
        a, b = x.chunk(2, -1)
        c, s = (torch.cat((t, t), -1).to(x.dtype)[:, None] for t in (cos, sin))
        return x * c + torch.cat((-b, a), -1) * s

    q_weight, k_weight = weights or (None, None)
    return rotated(q, q_weight), rotated(k, k_weight)


def qk_rope_peers(quick: bool) -> dict[str, Maker]:
    def liger() -> Callable[..., Any]:
        """Liger's RoPE, which rotates q and k in place, after its RMSNorm if there are weights."""
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Norm
        from liger_kernel.ops.rope import LigerRopeFunction as Rope

        _needs_cuda()

        def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
            if weights:
                q, k = (Norm.apply(x, w, 1e-6, 0.0, "llama", False) for x, w in zip((q, k), weights, strict=True))
            c, s = (torch.cat((t, t), -1).to(q.dtype)[None] for t in (cos, sin))
            q, k = Rope.apply(q[None].transpose(1, 2), k[None].transpose(1, 2), c, s)
            return q.transpose(1, 2)[0], k.transpose(1, 2)[0]

        return run

    return {
        "torch eager": lambda: qk_rope_formula,
        "torch.compile": compiled(qk_rope_formula, quick),
        "Liger": liger,
    }


def swiglu_formula(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def swiglu_peers(quick: bool) -> dict[str, Maker]:
    def liger() -> Callable[..., Any]:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Fused

        _needs_cuda()
        return lambda gate, up: Fused.apply(gate, up)

    return {
        "torch eager": lambda: swiglu_formula,
        "torch.compile": compiled(swiglu_formula, quick),
        "Liger": liger,
    }
