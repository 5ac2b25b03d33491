"""A panel's openings as prompt trees in fixed packs.

A probe is one tree: its rendered prompt, and every opening as a branch. Probe packs are a pure function of
(panel, tokenizer and template, token budget). They are never rebuilt and never mixed with other rows, so a
probe's numbers have the same bits in any step, at any world size, and outside training.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdengine.data.batching import Forest
from vdengine.errors import InputError
from vdengine.panels.panel import Branch, Panel, Probe
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree

# Prompts without content: what an opening's log-prob does after them is not an answer to anything.
NULL_PROMPT = "N/A"
CONTROLS = "controls"  # the built-in panel of trivial matters


@dataclass
class Openings(Forest):
    """The openings readout of one panel. The panel's own questions come first, in panel order; then, if asked for, the
    controls: a paraphrase of each question, the same openings after a prompt without content, and trivial matters."""

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

        Raises:
            InputError: a probe without openings, or one that does not fit `max_tokens`.
        """
        wanted = [(panel, "question")]
        if controls:
            wanted += [(panel, "paraphrase"), (panel, "null"), (Panel.load(CONTROLS), "off-topic")]
        branches: list[Branch] = []
        ids: list[list[int]] = []
        forests = []
        for these, variant in wanted:
            asked = {i: q for i, p in enumerate(these.probes) if (q := _question(p, variant))}
            first = {}  # of each probe's branches, in panel order
            for i in asked:
                first[i] = len(branches)
                branches += these.probes[i].branches(variant)
            ids += [renderer.opening_ids(b.text) for b in branches[len(ids) :]]
            trees, slots = [], []
            for i in (i for i in stratified_order(these) if i in asked):
                probe = these.probes[i]
                own = list(range(first[i], first[i] + sum(map(len, probe.openings.values()))))
                if not own:
                    raise InputError(f"panel {these.name}: probe {probe.id} has no openings to score")
                prompt = renderer.prompt_ids([{"role": "user", "content": asked[i]}], opening=True)
                tree = Tree(prompt, [ids[k] for k in own], id=i)
                size = len(prompt) + sum(map(len, tree.branches))
                if size > max_tokens:
                    raise InputError(
                        f"panel {these.name}: probe {probe.id} has {size} tokens with its openings; "
                        f"probes.tokens is {max_tokens}"
                    )
                trees.append(tree)
                slots.append(own)
            forests.append(Forest.plant(trees, slots, max_tokens))
        packs, places = [p for f in forests for p in f.packs], [s for f in forests for s in f.slots]
        return cls(packs, places, len(branches), panel, branches, [len(i) for i in ids], len(forests[0].packs))

    def part(self, sample: int, parts: int) -> list[int]:
        """Pack indexes of the sample-th sample: every `parts`-th pack of the panel's questions, rotating."""
        return list(range(sample % parts, self.num_questions, parts))


def _question(probe: Probe, variant: str) -> str | None:
    """What a probe's openings follow in a variant; None where it has no such."""
    if variant == "paraphrase":
        return probe.paraphrases[0] if probe.paraphrases else None
    return NULL_PROMPT if variant == "null" else probe.prompt


def stratified_order(panel: Panel) -> list[int]:
    """Probe indexes: the first of each (topic, polarity), then the second of each, and so on."""
    seen: dict[tuple[str, int], int] = {}
    ranked = []
    topics = {t: i for i, t in enumerate(panel.topics)}
    for index, probe in enumerate(panel.probes):
        stratum = (probe.topic, probe.polarity)
        seen[stratum] = seen.get(stratum, -1) + 1
        ranked.append((seen[stratum], topics[probe.topic], -probe.polarity, index))
    return [index for *_, index in sorted(ranked)]
