"""Ranks, mesh and sharding: FSDP2 always, one rank included, so that one code path is the tested one."""

from __future__ import annotations

import dataclasses
import datetime
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vdengine import recipe as recipes
from vdengine.errors import InputError
from vdengine.models.transformer import Transformer


@dataclass(frozen=True)
class World:
    """Who this process is. `mesh` is 1-D (shard) or 2-D (replicate, shard)."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    owns_group: bool  # this process started the process group and should end it
    owns_determinism: bool  # it also switched torch's deterministic algorithms on

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def close(self) -> None:
        if self.owns_determinism:
            torch.use_deterministic_algorithms(False)
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()


def start_world(parallel: recipes.ParallelKeys, deterministic: bool) -> World:
    """Join the process group (torchrun's, an embedder's, or a new one of this process alone) and make the mesh.

    `deterministic` on CUDA: cuBLAS gets a fixed workspace, and torch's ops take their ordered forms, which they do only
    under `torch.use_deterministic_algorithms`, a switch of the whole process; `World.close` turns it off again. On CPU
    nothing here depends on it. See also `ordered`.

    Raises:
        InputError: replicate * shard is not the number of ranks.
    """
    cuda = torch.cuda.is_available()
    owns = not dist.is_initialized()
    if cuda:
        expand_segments()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # torchrun's contract, not a switch of ours
    switched = cuda and deterministic and not torch.are_deterministic_algorithms_enabled()
    if switched:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # An op without a deterministic form warns, with its name: it does not end a run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass
    if owns:
        backend = "nccl" if cuda else "gloo"
        patience = datetime.timedelta(minutes=30)
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=patience)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=patience)
    rank, size = dist.get_rank(), dist.get_world_size()
    shard = size // parallel.replicate if parallel.shard == "all" else int(parallel.shard)
    if parallel.replicate * shard != size:
        raise InputError(
            f"parallel: replicate = {parallel.replicate} x shard = {parallel.shard} does not make the {size} ranks "
            f"of this run (host {socket.gethostname()})"
        )
    kind = "cuda" if cuda else "cpu"
    if parallel.replicate > 1:
        mesh = init_device_mesh(kind, (parallel.replicate, shard), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(kind, (shard,), mesh_dim_names=("shard",))
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(rank, size, device, mesh, owns, switched)


def expand_segments() -> None:
    """Let the allocator grow its segments instead of keeping one of each size: packs differ in every size. Must come
    before CUDA's first allocation; what the user has set stays, and so does a process where CUDA runs already."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name
    if torch.cuda.is_initialized() or any(os.environ.get(name) for name in names):
        return
    os.environ[names[0]] = "expandable_segments:True"  # for processes that this one starts; torch has read its own
    torch._C._accelerator_setAllocatorSettings(os.environ[names[0]])


@contextmanager
def ordered(deterministic: bool) -> Iterator[None]:
    """Around a backward, for `run.deterministic`: where deterministic algorithms are on and an op without an ordered
    form is a warning, in here it is an error.

    Not for the error's sake: ATen's attention (flash, behind varlen attention, and the memory-efficient one) takes its
    ordered backward only if the switch is on *and* is not set to warn; in a forward it makes no difference, and there
    some ops have no ordered form (a cumulative sum).
    """
    strict = deterministic and torch.is_deterministic_algorithms_warn_only_enabled()
    if strict:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True, warn_only=True)


def shard_model(
    model: Transformer, world: World, *, dtype: torch.dtype, activation_checkpoint: str, trainable: bool = True
) -> Transformer:
    """Make a meta-device model an FSDP2 one and allocate its (uninitialised) shards: fp32 masters, or, of a model
    that is not trained, `dtype` itself.

    Units: each block; embedding and head their own, or one unit when tied (a weight shared across units fails);
    the root keeps the final norm, so the head's unit has a single gradient dtype. Compute in `dtype`, reduce in
    fp32.
    """
    if not trainable:
        model.to(dtype)
        if model.config.head == "scalar":
            model.score.float()
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # would round the fp32 rotary tables to bf16
    )
    # The root too: its default would leave the final norm gathered after a forward without backward, and a
    # checkpoint would then find a plain bf16 tensor where it expects a shard.
    shard = partial(fully_shard, mesh=world.mesh, mp_policy=policy, reshard_after_forward=True)
    for block in model.blocks:
        block.activation_checkpoint = activation_checkpoint
        shard(block)
    if model.config.tie_word_embeddings:
        shard([model.model.embed_tokens, model.lm_head])
    else:
        shard(model.model.embed_tokens)
        if model.config.head == "scalar":  # a single row: rounding it to bf16 would save nothing
            shard(model.score, mp_policy=dataclasses.replace(policy, param_dtype=torch.float32))
        else:
            shard(model.lm_head)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule) and world.size > 1:  # alone, the factor 1.0 would cost a pass of its own
            # Sum over ranks: the trainer divides once by the global count. Gloo has no pre-multiplied sum, which
            # a divide factor alone would ask for.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=world.device)
    model.requires_grad_(trainable)
    return model


def grad_norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, 0-dim fp32 on the device, the same on every rank."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """Rank 0 runs the body first, the others after it: for files that one process makes and all read.

    An error on rank 0 reaches the others too, so nobody waits for a rank that is gone.
    """
    failed: BaseException | None = None
    if not world.is_main:
        _raise_if(broadcast(world, None))
    try:
        yield
    except BaseException as e:
        failed = e
        raise
    finally:
        if world.is_main:
            broadcast(world, None if failed is None else f"{type(failed).__name__}: {failed}")


def broadcast(world: World, value: Any) -> Any:
    """Rank 0's value, on every rank. Small picklable objects of our own."""
    box = [value]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0, device=world.device if world.device.type == "cuda" else None)
    return box[0]


def _raise_if(message: object) -> None:
    if message is not None:
        raise InputError(f"rank 0 failed: {message}")
