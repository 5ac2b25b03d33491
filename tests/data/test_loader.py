"""Which rows each step sees, at any number of ranks, and their packs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vdengine.data.batching import Batch
from vdengine.data.loader import Loader
from vdengine.data.store import Store
from vdengine.errors import InputError


def store_of(*sizes: int, lengths: Sequence[int] | None = None, row_index: Sequence[int] | None = None) -> Store:
    """A store in memory: sources of `sizes` trees with a prompt of 3 tokens and two branches; tree i's token is i."""
    n = sum(sizes)
    branch = np.repeat(np.array(lengths or [2 + i % 7 for i in range(n)], np.int64), 2)
    prompt = np.full(n, 3, np.int64)
    per_tree = prompt + branch.reshape(n, 2).sum(axis=1)
    start = np.cumsum(per_tree) - per_tree
    branch_start = (start[:, None] + 3 + np.stack([np.zeros(n, np.int64), branch[::2]], axis=1)).ravel()
    scored = np.ones(per_tree.sum(), np.uint8)
    for s in start:
        scored[s : s + 3] = 0
    arrays = {
        "tokens": np.repeat(np.arange(n, dtype=np.int32), per_tree),
        "scored": scored,
        "prompt_start": start,
        "prompt_len": prompt,
        "tree_start": np.arange(0, 2 * n + 1, 2, dtype=np.int64),
        "branch_start": branch_start,
        "branch_len": branch,
        "branch_scored": branch.copy(),
        "row_index": np.array(
            row_index if row_index is not None else [i for size in sizes for i in range(size)], np.int64
        ),
        "margin": np.ones(n, np.float32),
        "wanted": np.ones(n, np.uint8),
    }
    infos: list[dict[str, Any]] = [
        {"name": f"source{k}", "format": "preference", "rows": size, "trees": size, "truncated": 0, "dropped": {}}
        for k, size in enumerate(sizes)
    ]
    return Store(Path(), {"hash": "x", "kind": "preference", "max_token_id": n - 1, "sources": infos}, arrays)


def prompts_of(*sizes: int) -> Store:
    """The store of the same trees without their branches."""
    store, none = store_of(*sizes), np.zeros(0, np.int64)
    arrays = store.arrays() | {"row_index": store.row_index, "margin": store.margin, "wanted": store.wanted}
    arrays |= {"tree_start": np.zeros(len(store) + 1, np.int64)}
    arrays |= {name: none for name in ("branch_start", "branch_len", "branch_scored")}
    return Store(Path(), store.manifest | {"kind": "prompts"}, arrays)


def epoch_rows(loader: Loader, epoch: int) -> np.ndarray:
    first = epoch * loader.steps_per_epoch
    return np.concatenate([loader.rows(first + i) for i in range(loader.steps_per_epoch)])


# ---- order


def test_order_is_written_down() -> None:
    """Guards against an order that changes with a library or a rewrite."""
    loader = Loader(store_of(8), examples=8, seed=5)
    assert [loader.rows(step).tolist() for step in (0, 1)] == [[6, 5, 2, 3, 1, 4, 7, 0], [6, 2, 5, 4, 7, 0, 1, 3]]
    loader = Loader(store_of(4, 4), examples=8, seed=5, weights=[1.5, 0.5])
    assert [loader.rows(step).tolist() for step in (0, 1)] == [[6, 2, 3, 3, 1, 7, 0, 1], [2, 5, 0, 4, 0, 1, 3, 2]]


