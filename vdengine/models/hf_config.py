"""The config.json of a Hugging Face folder: read as a `ModelConfig`, and written so that transformers 4.x and 5.x read
it alike."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
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
from vdengine.outside import json_object, printable

if TYPE_CHECKING:
    from vdengine.text.tokenizer import Tokenizer

_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}  # names in config.json, ours first
# Keys that change what a decoder computes in some model of the field, with the values that change nothing; null always
# does. A family's own keys are read below.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # attention
    "attention_bias": (False,), "qkv_bias": (False,), "o_bias": (False,), "clip_qkv": (), "attention_multiplier": (),
    "attn_logit_softcapping": (), "attn_logits_soft_cap": (), "use_bidirectional_attention": (False,),
    "is_causal": (True,), "add_cross_attention": (False,), "attn_temperature_tuning": (False,), "attn_scale": (),
    "use_qk_norm": (False,), "qk_layernorm": (False,), "alibi": (False,), "use_alibi": (False,),
    "attention_sink": (False,), "attention_sink_size": (0,), "no_rope_layers": ([],), "no_rope_layer_interval": (),
    "attention_chunk_size": (), "num_kv_shared_layers": (0,), "scale_attn_by_inverse_layer_idx": (False,),
    # rotary embedding
    "partial_rotary_factor": (1,), "rotary_pct": (1,), "rope_pct": (1,), "rope_percent": (1,),
    "rope_interleaved": (False,),
    "rope_interleave": (False,), "use_mrope": (False,), "use_dynamic_ntk": (False,), "use_logn_attn": (False,),
    # MLP and residual stream
    "mlp_bias": (False,), "use_bias": (False,), "num_experts": (0, 1), "num_local_experts": (0, 1),
    "n_routed_experts": (0,), "embedding_multiplier": (1,), "residual_multiplier": (1,), "scale_emb": (1,),
    "scale_depth": (), "scale_embeddings": (False,), "parallel_residual": (False,), "use_parallel_residual": (False,),
    "mup_scale": (1,), "use_mup": (False,), "hidden_size_per_layer_input": (0,), "altup_num_inputs": (0, 1),
    # head
    "logit_scale": (1,), "logits_scaling": (1,), "final_logit_softcapping": (), "lm_head_bias": (False,),
    "lm_head_multiplier": (1,), "output_multiplier_scale": (1,),
    # weights in another form
    "quantization_config": (), "compression_config": (), "quantization": (),
}  # fmt: skip
_DROPOUTS = ("attention_dropout", "hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "embd_pdrop")


# --- config.json, read ---------------------------------------------------------------------------------------


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a Hugging Face folder.

    Raises:
        InputError: there is no such file, it is not JSON, or as `config_from_hf`.
    """
    raw, where = json_object(folder / "config.json"), str(folder / "config.json")
    if "auto_map" in raw:
        warnings.warn(f"{where}: auto_map names code of the checkpoint, which is not run", stacklevel=4)
    return config_from_hf(raw, where)


