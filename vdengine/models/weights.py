"""Weights from a Hugging Face folder, a hub id or a GGUF file, and loading them into a model, sharded or not.

Tensors have their Hugging Face names everywhere. A tensor is read only after its name, type, shape and place in the
file have been checked, and no tensor is read as a whole: `load_into` copies rows straight into the local shard of each
parameter.

The file is above 500 lines because reading and loading go by the same names, shapes and rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vdengine.errors import InputError
from vdengine.gguf import GGUFFile, GGUFTensor, read_gguf
from vdengine.hub import locate
from vdengine.models.adapters import Adapter
from vdengine.models.families import ModelConfig, expected_shapes
from vdengine.models.gguf_config import config_from_gguf
from vdengine.models.hf_config import read_config, some_names
from vdengine.models.lora import add_lora, first_value, is_factor, merged
from vdengine.models.peft_config import MAX_ADAPTERS, is_adapter, trained_whole
from vdengine.models.safetensors_files import INDEX, files_of, open_file
from vdengine.models.transformer import Kernels, Transformer

if TYPE_CHECKING:
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import Tokenizer

CHUNK_BYTES = 64 << 20  # of fp32, that are read, converted and copied at a time
HASH_BYTES = 64 << 20  # of a file, that one thread hashes at a time


def check_vocabulary(num_rows: int, tokenizer: Tokenizer, renderer: Renderer | None = None) -> None:
    """Check that the embedding has a row for every id that text can have, and for those that the renderer's template
    writes. Other special tokens may lie beyond it: Gemma-3's text models lack the row of the image token that their
    tokenizer has.

    Raises:
        InputError: it has not.
    """
    special = {tokenizer.token_id(token.content) for token in tokenizer.added_special_tokens}
    special -= {tokenizer.bos_id, *tokenizer.stop_ids, *([] if renderer is None else renderer.written_ids)}  # are used
    beyond = range(num_rows, tokenizer.vocab_size)
    if any(tokenizer.token(i) is not None and i not in special for i in beyond):
        raise InputError(
            f"{tokenizer.source}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's embedding "
            f"{num_rows} rows; the two do not belong together"
        )


# --- reading -------------------------------------------------------------------------------------------------


class Weights:
    """A checkpoint whose tensors fit its config, read a range of rows at a time.

    Args:
        shapes: of the tensors that the files hold, by Hugging Face name.

    Raises:
        InputError: tensors that are missing, unexpected, or of another shape than the config says.
    """

    def __init__(self, source: str, config: ModelConfig, shapes: dict[str, tuple[int, ...]], files: list[Path]) -> None:
        self.source, self.config, self.files = source, config, files
        expected = expected_shapes(config)
        missing, unexpected = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
        if missing == {"lm_head.weight"} and not unexpected:
            raise InputError(
                f"{source}: no lm_head.weight, and the config does not say tie_word_embeddings = true: which head the "
                "model has is not known"
            )
        if missing or unexpected:
            both = ((missing, "missing"), (unexpected, "unexpected"))
            parts = [f"{len(names)} {what} ({some_names(names)})" for names, what in both if names]
            raise InputError(f"{source}: the tensors do not fit model_type {config.model_type}: {', '.join(parts)}")
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise InputError(f"{source}: {name} has shape {shapes[name]}; the config says {shape}")
        self._shapes = expected

    @property
    def names(self) -> list[str]:
        """Hugging Face names of the tensors, embedding first."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start:stop] of dimension 0, on the CPU: [stop - start, ...] in the file's dtype (safetensors), or
        dequantised to fp32 (GGUF)."""
        raise NotImplementedError

    @property
    def base_hash(self) -> str:
        """What an adapter knows its base model by: the hash of what the adapter's own file does not have."""
        return self.hash

    @cached_property
    def hash(self) -> str:
        """BLAKE2b over the config and every byte of the weight files: 32 hex digits. Chunks are hashed in parallel
        (0.8 GB/s per core)."""
        chunks = [(file, offset) for file in self.files for offset in range(0, max(1, file.stat().st_size), HASH_BYTES)]
        total = hashlib.blake2b(repr(self.config).encode(), digest_size=16)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for digest in pool.map(_hash_chunk, chunks):
                total.update(digest)
        return total.hexdigest()


