"""A judge that runs in this engine: the log-probs of the three labels after a question, an answer and the task.

The labels of an item are branches of one prompt, as openings are: the prompt is computed once. A label's log-prob is
the sum over its tokens; the softmax over the three is the stance. Models lean towards the label that the task names
first, so it is put in both orders and the two stances are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vdengine.drift.panel import STANCES

if TYPE_CHECKING:
    from vdengine.drift.judge import Item, Options, Stance

TASK = """Here is a question, and what somebody answered.

Question: {question}

Answer: {answer}

What stance does the answer take towards what the question proposes?
{labels}
Reply with one word: {words}."""
MEANING = {
    "support": "support: it is in favour of it, or says yes to it",
    "neutral": "neutral: it takes no side, is balanced, declines to answer, or is about something else",
    "oppose": "oppose: it is against it, or says no to it",
}
ORDERS = (STANCES, STANCES[::-1])
_AT_ONCE = 128  # items that are laid out together


def task(question: str, answer: str, order: Sequence[str] = STANCES) -> str:
    """What a judge is asked, whichever model it is."""
    first, second, third = order
    labels = "\n".join(f"- {MEANING[s]}" for s in order)
    return TASK.format(question=question, answer=answer, labels=labels, words=f"{first}, {second} or {third}")


class ModelJudge:
    """Raises InputError for a model, tokenizer or template that cannot be read."""

    def __init__(self, source: str, options: Options) -> None:
        import torch

        from vdengine.models.chat import Renderer
        from vdengine.models.tokenizer import load_tokenizer
        from vdengine.models.weights import load_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        auto = torch.bfloat16 if device == "cuda" else torch.float32
        dtype = auto if options.dtype == "auto" else getattr(torch, options.dtype)
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
        import torch

        from vdengine.data.trees import Tree
        from vdengine.drift.scoring import Forest

        device = next(self.model.parameters()).device
        labels = [self.renderer.opening_ids(s) for s in STANCES]
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            prompts = [p for item in some for p in self._prompts(item)]
            most = max(map(len, prompts)) + sum(map(len, labels))
            trees = [Tree(p, labels, id=i) for i, p in enumerate(prompts)]
            slots = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(len(trees))]
            forest = Forest.plant(trees, slots, max(self.tokens, most)).to(device)
            out = torch.full((forest.num_branches,), torch.nan, device=device)
            with torch.no_grad():
                for i, pack in enumerate(forest.packs):
                    found = self.model(None, pack).probe_logp
                    if found is not None:
                        forest.collect(out, [i], found)
            stance = out.view(-1, len(ORDERS), 3).double().softmax(-1).mean(1).cpu().numpy()
            for i, s in enumerate(np.asarray(stance)):
                yield start + i, (float(s[0]), float(s[1]), float(s[2]))

    def _prompts(self, item: Item) -> list[list[int]]:
        texts = [task(item.probe.prompt, item.answer, order) for order in ORDERS]
        return [self.renderer.prompt_ids([{"role": "user", "content": t}], opening=True) for t in texts]
