"""What sampling needs to know of a model that FSDP2 may have sharded: its compute dtype, agreement between the ranks
that run its forwards together, and a whole copy of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from vdengine.kernels.rms_norm import RMSNorm
from vdengine.models.lora import LoraLinear, add_lora
from vdengine.models.transformer import Transformer, is_plain

Agree = Callable[..., Sequence[int]]  # of integers: the largest of each over the ranks


def agreement(model: Transformer) -> Agree:
    """A function that gives, of each of its integers, the largest over the ranks that hold shards of the model. It is a
    collective; of a plain model it returns its arguments."""
    weight = model.model.norm.weight
    if not isinstance(weight, DTensor):
        return lambda *values: values
    shard_dim = next(i for i, placement in enumerate(weight.placements) if isinstance(placement, Shard))
    group, device = weight.device_mesh.get_group(shard_dim), weight.device

    def agree(*values: int) -> Sequence[int]:
        largest = torch.tensor(values, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        return largest.tolist()

    return agree


def forward_dtype(model: Transformer) -> torch.dtype:
    """The dtype that the model computes in: with FSDP2's mixed precision it is not that of the shards."""
    policy_dtype = model._get_fsdp_state()._mp_policy.param_dtype if isinstance(model, FSDPModule) else None
    return policy_dtype or model.model.norm.weight.dtype


def gather_model(model: Transformer, dtype: torch.dtype, into: Transformer | None = None) -> Transformer:
    """A plain model with a whole copy of the weights in `dtype`, to sample from; the copy takes no gradient.

    A collective if the model is sharded. On one rank, and with the model's own dtype, the weights are shared and not
    copied.

    Args:
        into: an earlier copy of the same model. It is updated in place and returned.

    Raises:
        ValueError: a layer that an adapter or a hook has changed: the copy would be without it.
    """
    plain = into
    if plain is None:
        with torch.device("meta"):
            plain = Transformer(model.config, kernels=model.kernels)
        if model.lora is not None:
            add_lora(plain, model.lora)
    for name, module in plain.named_modules():
        if type(module) in (nn.Linear, LoraLinear, RMSNorm) and not is_plain(model.get_submodule(name), type(module)):
            raise ValueError(f"{name} is not a plain layer (an adapter, a hook): a copy of the weights would lack it")
    for name, parameter in model.named_parameters():  # lists a tied weight once
        if into is not None and model.lora is not None and not parameter.requires_grad:
            continue  # it is what it was
        module, _, attribute = name.rpartition(".")
        full = _whole(parameter.detach().to(dtype) if parameter.dtype != dtype else parameter.detach())
        copy = getattr(plain.get_submodule(module), attribute)
        if into is None:
            setattr(plain.get_submodule(module), attribute, nn.Parameter(full, requires_grad=False))
        elif copy.data_ptr() != full.data_ptr():
            copy.data.copy_(full)
    if plain.config.tie_word_embeddings:
        plain.lm_head.weight = plain.model.embed_tokens.weight
    return plain


def _whole(parameter: Tensor) -> Tensor:
    """The whole of a parameter; a collective if it is sharded over more than one rank."""
    if not isinstance(parameter, DTensor):
        return parameter
    shards = math.prod(
        parameter.device_mesh.size(i)
        for i, placement in enumerate(parameter.placements)
        if isinstance(placement, Shard)
    )
    return parameter.to_local() if shards == 1 else parameter.full_tensor()
