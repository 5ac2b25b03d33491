"""The model families: reading and writing their config.json, and the tensors that their checkpoints have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdengine.errors import InputError
from vdengine.files import read_json

if TYPE_CHECKING:
    from vdengine.text.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SCALAR_ARCHITECTURES = {"llama": "LlamaForSequenceClassification", "qwen3": "Qwen3ForSequenceClassification"}


@dataclass(frozen=True)
class RopeScaling:
    """rope_type "llama3": long wavelengths are stretched by `factor`, short ones are kept, those between are
    interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; field names are those of Hugging Face's config.json."""

    model_type: str  # "llama" | "qwen3"
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

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters, a tied weight counted once."""
        h, d = self.hidden_size, self.head_dim
        attention = 2 * h * d * (self.num_attention_heads + self.num_key_value_heads)
        norms = 2 * h + (2 * d if self.model_type == "qwen3" else 0)
        layer = attention + 3 * h * self.intermediate_size + norms
        embedding = self.vocab_size * h
        head = h if self.head == "scalar" else 0 if self.tie_word_embeddings else embedding
        return self.num_hidden_layers * layer + h + embedding + head

    @property
    def flops(self) -> dict[str, float]:
        """FLOPs of one forward: per token in the layers ("linear"), per (query, key) pair ("quadratic") and per
        scored token in the head ("head"). A training step takes three times as much."""
        h, d = self.hidden_size, self.head_dim
        layer = 2 * h * d * (self.num_attention_heads + self.num_key_value_heads) + 3 * h * self.intermediate_size
        return {
            "linear": 2.0 * self.num_hidden_layers * layer,
            "quadratic": 4.0 * self.num_hidden_layers * self.num_attention_heads * d,
            "head": 0.0 if self.head == "scalar" else 2.0 * self.vocab_size * h,
        }


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a Hugging Face folder.

    Raises:
        InputError: there is no such file, it is not JSON, or as `config_from_hf`.
    """
    return config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))


def config_from_hf(raw: dict[str, Any], where: str) -> ModelConfig:
    """The config in a config.json of transformers 4.x or 5.x, given as a dictionary; `where` names it in errors.

    Raises:
        InputError: a key with a value that changes the model's output and is not supported: another model type,
            biases, a sliding window, rope types other than default and llama3, quantised weights. It names the key.
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
    if scalar:  # transformers writes the number of labels as the length of id2label; its default is 2
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
    """The content of a config.json that transformers 4.x and 5.x read alike; `dtype` as they write it ("bfloat16")."""
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


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint, by its Hugging Face name. A tied head has no tensor of its own."""
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
