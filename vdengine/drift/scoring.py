"""Scoring a panel's openings: prompt trees, fixed packs, and when they ride along.

A probe is one tree: its rendered prompt, and every opening as a branch. Probe packs are a pure function of
(panel, tokenizer and template, token budget). They are never rebuilt and never mixed with other rows, so a
probe's numbers have the same bits in any step, at any world size, and outside training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from vdengine.data.trees import Pack, Tree, pack
from vdengine.drift.panel import Branch, Panel, Probe
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.models.chat import Renderer

T = TypeVar("T")


@dataclass
class Forest:
    """Trees in fixed packs, and where each pack's branches stand in one flat order: what rides in a forward."""

    packs: list[Pack]
    slots: list[Tensor]  # per pack: [its branches] int64, index into the flat order
    num_branches: int

    @classmethod
    def plant(cls, trees: Sequence[Tree], slots: Sequence[list[int]], max_tokens: int) -> Forest:
        """Fill packs of at most `max_tokens` tokens with the trees, in order. slots: of each tree its branches' places.

        A tree that is too large is cut into several with the same prompt.

        Raises:
            ValueError: one branch with its prompt is above `max_tokens`.
        """
        packs: list[Pack] = []
        places: list[Tensor] = []
        now: list[Tree] = []
        slot: list[int] = []
        total = 0

        def close() -> None:
            nonlocal now, slot, total
            if now:
                packs.append(pack(now))
                places.append(torch.tensor(slot))
            now, slot, total = [], [], 0

        for tree, of_tree in zip(trees, slots, strict=True):
            for part, of_part in _cut(tree, of_tree, max_tokens):
                size = len(part.prompt) + sum(map(len, part.branches))
                if total + size > max_tokens:
                    close()
                now.append(part)
                slot += of_part
                total += size
        close()
        return cls(packs, places, sum(map(len, slots)))

    @property
    def num_tokens(self) -> int:
        """Rows of a forward over all packs, prompts once."""
        return sum(p.num_tokens for p in self.packs)

    def flops(self, cost: Mapping[str, float], packs: Sequence[int] | None = None) -> float:
        """Work of scoring these packs (default: all) once, in the units of `cost` (linear, quadratic, head)."""
        chosen = self.packs if packs is None else [self.packs[i] for i in packs]
        return sum(
            cost["linear"] * p.num_tokens + cost["quadratic"] * p.num_attention_pairs + cost["head"] * p.num_scored
            for p in chosen
        )

    def to(self, device: torch.device) -> Self:
        """Move the packs, once, to where they are scored."""
        self.packs = [p.to(device) for p in self.packs]
        self.slots = [s.to(device) for s in self.slots]
        return self

    def collect(self, out: Tensor, pack_indexes: Sequence[int], probe_logp: Tensor) -> None:
        """Write the branch sums of the packs a forward scored into `out` [branches] fp32, in the flat order.

        probe_logp [P] fp32: those packs' `Scores.probe_logp`.
        """
        at = 0
        for i in pack_indexes:
            n = self.packs[i].num_scored
            out[self.slots[i]] = self.packs[i].branch_sum(probe_logp[at : at + n])
            at += n


def _cut(tree: Tree, slots: list[int], max_tokens: int) -> Iterator[tuple[Tree, list[int]]]:
    first, size = 0, len(tree.prompt)
    for i, branch in enumerate(tree.branches):
        if len(tree.prompt) + len(branch) > max_tokens:
            raise ValueError(f"{len(tree.prompt)} tokens of prompt and {len(branch)} of a branch; {max_tokens} allowed")
        if size + len(branch) > max_tokens:
            yield Tree(tree.prompt, tree.branches[first:i], id=tree.id), slots[first:i]
            first, size = i, len(tree.prompt)
        size += len(branch)
    yield Tree(tree.prompt, tree.branches[first:], id=tree.id), slots[first:]


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


def deal(packs: Sequence[T], ranks: int, rank: int, micro_steps: int) -> list[list[T]]:
    """This rank's share of the packs, by micro step: round robin over ranks, then over micro steps."""
    mine: list[list[T]] = [[] for _ in range(micro_steps)]
    for position, index in enumerate(packs):
        slot = position % (ranks * micro_steps)
        if slot % ranks == rank:
            mine[slot // ranks].append(index)
    return mine


@dataclass(frozen=True)
class Schedule:
    """The steps at which a run samples its panel, decided before it starts. The last is the run's end."""

    steps: tuple[int, ...]
    cost: float  # estimated share of the training FLOPs

    @classmethod
    def make(
        cls, total: int, *, every: int | None, budget: float | None, panel_cost: float, step_cost: float,
        parts: int = 1, whole_cost: float | None = None,
    ) -> Schedule:  # fmt: skip
        """Every k steps; or as many samples as a budget pays for, dense early. Never a function of scores.

        Args:
            panel_cost, step_cost: FLOPs of scoring the panel once and of one training step, in one unit.
            whole_cost: of the first and the last sample, which also take the controls. Default: panel_cost.
            parts: a sample takes one of so many parts of the panel; the first and the last take all of it, and are
                taken even where the budget does not pay for them.

        With a budget, n samples stand at total * (i / (n-1))^2: drift starts early, when the learning rate peaks
        and the loss is steep.
        """
        if every == 0 or (every is None and not budget):
            return cls((), 0.0)
        ends = 2 * (panel_cost if whole_cost is None else whole_cost)
        if every is not None:
            steps = {*range(0, total, every), total}
        else:
            left = budget * step_cost * total - ends if budget else 0.0
            n = 2 + min(max(math.floor(left * parts / panel_cost), 0), total - 1)
            wanted = [round(total * (i / (n - 1)) ** 2) for i in range(n)]
            # squares crowd at the start: push a step that is taken to the next free one
            chosen: list[int] = []
            for w in wanted:
                chosen.append(max(w, chosen[-1] + 1) if chosen else w)
            steps = {min(c, total) for c in chosen} | {total}
        ordered = tuple(sorted(steps))
        between = (len(ordered) - 2) / parts * panel_cost
        return cls(ordered, (ends + between) / (total * step_cost))

    def index(self, step: int) -> int | None:
        """Which sample `step` is (0, 1, ...), or None where nothing is sampled."""
        position = int(np.searchsorted(self.steps, step))
        return position if position < len(self.steps) and self.steps[position] == step else None
