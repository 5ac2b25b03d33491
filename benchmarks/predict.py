"""The predicted time of a training step on a GPU that never waits for its host, from rates measured on this GPU.

FLOPs take the time of the model's own GEMM shapes, and bytes that of a copy. The bytes of a step, with M micro-steps
over T tokens in L layers of width H, intermediate width I, A = (heads + 2 kv heads) * head_dim, R scored tokens, V the
vocabulary and P parameters:

    copies      FSDP2's on one rank: gathers, casts and gradient adds, 48 B x P x M
    elementwise norms, rotary embedding, SwiGLU, gathers of keys, residual adds, forward, recompute and backward:
                (30 H + 47 I + 64 A) B x T x L
    optimizer   norm 4, clip 8, AdamW 28 and the casts: 45 B x P
    head        6 R V H FLOPs (2 more with a live reference), 12 B per logit of row pass, and the fp32 gradient of the
                tied head and embedding, 8 B x V x H x M

The bytes were counted by dispatching a step on a CPU and adding up what its ops read and write; the three coefficients
of the elementwise line are fitted to these counts for two shapes (Qwen3-0.6B and 4B). Where a measurement differs from
the prediction, the step does other work than assumed here, or the device waits.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION = 0.4  # share of the GEMM rate, for causal segments of a few hundred tokens and a backward in a fixed order


@dataclass(frozen=True)
class Rates:
    """The rates of the device, measured in the same run."""

    gemm: float  # FLOP/s of the layers' GEMMs, with their shapes and rows
    head_gemm: float  # FLOP/s of the head's GEMMs
    copy: float  # bytes/s, read and written


@dataclass(frozen=True)
class Work:
    """The work of an optimizer step."""

    tokens: float  # T, rows that go through the layers
    scored: float  # R
    pairs: float  # (query, key) pairs of a layer's attention
    micro_steps: int
    live: bool  # whether there is a forward of a live reference

    layers: int
    hidden: int
    intermediate: int
    heads: int  # A in units of head_dim: heads + 2 kv heads
    query_heads: int
    head_dim: int
    vocab: int
    parameters: int


def device_seconds(w: Work, r: Rates) -> dict[str, float]:
    """Seconds of each kind of work, and their "total"."""
    attention_width = w.heads * w.head_dim
    q = w.query_heads * w.head_dim
    matrices = w.layers * (w.hidden * (attention_width + q) + 3 * w.hidden * w.intermediate)
    passes = 4 if w.live else 3  # forward 1, backward 2, forward of the reference 1
    bytes_per_token = 30 * w.hidden + 47 * w.intermediate + 64 * attention_width
    logits = w.scored * w.vocab
    seconds = {
        "linear GEMMs": passes * 2 * matrices * w.tokens / r.gemm,
        "copies": 48 * w.parameters * w.micro_steps / r.copy,
        "elementwise": bytes_per_token * w.tokens * w.layers / r.copy,
        "optimizer": 45 * w.parameters / r.copy,
        # scores and values: 4 x head width FLOPs per pair in forward, 2.5 times that in backward
        "attention": (3.5 + w.live) * 4 * w.layers * q * w.pairs / (ATTENTION * r.gemm),
        "head": (6 + 2 * w.live) * logits * w.hidden / r.head_gemm + 12 * logits * (1 + w.live / 3) / r.copy,
        "head gradient": 8 * w.vocab * w.hidden * w.micro_steps / r.copy,
    }
    return seconds | {"total": sum(seconds.values())}
