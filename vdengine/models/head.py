"""The output head: hidden rows and target ids in, log-probs out. Logits never leave `linear_logprob`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdengine.kernels.linear_logprob import Scored, linear_logprob


class Scores(NamedTuple):
    """What a forward returns. A scored token is a (row, target) pair of the pack, in the pack's order."""

    logp: Tensor  # [R] fp32, differentiable: log p of each scored branch token; [0] without a pack
    entropy: Tensor | None  # [R] fp32, nats; None unless asked for
    probe_logp: Tensor | None  # [P] fp32, no grad: the probe packs' scored tokens, pack after pack
    values: Tensor | None = None  # [T] fp32, differentiable: a scalar model's, at every token; then logp is empty


class Drawn(NamedTuple):
    """Tokens sampled by the head, one for each row."""

    tokens: Tensor  # [T] int64
    logp: Tensor  # [T] fp32


Draw = Callable[[Tensor, Tensor], Drawn]  # (hidden rows [T, H], the head's weight [V, H])


class ScalarHead(nn.Module):
    """`score` of Hugging Face's sequence classification with one label. An FSDP unit of its own, in fp32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:  # [T, H] -> [T] fp32
        return torch.mv(hidden.float(), self.weight[0].float())


class Head(nn.Module):
    """`lm_head`. An FSDP unit of its own, or with the embedding when their weight is tied."""

    def __init__(
        self, vocab_size: int, hidden_size: int, saved_bytes: int | None = None, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.saved_bytes, self.backend = saved_bytes, backend
        self.temperature = 1.0  # divides the logits of the training stream: PPO's, that of its samples; never probes'
        self.probe_clock: AbstractContextManager[None] = nullcontext()

    def forward(
        self,
        hidden: Tensor | None,  # [R, H]
        targets: Tensor | None,  # [R] int64
        probe_hidden: list[Tensor],  # each [P_i, H]
        probe_targets: list[Tensor],  # each [P_i] int64
        entropy: bool,
        draw: Draw | None = None,  # sample instead: a token after each hidden row
    ) -> Scores | Drawn:
        if draw is not None and hidden is not None:
            return draw(hidden, self.weight)
        logp, ent, probe_logp = torch.empty(0, device=self.weight.device), None, None
        if hidden is not None and targets is not None:
            out = linear_logprob(
                hidden, self.weight, targets, temperature=self.temperature, entropy=entropy,
                saved_bytes=self.saved_bytes, fp32_weight_grad=True, backend=self.backend,
            )  # fmt: skip
            logp, ent = out if isinstance(out, Scored) else (out, None)
        if probe_hidden:
            # pack by pack, never concatenated: a probe's GEMM shapes, so its bits, are the same in every forward
            with torch.no_grad(), self.probe_clock:
                rows = 512 if self.weight.device.type == "cuda" else None  # 311 MB of logits at a vocabulary of 152k
                each = [
                    linear_logprob(h, self.weight, t, chunk_rows=rows, backend=self.backend)
                    for h, t in zip(probe_hidden, probe_targets, strict=True)
                ]
                probe_logp = torch.cat([x for x in each if isinstance(x, Tensor)])
        return Scores(logp, ent, probe_logp)
