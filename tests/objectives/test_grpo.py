"""GRPO against its definitions in float64 and TRL's GRPOTrainer on the same samples.

Tolerances: for formulas 32 units in the last place of the largest intermediate; for TRL those of
tests/helpers/trl_trainers.py, times the largest ratio: exp turns an error of a log-prob into a relative one.
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

from vdengine.objectives import GRPO, grpo, token_weights

LENGTHS = (1, 7, 3, 12, 1, 7)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])


def numbers(seed: int = 0):
    """float64 per token that fp32 holds exactly: log-probs now, of the rollout, of the reference; advantages of whole
    completions."""
    rng = np.random.default_rng(seed)
    draw = lambda n, s: (s * rng.standard_normal(n)).astype(np.float32).astype(np.float64)  # noqa: E731
    old = draw(OFFSETS[-1], 0.2) - 3
    return old + draw(OFFSETS[-1], 0.6), old, old + draw(OFFSETS[-1], 0.3), np.repeat(draw(len(LENGTHS), 1.0), LENGTHS)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_weights(loss_type):
    """Guards the three denominators, and completions that are left out: they count as completions, their tokens not."""
    counted = np.repeat([1.0, 1.0, 0.0, 1.0, 1.0, 0.0], LENGTHS)
    weights = token_weights(
        torch.tensor(OFFSETS),
        as_tensor(counted),
        loss_type=loss_type,
        completions=10,
        counted_tokens=50,
        max_tokens=20,
    )
    expected = {"grpo": 1 / (10 * np.repeat(LENGTHS, LENGTHS)), "dr_grpo": 1 / (10 * 20), "dapo": 1 / 50}[loss_type]
    np.testing.assert_allclose(weights.numpy(), counted * expected, rtol=4 * EPS)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("beta, high, delta", [(0.0, None, None), (0.3, 0.3, None), (0.3, 0.3, 1.5)])
def test_formula(level, beta, high, delta, corrected):
    """Guards which side is clipped, and by how much; ratios of tokens or of whole completions; the KL's sign, weight,
    estimator and ratio."""
    logp, old, reference, advantages = numbers()
    weights = np.repeat(np.arange(1.0, 7.0), LENGTHS) / 64
    log_ratio = logp - old
    if level == "sequence":
        log_ratio = np.repeat([log_ratio[a:b].mean() for a, b in zip(OFFSETS, OFFSETS[1:], strict=False)], LENGTHS)
    ratio = np.exp(log_ratio)
    clipped = np.clip(ratio, 0.8, 1 + (high or 0.2))
    bounded = np.minimum(ratio, delta or np.inf)
    kl = (np.exp(reference - logp) - 1 - (reference - logp)) * (ratio if corrected else 1)
    terms = weights * (-np.minimum(bounded * advantages, clipped * advantages) + beta * kl)
    expected = np.add.reduceat(terms, OFFSETS[:-1])
    losses, metrics = grpo(
        *(as_tensor(x) for x in (logp, old, advantages, weights)),
        torch.tensor(OFFSETS),
        epsilon=0.2,
        epsilon_high=high,
        delta=delta,
        importance_sampling_level=level,
        reference=as_tensor(reference),
        beta=beta,
        use_bias_correction_kl=corrected,
    )
    assert (ratio > 1 + (high or 0.2)).any() and (ratio < 0.8).any()  # both sides matter
    np.testing.assert_allclose(losses.numpy(), expected, rtol=0, atol=32 * EPS * 12 * np.abs(terms).max())
    low, above, of = (metrics[f"clip_ratio/{name}_mean"] for name in ("low", "high", "region"))
    expected_low = ((bounded < 0.8) & (advantages < 0)).astype(float)
    first = OFFSETS[:-1] if level == "sequence" else slice(None)
    np.testing.assert_array_equal(low[0].numpy(), expected_low[first])
    np.testing.assert_array_equal(of[0].numpy(), (low[0] + above[0]).numpy())
    if beta:
        np.testing.assert_allclose(metrics["kl"][0].numpy(), kl, rtol=0, atol=32 * EPS * kl.max())
    else:
        assert "kl" not in metrics


def test_the_gradient_of_a_clipped_token():
    """Guards the update: a token beyond the region that would gain from going on has none, one that is to come back
    has."""
    ratio, advantages = np.array([0.5, 0.5, 2.0, 2.0, 1.0]), np.array([1.0, -1.0, 1.0, -1.0, 1.0])
    logp = as_tensor(np.log(ratio)).requires_grad_()
    losses, _ = grpo(
        logp, torch.zeros(5), as_tensor(advantages), torch.ones(5), torch.tensor([0, 5]), epsilon=0.2, epsilon_high=0.28
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logp)
    np.testing.assert_allclose(gradient.numpy(), [-0.5, 0.0, 0.0, 2.0, -1.0], rtol=8 * EPS)


CASES = [
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo", "scale_rewards": "none"},
    {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    {"loss_type": "grpo", "scale_rewards": "batch", "mask_truncated_completions": True, "beta": 0.1},
    {"loss_type": "dapo", "beta": 0.1, "delta": 1.5, "use_bias_correction_kl": False},
    {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.003, "epsilon_high": 0.004},
    {"importance_sampling_level": "sequence", "epsilon": 0.003, "beta": 0.1, "mask_truncated_completions": True},
]


@pytest.mark.slow
def test_trl(models, tokenizer, tmp_path):
    """Guards against advantages, a loss, metrics or gradients that are not TRL's, after the policy has moved from what
    sampled: every denominator, scale, clip and level, with and without KL and completions that are left out."""
    pytest.importorskip("trl")
    hf, old, hf_reference, reference = models
    hf, new = copy.deepcopy(hf), nudged(hf)
    trainer = on_policy_trainer("GRPO", hf, hf_reference, tokenizer, tmp_path / "trl")
    later = copy.deepcopy(hf)
    later.load_state_dict(new, strict=False)
    model = ours(later, tmp_path / "later")
    for case in CASES:
        settings = GRPO.keys(**case)
        for name in ("loss_type", "scale_rewards", "beta", "importance_sampling_level", "mask_truncated_completions"):
            setattr(trainer, name, getattr(settings, name))
        trainer.epsilon_low, trainer.args.delta = settings.epsilon, settings.delta
        trainer.args.use_bias_correction_kl = settings.use_bias_correction_kl
        trainer.epsilon_high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
        their_loss, their_gradients, logged = on_policy_loss(trainer, new)
        loss, advantages, means = our_rollout(GRPO, settings, model, old, reference)
        assert advantages.std() > 0.3 and logged["clip_ratio/region_mean"] > 0, case
        assert_same(loss.detach(), our_gradients(model, loss), their_loss, their_gradients, scale=4)
        assert_logged(means, logged, settings, case)