class Keys:
    """The keys of a config.json; `where` names it in errors."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where

    def refuse(self, key: str, value: Any, allowed: str) -> InputError:
        """An error that says which key has a value that is not supported, and what is."""
        text = json.dumps(value, default=str)
        text = text if len(text) <= 80 else text[:77] + "..."
        return InputError(f"{self.where}: {printable(key)} = {text} is not supported; {allowed}")

    def number(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.raw.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.refuse(key, value, "a positive whole number is needed")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
            raise self.refuse(key, value, "a positive number is needed")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false is needed")
        return value

    def inner(self, key: str) -> Keys:
        """The keys of an object; none if it is absent."""
        value = self.raw.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.refuse(key, value, "an object is needed")
        return Keys(value, self.where)


def config_from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    """The config in a config.json of transformers 4.x or 5.x, given as a dictionary; `where` names it in errors.

    Raises:
        InputError: a key with a value that changes the model's output and is not supported: another model type,
            biases that the family does not have, another rotary embedding, quantised weights. It names the key.
    """
    keys = Keys(raw, where)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise keys.refuse("model_type", kind, f"supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    architectures = raw.get("architectures")
    architectures = [family.causal] if architectures in (None, []) else architectures
    scalar = architectures == [family.scalar]
    if architectures != [family.causal] and not scalar:
        raise keys.refuse("architectures", architectures, f"supported: {family.causal}, {family.scalar}")
    if scalar:
        _check_labels(keys)
    _check_neutral(keys, family)
    # a key that is null is as if absent; but sliding_window = null says that there is none
    given = {key: value for key, value in raw.items() if value is not None or key == "sliding_window"}
    keys = Keys({**family.defaults, **given}, where)
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
    rope, local_theta = _ropes(keys, family, Keys(given, where))
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
        tie_word_embeddings=keys.flag("tie_word_embeddings") and not scalar,
        max_position_embeddings=keys.number("max_position_embeddings"),
        head="scalar" if scalar else "causal",
        sliding_window=window,
        layer_types=layer_types,
        local_rope_theta=local_theta if separate else None,
        query_pre_attn_scalar=keys.real("query_pre_attn_scalar") if scalar_product else None,
    )


def _check_labels(keys: Keys) -> None:
    """Raises InputError if a sequence classifier has more than one label. transformers writes their number as the
    length of id2label; its default is 2."""
    labels, number = keys.inner("id2label").raw, keys.raw.get("num_labels")
    stated = [len(labels)] if labels else []
    stated += [] if number is None else [number]
    if stated not in ([1], [1, 1]) or any(type(n) is not int for n in stated):
        raise keys.refuse("num_labels", stated[-1] if stated else 2, "a reward model has one label")


def _check_neutral(keys: Keys, family: Family) -> None:
    """Checks keys of which only values that change nothing are supported.

    Raises:
        InputError: one has another value.
    """
    names = _ACTIVATIONS[family.activation]
    fixed = {key: () if only is None else (only,) for key, only in family.fixed.items()}
    for key, allowed in {**_NEUTRAL, **fixed, family.activation_key: names}.items():
        value = keys.raw.get(key)
        if value is None or any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            continue
        quantised = key in ("quantization_config", "compression_config", "quantization")
        hint = " (weights are float32, float16, bfloat16, or in a .gguf file)" if quantised else ""
        raise keys.refuse(key, value, f"only {', '.join(map(json.dumps, allowed)) or 'null'}{hint}")
    for key in _DROPOUTS:
        value = keys.raw.get(key)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < 1):
            raise keys.refuse(key, value, "a number from 0 up to 1 is needed")
        if value:
            warnings.warn(
                f"{keys.where}: {key} = {value}: nothing is dropped out here, in training either", stacklevel=4
            )


def _windows(keys: Keys, family: Family, layers: int) -> tuple[int | None, tuple[str, ...] | None]:
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
        has_window = has_window and keys.flag("use_sliding_window")
    if family.window == "none" and (keys.flag("use_sliding_window") or SLIDING in (types or [])):
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
        if type(first) is not int or first < 0:
            raise keys.refuse("max_window_layers", first, "a whole number from 0 on is needed")
        types = [SLIDING if i >= first else FULL for i in range(layers)]
    elif types is None:
        period = keys.number("sliding_window_pattern")
        types = [SLIDING if (i + 1) % period else FULL for i in range(layers)]
    if SLIDING not in types:
        return None, None
    if not has_window:
        raise keys.refuse("layer_types", types, "without a sliding_window (and use_sliding_window) all must be full")
    return keys.number("sliding_window"), tuple(types) if FULL in types else None


def _ropes(keys: Keys, family: Family, given: Keys) -> tuple[Rope, float | None]:
    """The rotary embedding of a config, and the theta of layers with a window; None where they have no other.

    transformers 5 keeps everything in rope_parameters, with an object for each type of layer where they differ; 4 has
    rope_theta, rope_local_base_freq and rope_scaling.

    Args:
        keys: of the config, with the family's defaults; given: without them.

    Raises:
        InputError: a rotary embedding that is not supported, or given twice with different numbers.
    """
    newer, older, local = keys.inner("rope_parameters"), keys.inner("rope_scaling"), Keys({}, keys.where)
    if family.local_rope:
        if other := newer.raw.keys() - {FULL, SLIDING}:
            raise keys.refuse("rope_parameters", sorted(other), f"supported: {FULL}, {SLIDING}, an object each")
        newer, local = newer.inner(FULL), newer.inner(SLIDING)
        if _rope_type(local) != "default":
            raise keys.refuse("rope_type", _rope_type(local), f"only default for {SLIDING}")
    for part in (newer, older, local):
        if other := part.raw.keys() - _ROPE_KEYS:
            raise keys.refuse("rope_parameters", sorted(other), "these are not computed")
    whole = Keys({**newer.raw, **older.raw}, keys.where)
    _check_said_twice(given, newer, older)
    for part in (whole, local):
        if part.real("partial_rotary_factor", 1.0) != 1:
            raise keys.refuse("partial_rotary_factor", part.raw["partial_rotary_factor"], "only 1.0")
    theta = whole.real("rope_theta") if "rope_theta" in whole.raw else keys.real("rope_theta", 10000.0)
    rope = Rope(theta, _scaling(whole, keys))
    if not family.local_rope:
        return rope, None
    here, before = local.raw.get("rope_theta"), given.raw.get("rope_local_base_freq")
    if None not in (here, before) and here != before:
        raise keys.refuse("rope_local_base_freq", before, f"rope_parameters says {here} of {SLIDING}")
    return rope, keys.real("rope_local_base_freq", theta) if here is None else local.real("rope_theta")


_ROPE_KEYS = frozenset(
    "rope_type type rope_theta partial_rotary_factor factor low_freq_factor high_freq_factor attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate original_max_position_embeddings finetuned".split()
)


def _rope_type(rope: Keys) -> str:
    """The kind of a rotary embedding.

    Raises:
        InputError: it is no text, or the key's old and new name have different values.
    """
    kinds = [rope.raw[key] for key in ("rope_type", "type") if rope.raw.get(key) is not None]
    for kind in kinds:
        if not isinstance(kind, str) or kind != kinds[0]:
            raise rope.refuse("rope_type", kinds if len(kinds) > 1 else kind, "one name is needed")
    return kinds[0] if kinds else "default"


def _check_said_twice(config: Keys, newer: Keys, older: Keys) -> None:
    """Checks numbers that transformers 4 and 5 keep in different places, and a config may have in both.

    Raises:
        InputError: they differ.
    """
    for key in ("rope_theta", "partial_rotary_factor"):
        values = [part.raw[key] for part in (newer, older, config) if part.raw.get(key) is not None]
        if any(value != values[0] for value in values):
            raise config.refuse(key, values, "it is given in several places, with different values")
    for key in newer.raw.keys() & older.raw.keys():
        if newer.raw[key] != older.raw[key]:
            raise config.refuse(key, [newer.raw[key], older.raw[key]], "rope_parameters and rope_scaling differ")


def _scaling(rope: Keys, config: Keys) -> RopeScaling | None:
    """The scaling of a rotary embedding, from its own keys and those of its model.

    Raises:
        InputError: it is not supported, or lacks a number.
    """
    kind, own = _rope_type(rope), rope.raw
    if kind == "default":
        if own.get("factor") not in (None, 1):
            raise rope.refuse("factor", own["factor"], "only with a rope_type that uses it: linear, llama3, yarn")
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise rope.refuse("rope_type", kind, "supported: default, linear, llama3, yarn")
    factor = rope.real("factor")
    if kind == "linear":
        return LinearScaling(factor)
    key = "original_max_position_embeddings"
    inside, outside = own.get(key), config.raw.get(key)
    if None not in (inside, outside) and inside != outside:
        raise config.refuse(key, outside, f"its rotary embedding says {inside}")
    original = Keys({key: outside if inside is None else inside}, rope.where)
    positions = original.number(key, config.number("max_position_embeddings"))
    if kind == "llama3":
        low, high = rope.real("low_freq_factor"), rope.real("high_freq_factor")
        if high <= low:
            raise rope.refuse("high_freq_factor", high, "it must be above low_freq_factor")
        return Llama3Scaling(factor, low, high, positions)
    if not rope.flag("truncate", True):
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


def config_to_hf(
    config: ModelConfig, dtype: str, tokenizer: Tokenizer | None, ends: Sequence[int] = ()
) -> dict[str, Any]:
    """The content of a config.json that transformers 4.x and 5.x read alike.

    Args:
        dtype: as they write it ("bfloat16").
        ends: ids that end a text.
    """
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
        family.activation_key: _ACTIVATIONS[family.activation][0],
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,  # 5.x
        "torch_dtype": dtype,  # 4.x
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": list(ends) if len(ends) > 1 else ends[0] if ends else None,
        "pad_token_id": None if tokenizer is None else tokenizer.pad_id,
    }
    raw |= _rope_to_hf(config) | _windows_to_hf(config) | dict(family.fixed)
    if "query_pre_attn_scalar" in family.defaults:
        value = float(config.query_pre_attn_scalar or config.head_dim)
        raw["query_pre_attn_scalar"] = int(value) if value.is_integer() else value  # transformers 5 wants whole ones
    if scalar:
        raw |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "pad_token_id": _score_pad(tokenizer, ends)}
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


def _score_pad(tokenizer: Tokenizer | None, ends: Sequence[int]) -> int | None:
    """The padding token of a reward model.

    transformers reads the score at the last token that is not padding, so padding must not be a token that ends an
    answer. It is the tokenizer's own, else any special token that neither begins nor ends a text, else none:
    transformers then takes one sequence at a time.
    """
    if tokenizer is None:
        return None
    excluded = {*ends, tokenizer.bos_id}
    special = (tokenizer.token_id(token.content) for token in tokenizer.added_special_tokens)
    return next((token for token in (tokenizer.pad_id, *special) if token is not None and token not in excluded), None)


def some_names(names: set[str]) -> str:
    """The first names in alphabetical order, for a message."""
    first = [printable(name)[:100] for name in sorted(names)[:4]]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
