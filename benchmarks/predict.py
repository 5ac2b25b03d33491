"""What a training step should take on a GPU that never waits for its host, from rates measured on that GPU.

FLOPs at the rate of the model's own GEMM shapes, and bytes at the rate of a copy. How many bytes, per step of M micro
steps over T tokens in L layers of width H, intermediate width I and A = heads + 2 kv heads times head_dim, R scored
tokens, V the vocabulary and P parameters:

    copies      FSDP2's at world size 1: gathers, casts and gradient adds, 48 B x P x M
    elementwise norms, rotary embedding, SwiGLU, gathers of keys, residual adds, forward, recompute and backward:
                (30 H + 47 I + 64 A) B x T x L
    optimizer   norm 4, clip 8, AdamW 28 and the casts: 45 B x P
    head        6 R V H FLOPs (and 2 more with a live reference), 12 B a logit of row pass, and the fp32 gradient of the
                tied head and embedding, 8 B x V x H x M

The bytes come from dispatching a step on a CPU and adding up what its ops read and write; the elementwise line sums up
such counts of two shapes (Qwen3-0.6B and 4B) in three coefficients. It is a prediction: it stands beside what was
measured, and where the two part the step is not what it was thought to be, or the device waits.
"""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION = 0.4  # of the GEMM rate: causal segments of a few hundred tokens, backward in a fixed order


@dataclass(frozen=True)
class Rates:
    """Of the device at hand, measured in the same run."""

    gemm: float  # FLOP/s of the layers' GEMMs, their shapes and number of rows
    head_gemm: float  # FLOP/s of the head's
    copy: float  # bytes/s, read and written


@dataclass(frozen=True)
class Work:
    """One optimizer step."""

    tokens: float  # T, rows of the trunk
    scored: float  # R
    pairs: float  # (query, key) pairs that attend, in a layer
    micro_steps: int
    live: bool  # a reference model's forward beside the policy's

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
    passes = 4 if w.live else 3  # forward, and twice that backward; the reference's forward
    bytes_a_token = 30 * w.hidden + 47 * w.intermediate + 64 * attention_width
    logits = w.scored * w.vocab
    found = {
        "linear GEMMs": passes * 2 * matrices * w.tokens / r.gemm,
        "copies": 48 * w.parameters * w.micro_steps / r.copy,
        "elementwise": bytes_a_token * w.tokens * w.layers / r.copy,
        "optimizer": 45 * w.parameters / r.copy,
        # scores and values: 4 x head width a pair forward, 2.5 times that backward
        "attention": (3.5 + w.live) * 4 * w.layers * q * w.pairs / (ATTENTION * r.gemm),
        "head": (6 + 2 * w.live) * logits * w.hidden / r.head_gemm + 12 * logits * (1 + w.live / 3) / r.copy,
        "head gradient": 8 * w.vocab * w.hidden * w.micro_steps / r.copy,
    }
    return found | {"total": sum(found.values())}
