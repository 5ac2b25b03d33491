"""Rows, options and comparisons for tests against TRL's own trainers: loss, metrics, every parameter's gradient; fp32.

TRL tokenises, masks, collates and pads the rows and computes the loss; we run the same ids as trees. Its text is a
list of numbers, which a word-level tokenizer turns into just those ids.

Tolerance: two fp32 evaluations of one formula, in other orders and with padding. EPS = 2^-23; log-probs of three
layers differ by up to 64 EPS of the largest (tests/models/test_transformer.py), a gradient, which passes all twice, by
128 EPS of its tensor's largest entry. A wrong mask, denominator, beta or reference term shows as 1e-2 and more.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

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
