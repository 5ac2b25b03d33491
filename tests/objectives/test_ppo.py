"""PPO's losses against their definitions written out in float64."""

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor

from vdengine.objectives import adapt_kl_coef, ppo, value_loss


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
