"""Ranks, device mesh and sharding. FSDP2 is used on a single rank too, so that there is one code path to test."""

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
    """This process among the ranks of the run."""

    rank: int
    size: int  # number of ranks
    device: torch.device
    mesh: DeviceMesh  # 1-D (shard) or 2-D (replicate, shard)
    owns_group: bool  # this process started the process group and has to end it
    owns_determinism: bool  # this process switched torch's deterministic algorithms on

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def close(self) -> None:
        """Undo what `start_world` has started and switched on."""
        if self.owns_determinism:
            torch.use_deterministic_algorithms(False)
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()


def start_world(parallel: recipes.ParallelKeys, deterministic: bool) -> World:
    """Join the process group (that of torchrun or of the embedding program, or else a new one of this process alone)
    and make the device mesh.

    Args:
        deterministic: on CUDA, cuBLAS gets a fixed workspace, and torch's ops use their deterministic forms. They do so
            only under `torch.use_deterministic_algorithms`, a switch of the whole process, which `World.close` turns
            off again. On a CPU it has no effect here. See also `ordered`.

    Raises:
        InputError: replicate * shard is not the number of ranks.
    """
    cuda = torch.cuda.is_available()
    owns_group = not dist.is_initialized()
    if cuda:
        expand_segments()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # torchrun sets LOCAL_RANK
    owns_determinism = cuda and deterministic and not torch.are_deterministic_algorithms_enabled()
    if owns_determinism:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        # warn_only: an op without a deterministic form gives a warning with its name, and does not end the run
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass
    if owns_group:
        backend = "nccl" if cuda else "gloo"
        timeout = datetime.timedelta(minutes=30)
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
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
    return World(rank, size, device, mesh, owns_group, owns_determinism)


def expand_segments() -> None:
    """Let CUDA's allocator grow its segments instead of keeping segments of every size, because the tensors of two
    packs have different sizes. It has no effect after CUDA has been initialised, or if the user has set the allocator's
    options."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name
    if torch.cuda.is_initialized() or any(os.environ.get(name) for name in names):
        return
    os.environ[names[0]] = "expandable_segments:True"  # for child processes; in this one torch has read it already
    torch._C._accelerator_setAllocatorSettings(os.environ[names[0]])


@contextmanager
def ordered(deterministic: bool) -> Iterator[None]:
    """A context for the backward of a deterministic run: if torch's deterministic algorithms are on with `warn_only`,
    it switches `warn_only` off.

    The reason is ATen's attention (flash, which varlen attention uses, and the memory-efficient one): its backward adds
    in a fixed order only if the switch is on *and* `warn_only` is off. A forward does not need it, and there some ops
    have no deterministic form (a cumulative sum), which would be an error.
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
    """Apply FSDP2 to a model on the meta device and allocate its shards, uninitialised. A trained model has fp32 master
    weights, another one weights in `dtype`. It computes in `dtype` and reduces gradients in fp32.

    The FSDP units are each block, the embedding and the head (one unit if they are tied, because a weight shared by two
    units is an error), and the root, which has the final norm, so that the gradients of the head's unit have one dtype.
    """
    if not trainable:
        model.to(dtype)
        if model.config.head == "scalar":
            model.score.float()
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # casting would round the fp32 rotary tables to bf16
    )
    # reshard_after_forward for the root too. By default the final norm would stay gathered after a forward without
    # backward, and a checkpoint would then find a plain bf16 tensor in place of a shard.
    shard = partial(fully_shard, mesh=world.mesh, mp_policy=policy, reshard_after_forward=True)
    for block in model.blocks:
        block.activation_checkpoint = activation_checkpoint
        shard(block)
    if model.config.tie_word_embeddings:
        shard([model.model.embed_tokens, model.lm_head])
    else:
        shard(model.model.embed_tokens)
        if model.config.head == "scalar":  # a single row, for which bf16 would save nothing
            shard(model.score, mp_policy=dataclasses.replace(policy, param_dtype=torch.float32))
        else:
            shard(model.lm_head)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule) and world.size > 1:  # on one rank the factor 1.0 would cost a pass
            # Sum gradients over ranks, because the trainer divides once by the global count. A divide factor alone
            # would use a pre-multiplied sum, which Gloo does not have.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=world.device)
    model.requires_grad_(trainable)
    return model


def grad_norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, [] fp32 on the device, the same on every rank. A collective."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """A context whose body rank 0 runs first and the others after it, for files that one process makes and all read.

    An error on rank 0 is raised on the other ranks too, so that they do not wait for a rank that has ended.

    Raises:
        InputError: on the other ranks, if rank 0 had an error.
    """
    error: BaseException | None = None
    if not world.is_main:
        _raise_if(broadcast(world, None))
    try:
        yield
    except BaseException as e:
        error = e
        raise
    finally:
        if world.is_main:
            broadcast(world, None if error is None else f"{type(error).__name__}: {error}")


def broadcast(world: World, value: Any) -> Any:
    """Rank 0's value, on every rank. For small objects that can be pickled. A collective."""
    box = [value]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0, device=world.device if world.device.type == "cuda" else None)
    return box[0]


def _raise_if(message: object) -> None:
    """Raise rank 0's error, if there is one."""
    if message is not None:
        raise InputError(f"rank 0 failed: {message}")
