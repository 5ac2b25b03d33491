"""A judge that runs in this engine: the log-probs of the three words after the task (`judges/base.py`), in both orders.

The words are branches of one prompt, as openings are: the prompt is computed once. A word's log-prob is the sum over
its tokens; the softmax over the three is the stance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vdengine.data.batching import Forest
from vdengine.drift.judgements import Verdict
from vdengine.errors import InputError
from vdengine.judges.base import EXAMPLES, ORDERS, TASK, WORDS, Item, JudgeOptions, task, verdict_of
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.peft_config import tokenizer_of
from vdengine.models.weights import build_model, check_vocabulary, open_causal
from vdengine.panels.panel import STANCES
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer
from vdengine.trees import Tree

_BATCH = 128  # items that are laid out for the model together


class ModelJudge:
    """A local model; source: as `load_model` takes it.

    Raises:
        InputError: a model, tokenizer or template that cannot be read, or that do not belong together.
    """

    def __init__(self, source: str, options: JudgeOptions) -> None:
        device = default_device()
        dtype = compute_dtype(options.dtype, device)
        tokenizer = load_tokenizer(tokenizer_of(source))
        self.renderer = Renderer(tokenizer, options.template)
        self.model = build_model(open_causal(source), dtype, device)
        check_vocabulary(self.model.config.vocab_size, tokenizer, self.renderer)
        self.tokens = options.tokens
        self.name = f"model:{source}"
        self.identity: dict[str, Any] = {
            "kind": "model",
            "source": source,
            "tokenizer": self.renderer.hash,
            "dtype": str(dtype).removeprefix("torch."),
            "task": TASK,
            "examples": [list(example) for example in EXAMPLES],
        }

    def estimate(self, items: Sequence[Item]) -> str:
        """Tokens that judging these takes, in words, from the first 50 items."""
        first = items[:50]
        num_tokens = sum(len(p) for item in first for p in self._prompts(item)) / max(len(first), 1) * len(items)
        return f"{len(items):,} questions, about {num_tokens:,.0f} tokens through {self.name}"

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each item, in order.

        Raises:
            InputError: log-probs that are not finite.
        """
        labels = [self.renderer.opening_ids(WORDS[stance]) for stance in STANCES]
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            prompts = [prompt for item in batch for prompt in self._prompts(item)]
            longest = max(map(len, prompts)) + sum(map(len, labels))
            trees = [Tree(prompt, labels, id=i) for i, prompt in enumerate(prompts)]
            slots = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(len(trees))]
            forest = Forest.plant(trees, slots, max(self.tokens, longest))
            logp = forest.score(self.model).view(-1, len(ORDERS), 3)  # [items, orders, labels] fp32
            if not bool(logp.isfinite().all()):
                raise InputError(f"{self.name}: log-probs that are not finite; its weights overflow in this dtype")
            for i, stances in enumerate(logp.double().softmax(-1).tolist()):
                yield start + i, verdict_of(stances)

    def _prompts(self, item: Item) -> list[list[int]]:
        """Token ids of the task in each of `ORDERS`."""
        texts = [task(item.probe.prompt, item.answer, order) for order in ORDERS]
        return [self.renderer.prompt_ids([{"role": "user", "content": t}], opening=True) for t in texts]
