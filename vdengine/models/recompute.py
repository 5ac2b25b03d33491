"""Activation checkpointing of a layer: what is kept for backward, and what is computed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


def recomputed(function: Callable[..., Tensor], *arguments: Any, mode: str) -> Tensor:
    """`function(*arguments)`, of which backward computes again what the mode ("selective" | "full") does not keep."""
    # dropout is a hash of what is computed on, so no RNG state has to be restored
    return checkpoint(
        function,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=_checkpoint_selectively if mode == "selective" else _checkpoint_fully,
    )


def _checkpoint_selectively() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Selective activation checkpointing: save the outputs of GEMMs and attention, recompute elementwise ops."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op.name() in _SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _checkpoint_fully() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Full activation checkpointing: save the input of the layer, recompute everything else."""
    return nullcontext(), nullcontext()


# Names, because some of these ops are registered only when attention first runs.
_SAVED_OPS = frozenset(
    {
        "aten::mm",
        "aten::addmm",  # with a bias
        "vdengine::lora_linear",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_flash_attention_forward",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
