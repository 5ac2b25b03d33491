"""IPO against float64 formulas and TRL's DPOTrainer with loss_type "ipo".

Tolerances: 8 units in the last place of the largest intermediate for the formula; for TRL those of
tests/helpers/trl_trainers.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor, branch_sums
from helpers.trl_trainers import (
    LOGPS,
    REWARDS,
    assert_same,
    assert_same_metrics,
    options,
    our_gradients,
    preference_trees,
    rows,
    trl_loss,
)

import vdengine as vd
from vdengine.objectives import ipo


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("with_reference", [True, False])
def test_formula(beta, with_reference):
    """Guards against sums in place of averages, a swapped pair, a target other than 1 / (2 beta), or rewards that are
    averages."""
    policy, reference = branch_sums(0), branch_sums(1) if with_reference else np.zeros(12)
    lengths = np.arange(1, 13)
    ratios = policy - reference
    averages = ratios / lengths
    expected = (averages[0::2] - averages[1::2] - 1 / (2 * beta)) ** 2
    losses, metrics = ipo(
        as_tensor(policy), as_tensor(reference) if with_reference else None, torch.from_numpy(lengths), beta=beta
    )
    largest = 40 + 1 / (2 * beta)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=8 * EPS, atol=8 * EPS * largest**2)
    np.testing.assert_allclose(metrics["rewards/chosen"].numpy(), beta * ratios[0::2], atol=8 * EPS * beta * 40)
    np.testing.assert_array_equal(metrics["logps/rejected"].numpy(), policy[1::2])


def test_an_empty_branch_divides_by_nothing():
    """Guards against a NaN where a branch has no scored token."""
    policy = torch.tensor([0.0, -3.0], requires_grad=True)
    losses, _ = ipo(policy, None, torch.tensor([0, 2]), beta=0.5)
    losses.sum().backward()
    assert losses.isfinite().all() and policy.grad.isfinite().all()


@pytest.mark.slow
def test_trl(models, tokenizer, tmp_path):
    """Guards against a loss, reward or gradient that is not TRL's."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    hf, model, hf_reference, reference = models
    beta = 0.2
    trainer = trl.DPOTrainer(
        hf,
        hf_reference,
        args=trl.DPOConfig(**options(tmp_path, beta=beta, loss_type="ipo")),
        train_dataset=datasets.Dataset.from_list(rows()),
        processing_class=tokenizer,
    )
    loss, gradients, _ = trl_loss(trainer)

    pack = vd.pack(preference_trees())
    scores = model(pack, entropy=True)
    with torch.no_grad():
        sums = pack.branch_sum(reference(pack).logp)
    losses, metrics = ipo(pack.branch_sum(scores.logp), sums, pack.branch_lengths, beta=beta)
    assert losses.std() > 0.01  # the rows differ and the reference is not the policy
    assert_same(losses.detach().mean(), our_gradients(model, losses.mean()), loss, gradients)
    logged = {name: x.mean().item() for name, x in metrics.items()} | {"entropy": scores.entropy.mean().item()}
    assert_same_metrics(logged, trainer._metrics["train"], [*REWARDS, *LOGPS, "entropy"], sums.abs().max().item())
