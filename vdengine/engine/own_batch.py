"""Batches that the embedding program makes itself: the packs of its trees, and the counts over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.distributed as dist
from torch import Tensor

from vdengine.data.batching import Batch, balanced_packs, pack_cost
from vdengine.data.formats import check_branches
from vdengine.data.memory import check_ids
from vdengine.data.store import Store
from vdengine.engine.parallel import World
from vdengine.errors import InputError
from vdengine.objectives import Objective
from vdengine.recipe import Recipe
from vdengine.trees import Pack, Tree, pack

Counts = tuple[int, int, int, int, float]  # packs, trees, tokens, scored tokens, FLOPs of one forward


def own_batch(
    trees: Sequence[Tree] | Pack,
    world: World,
    *,
    branches: int,
    vocab_size: int,
    budget: int,
    flops: Mapping[str, float],
    reference: Tensor | None = None,
    problem: str = "",
) -> tuple[Batch, list[Tensor]]:
    """The batch of a step whose rows each rank gives itself. A collective: what is wrong on one rank is raised on all.

    Args:
        trees: this rank's, maybe none; they are laid out in packs of equal cost. A pack is run as it is.
        branches: of each tree, as the objective reads them.
        vocab_size: of the model.
        budget: tokens of a pack at most.
        flops: `ModelConfig.flops`.
        reference: [branches of the rows] fp32, nats: log-prob sums by a reference model, in the order of the rows.
        problem: what is wrong on this rank already; "" if nothing is.

    Returns:
        The batch, and the part of `reference` that belongs to each of this rank's packs, [B] each; none if not given.

    Raises:
        InputError: on any rank something else than trees or a pack, trees with other branches, unknown ids or more
            tokens than the budget, reference sums of another number; no rows on all ranks.
    """
    packs: list[Pack] = []
    parts: list[Tensor] = []
    counts: Counts | str
    try:
        if problem:
            raise InputError(problem)
        if not isinstance(trees, Pack):
            trees = list(trees)
        chosen = _plan(trees, branches, vocab_size, budget, flops)
        packs = [trees] * len(chosen) if isinstance(trees, Pack) else [pack([trees[i] for i in c]) for c in chosen]
        if reference is not None:
            rows = trees.num_trees if isinstance(trees, Pack) else len(trees)
            if reference.shape != (rows * branches,):
                raise InputError(f"step: reference has shape {tuple(reference.shape)}, must have ({rows * branches},)")
            parts = [reference.float().view(rows, branches)[c].flatten() for c in chosen]
        counts = (
            len(packs),
            sum(p.num_trees for p in packs),
            sum(p.num_tokens for p in packs),
            sum(p.num_scored for p in packs),
            sum(pack_cost(p, flops) for p in packs),
        )
    except InputError as error:
        counts = str(error)
    except Exception as error:  # whatever it is, the other ranks must not wait
        counts = f"step: {type(error).__name__}: {error}"
    gathered: list[Counts | str] = [counts] * world.size
    if world.size > 1:
        dist.all_gather_object(gathered, counts)
    for rank, found in enumerate(gathered):
        if isinstance(found, str):
            raise InputError(f"rank {rank}: {found}" if world.size > 1 else found)
    micro_steps, *_ = np.max(gathered, axis=0)
    _, examples, tokens, scored, cost = np.sum(gathered, axis=0)
    if not examples:
        raise InputError("step: the batch has no rows" + " on any rank" * (world.size > 1))
    batch = Batch(
        packs=[*packs, *[None] * (int(micro_steps) - len(packs))],
        rows=np.full(int(examples), -1),
        num_tokens=int(tokens),
        num_scored=int(scored),
        cost=float(cost),
        imbalance=0.0,
    )
    return batch, parts


def _plan(
    trees: Sequence[Tree] | Pack, branches: int, vocab_size: int, budget: int, flops: Mapping[str, float]
) -> list[list[int]]:
    """This rank's trees, checked, of each pack."""
    if isinstance(trees, Pack):
        _check_pack(trees, branches, vocab_size)
        return [list(range(trees.num_trees))] if trees.num_trees else []
    for number, tree in enumerate(trees, 1):
        where = f"step: batch row {number}"
        if not isinstance(tree, Tree):
            raise InputError(f"{where}: a {type(tree).__name__}; a batch is a list of vd.Tree, or one vd.Pack")
        check_branches(tree, where, branches)
        check_ids(tree, where, vocab_size)
        tokens = len(tree.prompt) + sum(map(len, tree.branches))
        if tokens > budget:
            raise InputError(f"{where}: {tokens} tokens (prompt and branches), above batch.tokens = {budget}")
    return balanced_packs(trees, flops, budget)


