"""The counted hash that orders data and draws tokens."""

import numpy as np
import torch

from vdengine.noise import counted_hash, mix, sample_keys, uniform

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_hash_is_splitmix64():
    """Guards against noise and orders that change with a library or a rewrite: published first outputs of splitmix64
    (seed 1234567)."""
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + i * gamma) % 2**64 for i in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert counted_hash(np.array(states, np.uint64).view(np.int64)).tolist() == expected


def test_noise_is_the_loaders_hash():
    """Guards noise that changes with a library or a device: it is splitmix64, as the data's order is."""
    words = torch.tensor([0, 1, -1, 2**62, -(2**63), 12345], device=DEVICE)
    for seed, step, prompt in ((0, 0, 0), (7, 3, 2), (2**40, 1, 2**31)):
        keys = sample_keys(seed, step, [prompt, 5], 3)
        for k in range(3):
            got = mix(keys[0, k].to(DEVICE), words)
            expected = counted_hash(words.cpu().numpy(), seed, step, prompt, k)
            assert np.array_equal(got.cpu().numpy().view(np.uint64), expected)
            u = uniform(keys[0, k].to(DEVICE), words).cpu().numpy()
            assert np.array_equal(u, (expected >> np.uint64(12)) * 2.0**-52) and (0 <= u).all() and (u < 1).all()
