"""Answers after other rows' prompts, by which KTO estimates how far the policy is from the reference (Ethayarajh et
al., arXiv 2402.01306): of each batch the prompt of a row with the answer of the row before it, of the
first one with that of the last. Like the order of the data they are a pure function of (store, seed, step), so that a
resumed run and any number of ranks have the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from vdengine.data.batching import Plan
from vdengine.data.loader import Loader
from vdengine.data.store import Store
from vdengine.errors import InputError
from vdengine.files import json_hash
from vdengine.trees import Pack, pack_store, tree_cost


@dataclass(frozen=True, eq=False)
class Mismatched:
    """The mismatched trees of some batches, numbered through from batch to batch: M in all.

    Args:
        store: of trees with one branch.
        rows: of each batch, [examples] int64.
        start: the number of each batch's first tree.
        batches: how many there are.
        max_tokens: of a tree; a longer one's answer is cut. A row's own prompt and answer have no more, so that at
            least one token of any answer fits.
        flops: keyword arguments of `tree_cost`, by which packs are balanced.
        pin: as `Loader`.
    """

    store: Store
    rows: Callable[[int], np.ndarray]
    start: Callable[[int], int]
    batches: int
    max_tokens: int
    flops: Mapping[str, float]
    pin: bool = False

    @classmethod
    def of_training(cls, loader: Loader, steps: int, max_tokens: int, flops: Mapping[str, float], pin: bool) -> Self:
        """Those of every step of a run.

        Raises:
            InputError: an epoch of one row, which has no other prompt.
        """
        if loader.epoch_examples < 2:
            raise InputError(
                "data.train: one row; at least 2 are needed, because the KL is of answers to other prompts"
            )
        return cls(loader.store, loader.rows, loader.examples_before, steps, max_tokens, flops, pin)

    @classmethod
    def of_held_out(cls, loader: Loader, max_tokens: int, flops: Mapping[str, float], pin: bool) -> Self:
        """Those of the held-out rows, as one batch.

        Raises:
            InputError: there is one row.
        """
        if len(loader.eval_rows) == 1:
            raise InputError("data.eval: one held-out row; at least 2 are needed, because the KL is of other prompts")
        return cls(loader.eval_store, lambda k: loader.eval_rows, lambda k: 0, 1, max_tokens, flops, pin)

    def answers(self, k: int) -> np.ndarray:
        """The rows whose answers batch k's prompts are given, [examples] int64."""
        rows = self.rows(k)
        # the one row that is left of an epoch is given an answer of the batch before
        return np.roll(rows, 1) if len(rows) > 1 else self.rows(k - 1)[-1:]

    def packs(self, k: int, ranks: int, rank: int, budget: int) -> list[Pack | None]:
        """This rank's packs of batch k, as many on every rank, of at most `budget` >= max_tokens tokens each. Their
        tree_ids are the trees' numbers."""
        store, rows = self.store, self.rows(k)
        branch = store.tree_start[self.answers(k)]  # [examples]: each has one
        prompt_len = np.asarray(store.prompt_len[rows])
        branch_len = np.minimum(store.branch_len[branch], self.max_tokens - prompt_len)
        first = np.arange(len(rows) + 1)
        arrays = {
            "tokens": store.tokens,
            "scored": store.scored,
            "tree_start": first,
            "prompt_start": np.asarray(store.prompt_start[rows]),
            "prompt_len": prompt_len,
            "branch_start": np.asarray(store.branch_start[branch]),
            "branch_len": branch_len,
        }
        cost = tree_cost(prompt_len, branch_len, first, branch_len, **self.flops)
        packs: list[Pack | None] = []
        for chosen in Plan.make(prompt_len + branch_len, cost, ranks, budget).share(rank):
            if not len(chosen):
                packs.append(None)
                continue
            laid_out = pack_store(arrays, chosen)
            laid_out = replace(laid_out, tree_ids=laid_out.tree_ids + self.start(k))
            packs.append(laid_out.pin_memory() if self.pin else laid_out)
        return packs

    @property
    def tree_start(self) -> np.ndarray:
        """[M+1] int64: every tree has one branch."""
        return np.arange(self.start(self.batches - 1) + len(self.rows(self.batches - 1)) + 1)

    @cached_property
    def hash(self) -> str:
        """Of all that they are made of."""
        hasher = hashlib.blake2b(digest_size=16)
        for k in range(self.batches):
            hasher.update(self.rows(k).tobytes() + self.answers(k).tobytes())
        return json_hash({"store": self.store.hash, "rows": hasher.hexdigest(), "max_tokens": self.max_tokens})
