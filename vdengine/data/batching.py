"""How trees become packs: balanced ones for a batch of training examples, fixed ones for probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from vdengine import _native
from vdengine.models.transformer import Transformer
from vdengine.progress import progress
from vdengine.trees import Pack, Tree, pack, tree_cost

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step. The counts are those of the whole step over all ranks: they are the denominators of
    the losses, which are needed before the first forward."""

    packs: list[Pack | None]  # one per micro-step, as many on every rank; None: no trees, but a forward must be run
    rows: np.ndarray  # [examples] int64: the step's tree ids, all ranks
    num_tokens: int
    num_scored: int
    cost: float  # FLOPs of one forward, all ranks
    imbalance: float  # sum over micro-steps of the slowest rank's cost, over the mean rank's; minus 1

    @property
    def num_examples(self) -> int:
        """Trees of the step, all ranks."""
        return len(self.rows)


@dataclass(frozen=True)
class Plan:
    """The rank and micro-step of each of n trees, balanced by cost. It is the same on every rank."""

    bins: np.ndarray  # [n] int64: micro step * ranks + rank
    micro_steps: int
    ranks: int
    cost: np.ndarray  # [n] float64

    @classmethod
    def make(cls, num_tokens: np.ndarray, cost: np.ndarray, ranks: int, budget: int) -> Plan:
        """Balance the trees so that no pack has more than `budget` tokens.

        Args:
            num_tokens: [n] int64, of each tree.
            cost: [n] float64, of each tree, in any unit.

        Raises:
            ValueError: a tree above the budget.
        """
        bins, micro_steps = _native.plan_packs(num_tokens, cost, ranks, budget)
        return cls(bins, micro_steps, ranks, cost)

    def share(self, rank: int) -> Iterator[np.ndarray]:
        """The rank's trees in each micro-step: [trees] int64, indexes into the n trees; empty where it has none."""
        for micro in range(self.micro_steps):
            yield np.flatnonzero(self.bins == micro * self.ranks + rank)

    @property
    def imbalance(self) -> float:
        """Sum over micro-steps of the slowest rank's cost, over the mean rank's; minus 1."""
        cost_of_bin = np.bincount(self.bins, weights=self.cost, minlength=self.micro_steps * self.ranks)
        return float(cost_of_bin.reshape(-1, self.ranks).max(axis=1).sum() * self.ranks / self.cost.sum() - 1.0)


def balanced_packs(trees: Sequence[Tree], flops: Mapping[str, float], budget: int) -> list[list[int]]:
    """The trees of each pack, as indexes: packs of equal cost, of at most `budget` tokens.

    Args:
        flops: keyword arguments of `tree_cost`.

    Raises:
        ValueError: a tree above the budget.
    """
    if not trees:
        return []
    branches = [branch for tree in trees for branch in tree.branches]
    prompt_len = np.array([len(tree.prompt) for tree in trees])  # [n]
    branch_len = np.array([len(branch) for branch in branches])  # [B]
    tree_start = np.cumsum([0, *(len(tree.branches) for tree in trees)])  # [n+1]
    num_scored = np.array(
        [sum(map(sum, t.scored)) if t.scored is not None else sum(map(len, t.branches)) for t in trees]
    )  # [n]
    num_tokens = prompt_len + np.add.reduceat(branch_len, tree_start[:-1])  # [n]
    cost = tree_cost(prompt_len, branch_len, tree_start, num_scored, **flops)  # [n]
    return [chosen.tolist() for chosen in Plan.make(num_tokens, cost, 1, budget).share(0)]


def pack_cost(pack: Pack, flops: Mapping[str, float]) -> float:
    """The work of one forward of a pack. `flops` is `ModelConfig.flops`, with the keys linear, quadratic and head."""
    pairs = flops["quadratic"] * pack.num_attention_pairs
    return flops["linear"] * pack.num_tokens + pairs + flops["head"] * pack.num_scored


