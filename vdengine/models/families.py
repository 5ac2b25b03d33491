"""The model families: one table of what differs between them, the shape of a model, and the tensors that it has.

Their config.json is read and written by `models.hf_config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    pass


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

FULL, SLIDING = "full_attention", "sliding_attention"  # of layer_types


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
        return self.sliding_window if self.layer_types is None or self.layer_types[layer] == SLIDING else None

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
