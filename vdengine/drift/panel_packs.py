"""A panel as prompt trees in fixed packs.

A probe is one tree: its rendered prompt, every opening as a branch, and the spellings of its leads as firsts. Probe
packs are a pure function of (panel, readouts, tokenizer and template, token budget). They are never rebuilt and never
mixed with other rows, so a probe's numbers have the same bits in any step, at any world size, and outside training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vdengine.data.batching import Forest, branch_tree
from vdengine.errors import InputError
from vdengine.panels.panel import CONTROLS, LEADS, OPENINGS, Panel, Request
from vdengine.recipe import READOUTS
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree


@dataclass
class PanelPacks(Forest):
    """What is scored of one panel, in the order of `Panel.requests`.

    Packs of the panel's own questions come first; then, of text likelihood, those of the null prompt, one or more to a
    pack of questions: the openings that no pack before it has. Then, if asked for, the controls.
    """

    panel: Panel
    requests: list[Request]  # of each branch, in the flat order
    null_of: list[list[int]]  # of each pack of questions, the packs of the null prompt that have its openings

    @property
    def num_tokens_of(self) -> list[int]:
        """Tokens of each branch."""
        return [len(request.answer_ids) for request in self.requests]

    @classmethod
    def build(
        cls,
        panel: Panel,
        renderer: Renderer,
        max_tokens: int,
        *,
        controls: bool = False,
        readouts: Sequence[str] = READOUTS,
    ) -> PanelPacks:
        """Render, tokenise and pack a panel.

        Probes go into packs in an order that alternates topics and polarities, so that a part of the packs
        is a mixed part of the panel: balanced to within a probe or two of each kind, not exactly.

        Args:
            max_tokens: of a pack.
            controls: add the controls.
            readouts: some of `READOUTS`.

        Raises:
            InputError: as `Panel.requests`, or a probe that does not fit `max_tokens`.
        """
        requests = panel.requests(renderer, controls=controls, readouts=readouts)
        trivial = Panel.load(CONTROLS)
        places: dict[str, dict[str, list[int]]] = {}  # by variant and probe: of its branches
        null: dict[str, int] = {}  # by text: the place of the opening after the null prompt
        for k, request in enumerate(requests):
            branch = request.branch
            if branch.variant == "null":
                null[request.text] = k
            else:
                places.setdefault(branch.variant, {}).setdefault(branch.probe.id, []).append(k)

        def plant(source: Panel, slots: dict[str, list[int]]) -> Forest:
            trees, in_order = [], []
            for i in (i for i in stratified_order(source) if source.probes[i].id in slots):
                tree, slot = _tree([requests[k] for k in slots[source.probes[i].id]], slots[source.probes[i].id], i)
                size = len(tree.prompt) + sum(map(len, tree.branches))
                if size > max_tokens:
                    raise InputError(
                        f"panel {source.name}: probe {source.probes[i].id} has {size} tokens with its openings; "
                        f"a pack has at most {max_tokens} (probes.tokens)"
                    )
                trees.append(tree)
                in_order.append(slot)
            return Forest.plant(trees, in_order, max_tokens)

        def plant_null(texts: Sequence[str]) -> Forest:
            slot = [null[text] for text in dict.fromkeys(texts)]
            if not slot:
                return Forest([], [], 0)
            tree = Tree(requests[slot[0]].prompt_ids, [requests[k].answer_ids for k in slot])
            return Forest.plant([tree], [slot], max_tokens)

        questions = plant(panel, places["question"])
        forests, null_of, pack_of = [questions], [], dict[str, int]()  # by text: its pack of the null prompt
        count = len(questions.packs)
        for slots in questions.slots:
            texts = [r.text for r in (requests[k] for k in slots.tolist()) if r.branch.channel == OPENINGS]
            new = plant_null([text for text in texts if text not in pack_of])
            for number, of_pack in enumerate(new.slots):
                pack_of |= {requests[k].text: count + number for k in of_pack.tolist()}
            count += len(new.packs)
            forests.append(new)
            null_of.append(sorted({pack_of[text] for text in texts}))
        for variant, source in (("paraphrase", panel), ("off-topic", trivial)):
            if variant in places:
                forests.append(plant(source, places[variant]))
        forests.append(plant_null([text for text in null if text not in pack_of]))
        return cls(
            [pack for forest in forests for pack in forest.packs],
            [slot for forest in forests for slot in forest.slots],
            len(requests),
            panel,
            requests,
            null_of,
        )

    def part(self, sample: int, parts: int) -> list[int]:
        """Indexes of the packs that sample number `sample` takes, without controls: every `parts`-th pack of questions,
        rotating, and the null prompts of their openings."""
        questions = range(sample % parts, len(self.null_of), parts)
        return [*questions, *sorted({i for q in questions for i in self.null_of[q]})]


def _tree(requests: Sequence[Request], places: Sequence[int], id: int) -> tuple[Tree, list[int]]:
    """The tree of one probe and variant, and the places of its branches and firsts in the flat order."""
    # A lead of one token is a first: it needs no token of its own.
    firsts = [k for k, r in zip(places, requests, strict=True) if r.branch.channel == LEADS and len(r.answer_ids) == 1]
    answers = dict(zip(places, (r.answer_ids for r in requests), strict=True))
    return branch_tree(requests[0].prompt_ids, answers, firsts, id)


def stratified_order(panel: Panel) -> list[int]:
    """Probe indexes: the first of each (topic, polarity), then the second of each, and so on."""
    rank: dict[tuple[str, int], int] = {}  # by stratum: of its latest probe
    ranked = []
    topic_index = {topic: i for i, topic in enumerate(panel.topics)}
    for index, probe in enumerate(panel.probes):
        stratum = (probe.topic, probe.polarity)
        rank[stratum] = rank.get(stratum, -1) + 1
        ranked.append((rank[stratum], topic_index[probe.topic], -probe.polarity, index))
    return [index for *_, index in sorted(ranked)]
