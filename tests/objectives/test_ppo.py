"""PPO's parts against their definitions written out in float64."""

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor

from vdengine.objectives import (
    adapt_kl_coef,
    gae,
    kl_penalty,
    ppo,
    token_rewards,
    value_loss,
    whiten,
)


def ragged(seed=0, lengths=(1, 7, 3, 12, 1, 7)):
    """Offsets [B+1] of completions of these lengths, and float64 numbers per token that fp32 holds exactly."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    draw = lambda: rng.standard_normal(offsets[-1]).astype(np.float32).astype(np.float64)  # noqa: E731
    return offsets, draw


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_by_its_definition(gamma, lam):
    """Guards the recursion, its ends and its order over ragged completions: the sum of the paper, term by term."""
    offsets, draw = ragged()
    rewards, values = draw(), draw()
    expected = np.zeros_like(rewards)
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        v = np.append(values[start:end], 0.0)
        delta = rewards[start:end] + gamma * v[1:] - v[:-1]
        for t in range(end - start):
            expected[start + t] = sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:]))
    advantages, returns = gae(as_tensor(rewards), as_tensor(values), torch.tensor(offsets), gamma, lam)
    # at most 12 terms of a few units each
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=0, atol=12 * 8 * EPS * np.abs(expected).max())
    np.testing.assert_allclose(returns.numpy(), expected + values, rtol=0, atol=12 * 8 * EPS * np.abs(expected).max())
    if (gamma, lam) == (1.0, 1.0):  # then a return is the sum of the rewards to come
        to_come = [rewards[t : offsets[np.searchsorted(offsets, t, "right")]].sum() for t in range(offsets[-1])]
        np.testing.assert_allclose(returns.numpy(), to_come, atol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_token_rewards(estimator):
    """Guards the penalty's sign and the score's place: with the last token, once."""
    offsets, draw = ragged(1)
    logp, reference, scores = draw(), draw(), np.arange(1.0, len(offsets))
    kl = logp - reference if estimator == "k1" else np.exp(reference - logp) - 1 - (reference - logp)
    expected = -0.3 * kl
    expected[offsets[1:] - 1] += scores
    found = kl_penalty(as_tensor(logp), as_tensor(reference), estimator)
    rewards = token_rewards(0.3 * found, as_tensor(scores), torch.tensor(offsets))
    np.testing.assert_allclose(rewards.numpy(), expected, rtol=8 * EPS, atol=8 * EPS * np.exp(np.abs(logp).max() * 2))
    assert estimator == "k1" or (found >= 0).all()


@pytest.mark.parametrize("shift", [True, False])
def test_whitening(shift):
    """Guards the moments, over all tokens of the batch; one token alone is no reason for a NaN."""
    x = ragged(2)[1]() * 3 + 5
    expected = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-8) + (0.0 if shift else x.mean())
    np.testing.assert_allclose(whiten(as_tensor(x), shift).numpy(), expected, rtol=0, atol=64 * EPS * 10)
    assert torch.isfinite(whiten(as_tensor([3.0]), shift)).all()


def test_clipped_losses_by_cases():
    """Guards which side is taken: every combination of advantage's sign and a ratio inside, below and above."""
    ratio = np.array([1.0, 0.5, 0.9, 1.1, 2.0] * 2)
    advantages = np.array([2.0] * 5 + [-2.0] * 5)
    expected = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.8, 1.2))
    logp = as_tensor(np.log(ratio) - 3.0).requires_grad_()
    losses, metrics = ppo(logp, as_tensor(np.full(10, -3.0)), as_tensor(advantages), cliprange=0.2)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=32 * EPS)
    (gradient,) = torch.autograd.grad(losses.sum(), logp)
    # a clipped token that would gain from going on has no gradient; one that is to come back has
    still = (ratio == 2.0) & (advantages > 0) | (ratio == 0.5) & (advantages < 0)
    np.testing.assert_allclose(gradient.numpy(), np.where(still, 0.0, -advantages * ratio), rtol=32 * EPS)
    np.testing.assert_array_equal(metrics["policy/clipfrac_avg"].numpy(), still)
    np.testing.assert_allclose(metrics["val/ratio"].numpy(), ratio, rtol=8 * EPS)
    np.testing.assert_allclose(metrics["policy/approxkl_avg"].numpy(), np.log(ratio) ** 2 / 2, atol=16 * EPS)

    values, old, returns = (np.array(x) for x in ([0.1, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, -5.0]))
    near = old + np.clip(values - old, -0.2, 0.2)
    losses, metrics = value_loss(as_tensor(values), as_tensor(old), as_tensor(returns), cliprange=0.2)
    np.testing.assert_allclose(
        losses.numpy(), 0.5 * np.maximum((values - returns) ** 2, (near - returns) ** 2), rtol=1e-6
    )
    np.testing.assert_array_equal(metrics["val/clipfrac_avg"].numpy(), [0, 1, 0, 0])


def test_adaptive_kl():
    """Guards direction, bounds and rate: at most a fifth for a horizon of completions."""
    assert adapt_kl_coef(0.1, 6.0, 6.0, 1000, 10_000) == 0.1
    assert adapt_kl_coef(0.1, 60.0, 6.0, 10_000, 10_000) == pytest.approx(0.12)
    assert adapt_kl_coef(0.1, 0.0, 6.0, 5_000, 10_000) == pytest.approx(0.09)
    assert adapt_kl_coef(0.1, 6.6, 6.0, 10_000, 10_000) == pytest.approx(0.11)
