"""The config of a model in the metadata of a GGUF file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.errors import InputError
from vdengine.gguf import GGUFFile, GGUFTensor
from vdengine.models.families import FAMILIES, ModelConfig
from vdengine.models.hf_config import Keys, config_from_hf, some_names

# Metadata that is read, or that says nothing about the numbers of a model. Any other key of the architecture may change
# them: it is refused unless it is 0, false or empty, or has one of the values that change nothing.
_GGUF_KEYS = frozenset(
    "vocab_size context_length embedding_length block_count feed_forward_length attention.head_count "
    "attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon "
    "attention.causal rope.freq_base rope.dimension_count rope.scaling.original_context_length rope.scaling.finetuned "
    "tensor_data_layout".split()
)
# Of other keys, what says how a file was made. Any other prefix may be a misspelt key of the architecture.
_GGUF_PREFIXES = ("quantize.", "split.", "mradermacher.")
_GGUF_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1,),  # without a type llama.cpp takes it as linear
    "rope.scaling.attn_factor": (1,),
    "rope.scale_linear": (1,),  # the factor's older name
    "logit_scale": (1,),
    "residual_scale": (1,),
    "embedding_scale": (1,),
    "expert_count": (1,),
    "use_parallel_residual": (False,),
}


def config_from_gguf(file: GGUFFile, tensors: dict[str, GGUFTensor], frequencies: GGUFTensor | None) -> ModelConfig:
    """The config in a GGUF file's metadata.

    Args:
        tensors: of the file, by Hugging Face name.
        frequencies: the tensor of Llama-3.1's rotary scaling, if the file has one.

    Raises:
        InputError: a config that is not supported.
    """
    meta, path = file.metadata, file.path
    whole, count = meta.get("general.type", "model"), meta.get("split.count", 1)
    if not isinstance(whole, str) or whole != "model":
        raise InputError(f"{path}: general.type = {str(whole)[:80]!r}: it holds no whole model")
    if type(count) is not int or count > 1:
        raise InputError(f"{path}: split.count = {str(count)[:80]!r}: one part of a model; merge its files first")
    arch = meta.get("general.architecture")
    kinds = {family.gguf: kind for kind, family in FAMILIES.items() if family.gguf is not None}
    if not isinstance(arch, str) or arch not in kinds:
        allowed = ", ".join(kinds)
        raise InputError(f"{path}: general.architecture = {str(arch)[:80]!r} is not supported; supported: {allowed}")
    known = ("general.", "tokenizer.", f"{arch}.", *_GGUF_PREFIXES)
    if stray := {key for key in meta if not key.startswith(known)}:
        allowed = ", ".join(f"{prefix}*" for prefix in known)
        raise InputError(f"{path}: keys that are not known: {some_names(stray)}; known are {allowed}")
    keys = Keys({k.removeprefix(f"{arch}."): v for k, v in meta.items() if k.startswith(f"{arch}.")}, f"{path}: {arch}")
    for key, value in keys.raw.items():
        neutral = isinstance(value, int | float | str) and value in (0, "", *_GGUF_NEUTRAL.get(key, ()))
        if key not in _GGUF_KEYS and not neutral:
            raise keys.refuse(key, value, "a .gguf file must hold a dense model with full, unscaled attention")
    if keys.raw.get("attention.causal") is False:
        raise keys.refuse("attention.causal", False, "only true")
    embedding = tensors.get("model.embed_tokens.weight")
    rows = keys.number("vocab_size") if embedding is None else embedding.shape[0]
    if keys.number("vocab_size", rows) != rows:
        raise keys.refuse("vocab_size", keys.raw["vocab_size"], f"the embedding has {rows} rows")
    heads, hidden = keys.number("attention.head_count"), keys.number("embedding_length")
    head_dim = keys.number("attention.key_length", max(1, hidden // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.number(key, head_dim) != head_dim:
            raise keys.refuse(key, keys.raw[key], f"it must be the size of a head, {head_dim}")
    raw: dict[str, Any] = {
        "model_type": kinds[arch],
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": keys.number("feed_forward_length"),
        "num_hidden_layers": keys.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "max_position_embeddings": keys.number("context_length"),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    if frequencies is not None:
        if math.prod(frequencies.shape) != head_dim // 2:
            raise InputError(f"{path}: rope_freqs.weight has shape {frequencies.shape}; {head_dim // 2} are needed")
        factors = file.rows(frequencies.name, slice(None)).ravel()
        raw["rope_scaling"] = _llama3_scaling(factors, head_dim, raw["rope_theta"], path)
    return config_from_hf(raw, str(path))


def _llama3_scaling(
    factors: np.ndarray,  # [head_dim / 2] fp32, what each frequency is divided by
    head_dim: int,
    theta: float,
    path: Path,
) -> dict[str, Any] | None:
    """Llama-3.1's rotary scaling as in a config.json, from the factors of GGUF's tensor `rope_freqs`; None if there is
    no scaling.

    GGUF keeps only the factor of each frequency. The largest is the config's `factor`. The other three numbers are
    assumed to be those of every Llama release (1, 4, 8192), and checked against the factors.

    Raises:
        InputError: the factors are not those of Llama-3.1's scaling with these numbers.
    """
    if (factors == 1).all():
        return None
    low, high, original, factor = 1.0, 4.0, 8192, float(factors.max())
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)  # radians per position
    keep = np.clip((original * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)  # as in `rope_frequencies`
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
