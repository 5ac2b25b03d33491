"""Importance weights of answers that were drawn from earlier weights, and whether they can be trusted.

With l0 and l the log-prob sums of an answer when it was drawn and now, w = exp(l - l0). What is estimated with them is
in `drift/readings.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_KL = 0.5  # nats an answer; above it 16 fresh answers a probe tell more than 16 weighted ones
MIN_ESS = 0.7  # of the pooled effective sample size, as a share of the answers; there they vary 3 times less than fresh
MAX_PARETO_K = 0.5  # tail index of the weights; above it their variance is not finite


@dataclass(frozen=True)
class Gate:
    """Whether weights still reach from the anchor to now. `open`: KL, ESS and Pareto k are all in range."""

    kl: float  # KL(anchor || now), nats an answer: mean of l0 - l over the answers
    ess: float  # Kish's effective sample size of all weights pooled, as a share of their number
    pareto_k: float  # of the pooled weights' tail (Vehtari et al., arXiv 1507.02646)
    open: bool
    mean_weight: float  # around 1; far below: most of what is likely now was never drawn


def gate(baseline: np.ndarray, now: np.ndarray) -> Gate:
    """Diagnostics of a bank's weights, pooled over probes: within one probe the effective size cannot fall below 1,
    which flatters. baseline, now: [answers] log-prob sums."""
    log_w = now.astype(np.float64) - baseline.astype(np.float64)
    w = np.exp(log_w - log_w.max())
    kl, ess = float(-log_w.mean()), float(w.sum() ** 2 / (w**2).sum() / w.size)
    k = pareto_k(w)
    reach = bool(kl < MAX_KL and ess >= MIN_ESS and k < MAX_PARETO_K)  # a NaN closes it
    return Gate(kl, ess, k, reach, float(np.exp(log_w).mean()))


def pareto_k(weights: np.ndarray) -> float:
    """Shape of the generalised Pareto distribution of the largest min(n / 5, 3 sqrt(n)) weights, by the posterior mean
    of Zhang and Stephens (Technometrics 51, 2009). Weights that do not differ have no tail: 0. Fewer than five in the
    tail tell nothing: NaN."""
    w = np.sort(weights)
    count = int(min(w.size / 5, 3 * math.sqrt(w.size)))
    if w[-1] - w[0] <= 1e-6 * w[-1]:
        return 0.0
    if count < 5:
        return math.nan
    x = w[-count:] - w[-count - 1]
    x = x[x > 0]
    if x.size < 5:
        return 0.0
    n = x.size
    grid = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-theta[:, None] * x).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = n * (np.log(-theta / k) - k - 1)
    profile = np.where(np.isfinite(profile), profile, -np.inf)
    posterior = np.exp(profile - profile.max())
    best = float((theta * posterior).sum() / posterior.sum())
    return float(np.log1p(-best * x).mean())
