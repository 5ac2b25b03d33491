"""The model families: one table of what differs between them, and reading and writing their config.json."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vdengine.errors import InputError
from vdengine.files import read_json

if TYPE_CHECKING:
    from vdengine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """What differs between the families. The decoder is otherwise the same: RMSNorm, rotary embedding, grouped-query
    attention, a gated MLP. A family all of whose parts are here is one row of `FAMILIES`."""

    causal: str  # architectures of a language model's config.json
    scalar: str  # architectures of a reward model's
    qkv_bias: bool = False  # q_proj, k_proj and v_proj have biases
    # RMSNorm of queries and keys before the rotation: of each head, or of the whole row before it is cut into heads
    qk_norm: Literal["none", "head", "row"] = "none"
    # RMSNorm of the input of attention and MLP ("pre"), of their output ("post"), or of both ("sandwich")
    norm: Literal["pre", "post", "sandwich"] = "pre"
    norm_offset: float = 0.0  # norms multiply by weight + norm_offset
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the gate
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(hidden_size), rounded to the weights' dtype
    # Layers with a sliding window (`_windows`): none; all, if there is a window; those from max_window_layers on, if
    # use_sliding_window; all but every n-th. "upper" and "most" can also be listed in layer_types.
    window: Literal["none", "all", "upper", "most"] = "none"
    local_rope: bool = False  # layers with a window have a rotary embedding of their own, without scaling
    # config.json: what an absent key means, and keys with the only value that is supported
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    activation_key: str = "hidden_act"
    # GGUF: name of the architecture, None where files lack something; rows of q_proj and k_proj in llama.cpp's order
    gguf: str | None = None
    gguf_permuted: bool = False


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        # Llama 3 (arXiv 2407.21783), and what has its architecture
        "llama": Family(
            "LlamaForCausalLM",
            "LlamaForSequenceClassification",
            defaults={"max_position_embeddings": 2048},
            fixed={"attention_bias": False, "mlp_bias": False},
            gguf="llama",
            gguf_permuted=True,
        ),
        # Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115)
        "qwen2": Family(
            "Qwen2ForCausalLM",
            "Qwen2ForSequenceClassification",
            qkv_bias=True,
            window="upper",
            defaults={"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
            gguf="qwen2",
        ),
        # Qwen3, dense (arXiv 2505.09388)
        "qwen3": Family(
            "Qwen3ForCausalLM",
            "Qwen3ForSequenceClassification",
            qk_norm="head",
            window="upper",
            defaults={
                "head_dim": 128,
                "max_position_embeddings": 32768,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            fixed={"attention_bias": False},
            gguf="qwen3",
        ),
        # Mistral 7B (arXiv 2310.06825). Its GGUF files are of architecture llama.
        "mistral": Family(
            "MistralForCausalLM",
            "MistralForSequenceClassification",
            window="all",
            defaults={"max_position_embeddings": 131072, "sliding_window": 4096},
        ),
        # OLMo 2 (arXiv 2501.00656)
        "olmo2": Family(
            "Olmo2ForCausalLM",
            "Olmo2ForSequenceClassification",
            qk_norm="row",
            norm="post",
            defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
            fixed={"attention_bias": False},
            gguf="olmo2",
        ),
        # OLMo 3 (arXiv 2512.13961). Its GGUF files are of architecture olmo2 and do not say which layers have a window.
        "olmo3": Family(
            "Olmo3ForCausalLM",
            "Olmo3ForSequenceClassification",
            qk_norm="row",
            norm="post",
            window="most",
            local_rope=True,
            defaults={
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "rope_theta": 5e5,
                "sliding_window": 4096,
                "sliding_window_pattern": 4,
            },
            fixed={"attention_bias": False, "sliding_window_pattern": 4},  # transformers knows no other
        ),
        # Gemma 3, text (arXiv 2503.19786). Its GGUF files lack the scale of the queries and the pattern of windows.
        "gemma3_text": Family(
            "Gemma3ForCausalLM",
            "Gemma3TextForSequenceClassification",
            qk_norm="head",
            norm="sandwich",
            norm_offset=1.0,
            activation="gelu_tanh",
            scaled_embedding=True,
            window="most",
            local_rope=True,
            defaults={
                "head_dim": 256,
                "max_position_embeddings": 131072,
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "query_pre_attn_scalar": 256,
                "sliding_window": 4096,
                "sliding_window_pattern": 6,
                "tie_word_embeddings": True,
            },
            fixed={
                "attention_bias": False,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
                "use_bidirectional_attention": False,
            },
            activation_key="hidden_activation",
        ),
    }
)

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # in config.json
_FULL, _SLIDING = "full_attention", "sliding_attention"  # of layer_types
# Keys that change what any decoder computes, with the only value that is supported.
_FIXED = {"attention_bias": False, "mlp_bias": False, "clip_qkv": None, "partial_rotary_factor": 1.0}


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones are kept, those between are interpolated."""

    rope_type: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LinearScaling:
    """All wavelengths are stretched by `factor`."""

    rope_type: ClassVar[str] = "linear"
    factor: float


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): wavelengths of less than `beta_fast` turns within the original context are stretched, up
    to all of `factor` at `beta_slow` turns; cosines and sines are multiplied by `attention_factor`."""

    rope_type: ClassVar[str] = "yarn"
    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling


@dataclass(frozen=True)
class Rope:
    """A rotary embedding (arXiv 2104.09864)."""

    theta: float
    scaling: RopeScaling | None


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; field names are those of Hugging Face's config.json, where it has them."""

    model_type: str  # of FAMILIES
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    max_position_embeddings: int
    head: str = "causal"  # | "scalar": one number per token, for reward and value models; never tied
    sliding_window: int | None = None  # keys that a query sees, its own included; None: no layer has a window
    layer_types: tuple[str, ...] | None = None  # "full_attention" | "sliding_attention"; None: all layers are the same
    local_rope_theta: float | None = None  # of layers with a window, unscaled; None: as the other layers
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: by that of head_dim

    @property
    def family(self) -> Family:
        """The row of the table."""
        return FAMILIES[self.model_type]

    def window(self, layer: int) -> int | None:
        """The window of a layer; None for full attention."""
        return self.sliding_window if self.layer_types is None or self.layer_types[layer] == _SLIDING else None

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The rotary embeddings of the layers: one, or two if layers with a window have their own."""
        common = Rope(self.rope_theta, self.rope_scaling)
        return (common,) if self.local_rope_theta is None else (common, Rope(self.local_rope_theta, None))

    def rope(self, layer: int) -> int:
        """Which of `ropes` a layer has."""
        return 1 if self.local_rope_theta is not None and self.window(layer) is not None else 0

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters, a tied weight counted once."""
        return sum(math.prod(shape) for shape in expected_shapes(self).values())

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs of one forward: per token in the layers ("linear"), per (query, key) pair ("quadratic") and per
        scored token in the head ("head"). A training step takes three times as much. A sliding window is not counted:
        with one, the pairs of a long text are fewer than it has by its length."""
        matrices = sum(math.prod(shape) for shape in _layer_shapes(self).values() if len(shape) == 2)
        return {
            "linear": 2.0 * self.num_hidden_layers * matrices,
            "quadratic": 4.0 * self.num_hidden_layers * self.num_attention_heads * self.head_dim,
            "head": 0.0 if self.head == "scalar" else 2.0 * self.vocab_size * self.hidden_size,
        }


# --- tensors -------------------------------------------------------------------------------------------------


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a layer, by its name within the layer."""
    family = config.family
    h, d, m = config.hidden_size, config.head_dim, config.intermediate_size
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, h),
        "self_attn.k_proj.weight": (kv, h),
        "self_attn.v_proj.weight": (kv, h),
        "self_attn.o_proj.weight": (h, q),
        "mlp.gate_proj.weight": (m, h),
        "mlp.up_proj.weight": (m, h),
        "mlp.down_proj.weight": (h, m),
    }
    if family.qkv_bias:
        shapes |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    if family.qk_norm != "none":
        row = family.qk_norm == "row"
        shapes |= {"self_attn.q_norm.weight": (q if row else d,), "self_attn.k_norm.weight": (kv if row else d,)}
    return shapes | {f"{norm}.weight": (h,) for norm in BLOCK_NORMS[family.norm]}


