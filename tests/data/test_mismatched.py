"""Answers after other rows' prompts: which, how long, and on which rank."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.stores import build, write

from vdengine.data.loader import Loader
from vdengine.data.mismatched import Mismatched
from vdengine.errors import InputError


def rows(n: int) -> list[dict]:
    return [{"prompt": f"p{i}", "completion": chr(97 + i) * (1 + 3 * i), "label": i % 2 == 0} for i in range(n)]


@pytest.fixture
def loader(tmp_path) -> Loader:
    store = build(write(tmp_path / "rows.jsonl", rows(11)), tmp_path, kind="unpaired")
    return Loader(store, examples=4, seed=3, prefetch=False)


def mismatched(loader: Loader, max_tokens: int = 64) -> Mismatched:
    return Mismatched.of_training(loader, 7, max_tokens, {"linear": 1.0}, pin=False)


def trees(of: Mismatched, k: int, ranks: int, budget: int = 128) -> dict[int, tuple[list[int], list[int]]]:
    """Prompt and answer by number, of all ranks."""
    found = {}
    for rank in range(ranks):
        for pack in of.packs(k, ranks, rank, budget):
            if pack is None:
                continue
            for i, number in enumerate(pack.tree_ids.tolist()):
                first, end = pack.cu_seqlens_q[i], pack.cu_seqlens_q[i + 1]
                scored = int(pack.branch_offsets[i + 1] - pack.branch_offsets[i])
                ids = pack.tokens[first:end].tolist()
                assert number not in found
                found[number] = ids[:-scored], ids[-scored:]
    return found


def test_a_prompt_is_given_the_answer_before_it(loader):
    """Guards the pairing within a batch, over epochs whose last batch is smaller, and the numbers of the trees, which
    cached reference sums are found by."""
    of, store, number = mismatched(loader), loader.store, 0
    for k in range(7):
        batch = loader.rows(k)
        found = trees(of, k, ranks=1)
        assert sorted(found) == list(range(number, number + len(batch)))
        for i, row in enumerate(batch):
            prompt, answer = found[number + i]
            assert prompt == store.prompt(row) and answer == store.tree(batch[i - 1]).branches[0]
        number += len(batch)
    assert of.tree_start.tolist() == list(range(number + 1))


def test_ranks_and_packs_do_not_change_it(loader):
    """Guards the step's rows against the number of ranks and the budget."""
    of = mismatched(loader)
    for k in range(3):
        one = trees(of, k, 1)
        assert trees(of, k, 2) == trees(of, k, 3, budget=64) == one
        assert len({len(of.packs(k, 3, rank, 64)) for rank in range(3)}) == 1  # forwards are collectives


def test_a_long_answer_is_cut(tmp_path):
    """Guards max_tokens, and with it batch.tokens: a long prompt may meet the longest answer."""
    long = {"prompt": "p" * 30, "completion": "a", "label": True}
    answers = {"prompt": "q", "completion": "b" * 30, "label": False}
    store = build(write(tmp_path / "rows.jsonl", [long, answers]), tmp_path, kind="unpaired", max_tokens=40)
    loader = Loader(store, examples=2, prefetch=False)
    found = trees(Mismatched.of_training(loader, 1, 40, {"linear": 1.0}, pin=False), 0, 1)
    of_long = next((p, a) for p, a in found.values() if len(p) > 20)
    assert len(of_long[0]) + len(of_long[1]) == 40 and 1 <= len(of_long[1]) < 30


def test_the_hash_is_of_rows_and_order(loader):
    """Guards cached reference sums against another seed, or another length of a run."""
    other = Loader(loader.store, examples=4, seed=4, prefetch=False)
    hashes = {mismatched(loader).hash, mismatched(other).hash, mismatched(loader, 32).hash}
    assert len(hashes) == 3 and mismatched(loader).hash in hashes


def test_one_row(tmp_path):
    """Guards against an answer after its own prompt."""
    store = build(write(tmp_path / "rows.jsonl", rows(1)), tmp_path, kind="unpaired")
    loader = Loader(store, examples=4, prefetch=False)
    with pytest.raises(InputError, match="data.train: one row; at least 2 are needed"):
        mismatched(loader)
    loader.eval_rows = np.zeros(1, np.int64)
    with pytest.raises(InputError, match="data.eval: one held-out row"):
        Mismatched.of_held_out(loader, 64, {"linear": 1.0}, pin=False)
