"""SFT, DPO, SimPO and the reward model against TRL's own trainers: loss, metrics and every parameter's gradient, fp32.

TRL tokenises, masks, collates and pads the rows and computes the loss; we run the same ids as trees. Its text is a
list of numbers, which a word-level tokenizer turns into just those ids.

Tolerance: two fp32 evaluations of one formula, in other orders and with padding. EPS = 2^-23; log-probs of three
layers differ by up to 64 EPS of the largest (test_transformers_parity.py), a gradient, which passes all twice, by 128
EPS of its tensor's largest entry. A wrong mask, denominator, beta or reference term shows as 1e-2 and more.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch

import vdengine as vd

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
from peers import VOCAB, hf_model, ours  # noqa: E402

EPS = 2.0**-23
EOS = 2
MODELS = {
    "llama_tied_scaled": {"kind": "llama", "tied": True, "scaled": True},
    "qwen3": {"kind": "qwen3"},
}


Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """(transformers' policy, our policy, transformers' reference, our reference): other weights in the reference,
    or its terms would cancel."""
    folder = tmp_path_factory.mktemp("trl") / request.param
    hf, hf_reference = (hf_model(**MODELS[request.param], seed=seed) for seed in (0, 1))
    return hf, ours(hf, folder / "policy"), hf_reference, ours(hf_reference, folder / "reference")


@pytest.fixture(scope="module")
def tokenizer():
    """Words are the numbers themselves: the text "5 17 <eos>" is the ids [5, 17, 2]."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<unk>": 0, "<pad>": 1, "<eos>": EOS} | {str(i): i for i in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def ids(text: str) -> list[int]:
    return [EOS if word == "<eos>" else int(word) for word in text.split()]


def rows(n: int = 6) -> list[dict[str, str]]:
    """Preference rows of uneven lengths, both answers ended by EOS: trainers would add it otherwise."""
    r = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(str(r.randrange(3, VOCAB)) for _ in range(r.randint(low, high)))

    return [
        {"prompt": f"{text(3, 90)} ", "chosen": f"{text(1, 40)} <eos>", "rejected": f"{text(1, 40)} <eos>"}
        for _ in range(n)
    ]


def options(folder: Any, **more: Any) -> dict[str, Any]:
    """Arguments that leave nothing but the loss: fp32, CPU, no dropout, no truncation, no logging services."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 6, "use_cpu": True, "bf16": False, "fp16": False,
        "gradient_checkpointing": False, "report_to": [], "max_length": 512, "disable_tqdm": True, **more,
    }  # fmt: skip


def trl_loss(trainer: Any) -> tuple[torch.Tensor, Gradients, Any]:
    """The trainer's own loss on one batch of all its rows, the gradients, and the batch."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    batch = trainer._prepare_inputs(batch)
    trainer.model.train()
    trainer.model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    return loss.detach(), gradients, batch


def our_gradients(model: vd.Transformer, loss: torch.Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(loss: torch.Tensor, gradients: Gradients, their_loss: torch.Tensor, theirs: Gradients) -> None:
    assert abs(loss - their_loss) <= 64 * EPS * max(1.0, abs(their_loss))
    assert gradients.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert expected.abs().max() > 0, name
        error = (gradients[name] - expected).abs().max() / expected.abs().max()
        assert error <= 128 * EPS, f"{name}: {error:.1e} of the largest gradient"


def assert_same_metrics(ours: dict[str, float], theirs: dict[str, Any], names: list[str], scale: float) -> None:
    """`scale`: the largest number that a metric is a difference of."""
    for name in names:
        expected = theirs[name][-1] if isinstance(theirs[name], list) else theirs[name]
        assert abs(ours[name] - expected) <= 64 * EPS * scale, name


REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
LOGPS = ["logps/chosen", "logps/rejected"]


def preference_trees() -> list[vd.Tree]:
    return [vd.Tree(ids(r["prompt"]), [ids(r["chosen"]), ids(r["rejected"])]) for r in rows()]


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
