"""One Transformer for all families of `models.families`: a pack of prompt trees in, log-probs out.

Two streams run through every layer: the training pack with gradient, then the probe packs under `no_grad`. Both use the
same gathered weights, so one all-gather per layer serves both. Probes are scored with the weights from *before* this
step's update, keep no activations and have no backward. Parameters have their Hugging Face names.

In shapes: T tokens of a pack, K keys, S attention segments, R scored tokens, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vdengine.kernels.decode_attention import decode_attention
from vdengine.kernels.gather import embedding_rows, gather_rows
from vdengine.kernels.rms_norm import RMSNorm
from vdengine.kernels.rope import qk_rope
from vdengine.kernels.swiglu import swiglu
from vdengine.kernels.thin_linear import thin_linear
from vdengine.models.attention import attend
from vdengine.models.families import BLOCK_NORMS, LinearScaling, Llama3Scaling, ModelConfig, Rope, YarnScaling
from vdengine.models.head import Draw, Drawn, Head, ScalarHead, Scores
from vdengine.models.lora import LoraLinear, dropout, token_keys
from vdengine.models.recompute import recomputed

if TYPE_CHECKING:
    from vdengine.models.peft_config import Lora
    from vdengine.trees import Lengths, Pack


@dataclass(frozen=True)
class Kernels:
    """The backend of each part of a model. "auto": the fastest that the device has. A backend that cannot run on the
    device raises a ValueError at the first forward."""

    rms_norm: str = (
        "auto"  # triton | reference; "auto" is triton on CUDA, and elsewhere reference, which is plain torch
    )
    rope: str = "auto"  # as rms_norm; includes the norm of each head of queries and keys
    swiglu: str = "auto"  # as rms_norm; of GeGLU too
    attention: str = "auto"  # flash | varlen | sdpa, see `attend`
    head: str = "auto"  # triton | native | torch | reference, see `linear_logprob`


class Cache(NamedTuple):
    """The paged key-value cache of one layer, and where the tokens of a stream are in it.

    With a `table` every token is a row of its own that attends to the cache (decoding). Without one, tokens attend to
    their stream as in training, and the cache is only filled (prefill).
    """

    keys: Tensor  # [num_blocks, block, kv_heads, head_dim]
    values: Tensor  # [num_blocks, block, kv_heads, head_dim]
    places: Tensor  # [T] int64, where each token's key goes: number of its block * block + position in the block
    table: Tensor | None  # [T, max_blocks] int32, the blocks that each row attends to
    lengths: Tensor | None  # [T] int32, keys of each row, that of the token itself included
    backend: str  # of `decode_attention`


class Stream(NamedTuple):
    """What every layer needs to know of a pack, as plain tensors and integers: FSDP's hooks look at pytree leaves."""

    angles: tuple[tuple[Tensor, Tensor], ...]  # cosines and sines of each of `ModelConfig.ropes`, `Transformer.angles`
    cu_seqlens_q: Tensor  # [S+1] int32
    cu_seqlens_k: Tensor  # [S+1] int32
    max_q: int  # longest segment, in queries
    max_k: int  # longest segment, in keys
    lengths: Lengths | None  # of the segments, on the host; None where all attention is to a cache
    kv_index: Tensor | None  # [K] int64, the row of each key; None: every row is a key once, in order
    kv_order: Tensor | None  # [K] int64, `Inverse.order` of kv_index
    kv_offsets: Tensor | None  # [T+1] int64, `Inverse.offsets` of kv_index
    cache: Cache | None = None  # of this layer, when tokens are sampled
    adapter: bool = True  # whether layers use the adapters that they have
    dropout: Tensor | None = None  # [T] int64, `lora.token_keys` of the adapters' dropout; None: there is none


