"""Packs of a panel's openings."""

import pytest
from helpers.tiny import write_tiny_model

from vdengine.drift.openings import Openings
from vdengine.errors import InputError
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> Renderer:
    return Renderer(load_tokenizer(str(write_tiny_model(tmp_path_factory.mktemp("m") / "llama", "llama"))))


def test_packs_hold_every_opening_once_and_do_not_change(panel, renderer):
    """Guards the fixed packs: built twice they are equal, and slots are a permutation of the branches."""
    a, b = (Openings.build(panel, renderer, 2048) for _ in range(2))
    assert sorted(int(i) for s in a.slots for i in s) == list(range(len(panel.branches())))
    assert all(p.tokens.equal(q.tokens) for p, q in zip(a.packs, b.packs, strict=True))
    assert max(p.num_tokens for p in a.packs) <= 2048


def test_openings_follow_their_prompt_and_carry_no_end_token(panel, renderer):
    """Guards what is scored: each branch's targets are the opening's own ids, after its probe's prompt."""
    o = Openings.build(panel, renderer, 4096)
    end = renderer.tokenizer.eos_id
    for pack, slots in zip(o.packs, o.slots, strict=True):
        assert end not in pack.targets.tolist()
        for b, slot in enumerate(slots.tolist()):
            ids = pack.targets[pack.branch_offsets[b] : pack.branch_offsets[b + 1]].tolist()
            assert renderer.tokenizer.decode(ids).strip() == o.branches[slot].text
            assert len(ids) == o.num_tokens_of[slot]


def test_parts_are_stratified(panel, renderer):
    """Guards rotating samples: the parts cover the panel, and each holds every topic in both polarities."""
    o = Openings.build(panel, renderer, 6000)
    parts = [o.part(sample, 2) for sample in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(len(o.packs)))
    for part in parts:
        probes = {o.branches[int(i)].probe for p in part for i in o.slots[p]}
        assert len({(p.topic, p.polarity) for p in probes}) == 2 * len(panel.topics)


def test_a_probe_that_does_not_fit(panel, renderer):
    """Guards a budget below one probe: one line with the probe and both numbers."""
    with pytest.raises(InputError, match=r"panel values-mini: probe \S+ has \d+ tokens .*; a pack has at most 64 "):
        Openings.build(panel, renderer, 64)
