"""A panel's openings as prompt trees in fixed packs.

A probe is one tree: its rendered prompt, and every opening as a branch. Probe packs are a pure function of (panel,
tokenizer and template, token budget). They are never rebuilt and never mixed with other rows, so a probe's numbers have
the same bits in any step, at any world size, and outside training.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdengine.data.batching import Forest
from vdengine.errors import InputError
from vdengine.panels.panel import Branch, Panel, Probe
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree

NULL_PROMPT = "N/A"  # a prompt without content: a shift of openings after it is no answer to a question
CONTROLS = "controls"  # the built-in panel of trivial matters


@dataclass
class Openings(Forest):
    """The openings of one panel, ready to be scored.

    The panel's own questions come first, in panel order. Then, if asked for, the controls: a paraphrase of each
    question, the same openings after a prompt without content, and trivial matters.
    """

    panel: Panel
    branches: list[Branch]
    num_tokens_of: list[int]  # of each branch
    num_questions: int  # packs that hold the panel's own questions

    @classmethod
    def build(cls, panel: Panel, renderer: Renderer, max_tokens: int, *, controls: bool = False) -> Openings:
        """Render, tokenise and pack a panel.

        Opening ids follow the prompt's ids; nothing is tokenised across the boundary, and openings carry no end
        token. Probes go into packs in an order that alternates topics and polarities, so that a part of the packs
        is a mixed part of the panel: balanced to within a probe or two of each kind, not exactly.

        Args:
            max_tokens: of a pack.
            controls: add the controls.

        Raises:
            InputError: a probe without openings, or one that does not fit `max_tokens`.
        """
        variants = [(panel, "question")]
        if controls:
            variants += [(panel, "paraphrase"), (panel, "null"), (Panel.load(CONTROLS), "off-topic")]
        branches: list[Branch] = []
        ids: list[list[int]] = []
        forests = []
        for source, variant in variants:
            questions = {i: text for i, probe in enumerate(source.probes) if (text := _question(probe, variant))}
            first = {}  # by probe: index of its first branch, in panel order
            for i in questions:
                first[i] = len(branches)
                branches += source.probes[i].branches(variant)
            ids += [renderer.opening_ids(branch.text) for branch in branches[len(ids) :]]
            trees, slots = [], []
            for i in (i for i in stratified_order(source) if i in questions):
                probe = source.probes[i]
                slot = list(range(first[i], first[i] + sum(map(len, probe.openings.values()))))  # its branches
                if not slot:
                    raise InputError(f"panel {source.name}: probe {probe.id} has no openings to score")
                prompt = renderer.prompt_ids([{"role": "user", "content": questions[i]}], opening=True)
                tree = Tree(prompt, [ids[k] for k in slot], id=i)
                size = len(prompt) + sum(map(len, tree.branches))
                if size > max_tokens:
                    raise InputError(
                        f"panel {source.name}: probe {probe.id} has {size} tokens with its openings; "
                        f"probes.tokens is {max_tokens}"
                    )
                trees.append(tree)
                slots.append(slot)
            forests.append(Forest.plant(trees, slots, max_tokens))
        return cls(
            [pack for forest in forests for pack in forest.packs],
            [slot for forest in forests for slot in forest.slots],
            len(branches),
            panel,
            branches,
            num_tokens_of=[len(each) for each in ids],
            num_questions=len(forests[0].packs),
        )

    def part(self, sample: int, parts: int) -> list[int]:
        """Indexes of the packs that sample number `sample` takes: every `parts`-th pack of questions, rotating."""
        return list(range(sample % parts, self.num_questions, parts))


def _question(probe: Probe, variant: str) -> str | None:
    """The prompt that a probe's openings follow in a variant; None where the probe has none."""
    if variant == "paraphrase":
        return probe.paraphrases[0] if probe.paraphrases else None
    return NULL_PROMPT if variant == "null" else probe.prompt


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