def test_epochs_are_permutations() -> None:
    """Guards against rows seen twice or never, an order that repeats, and a lost remainder."""
    loader = Loader(store_of(50), examples=8, seed=1)
    assert (loader.steps_per_epoch, loader.epoch_examples) == (7, 50)
    assert [len(loader.rows(step)) for step in range(7)] == [8] * 6 + [2]
    epochs = [epoch_rows(loader, e).tolist() for e in range(4)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 4
    assert [loader.epoch_of(step) for step in (0, 6, 7, 13, 14)] == [0, 0, 1, 1, 2]
    other = Loader(store_of(50), examples=8, seed=2)
    assert epoch_rows(other, 0).tolist() != epochs[0]


def test_rows_are_a_function_of_the_step() -> None:
    """Guards against loader state: a resumed run that asks for step k first must see what the first run saw."""
    steps = list(range(30))
    forward = [Loader(store_of(50), examples=8).rows(step).tolist() for step in steps]
    loader = Loader(store_of(50), examples=8)
    assert [loader.rows(step).tolist() for step in reversed(steps)] == forward[::-1]


def test_order_is_even() -> None:
    """Guards against a hash that favours rows: over 2,000 epochs each of 10 rows is first about 200 times."""
    loader = Loader(store_of(10), examples=1, seed=3)
    first = Counter(int(loader.rows(epoch * 10)[0]) for epoch in range(2000))
    # Binomial(2000, 0.1) has a standard deviation of 13.4; 5 of them. The order is fixed, so this cannot flicker.
    assert all(abs(first[row] - 200) < 67 for row in range(10))


def test_weights_are_passes_per_epoch() -> None:
    """Guards against sources mixed by another share than the recipe's, and against parts that see the same rows
    every epoch."""
    loader = Loader(store_of(20, 30, 40), examples=7, weights=[2.5, 1, 0.1], seed=4)
    assert loader.epoch_examples == 50 + 30 + 4
    counts = [Counter(epoch_rows(loader, e).tolist()) for e in range(10)]
    for count in counts:
        assert sorted(count[i] for i in range(20)) == [2] * 10 + [3] * 10
        assert [count[i] for i in range(20, 50)] == [1] * 30
        assert sorted(count[i] for i in range(50, 90)) == [0] * 36 + [1] * 4
    # The other half in the next epoch; each tenth once in ten epochs.
    assert all(counts[0][i] + counts[1][i] == 5 for i in range(20))
    assert all(sum(count[i] for count in counts) == 1 for i in range(50, 90))


def test_prompts_have_an_order(tmp_path: Path) -> None:
    """Guards against a loader that needs branches, or counts those of a neighbour: PPO draws its prompts in the order
    of any other objective, held-out rows left out, and knows what the prompts alone cost."""
    changes: dict[str, Any] = {"examples": 7, "weights": [2.5, 1, 0.1], "seed": 4, "evaluation": 0.1}
    flops = {"linear": 2.0, "quadratic": 0.5, "head": 3.0}
    loader = Loader(prompts_of(20, 30, 40), flops=flops, **changes)
    other = Loader(store_of(20, 30, 40), **changes)
    assert loader.steps_per_epoch == other.steps_per_epoch
    for step in range(2 * loader.steps_per_epoch):
        assert loader.rows(step).tolist() == other.rows(step).tolist()
    # Prompts of 3 tokens: 6 pairs attend, nothing is scored.
    assert loader.cost.tolist() == [2.0 * 3 + 0.5 * 6] * 90
    assert loader.store.num_tokens.tolist() == [3] * 90 and loader.store.num_scored.tolist() == [0] * 90
    loader.check_budget(3)


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1.0], "data.weights: 1 weights for 2 sources"),
        ([1.0, 0.0], "data.weights: 0.0 for source1; a weight must be a positive number"),
        ([1.0, float("nan")], "data.weights: nan for source1; a weight must be a positive number"),
        ([1.0, 0.01], "data.weights: 0.01 for source1 takes none of its 30 rows"),
    ],
)
def test_bad_weights(weights: list[float], message: str) -> None:
    """Guards against a source that is left out without a word."""
    with pytest.raises(InputError) as caught:
        Loader(store_of(20, 30), examples=7, weights=weights)
    assert str(caught.value) == message


# ---- packs


def packs_of(batches: list[Batch]) -> list[int]:
    return sorted(int(i) for batch in batches for pack in batch.packs if pack for i in pack.tree_ids)


