"""The order of the training data: which examples each step trains on, and their packs.

An example is one tree of the store. A store of prompts has an order (`Loader.rows`) but no packs, because its trees
have no branches until the model has answered. Everything here is a pure function of (store, weights, seed, examples per
step, step). So there is no position to save, and any number of ranks trains on the same examples in the same steps. The
order comes from `noise.counted_hash`, so it does not change with the version of a library.
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
    """The order of the data, and the packs of each step.

    Args:
        store: may be empty, of a run that is given its batches; there are held-out rows then, or none.
        examples: per step, over all ranks.
        weights: passes over each source per epoch. 1: every row once. 2.5: every row twice, and half of the rows once
            more, the other half in the next epoch. 0.1: a tenth of the rows, another tenth in each epoch. Default: 1.
        evaluation: a store of held-out data, or the share of each source's rows to hold out. Held-out rows are never
            trained on. They do not depend on the seed, so that runs with several seeds have the same ones.
        eval_examples: at most so many held-out examples are used, the first in hash order.
        flops: keyword arguments of `tree_cost` (`ModelConfig.flops`), by which packs are balanced; default: by tokens.
        prefetch: whether a thread makes the next step's packs during the present step.
        pin: whether packs are in page-locked memory, for copies that the host does not wait for.

    Raises:
        InputError: a weight that is not positive, or that takes no row; a share that leaves no row to train on.
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
        self.epoch_examples = sum(passes * len(rows) + partial for rows, passes, partial in self._sources)
        self.steps_per_epoch = math.ceil(self.epoch_examples / examples)
        self._flops = flops or {"linear": 1.0, "quadratic": 0.0}
        self._pin = pin
        self.cost = self._tree_cost(store)  # [trees] float64, FLOPs of one forward
        self._orders: dict[int, np.ndarray] = {}  # [epoch_examples] int64 of recent epochs; others are recomputed
        self._checked_budget = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader") if prefetch else None
        self._next: tuple[tuple[int, int, int, int], Future[Batch]] | None = None

    def _tree_cost(self, store: Store) -> np.ndarray:
        return tree_cost(store.prompt_len, store.branch_len, store.tree_start, store.num_scored, **self._flops)

    def epoch_of(self, step: int) -> int:
        """The epoch of a step, both from 0."""
        return step // self.steps_per_epoch

    def examples_before(self, step: int) -> int:
        """How many examples the steps before this one have."""
        epoch, i = divmod(step, self.steps_per_epoch)
        return epoch * self.epoch_examples + i * self.examples

    def rows(self, step: int) -> np.ndarray:
        """The tree ids of step `step` (from 0), of all ranks, in order: [examples] int64; the last step of an epoch may
        have fewer."""
        epoch, i = divmod(step, self.steps_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            order = self._order(epoch)
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {epoch: order}
        return order[i * self.examples : (i + 1) * self.examples]

    def _order(self, epoch: int) -> np.ndarray:
        """The tree ids of one epoch, shuffled: [epoch_examples] int64."""
        ids_of_pass, copies_of_pass = [], []
        for rows, passes, partial in self._sources:
            for copy in range(passes):
                ids_of_pass.append(rows)
                copies_of_pass.append(np.full(len(rows), copy))
            if partial:
                # The partial pass is a window over a fixed permutation, which advances by its length in each epoch. So
                # every row is taken once before any is taken again.
                permutation = rows[np.argsort(counted_hash(rows, self.seed, PART), kind="stable")]
                window = np.arange(epoch * partial, (epoch + 1) * partial)
                ids_of_pass.append(np.take(permutation, window, mode="wrap"))
                copies_of_pass.append(np.full(partial, passes))
        ids, copies = np.concatenate(ids_of_pass), np.concatenate(copies_of_pass)  # [epoch_examples] each
        # Row and copy are hashed separately: with a hash of their sum, different pairs would have equal keys.
        keys = counted_hash(ids, self.seed, ORDER, epoch) ^ counted_hash(copies, self.seed, ORDER, epoch, -1)
        return ids[np.lexsort((copies, ids, keys))]

    def batch(self, step: int, ranks: int, rank: int, budget: int) -> Batch:
        """The packs of rank `rank` in step `step`, of at most `budget` tokens each.

        While the caller runs them, a thread makes those of the next step. An error of the thread is raised by the call
        that asks for that step.

        Raises:
            InputError: a tree, of any step, above the budget.
        """
        key = (step, ranks, rank, budget)
        prefetched, self._next = self._next, None
        batch = prefetched[1].result() if prefetched and prefetched[0] == key else self._make(*key)
        if self._pool:
            next_key = (step + 1, ranks, rank, budget)
            self._next = (next_key, self._pool.submit(self._make, *next_key))
        return batch

    def packs(self, step: int, ranks: int, rank: int, budget: int) -> list[Pack | None]:
        """`batch(...).packs`."""
        return self.batch(step, ranks, rank, budget).packs

    def eval_packs(self, ranks: int, rank: int, budget: int) -> Iterator[Pack | None]:
        """This rank's packs of the held-out examples, made one at a time, as many on every rank.

        Raises:
            InputError: a tree above the budget.
        """
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
        """Check that no tree, for training or evaluation, is longer than `budget` tokens.

        Raises:
            InputError: one is; the message names the longest.
        """
        if self._checked_budget == budget:
            return
        training_rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _, _ in self._sources)])
        for store, rows in ((self.store, training_rows), (self.eval_store, self.eval_rows)):
            if len(rows) == 0:
                continue
            longest = int(rows[np.argmax(store.num_tokens[rows])])
            tokens = int(store.num_tokens[longest])
            if tokens > budget:
                raise InputError(
                    f"batch.tokens: {store.where(longest)} has {tokens} tokens (prompt and branches), above the "
                    f"budget of {budget}; raise batch.tokens to at least {tokens} or lower data.max_tokens"
                )
        self._checked_budget = budget

    def _make(self, step: int, ranks: int, rank: int, budget: int) -> Batch:
        """`batch`, made now."""
        self.check_budget(budget)
        rows = self.rows(step)
        tokens, cost = self.store.num_tokens[rows], self.cost[rows]  # [examples] each
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
        """End the thread. The loader can still be used without it."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._next = None


def _hold_out(store: Store, fraction: float) -> np.ndarray:
    """Which trees to hold out, [n] bool: those of `fraction` of each source's rows, at least of one. All trees of a row
    (of a conversation there may be several) are held out together.

    Raises:
        InputError: a fraction out of range, or one that leaves no row to train on.
    """
    mask = np.zeros(len(store), dtype=bool)
    if fraction == 0.0:
        return mask
    if not 0.0 < fraction < 1.0:
        raise InputError(f"data.eval_fraction: {fraction} is out of range; it must be in [0, 1)")
    for k, info in enumerate(store.sources):
        trees = slice(store.source_start[k], store.source_start[k + 1])
        row_index = np.asarray(store.row_index[trees])  # [trees of the source]
        unique = np.unique(row_index)  # [rows of the source]
        count = max(1, round(fraction * len(unique)))
        if count >= len(unique):
            raise InputError(
                f"data.eval_fraction: {fraction} of {info.name} ({len(unique)} rows) leaves no row to train on"
            )
        chosen = unique[np.argsort(counted_hash(unique, HELD_OUT, 0), kind="stable")[:count]]
        mask[trees] = np.isin(row_index, chosen)
    return mask


def _weigh(store: Store, held_out: np.ndarray, weights: Sequence[float] | None) -> list[tuple[np.ndarray, int, int]]:
    """For each source: its training trees [n] int64, whole passes per epoch, and trees of the partial pass.

    Raises:
        InputError: weights that do not fit the sources, or one that is not positive or takes no row.
    """
    weights = list(weights) if weights else [1.0] * len(store.sources)
    if len(weights) != len(store.sources):
        raise InputError(f"data.weights: {len(weights)} weights for {len(store.sources)} sources")
    result = []
    for k, (info, weight) in enumerate(zip(store.sources, weights, strict=True)):
        start, stop = int(store.source_start[k]), int(store.source_start[k + 1])
        rows = start + np.flatnonzero(~held_out[start:stop])
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(f"data.weights: {weight} for {info.name}; a weight must be a positive number")
        passes = int(weight)
        partial = round((weight - passes) * len(rows))
        if passes * len(rows) + partial == 0:
            raise InputError(f"data.weights: {weight} for {info.name} takes none of its {len(rows)} rows")
        result.append((rows, passes, partial))
    return result
