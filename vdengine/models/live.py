"""The weights of a model that is in memory already: ours, or a causal language model of transformers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vdengine.errors import InputError
from vdengine.models.families import ModelConfig
from vdengine.models.hf_config import config_from_hf
from vdengine.models.transformer import Transformer
from vdengine.models.weights import HASH_BYTES, Weights, named_parameters

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class LiveWeights(Weights):
    """The weights of a live model, read as those of a file are. The model is not changed, and nothing of it is copied
    but the rows that are asked for; what reads them later (`hash`, a reference model) reads what they are then.

    Attributes:
        frozen: names of the parameters that take no gradient.

    Args:
        model: a `Transformer`, or a model of transformers; plain tensors of one process, on any device.
        trained: whether its parameters are to be trained, and not an adapter beside them.

    Raises:
        InputError: another kind of model, one that is not supported, sharded, quantised, wrapped by an adapter, or
            not initialised (on the meta device).
    """

    def __init__(self, model: nn.Module, *, trained: bool = True) -> None:
        source = f"model ({type(model).__name__})"
        config, tensors = _ours(model) if isinstance(model, Transformer) else _of_transformers(model, source)
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                raise InputError(f"{source}: {name} is sharded already; give the model as it was before")
            if tensor.is_meta:
                raise InputError(f"{source}: {name} is on the meta device: the model has no weights")
            if tensor.dtype not in _DTYPES:
                raise InputError(f"{source}: {name} is {tensor.dtype}; float32, float16, bfloat16 and float64 are read")
        super().__init__(source, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, [])
        self._tensors = tensors
        self.frozen = frozenset(name for name, tensor in tensors.items() if not tensor.requires_grad)
        if trained and len(self.frozen) == len(tensors):
            raise InputError(f"{source}: no parameter takes a gradient (requires_grad); there is nothing to train")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Weights.read`, in the model's dtype and on its device."""
        return self._tensors[name].detach()[start:stop]

    def release(self) -> None:
        """Let go of the model, so that nothing here keeps its memory. No tensor can be read any more."""
        self._tensors = {}

    @cached_property
    def hash(self) -> str:
        """BLAKE2b over the config and the dtype and bytes of every tensor, by name: 32 hex digits. Two models of equal
        weights and dtypes have one hash, whatever made them."""
        total = hashlib.blake2b(repr(self.config).encode(), digest_size=16)
        chunks = [(name, rows) for name in self.names for rows in _ranges(self._tensors[name])]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (name, _), digest in zip(chunks, pool.map(self._hash_chunk, chunks), strict=True):
                total.update(f"{name} {self._tensors[name].dtype} ".encode() + digest)
        return total.hexdigest()

    def _hash_chunk(self, chunk: tuple[str, range]) -> bytes:
        """BLAKE2b of some rows of a tensor: 16 bytes."""
        name, rows = chunk
        part = self.read(name, rows.start, rows.stop).cpu().contiguous()
        return hashlib.blake2b(part.view(torch.uint8).numpy().data, digest_size=16).digest()


def _ranges(tensor: Tensor) -> Iterator[range]:
    """The rows of a tensor, in parts of about HASH_BYTES."""
    row_bytes = max(1, tensor[:1].numel() * tensor.element_size())
    step = max(1, HASH_BYTES // row_bytes)
    return (range(start, min(start + step, len(tensor))) for start in range(0, len(tensor), step))


def _ours(model: Transformer) -> tuple[ModelConfig, dict[str, Tensor]]:
    if model.lora is not None:
        raise InputError("model (Transformer): has an adapter; write it with vd.save_adapter and name it in lora.start")
    return model.config, dict(named_parameters(model))


def _of_transformers(model: nn.Module, source: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config of a model as `save_pretrained` would write it, and its parameters."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        raise InputError(f"{source}: neither a vd.Transformer nor a model of transformers")
    if hasattr(model, "peft_config"):
        raise InputError(f"{source}: an adapter around a model; merge it first (merge_and_unload)")
    raw: dict[str, Any] = json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}
    ours = config_from_hf(raw, source)
    # each shared parameter once, under its first name: a tied head is the embedding
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    if not ours.tie_word_embeddings and "lm_head.weight" not in tensors and ours.head == "causal":
        raise InputError(f"{source}: lm_head.weight is the embedding, but the config says tie_word_embeddings = false")
    return ours, tensors