def rope_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Frequencies of a rotary embedding (arXiv 2104.09864) with its scaling: [head_dim / 2] fp32, radians per
    position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if (s := rope.scaling) is None:
        return frequencies
    if isinstance(s, LinearScaling):
        return frequencies / s.factor
    # `keep` is 1 for a frequency of many full turns within the context that the model was trained on, which is kept,
    # and 0 for one of few turns, which is divided by `factor`; in between it is linear, in turns or in their logarithm
    if isinstance(s, Llama3Scaling):
        turns = s.original_max_position_embeddings * frequencies / (2 * math.pi)
        keep = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    else:

        def index(turns: float) -> float:
            """Of the frequency that makes so many turns, between those that there are."""
            return (
                head_dim
                * math.log(s.original_max_position_embeddings / (turns * 2 * math.pi))
                / (2 * math.log(rope.theta))
            )

        first, last = max(math.floor(index(s.beta_fast)), 0), min(math.ceil(index(s.beta_slow)), head_dim - 1)
        keep = 1 - ((torch.arange(head_dim // 2) - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / s.factor)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary embedding, and where the family has them a norm of queries
    and keys before it, and a sliding window."""

    def __init__(self, config: ModelConfig, kernels: Kernels, layer: int) -> None:
        super().__init__()
        family, h, d = config.family, config.hidden_size, config.head_dim
        q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
        self.head_dim = d
        self.q_proj = nn.Linear(h, q, bias=family.qkv_bias)
        self.k_proj = nn.Linear(h, kv, bias=family.qkv_bias)
        self.v_proj = nn.Linear(h, kv, bias=family.qkv_bias)
        self.o_proj = nn.Linear(q, h, bias=False)
        self.q_norm = self.k_norm = None
        if family.qk_norm != "none":
            self.norms_rows = family.qk_norm == "row"
            self.q_norm, self.k_norm = (
                RMSNorm(
                    size if self.norms_rows else d,
                    config.rms_norm_eps,
                    offset=family.norm_offset,
                    backend=kernels.rms_norm,
                )
                for size in (q, kv)
            )
        self.rope, self.window = config.rope(layer), config.window(layer)
        scalar = config.query_pre_attn_scalar
        self.scale = None if scalar is None else scalar**-0.5  # of the scores; None: head_dim**-0.5
        self.eps, self.kernels, self.deterministic = config.rms_norm_eps, kernels, True

    def forward(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        """Attention within the stream, or to its cache."""
        q, k, v = _project(x, s, self.q_proj, self.k_proj, self.v_proj)  # [T, heads * head_dim], then kv_heads
        q_scale = k_scale = None  # [head_dim], of a norm that `qk_rope` applies together with the rotation
        if self.q_norm is not None and self.k_norm is not None and self.norms_rows:
            q, k = self.q_norm(q), self.k_norm(k)
        # q: [T, heads, head_dim]; k and v: [T, kv_heads, head_dim]
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None and not self.norms_rows:
            if is_plain(self.q_norm, RMSNorm) and is_plain(self.k_norm, RMSNorm):
                q_scale, k_scale = self.q_norm.scale, self.k_norm.scale
            else:
                q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = s.angles[self.rope]
        if cos.dtype != torch.float32:
            raise ValueError(
                f"the rotary angles are {cos.dtype}: FSDP2's policy casts the inputs of a forward; shard the model "
                "with vd.shard, or with MixedPrecisionPolicy(cast_forward_inputs=False)"
            )
        q, k = qk_rope(q, k, cos, sin, q_weight=q_scale, k_weight=k_scale, eps=self.eps, backend=self.kernels.rope)
        if (c := s.cache) is not None:
            for pool, rows in ((c.keys, k), (c.values, v)):
                pool.flatten(0, 1).index_copy_(0, c.places, rows)  # into [num_blocks * block, kv_heads, head_dim]
            if c.table is not None and c.lengths is not None:
                out = decode_attention(
                    q, c.keys, c.values, c.table, c.lengths, scale=self.scale, window=self.window, backend=c.backend
                )
                return _project(out.flatten(-2), s, self.o_proj)[0]
        if s.kv_index is not None:  # puts the prompt's keys in front of each branch's own: [K, kv_heads, head_dim]
            k, v = (gather_rows(t, s.kv_index, s.kv_order, s.kv_offsets) for t in (k, v))
        out = attend(
            q,
            k,
            v,
            s.cu_seqlens_q,
            s.cu_seqlens_k,
            s.max_q,
            s.max_k,
            scale=self.scale,
            window=self.window,
            lengths=s.lengths,
            backend=self.kernels.attention,
            deterministic=self.deterministic,
        )  # [T, heads, head_dim]
        return _project(out.flatten(-2), s, self.o_proj)[0]


class MLP(nn.Module):
    """The gated feed-forward layer (arXiv 2002.05202), of width I = intermediate_size: SwiGLU, or GeGLU."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation, self.backend = config.family.activation, kernels.swiglu

    def forward(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        """down(activation(gate(x)) * up(x))."""
        gate, up = _project(x, s, self.gate_proj, self.up_proj)  # [T, I] each
        return _project(swiglu(gate, up, activation=self.activation, backend=self.backend), s, self.down_proj)[0]


def _project(x: Tensor, s: Stream, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """The outputs of several linear layers for one input x [T, H], of which their adapters drop the same elements.

    When tokens are sampled T is small and there is no gradient, which `thin_linear` is made for. It reads weights, so
    it is for our own layers only: whatever else is put in the place of one, or hooked to it, is called.
    """
    adapted = [layer for layer in layers if isinstance(layer, LoraLinear)] if s.adapter else []
    if s.cache is not None and all(is_plain(layer, nn.Linear) or is_plain(layer, LoraLinear) for layer in layers):
        base = thin_linear(x, *(layer.weight for layer in layers), biases=[layer.bias for layer in layers])
        if not adapted:
            return base
        inner = iter(thin_linear(x, *(layer.lora_A.to(x.dtype) for layer in adapted)))  # [T, r] of each
        return tuple(
            y + layer.scale * thin_linear(next(inner), layer.lora_B.to(x.dtype))[0] if layer in adapted else y
            for y, layer in zip(base, layers, strict=True)
        )
    dropped = None
    if adapted and s.dropout is not None and adapted[0].dropout:
        dropped = dropout(x, s.dropout, adapted[0].dropout, adapted[0].number)
    return tuple(layer(x, dropped, s.adapter) if isinstance(layer, LoraLinear) else layer(x) for layer in layers)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is that of its class: no subclass (an adapter, a parametrisation), no hook, and no
    forward of its own. Only then may its parameters be used in its stead."""
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
    )


class Block(nn.Module):
    """A decoder layer, applied to the training stream and to the probe streams. The FSDP unit."""

    input_layernorm: RMSNorm  # a family has some of the four, see `BLOCK_NORMS`
    post_attention_layernorm: RMSNorm
    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm

    def __init__(self, config: ModelConfig, kernels: Kernels, layer: int) -> None:
        super().__init__()
        self.placement = config.family.norm

        def add_norms(*names: str) -> None:
            for name in names:
                if name in BLOCK_NORMS[self.placement]:
                    self.add_module(name, _norm(config, kernels))

        add_norms("input_layernorm")
        self.self_attn = Attention(config, kernels, layer)
        add_norms("post_attention_layernorm", "pre_feedforward_layernorm")
        self.mlp = MLP(config, kernels)
        add_norms("post_feedforward_layernorm")
        self.activation_checkpoint = "none"  # of the training stream: "none" | "selective" | "full"
        self.probe_clock: AbstractContextManager[None] = nullcontext()  # measures the time of the probe streams

    def forward(
        self,
        x: Tensor | None,  # [T, H]
        stream: Stream | None,
        probes: list[Tensor],  # each [T_i, H]
        probe_streams: list[Stream],
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The layer's outputs, with the shapes of its inputs."""
        if x is not None and stream is not None:
            if self.activation_checkpoint == "none" or not torch.is_grad_enabled():
                x = self._layer(x, stream)
            else:
                x = recomputed(self._layer, x, stream, mode=self.activation_checkpoint)
        if probes:
            with torch.no_grad(), self.probe_clock:
                probes = [self._layer(p, s) for p, s in zip(probes, probe_streams, strict=True)]
        return x, probes

    def _layer(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        attention = self.self_attn(x if self.placement == "post" else self.input_layernorm(x), s)
        # with a residual a norm gives the norm of the sum, and the sum, in one kernel
        if self.placement == "pre":
            normed, x = self.post_attention_layernorm(attention, residual=x)
            return x + self.mlp(normed, s)
        attention = self.post_attention_layernorm(attention)
        if self.placement == "post":
            normed = x = x + attention
        else:
            normed, x = self.pre_feedforward_layernorm(attention, residual=x)
        return x + self.post_feedforward_layernorm(self.mlp(normed, s))


def _norm(config: ModelConfig, kernels: Kernels) -> RMSNorm:
    """A norm of the residual stream."""
    offset = config.family.norm_offset
    return RMSNorm(config.hidden_size, config.rms_norm_eps, offset=offset, backend=kernels.rms_norm)


class Embedding(nn.Module):
    """The token embedding. Its gradient sums over the tokens in a fixed order (`kernels.gather`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.scale = math.sqrt(config.hidden_size) if config.family.scaled_embedding else None
        self.probe_clock: AbstractContextManager[None] = nullcontext()

    def forward(
        self,
        tokens: Tensor | None,  # [T] int64
        unique: Tensor | None,  # [u] int64, the distinct token ids; None: no gradient is needed
        order: Tensor,  # [T] int64, with `offsets` where in `tokens` each distinct id is (`Pack.token_inverse`)
        offsets: Tensor,  # [u+1] int64
        probe_tokens: list[Tensor],  # each [T_i] int64
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Embeddings of the tokens, [T, H], and without gradient of the probe tokens, each [T_i, H]."""
        if tokens is not None and unique is None:  # tokens are sampled: there is no backward
            return self._scaled(self.weight.index_select(0, tokens)), []
        x = None
        if tokens is not None:
            x = self._scaled(embedding_rows(self.weight, tokens, unique, order, offsets, fp32_weight_grad=True))
        if not probe_tokens:
            return x, []
        with torch.no_grad(), self.probe_clock:
            return x, [self._scaled(self.weight.index_select(0, t)) for t in probe_tokens]

    def _scaled(self, x: Tensor) -> Tensor:  # [T, H] -> [T, H]
        """x times the scale, rounded to x's dtype first, as Gemma was trained (55.5 for sqrt(3072) in bf16)."""
        return x if self.scale is None else x * torch.tensor(self.scale, dtype=x.dtype)


class Decoder(nn.Module):
    """The modules whose parameters have the prefix `model.` in a checkpoint. `Transformer.forward` calls them."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Block(config, kernels, i) for i in range(config.num_hidden_layers))
        self.norm = _norm(config, kernels)


class Transformer(nn.Module):
    """A decoder of any family that returns log-probs, or with a scalar head values: `model(pack, probes) -> Scores`.

    Its parameters are uninitialised, and on the meta device if that is the current one; `weights.load_into` fills them.
    Under FSDP only this `forward` gathers the root's weights, so a submodule must not be called by itself.

    Args:
        head_saved_bytes: `saved_bytes` of `linear_logprob`.
        kernels: the backend of each part.
    """

    def __init__(
        self,
        config: ModelConfig,
        head_saved_bytes: int | None = None,
        kernels: Kernels = Kernels(),
    ) -> None:
        super().__init__()
        self.config, self.kernels = config, kernels
        self.lora: Lora | None = None  # of its adapters, `lora.add_lora`
        self._adapter = True
        self.model = Decoder(config, kernels)
        if config.head == "scalar":
            self.score = ScalarHead(config.hidden_size)
        else:
            self.lm_head = Head(config.vocab_size, config.hidden_size, head_saved_bytes, backend=kernels.head)
            if config.tie_word_embeddings:
                self.lm_head.weight = self.model.embed_tokens.weight
        # of each rotary embedding, [head_dim / 2] fp32; made by the first forward on a device
        self._frequencies: list[Tensor] = []

    def time_probes(self, clock: AbstractContextManager[None]) -> None:
        """Enter `clock` around all work that a forward does for its probes."""
        for block in self.blocks:
            block.probe_clock = clock
        self.model.embed_tokens.probe_clock = clock
        if self.config.head == "causal":
            self.lm_head.probe_clock = clock

    @property
    def blocks(self) -> list[Block]:
        """The layers, with their type."""
        return [block for block in self.model.layers if isinstance(block, Block)]

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """A context in which forwards are those of the model without its adapters, to the bit.

        Raises:
            ValueError: it has none.
        """
        if self.lora is None:
            raise ValueError("adapter_off: the model has no adapter (add_lora)")
        before, self._adapter = self._adapter, False
        try:
            yield
        finally:
            self._adapter = before

    def forward(
        self,
        pack: Pack | None,
        probes: Pack | Sequence[Pack] | None = None,
        entropy: bool = False,
        dropout: tuple[int, int] | None = None,
    ) -> Scores:
        """Log-probs of every scored token of `pack`, and without gradient of `probes`, one pack after another. A scalar
        model gives its value at every token of `pack`.

        Args:
            entropy: also return the entropy at every scored token of `pack`.
            dropout: (seed, step) of the noise by which the adapters' dropout drops elements, for `pack` alone. Default:
                nothing is dropped.

        Raises:
            ValueError: a scalar model with probes, or without a pack; a kernel's backend that cannot run here.
        """
        probe_packs: list[Pack] = [] if probes is None else list(probes) if isinstance(probes, Sequence) else [probes]
        stream = None if pack is None else self._stream(pack)
        if stream is not None and pack is not None and dropout is not None and self.lora and self.lora.dropout:
            stream = stream._replace(dropout=token_keys(pack, *dropout))
        probe_streams = [self._stream(p) for p in probe_packs]

        if pack is None:
            embedded = self.model.embed_tokens(None, None, None, None, [p.tokens for p in probe_packs])
        else:
            unique, inverse = pack.token_inverse
            embedded = self.model.embed_tokens(
                pack.tokens, unique, inverse.order, inverse.offsets, [p.tokens for p in probe_packs]
            )
        x, probe_x = embedded
        for layer in self.model.layers:
            x, probe_x = layer(x, stream, probe_x, probe_streams)

        if self.config.head == "scalar":
            if pack is None or probe_packs:
                raise ValueError("a scalar model gives no log-probs: it runs a pack, and no probes")
            return Scores(torch.empty(0, device=x.device), None, None, self.score(self.model.norm(x)))

        # only the rows that predict a scored token go through the last norm and the head
        rows = None  # [R, H]
        if pack is not None and x is not None:
            rows = self.model.norm(gather_rows(x, pack.rows, pack.rows_inverse.order, pack.rows_inverse.offsets))
        probe_rows: list[Tensor] = []  # each [R_i, H]
        if probe_packs:
            with torch.no_grad(), self.lm_head.probe_clock:
                for px, p in zip(probe_x, probe_packs, strict=True):
                    probe_rows.append(self.model.norm(px.index_select(0, p.rows)))
        targets = None if pack is None else pack.targets
        return self.lm_head(rows, targets, probe_rows, [p.targets for p in probe_packs], entropy)

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,  # [T] int64
        stream: Stream,
        caches: Sequence[Cache],  # one per layer
        draw: Draw | None,
    ) -> Drawn | None:
        """Run the tokens and write their keys and values into the caches. With `draw`, also sample the token after each
        one; None without."""
        x, _ = self.model.embed_tokens(tokens, None, None, None, [])  # [T, H]
        for layer, cache in zip(self.model.layers, caches, strict=True):
            x, _ = layer(x, stream._replace(cache=cache, adapter=self._adapter), [], [])
        return None if draw is None else self.lm_head(self.model.norm(x), None, [], [], False, draw)

    def angles(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:  # [T] int -> [T, head_dim / 2] fp32 each
        """Cosines and sines of each rotary embedding at these positions."""
        config = self.config
        if not self._frequencies or self._frequencies[0].device != positions.device:
            made = [rope_frequencies(rope, config.head_dim) for rope in config.ropes]
            self._frequencies = [frequencies.to(positions.device) for frequencies in made]
        out = []
        for rope, frequencies in zip(config.ropes, self._frequencies, strict=True):
            angles = positions.float()[:, None] * frequencies  # [T, head_dim / 2]
            cos, sin = angles.cos(), angles.sin()
            if isinstance(rope.scaling, YarnScaling):
                cos, sin = cos * rope.scaling.attention_factor, sin * rope.scaling.attention_factor
            out.append((cos, sin))
        return tuple(out)

    def _stream(self, pack: Pack) -> Stream:
        inverse = pack.kv_inverse
        return Stream(
            self.angles(pack.positions),
            pack.cu_seqlens_q,
            pack.cu_seqlens_k,
            pack.max_q,
            pack.max_k,
            pack.lengths,
            pack.kv_index,
            None if inverse is None else inverse.order,
            None if inverse is None else inverse.offsets,
            adapter=self._adapter,
        )
