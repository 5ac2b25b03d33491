"""The very same token rows for TRL: text of numbers, which a word-level tokenizer turns back into the ids."""

from __future__ import annotations

from typing import Any

Steps = list[list[list[list[int]]]]  # steps > rows > prompt and its answers > ids


def word_tokenizer(vocab_size: int, eos: int) -> tuple[Any, dict[int, str]]:
    """A tokenizer whose words are the ids themselves, and its words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    word = {i: str(i) for i in range(vocab_size)} | {eos: "<eos>", 0: "<pad>"}
    backend = Tokenizer(models.WordLevel({w: i for i, w in word.items()}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>"
    ), word  # fmt: skip


def _eos(steps: Steps) -> int:
    """The id that all answers end with: else TRL would add one."""
    ends_with = {ids[-1] for step in steps for _, *answers in step for ids in answers}
    assert len(ends_with) == 1, f"answers end with {ends_with}"
    return ends_with.pop()


def preference(steps: Steps, vocab_size: int) -> tuple[Any, list[dict[str, str]]]:
    """Tokenizer and rows for DPOTrainer; rows are [prompt, chosen, rejected]."""
    tokenizer, word = word_tokenizer(vocab_size, _eos(steps))
    texts = [[" ".join(word[i] for i in ids) for ids in row] for step in steps for row in step]
    return tokenizer, [{"prompt": prompt + " ", "chosen": c, "rejected": r} for prompt, c, r in texts]


def check_preference(steps: Steps, dataset: Any) -> None:
    """That the trainer's data set holds the same ids."""
    for given, row in zip((r for step in steps for r in step), dataset, strict=True):
        assert given == [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]


def completions(steps: Steps, vocab_size: int) -> tuple[Any, list[dict[str, list[int]]]]:
    """Tokenizer and rows for SFTTrainer, which takes ids; rows are [prompt, answer]."""
    tokenizer, _ = word_tokenizer(vocab_size, _eos(steps))
    return tokenizer, [
        {"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        for step in steps
        for prompt, answer in step
    ]
