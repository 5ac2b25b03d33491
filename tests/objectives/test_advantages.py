"""Advantages against their definitions written out in float64."""

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor

from vdengine.objectives import gae, group_normalised, kl_penalty, leave_one_out, token_rewards, whiten
from vdengine.objectives.advantages import reward_metrics


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


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_normalised(scale):
    """Guards the group's mean and which deviation divides; a group of equal scores teaches nothing and is no NaN."""
    scores = np.array([[0.0, 1.0, 2.5], [4.0, 4.0, 4.0], [-1.0, 0.25, 8.0]])
    expected = scores - scores.mean(1, keepdims=True)
    if scale != "none":
        deviation = scores.std(1, ddof=1, keepdims=True) if scale == "group" else scores.std(ddof=1)
        expected = expected / (deviation + 1e-4)
    found = group_normalised(as_tensor(scores.ravel()), 3, scale).numpy()
    np.testing.assert_allclose(found, expected.ravel(), rtol=0, atol=16 * EPS * 8)
    assert not found[3:6].any()


def test_leave_one_out():
    """Guards the baseline: the mean of the others, not of all."""
    scores = np.array([[0.0, 1.0, 2.5], [4.0, 4.0, 4.0], [-1.0, 0.25, 8.0]])
    expected = [[row[i] - np.delete(row, i).mean() for i in range(3)] for row in scores]
    found = leave_one_out(as_tensor(scores.ravel()), 3)
    np.testing.assert_allclose(found.numpy(), np.ravel(expected), rtol=0, atol=16 * EPS * 8)
    np.testing.assert_allclose(leave_one_out(as_tensor([1.0, 3.0]), 2).numpy(), [-2.0, 2.0])


def test_reward_metrics():
    """Guards what is said of the rewards as given, and of groups that teach nothing."""
    found = reward_metrics(as_tensor([0.0, 2.0, 1.0, 1.0]), as_tensor([0.0, 1.0, 5.0, 5.0]), 2)
    assert found["reward"] == 1.0 and found["frac_reward_zero_std"] == 0.5
    assert found["reward_std"] == pytest.approx(np.std([0, 2, 1, 1], ddof=1))
