"""Objectives against float64 formulas written out in NumPy, at ordinary and extreme margins, and their gradients.

Tolerance: fp32 results may be off by 8 units in the last place of the largest intermediate (a branch sum): four
subtractions and a multiplication, each rounded once.
"""

import numpy as np
import pytest
import torch

from vdengine.objectives import (
    adapt_kl_coef,
    dpo,
    gae,
    kl_penalty,
    ppo,
    reward,
    sft,
    simpo,
    token_rewards,
    value_loss,
    whiten,
)

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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.05, 0.1, 5.0])
@pytest.mark.parametrize("with_reference", [True, False])
def test_dpo_formula(beta, smoothing, with_reference):
    """Guards against a swapped sign, pair order, beta or smoothing term; and metrics that are not TRL's."""
    policy, reference = branch_sums(0), branch_sums(1) if with_reference else np.zeros(12)
    ratio = policy - reference
    chosen, rejected = beta * ratio[0::2], beta * ratio[1::2]
    margin = chosen - rejected
    expected = (1 - smoothing) * softplus(-margin) + smoothing * softplus(margin)
    losses, metrics = dpo(
        as_tensor(policy), as_tensor(reference) if with_reference else None, beta=beta, label_smoothing=smoothing
    )
    atol = 8 * EPS * beta * 40
    np.testing.assert_allclose(losses.numpy(), expected, rtol=8 * EPS, atol=atol)
    np.testing.assert_allclose(metrics["rewards/chosen"].numpy(), chosen, atol=atol)
    np.testing.assert_allclose(metrics["rewards/rejected"].numpy(), rejected, atol=atol)
    np.testing.assert_allclose(metrics["rewards/margins"].numpy(), margin, atol=atol)
    np.testing.assert_array_equal(metrics["rewards/accuracies"].numpy(), margin > 0)
    np.testing.assert_array_equal(metrics["logps/chosen"].numpy(), policy[0::2])
    np.testing.assert_array_equal(metrics["logps/rejected"].numpy(), policy[1::2])


def test_dpo_at_step_zero():
    """Guards DPO's known start: policy = reference gives a loss of ln 2, margins of exactly 0, no pair "accurate"."""
    policy = as_tensor(branch_sums())
    losses, metrics = dpo(policy, policy.clone(), beta=0.1)
    assert torch.equal(losses, torch.full_like(losses, np.log(2.0)))
    assert not metrics["rewards/margins"].any() and not metrics["rewards/accuracies"].any()


def test_dpo_does_not_differentiate_metrics():
    """Guards against metrics that keep the graph, and so every activation, alive."""
    policy = as_tensor(branch_sums()).requires_grad_()
    lengths = torch.full((12,), 3)
    for _, metrics in (dpo(policy, None, beta=0.1), simpo(policy, lengths, beta=2.0, gamma_beta_ratio=0.5)):
        assert metrics and not any(m.requires_grad for m in metrics.values())


@pytest.mark.parametrize("beta, ratio", [(2.0, 0.5), (2.5, 0.55), (10.0, 0.3), (2.0, 0.0)])
def test_simpo_formula(beta, ratio):
    """Guards against the absolute-gamma parameterisation, and averages over the wrong length."""
    policy = branch_sums()
    lengths = np.random.default_rng(3).integers(1, 50, 12)
    average = policy / lengths
    expected = softplus(-beta * (average[0::2] - average[1::2] - ratio))
    losses, metrics = simpo(as_tensor(policy), torch.tensor(lengths), beta=beta, gamma_beta_ratio=ratio)
    atol = 8 * EPS * beta * 40
    np.testing.assert_allclose(losses.numpy(), expected, rtol=8 * EPS, atol=atol)
    np.testing.assert_allclose(metrics["rewards/chosen"].numpy(), beta * average[0::2], atol=atol)
    np.testing.assert_allclose(metrics["rewards/margins"].numpy(), beta * (average[0::2] - average[1::2]), atol=atol)
    np.testing.assert_array_equal(metrics["logps/rejected"].numpy(), policy[1::2])


