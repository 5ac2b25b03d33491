"""Packs of a panel."""

import pytest
from helpers.tiny import write_tiny_model

from vdengine.drift.panel_packs import PanelPacks
from vdengine.errors import InputError
from vdengine.panels.panel import Panel
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> Renderer:
    return Renderer(load_tokenizer(str(write_tiny_model(tmp_path_factory.mktemp("m") / "llama", "llama"))))


def branches_of(pack, slots):
    """(slot, target ids, row that predicts the first) of each branch of a pack."""
    for b, slot in enumerate(slots.tolist()):
        scored = slice(pack.branch_offsets[b], pack.branch_offsets[b + 1])
        yield slot, pack.targets[scored].tolist(), int(pack.rows[scored][0])


def test_packs_hold_every_branch_once_and_do_not_change(panel, renderer):
    """Guards the fixed packs: built twice they are equal, and slots are a permutation of the requests."""
    a, b = (PanelPacks.build(panel, renderer, 2048, controls=True) for _ in range(2))
    assert sorted(int(i) for s in a.slots for i in s) == list(range(len(a.requests)))
    assert all(p.tokens.equal(q.tokens) for p, q in zip(a.packs, b.packs, strict=True))
    assert max(p.num_tokens for p in a.packs) <= 2048


@pytest.mark.parametrize("readouts", [["lead"], ["text_likelihood"], ["lead", "text_likelihood"]])
def test_branches_follow_their_prompt_and_carry_no_end_token(panel, renderer, readouts):
    """Guards what is scored: each branch's targets are the request's own ids, after its own prompt; and leads cost no
    tokens but the one that a tree without openings must have."""
    o = PanelPacks.build(panel, renderer, 4096, controls=True, readouts=readouts)
    end, seen = renderer.tokenizer.eos_id, 0
    for pack, slots in zip(o.packs, o.slots, strict=True):
        assert end not in pack.targets.tolist()
        for slot, ids, row in branches_of(pack, slots):
            request = o.requests[slot]
            prompt = request.prompt_ids
            assert ids == request.answer_ids and pack.tokens[row - len(prompt) + 1 : row + 1].tolist() == prompt
            assert renderer.tokenizer.decode(ids).strip() == request.text.strip()
            seen += 1
    assert seen == len(o.requests)
    if readouts == ["lead"]:
        trees = {(r.branch.probe.id, r.branch.variant): len(r.prompt_ids) + 1 for r in o.requests}
        assert o.num_tokens == sum(trees.values())


def test_the_null_prompt_is_shared(panel, renderer):
    """Guards the cheapest layout: an opening that several probes have is scored once after the null prompt, whatever
    part of the panel a sample takes, and every part has all that its questions need."""
    one = panel.probes[0].to_row()
    same = Panel.from_rows([one | {"id": f"p{i}"} for i in range(40)], "same")
    o = PanelPacks.build(same, renderer, 1000, readouts=["text_likelihood"])
    null = [k for k, r in enumerate(o.requests) if r.branch.variant == "null"]
    assert len(null) == 6 and len(o.null_of) > 3 and len(o.packs) == len(o.null_of) + 1
    assert all(o.part(s, 3)[-1] == len(o.packs) - 1 for s in range(3))
    o = PanelPacks.build(panel, renderer, 2048)
    for sample in range(4):
        slots = [k for i in o.part(sample, 4) for k in o.slots[i].tolist()]
        texts = {
            v: {o.requests[k].text for k in slots if o.requests[k].branch.variant == v} for v in ("question", "null")
        }
        leads = {r.text for r in o.requests if r.branch.channel == "leads"}
        assert texts["question"] - leads == texts["null"]


def test_parts_are_stratified(panel, renderer):
    """Guards rotating samples: the parts cover the panel, and each holds every topic in both polarities."""
    o = PanelPacks.build(panel, renderer, 6000)
    parts = [o.part(sample, 2) for sample in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(len(o.packs)))
    for part in parts:
        probes = {o.requests[int(i)].branch.probe for p in part for i in o.slots[p]}
        assert len({(p.topic, p.polarity) for p in probes}) == 2 * len(panel.topics)


def test_a_probe_that_does_not_fit(panel, renderer):
    """Guards a budget below one probe: one line with the probe and both numbers."""
    with pytest.raises(InputError, match=r"panel values-mini: probe \S+ has \d+ tokens .*; a pack has at most 64 "):
        PanelPacks.build(panel, renderer, 64)