def _check_pack(p: Pack, branches: int, vocab_size: int) -> None:
    if p.num_branches != branches * p.num_trees:
        raise InputError(f"step: a pack of {p.num_trees} trees and {p.num_branches} branches; a tree has {branches}")
    distinct, _ = p.token_inverse  # ascending
    if len(distinct) and not 0 <= int(distinct[-1]) < vocab_size:
        raise InputError(f"step: token id {int(distinct[-1])}; the model has the ids 0 to {vocab_size - 1}")


def own_probes(probes: Pack | Sequence[Pack] | None, vocab_size: int) -> list[Pack]:
    """The packs that a step is given to score; empty ones are left out.

    Raises:
        InputError: something else than packs, or an id that the model does not have.
    """
    given = [] if probes is None else [probes] if isinstance(probes, Pack) else list(probes)
    for p in given:
        if not isinstance(p, Pack):
            raise InputError(f"step: probes has a {type(p).__name__}; it is one vd.Pack, or a list of them")
        distinct, _ = p.token_inverse  # ascending
        if len(distinct) and not 0 <= int(distinct[-1]) < vocab_size:
            raise InputError(f"step: probes: token id {int(distinct[-1])}; the model has the ids 0 to {vocab_size - 1}")
    return [p for p in given if p.num_trees]


def misused(
    batch: Sequence[Tree] | Pack | None, reference: Tensor | None, *, objective: Objective, has_data: bool, cached: bool
) -> str:
    """What is wrong with what a step is given, before the batch itself is looked at; "" if nothing is.

    Args:
        cached: the run's reference is that of rows of its data.
    """
    if batch is None and not has_data:
        return "step: the run has no data (data.train, or data=); give the step its batch"
    if batch is not None and objective.rollout:
        return f"step: a batch has no effect with {objective.name}, which learns from its rollouts"
    if batch is not None and objective.rows == "unpaired":
        return f"step: trees have no labels, which {objective.name} reads; give its rows as data"
    if batch is not None and cached and reference is None:
        return (
            'step: objective.reference = "cached" is of rows of the data; give the batch\'s own log-prob sums as '
            'reference=, or set objective.reference = "live"'
        )
    if reference is not None and not (batch is not None and cached):
        return 'step: reference has no effect without a batch and objective.reference = "cached"'
    if reference is not None and not isinstance(reference, Tensor):
        return f"step: reference is a {type(reference).__name__}; a tensor of log-prob sums is needed"
    return ""


def no_rows(recipe: Recipe) -> Store:
    """The store of a run that is given all its batches.

    Raises:
        InputError: a recipe that cannot do without rows.
    """
    objective: Objective = recipe.objective.declaration
    if objective.rollout:
        raise InputError(f"data.train is missing: {objective.name} reads prompts")
    if objective.rows == "unpaired":
        raise InputError(f"data.train is missing: {objective.name} reads labels, which trees do not have")
    if recipe.run.steps is None:
        raise InputError("run.steps is needed: without data nothing says how long run.epochs are")
    if recipe.probes.budget is not None:
        raise InputError("probes.every is needed: without data nothing says what a step costs (probes.budget)")
    if recipe.data.eval_fraction:
        raise InputError("data.eval_fraction: without data there is nothing to hold out; give eval_data")
    return Store.empty(objective.rows)