def test_same_examples_at_any_number_of_ranks() -> None:
    """Guards against data that depends on the world size: a run resumed on other ranks must go on as it was."""
    loader = Loader(store_of(100), examples=16)
    for step in (0, 3, 6, 7):
        expected = sorted(loader.rows(step).tolist())
        for ranks in (1, 2, 3, 8):
            batches = [loader.batch(step, ranks, rank, 60) for rank in range(ranks)]
            assert packs_of(batches) == expected
            assert len({len(batch.packs) for batch in batches}) == 1
            assert {batch.num_scored for batch in batches} == {int(loader.store.num_scored[expected].sum())}
            for batch in batches:
                assert all(pack is None or pack.num_tokens <= 60 for pack in batch.packs)
                assert batch.num_tokens == int(loader.store.num_tokens[expected].sum())
                assert batch.num_examples == len(expected) and batch.rows.tolist() == loader.rows(step).tolist()
            scored = sum(pack.num_scored for batch in batches for pack in batch.packs if pack)
            assert scored == batches[0].num_scored


def test_packs_hold_the_rows(tmp_path: Path) -> None:
    """Guards against packs assembled from other rows than their tree_ids say."""
    loader = Loader(store_of(40), examples=8)
    for pack in loader.packs(0, 2, 1, 60):
        assert pack is not None
        tokens = loader.store.num_tokens[pack.tree_ids.numpy()]
        assert pack.tokens.tolist() == np.repeat(pack.tree_ids.numpy(), tokens).tolist()


def test_more_ranks_than_examples() -> None:
    """Guards against ranks that run fewer forwards than others, which would hang the collectives."""
    batches = [Loader(store_of(9), examples=8).batch(1, 4, rank, 60) for rank in range(4)]
    assert [[pack is None for pack in batch.packs] for batch in batches].count([True]) == 3
    assert packs_of(batches) == Loader(store_of(9), examples=8).rows(1).tolist()


def test_imbalance() -> None:
    """Guards against a figure that does not mean what it says: the slowest rank's work over the mean, minus 1."""
    flops = {"linear": 1.0, "quadratic": 0.0}
    even = Loader(store_of(4, lengths=[5, 5, 5, 5]), examples=4, flops=flops).batch(0, 4, 0, 100)
    assert even.imbalance == 0.0
    # 3 + 2 * 5 = 13 tokens thrice, 3 + 2 * 18 = 39 once: the mean of 4 ranks is 19.5.
    uneven = Loader(store_of(4, lengths=[5, 5, 5, 18]), examples=4, flops=flops).batch(0, 4, 0, 100)
    assert uneven.imbalance == pytest.approx(39 / 19.5 - 1, abs=1e-12)  # rounding of one division


def test_budget_below_the_longest_tree() -> None:
    """Guards against an error hours into a run: the first batch already knows the longest row of all."""
    loader = Loader(store_of(50, lengths=[4] * 49 + [40]), examples=8)
    expected = (
        "batch.tokens: source0 row 50 has 83 tokens (prompt and branches), above the budget of 64; raise "
        "batch.tokens to at least 83 or lower data.max_tokens"
    )
    with pytest.raises(InputError) as caught:
        loader.batch(0, 2, 0, 64)
    assert str(caught.value) == expected
    loader.check_budget(83)
    held = Loader(store_of(4), examples=4, evaluation=store_of(50, lengths=[4] * 49 + [40]))
    with pytest.raises(InputError, match="^batch.tokens: source0 row 50 has 83 tokens"):
        held.batch(0, 1, 0, 64)


# ---- prefetch


def test_prefetch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a batch made for another step, rank or budget, and against work on the caller's thread."""
    plain, ahead = (Loader(store_of(100), examples=16, prefetch=p) for p in (False, True))
    threads: list[str] = []
    make = ahead._make
    monkeypatch.setattr(ahead, "_make", lambda *a: (threads.append(threading.current_thread().name), make(*a))[1])
    asked = [(0, 2, 1, 60), (1, 2, 1, 60), (2, 2, 1, 60), (9, 2, 1, 60), (10, 2, 0, 60), (11, 2, 0, 80)]
    for key in asked:
        mine, theirs = plain.batch(*key), ahead.batch(*key)
        assert [p and p.tree_ids.tolist() for p in mine.packs] == [p and p.tree_ids.tolist() for p in theirs.packs]
    ahead.close()
    # Steps 0, 9, 10 and 11 were not foreseen.
    assert [name.startswith("loader") for name in threads].count(False) == 4
    assert ahead.batch(0, 2, 1, 60).rows.tolist() == plain.rows(0).tolist()


