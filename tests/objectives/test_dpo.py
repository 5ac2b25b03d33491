"""Preference losses against float64 formulas written out in NumPy, at ordinary and extreme margins, and gradients.

Tolerance: fp32 results may be off by 8 units in the last place of the largest intermediate (a branch sum): four
subtractions and a multiplication, each rounded once.
"""

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor, branch_sums, softplus

from vdengine.objectives import (
    dpo,
    sft,
    simpo,
)


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
