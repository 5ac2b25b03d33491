"""SimPO against its formula written out in float64."""

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor, branch_sums, softplus

from vdengine.objectives import (
    simpo,
)


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