def test_prefetch_errors_reach_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an error that dies in the thread, or that stops a step which is sound."""
    loader = Loader(store_of(100), examples=16)
    make = loader._make

    def failing(step: int, *args: int) -> Batch:
        if step == 2:
            raise OSError("the disk is gone")
        return make(step, *args)

    monkeypatch.setattr(loader, "_make", failing)
    loader.batch(0, 1, 0, 60)
    loader.batch(1, 1, 0, 60)
    with pytest.raises(OSError, match="the disk is gone"):
        loader.batch(2, 1, 0, 60)
    loader.batch(3, 1, 0, 60)
    loader.close()


# ---- evaluation


def eval_ids(loader: Loader, ranks: int = 1, budget: int = 60) -> list[int]:
    packs = [list(loader.eval_packs(ranks, rank, budget)) for rank in range(ranks)]
    assert len({len(p) for p in packs}) == 1
    return sorted(int(i) for p in packs for pack in p if pack for i in pack.tree_ids)


def test_held_out_rows_are_never_trained_on() -> None:
    """Guards against evaluation on training rows, whatever the weights and the epoch."""
    loader = Loader(store_of(40, 60), examples=8, evaluation=0.1, weights=[1.5, 1], seed=1)
    held = eval_ids(loader)
    assert (sum(i < 40 for i in held), len(held)) == (4, 10)
    assert loader.epoch_examples == 36 + 18 + 54
    seen = {int(i) for e in range(4) for i in epoch_rows(loader, e)}
    assert seen == set(range(100)) - set(held)
    for ranks in (2, 3):
        assert eval_ids(loader, ranks) == held
    # Runs with other seeds are compared on the same rows.
    assert eval_ids(Loader(store_of(40, 60), examples=8, evaluation=0.1, seed=2)) == held


def test_trees_of_a_conversation_are_held_out_together() -> None:
    """Guards against a conversation whose first turns are trained on and whose last is evaluated."""
    row_index = [i // 3 for i in range(60)]
    held = eval_ids(Loader(store_of(60, row_index=row_index), examples=8, evaluation=0.2))
    assert len(held) == 12 and Counter(i // 3 for i in held) == {i // 3: 3 for i in held}


def test_evaluation_store_and_limit() -> None:
    """Guards against an evaluation set that is ignored, trained on, or larger than asked for."""
    loader = Loader(store_of(40), examples=8, evaluation=store_of(25))
    assert eval_ids(loader) == list(range(25)) and loader.epoch_examples == 40
    some = eval_ids(Loader(store_of(40), examples=8, evaluation=store_of(25), eval_examples=5))
    assert len(some) == 5 and some != list(range(5))
    assert eval_ids(Loader(store_of(40), examples=8)) == []
    few = Loader(store_of(40), examples=8, evaluation=0.5, eval_examples=5)
    assert len(eval_ids(few)) == 5 and few.epoch_examples == 20


@pytest.mark.parametrize(
    "fraction, message",
    [
        (1.0, "data.eval_fraction: 1.0 is out of range; it must be in [0, 1)"),
        (-0.1, "data.eval_fraction: -0.1 is out of range; it must be in [0, 1)"),
        (0.9, "data.eval_fraction: 0.9 of source1 (2 rows) leaves no row to train on"),
    ],
)
def test_bad_eval_fraction(fraction: float, message: str) -> None:
    """Guards against a training set that is all held out."""
    with pytest.raises(InputError) as caught:
        Loader(store_of(40, 2), examples=8, evaluation=fraction)
    assert str(caught.value) == message
