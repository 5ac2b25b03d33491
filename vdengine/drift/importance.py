"""Diagnostics of importance weights: whether answers drawn from earlier weights of the model still tell of it now.

With l0 and l the log-prob sums of an answer when it was drawn and now, its weight is w = exp(l - l0). What is estimated
with the weights is in `drift/reweighting.py`.

A gate that looks at the weights which it then lets through selects among them, towards no shift: simulated with 24
probes x 16 answers, shifts are 6% too small where it opens in 45% of draws, 14% where in 4%. So there are two gates,
each over a half of the answers, and a half counts where the other half's gate is open: 2% too large to 1% too small
there, and as precise as before where both are always open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_KL = 0.5  # nats an answer; above it 16 fresh answers a probe tell more than 16 weighted ones
MIN_ESS = 0.7  # of the pooled effective sample size, as a share of the answers; there they vary 3 times less than fresh
MAX_PARETO_K = 0.5  # tail index of the weights; above it their variance is not finite


MIN_ANSWERS = 50  # the tail of either half, a fifth of it, then has the five weights that `pareto_k` needs


@dataclass(frozen=True)
class Gate:
    """Whether weights still reach from the anchor to now: a gate is open where KL, ESS and Pareto k are in range."""

    kl: float  # KL(anchor || now), nats an answer: mean of l0 - l over all answers
    ess: float  # effective sample size of all weights pooled (Kish 1965), as a share of their number
    pareto_k: float  # of the pooled weights' tail (Vehtari et al., arXiv 1507.02646)
    mean_weight: float  # around 1; far below: most of what is likely now was never drawn
    halves: tuple[bool, bool]  # whether the gates are open over the answers at even places and over those at odd ones

    @property
    def open(self) -> bool:
        """The reading counts, or at least half of it."""
        return any(self.halves)


def gate(baseline: np.ndarray, now: np.ndarray) -> Gate:
    """Diagnostics of a bank's weights, pooled over probes.

    Pooled, because within one probe the effective size cannot fall below 1, which makes it look better than it is.

    Args:
        baseline, now: [answers] float, log-prob sums in nats: at the anchor, and under the weights now.
    """
    log_weights = now.astype(np.float64) - baseline.astype(np.float64)
    even, odd = (_in_range(*_diagnostics(log_weights[k::2])) for k in (0, 1))
    return Gate(*_diagnostics(log_weights), float(np.exp(log_weights).mean()), (even, odd))


def _diagnostics(log_weights: np.ndarray) -> tuple[float, float, float]:
    """KL, ESS and Pareto k, as `Gate` has them, of log weights [answers] in nats; NaN without any."""
    if not log_weights.size:
        return math.nan, math.nan, math.nan
    weights = np.exp(log_weights - log_weights.max())  # scaled: ESS and Pareto k do not depend on a common factor
    ess = float(weights.sum() ** 2 / (weights**2).sum() / weights.size)
    return float(-log_weights.mean()), ess, pareto_k(weights)


def _in_range(kl: float, ess: float, pareto_k: float) -> bool:
    """Whether a gate with these diagnostics is open; a NaN closes it."""
    return bool(kl < MAX_KL and ess >= MIN_ESS and pareto_k < MAX_PARETO_K)


def closed_because(kl: float, ess: float, pareto_k: float) -> str:
    """Why a gate with these diagnostics of all answers is closed. NaN: could not be computed."""
    reasons = []
    if not kl < MAX_KL:
        reasons.append(f"KL {kl:.2f} is not below {MAX_KL}" if math.isfinite(kl) else "KL is not a number")
    if not ess >= MIN_ESS:
        reasons.append(f"ESS {ess:.0%} is below {MIN_ESS:.0%}" if math.isfinite(ess) else "ESS is not a number")
    if math.isnan(pareto_k):
        reasons.append(f"Pareto k cannot be computed from so few answers: it takes {MIN_ANSWERS}")
    elif not pareto_k < MAX_PARETO_K:
        reasons.append(f"Pareto k {pareto_k:.2f} is not below {MAX_PARETO_K}")
    return "; ".join(reasons) or "neither half of the answers is in range by itself"


def pareto_k(weights: np.ndarray) -> float:
    """Shape k of a generalised Pareto distribution fitted to the tail of `weights` [n] float64, all positive.

    The tail is the largest min(n / 5, 3 sqrt(n)) weights (Vehtari et al., arXiv 1507.02646), the fit the quasi-Bayesian
    one of Zhang and Stephens (Technometrics 51, 2009). Weights that do not differ have no tail: 0. Fewer than five
    weights in the tail are too few: NaN.
    """
    ordered = np.sort(weights)
    count = int(min(ordered.size / 5, 3 * math.sqrt(ordered.size)))
    if ordered[-1] - ordered[0] <= 1e-6 * ordered[-1]:
        return 0.0
    if count < 5:
        return math.nan
    # Exceedances over the largest weight below the tail, [n] ascending; ties with it are left out.
    tail = ordered[-count:] - ordered[-count - 1]
    tail = tail[tail > 0]
    if tail.size < 5:
        return 0.0
    n = tail.size
    # Zhang and Stephens's grid of theta = -k / sigma, sigma the scale; its spacing is their prior. [grid]
    grid_size = 30 + int(math.sqrt(n))
    quartile = tail[int(n / 4 + 0.5) - 1]
    theta = 1 / tail[-1] + (1 - np.sqrt(grid_size / (np.arange(1, grid_size + 1) - 0.5))) / (3 * quartile)
    # The shape that maximises the likelihood for each theta, and the profile log-likelihood there, [grid] each.
    k = np.log1p(-theta[:, None] * tail).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = n * (np.log(-theta / k) - k - 1)
    profile = np.where(np.isfinite(profile), profile, -np.inf)
    # The posterior mean of theta, and the shape that maximises the likelihood there.
    posterior = np.exp(profile - profile.max())
    mean_theta = float((theta * posterior).sum() / posterior.sum())
    return float(np.log1p(-mean_theta * tail).mean())
