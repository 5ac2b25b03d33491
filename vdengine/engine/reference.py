"""Log-probs of the reference model: cached once, or computed live.

Cached are the branch sums of the untrained policy, computed by the same kernels, dtype and packs as in training, so
that at step 0 the margins are exactly 0. They are stored by branch of the store in two places: in the run folder, where
a resumed run finds the bits that it started with, and in the data cache, where other runs with the same weights and
rows find them. Another run has other packs, so these are equal to its own up to rounding.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import vdengine
from vdengine.data.mismatched import Mismatched
from vdengine.data.store import Store
from vdengine.engine.parallel import World, main_first
from vdengine.errors import InputError
from vdengine.files import json_hash, write_bytes
from vdengine.models.transformer import Transformer
from vdengine.objectives.base import ADAPTER_OFF
from vdengine.outside import parsing, read_bytes
from vdengine.progress import progress
from vdengine.recipe import Recipe
from vdengine.runfolder import RunFolder
from vdengine.trees import Pack

DIGEST = 16  # bytes of BLAKE2b behind the sums in a file


class LiveReference:
    """A frozen copy of the model, with which every pack takes one more forward."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, pack: Pack) -> Tensor:  # [B] fp32
        """The log-prob sum of each branch of the pack, in nats. A collective if the model is sharded."""
        return pack.branch_sum(self.logp(pack))

    def logp(self, pack: Pack) -> Tensor:  # [R] fp32
        """The log-prob of each scored token, in nats."""
        return self.model(pack).logp


class AdapterOff(LiveReference):
    """The trained model without its adapter: no second copy, and nothing to cache."""

    def logp(self, pack: Pack) -> Tensor:  # [R] fp32
        """As `LiveReference.logp`."""
        with self.model.adapter_off():
            return self.model(pack).logp


def live_reference(recipe: Recipe, model: Transformer, copy: Callable[[], Transformer]) -> LiveReference | None:
    """What gives reference log-probs at each forward of a run; None where nothing does.

    Args:
        model: that is trained.
        copy: makes a frozen one, as it was at the start.
    """
    if recipe.objective.reference == ADAPTER_OFF:
        return AdapterOff(model)
    return LiveReference(copy()) if recipe.objective.reference == "live" else None


class CachedReference:
    """Branch sums of all branches of the store, computed before training.

    Args:
        sums: [branches of the store] fp32, nats.
        tree_start: [trees + 1] int64, as in the store.
    """

    def __init__(self, sums: Tensor, tree_start: Tensor) -> None:
        # The idle pack's tree id -1 is an index to the last offset. The two zeros after it are for its branches.
        self.sums, self.tree_start = torch.cat([sums, sums.new_zeros(2)]), tree_start

    def __call__(self, pack: Pack) -> Tensor:  # [B] fp32
        """The log-prob sum of each branch of the pack, in nats."""
        return self.sums[branch_index(pack, self.tree_start)]


class GivenReference:
    """Branch sums that a step was given with its batch.

    Args:
        sums: of each of the rank's packs in the order of the step's forwards, [B] fp32, nats.
    """

    def __init__(self, sums: Sequence[Tensor]) -> None:
        self._sums = iter(sums)

    def __call__(self, pack: Pack) -> Tensor:  # [B] fp32
        """The log-prob sum of each branch of the next pack, in nats; zeros for an idle one after the last."""
        device = pack.tokens.device
        return next(self._sums, torch.zeros(pack.num_branches)).to(device)


def branch_index(pack: Pack, tree_start: Tensor) -> Tensor:
    """The index of every branch of a pack among the branches of the store: [B] int64. tree_start: [trees of the store
    + 1] int64."""
    # index in the pack of each tree's first branch: [trees]
    first = torch.searchsorted(pack.tree_of_branch, torch.arange(len(pack.tree_ids), device=pack.tree_ids.device))
    # index of each branch within its tree: [B]
    index_in_tree = torch.arange(len(pack.tree_of_branch), device=first.device) - first[pack.tree_of_branch]
    return tree_start[pack.tree_ids[pack.tree_of_branch]] + index_in_tree


