"""A judge that runs in this engine: the log-probs of the three labels after a question, an answer and the task.

The labels of an item are branches of one prompt, as openings are: the prompt is computed once. A label's log-prob is
the sum over its tokens; the softmax over the three labels is the stance. Models favour the label that the task names
first, so the task is given in both orders and the two stances are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vdengine.data.batching import Forest
from vdengine.drift.judgements import Stance
from vdengine.errors import InputError
from vdengine.judges.base import MEANING, TASK, Item, JudgeOptions, task
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.weights import build_model, check_vocabulary, open_causal
from vdengine.panels.panel import STANCES
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer
from vdengine.trees import Tree

ORDERS = (STANCES, STANCES[::-1])  # of the labels in the task
_BATCH = 128  # items that are laid out for the model together


class ModelJudge:
    """A local model; source: as `load_model` takes it.

    Raises:
        InputError: a model, tokenizer or template that cannot be read, or that do not belong together.
    """

    def __init__(self, source: str, options: JudgeOptions) -> None:
        device = default_device()
        dtype = compute_dtype(options.dtype, device)
        tokenizer = load_tokenizer(source)
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
            "meaning": MEANING,
            "orders": [list(order) for order in ORDERS],
        }

    def estimate(self, items: Sequence[Item]) -> str:
        """Tokens that judging these takes, in words, from the first 50 items."""
        first = items[:50]
        num_tokens = sum(len(p) for item in first for p in self._prompts(item)) / max(len(first), 1) * len(items)
        return f"{len(items):,} answers, about {num_tokens:,.0f} tokens through {self.name}"

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        """(index, stance) of each item, in order.

        Raises:
            InputError: log-probs that are not finite.
        """
        labels = [self.renderer.opening_ids(stance) for stance in STANCES]
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
            stances = logp.double().softmax(-1).mean(1).cpu().numpy()  # [items, 3]
            for i, (support, neutral, oppose) in enumerate(np.asarray(stances)):
                yield start + i, (float(support), float(neutral), float(oppose))

    def _prompts(self, item: Item) -> list[list[int]]:
        """Token ids of the task in each of `ORDERS`."""
        texts = [task(item.probe.prompt, item.answer, order) for order in ORDERS]
        return [self.renderer.prompt_ids([{"role": "user", "content": t}], opening=True) for t in texts]