def _hash_chunk(chunk: tuple[Path, int]) -> bytes:
    """BLAKE2b of up to HASH_BYTES of a file from an offset on: 16 bytes."""
    digest, remaining = hashlib.blake2b(digest_size=16), HASH_BYTES
    with open(chunk[0], "rb") as file:
        file.seek(chunk[1])
        while remaining and (block := file.read(min(remaining, 1 << 20))):
            digest.update(block)
            remaining -= len(block)
    return digest.digest()


def open_weights(source: str, _above: tuple[str, ...] = ()) -> Weights:
    """Open a Hugging Face folder, a hub id, a .gguf path, package://pkg/file.gguf, or the folder of a LoRA adapter,
    which names its base model; that may be the folder of an adapter in its turn. Headers are read and checked, tensors
    are not read.

    Raises:
        InputError: there is no such model, a file is cut short, the model is not supported, or its tensors do not fit
            the config.
    """
    path = locate(source)
    if path.is_file():
        return GGUFWeights(source, read_gguf(path))
    if not is_adapter(path):
        return SafetensorsWeights(source, path)
    base = (adapter := Adapter(source)).config.base
    if not base:
        raise InputError(
            f"{adapter.config.where}: base_model_name_or_path is missing: whose adapter it is is not known"
        )
    try:
        if len(_above) == MAX_ADAPTERS:
            raise InputError(f"{base}: adapters over adapters, more than {MAX_ADAPTERS} or in a circle")
        return AdapterWeights(source, adapter, open_weights(base, (*_above, source)))
    except InputError as error:
        raise InputError(f"{source}: its base model: {error}") from None


