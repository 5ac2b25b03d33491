"""SFT's loss."""

import torch
from helpers.branches import as_tensor, branch_sums

from vdengine.objectives import (
    sft,
)


def test_sft_is_the_negative_sum():
    """Guards against a mean of means: each branch keeps its own sum, the trainer divides once."""
    policy = as_tensor(branch_sums(), torch.float64).requires_grad_()
    losses, _ = sft(policy)
    assert torch.equal(losses, -policy)
    losses.sum().backward()
    assert torch.equal(policy.grad, torch.full_like(policy, -1.0))
