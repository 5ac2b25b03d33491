"""Packs dealt out to ranks and forwards."""

import pytest

from vdengine.data.batching import balanced_packs, deal, pack_cost
from vdengine.trees import Tree, pack


@pytest.mark.parametrize(("packs", "ranks", "micro_steps"), [(7, 2, 2), (3, 4, 1), (1, 1, 1), (9, 2, 1)])
def test_deal_gives_every_pack_to_one_forward(packs, ranks, micro_steps):
    """Guards against a probe scored twice (its sum over ranks would double) or never."""
    shares = [deal(list(range(packs)), ranks, rank, micro_steps) for rank in range(ranks)]
    assert all(len(share) == micro_steps for share in shares)
    dealt = sorted(i for share in shares for part in share for i in part)
    assert dealt == list(range(packs))
    sizes = [len(part) for share in shares for part in share]
    assert max(sizes) - min(sizes) <= 1


def test_balanced_packs_hold_every_tree_once() -> None:
    """Guards batches of one's own: each tree in one pack, none above the budget, and cost as the loader counts it."""
    trees = [Tree([1] * n, [[2] * (n % 3 + 1)] * (1 + n % 2)) for n in (9, 4, 1, 7, 2, 8)]
    flops = {"linear": 2.0, "quadratic": 0.5, "head": 3.0}
    size = [len(t.prompt) + sum(map(len, t.branches)) for t in trees]
    packs = balanced_packs(trees, flops, 16)
    assert sorted(i for chosen in packs for i in chosen) == list(range(6)) and len(packs) >= 3
    assert all(sum(size[i] for i in chosen) <= 16 for chosen in packs)
    whole = pack(trees)
    assert pack_cost(whole, flops) == pytest.approx(sum(pack_cost(pack([t]), flops) for t in trees))
    assert balanced_packs([], flops, 16) == []
