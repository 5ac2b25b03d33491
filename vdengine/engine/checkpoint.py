"""Checkpoints: `<run>/checkpoints/step-NNNNNN/`, sharded (torch.distributed.checkpoint) and written atomically.

A checkpoint is written under a temporary name and renamed when every rank has finished. Its manifest has the step, the
versions and a hash of every file. Step N means after N steps. Only the master weights, AdamW's moments and a few
numbers (tokens seen, PPO's adaptive ones) are saved: data order, probes and the noise of samples are functions of the
step. A run with another number of ranks can load it.

A run folder is trusted: DCP's metadata is a pickle.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

import vdengine
from vdengine.engine.parallel import World, broadcast
from vdengine.errors import InputError
from vdengine.files import digest
from vdengine.runfolder import CHECKPOINT, MANIFEST, RunFolder

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with its optimizer. `prefix` distinguishes the names of its tensors from those of other models; that of
    the run's own model is ""."""

    prefix: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float  # peak

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the model."""
        return list(self.model.parameters())


def _state(trained: Sequence[Trained], numbers: dict[str, float]) -> dict[str, Any]:
    """The tensors to save, or to load into, by Hugging Face name (a tied weight once); the numbers as [] float64. A
    frozen parameter has no moments."""
    state: dict[str, Any] = {f"numbers.{k}": torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
    for t in trained:
        for name, p in t.model.named_parameters():
            state[f"{t.prefix}model.{name}"] = p.data
            if not p.requires_grad:
                continue
            s = t.optimizer.state[p]
            if not s:  # before the first update: the state that AdamW would start with
                s.update({m: torch.zeros_like(p.data) for m in MOMENTS}, step=torch.zeros((), device=p.device))
            state |= {f"{t.prefix}optimizer.{m}.{name}": s[m] for m in MOMENTS}
            state[f"{t.prefix}optimizer.step.{name}"] = s["step"]
    return state


def save(
    run_folder: Path, step: int, trained: Sequence[Trained], numbers: dict[str, float], world: World, keep: int
) -> Path:
    """Save a checkpoint, and remove all but the newest `keep`. Returns its folder. A collective.

    A complete checkpoint of this step is left as it is, because equal steps have equal bits.
    """
    final = RunFolder(run_folder).checkpoint(step)
    temporary = final.with_name(final.name + ".tmp")
    if broadcast(world, world.is_main and final.exists() and _damage(final) is None):
        return final
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed during a save
        temporary.mkdir(parents=True)
    dist.barrier()
    dcp.save(_state(trained, numbers), checkpoint_id=temporary)  # a collective: every rank writes its shards
    rank_hashes = {p.name: digest(p) for p in sorted(temporary.glob(f"__{world.rank}_*"))}
    hashes: list[Any] = [None] * world.size  # of every rank
    dist.all_gather_object(hashes, rank_hashes)
    if world.is_main:
        files = {".metadata": digest(temporary / ".metadata")} | {k: v for part in hashes for k, v in part.items()}
        manifest = {
            "step": step,
            "world_size": world.size,
            "vdengine": vdengine.__version__,
            "torch": torch.__version__,
            "files": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in _checkpoints(run_folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def newest(run_folder: Path, world: World) -> tuple[Path, int] | None:
    """The newest complete checkpoint and its step; None if there are no checkpoints. A collective: rank 0 looks, and
    tells the other ranks.

    Newer ones that are damaged are renamed to `step-N.damaged`, because the run will write these steps again.

    Raises:
        InputError: there are checkpoints, but all are damaged.
    """
    damaged, complete = [], None
    if world.is_main:
        for folder in reversed(_checkpoints(run_folder)):
            if (reason := _damage(folder)) is None:
                complete = folder
                break
            damaged.append((folder, reason))
        if complete is not None:
            for folder, _ in damaged:
                shutil.rmtree(renamed := folder.with_suffix(".damaged"), ignore_errors=True)
                folder.rename(renamed)
    reasons = [f"{folder.name} ({reason})" for folder, reason in damaged]
    complete, reasons = broadcast(world, (complete, reasons))
    if complete is not None:
        return complete, _step(complete)
    if reasons:
        raise InputError(f"{RunFolder(run_folder).checkpoints}: no whole checkpoint: {'; '.join(reasons)}")
    return None


def load(folder: Path, trained: Sequence[Trained], numbers: dict[str, float]) -> dict[str, float]:
    """Load models and optimizers in place; every rank reads its own shards. Returns the saved numbers that have the
    names of `numbers`. A collective.

    Raises:
        InputError: the checkpoint does not fit the model.
    """
    state = _state(trained, numbers)
    try:
        dcp.load(state, checkpoint_id=folder)
    except (RuntimeError, ValueError, dcp.api.CheckpointException) as e:
        raise InputError(f"{folder}: does not fit this model: {str(e).splitlines()[0]}") from e
    for t in trained:
        for name, p in t.model.named_parameters():
            if p.requires_grad:
                t.optimizer.state[p]["step"] = state[f"{t.prefix}optimizer.step.{name}"]
    return {name: float(state[f"numbers.{name}"]) for name in numbers}


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint, of any number of ranks, into a plain model. Needs no process group.

    Raises:
        InputError: the checkpoint is damaged or does not fit the model.
    """
    if (reason := _damage(folder)) is not None:
        raise InputError(f"{folder}: not a whole checkpoint: {reason}")
    state = {f"model.{name}": p.data for name, p in model.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # by no_dist
            dcp.load(state, checkpoint_id=folder, no_dist=True)
    except (RuntimeError, ValueError, dcp.api.CheckpointException) as e:
        raise InputError(f"{folder}: does not fit this model: {str(e).splitlines()[0]}") from e


def _damage(folder: Path) -> str | None:
    """The reason if a checkpoint is not complete (a file is missing or has another hash than in the manifest), else
    None."""
    try:
        for name, expected in json.loads((folder / MANIFEST).read_text())["files"].items():
            if digest(folder / name) != expected:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError) as e:
        return str(e)
    return None


def _checkpoints(run_folder: Path) -> list[Path]:
    """The folders of all checkpoints, oldest first."""
    paths = RunFolder(run_folder).checkpoints.glob(f"{CHECKPOINT}*")
    return sorted((path for path in paths if path.is_dir() and not path.suffix), key=_step)


def _step(folder: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(folder.name.removeprefix(CHECKPOINT))
