"""The same token rows for TRL: as text of numbers, which a word-level tokenizer turns back into the ids."""

from __future__ import annotations

from typing import Any

Steps = list[list[list[list[int]]]]  # token ids: [steps][rows][prompt, then its answers][ids]


def word_tokenizer(vocab_size: int, eos: int) -> tuple[Any, dict[int, str]]:
    """A tokenizer whose words are the ids as numbers, and its words by id."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {i: str(i) for i in range(vocab_size)} | {eos: "<eos>", 0: "<pad>"}
    backend = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>"), words


def _eos(steps: Steps) -> int:
    """The id with which all answers end; otherwise TRL would add one."""
    last_ids = {ids[-1] for step in steps for _, *answers in step for ids in answers}
    assert len(last_ids) == 1, f"answers end with {last_ids}"
    return last_ids.pop()


def preference(steps: Steps, vocab_size: int) -> tuple[Any, list[dict[str, str]]]:
    """Tokenizer and rows for DPOTrainer. The rows of `steps` are [prompt, chosen, rejected]."""
    tokenizer, words = word_tokenizer(vocab_size, _eos(steps))
    texts = [[" ".join(words[i] for i in ids) for ids in row] for step in steps for row in step]
    return tokenizer, [{"prompt": prompt + " ", "chosen": c, "rejected": r} for prompt, c, r in texts]


def check_preference(steps: Steps, dataset: Any) -> None:
    """Check that the data set of DPOTrainer has the same ids."""
    for expected, row in zip((r for step in steps for r in step), dataset, strict=True):
        assert expected == [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]


def completions(steps: Steps, vocab_size: int) -> tuple[Any, list[dict[str, list[int]]]]:
    """Tokenizer and rows for SFTTrainer, which takes ids. The rows of `steps` are [prompt, answer]."""
    tokenizer, _ = word_tokenizer(vocab_size, _eos(steps))
    return tokenizer, [
        {"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        for step in steps
        for prompt, answer in step
    ]
