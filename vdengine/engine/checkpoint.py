"""Checkpoints: `<run>/checkpoints/step-NNNNNN/`, sharded (torch.distributed.checkpoint), whole or not there.

A checkpoint is written under a temporary name and renamed when every rank has finished; `manifest.json` holds
the step, the versions and a hash of every file. Step N means: after N steps. Master weights, AdamW's moments and a
few numbers (tokens seen, PPO's adaptive ones) are all there is to save: data order, probes and the noise of samples
are functions of the step. Another world size can load it.

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
from vdengine.runfolder import MANIFEST, RunFolder

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with its optimizer. `prefix` tells it from others by name: "" for the model of the run."""

    prefix: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr: float  # peak

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


def _state(trained: Sequence[Trained], numbers: dict[str, float]) -> dict[str, Any]:
    """Tensors to save or to load in place, by Hugging Face name (a tied weight once)."""
    state: dict[str, Any] = {f"numbers.{k}": torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
    for t in trained:
        for name, p in t.model.named_parameters():
            state[f"{t.prefix}model.{name}"] = p.data
            s = t.optimizer.state[p]
            if not s:  # before the first update: what AdamW itself would start from
                s.update({m: torch.zeros_like(p.data) for m in MOMENTS}, step=torch.zeros((), device=p.device))
            state |= {f"{t.prefix}optimizer.{m}.{name}": s[m] for m in MOMENTS}
            state[f"{t.prefix}optimizer.step.{name}"] = s["step"]
    return state


def save(
    run_folder: Path, step: int, trained: Sequence[Trained], numbers: dict[str, float], world: World, keep: int
) -> Path:
    """Save on all ranks together; then rank 0 removes all but the newest `keep`.

    A whole checkpoint of this step is left as it is: the same step has the same bits.
    """
    root = RunFolder(run_folder).checkpoints
    final, temporary = root / f"step-{step:06d}", root / f"step-{step:06d}.tmp"
    if broadcast(world, world.is_main and final.exists() and _damage(final) is None):
        return final
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
        temporary.mkdir(parents=True)
    dist.barrier()
    dcp.save(_state(trained, numbers), checkpoint_id=temporary)  # a collective: every rank writes its shards
    mine = {p.name: digest(p) for p in sorted(temporary.glob(f"__{world.rank}_*"))}
    every: list[Any] = [None] * world.size
    dist.all_gather_object(every, mine)
    if world.is_main:
        files = {".metadata": digest(temporary / ".metadata")} | {k: v for part in every for k, v in part.items()}
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
    """The newest whole checkpoint and its step; None if there is none. Rank 0 looks, all ranks learn.

    Damaged newer ones are moved aside, to `step-N.damaged`: the run will write these steps again.

    Raises:
        InputError: there are checkpoints, but not one is whole.
    """
    damaged, found = [], None
    if world.is_main:
        for folder in reversed(_checkpoints(run_folder)):
            if (reason := _damage(folder)) is None:
                found = folder
                break
            damaged.append((folder, reason))
        if found is not None:
            for folder, _ in damaged:
                shutil.rmtree(aside := folder.with_suffix(".damaged"), ignore_errors=True)
                folder.rename(aside)
    reasons = [f"{folder.name} ({reason})" for folder, reason in damaged]
    found, reasons = broadcast(world, (found, reasons))
    if found is not None:
        return found, _step(found)
    if reasons:
        raise InputError(f"{RunFolder(run_folder).checkpoints}: no whole checkpoint: {'; '.join(reasons)}")
    return None


def load(folder: Path, trained: Sequence[Trained], numbers: dict[str, float]) -> dict[str, float]:
    """Fill models and optimizers in place, each rank reading its own shards; the numbers, by the names of `numbers`.

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
            t.optimizer.state[p]["step"] = state[f"{t.prefix}optimizer.step.{name}"]
    return {name: float(state[f"numbers.{name}"]) for name in numbers}


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fill a plain model from a checkpoint of any world size; no process group is needed.

    Raises:
        InputError: the checkpoint is damaged or does not fit the model.
    """
    if (reason := _damage(folder)) is not None:
        raise InputError(f"{folder}: not a whole checkpoint: {reason}")
    state = {f"model.{name}": p.data for name, p in model.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked for
            dcp.load(state, checkpoint_id=folder, no_dist=True)
    except (RuntimeError, ValueError, dcp.api.CheckpointException) as e:
        raise InputError(f"{folder}: does not fit this model: {str(e).splitlines()[0]}") from e


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: a file that is missing or not as its manifest says."""
    try:
        for name, digest in json.loads((folder / MANIFEST).read_text())["files"].items():
            if digest(folder / name) != digest:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError) as e:
        return str(e)
    return None


def _checkpoints(run_folder: Path) -> list[Path]:
    """Oldest first."""
    found = RunFolder(run_folder).checkpoints.glob("step-*")
    return sorted((p for p in found if p.is_dir() and not p.suffix), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
