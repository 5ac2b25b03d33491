"""Batches that the embedding program makes."""

from types import SimpleNamespace

import pytest
import torch

import vdengine as vd
from vdengine.data.batching import pack_cost
from vdengine.engine.own_batch import own_batch
from vdengine.errors import InputError

FLOPS = {"linear": 2.0, "quadratic": 0.5, "head": 3.0}
ALONE = SimpleNamespace(size=1, rank=0)
TREES = [vd.Tree([1, 2, 3], [[4, 5], [6]]), vd.Tree([1], [[7], [8, 9, 10]]), vd.Tree([2] * 6, [[3], [4]])]


def batch_of(trees, branches=2, vocab_size=20, budget=12, reference=None):
    keys = {"branches": branches, "vocab_size": vocab_size, "budget": budget, "reference": reference}
    batch, parts = own_batch(trees, ALONE, flops=FLOPS, **keys)
    return batch if reference is None else (batch, parts)


def test_counts_are_those_of_the_trees():
    """Guards the denominators: trees and scored tokens, whatever the packs; a pack is run as it is."""
    whole = vd.pack(TREES)
    for batch in (batch_of(TREES), batch_of(whole)):
        assert (batch.num_examples, batch.num_tokens, batch.num_scored) == (3, 19, 9)
        assert batch.cost == pytest.approx(pack_cost(whole, FLOPS))
    assert len(batch_of(TREES).packs) == 2 and batch_of(whole).packs == [whole]


def test_reference_sums_follow_their_rows():
    """Guards sums that are given in the order of the batch: each pack has those of its own branches."""
    numbered = [vd.Tree(t.prompt, t.branches, id=i) for i, t in enumerate(TREES)]
    reference = torch.arange(6.0)  # 2 i and 2 i + 1 of tree i
    batch, parts = batch_of(numbered, reference=reference)
    assert len(batch.packs) == len(parts) == 2
    for pack, part in zip(batch.packs, parts, strict=True):
        assert part.tolist() == [2.0 * i + b for i in pack.tree_ids.tolist() for b in (0, 1)]
    assert torch.equal(batch_of(vd.pack(TREES), reference=reference)[1][0], reference)


@pytest.mark.parametrize(
    ("trees", "changes", "message"),
    [
        ([], {}, "the batch has no rows"),
        ([TREES[0], {"prompt": "q"}], {}, "batch row 2: a dict; a batch is a list of vd.Tree, or one vd.Pack"),
        (TREES, {"branches": 1}, "batch row 1: a tree of 2 branches; an answer is 1"),
        (TREES, {"vocab_size": 10}, "batch row 2: token id 10; the model has the ids 0 to 9"),
        (TREES, {"budget": 7}, r"batch row 3: 8 tokens \(prompt and branches\), above batch.tokens = 7"),
        (TREES, {"reference": torch.zeros(3)}, r"reference has shape \(3,\), must have \(6,\)"),
        (vd.pack(TREES), {"reference": torch.zeros(3, 2)}, r"reference has shape \(3, 2\), must have \(6,\)"),
        (vd.pack(TREES), {"branches": 1}, "a pack of 3 trees and 6 branches; a tree has 1"),
        (vd.pack(TREES), {"vocab_size": 10}, "token id 10; the model has the ids 0 to 9"),
    ],
)
def test_bad_batches(trees, changes, message):
    """Guards the kernels against ids and trees that they cannot take, in one line that names the row."""
    with pytest.raises(InputError, match=message):
        batch_of(trees, **changes)
