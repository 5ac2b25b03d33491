"""Checkpoints as they are on disk: `<run>/checkpoints/step-NNNNNN/`, and how they are read. `engine.saver` writes them.

Step N means after N steps. A checkpoint holds the shards of torch.distributed.checkpoint (the master weights that
are trained, AdamW's moments and a few numbers) and a manifest, written last:

    step, world_size, vdengine, torch
    base    hash of the weights that are frozen, if some are: they are not in it
    files   bytes and hash of every other file
    logs    of every log of the run, by its path in the run folder: bytes and hash of the part before this step
    hash    of all this

Data order, probes and the noise of samples are functions of the step, so nothing else is needed. A run with another
number of ranks can load it. Nothing of it is trusted: its metadata, a pickle, is read by `engine.metadata`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vdengine.engine.metadata import cause, read_state
from vdengine.engine.parallel import World, broadcast
from vdengine.errors import InputError
from vdengine.files import digest, json_hash
from vdengine.outside import json_object
from vdengine.runfolder import CHECKPOINT, MANIFEST, RunFolder

MOMENTS = ("exp_avg", "exp_avg_sq")

_NAME = re.compile(rf"{CHECKPOINT}(\d{{6,}})")


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


@dataclass(frozen=True)
class Found:
    """A whole checkpoint to go on from."""

    folder: Path
    step: int
    logs: Mapping[str, Mapping[str, Any]]  # of the manifest
    notes: Sequence[str]  # of newer ones that were passed over, a line each


def state_of(trained: Sequence[Trained], numbers: Mapping[str, float]) -> dict[str, Any]:
    """The tensors to save, or to load into, by Hugging Face name (a tied weight once); the numbers as [] float64.
    What is frozen is not among them: the run's `inputs.json` and the manifest say which weights it is of."""
    state: dict[str, Any] = {f"numbers.{k}": torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
    for t in trained:
        for name, p in t.model.named_parameters():
            if not p.requires_grad:
                continue
            state[f"{t.prefix}model.{name}"] = p.data
            s = t.optimizer.state[p]
            if not s:  # before the first update: the state that AdamW would start with
                s.update({m: torch.zeros_like(p.data) for m in MOMENTS}, step=torch.zeros((), device=p.device))
            state |= {f"{t.prefix}optimizer.{m}.{name}": s[m] for m in MOMENTS}
            state[f"{t.prefix}optimizer.step.{name}"] = s["step"]
    return state


def size_of(trained: Sequence[Trained]) -> int:
    """Bytes of a checkpoint of all ranks together, but for names and numbers."""
    return sum(
        p.numel() * p.element_size() * (1 + len(MOMENTS)) for t in trained for p in t.parameters if p.requires_grad
    )


def newest(run_folder: Path, world: World) -> Found | None:
    """The newest whole checkpoint; None if there are no checkpoints. A collective: rank 0 looks, and each rank hashes
    its part of the files.

    Newer ones that are damaged are renamed to `step-N.damaged`, because the run will write these steps again.

    Raises:
        InputError: there are checkpoints, but all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(broadcast(world, checkpoints(run_folder) if world.is_main else [])):
        manifest, reason = broadcast(world, inspect(folder, hashes=False) if world.is_main else None)
        if not reason:
            parts = [_other_hash(folder, manifest, world.rank, world.size)] * world.size
            if world.size > 1:
                dist.all_gather_object(parts, parts[0])
            reason = next(filter(None, parts), "")
        if reason:
            damaged.append((folder, reason))
            continue
        if world.is_main:
            for other, _ in damaged:
                shutil.rmtree(renamed := other.with_suffix(".damaged"), ignore_errors=True)
                other.rename(renamed)
        notes = [f"checkpoint {other.name} was passed over: {why}" for other, why in damaged]
        return Found(folder, step_of(folder), manifest["logs"], notes)
    if damaged:
        reasons = "; ".join(f"{folder.name} ({reason})" for folder, reason in damaged)
        raise InputError(
            f"{RunFolder(run_folder).checkpoints}: no whole checkpoint: {reasons}; another run.folder begins anew"
        )
    return None


def load(folder: Path, trained: Sequence[Trained], numbers: Mapping[str, float]) -> dict[str, float]:
    """Load models and optimizers in place; every rank reads its own shards. Returns the saved numbers that have the
    names of `numbers`. A collective.

    Raises:
        InputError: the checkpoint does not fit the model.
    """
    state = state_of(trained, numbers)
    read_state(folder, state)
    for t in trained:
        for name, p in t.model.named_parameters():
            if p.requires_grad:
                t.optimizer.state[p]["step"] = state[f"{t.prefix}optimizer.step.{name}"]
    return {name: float(state[f"numbers.{name}"]) for name in numbers}


def load_weights(folder: Path, model: nn.Module, base: str | None = None) -> None:
    """Load the weights of a checkpoint, of any number of ranks, into a plain model: all that take a gradient. Needs no
    process group.

    Args:
        base: hash of the frozen weights that the model has, if it has some.

    Raises:
        InputError: the checkpoint is damaged, does not fit the model, or is of other frozen weights.
    """
    manifest, reason = inspect(folder)
    if reason:
        raise InputError(f"{folder}: not a whole checkpoint: {reason}")
    if base is not None and manifest.get("base", base) != base:
        raise InputError(f"{folder}: of a base model with the hash {manifest['base']}; this one's is {base}")
    state = {f"model.{name}": p.data for name, p in model.named_parameters() if p.requires_grad}
    read_state(folder, state, no_dist=True)


def inspect(folder: Path, hashes: bool = True) -> tuple[dict[str, Any], str]:
    """The manifest of a checkpoint, and "" if all is whole, else what is wrong: a file that is missing, or has other
    bytes than the manifest says. Without `hashes` only sizes are looked at."""
    try:
        manifest = json_object(folder / MANIFEST)
        if manifest.pop("hash", None) != json_hash(manifest):
            return manifest, f"{MANIFEST} does not match its hash"
        if manifest.get("step") != step_of(folder):
            return manifest, f"{MANIFEST} is of step {manifest.get('step')}"
        files, logs = manifest.get("files"), manifest.get("logs")
        for entries in (files, logs):
            if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
                return manifest, f"{MANIFEST} has no list of files and logs"
        for name, entry in dict(files or {}).items():
            path = folder / name
            if Path(name).name != name or path.is_symlink() or not path.is_file():
                return manifest, f"{name} is missing"
            if (size := path.stat().st_size) != entry["bytes"]:
                return manifest, f"{name} has {size:,} bytes of {entry['bytes']:,}"
    except InputError as error:
        return {}, str(error).removeprefix(f"{folder}/")
    except (OSError, ValueError) as error:
        return {}, cause(error)
    return manifest, _other_hash(folder, manifest, 0, 1) if hashes else ""


def _other_hash(folder: Path, manifest: Mapping[str, Any], rank: int, ranks: int) -> str:
    """What is wrong with the contents of every `ranks`-th file of a checkpoint; "" if nothing is."""
    try:
        for name in sorted(manifest["files"])[rank::ranks]:
            if digest(folder / name) != manifest["files"][name]["hash"]:
                return f"{name} does not match its hash"
    except (InputError, OSError) as error:
        return cause(error)
    return ""


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("hash"), str)


def checkpoints(run_folder: Path) -> list[Path]:
    """The folders of all checkpoints, whole or not, oldest first. Other names are none."""
    folder = RunFolder(run_folder).checkpoints
    found = [path for path in folder.glob(f"{CHECKPOINT}*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint; -1 where there is none."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1
