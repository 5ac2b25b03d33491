"""Rows, options and comparisons for tests against TRL's own trainers: loss, metrics, every parameter's gradient; fp32.

TRL tokenises, masks, collates and pads the rows and computes the loss; we run the same ids as trees. Its text is a
list of numbers, which a word-level tokenizer turns into just those ids.

Tolerance: two fp32 evaluations of one formula, in other orders and with padding. EPS = 2^-23; log-probs of three
layers differ by up to 64 EPS of the largest (tests/models/test_transformer.py), a gradient, which passes all twice, by
128 EPS of its tensor's largest entry. A wrong mask, denominator, beta or reference term shows as 1e-2 and more.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch

import vdengine as vd
from helpers.peers import VOCAB

EPS = 2.0**-23
EOS = 2

MODELS = {
    "llama_tied_scaled": {"kind": "llama", "tied": True, "scaled": True},
    "qwen3": {"kind": "qwen3"},
}

Gradients = dict[str, torch.Tensor]


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


# Groups of a prompt's sampled completions, of uneven lengths; those that do not end with EOS were cut off.
SAMPLES = 4
PROMPTS = [r["prompt"] for r in rows(3)]


def sampled() -> list[list[list[int]]]:
    """[prompts][samples] token ids."""
    r = random.Random(1)
    lengths = iter([7, 1, 20, 33, 12, 12, 40, 3, 5, 17, 2, 9])
    return [
        [
            [*(r.randrange(3, VOCAB) for _ in range(next(lengths))), *([EOS] if k % 4 != 3 else [])]
            for k in range(SAMPLES)
        ]
        for _ in PROMPTS
    ]


REWARDS_OF_SAMPLES = [0.0, 1.0, 0.25, 1.0, 2.0, -1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 1.0]  # the last group teaches nothing


def on_policy_trainer(kind: str, hf: Any, reference: Any, tokenizer: Any, folder: Any) -> Any:
    """TRL's `kind`Trainer, to which those completions are what the model samples, and those rewards what they get. It
    has done with them more than once, so that it computes the old log-probs."""
    import datasets
    import trl
    from trl.trainer.utils import add_fused_lm_head

    flat = [c for group in sampled() for c in group]
    arguments = {k: v for k, v in options(folder).items() if k not in ("max_length", "per_device_train_batch_size")}
    trainer = getattr(trl, f"{kind}Trainer")(
        hf,
        reward_funcs=lambda prompts, completions, **columns: REWARDS_OF_SAMPLES,
        args=getattr(trl, f"{kind}Config")(
            **arguments, per_device_train_batch_size=len(flat), num_generations=SAMPLES, num_iterations=2, beta=0.0,
            max_completion_length=48,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": p} for p in PROMPTS]), processing_class=tokenizer,
    )  # fmt: skip
    trainer.ref_model = copy.deepcopy(reference)  # which it would load by the model's name
    add_fused_lm_head(trainer.ref_model)
    trainer._generate_single_turn = lambda *_: (flat, None) if kind == "GRPO" else flat
    return trainer


def on_policy_loss(trainer: Any, new: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Gradients, dict[str, Any]]:
    """The loss of a rollout by the trainer's model after it has come to the weights `new`, with gradients and metrics;
    the model is put back to what it was."""
    old = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.model.train()
    trainer._metrics["train"].clear()
    trainer.current_gradient_accumulation_steps = 1
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(SAMPLES)])
        for name, p in trainer.model.named_parameters():
            p.copy_(new[name])
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            p.copy_(old[name])
    return loss.detach(), gradients, {k: v[-1] for k, v in trainer._metrics["train"].items()}


def our_rollout(
    objective: Any, settings: Any, model: Any, old: Any, reference: Any
) -> tuple[Any, Any, dict[str, float]]:
    """The same of an objective's declaration, all prompts in one pack: loss with its graph, advantages, and means."""
    from vdengine.objectives import Rolled, Sampled, Scored

    groups = sampled()
    pack = vd.pack([vd.Tree(ids(p), group, id=i) for i, (p, group) in enumerate(zip(PROMPTS, groups, strict=True))])
    with torch.no_grad():
        old_logp = old(pack).logp
        reference_logp = reference(pack).logp if settings.beta else None
    rewards = torch.tensor(REWARDS_OF_SAMPLES)
    stopped = torch.tensor([c[-1] == EOS for group in groups for c in group])
    rolled = Rolled(SAMPLES, pack.branch_offsets, stopped, rewards, rewards, old_logp, reference_logp, None)
    made = objective.rollout.advantages(rolled, settings, {})
    counted = torch.ones(len(rewards), dtype=torch.bool) if made.counted is None else made.counted
    counted = counted.float().repeat_interleave(pack.branch_lengths)
    scores = model(pack, entropy=True)
    found = Sampled(
        old_logp, made.advantages, counted, completions=len(rewards), counted_tokens=int(counted.sum()), max_tokens=48,
        reference=reference_logp,
    )  # fmt: skip
    losses, metrics = objective.fn(Scored(pack, scores.logp, sampled=found), settings)
    loss = losses.sum() if objective.per == "sum" else losses.mean()
    means = {name: float((x * w).sum() / w.sum()) for name, (x, w) in metrics.items()}
    return loss, made.advantages, means | made.metrics | {"entropy": float(scores.entropy.detach().mean())}


