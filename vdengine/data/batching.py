"""How trees become packs: balanced ones for a batch of training examples, fixed ones for what is scored beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vdengine import _native
from vdengine.models.transformer import Transformer
from vdengine.trees import Pack, Tree, pack

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step. `packs` has one entry per micro-step, as many on every rank; None where the
    rank has nothing to do (it must still run a forward). The counts are those of the whole step, over all ranks:
    the losses' denominators, known before the first forward."""

    packs: list[Pack | None]
    rows: np.ndarray  # [examples] int64: the step's tree ids, all ranks
    num_tokens: int
    num_scored: int
    cost: float  # FLOPs of one forward, all ranks
    imbalance: float  # sum over micro-steps of the slowest rank's cost, over the mean rank's; minus 1

    @property
    def num_examples(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Plan:
    """Which of n trees go into which rank's pack of which micro step, balanced by cost; the same on every rank."""

    bins: np.ndarray  # [n] int64: micro step * ranks + rank
    micro_steps: int
    ranks: int
    cost: np.ndarray  # [n] float64

    @classmethod
    def make(cls, num_tokens: np.ndarray, cost: np.ndarray, ranks: int, budget: int) -> Plan:
        """num_tokens [n] int64 and cost [n] float64 of each tree; no pack is above `budget` tokens.

        Raises:
            ValueError: a tree above the budget.
        """
        bins, micro_steps = _native.plan_packs(num_tokens, cost, ranks, budget)
        return cls(bins, micro_steps, ranks, cost)

    def share(self, rank: int) -> Iterator[np.ndarray]:
        """The rank's trees, micro step by micro step: [trees] int64, indexes into the n; empty where it has none."""
        for micro in range(self.micro_steps):
            yield np.flatnonzero(self.bins == micro * self.ranks + rank)

    @property
    def imbalance(self) -> float:
        """Sum over micro steps of the slowest rank's cost, over the mean rank's; minus 1."""
        each = np.bincount(self.bins, weights=self.cost, minlength=self.micro_steps * self.ranks)
        return float(each.reshape(-1, self.ranks).max(axis=1).sum() * self.ranks / self.cost.sum() - 1.0)


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

    @torch.no_grad()
    def score(self, model: Transformer, packs: Sequence[int] | None = None, title: str | None = None) -> Tensor:
        """Log-prob sums of all branches by a plain model: [branches] fp32, in the flat order, on the model's device;
        NaN for those of packs that are left out. `packs`: default all; `title`: that of a progress bar.
        """
        device = next(model.parameters()).device
        self.to(device)
        chosen = range(len(self.packs)) if packs is None else packs
        out = torch.full((self.num_branches,), torch.nan, device=device)
        for i in tqdm(chosen, desc=title, unit="pack", leave=False, disable=title is None):
            probe_logp = model(None, self.packs[i]).probe_logp
            if probe_logp is None:
                raise RuntimeError("a forward of probes alone gives their log-probs")
            self.collect(out, [i], probe_logp)
        return out

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


def deal(packs: Sequence[T], ranks: int, rank: int, micro_steps: int) -> list[list[T]]:
    """This rank's share of the packs, by micro step: round robin over ranks, then over micro steps."""
    mine: list[list[T]] = [[] for _ in range(micro_steps)]
    for position, index in enumerate(packs):
        slot = position % (ranks * micro_steps)
        if slot % ranks == rank:
            mine[slot // ranks].append(index)
    return mine
