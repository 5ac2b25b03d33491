"""SFT, DPO, SimPO and the reward model against TRL's own trainers: loss, metrics and every parameter's gradient, fp32.

How they are compared, and with which tolerance: tests/helpers/trl_trainers.py.
"""

from __future__ import annotations

import pytest
import torch
from helpers.peers import hf_model, ours
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

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


@pytest.mark.slow
@pytest.mark.parametrize("precomputed", [False, True])
def test_dpo(models, tokenizer, tmp_path, precomputed):
    """Guards against a loss, reward or gradient that is not TRL's: live reference, and precomputed by TRL."""
    hf, model, hf_reference, reference = models
    trainer = trl.DPOTrainer(
        hf, hf_reference,
        args=trl.DPOConfig(**options(tmp_path, beta=0.1, precompute_ref_log_probs=precomputed)),
        train_dataset=datasets.Dataset.from_list(rows()), processing_class=tokenizer,
    )  # fmt: skip
    loss, gradients, _ = trl_loss(trainer)

    trees = preference_trees()
    for tree, row in zip(trees, trainer.train_dataset, strict=True):  # TRL came to the same tokens
        assert [tree.prompt, *tree.branches] == [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
    pack = vd.pack(trees)
    scores = model(pack, entropy=True)
    with torch.no_grad():
        sums = pack.branch_sum(reference(pack).logp)
    losses, metrics = vd.objectives.dpo(pack.branch_sum(scores.logp), sums, beta=0.1)
    assert losses.std() > 0.1  # the rows differ and the reference is not the policy
    assert_same(losses.detach().mean(), our_gradients(model, losses.mean()), loss, gradients)
    logged = {name: x.mean().item() for name, x in metrics.items()} | {"entropy": scores.entropy.mean().item()}
    assert_same_metrics(logged, trainer._metrics["train"], [*REWARDS, *LOGPS, "entropy"], sums.abs().max().item())


def test_dpo_label_smoothing_is_not_trls_sigmoid():
    """States a known difference: TRL's `sigmoid` loss ignores `label_smoothing`, ours is conservative DPO."""
    policy = torch.tensor([-1.0, -9.0])
    smooth, plain = (vd.objectives.dpo(policy, None, beta=1.0, label_smoothing=e)[0].item() for e in (0.2, 0.0))
    assert smooth == pytest.approx(plain + 0.2 * 8.0)  # -log s(-m) = -log s(m) + m


@pytest.mark.slow
def test_sft(models, tokenizer, tmp_path):
    """Guards against another denominator (a mean of means), a scored prompt, or a first token left out."""
    hf, model, _, _ = models
    data = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()]
    trainer = trl.SFTTrainer(
        hf, args=trl.SFTConfig(**options(tmp_path, packing=False, shuffle_dataset=False)),
        train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer,
    )  # fmt: skip
    loss, gradients, batch = trl_loss(trainer)

    trees = [vd.Tree(t.prompt, t.branches[:1]) for t in preference_trees()]
    for tree, row in zip(trees, trainer.train_dataset, strict=True):
        assert tree.prompt + tree.branches[0] == row["input_ids"]
    pack = vd.pack(trees)
    assert pack.num_scored == (batch["labels"] != -100).sum()
    scores = model(pack, entropy=True)
    losses, _ = vd.objectives.sft(pack.branch_sum(scores.logp))
    ours = losses.sum() / pack.num_scored
    assert_same(ours.detach(), our_gradients(model, ours), loss, gradients)
    entropy = {"entropy": scores.entropy.mean().item()}
    assert_same_metrics(entropy, trainer._metrics["train"], ["entropy"], 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("margin, center", [(False, 0.0), (True, 0.1)])
def test_reward(tokenizer, tmp_path, margin, center):
    """Guards a reward model's reading (the last token, shared prompts or not), loss, metrics and gradients."""
    hf = hf_model("llama", scalar=True)
    model = ours(hf, tmp_path / "model")
    margins = [0.5 * i for i in range(6)]
    data = [r | ({"margin": m} if margin else {}) for r, m in zip(rows(), margins, strict=True)]
    trainer = trl.RewardTrainer(
        hf, args=trl.RewardConfig(**options(tmp_path, center_rewards_coefficient=center or None, disable_dropout=True)),
        train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer,
    )  # fmt: skip
    loss, gradients, _ = trl_loss(trainer)

    trees = preference_trees()
    for tree, row in zip(trees, trainer.train_dataset, strict=True):
        assert [tree.prompt + b for b in tree.branches] == [row["chosen_ids"], row["rejected_ids"]]
    pack = vd.pack(trees)
    scores = model(pack).values[pack.ends]
    losses, metrics = vd.objectives.reward(scores, torch.tensor(margins) if margin else 0.0, center=center)
    assert losses.std() > 0.01
    assert_same(losses.detach().mean(), our_gradients(model, losses.mean()), loss, gradients)
    logged = {name: x.mean().item() for name, x in metrics.items()}
    assert_same_metrics(logged, trainer._metrics["train"], list(logged), scores.abs().max().item())


@pytest.mark.slow
def test_simpo(models, tokenizer, tmp_path):
    """Guards against another average or margin. TRL's simpo_gamma is beta * gamma_beta_ratio."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    hf, model, _, _ = models
    beta, ratio = 2.5, 0.55
    trainer = cpo.CPOTrainer(
        hf,
        args=cpo.CPOConfig(
            **options(tmp_path, beta=beta, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=beta * ratio),
            remove_unused_columns=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows()), processing_class=tokenizer,
    )  # fmt: skip
    loss, gradients, _ = trl_loss(trainer)

    trees = preference_trees()
    for tree, row in zip(trees, trainer.train_dataset, strict=True):
        sides = [row["chosen_input_ids"], row["rejected_input_ids"]]
        assert [tree.prompt + branch for branch in tree.branches] == sides
    pack = vd.pack(trees)
    lengths = pack.branch_lengths
    losses, metrics = vd.objectives.simpo(pack.branch_sum(model(pack).logp), lengths, beta=beta, gamma_beta_ratio=ratio)
    assert_same(losses.detach().mean(), our_gradients(model, losses.mean()), loss, gradients)
    logged = {name: metrics[name].mean().item() for name in REWARDS}
    # TRL's SimPO logs averages under these names; ours are sums, as in its DPO
    for name, n in zip(LOGPS, (lengths[0::2], lengths[1::2]), strict=True):
        logged[name] = (metrics[name] / n).mean().item()
    assert_same_metrics(logged, trainer._stored_metrics["train"], [*REWARDS, *LOGPS], beta * 10.0)