# Names of the norms of a layer, in the order in which they are applied.
BLOCK_NORMS = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "post": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint, by its Hugging Face name. A tied head has no tensor of its own."""
    h, layer = config.hidden_size, _layer_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, h)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (h,)
    if config.head == "scalar":
        shapes["score.weight"] = (1, h)
    elif not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, h)
    return shapes


# --- config.json, read ---------------------------------------------------------------------------------------


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a Hugging Face folder.

    Raises:
        InputError: there is no such file, it is not JSON, or as `config_from_hf`.
    """
    return config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))


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
        if name not in (_FULL, _SLIDING):
            raise keys.refuse("layer_types", name, f"supported: {_FULL}, {_SLIDING}")
    has_window = raw.get("sliding_window") is not None
    if family.window in ("none", "upper"):
        has_window = has_window and bool(raw.get("use_sliding_window"))
    if family.window == "none" and (raw.get("use_sliding_window") or _SLIDING in (types or [])):
        key = "use_sliding_window" if raw.get("use_sliding_window") else "layer_types"
        raise keys.refuse(key, raw[key], f"{family.causal} has full attention only")
    if family.window == "all":
        same = [_SLIDING if has_window else _FULL] * layers
        if types not in (None, same):
            raise keys.refuse("layer_types", types, f"of {family.causal} all layers are {same[0]} here")
        types = same
    if types is None and not has_window:
        types = [_FULL] * layers
    elif types is None and family.window == "upper":
        first = raw["max_window_layers"]
        if not isinstance(first, int):
            raise keys.refuse("max_window_layers", first, "a whole number is needed")
        types = [_SLIDING if i >= first else _FULL for i in range(layers)]
    elif types is None:
        period = keys.number("sliding_window_pattern")
        types = [_SLIDING if (i + 1) % period else _FULL for i in range(layers)]
    if _SLIDING not in types:
        return None, None
    if not has_window:
        raise keys.refuse("layer_types", types, "without a sliding_window (and use_sliding_window) all must be full")
    return keys.number("sliding_window"), tuple(types) if _FULL in types else None


