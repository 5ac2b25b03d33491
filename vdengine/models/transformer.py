"""One Transformer for Llama-3 and Qwen-3 (dense): a pack of prompt trees in, log-probs out.

Two streams run through every layer: the training pack with grad, then the probe packs under `no_grad`, with the
same gathered weights. One all-gather per layer serves both; the probes read the weights *before* this step's
update, keep no activations and have no backward. Parameters have their Hugging Face names.
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
    """Which backend each part of a model runs on. "auto": the fastest that the device has. A backend that cannot run
    where it is asked to is a ValueError at the first forward."""

    rms_norm: str = "auto"  # triton | reference; "auto" is triton on CUDA and reference, plain torch, elsewhere
    rope: str = "auto"  # likewise; with Qwen-3's norm of queries and keys
    swiglu: str = "auto"  # likewise
    attention: str = "auto"  # flash | varlen | sdpa, see `attend`
    head: str = "auto"  # triton | native | torch | reference, see `linear_logprob`


class Cache(NamedTuple):
    """Where the keys and values of a stream's tokens go in one layer, and what is attended to there."""

    keys: Tensor  # [num_blocks, block, kv_heads, head_dim]
    values: Tensor  # [num_blocks, block, kv_heads, head_dim]
    places: Tensor  # [T] int64 for each token: its block * block size + its place in the block
    table: Tensor | None  # [T, max_blocks] int32: each token is a row that attends to these blocks; None: to its stream
    lengths: Tensor | None  # [T] int32: keys that a row has, its own included
    backend: str  # of `decode_attention`


class Stream(NamedTuple):
    """What every layer needs to know of a pack. Bare tensors and integers: FSDP's hooks look at pytree leaves."""

    cos: Tensor  # [T, head_dim / 2] fp32
    sin: Tensor  # [T, head_dim / 2] fp32
    cu_seqlens_q: Tensor  # [S+1] int32
    cu_seqlens_k: Tensor  # [S+1] int32
    max_q: int
    max_k: int
    lengths: Lengths | None  # of the segments; None where only a cache is attended to
    kv_index: Tensor | None  # [K] int64; None: every key row is used once, in order
    kv_order: Tensor | None
    kv_offsets: Tensor | None
    cache: Cache | None = None  # of the layer at hand, where tokens are sampled


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Inverse frequencies [head_dim / 2] fp32, with Llama-3.1's scaling where the config has it."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if (s := config.rope_scaling) is None:
        return frequencies
    # turns of a frequency within the context it was trained on
    turns = s.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / s.factor)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        h, d = config.hidden_size, config.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(h, config.num_attention_heads * d, bias=False)
        self.k_proj = nn.Linear(h, config.num_key_value_heads * d, bias=False)
        self.v_proj = nn.Linear(h, config.num_key_value_heads * d, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * d, h, bias=False)
        # their weights alone: the rotation norms each head on the way
        self.q_norm = RMSNorm(d, config.rms_norm_eps) if config.model_type == "qwen3" else None
        self.k_norm = RMSNorm(d, config.rms_norm_eps) if config.model_type == "qwen3" else None
        self.eps, self.kernels, self.deterministic = config.rms_norm_eps, kernels, True

    def forward(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in _project(x, s, self.q_proj, self.k_proj, self.v_proj))
        q, k = qk_rope(
            q, k, s.cos, s.sin, q_weight=None if self.q_norm is None else self.q_norm.weight,
            k_weight=None if self.k_norm is None else self.k_norm.weight, eps=self.eps, backend=self.kernels.rope,
        )  # fmt: skip
        if (c := s.cache) is not None:
            for pool, rows in ((c.keys, k), (c.values, v)):
                pool.flatten(0, 1).index_copy_(0, c.places, rows)
            if c.table is not None and c.lengths is not None:
                out = decode_attention(q, c.keys, c.values, c.table, c.lengths, backend=c.backend)
                return _project(out.flatten(-2), s, self.o_proj)[0]
        if s.kv_index is not None:  # each branch gets its prompt's keys in front of its own
            k, v = (gather_rows(t, s.kv_index, s.kv_order, s.kv_offsets) for t in (k, v))
        out = attend(
            q, k, v, s.cu_seqlens_q, s.cu_seqlens_k, s.max_q, s.max_k, lengths=s.lengths,
            backend=self.kernels.attention, deterministic=self.deterministic,
        )  # fmt: skip
        return _project(out.flatten(-2), s, self.o_proj)[0]


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.backend = kernels.swiglu

    def forward(self, x: Tensor, s: Stream) -> Tensor:  # [T, H] -> [T, H]
        gate, up = _project(x, s, self.gate_proj, self.up_proj)
        return _project(swiglu(gate, up, backend=self.backend), s, self.down_proj)[0]


