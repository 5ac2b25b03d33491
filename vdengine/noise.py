"""Counter-based random numbers: 64 bits from a hash of a key and a number, the same on any machine and in any order of
calls.

The hash is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), one round for each
word of the key and one for the number. It is written out here so that it cannot change with the version of a library. A
key begins with a constant for its purpose, so two purposes never share the bits of one (seed, row).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Purposes of the bits, the first word of a key. The key of a sampled token's noise has none: it is (seed, step, prompt,
# sample, position).
ORDER, PART, HELD_OUT, MINIBATCH_ORDER, JUDGED = 1, 2, 3, 4, 5
ADAPTER, DROPOUT = 6, 7
ANSWERS_NOISE = 0x616E7377  # xor-ed into the seed of sampled answers, because rollouts have the same seed and steps

# splitmix64's constants as the signed integers that torch computes with.
_GAMMA, _MIX_1, _MIX_2 = (x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(state: Tensor, word: Tensor | int) -> Tensor:
    """One round of the hash: the state after one more word of the key, on any device.

    state and word are int64 that stand for uint64, of shapes that broadcast; the result has the broadcast shape.
    """

    def shifted(x: Tensor, bits: int) -> Tensor:  # a logical shift; torch's >> is arithmetic
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    x = (state ^ word) + _GAMMA
    x = (x ^ shifted(x, 30)) * _MIX_1
    x = (x ^ shifted(x, 27)) * _MIX_2
    return x ^ shifted(x, 31)


def counted_hash(values: np.ndarray | int, *keys: int) -> np.ndarray:
    """The hash of each of `values` [n] int64 under the key `keys`: [n] uint64."""
    state = torch.zeros(1, dtype=torch.int64)
    for word in (*keys, values):
        state = mix(state, torch.from_numpy(np.array(word, dtype=np.int64, ndmin=1)))
    return state.numpy().view(np.uint64)


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers [n] float64 in [0, 1), from keys [n] int64 and positions [n] int64. They have 52 bits, so their
    product with any total is below the total."""
    return ((mix(keys, positions) >> 12) & ((1 << 52) - 1)).double() * 2.0**-52


def sample_keys(seed: int, step: int, prompt_ids: Sequence[int], samples: int) -> Tensor:
    """The keys of sampled tokens without their positions, for `uniform`: [prompts, samples] int64."""
    state = torch.zeros(1, dtype=torch.int64)
    for word in (seed, step):
        state = mix(state, (word + 2**63) % 2**64 - 2**63)
    return mix(mix(state, torch.tensor(prompt_ids, dtype=torch.int64))[:, None], torch.arange(samples))
