"""What a causal language model of transformers computes from its last hidden states: the head, and what follows it.

    logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)

A head that would be read wrongly is refused by name, because log-probs of another distribution look like log-probs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vdengine.errors import InputError

# Keys of configs of transformers. Those that are not known here are found out by `Head.check`.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere; Falcon-H1; Muse
DIVISOR = "logits_scaling"  # Granite
DIVISOR_MULTIPLIES = ("hyperclovax",)  # multiplies by it
DIVISOR_BEFORE_HEAD = ("minicpm3",)  # divides the hidden states, which the head is given then

# Logits of which `Head.check` compares what becomes of them: a soft cap shows at the large ones, a scale at all.
POINTS = (-40.0, -1.0, 0.0, 0.5, 40.0)


class Head(NamedTuple):
    """The head of a causal language model. Its weight is read at each use: wrappers shard, gather and replace it."""

    module: nn.Linear
    softcap: float | None
    scale: float

    @property
    def weight(self) -> Tensor:  # [V, H]; under FSDP2 a DTensor outside of the module's forward, under ZeRO-3 [0]
        return self.module.weight

    @property
    def bias(self) -> Tensor | None:  # [V], as the weight
        return self.module.bias

    def transform(
        self,
        logits: Tensor,  # [...], of the linear layer
    ) -> Tensor:  # [...]
        """The model's logits: what its forward makes of those of the head."""
        logits = self.scale * logits
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def check(
        self,
        model: nn.Module,
        seen: Tensor,  # [len(POINTS)], what the model's forward has made of POINTS
    ) -> None:
        """Raise InputError if the model does something else to its logits than this head says."""
        seen = seen.detach().float().cpu()
        wanted = self.transform(torch.tensor(POINTS))
        # bf16 has 8 bits, and a soft cap of it takes three operations
        if not torch.allclose(seen, wanted, rtol=2**-6, atol=2**-6):
            raise InputError(
                f"{type(model).__name__} makes logits {seen.tolist()} of {list(POINTS)}, not {wanted.tolist()} as its "
                f"config says (softcap {self.softcap}, scale {self.scale}): what it does to logits is not supported"
            )


def unwrap(model: nn.Module) -> Any:
    """The model of transformers inside of DDP, torch.compile, PEFT and DeepSpeed, in whatever order.

    Raises:
        InputError: FSDP1 anywhere in it, or an adapter of PEFT that adds tokens to the prompt.
    """
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel

        if any(isinstance(m, FullyShardedDataParallel) for m in model.modules()):
            raise InputError(
                "the model is wrapped by FSDP1 (FullyShardedDataParallel), which is not supported: FSDP2 is"
            )
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):  # torch.compile
            inner = inner._orig_mod
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            for name, config in inner.peft_config.items():
                if config.is_prompt_learning:
                    kind = config.peft_type.value
                    raise InputError(f"the adapter {name!r} ({kind}) adds tokens to the prompt, which is not supported")
            inner = inner.get_base_model()
        elif type(inner).__name__ in ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine"):
            inner = inner.module
        else:
            return inner


def read_head(model: nn.Module) -> Head:
    """The head of a causal language model of transformers, in whatever it is wrapped.

    Raises:
        InputError: a model without a head, or one whose logits are not those of a linear layer in floating point,
            scaled and soft-capped; what `unwrap` refuses.
    """
    inner = unwrap(model)
    name = type(inner).__name__
    embeddings = getattr(inner, "get_output_embeddings", None)
    module: Any = embeddings() if callable(embeddings) else None
    if module is None:
        raise InputError(f"{name} has no output head (get_output_embeddings): a causal language model is needed")
    kind = f"{type(module).__module__.split('.')[0]}'s {type(module).__name__}"
    if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
        raise InputError(f"the head of {name} carries an adapter of PEFT ({kind}): not supported, train other modules")
    if not isinstance(module, nn.Linear):
        raise InputError(f"the head of {name} is {kind}: only nn.Linear is supported")
    weight = module.weight
    plain = isinstance(weight, DTensor) or type(weight) in (Tensor, nn.Parameter)
    if not plain or not weight.is_floating_point():
        what = str(weight.dtype) if plain else f"{type(weight).__name__}, {weight.dtype}"
        raise InputError(f"the weight of {name}'s head is quantised ({what}): not supported, leave the head out of it")
    if "forward" in vars(module):
        raise InputError(f"the forward of {name}'s head was replaced (device_map of several devices does it)")
    config = inner.config.get_text_config()
    return Head(module, softcap=_softcap(config), scale=_scale(config))


def _softcap(config: Any) -> float | None:
    caps = [getattr(config, key, None) for key in SOFTCAPS]
    return next((float(cap) for cap in caps if cap is not None), None)


def _scale(config: Any) -> float:
    factors = [getattr(config, key, None) for key in MULTIPLIERS]
    scale = next((float(factor) for factor in factors if factor is not None), 1.0)
    divisor = getattr(config, DIVISOR, None)
    if divisor is None or config.model_type in DIVISOR_BEFORE_HEAD:
        return scale
    return scale * float(divisor) if config.model_type in DIVISOR_MULTIPLIES else scale / float(divisor)
