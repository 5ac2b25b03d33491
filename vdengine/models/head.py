"""The output heads: from hidden rows and target ids to log-probs, or to a scalar a token.

The logits of a forward stay within the kernel `linear_logprob`; no tensor of them is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdengine.kernels.linear_logprob import Scored, linear_logprob


class Scores(NamedTuple):
    """What a forward returns: T tokens and R scored tokens of the pack, P scored tokens of the probe packs.

    A scored token is a (row, target) pair of its pack, in the pack's order.
    """

    logp: Tensor  # [R] fp32, nats, differentiable: log p of each scored token; [0] without a pack
    entropy: Tensor | None  # [R] fp32, nats, of the whole vocabulary at each scored token; None unless asked for
    probe_logp: Tensor | None  # [P] fp32, nats, without grad: scored tokens of the probe packs, one after another
    values: Tensor | None = None  # [T] fp32, differentiable: a scalar model's value at every token; then logp is empty


class Drawn(NamedTuple):
    """Tokens sampled by the head, one for each row."""

    tokens: Tensor  # [T] int64
    logp: Tensor  # [T] fp32, nats


Draw = Callable[[Tensor, Tensor], Drawn]  # of hidden rows [T, H] and the head's weight [V, H]


class ScalarHead(nn.Module):
    """The head `score` of Hugging Face's sequence classification with one label. An FSDP unit of its own, in fp32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:  # [T, H] -> [T] fp32
        """The scalar of every token, computed in fp32."""
        return torch.mv(hidden.float(), self.weight[0].float())


class Head(nn.Module):
    """The head `lm_head` of a language model. An FSDP unit of its own, or together with the embedding if tied to it.

    Args:
        saved_bytes, backend: of `linear_logprob`.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, saved_bytes: int | None = None, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.saved_bytes, self.backend = saved_bytes, backend
        # Divides the logits of the training stream: PPO sets it to its sampling temperature. Probes are scored at 1.
        self.temperature = 1.0
        self.probe_clock: AbstractContextManager[None] = nullcontext()

    def forward(
        self,
        hidden: Tensor | None,  # [R, H]
        targets: Tensor | None,  # [R] int64
        probe_hidden: list[Tensor],  # each [P_i, H]
        probe_targets: list[Tensor],  # each [P_i] int64
        entropy: bool,
        draw: Draw | None = None,
    ) -> Scores | Drawn:
        """Log-probs of the targets, and their entropies if `entropy`; with `draw` and hidden rows, a token sampled
        after each row instead."""
        if draw is not None and hidden is not None:
            return draw(hidden, self.weight)
        logp, entropies, probe_logp = torch.empty(0, device=self.weight.device), None, None
        if hidden is not None and targets is not None:
            out = linear_logprob(
                hidden,
                self.weight,
                targets,
                temperature=self.temperature,
                entropy=entropy,
                saved_bytes=self.saved_bytes,
                fp32_weight_grad=True,
                backend=self.backend,
            )
            logp, entropies = out if isinstance(out, Scored) else (out, None)
        if probe_hidden:
            # One call per pack, without concatenation: the GEMM shapes of a probe, and so its bits, are the same in
            # every forward.
            with torch.no_grad(), self.probe_clock:
                chunk_rows = 512 if self.weight.device.type == "cuda" else None  # 311 MB of logits at V = 152k
                scores = [
                    linear_logprob(h, self.weight, t, chunk_rows=chunk_rows, backend=self.backend)  # [P_i]
                    for h, t in zip(probe_hidden, probe_targets, strict=True)
                ]
                probe_logp = torch.cat([logp_i for logp_i in scores if isinstance(logp_i, Tensor)])  # [P]
        return Scores(logp, entropies, probe_logp)
