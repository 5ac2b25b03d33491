"""One Transformer for Llama-3 and Qwen-3 (dense): a pack of prompt trees in, log-probs out.

Two streams run through every layer: the training pack with gradient, then the probe packs under `no_grad`. Both use the
same gathered weights, so one all-gather per layer serves both. Probes are scored with the weights from *before* this
step's update, keep no activations and have no backward. Parameters have their Hugging Face names.

In shapes: T tokens of a pack, K keys, S attention segments, R scored tokens, H the hidden size, V the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vdengine.kernels.decode_attention import decode_attention
from vdengine.kernels.gather import embedding_rows, gather_rows
from vdengine.kernels.rms_norm import RMSNorm
from vdengine.kernels.rope import qk_rope
from vdengine.kernels.swiglu import swiglu
from vdengine.kernels.thin_linear import thin_linear
from vdengine.models.attention import attend
from vdengine.models.families import ModelConfig
from vdengine.models.head import Draw, Drawn, Head, ScalarHead, Scores

if TYPE_CHECKING:
    from vdengine.trees import Lengths, Pack


@dataclass(frozen=True)
class Kernels:
    """The backend of each part of a model. "auto": the fastest that the device has. A backend that cannot run on the
    device raises a ValueError at the first forward."""

    rms_norm: str = (
        "auto"  # triton | reference; "auto" is triton on CUDA, and elsewhere reference, which is plain torch
    )
    rope: str = "auto"  # as rms_norm; includes Qwen-3's norm of queries and keys
    swiglu: str = "auto"  # as rms_norm
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

    cos: Tensor  # [T, head_dim / 2] fp32
    sin: Tensor  # [T, head_dim / 2] fp32
    cu_seqlens_q: Tensor  # [S+1] int32
    cu_seqlens_k: Tensor  # [S+1] int32
    max_q: int  # longest segment, in queries
    max_k: int  # longest segment, in keys
    lengths: Lengths | None  # of the segments, on the host; None where all attention is to a cache
    kv_index: Tensor | None  # [K] int64, the row of each key; None: every row is a key once, in order
    kv_order: Tensor | None  # [K] int64, `Inverse.order` of kv_index
    kv_offsets: Tensor | None  # [T+1] int64, `Inverse.offsets` of kv_index
    cache: Cache | None = None  # of this layer, when tokens are sampled


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Frequencies of the rotary embedding (arXiv 2104.09864), with Llama-3.1's scaling where the config has it:
    [head_dim / 2] fp32, radians per position."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if (s := config.rope_scaling) is None:
        return frequencies
    # full turns of each frequency within the context that the model was trained on
    turns = s.original_max_position_embeddings * frequencies / (2 * math.pi)
    # 1: many turns, a frequency that is kept; 0: few turns, one that is divided by `factor`; linear in between
    keep = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / s.factor)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary embedding; Qwen-3's norms each head of q and k first."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        h, d = config.hidden_size, config.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(h, config.num_attention_heads * d, bias=False)
        self.k_proj = nn.Linear(h, config.num_key_value_heads * d, bias=False)
        self.v_proj = nn.Linear(h, config.num_key_value_heads * d, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * d, h, bias=False)
        # only their weights are used: `qk_rope` applies the norm together with the rotation
        self.q_norm = RMSNorm(d, config.rms_norm_eps) if config.model_type == "qwen3" else None
        self.k_norm = RMSNorm(d, config.rms_norm_eps) if config.model_type == "qwen3" else None
        self.eps, self.kernels, self.deterministic = config.rms_norm_eps, kernels, True

    def forward(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        """Attention within the stream, or to its cache."""
        # q: [T, heads, head_dim]; k and v: [T, kv_heads, head_dim]
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in _project(x, s, self.q_proj, self.k_proj, self.v_proj))
        q, k = qk_rope(
            q,
            k,
            s.cos,
            s.sin,
            q_weight=None if self.q_norm is None else self.q_norm.weight,
            k_weight=None if self.k_norm is None else self.k_norm.weight,
            eps=self.eps,
            backend=self.kernels.rope,
        )
        if (c := s.cache) is not None:
            for pool, rows in ((c.keys, k), (c.values, v)):
                pool.flatten(0, 1).index_copy_(0, c.places, rows)  # into [num_blocks * block, kv_heads, head_dim]
            if c.table is not None and c.lengths is not None:
                out = decode_attention(q, c.keys, c.values, c.table, c.lengths, backend=c.backend)
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
            lengths=s.lengths,
            backend=self.kernels.attention,
            deterministic=self.deterministic,
        )  # [T, heads, head_dim]
        return _project(out.flatten(-2), s, self.o_proj)[0]


class MLP(nn.Module):
    """The SwiGLU feed-forward layer (arXiv 2002.05202), of width I = intermediate_size."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.backend = kernels.swiglu

    def forward(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        """down(silu(gate(x)) * up(x))."""
        gate, up = _project(x, s, self.gate_proj, self.up_proj)  # [T, I] each
        return _project(swiglu(gate, up, backend=self.backend), s, self.down_proj)[0]


def _project(x: Tensor, s: Stream, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """The outputs of several linear layers for one input x [T, H]. When tokens are sampled T is small and there is no
    gradient, which `thin_linear` is made for."""
    return tuple(layer(x) for layer in layers) if s.cache is None else thin_linear(x, *(p.weight for p in layers))


def _checkpoint_selectively() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Selective activation checkpointing: save the outputs of GEMMs and attention, recompute elementwise ops."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op.name() in _SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _checkpoint_fully() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Full activation checkpointing: save the input of the layer, recompute everything else."""
    return nullcontext(), nullcontext()


# Names, because some of these ops are registered only when attention first runs.
_SAVED_OPS = frozenset(
    {
        "aten::mm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_flash_attention_forward",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
    }
)


class Block(nn.Module):
    """A decoder layer, applied to the training stream and to the probe streams. The FSDP unit."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(h, eps, backend=kernels.rms_norm)
        self.self_attn = Attention(config, kernels)
        self.post_attention_layernorm = RMSNorm(h, eps, backend=kernels.rms_norm)
        self.mlp = MLP(config, kernels)
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
                selective = self.activation_checkpoint == "selective"
                context_fn = _checkpoint_selectively if selective else _checkpoint_fully
                # there is no dropout, so no RNG state has to be restored
                x = checkpoint(
                    self._layer, x, stream, use_reentrant=False, preserve_rng_state=False, context_fn=context_fn
                )
        if probes:
            with torch.no_grad(), self.probe_clock:
                probes = [self._layer(p, s) for p, s in zip(probes, probe_streams, strict=True)]
        return x, probes

    def _layer(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        attention = self.self_attn(self.input_layernorm(x), s)
        normed, x = self.post_attention_layernorm(attention, residual=x)  # x + attention and its norm, in one kernel
        return x + self.mlp(normed, s)


class Embedding(nn.Module):
    """The token embedding. Its gradient sums over the tokens in a fixed order (`kernels.gather`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
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
            return self.weight.index_select(0, tokens), []
        x = (
            None
            if tokens is None
            else embedding_rows(self.weight, tokens, unique, order, offsets, fp32_weight_grad=True)
        )
        if not probe_tokens:
            return x, []
        with torch.no_grad(), self.probe_clock:
            return x, [self.weight.index_select(0, t) for t in probe_tokens]


class Decoder(nn.Module):
    """The modules whose parameters have the prefix `model.` in a checkpoint. `Transformer.forward` calls them."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Block(config, kernels) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, backend=kernels.rms_norm)


class Transformer(nn.Module):
    """Llama-3 or Qwen-3 (arXiv 2407.21783, 2505.09388) that returns log-probs, or with a scalar head values:
    `model(pack, probes) -> Scores`.

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
        self.model = Decoder(config, kernels)
        if config.head == "scalar":
            self.score = ScalarHead(config.hidden_size)
        else:
            self.lm_head = Head(config.vocab_size, config.hidden_size, head_saved_bytes, backend=kernels.head)
            if config.tie_word_embeddings:
                self.lm_head.weight = self.model.embed_tokens.weight
        self._frequencies: Tensor | None = None  # [head_dim / 2] fp32, made by the first forward on its device

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

    def forward(
        self,
        pack: Pack | None,
        probes: Pack | Sequence[Pack] | None = None,
        entropy: bool = False,
    ) -> Scores:
        """Log-probs of every scored token of `pack`, and without gradient of `probes`, one pack after another. A scalar
        model gives its value at every token of `pack`.

        Args:
            entropy: also return the entropy at every scored token of `pack`.

        Raises:
            ValueError: a scalar model with probes, or without a pack; a kernel's backend that cannot run here.
        """
        probe_packs: list[Pack] = [] if probes is None else list(probes) if isinstance(probes, Sequence) else [probes]
        stream = None if pack is None else self._stream(pack)
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
            x, _ = layer(x, stream._replace(cache=cache), [], [])
        return None if draw is None else self.lm_head(self.model.norm(x), None, [], [], False, draw)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:  # [T] int -> [T, head_dim / 2] fp32, twice
        """Cosines and sines of the rotary embedding at these positions."""
        if self._frequencies is None:
            self._frequencies = rope_frequencies(self.config).to(self.model.embed_tokens.weight.device)
        angles = positions.float()[:, None] * self._frequencies  # [T, head_dim / 2]
        return angles.cos(), angles.sin()

    def _stream(self, pack: Pack) -> Stream:
        inverse = pack.kv_inverse
        return Stream(
            *self.angles(pack.positions),
            pack.cu_seqlens_q,
            pack.cu_seqlens_k,
            pack.max_q,
            pack.max_k,
            pack.lengths,
            pack.kv_index,
            None if inverse is None else inverse.order,
            None if inverse is None else inverse.offsets,
        )
