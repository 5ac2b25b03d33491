"""The config.json of a Hugging Face folder: read as a `ModelConfig`, and written so that transformers 4.x and 5.x read
it alike."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdengine.errors import InputError
from vdengine.models.families import (
    FAMILIES,
    FULL,
    SLIDING,
    Family,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Rope,
    RopeScaling,
    YarnScaling,
)
from vdengine.outside import json_object

if TYPE_CHECKING:
    from vdengine.text.tokenizer import Tokenizer

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # in config.json
# Keys that change what any decoder computes, with the only value that is supported.
_FIXED = {"attention_bias": False, "mlp_bias": False, "clip_qkv": None, "partial_rotary_factor": 1.0}


# --- config.json, read ---------------------------------------------------------------------------------------


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a Hugging Face folder.

    Raises:
        InputError: there is no such file, it is not JSON, or as `config_from_hf`.
    """
    return config_from_hf(json_object(folder / "config.json"), str(folder / "config.json"))


class _Keys:
    """The keys of a config.json; `where` names it in errors."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def refuse(self, key: str, value: Any, allowed: str) -> InputError:
        """An error that says which key has a value that is not supported, and what is."""
        return InputError(f"{self.where}: {key} = {json.dumps(value, default=str)} is not supported; {allowed}")

    def number(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise self.refuse(key, value, "a positive whole number is needed")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.refuse(key, value, "a positive number is needed")
        return float(value)

    def inner(self, key: str) -> _Keys:
        """The keys of an object; none if it is absent."""
        value = self.raw.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.refuse(key, value, "an object is needed")
        return _Keys(value, self.where)


def config_from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    """The config in a config.json of transformers 4.x or 5.x, given as a dictionary; `where` names it in errors.

    Raises:
        InputError: a key with a value that changes the model's output and is not supported: another model type,
            biases that the family does not have, another rotary embedding, quantised weights. It names the key.
    """
    keys = _Keys(raw, where)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise keys.refuse("model_type", kind, f"supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    architectures = raw.get("architectures") or [family.causal]
    scalar = architectures == [family.scalar]
    if architectures != [family.causal] and not scalar:
        raise keys.refuse("architectures", architectures, f"supported: {family.causal}, {family.scalar}")
    if scalar:  # transformers writes the number of labels as the length of id2label; its default is 2
        labels = raw.get("id2label")
        num_labels = len(labels) if isinstance(labels, dict) else raw.get("num_labels", 2)
        if num_labels != 1:
            raise keys.refuse("num_labels", num_labels, "a reward model has one label")
    if raw.get("quantization_config") is not None:
        raise keys.refuse("quantization_config", "...", "only float32, float16 and bfloat16 weights (or a .gguf file)")
    for key, only in (_FIXED | dict(family.fixed) | {family.activation_key: _ACTIVATIONS[family.activation]}).items():
        if raw.get(key) not in (None, only):
            raise keys.refuse(key, raw[key], f"only {json.dumps(only)}")

    # a key that is null is as if absent; but sliding_window = null says that there is none
    given = {key: value for key, value in raw.items() if value is not None or key == "sliding_window"}
    keys = _Keys({**family.defaults, **given}, where)
    layers = keys.number("num_hidden_layers")
    hidden, heads = keys.number("hidden_size"), keys.number("num_attention_heads")
    kv_heads = keys.number("num_key_value_heads", heads)
    head_dim = keys.number("head_dim", max(1, hidden // heads))
    if layers > 10_000:
        raise keys.refuse("num_hidden_layers", layers, "at most 10000")
    if heads % kv_heads:
        raise keys.refuse("num_key_value_heads", kv_heads, f"it must divide num_attention_heads = {heads}")
    if head_dim % 2:
        raise keys.refuse("head_dim", head_dim, "it must be even")
    if "head_dim" not in keys.raw and hidden % heads:
        raise keys.refuse("hidden_size", hidden, f"it must be a multiple of num_attention_heads = {heads}")
    window, layer_types = _windows(keys, family, layers)
    rope, local_theta = _ropes(keys, family)
    separate = window is not None and local_theta is not None and Rope(local_theta, None) != rope
    scalar_product = "query_pre_attn_scalar" in family.defaults
    return ModelConfig(
        model_type=kind,
        vocab_size=keys.number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.number("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=keys.real("rms_norm_eps", 1e-6),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        tie_word_embeddings=bool(keys.raw.get("tie_word_embeddings", False)) and not scalar,
        max_position_embeddings=keys.number("max_position_embeddings"),
        head="scalar" if scalar else "causal",
        sliding_window=window,
        layer_types=layer_types,
        local_rope_theta=local_theta if separate else None,
        query_pre_attn_scalar=keys.real("query_pre_attn_scalar") if scalar_product else None,
    )


def _windows(keys: _Keys, family: Family, layers: int) -> tuple[int | None, tuple[str, ...] | None]:
    """`ModelConfig.sliding_window` and `.layer_types`.

    Raises:
        InputError: layers of other types, or other layers with a window than the family has.
    """
    raw = keys.raw
    types = raw.get("layer_types")
    if types is not None and (not isinstance(types, list) or len(types) != layers):
        raise keys.refuse("layer_types", types, f"a list of num_hidden_layers = {layers} names is needed")
    for name in types or []:
        if name not in (FULL, SLIDING):
            raise keys.refuse("layer_types", name, f"supported: {FULL}, {SLIDING}")
    has_window = raw.get("sliding_window") is not None
    if family.window in ("none", "upper"):
        has_window = has_window and bool(raw.get("use_sliding_window"))
    if family.window == "none" and (raw.get("use_sliding_window") or SLIDING in (types or [])):
        key = "use_sliding_window" if raw.get("use_sliding_window") else "layer_types"
        raise keys.refuse(key, raw[key], f"{family.causal} has full attention only")
    if family.window == "all":
        same = [SLIDING if has_window else FULL] * layers
        if types not in (None, same):
            raise keys.refuse("layer_types", types, f"of {family.causal} all layers are {same[0]} here")
        types = same
    if types is None and not has_window:
        types = [FULL] * layers
    elif types is None and family.window == "upper":
        first = raw["max_window_layers"]
        if not isinstance(first, int):
            raise keys.refuse("max_window_layers", first, "a whole number is needed")
        types = [SLIDING if i >= first else FULL for i in range(layers)]
    elif types is None:
        period = keys.number("sliding_window_pattern")
        types = [SLIDING if (i + 1) % period else FULL for i in range(layers)]
    if SLIDING not in types:
        return None, None
    if not has_window:
        raise keys.refuse("layer_types", types, "without a sliding_window (and use_sliding_window) all must be full")
    return keys.number("sliding_window"), tuple(types) if FULL in types else None


def _ropes(keys: _Keys, family: Family) -> tuple[Rope, float | None]:
    """The rotary embedding of a config, and the theta of layers with a window; None where they have no other.

    transformers 5 keeps everything in rope_parameters, with an object for each type of layer where they differ; 4 has
    rope_theta, rope_local_base_freq and rope_scaling.

    Raises:
        InputError: a rotary embedding that is not supported.
    """
    scaling, local = keys.inner("rope_parameters").raw, _Keys({}, keys.where)
    if family.local_rope:
        if other := scaling.keys() - {FULL, SLIDING}:
            raise keys.refuse("rope_parameters", sorted(other), f"supported: {FULL}, {SLIDING}, an object each")
        local = _Keys(scaling, keys.where).inner(SLIDING)
        scaling = _Keys(scaling, keys.where).inner(FULL).raw
        if local.raw.get("rope_type", "default") != "default":
            raise keys.refuse("rope_type", local.raw["rope_type"], f"only default for {SLIDING}")
    whole = _Keys({**scaling, **keys.inner("rope_scaling").raw}, keys.where)
    for part in (whole, local):
        if part.raw.get("partial_rotary_factor") not in (None, 1):
            raise keys.refuse("partial_rotary_factor", part.raw["partial_rotary_factor"], "only 1.0")
    theta = whole.real("rope_theta") if "rope_theta" in whole.raw else keys.real("rope_theta", 10000.0)
    rope = Rope(theta, _scaling(whole, keys))
    if not family.local_rope:
        return rope, None
    return rope, local.real("rope_theta") if "rope_theta" in local.raw else keys.real("rope_local_base_freq", theta)


def _scaling(rope: _Keys, config: _Keys) -> RopeScaling | None:
    """The scaling of a rotary embedding, from its own keys and those of its model.

    Raises:
        InputError: it is not supported, or lacks a number.
    """
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise rope.refuse("rope_type", kind, "supported: default, linear, llama3, yarn")
    factor = rope.real("factor")
    if kind == "linear":
        return LinearScaling(factor)
    own, key = rope.raw, "original_max_position_embeddings"
    original = _Keys(own if own.get(key) else config.raw, rope.where)
    positions = original.number(key, config.number("max_position_embeddings"))
    if kind == "llama3":
        low, high = rope.real("low_freq_factor"), rope.real("high_freq_factor")
        if high <= low:
            raise rope.refuse("high_freq_factor", high, "it must be above low_freq_factor")
        return Llama3Scaling(factor, low, high, positions)
    if not own.get("truncate", True):
        raise rope.refuse("truncate", own["truncate"], "only true")
    fast, slow = rope.real("beta_fast", 32.0), rope.real("beta_slow", 1.0)
    if fast <= slow:
        raise rope.refuse("beta_fast", fast, "it must be above beta_slow")

    def attention(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if own.get("mscale") and own.get("mscale_all_dim"):
        default = attention(rope.real("mscale")) / attention(rope.real("mscale_all_dim"))
    else:
        default = attention(1.0)
    return YarnScaling(factor, rope.real("attention_factor", default), fast, slow, positions)


# --- config.json, written ------------------------------------------------------------------------------------


def config_to_hf(config: ModelConfig, dtype: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The content of a config.json that transformers 4.x and 5.x read alike; `dtype` as they write it ("bfloat16")."""
    family = config.family
    scalar = config.head == "scalar"
    raw = {
        "architectures": [family.scalar if scalar else family.causal],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        family.activation_key: _ACTIVATIONS[family.activation],
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,  # 5.x
        "torch_dtype": dtype,  # 4.x
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "pad_token_id": None if tokenizer is None else tokenizer.pad_id,
    }
    raw |= _rope_to_hf(config) | _windows_to_hf(config) | dict(family.fixed)
    if "query_pre_attn_scalar" in family.defaults:
        value = float(config.query_pre_attn_scalar or config.head_dim)
        raw["query_pre_attn_scalar"] = int(value) if value.is_integer() else value  # transformers 5 wants whole ones
    if scalar:
        raw |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "pad_token_id": _score_pad(tokenizer)}
    return raw


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys that `_ropes` reads."""
    theta, scaling = config.rope_theta, config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": scaling.rope_type} | dataclasses.asdict(scaling)
    raw = {
        "rope_theta": theta,  # 4.x
        "rope_scaling": rope if scaling is not None else None,  # 4.x
        "rope_parameters": rope | {"rope_theta": theta},  # 5.x
    }
    if not config.family.local_rope:
        return raw
    local = theta if config.local_rope_theta is None else config.local_rope_theta
    if "rope_local_base_freq" in config.family.defaults:
        raw["rope_local_base_freq"] = local  # 4.x
    by_type = {FULL: raw["rope_parameters"], SLIDING: {"rope_type": "default", "rope_theta": local}}
    return raw | {"rope_parameters": by_type}


def _windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys that `_windows` reads."""
    window, family = config.sliding_window, config.family
    types = [FULL if config.window(i) is None else SLIDING for i in range(config.num_hidden_layers)]
    if family.window == "none":
        return {}
    if family.window == "all":
        return {"sliding_window": window}
    if family.window == "most":  # transformers makes a mask of the window even if no layer has one
        return {"sliding_window": window or family.defaults["sliding_window"], "layer_types": types}
    used = {"use_sliding_window": window is not None, "sliding_window": window}
    return used if window is None else used | {"layer_types": types}


def _score_pad(tokenizer: Tokenizer | None) -> int | None:
    """The padding token of a reward model.

    transformers reads the score at the last token that is not padding, so padding must not be a token that ends an
    answer. It is the tokenizer's own, else any special token that neither begins nor ends a text, else none:
    transformers then takes one sequence at a time.
    """
    if tokenizer is None:
        return None
    excluded = {*tokenizer.stop_ids, tokenizer.bos_id}
    special = (tokenizer.token_id(token.content) for token in tokenizer.added_special_tokens)
    return next((token for token in (tokenizer.pad_id, *special) if token is not None and token not in excluded), None)
