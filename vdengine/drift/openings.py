"""A panel's openings as prompt trees in fixed packs.

A probe is one tree: its rendered prompt, and every opening as a branch. Probe packs are a pure function of (panel,
tokenizer and template, token budget). They are never rebuilt and never mixed with other rows, so a probe's numbers have
the same bits in any step, at any world size, and outside training.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdengine.data.batching import Forest
from vdengine.errors import InputError
from vdengine.panels.panel import CONTROLS, Branch, Panel, Request
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree


@dataclass
class Openings(Forest):
    """The openings of one panel, ready to be scored.

    The panel's own questions come first, in panel order. Then, if asked for, the controls: a paraphrase of each
    question, the same openings after a prompt without content, and trivial matters.
    """

    panel: Panel
    requests: list[Request]  # of each branch, in the flat order
    num_questions: int  # packs that hold the panel's own questions

    @property
    def branches(self) -> list[Branch]:
        """The branches in the flat order."""
        return [request.branch for request in self.requests]

    @property
    def num_tokens_of(self) -> list[int]:
        """Tokens of each branch."""
        return [len(request.opening_ids) for request in self.requests]

    @classmethod
    def build(cls, panel: Panel, renderer: Renderer, max_tokens: int, *, controls: bool = False) -> Openings:
        """Render, tokenise and pack a panel.

        Probes go into packs in an order that alternates topics and polarities, so that a part of the packs
        is a mixed part of the panel: balanced to within a probe or two of each kind, not exactly.

        Args:
            max_tokens: of a pack.
            controls: add the controls.

        Raises:
            InputError: a probe without openings, or one that does not fit `max_tokens`.
        """
        requests = panel.requests(renderer, controls=controls)
        branches = [request.branch for request in requests]
        variants = dict.fromkeys(branch.variant for branch in branches)
        forests = []
        for variant in variants:
            source = Panel.load(CONTROLS) if variant == "off-topic" else panel
            places: dict[str, list[int]] = {}  # by probe: of its branches
            for k, branch in enumerate(branches):
                if branch.variant == variant:
                    places.setdefault(branch.probe.id, []).append(k)
            trees, slots = [], []
            for i in (i for i in stratified_order(source) if source.probes[i].id in places):
                slot = places[source.probes[i].id]
                tree = Tree(requests[slot[0]].prompt_ids, [requests[k].opening_ids for k in slot], id=i)
                size = len(tree.prompt) + sum(map(len, tree.branches))
                if size > max_tokens:
                    raise InputError(
                        f"panel {source.name}: probe {source.probes[i].id} has {size} tokens with its openings; "
                        f"a pack has at most {max_tokens} (probes.tokens)"
                    )
                trees.append(tree)
                slots.append(slot)
            forests.append(Forest.plant(trees, slots, max_tokens))
        return cls(
            [pack for forest in forests for pack in forest.packs],
            [slot for forest in forests for slot in forest.slots],
            len(requests),
            panel,
            requests,
            num_questions=len(forests[0].packs),
        )

    def part(self, sample: int, parts: int) -> list[int]:
        """Indexes of the packs that sample number `sample` takes: every `parts`-th pack of questions, rotating."""
        return list(range(sample % parts, self.num_questions, parts))


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