def nudged(hf: Any, by: float = 0.01, seed: int = 7) -> dict[str, torch.Tensor]:
    """Its weights a few updates later."""
    g = torch.Generator().manual_seed(seed)
    return {n: p.detach() + by * torch.randn(p.shape, generator=g) for n, p in hf.named_parameters()}


def our_gradients(model: vd.Transformer, loss: torch.Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(
    loss: torch.Tensor, gradients: Gradients, their_loss: torch.Tensor, theirs: Gradients, scale: float = 1
) -> None:
    """`scale`: by how much more a loss carries the error of a log-prob than a log-prob does."""
    assert abs(loss - their_loss) <= 64 * scale * EPS * max(1.0, abs(their_loss))
    assert gradients.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert expected.abs().max() > 0, name
        error = (gradients[name] - expected).abs().max() / expected.abs().max()
        assert error <= 128 * scale * EPS, f"{name}: {error:.1e} of the largest gradient"


def assert_same_metrics(ours: dict[str, float], theirs: dict[str, Any], names: list[str], scale: float) -> None:
    """`scale`: the largest number that a metric is a difference of."""
    for name in names:
        expected = theirs[name][-1] if isinstance(theirs[name], list) else theirs[name]
        assert abs(ours[name] - expected) <= 64 * EPS * scale, name


REWARDS = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
LOGPS = ["logps/chosen", "logps/rejected"]


def assert_logged(means: dict[str, float], logged: dict[str, Any], settings: Any, case: Any) -> None:
    """The metrics that ours and TRL's trainers of rollouts both have, which must be those of a rollout. They are means
    of some hundred fp32 numbers of order 1, summed in other orders: 1e-5 is a hundred roundings."""
    shared = set(means) & set(logged)
    assert shared >= {"reward", "reward_std", "frac_reward_zero_std", "entropy", "clip_ratio/high_mean"}, shared
    if settings.mask_truncated_completions:
        shared.remove("entropy")  # TRL's is of what is learned from, ours of all that was sampled
    if getattr(settings, "scale_rewards", "") == "batch":
        shared.remove("frac_reward_zero_std")  # TRL's is then 1 or 0, of all rewards together
    assert ("kl" in shared) == bool(settings.beta)
    for name in shared:
        assert means[name] == pytest.approx(logged[name], rel=1e-5, abs=1e-6), (case, name)


def preference_trees() -> list[vd.Tree]:
    return [vd.Tree(ids(r["prompt"]), [ids(r["chosen"]), ids(r["rejected"])]) for r in rows()]


def number_words() -> Any:
    """A tokenizer whose words are the numbers themselves: the text "5 17 <eos>" is the ids [5, 17, 2]."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<unk>": 0, "<pad>": 1, "<eos>": EOS} | {str(i): i for i in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
