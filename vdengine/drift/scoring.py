"""Scoring a panel's openings: prompt trees, fixed packs, and when they ride along.

A probe is one tree: its rendered prompt, and every opening as a branch. Probe packs are a pure function of
(panel, tokenizer and template, token budget). They are never rebuilt and never mixed with other rows, so a
probe's numbers have the same bits in any step, at any world size, and outside training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vdengine.data.trees import Pack, Tree, pack
from vdengine.drift.panel import Branch, Panel
from vdengine.errors import InputError

if TYPE_CHECKING:
    from vdengine.models.chat import Renderer


@dataclass
class Openings:
    """The openings readout of one panel: packs, and where each pack's branches stand in panel order."""

    panel: Panel
    branches: list[Branch]
    num_tokens: list[int]  # of each branch, panel order
    packs: list[Pack]
    slots: list[Tensor]  # per pack: [its branches] int64, index into panel order
    prompt_tokens: int  # over all packs, each prompt once

    @classmethod
    def build(cls, panel: Panel, renderer: Renderer, max_tokens: int) -> Openings:
        """Render, tokenise and pack a panel.

        Opening ids follow the prompt's ids; nothing is tokenised across the boundary, and openings carry no end
        token. Probes go into packs in an order that alternates topics and polarities, so that a part of the packs
        is a mixed part of the panel: balanced to within a probe or two of each kind, not exactly.

        Raises:
            InputError: a probe does not fit `max_tokens`.
        """
        branches = panel.branches()
        ids = [renderer.opening_ids(b.text) for b in branches]
        of_probe: list[list[int]] = [[] for _ in panel.probes]
        for index, branch in enumerate(branches):
            of_probe[branch.probe].append(index)
        packs: list[Pack] = []
        slots: list[Tensor] = []
        trees: list[Tree] = []
        slot: list[int] = []
        total = prompts = 0

        def close() -> None:
            nonlocal trees, slot, total
            if trees:
                packs.append(pack(trees))
                slots.append(torch.tensor(slot))
            trees, slot, total = [], [], 0

        for probe in _stratified_order(panel):
            prompt = renderer.prompt_ids([{"role": "user", "content": panel.probes[probe].prompt}], opening=True)
            tree = Tree(prompt, [ids[i] for i in of_probe[probe]], id=probe)
            size = len(prompt) + sum(len(b) for b in tree.branches)
            if size > max_tokens:
                raise InputError(
                    f"panel {panel.name}: probe {panel.probes[probe].id} has {size} tokens with its openings; "
                    f"probes.tokens is {max_tokens}"
                )
            if total + size > max_tokens:
                close()
            trees.append(tree)
            slot += of_probe[probe]
            total += size
            prompts += len(prompt)
        close()
        return cls(panel, branches, [len(i) for i in ids], packs, slots, prompts)

    def to(self, device: torch.device) -> Openings:
        """Move the packs, once, to where they are scored."""
        self.packs = [p.to(device) for p in self.packs]
        self.slots = [s.to(device) for s in self.slots]
        return self

    def part(self, sample: int, parts: int) -> list[int]:
        """Pack indexes of the sample-th sample: every `parts`-th pack, rotating; 1: all."""
        return list(range(sample % parts, len(self.packs), parts))

    def collect(self, out: Tensor, pack_indexes: list[int], probe_logp: Tensor) -> None:
        """Write the branch sums of the packs a forward scored into `out` [branches] fp32, in panel order.

        probe_logp [P] fp32: those packs' `Scores.probe_logp`.
        """
        at = 0
        for i in pack_indexes:
            n = self.packs[i].num_scored
            out[self.slots[i]] = self.packs[i].branch_sum(probe_logp[at : at + n])
            at += n


def _stratified_order(panel: Panel) -> list[int]:
    """Probe indexes: the first of each (topic, polarity), then the second of each, and so on."""
    seen: dict[tuple[str, int], int] = {}
    ranked = []
    topics = {t: i for i, t in enumerate(panel.topics)}
    for index, probe in enumerate(panel.probes):
        stratum = (probe.topic, probe.polarity)
        seen[stratum] = seen.get(stratum, -1) + 1
        ranked.append((seen[stratum], topics[probe.topic], -probe.polarity, index))
    return [index for *_, index in sorted(ranked)]


def deal(pack_indexes: list[int], ranks: int, rank: int, micro_steps: int) -> list[list[int]]:
    """This rank's share of the packs, by micro step: round robin over ranks, then over micro steps."""
    mine: list[list[int]] = [[] for _ in range(micro_steps)]
    for position, index in enumerate(pack_indexes):
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
        cls, total: int, *, every: int | None, budget: float | None, panel_cost: float, step_cost: float, parts: int = 1
    ) -> Schedule:
        """Every k steps; or as many samples as a budget pays for, dense early. Never a function of scores.

        Args:
            panel_cost, step_cost: FLOPs of scoring the panel once and of one training step, in one unit.
            parts: a sample takes one of so many parts of the panel; the first and the last take all of it, and are
                taken even where the budget does not pay for them.

        With a budget, n samples stand at total * (i / (n-1))^2: drift starts early, when the learning rate peaks
        and the loss is steep.
        """
        if every == 0 or (every is None and not budget):
            return cls((), 0.0)
        if every is not None:
            steps = {*range(0, total, every), total}
        else:
            left = budget * step_cost * total - 2 * panel_cost if budget else 0.0
            n = 2 + min(max(math.floor(left * parts / panel_cost), 0), total - 1)
            wanted = [round(total * (i / (n - 1)) ** 2) for i in range(n)]
            # squares crowd at the start: push a step that is taken to the next free one
            chosen: list[int] = []
            for w in wanted:
                chosen.append(max(w, chosen[-1] + 1) if chosen else w)
            steps = {min(c, total) for c in chosen} | {total}
        ordered = tuple(sorted(steps))
        panels = 2 + (len(ordered) - 2) / parts
        return cls(ordered, panels * panel_cost / (total * step_cost))

    def index(self, step: int) -> int | None:
        """Which sample `step` is (0, 1, ...), or None where nothing is sampled."""
        position = int(np.searchsorted(self.steps, step))
        return position if position < len(self.steps) and self.steps[position] == step else None
