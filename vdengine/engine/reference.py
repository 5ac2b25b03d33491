"""What a preference row brings to its loss beside the model's own scores: reference log-probs (cached once, computed
live, or none), or a margin.

Cached: branch sums of the untrained policy itself, by the same kernels, dtype and packs as training, so that
at step 0 the margins are exactly 0. They are kept by branch of the store, twice: in the run folder, where a resumed
run finds the very bits it started with, and in the data cache, where other runs on the same weights and rows find
them (along other packs, then: equal to rounding).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import vdengine
from vdengine.data.store import Store
from vdengine.engine.parallel import World, main_first
from vdengine.errors import InputError
from vdengine.models.transformer import Transformer
from vdengine.runfolder import RunFolder
from vdengine.trees import Pack


class LiveReference:
    """A frozen copy of the model beside the policy; one forward more per pack."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, pack: Pack) -> Tensor:  # [B] fp32
        return pack.branch_sum(self.model(pack).logp)


class CachedReference:
    """Branch sums by branch of the store, filled before training."""

    def __init__(self, sums: Tensor, tree_start: Tensor) -> None:
        # [branches of the store + 2] fp32; [trees + 1] int64. The idle pack's tree id -1 finds the last offset, and
        # behind it two zeros for its branches.
        self.sums, self.tree_start = torch.cat([sums, sums.new_zeros(2)]), tree_start

    def __call__(self, pack: Pack) -> Tensor:  # [B] fp32
        return self.sums[branch_index(pack, self.tree_start)]


class Margins:
    """What a row of a reward model's data brings beside its two answers: how much better the first is."""

    def __init__(self, store: Store, scale: float, device: torch.device) -> None:
        self.margins = scale * torch.from_numpy(np.array(store.margin)).to(device)

    def __call__(self, pack: Pack) -> Tensor:  # [trees] fp32; the idle pack's are another row's, and count nothing
        return self.margins[pack.tree_ids]


def branch_index(pack: Pack, tree_start: Tensor) -> Tensor:
    """Index in the store's branch table of every branch of a pack: [B] int64."""
    first = torch.searchsorted(pack.tree_of_branch, torch.arange(len(pack.tree_ids), device=pack.tree_ids.device))
    within = torch.arange(len(pack.tree_of_branch), device=first.device) - first[pack.tree_of_branch]
    return tree_start[pack.tree_ids[pack.tree_of_branch]] + within


@torch.no_grad()
def cache_reference(
    model: Callable[[], Transformer],  # called only if something is missing
    store: Store,
    visits: Sequence[tuple[np.ndarray, Callable[[], Iterable[Pack | None]]]],
    idle: Pack,
    world: World,
    *,
    folders: Sequence[Path],
    weights_hash: str,
    dtype: torch.dtype,
    kernels: str,
) -> CachedReference:
    """Fill the cache for all rows that a run will visit; what a file of an earlier run holds is not redone, and
    no value that is known is ever replaced.

    Args:
        kernels: names the backends that compute: two of them agree to rounding only.
        folders: where the sums are looked for, first found first used, and kept: the run's, then the shared one.
        visits: the run's forwards in order, as (tree ids of all ranks, this rank's packs). Every rank passes the
            same: each forward is a collective. A row is computed at its first visit.
        idle: what a rank runs where it has no pack.

    Raises:
        InputError: a file is damaged.
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
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    paths = [RunFolder(folder).reference / f"{name}.npy" for folder in folders]
    known = np.full(int(store.tree_start[-1]), np.nan, dtype=np.float32)
    with main_first(world):
        if world.is_main:
            for path in paths:
                known = np.where(np.isnan(known), _read(path, known), known)
    sums = torch.from_numpy(known).to(world.device)
    if world.size > 1:
        dist.broadcast(sums, 0)
    tree_start = torch.from_numpy(np.array(store.tree_start)).to(world.device)
    missing = np.isnan(sums.cpu().numpy())[np.asarray(store.tree_start[:-1])]  # by tree
    todo = []
    for rows, packs in visits:
        if missing[rows].any():
            missing[rows] = False
            todo.append(packs)
    if not todo:
        _write(paths, sums, world)
        return CachedReference(sums, tree_start)

    reference, fresh, done = model(), torch.zeros_like(sums), torch.zeros_like(sums)
    for packs in tqdm(todo, desc="reference log-probs", unit="step", disable=not world.is_main, leave=False):
        for mine in packs():
            this = (idle if mine is None else mine).to(world.device)
            logp = reference(this).logp
            if mine is not None:
                index = branch_index(this, tree_start)
                fresh[index], done[index] = this.branch_sum(logp), 1.0
    if world.size > 1:  # a branch was computed by one rank, the others hold zeros: the sum is exact
        dist.all_reduce(fresh)
        dist.all_reduce(done)
    sums = torch.where((done > 0) & sums.isnan(), fresh, sums)
    _write(paths, sums, world)
    return CachedReference(sums, tree_start)


def _read(path: Path, like: np.ndarray) -> np.ndarray:
    """The sums in a file; all NaN if there is none.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return np.full_like(like, np.nan)
    try:
        found = np.load(path, allow_pickle=False)
        if found.shape != like.shape or found.dtype != like.dtype:
            raise ValueError(f"holds {found.dtype} {found.shape}, not {like.dtype} {like.shape}")
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"{path}: damaged reference log-probs ({e}); remove the file to compute them again") from None
    return found


def _write(paths: Sequence[Path], sums: Tensor, world: World) -> None:
    with main_first(world):
        if world.is_main:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                with open(temporary, "wb") as f:
                    np.save(f, sums.cpu().numpy())
                os.replace(temporary, path)
