"""KTO against its definition in float64 and TRL's KTOTrainer on the same rows.

Tolerances: 8 units in the last place of the largest intermediate for the formula; for TRL those of
tests/helpers/trl_trainers.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor, branch_sums
from helpers.trl_trainers import assert_same, ids, options, our_gradients, rows, trl_loss

import vdengine as vd
from vdengine.objectives import KTO, kto

LABELS = [True, False, True, True, False, True]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kl", [0.0, 3.5])
def test_formula(kl):
    """Guards the sides of the point of reference, the weights, and that no gradient reaches the KL."""
    policy, reference, labels = branch_sums(0)[:6] / 4, branch_sums(1)[:6] / 4, np.array(LABELS)
    ratios = policy - reference
    expected = np.where(labels, 1.5 * (1 - sigmoid(0.2 * (ratios - kl))), 0.5 * (1 - sigmoid(0.2 * (kl - ratios))))
    point = torch.tensor(kl, requires_grad=True)
    losses, metrics = kto(
        as_tensor(policy).requires_grad_(),
        as_tensor(reference),
        torch.tensor(labels),
        point,
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=0, atol=8 * EPS * 10)
    losses.sum().backward()
    assert point.grad is None
    wanted, weight = metrics["rewards/chosen"]
    np.testing.assert_allclose(wanted.numpy(), 0.2 * ratios, rtol=0, atol=8 * EPS * 2)
    assert weight.tolist() == labels.astype(float).tolist()
    assert metrics["kl"].tolist() == [kl] * 6


def test_margins_where_a_batch_has_both():
    """Guards the row of metrics: wanted less unwanted, and nothing where one of them is missing."""
    assert KTO.summary([{"loss": 0.5, "rewards/chosen": 2.0, "rewards/rejected": 0.5}])["rewards/margins"] == 1.5
    assert KTO.summary([{"loss": 0.5, "rewards/chosen": 2.0}]) == {"loss": 0.5, "rewards/chosen": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.33, 0.5)])
@pytest.mark.parametrize("swapped", [False, True])
def test_trl(models, tokenizer, tmp_path, weights, swapped):
    """Guards against a loss, KL, reward or gradient that is not TRL's: the answers of the batch each after the prompt
    of the row that follows. The policy and the reference in either order: of one of them the KL is clamped at 0."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    hf, model, hf_reference, reference = models
    if swapped:
        hf, model, hf_reference, reference = hf_reference, reference, hf, model
    data = [
        {"prompt": r["prompt"], "completion": r["chosen"], "label": label}
        for r, label in zip(rows(), LABELS, strict=True)
    ]
    trainer = trl.KTOTrainer(
        hf,
        hf_reference,
        args=trl.KTOConfig(**options(tmp_path, beta=0.05, desirable_weight=weights[0], undesirable_weight=weights[1])),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=tokenizer,
    )
    loss, gradients, _ = trl_loss(trainer)

    prompts, answers = [ids(r["prompt"]) for r in data], [ids(r["completion"]) for r in data]
    pack = vd.pack([vd.Tree(p, [a]) for p, a in zip(prompts, answers, strict=True)])
    other = vd.pack([vd.Tree(p, [answers[i - 1]]) for i, p in enumerate(prompts)])
    with torch.no_grad():
        sums = pack.branch_sum(reference(pack).logp)
        ratios = other.branch_sum(model(other).logp) - other.branch_sum(reference(other).logp)
    kl, labels = ratios.mean().clamp(min=0), torch.tensor(LABELS)
    losses, metrics = kto(
        pack.branch_sum(model(pack).logp), sums, labels, kl, beta=0.05, desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )  # fmt: skip
    assert losses.std() > 0.01
    # log-probs of a hundred nats go into a sigmoid: their rounding is that of the loss's argument
    assert_same(losses.detach().mean(), our_gradients(model, losses.mean()), loss, gradients, scale=4)
    theirs = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    means = {n: (x[0] * x[1]).sum() / x[1].sum() if isinstance(x, tuple) else x.mean() for n, x in metrics.items()}
    means = KTO.summary([{n: float(x) for n, x in means.items()}])
    assert set(means) >= {"kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"}
    for name, value in means.items():
        assert abs(value - theirs[name]) <= 64 * EPS * max(100.0, abs(sums).max()), name
