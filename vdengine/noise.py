"""Counted randomness: 64 well-mixed bits for a key and a number, the same on any machine and in any order of asking.

The hash is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), one round for each
word of the key and one for the number. It is written out here, and not a library's, so that it cannot change with a
version. Keys begin with what the bits are for: two uses of one (seed, row) never share them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# What bits are for, besides (seed, step, prompt, sample, position), which is the noise of a sampled token.
ORDER, PART, HELD_OUT, MINIBATCH_ORDER = 1, 2, 3, 4
ANSWERS_NOISE = 0x616E7377  # xor-ed into the seed of sampled answers: rollouts have the same seed and steps

# splitmix64's constants, as the signed integers that torch computes with
_GAMMA, _MIX_1, _MIX_2 = (x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(state: Tensor, word: Tensor | int) -> Tensor:
    """One word more of the hash, on any device. state, word: int64, standing for uint64, of shapes that broadcast."""

    def shifted(x: Tensor, bits: int) -> Tensor:  # torch's >> keeps the sign
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    x = (state ^ word) + _GAMMA
    x = (x ^ shifted(x, 30)) * _MIX_1
    x = (x ^ shifted(x, 27)) * _MIX_2
    return x ^ shifted(x, 31)


def counted_hash(values: np.ndarray | int, *keys: int) -> np.ndarray:
    """The hash of each of `values` [n] int64 under a key: [n] uint64."""
    state = torch.zeros(1, dtype=torch.int64)
    for word in (*keys, values):
        state = mix(state, torch.from_numpy(np.array(word, dtype=np.int64, ndmin=1)))
    return state.numpy().view(np.uint64)


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """[n] float64 in [0, 1), from keys [n] int64 and positions [n] int64. 52 bits: times any total it stays below the
    total."""
    return ((mix(keys, positions) >> 12) & ((1 << 52) - 1)).double() * 2.0**-52


def sample_keys(seed: int, step: int, prompt_ids: Sequence[int], samples: int) -> Tensor:
    """Hash of all but the position of a sampled token: [prompts, samples] int64."""
    state = torch.zeros(1, dtype=torch.int64)
    for word in (seed, step):
        state = mix(state, (word + 2**63) % 2**64 - 2**63)
    return mix(mix(state, torch.tensor(prompt_ids, dtype=torch.int64))[:, None], torch.arange(samples))
