"""Packs dealt out to ranks and forwards."""

import pytest

from vdengine.data.batching import deal


@pytest.mark.parametrize(("packs", "ranks", "micro_steps"), [(7, 2, 2), (3, 4, 1), (1, 1, 1), (9, 2, 1)])
def test_deal_gives_every_pack_to_one_forward(packs, ranks, micro_steps):
    """Guards against a probe scored twice (its sum over ranks would double) or never."""
    shares = [deal(list(range(packs)), ranks, rank, micro_steps) for rank in range(ranks)]
    assert all(len(share) == micro_steps for share in shares)
    dealt = sorted(i for share in shares for part in share for i in part)
    assert dealt == list(range(packs))
    sizes = [len(part) for share in shares for part in share]
    assert max(sizes) - min(sizes) <= 1