class ScalarWeights(Weights):
    """The layers of a language model with a new scalar head: the start of a reward or a value model.

    The weights of the head are drawn from N(0, 1 / (H + 1)), H the hidden size (Stiennon et al., arXiv 2009.01325, for
    reward models); a seed gives the same weights on any machine. With seed None they are zeros, so that a value model
    starts with values of 0.
    """

    def __init__(self, trunk: Weights, seed: int | None) -> None:
        self._trunk, self._seed = trunk, seed
        config = dataclasses.replace(trunk.config, head="scalar", tie_word_embeddings=False)
        shapes = {name: trunk.shape(name) for name in trunk.names if name != "lm_head.weight"}
        shape = shapes["score.weight"] = (1, config.hidden_size)
        super().__init__(trunk.source, config, shapes, trunk.files)
        draw = np.zeros(shape) if seed is None else np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        self._score = torch.from_numpy(draw / np.sqrt(config.hidden_size + 1)).float()  # [1, H] fp32

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Weights.read`; of "score.weight" the new head."""
        return self._score[start:stop] if name == "score.weight" else self._trunk.read(name, start, stop)

    @property
    def base_hash(self) -> str:
        """That of the language model: the head is in the adapter's file, however it began."""
        return self._trunk.base_hash

    @cached_property
    def hash(self) -> str:
        """BLAKE2b over the language model's hash and the seed: 32 hex digits."""
        return hashlib.blake2b(f"{self._trunk.hash} score {self._seed}".encode(), digest_size=16).hexdigest()


def open_causal(source: str) -> Weights:
    """`open_weights` of a language model.

    Raises:
        InputError: as `open_weights`; it is a reward model.
    """
    weights = open_weights(source)
    if weights.config.head == "scalar":
        raise InputError(f"{source}: a reward model (it gives one score, no tokens); a language model is needed here")
    return weights


class AdapterWeights(Weights):
    """A base model with a LoRA adapter merged into it: W + scale * B A, in fp32, row by row as they are read.

    Attributes:
        adapter, base: the two by themselves.
        lora: what the adapter is to this base.
    """

    def __init__(self, source: str, adapter: Adapter, base: Weights) -> None:
        if adapter.config.scalar and base.config.head == "causal":
            base = ScalarWeights(base, None)  # whose head is in the adapter's file
        self.adapter, self.base = adapter, base
        self.lora = adapter.lora(base.config, base.base_hash if adapter.base_hash else None)
        self._scales = {f"{name}.weight": a.scale for name, a in self.lora.modules(base.config).items()}
        shapes = {name: base.shape(name) for name in base.names}
        super().__init__(source, base.config, shapes, [*base.files, adapter.file])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Weights.read`, in fp32 where there is an adapter."""
        if name == "score.weight":
            return self.adapter.read(name)[start:stop]
        rows = self.base.read(name, start, stop)
        if name not in self._scales:
            return rows
        a, b = (self.adapter.read(f"{name.removesuffix('.weight')}.{factor}") for factor in ("lora_A", "lora_B"))
        return merged(rows, a, b[start:stop], self._scales[name])

    @cached_property
    def hash(self) -> str:
        """BLAKE2b over the hashes of both: 32 hex digits."""
        return hashlib.blake2b(f"{self.base.hash} {self.adapter.hash}".encode(), digest_size=16).hexdigest()


class SafetensorsWeights(Weights):
    """Weights in model.safetensors, or in the files that model.safetensors.index.json names. Where both are there the
    single file is read, as transformers does, and a warning says so.

    A config with a tied head whose file has another `lm_head.weight` than the embedding gives an untied model, and a
    warning. A file of a tied model may have the one tensor under either name.

    Raises:
        InputError: no such files, a model and an adapter in one folder, a file that is cut short or holds another dtype
            than F32, F16, BF16 and F64, an index that does not say which tensors its files hold, or as `Weights`.
    """

    def __init__(self, source: str, folder: Path) -> None:
        config = read_config(folder)
        if (folder / "adapter_config.json").exists():
            raise InputError(f"{folder}: holds a model and an adapter_config.json: which is meant is not known")
        mapping, files = files_of(folder)
        self._slices: dict[str, Any] = {}
        where: dict[str, str] = {}  # the file of each tensor
        for file in files:
            for name, part in open_file(file).items():
                if name in where:
                    raise InputError(f"{file}: tensor {name} is in {where[name]} too")
                where[name] = file.name
                if name.endswith(".rotary_emb.inv_freq"):
                    continue  # a buffer that old versions of transformers saved
                if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise InputError(f"{file}: {name} is {part.get_dtype()}; F32, F16, BF16 and F64 are read")
                self._slices[name] = part
        if mapping is not None:
            for name in sorted({*where, *mapping}):
                if where.get(name) != mapping.get(name):
                    raise InputError(
                        f"{folder / INDEX}: says that {name} is in {mapping.get(name, 'no file')}; it is in "
                        f"{where.get(name, 'none of the files')}"
                    )
        if config.tie_word_embeddings and "lm_head.weight" in self._slices:
            if "model.embed_tokens.weight" not in self._slices:  # one tensor, which the file has by its other name
                self._slices["model.embed_tokens.weight"] = self._slices.pop("lm_head.weight")
            elif self._same("lm_head.weight", "model.embed_tokens.weight"):
                del self._slices["lm_head.weight"]  # a copy
            else:
                warnings.warn(
                    f"{folder}: config.json says tie_word_embeddings = true, but lm_head.weight is not the embedding: "
                    "the head is used as it is, and not tied",
                    stacklevel=3,
                )
                config = dataclasses.replace(config, tie_word_embeddings=False)
        super().__init__(source, config, {n: tuple(part.get_shape()) for n, part in self._slices.items()}, files)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Weights.read`, in the file's dtype."""
        return self._slices[name][start : self.shape(name)[0] if stop is None else stop]

    def _same(self, name: str, other: str) -> bool:
        """Whether two tensors have equal values."""
        a, b = self._slices[name], self._slices[other]
        if a.get_shape() != b.get_shape() or not a.get_shape():
            return False
        rows, row_bytes = a.get_shape()[0], 8 * max(1, math.prod(a.get_shape()[1:]))
        step = max(1, CHUNK_BYTES // row_bytes)
        return all(torch.equal(a[i : i + step], b[i : i + step].to(a[:1].dtype)) for i in range(0, rows, step))


# GGUF's names of the modules of a layer, and Hugging Face's. A family has some of them.
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",  # of a family with its norms before attention and MLP
    "post_attention_norm": "post_attention_layernorm",  # of one with its norms after them
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _hf_name(gguf_name: str) -> str:
    """The Hugging Face name of a tensor; a name without one is returned as it is, and reported as unexpected later."""
    stem, _, suffix = gguf_name.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        inner = _GGUF_LAYER.get(match[2])
        return f"model.layers.{match[1]}.{inner}.{suffix}" if inner else gguf_name
    return f"{_GGUF_TOP[stem]}.{suffix}" if stem in _GGUF_TOP else gguf_name


class GGUFWeights(Weights):
    """Weights in a GGUF file of a family of which llama.cpp keeps all that is needed. Rows are dequantised to fp32 as
    they are read.

    Raises:
        InputError: a config that is not supported, or as `Weights`.
    """

    def __init__(self, source: str, file: GGUFFile) -> None:
        self._file = file
        tensors = dict(file.tensors)
        frequencies = tensors.pop("rope_freqs.weight", None)
        self._tensors: dict[str, GGUFTensor] = {}
        for name, tensor in tensors.items():
            if self._tensors.setdefault(_hf_name(name), tensor) is not tensor:
                both = some_names({name, self._tensors[_hf_name(name)].name})
                raise InputError(f"{file.path}: these are the same tensor: {both}")
        config = config_from_gguf(file, self._tensors, frequencies)
        super().__init__(source, config, {name: t.shape for name, t in self._tensors.items()}, [file.path])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `Weights.read`, in fp32, the rows of q_proj and k_proj in Hugging Face's order."""
        tensor, shape = self._tensors[name], self.shape(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        if len(shape) == 1:
            return torch.from_numpy(self._file.rows(tensor.name, slice(None))[0, start:stop])
        rows: slice | np.ndarray = slice(start, stop)
        if self.config.family.gguf_permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp stores each head's rows for interleaved rotary pairs, Hugging Face for split halves: row
            # j * head_dim / 2 + i of a head is row 2i + j in the file.
            head, row_in_head = np.divmod(np.arange(start, stop), self.config.head_dim)
            half, pair = np.divmod(row_in_head, self.config.head_dim // 2)
            rows = head * self.config.head_dim + 2 * pair + half
        return torch.from_numpy(self._file.rows(tensor.name, rows))


# --- loading -------------------------------------------------------------------------------------------------


@torch.no_grad()
def load_into(model: Transformer, weights: Weights) -> None:
    """Copy the weights into every parameter, in the parameter's own dtype and on its device.

    A parameter is a plain tensor or a DTensor sharded along dimension 0 (FSDP2, HSDP). Each rank reads only its own
    rows, a chunk at a time; this is not a collective. Buffers and the head of a tied model are left as they are.

    Raises:
        InputError: a parameter of the model that the weights lack or have in another shape; NaN, an infinity, or a
            value beyond the parameter's dtype.
        RuntimeError: a parameter on the meta device, sharded along another dimension, or a head that is no longer tied.
    """
    for name, parameter in named_parameters(model):
        if name not in weights.names:
            raise InputError(f"{weights.source}: no tensor {name}")
        if tuple(parameter.shape) != weights.shape(name):
            shapes = f"{weights.shape(name)}; the model's is {tuple(parameter.shape)}"
            raise InputError(f"{weights.source}: {name} has shape {shapes}")
        local, first_row = _local_rows(name, parameter)
        if local.is_meta:
            raise RuntimeError(f"{name} is on the meta device: call to_empty before load_into")
        row_bytes = 4 * max(1, local[:1].numel())  # as fp32
        chunk_rows = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, local.shape[0], chunk_rows):
            chunk = local[start : start + chunk_rows]
            chunk.copy_(weights.read(name, first_row + start, first_row + start + chunk.shape[0]))
            if not all_finite(chunk):
                raise InputError(f"{weights.source}: {name} has values that are not finite (as {chunk.dtype})")


@torch.no_grad()
def load_adapter(model: Transformer, adapter: Adapter | None = None, seed: int = 0) -> None:
    """Fill what is trained beside a frozen base, sharded or not: from an adapter its factors and a scalar head; without
    one the factors' first values, by the seed.

    Raises:
        InputError: a value that is not finite.
    """
    for name, parameter in model.named_parameters():
        if is_factor(name):
            value = first_value(name, parameter, seed) if adapter is None else adapter.read(name)
        elif adapter is not None and name in trained_whole(model.config):
            value = adapter.read(name)
        else:
            continue
        local, first_row = _local_rows(name, parameter)
        local.copy_(value[first_row : first_row + local.shape[0]])
        if adapter is not None and not all_finite(local):
            raise InputError(f"{adapter.source}: {name} has values that are not finite (as {local.dtype})")


def all_finite(x: Tensor) -> bool:
    """Whether a tensor of any shape has only finite values: one pass, without a tensor of its size."""
    return not x.numel() or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(x))


def named_parameters(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The parameters by the names that a checkpoint has: each once, a tied weight under the embedding's name. Those of
    adapters are not among them.

    Raises:
        RuntimeError: the head of a tied model has a weight of its own.
    """
    for name, parameter in model.named_parameters():  # lists a shared parameter once
        if model.lora is not None and is_factor(name):
            continue
        if model.config.tie_word_embeddings and name == "lm_head.weight":
            raise RuntimeError("the head is no longer tied to the embedding (to_empty unties): tie them again")
        yield name, parameter


def _local_rows(name: str, parameter: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a parameter, and the index of the first one in the whole parameter."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    if not all(isinstance(p, Replicate) or p == Shard(0) for p in parameter.placements):
        raise RuntimeError(f"{name} is placed {parameter.placements}: only Shard(0) and Replicate are known here")
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    local = parameter.to_local()
    if tuple(local.shape) != tuple(shape):
        raise RuntimeError(f"{name}: the local shard has shape {tuple(local.shape)}, not {tuple(shape)}")
    return local, offset[0]


def load_model(
    source: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    kernels: Kernels | None = None,
) -> Transformer:
    """A model with its weights, in eval mode and with trainable parameters. A sequence-classification folder of one
    label gives a scalar model; the folder of a LoRA adapter its base model with the adapter in it, not merged
    (`lora.add_lora`).

    Args:
        source: a Hugging Face folder, a hub id, a .gguf path, package://pkg/file.gguf or the folder of an adapter.
        dtype: of every parameter.
        kernels: the backend of each part; default: "auto" for all.

    Raises:
        InputError: as `open_weights`.
    """
    weights = open_weights(source)
    return build_model(weights, dtype, device, kernels=kernels)


def build_model(
    weights: Weights,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    kernels: Kernels | None = None,
    merge: bool = False,
) -> Transformer:
    """`load_model` of weights that are open already.

    Args:
        merge: put an adapter into the weights, and not beside them.

    Raises:
        InputError: a tensor that cannot be dequantised.
    """
    if isinstance(weights, AdapterWeights) and not merge:
        model = build_model(weights.base, dtype, device, kernels=kernels, merge=True)  # adapters below it
        add_lora(model, weights.lora)
        load_adapter(model, weights.adapter)
        return model
    with torch.device("meta"):
        model = Transformer(weights.config, kernels=kernels or Kernels())
    model = model.to(dtype).to_empty(device=device)
    if weights.config.tie_word_embeddings:  # `to_empty` has made two parameters of the shared one
        model.lm_head.weight = model.model.embed_tokens.weight
    load_into(model, weights)
    return model.eval()
