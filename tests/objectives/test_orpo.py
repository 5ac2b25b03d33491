"""ORPO against float64 formulas and TRL's ORPOTrainer.

TRL's likelihood term also covers the prompt's tokens and is a mean over all tokens of its batch; ours, as the paper's,
is the chosen answer's mean. With prompts of one token, one pair at a time, the two are the same number: then the whole
loss and every gradient are compared. With rows of any length what is left, the odds-ratio term, is.

Tolerances: 8 units in the last place of the largest intermediate for the formula; for TRL those of
tests/helpers/trl_trainers.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor, branch_sums
from helpers.trl_trainers import (
    LOGPS,
    REWARDS,
    assert_same,
    assert_same_metrics,
    ids,
    options,
    our_gradients,
    preference_trees,
    rows,
    trl_loss,
)

import vdengine as vd
from vdengine.objectives import orpo
from vdengine.objectives.orpo import log_odds


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_formula(beta):
    """Guards against sums in place of averages, a swapped pair, a sign, or odds of another probability."""
    policy, lengths = branch_sums(0), np.arange(1, 13)
    average = policy / lengths
    odds = average - np.log1p(-np.exp(average))
    difference = odds[0::2] - odds[1::2]
    ratio = -np.logaddexp(0, -difference)
    losses, metrics = orpo(as_tensor(policy), torch.from_numpy(lengths), beta=beta)
    np.testing.assert_allclose(losses.numpy(), -average[0::2] - beta * ratio, rtol=8 * EPS, atol=8 * EPS * 40)
    np.testing.assert_allclose(metrics["log_odds_chosen"].numpy(), difference, atol=16 * EPS * 40)
    np.testing.assert_allclose(metrics["log_odds_ratio"].numpy(), ratio, atol=16 * EPS * 40)
    np.testing.assert_allclose(metrics["nll_loss"].numpy(), -average[0::2], atol=8 * EPS * 40)
    np.testing.assert_allclose(metrics["rewards/margins"].numpy(), beta * (average[0::2] - average[1::2]), atol=1e-5)


@pytest.mark.parametrize("average", [-1e-30, -1e-12, -1e-6, -1e-3, -0.6931471, -0.6931473, -1.0, -20.0, -100.0])
def test_log_odds_is_exact_at_both_ends(average):
    """Guards against cancellation in log(1 - p), near p = 1 and near p = 0."""
    x = torch.tensor(average, dtype=torch.float32, requires_grad=True)
    odds = log_odds(x)
    odds.backward()
    exact = float(x.detach())
    log_rest = math.log(-math.expm1(exact))
    # a difference of two numbers, each rounded: at p = 1/2 it is 0, and no more exact than they are
    assert abs(odds.item() - (exact - log_rest)) <= 4 * EPS * max(abs(exact), abs(log_rest))
    slope = 1 / -math.expm1(exact)  # d/dx of x - log(1 - e^x)
    assert abs(x.grad.item() - slope) <= 8 * EPS * slope


def test_a_certain_answer_stays_finite():
    """Guards against NaN or infinity where a branch's log-prob rounds to 0: its odds have no bound."""
    policy = torch.tensor([0.0, -3.0, -3.0, 0.0], requires_grad=True)
    losses, metrics = orpo(policy, torch.tensor([2, 2, 2, 2]), beta=0.1)
    losses.sum().backward()
    assert losses.isfinite().all() and policy.grad.isfinite().all()
    assert all(m.isfinite().all() for m in metrics.values())


def trainer_of(hf, tokenizer, folder, data, beta):
    orpo_module, datasets = pytest.importorskip("trl.experimental.orpo"), pytest.importorskip("datasets")
    arguments = options(folder, beta=beta) | {"per_device_train_batch_size": len(data)}
    return orpo_module.ORPOTrainer(
        hf,
        args=orpo_module.ORPOConfig(**arguments, remove_unused_columns=False),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=tokenizer,
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 1, 3])
def test_trl_whole_loss(models, tokenizer, tmp_path, row):
    """Guards against a loss or gradient that is not TRL's, where the two likelihood terms mean the same."""
    hf, model, _, _ = models
    data = [rows()[row] | {"prompt": "17 "}]
    trainer = trainer_of(hf, tokenizer, tmp_path, data, beta=0.3)
    loss, gradients, _ = trl_loss(trainer)

    tree = vd.Tree(ids(data[0]["prompt"]), [ids(data[0]["chosen"]), ids(data[0]["rejected"])])
    theirs = trainer.train_dataset[0]
    assert [tree.prompt + b for b in tree.branches] == [theirs["chosen_input_ids"], theirs["rejected_input_ids"]]
    pack = vd.pack([tree])
    losses, metrics = orpo(pack.branch_sum(model(pack).logp), pack.branch_lengths, beta=0.3)
    assert_same(losses.detach().mean(), our_gradients(model, losses.mean()), loss, gradients)
    logged = {name: x.mean().item() for name, x in metrics.items()}
    names = [*REWARDS, *LOGPS, "nll_loss", "log_odds_ratio", "log_odds_chosen"]
    assert_same_metrics(logged, trainer._stored_metrics["train"], names, 10.0)


@pytest.mark.slow
def test_trl_odds_ratio_on_rows_of_any_length(models, tokenizer, tmp_path):
    """Guards the term that makes ORPO what it is, on a batch: averages, odds and their means over pairs are TRL's."""
    hf, model, _, _ = models
    trainer = trainer_of(hf, tokenizer, tmp_path, rows(), beta=0.3)
    trl_loss(trainer)
    pack = vd.pack(preference_trees())
    with torch.no_grad():
        _, metrics = orpo(pack.branch_sum(model(pack).logp), pack.branch_lengths, beta=0.3)
    logged = {name: x.mean().item() for name, x in metrics.items()}
    names = [*REWARDS, *LOGPS, "log_odds_ratio", "log_odds_chosen"]
    assert_same_metrics(logged, trainer._stored_metrics["train"], names, 10.0)
