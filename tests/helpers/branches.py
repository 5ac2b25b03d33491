"""Sums of log-probs by branch, for objectives."""

import numpy as np
import torch

EPS = 2.0**-23


def branch_sums(seed=0, pairs=6, scale=40.0):
    """[2 pairs] float64: negative sums of log-probs; exact in fp32, so both formulas see the same numbers."""
    x = -scale * np.random.default_rng(seed).random(2 * pairs)
    return x.astype(np.float32).astype(np.float64)


def softplus(x):
    """log(1 + e^x) without overflow: -log sigmoid(-x)."""
    return np.logaddexp(0.0, x)


def as_tensor(x, dtype=torch.float32):
    return torch.tensor(x, dtype=dtype)