@dataclass
class Forest:
    """Trees in fixed packs that are scored during training, and the place of every branch in one flat order."""

    packs: list[Pack]
    slots: list[Tensor]  # per pack: [its branches] int64, index into the flat order
    num_branches: int  # over all packs

    @classmethod
    def plant(cls, trees: Sequence[Tree], slots: Sequence[list[int]], max_tokens: int) -> Forest:
        """Fill packs of at most `max_tokens` tokens with the trees, in order. A tree that is too large is cut into
        several with the same prompt.

        Args:
            slots: for each tree, the places of its branches in the flat order, and then of its firsts.

        Raises:
            ValueError: a branch with its prompt is above `max_tokens`.
        """
        packs: list[Pack] = []
        pack_slots: list[Tensor] = []
        open_trees: list[Tree] = []  # of the pack that is being filled
        open_slots: tuple[list[int], list[int]] = [], []  # of branches, of firsts
        open_tokens = 0

        def close() -> None:
            nonlocal open_trees, open_slots, open_tokens
            if open_trees:
                packs.append(pack(open_trees))
                pack_slots.append(torch.tensor(open_slots[0] + open_slots[1]))
            open_trees, open_slots, open_tokens = [], ([], []), 0

        for tree, tree_slots in zip(trees, slots, strict=True):
            for part, part_slots in _cut(tree, tree_slots, max_tokens):
                size = len(part.prompt) + sum(map(len, part.branches))
                if open_tokens + size > max_tokens:
                    close()
                open_trees.append(part)
                open_slots[0].extend(part_slots[: len(part.branches)])
                open_slots[1].extend(part_slots[len(part.branches) :])
                open_tokens += size
        close()
        return cls(packs, pack_slots, sum(map(len, slots)))

    @property
    def num_tokens(self) -> int:
        """Tokens of all packs, prompts once."""
        return sum(p.num_tokens for p in self.packs)

    def flops(self, cost: Mapping[str, float], packs: Sequence[int] | None = None) -> float:
        """The work of scoring these packs (default: all) once. `cost` is `ModelConfig.flops`, with the keys linear,
        quadratic and head."""
        chosen = self.packs if packs is None else [self.packs[i] for i in packs]
        return sum(pack_cost(p, cost) for p in chosen)

    def to(self, device: torch.device) -> Self:
        """Move the packs to the device that scores them, in place."""
        self.packs = [p.to(device) for p in self.packs]
        self.slots = [s.to(device) for s in self.slots]
        return self

    @torch.no_grad()
    def score(self, model: Transformer, packs: Sequence[int] | None = None, title: str | None = None) -> Tensor:
        """The log-prob sum of every branch by a plain model: [branches] fp32, nats, in the flat order, on the model's
        device.

        Args:
            packs: those to score; default: all. Branches of other packs are NaN.
            title: of a progress bar; None shows none.
        """
        device = next(model.parameters()).device
        self.to(device)
        chosen = range(len(self.packs)) if packs is None else packs
        out = torch.full((self.num_branches,), torch.nan, device=device)
        for i in progress(chosen, title, "pack"):
            probe_logp = model(None, self.packs[i]).probe_logp
            if probe_logp is None:
                raise RuntimeError("a forward of probes alone gives their log-probs")
            self.collect(out, [i], probe_logp)
        return out

    def collect(self, out: Tensor, pack_indexes: Sequence[int], probe_logp: Tensor) -> None:
        """Write the branch sums of the packs that a forward has scored to their places in `out`.

        Args:
            out: [branches] fp32, in the flat order.
            probe_logp: [P] fp32, `Scores.probe_logp` of these packs.
        """
        start = 0
        for i in pack_indexes:
            n = self.packs[i].num_scored
            out[self.slots[i]] = self.packs[i].branch_sum(probe_logp[start : start + n])
            start += n


def _cut(tree: Tree, slots: list[int], max_tokens: int) -> Iterator[tuple[Tree, list[int]]]:
    """The tree as trees of at most `max_tokens` tokens, each with the whole prompt, and the slots of their branches.
    The last of them has the firsts.

    Raises:
        ValueError: a branch with the prompt is above `max_tokens`.
    """
    first, size = 0, len(tree.prompt)
    for i, branch in enumerate(tree.branches):
        if len(tree.prompt) + len(branch) > max_tokens:
            raise ValueError(f"{len(tree.prompt)} tokens of prompt and {len(branch)} of a branch; {max_tokens} allowed")
        if size + len(branch) > max_tokens:
            yield Tree(tree.prompt, tree.branches[first:i], id=tree.id), slots[first:i]
            first, size = i, len(tree.prompt)
        size += len(branch)
    yield Tree(tree.prompt, tree.branches[first:], id=tree.id, firsts=tree.firsts), slots[first:]


def branch_tree(
    prompt: list[int], answers: Mapping[int, list[int]], firsts: Sequence[int] = (), id: int = -1
) -> tuple[Tree, list[int]]:
    """The tree of a prompt and its answers, and the places of its branches, and then of its firsts.

    Args:
        answers: their ids by place in a flat order.
        firsts: places of answers of one token that need no token of their own.
    """
    branches = [place for place in answers if place not in firsts]
    if not branches:  # a tree has at least one
        branches, firsts = list(firsts[:1]), firsts[1:]
    tree = Tree(prompt, [answers[k] for k in branches], id=id, firsts=[answers[k][0] for k in firsts])
    return tree, [*branches, *firsts]


def deal(packs: Sequence[T], ranks: int, rank: int, micro_steps: int) -> list[list[T]]:
    """This rank's packs in each micro-step: round robin over ranks, then over micro-steps."""
    shares: list[list[T]] = [[] for _ in range(micro_steps)]
    for position, item in enumerate(packs):
        turn = position % (ranks * micro_steps)
        if turn % ranks == rank:
            shares[turn // ranks].append(item)
    return shares
