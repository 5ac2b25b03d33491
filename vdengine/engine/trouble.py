"""What is said of a run that is in trouble: which rows, what to lower, what is left that is good."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from vdengine.data.store import Store
from vdengine.engine import checkpoint
from vdengine.engine.parallel import World, grad_norm, ordered
from vdengine.errors import InputError
from vdengine.objectives import Objective
from vdengine.objectives.base import ADAPTER_OFF
from vdengine.recipe import Recipe
from vdengine.runfolder import RunFolder
from vdengine.trees import Pack

MAX_SKIPPED = 20  # updates in a row; then a run gives up

_FULL = ("can't allocate memory", "not enough memory", "Cannot allocate memory")  # torch's words for a CPU's memory


class NothingLearned(InputError):
    """The run goes on, or has gone on, without learning: its end is no good one, and nothing is exported."""


def row_names(store: Store, ids: Sequence[int]) -> str:
    """Rows by file and line, a few of them. Ids that are none of the store's (of a batch that was given) are told as
    they are; negative ones are of no row."""
    names = [store.where(i) if i < len(store) else f"row {i}" for i in ids if i >= 0]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def spoilt(
    trained: Sequence[checkpoint.Trained], idle: Pack, in_a_row: int, proven: int, total_steps: int, deterministic: bool
) -> bool:
    """Whether a run has come to a bad end: no update was ever applied, the last ones were skipped and not by chance, or
    the models could not learn any more, because their gradients are not finite. A collective.

    Args:
        idle: any pack, on the device. Of weights that are too large gradients overflow before log-probs do, which the
            norms keep small.
        in_a_row: updates skipped at the end.
        proven: the last step whose update was applied; -1: none was.
    """
    by_chance = min(MAX_SKIPPED, max(2, total_steps // 10))
    whole = True
    for t in trained:
        scores = t.model(idle)
        with ordered(deterministic):
            (scores.logp if scores.values is None else scores.values).sum().backward()
        whole &= math.isfinite(float(grad_norm(t.parameters)))
        t.optimizer.zero_grad(set_to_none=True)
    return proven < 0 or not whole or in_a_row >= by_chance


def check_start(recipe: Recipe, row: Mapping[str, float], dtype: torch.dtype, referred: bool) -> None:
    """The first update knows one of its metrics (`Objective.at_start`). A rollout was made by the policy: every ratio
    is 1, whatever the dtype, for the old log-probs come from the same packs and kernels. A reference is the policy: the
    margin is 0, and DPO's loss ln 2.

    Tolerance, in nats of a pair's mean margin: the two differ by rounding when the cache was filled along other packs.
    A sum of some hundred log-probs around 5 carries 1e-4 in fp32; in bf16 activations differ by 2^-8 a layer, 0.03 nats
    a token with random signs, so half a nat. A reference of another model is off by tens.

    Args:
        row: the step's means.
        dtype: that the model computes in.
        referred: whether there is a reference.

    Raises:
        InputError: the reference log-probs are not this model's. The weights have not moved.
        RuntimeError: a ratio that is not 1: the forward does not repeat itself on this device.
    """
    objective: Objective = recipe.objective.declaration
    if objective.at_start is None:
        return
    metric, expected = objective.at_start
    value, name = row.get(metric, math.nan), objective.name.upper()  # of wanted answers, of which it may have none
    if not math.isfinite(value):  # what is not finite is skipped, and named with its rows
        return
    if objective.rollout and abs(value - expected) > 1e-3:
        raise RuntimeError(f"{name} at step 0: the first update's mean {metric} is {value:.6f}, not {expected:g}")
    # It has learned before; or what it has learned is seen through dropout, and the reference's is not.
    without = getattr(recipe.objective, "reference", None) == ADAPTER_OFF
    moved = recipe.lora.start and (without or recipe.lora.dropout > 0)
    if not referred or moved:
        return
    nats = abs(value - expected) / float(getattr(recipe.objective, "beta", 1.0))
    if nats > (1e-2 if dtype == torch.float32 else 1.0):
        where = RunFolder.at(recipe.data.cache).reference
        raise InputError(
            f"{name} at step 0: {metric} is {nats:.4g} nats from {expected:g} (loss {float(row['loss']):.6f}): the "
            f"reference log-probs are not this model's; remove {where} and start again with a new run.folder"
        )


def given_up(run_folder: Path, in_a_row: int, proven: int) -> str:
    """What to do after updates that were skipped; proven: the last step whose weights a good update has followed."""
    good = [k for k in map(checkpoint.step_of, checkpoint.checkpoints(run_folder)) if k <= proven]
    kept = f"the checkpoint of step {good[-1]} is from before it" if good else "no checkpoint is from before it"
    counted = f"the last {in_a_row} updates were skipped" if in_a_row else "the weights are not usable"
    never = ", and none was ever applied" if proven < 0 else ""
    return f"{counted}{never}: lower optimizer.lr or look at the rows named, with a new run.folder; {kept}"


@contextmanager
def memory_for(
    step: int, pack: Pack, probes: Sequence[Pack], *, recipe: Recipe, store: Store, world: World
) -> Iterator[None]:
    """A context in which running out of memory is an error that names the pack, its rows, and what to lower.

    Raises:
        InputError: there was not enough memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not gpu and not isinstance(error, MemoryError) and not any(text in str(error) for text in _FULL):
            raise
        beside = f" beside {sum(p.num_tokens for p in probes):,} tokens of probes" if probes else ""
        place = "this GPU" if world.device.type == "cuda" else "this machine"
        raise InputError(
            f"step {step + 1}, rank {world.rank}: a pack of {pack.num_tokens:,} tokens{beside} does not fit the memory "
            f"of {place} ({row_names(store, pack.tree_ids.tolist()) or 'no rows'}); {_lower(recipe)}"
        ) from error


def _lower(r: Recipe) -> str:
    """What to do where a pack does not fit."""
    saving = [] if r.parallel.activation_checkpoint == "full" else ['parallel.activation_checkpoint = "full"']
    saving += [] if r.parallel.head_saved_bytes == 0 else ["parallel.head_saved_bytes = 0"]
    resumable = f"set {' and '.join(saving)}, which a run that goes on may change, or " if saving else ""
    longest = "" if r.batch.tokens > r.data.max_tokens else " and data.max_tokens"
    return f"{resumable}lower batch.tokens ({r.batch.tokens}){longest} with a new run.folder"
