"""RLOO against its definition in float64 and TRL's RLOOTrainer on the same samples.

Tolerances as in tests/objectives/test_grpo.py.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor
from helpers.peers import ours
from helpers.trl_trainers import (
    assert_logged,
    assert_same,
    nudged,
    on_policy_loss,
    on_policy_trainer,
    our_gradients,
    our_rollout,
)

from vdengine.errors import InputError
from vdengine.objectives import RLOO, rloo
from vdengine.recipe import make_recipe


def test_formula():
    """Guards the clip of whole completions, and REINFORCE's gradient where the ratio is 1."""
    ratio, advantages = np.array([0.5, 0.5, 2.0, 2.0, 1.0]), np.array([1.0, -1.0, 1.0, -1.0, 3.0])
    log_ratio = as_tensor(np.log(ratio)).requires_grad_()
    losses, metrics = rloo(log_ratio, as_tensor(advantages), epsilon=0.2, epsilon_high=0.3)
    np.testing.assert_allclose(losses.detach().numpy(), [-0.5, 0.8, -1.3, 2.0, -3.0], rtol=8 * EPS)
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratio)
    np.testing.assert_allclose(gradient.numpy(), [-0.5, 0.0, 0.0, 2.0, -3.0], rtol=8 * EPS)
    assert metrics["clip_ratio/low_mean"][0].tolist() == [0, 1, 0, 0, 0]
    assert metrics["clip_ratio/high_mean"][0].tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("range", [[1.0], [1.0, 1.0], [2.0, -1.0], [0.0, 1.0, 2.0]])
def test_a_clip_of_rewards_is_two_numbers(range):
    """Guards against a range that would make every reward the same, or none."""
    tables = {"model": {"source": "m"}, "data": {"train": ["d"]}, "run": {"steps": 1}}
    with pytest.raises(InputError, match="reward_clip_range = .* must be two numbers, ascending"):
        make_recipe(tables | {"objective": {"name": "rloo", "reward_clip_range": range}})


CASES = [
    {"beta": 0.0},
    {"beta": 0.05, "epsilon_high": 0.28},
    {"beta": 0.05, "normalize_advantages": True, "mask_truncated_completions": True},
    {"beta": 0.0, "reward_clip_range": [-0.5, 1.0]},
]


@pytest.mark.slow
def test_trl(models, tokenizer, tmp_path):
    """Guards against advantages, a loss, metrics or gradients that are not TRL's, after the policy has moved from what
    sampled: the baseline of the others, the KL in the reward, clipped rewards, completions that are left out."""
    pytest.importorskip("trl")
    hf, old, hf_reference, reference = models
    # whole completions are one ratio: a move that is small for a token is large for a sum of 40
    hf, new = copy.deepcopy(hf), nudged(hf, by=3e-3, seed=8)
    trainer = on_policy_trainer("RLOO", hf, hf_reference, tokenizer, tmp_path / "trl")
    later = copy.deepcopy(hf)
    later.load_state_dict(new, strict=False)
    model = ours(later, tmp_path / "later")
    for case in CASES:
        settings = RLOO.keys(**case)
        for name in ("beta", "normalize_advantages", "mask_truncated_completions"):
            setattr(trainer, name, getattr(settings, name))
        trainer.epsilon_low, trainer.reward_clip_range = settings.epsilon, settings.reward_clip_range
        trainer.epsilon_high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        their_loss, their_gradients, logged = on_policy_loss(trainer, new)
        loss, advantages, means = our_rollout(RLOO, settings, model, old, reference)
        assert advantages.std() > 0.3 and logged["clip_ratio/region_mean"] > 0, case
        assert_same(loss.detach(), our_gradients(model, loss), their_loss, their_gradients, scale=32)
        assert_logged(means, logged, settings, case)
