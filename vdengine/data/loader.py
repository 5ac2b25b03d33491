"""Which examples each step sees, and their packs.

An example is one tree of the store. A store of prompts has an order (`Loader.rows`) but no packs: the answers that
its trees lack are the model's to give. Everything here is a pure function of (store, weights, seed, examples a step,
step): there is no position to save, and any number of ranks sees the same examples in the same steps. The order
comes from a hash written out below, so it does not change with a library's version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vdengine.data.batching import Batch, Plan
from vdengine.data.store import Store
from vdengine.errors import InputError
from vdengine.noise import HELD_OUT, ORDER, PART, counted_hash
from vdengine.trees import Pack, pack_store, tree_cost


class Loader:
    """Order of the data, and packs of each step.

    `weights`: passes over each source per epoch (1: every row once; 2.5: every row twice, and half of the rows
    once more, the other half in the next epoch; 0.1: a tenth of the rows, another one each epoch).
    `evaluation`: a store of held-out data, or the share of each source's rows to hold out (they are never
    trained on; which rows does not depend on the seed, so that runs with several seeds share them).
    `eval_examples`: at most so many held-out examples are used, the first in hash order.
    `flops`: keyword arguments of `tree_cost`, from the model's size; packs are balanced by it (default: by tokens).
    `pin`: packs in page-locked memory, for copies that the host does not wait for.
    InputError: a weight that is not positive, or that takes no row.
    """

    def __init__(
        self,
        store: Store,
        *,
        examples: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        evaluation: Store | float | None = None,
        eval_examples: int | None = None,
        flops: Mapping[str, float] | None = None,
        prefetch: bool = True,
        pin: bool = False,
    ) -> None:
        self.store, self.seed, self.examples = store, seed, examples
        held_out = np.zeros(len(store), dtype=bool)
        if isinstance(evaluation, Store):
            self.eval_store, self.eval_rows = evaluation, np.arange(len(evaluation))
        else:
            held_out = _hold_out(store, evaluation or 0.0)
            self.eval_store, self.eval_rows = store, np.flatnonzero(held_out)
        if eval_examples is not None and len(self.eval_rows) > eval_examples:
            order = np.argsort(counted_hash(self.eval_rows, HELD_OUT, 1), kind="stable")
            self.eval_rows = np.sort(self.eval_rows[order[:eval_examples]])
        self._sources = _weigh(store, held_out, weights)
        self.epoch_examples = sum(whole * len(rows) + part for rows, whole, part in self._sources)
        self.steps_per_epoch = math.ceil(self.epoch_examples / examples)
        self._flops = flops or {"linear": 1.0, "quadratic": 0.0}
        self._pin = pin
        self.cost = self._tree_cost(store)  # [trees] float64, FLOPs of one forward
        self._orders: dict[int, np.ndarray] = {}  # permutations of recent epochs: recomputed when not here
        self._checked_budget = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader") if prefetch else None
        self._next: tuple[tuple[int, int, int, int], Future[Batch]] | None = None

    def _tree_cost(self, store: Store) -> np.ndarray:
        return tree_cost(store.prompt_len, store.branch_len, store.tree_start, store.num_scored, **self._flops)

    def epoch_of(self, step: int) -> int:
        """Epoch of `step`, both from 0."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """Tree ids of step `step` (from 0), all ranks', in order: [examples] int64; fewer at an epoch's end."""
        epoch, i = divmod(step, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = self._order(epoch)
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {epoch: order}
        return order[i * self.examples : (i + 1) * self.examples]

    def _order(self, epoch: int) -> np.ndarray:
        """The examples of one epoch, shuffled: [epoch_examples] int64."""
        drawn, copies = [], []
        for rows, whole, part in self._sources:
            for copy in range(whole):
                drawn.append(rows)
                copies.append(np.full(len(rows), copy))
            if part:
                # A window over one fixed permutation, which moves on by its length each epoch: every row has had
                # its turn before any has a second.
                fixed = rows[np.argsort(counted_hash(rows, self.seed, PART), kind="stable")]
                drawn.append(np.take(fixed, np.arange(epoch * part, (epoch + 1) * part), mode="wrap"))
                copies.append(np.full(part, whole))
        ids, copy_of = np.concatenate(drawn), np.concatenate(copies)
        # The copy enters by a hash of its own: (row, copy) pairs must not meet as sums would.
        keys = counted_hash(ids, self.seed, ORDER, epoch) ^ counted_hash(copy_of, self.seed, ORDER, epoch, -1)
        return ids[np.lexsort((copy_of, ids, keys))]

    def batch(self, step: int, ranks: int, rank: int, budget: int) -> Batch:
        """Rank `rank`'s packs of step `step`, none above `budget` tokens. While the caller runs them, a thread
        makes the next step's; what it raises is raised by the call that asks for that step. InputError: a tree
        (of any step) above the budget."""
        key = (step, ranks, rank, budget)
        made, self._next = self._next, None
        batch = made[1].result() if made and made[0] == key else self._make(*key)
        if self._pool:
            following = (step + 1, ranks, rank, budget)
            self._next = (following, self._pool.submit(self._make, *following))
        return batch

    def packs(self, step: int, ranks: int, rank: int, budget: int) -> list[Pack | None]:
        """`batch(...).packs`."""
        return self.batch(step, ranks, rank, budget).packs

    def eval_packs(self, ranks: int, rank: int, budget: int) -> Iterator[Pack | None]:
        """This rank's packs of the held-out examples, made one at a time; the same number on every rank."""
        self.check_budget(budget)
        store, rows = self.eval_store, self.eval_rows
        if len(rows) == 0:
            return
        cost = self.cost if store is self.store else self._tree_cost(store)
        for chosen in Plan.make(store.num_tokens[rows], cost[rows], ranks, budget).share(rank):
            yield self._assemble(store, rows[chosen])

    def _assemble(self, store: Store, rows: np.ndarray) -> Pack | None:
        if not len(rows):
            return None
        pack = pack_store(store.arrays(), rows)
        return pack.pin_memory() if self._pin else pack

    def check_budget(self, budget: int) -> None:
        """InputError when any tree, for training or evaluation, is longer than `budget` tokens."""
        if self._checked_budget == budget:
            return
        used = np.concatenate([rows for rows, _, _ in self._sources])
        for store, rows in ((self.store, used), (self.eval_store, self.eval_rows)):
            if len(rows) == 0:
                continue
            worst = int(rows[np.argmax(store.num_tokens[rows])])
            tokens = int(store.num_tokens[worst])
            if tokens > budget:
                raise InputError(
                    f"batch.tokens: {store.where(worst)} has {tokens} tokens (prompt and branches), above the "
                    f"budget of {budget}; raise batch.tokens to at least {tokens} or lower data.max_tokens"
                )
        self._checked_budget = budget

    def _make(self, step: int, ranks: int, rank: int, budget: int) -> Batch:
        self.check_budget(budget)
        rows = self.rows(step)
        tokens, cost = self.store.num_tokens[rows], self.cost[rows]
        plan = Plan.make(tokens, cost, ranks, budget)
        return Batch(
            packs=[self._assemble(self.store, rows[chosen]) for chosen in plan.share(rank)],
            rows=rows,
            num_tokens=int(tokens.sum()),
            num_scored=int(self.store.num_scored[rows].sum()),
            cost=float(cost.sum()),
            imbalance=plan.imbalance,
        )

    def close(self) -> None:
        """Ends the thread. The loader still works without it."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._next = None


def _hold_out(store: Store, fraction: float) -> np.ndarray:
    """Mask [n] of the trees to hold out: `fraction` of each source's rows, at least one. Rows are held out whole
    (the trees of a conversation stay together)."""
    mask = np.zeros(len(store), dtype=bool)
    if fraction == 0.0:
        return mask
    if not 0.0 < fraction < 1.0:
        raise InputError(f"data.eval_fraction: {fraction} is out of range; it must be in [0, 1)")
    for k, info in enumerate(store.sources):
        trees = slice(store.source_start[k], store.source_start[k + 1])
        row_index = np.asarray(store.row_index[trees])
        unique = np.unique(row_index)
        count = max(1, round(fraction * len(unique)))
        if count >= len(unique):
            raise InputError(
                f"data.eval_fraction: {fraction} of {info.name} ({len(unique)} rows) leaves no row to train on"
            )
        chosen = unique[np.argsort(counted_hash(unique, HELD_OUT, 0), kind="stable")[:count]]
        mask[trees] = np.isin(row_index, chosen)
    return mask


def _weigh(store: Store, held_out: np.ndarray, weights: Sequence[float] | None) -> list[tuple[np.ndarray, int, int]]:
    """Per source: its training rows, whole passes per epoch, and rows of the partial pass."""
    weights = list(weights) if weights else [1.0] * len(store.sources)
    if len(weights) != len(store.sources):
        raise InputError(f"data.weights: {len(weights)} weights for {len(store.sources)} sources")
    result = []
    for k, (info, weight) in enumerate(zip(store.sources, weights, strict=True)):
        start, stop = int(store.source_start[k]), int(store.source_start[k + 1])
        rows = start + np.flatnonzero(~held_out[start:stop])
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"data.weights: {weight} for {info.name}; a weight must be a positive number")
        whole = int(weight)
        part = round((weight - whole) * len(rows))
        if whole * len(rows) + part == 0:
            raise InputError(f"data.weights: {weight} for {info.name} takes none of its {len(rows)} rows")
        result.append((rows, whole, part))
    return result