@torch.no_grad()
def cache_reference(
    model: Callable[[], Transformer],
    store: Store | Mismatched,
    visits: Sequence[tuple[np.ndarray, Callable[[], Iterable[Pack | None]]]],
    idle: Pack,
    world: World,
    *,
    folders: Sequence[Path],
    weights_hash: str,
    dtype: torch.dtype,
    kernels: str,
    notes: list[str],
) -> CachedReference:
    """Compute the branch sums of all rows that a run will visit. Sums in the file of an earlier run are not computed
    again, and a known value is never replaced. A collective.

    Args:
        model: gives the reference model; called only if sums are missing.
        visits: the run's forwards in order, as (tree ids of all ranks [n] int64, this rank's packs). Every rank passes
            the same ones, because each forward is a collective. A row is computed at its first visit.
        idle: the pack that a rank runs where it has none.
        folders: where sums are looked for, in this order, and stored: the run's, then the shared one.
        weights_hash, dtype, kernels: of the reference model, part of the file's name. `kernels` names the backends,
            because two of them agree up to rounding only.
        notes: what is worth saying is added, on rank 0: a file that is damaged, or could not be written.
    """
    key = {
        "weights": weights_hash,
        "store": store.hash,
        "dtype": str(dtype),
        "kernels": kernels,
        "device": world.device.type,
        "vdengine": vdengine.__version__,
        "torch": torch.__version__,
    }
    name = json_hash(key)
    paths = [RunFolder(folder).reference / f"{name}.npy" for folder in folders]
    cached = np.full(int(store.tree_start[-1]), np.nan, dtype=np.float32)  # [branches of the store]; NaN: missing
    known: list[np.ndarray] = []  # of each file, on rank 0
    with main_first(world):
        if world.is_main:
            for path in paths:
                found, fault = _read(path, cached)
                known.append(found)
                notes += [fault] if fault else []
                cached = np.where(np.isnan(cached), found, cached)
    sums = torch.from_numpy(cached).to(world.device)
    if world.size > 1:
        dist.broadcast(sums, 0)
    tree_start = torch.from_numpy(np.array(store.tree_start)).to(world.device)
    # a tree is missing if its first branch is: [trees]
    missing = np.isnan(sums.cpu().numpy())[np.asarray(store.tree_start[:-1])]
    remaining = []
    for rows, packs in visits:
        if missing[rows].any():
            missing[rows] = False
            remaining.append(packs)
    if not remaining:
        _write(paths, sums, known, world, notes)
        return CachedReference(sums, tree_start)

    # computed sums, and 1.0 where a branch was computed: [branches of the store] each
    reference, computed, is_computed = model(), torch.zeros_like(sums), torch.zeros_like(sums)
    for packs in progress(remaining, "reference log-probs" if world.is_main else None, "step"):
        for rank_pack in packs():
            pack = (idle if rank_pack is None else rank_pack).to(world.device)
            logp = reference(pack).logp
            if rank_pack is not None:
                index = branch_index(pack, tree_start)
                computed[index], is_computed[index] = pack.branch_sum(logp), 1.0
    if world.size > 1:  # each branch was computed by one rank and the others have zeros, so the sum is exact
        dist.all_reduce(computed)
        dist.all_reduce(is_computed)
    sums = torch.where((is_computed > 0) & sums.isnan(), computed, sums)
    _write(paths, sums, known, world, notes)
    return CachedReference(sums, tree_start)


def _read(path: Path, like: np.ndarray) -> tuple[np.ndarray, str]:
    """The sums in a file, of the shape and dtype of `like`, and what is wrong with it. All NaN, and no fault, if there
    is no file; all NaN if it is not whole."""
    none = np.full_like(like, np.nan)
    if not path.exists():
        return none, ""
    try:
        data = read_bytes(path, like.nbytes + 4096)
        body, check = data[:-DIGEST], data[-DIGEST:]
        if hashlib.blake2b(body, digest_size=DIGEST).digest() != check:
            raise InputError(f"{path}: does not match its hash")
        with parsing(path, "array"):
            sums = np.load(io.BytesIO(body), allow_pickle=False)
        if sums.shape != like.shape or sums.dtype != like.dtype:
            raise InputError(f"{path}: holds {sums.dtype} {sums.shape}, not {like.dtype} {like.shape}")
    except (InputError, OSError, ValueError, EOFError) as error:
        return none, f"{error}: these reference log-probs are computed anew, equal up to rounding"
    return sums, ""


def _write(paths: Sequence[Path], sums: Tensor, known: Sequence[np.ndarray], world: World, notes: list[str]) -> None:
    """Write the sums [branches of the store] to the files on rank 0, each with its hash behind it, but to those that
    have them already. The first file is the run's own; of another that cannot be written only a note is made."""
    values = sums.cpu().numpy()
    with main_first(world):
        if not world.is_main:
            return
        buffer = io.BytesIO()
        np.save(buffer, values)
        body = buffer.getvalue()
        for path, old in zip(paths, known, strict=True):
            if np.array_equal(old, values, equal_nan=True):
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, body + hashlib.blake2b(body, digest_size=DIGEST).digest())
            except OSError as error:
                if path is paths[0]:
                    raise
                notes.append(f"{path}: reference log-probs are not kept for other runs ({error.strerror})")