def test_simpo_survives_a_branch_without_scored_tokens():
    """Guards against 0 / 0: an empty branch must give a finite loss and gradient, not poison the batch."""
    policy = as_tensor([0.0, -3.0, -5.0, 0.0]).requires_grad_()
    losses, metrics = simpo(policy, torch.tensor([0, 3, 5, 0]), beta=2.0, gamma_beta_ratio=0.5)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(policy.grad).all()
    assert torch.isfinite(metrics["rewards/margins"]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_margins_stay_finite(smoothing):
    """Guards against log(sigmoid(x)) and exp overflow: margins of +-1e4 have exact linear limits."""
    policy = as_tensor([0.0, -1e4, -1e4, 0.0]).requires_grad_()
    losses, metrics = dpo(policy, torch.zeros(4), beta=1.0, label_smoothing=smoothing)
    losses.sum().backward()
    # -log sigmoid(1e4) is 0 and -log sigmoid(-1e4) is 1e4, to fp32
    expected = torch.tensor([smoothing * 1e4, (1 - smoothing) * 1e4])
    torch.testing.assert_close(losses.detach(), expected, rtol=4 * EPS, atol=0)
    # d loss / d chosen of the two pairs: e, and -(1 - e)
    torch.testing.assert_close(policy.grad[[0, 2]], torch.tensor([smoothing, smoothing - 1]), rtol=4 * EPS, atol=EPS)
    assert metrics["rewards/margins"].tolist() == [1e4, -1e4]

    policy = as_tensor([0.0, -1e4, -1e4, 0.0]).requires_grad_()
    losses, _ = simpo(policy, torch.ones(4), beta=1.0, gamma_beta_ratio=0.5)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(policy.grad).all()
    assert losses[1] == 1e4 + 0.5


def test_sft_is_the_negative_sum():
    """Guards against a mean of means: each branch keeps its own sum, the trainer divides once."""
    policy = as_tensor(branch_sums(), torch.float64).requires_grad_()
    losses, _ = sft(policy)
    assert torch.equal(losses, -policy)
    losses.sum().backward()
    assert torch.equal(policy.grad, torch.full_like(policy, -1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("with_reference", [True, False])
def test_gradients_by_finite_differences(smoothing, with_reference):
    """Guards against a detached or doubled term in the gradient."""
    policy = as_tensor(branch_sums(scale=3.0), torch.float64).requires_grad_()
    reference = as_tensor(branch_sums(1, scale=3.0), torch.float64) if with_reference else None
    lengths = torch.arange(1, 13)
    assert torch.autograd.gradcheck(lambda x: dpo(x, reference, beta=0.7, label_smoothing=smoothing)[0], policy)
    assert torch.autograd.gradcheck(lambda x: simpo(x, lengths, beta=2.0, gamma_beta_ratio=0.5)[0], policy)
    assert torch.autograd.gradcheck(lambda x: sft(x)[0], policy)


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


@pytest.mark.parametrize("margin", [0.0, 1.5])
@pytest.mark.parametrize("center", [0.0, 0.01])
def test_reward_formula(margin, center):
    """Guards the order of a pair, the margin's sign and the centring term."""
    scores = branch_sums(3, scale=4.0) + 2.0
    chosen, rejected = scores[0::2], scores[1::2]
    expected = softplus(-(chosen - rejected - margin)) + center * (chosen + rejected) ** 2
    losses, metrics = reward(as_tensor(scores), as_tensor(np.full(6, margin)), center=center)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=8 * EPS, atol=8 * EPS * 4)
    np.testing.assert_array_equal(metrics["accuracy"].numpy(), chosen > rejected)
    np.testing.assert_allclose(metrics["margin"].numpy(), chosen - rejected, atol=8 * EPS * 4)
    np.testing.assert_allclose(metrics["mean_reward"].numpy(), (chosen + rejected) / 2, atol=8 * EPS * 4)