def _ropes(keys: _Keys, family: Family) -> tuple[Rope, float | None]:
    """The rotary embedding of a config, and the theta of layers with a window; None where they have no other.

    transformers 5 keeps everything in rope_parameters, with an object for each type of layer where they differ; 4 has
    rope_theta, rope_local_base_freq and rope_scaling.

    Raises:
        InputError: a rotary embedding that is not supported.
    """
    scaling, local = keys.inner("rope_parameters").raw, _Keys({}, keys.where)
    if family.local_rope:
        if other := scaling.keys() - {_FULL, _SLIDING}:
            raise keys.refuse("rope_parameters", sorted(other), f"supported: {_FULL}, {_SLIDING}, an object each")
        local = _Keys(scaling, keys.where).inner(_SLIDING)
        scaling = _Keys(scaling, keys.where).inner(_FULL).raw
        if local.raw.get("rope_type", "default") != "default":
            raise keys.refuse("rope_type", local.raw["rope_type"], f"only default for {_SLIDING}")
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
    by_type = {_FULL: raw["rope_parameters"], _SLIDING: {"rope_type": "default", "rope_theta": local}}
    return raw | {"rope_parameters": by_type}


def _windows_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys that `_windows` reads."""
    window, family = config.sliding_window, config.family
    types = [_FULL if config.window(i) is None else _SLIDING for i in range(config.num_hidden_layers)]
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