def _project(x: Tensor, s: Stream, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Linear layers of one input; where tokens are sampled there are few rows, and no gradient."""
    return tuple(p(x) for p in layers) if s.cache is None else thin_linear(x, *(p.weight for p in layers))


def _selective() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Selective checkpointing: keep what is dear to recompute (GEMMs, attention), recompute the elementwise rest."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op.name() in _DEAR_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _nothing_kept() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Full checkpointing: a layer keeps its input alone."""
    return nullcontext(), nullcontext()


# By name: some are registered only when attention first runs.
_DEAR_OPS = frozenset(
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
    """A decoder layer over two streams; the FSDP unit."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(h, eps, backend=kernels.rms_norm)
        self.self_attn = Attention(config, kernels)
        self.post_attention_layernorm = RMSNorm(h, eps, backend=kernels.rms_norm)
        self.mlp = MLP(config, kernels)
        self.activation_checkpoint = "none"  # "none" | "selective" | "full", for the training stream
        self.probe_clock: AbstractContextManager[None] = nullcontext()  # times the probe stream

    def forward(
        self, x: Tensor | None, stream: Stream | None, probes: list[Tensor], probe_streams: list[Stream]
    ) -> tuple[Tensor | None, list[Tensor]]:
        if x is not None and stream is not None:
            if self.activation_checkpoint == "none" or not torch.is_grad_enabled():
                x = self._layer(x, stream)
            else:
                context_fn = _selective if self.activation_checkpoint == "selective" else _nothing_kept
                # no dropout anywhere: no RNG state to keep
                x = checkpoint(
                    self._layer, x, stream, use_reentrant=False, preserve_rng_state=False, context_fn=context_fn
                )
        if probes:
            with torch.no_grad(), self.probe_clock:
                probes = [self._layer(p, s) for p, s in zip(probes, probe_streams, strict=True)]
        return x, probes

    def _layer(self, x: Tensor, s: Stream) -> Tensor:
        attention = self.self_attn(self.input_layernorm(x), s)
        h, x = self.post_attention_layernorm(attention, residual=x)  # x + attention, and its norm, in one pass
        return x + self.mlp(h, s)


class Embedding(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.probe_clock: AbstractContextManager[None] = nullcontext()

    def forward(
        self, tokens: Tensor | None, unique: Tensor | None, order: Tensor, offsets: Tensor, probe_tokens: list[Tensor]
    ) -> tuple[Tensor | None, list[Tensor]]:
        if tokens is not None and unique is None:  # sampling: there is no backward to come
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
    """The name space `model.` of a checkpoint. `Transformer.forward` runs its parts."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Block(config, kernels) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, backend=kernels.rms_norm)


class Transformer(nn.Module):
    """Llama-3 / Qwen-3 as log-probs, or with a scalar head as values: `model(pack, probes) -> Scores`.

    Built uninitialised (on the meta device if that is current); `weights.load_into` fills it. Under FSDP only this
    root `forward` gathers weights: score through it, never through a submodule.
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
        self._frequencies: Tensor | None = None  # made on the first forward's device, where they stay

    def time_probes(self, clock: AbstractContextManager[None]) -> None:
        """Enter `clock` around all that a forward does for its probes."""
        for block in self.blocks:
            block.probe_clock = clock
        self.model.embed_tokens.probe_clock = clock
        if self.config.head == "causal":
            self.lm_head.probe_clock = clock

    @property
    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return [block for block in self.model.layers if isinstance(block, Block)]

    def forward(
        self,
        pack: Pack | None,  # the training stream
        probes: Pack | Sequence[Pack] | None = None,  # scored without grad, one pack after another
        entropy: bool = False,
    ) -> Scores:
        """Log-probs of every scored token of `pack`, and of `probes` without grad; of a scalar model its value at
        every token of `pack`. See `Scores`."""
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

        # only the rows that predict a scored token go on to the norm and the head
        rows = None
        if pack is not None and x is not None:
            rows = self.model.norm(gather_rows(x, pack.rows, pack.rows_inverse.order, pack.rows_inverse.offsets))
        probe_rows: list[Tensor] = []
        if probe_packs:
            with torch.no_grad(), self.lm_head.probe_clock:
                for px, p in zip(probe_x, probe_packs, strict=True):
                    probe_rows.append(self.model.norm(px.index_select(0, p.rows)))
        targets = None if pack is None else pack.targets
        return self.lm_head(rows, targets, probe_rows, [p.targets for p in probe_packs], entropy)

    @torch.no_grad()
    def decode(self, tokens: Tensor, stream: Stream, caches: Sequence[Cache], draw: Draw | None) -> Drawn | None:
        """Run `tokens` [T] int64; in each layer their keys and values go into its cache. With `draw`, the token that
        follows each one, as `draw` takes it from the head's logits; without, the caches are filled and that is all."""
        x, _ = self.model.embed_tokens(tokens, None, None, None, [])
        for layer, cache in zip(self.model.layers, caches, strict=True):
            x, _ = layer(x, stream._replace(cache=cache), [], [])
        return None if draw is None else self.lm_head(self.model.norm(x), None, [], [], False, draw)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:  # [T] -> twice [T, head_dim / 2] fp32
        """Cosines and sines of the rotary embedding."""
        if self._frequencies is None:
            self._frequencies = rope_frequencies(self.config).to(self.model.embed_tokens.weight.device)
        angles = positions.float()[:, None] * self._frequencies
        return angles.cos(), angles.sin()

    def _stream(self, pack: Pack) -> Stream:
        inverse = pack.kv_inverse
        return Stream(
            *self.angles(pack.positions), pack.cu_seqlens_q, pack.cu_seqlens_k, pack.max_q, pack.max_k,
            pack.lengths, pack.kv_index,
            None if inverse is None else inverse.order, None if inverse is None else inverse.offsets,
        )  # fmt: skip
