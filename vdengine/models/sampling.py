"""How tokens are sampled: the settings, the result for one row, and the draw from the head's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vdengine.kernels.sample import sample
from vdengine.kernels.thin_linear import thin_linear
from vdengine.models.head import Drawn


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the temperature is applied first, then only the `top_k` likeliest tokens are kept, then of
    these the fewest that together have probability `top_p`. Of equally likely tokens those with the lower ids are kept,
    so exactly k tokens are.

    Raises:
        ValueError: a value out of range; it names the field.
    """

    max_tokens: int = 256
    temperature: float = 1.0  # 0: greedy, the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"Sampling: max_tokens must be >= 1; got {self.max_tokens}")
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"Sampling: temperature must be 0 (greedy) or in [1e-6, 1e6]; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p must be in (0, 1]; got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"Sampling: top_k must be >= 0 (0: all); got {self.top_k}")


class Completion(NamedTuple):
    """The tokens sampled after one prompt."""

    tokens: list[int]  # with the stop token, if one ended the row; never empty
    logp: list[float]  # nats, log p of each token at the sampling temperature (1 if greedy) over the whole vocabulary
    stopped: bool  # a stop token ended the row, and not max_tokens


def draw(
    hidden: Tensor,  # [n, H]
    weight: Tensor,  # [V, H], of the head
    noise: Tensor,  # [n] float64, uniform in [0, 1)
    s: Sampling,
    backend: str,
) -> Drawn:  # n tokens
    """One token for each row, from fp32 logits."""
    backend = "reference" if backend == "reference" else "auto"
    (logits,) = thin_linear(hidden, weight, dtype=torch.float32, backend=backend)  # [n, V]
    return Drawn(*sample(logits, noise, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, backend=backend))
