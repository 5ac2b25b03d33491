"""A judge that runs in this engine: the log-probs of the three labels after a question, an answer and the task.

The labels of an item are branches of one prompt, as openings are: the prompt is computed once. A label's log-prob is
the sum over its tokens; the softmax over the three is the stance. Models lean towards the label that the task names
first, so it is put in both orders and the two stances are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vdengine.data.batching import Forest
from vdengine.drift.judgements import Stance
from vdengine.judges.base import MEANING, TASK, Item, JudgeOptions, task
from vdengine.models.device import compute_dtype, default_device
from vdengine.models.weights import load_model
from vdengine.panels.panel import STANCES
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer
from vdengine.trees import Tree

ORDERS = (STANCES, STANCES[::-1])
_AT_ONCE = 128  # items that are laid out together


class ModelJudge:
    """Raises InputError for a model, tokenizer or template that cannot be read."""

    def __init__(self, source: str, options: JudgeOptions) -> None:
        device = default_device()
        dtype = compute_dtype(options.dtype, device)
        self.renderer = Renderer(load_tokenizer(source), options.template)
        self.model = load_model(source, dtype, device)
        self.tokens = options.tokens
        self.name = f"model:{source}"
        self.identity: dict[str, Any] = {
            "kind": "model", "source": source, "tokenizer": self.renderer.hash,
            "dtype": str(dtype).removeprefix("torch."), "task": TASK, "meaning": MEANING,
            "orders": [list(o) for o in ORDERS],
        }  # fmt: skip

    def estimate(self, items: Sequence[Item]) -> str:
        num_tokens = sum(len(p) for i in items[:50] for p in self._prompts(i)) / max(len(items[:50]), 1) * len(items)
        return f"{len(items):,} answers, about {num_tokens:,.0f} tokens through {self.name}"

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        labels = [self.renderer.opening_ids(s) for s in STANCES]
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            prompts = [p for item in some for p in self._prompts(item)]
            most = max(map(len, prompts)) + sum(map(len, labels))
            trees = [Tree(p, labels, id=i) for i, p in enumerate(prompts)]
            slots = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(len(trees))]
            forest = Forest.plant(trees, slots, max(self.tokens, most))
            out = forest.score(self.model)
            stance = out.view(-1, len(ORDERS), 3).double().softmax(-1).mean(1).cpu().numpy()
            for i, s in enumerate(np.asarray(stance)):
                yield start + i, (float(s[0]), float(s[1]), float(s[2]))

    def _prompts(self, item: Item) -> list[list[int]]:
        texts = [task(item.probe.prompt, item.answer, order) for order in ORDERS]
        return [self.renderer.prompt_ids([{"role": "user", "content": t}], opening=True) for t in texts]
