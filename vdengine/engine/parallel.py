"""Ranks, device mesh and sharding. FSDP2 is used on a single rank too, so that there is one code path to test."""

from __future__ import annotations

import dataclasses
import datetime
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vdengine import recipe as recipes
from vdengine.errors import InputError
from vdengine.models.transformer import Transformer


class Users(weakref.ref):
    """How many Worlds of this process use what one of them has turned on: the process group, and torch's deterministic
    algorithms. A weak reference to the group that carries the count; the Worlds keep it, and find it on the group."""

    started = False  # whether a World has started the group, and the last one ends it
    count = 0
    deterministic = 0  # of those, how many asked for deterministic algorithms that the program had not switched on
    fill = True  # `fill_uninitialized_memory` before that

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> Users:
        """Those of a group."""
        return next((ref for ref in weakref.getweakrefs(group) if isinstance(ref, cls)), None) or cls(group)

    def join(self, started: bool, deterministic: bool) -> bool:
        """One more. Returns whether it counts among `deterministic`."""
        self.started |= started
        self.count += 1
        if not deterministic or (torch.are_deterministic_algorithms_enabled() and not self.deterministic):
            return False
        if not self.deterministic:
            # warn_only: an op without a deterministic form gives a warning with its name, and does not end the run
            torch.use_deterministic_algorithms(True, warn_only=True)
            self.fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass
        self.deterministic += 1
        return True

    def leave(self, deterministic: bool) -> None:
        """One less: the last one ends what the first began."""
        self.count -= 1
        self.deterministic -= deterministic
        if deterministic and not self.deterministic:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = self.fill  # type: ignore[attr-defined]
        if self.started and not self.count and dist.is_initialized() and dist.group.WORLD is self():
            dist.destroy_process_group()


@dataclass(eq=False)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int  # number of ranks
    device: torch.device
    mesh: DeviceMesh  # 1-D (shard) or 2-D (replicate, shard)
    users: Users | None  # this World among them; None: closed
    deterministic: bool  # counts among their `deterministic`

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def close(self) -> None:
        """Undo what `start_world` has started and switched on, unless another World of this process uses it still."""
        users, self.users = self.users, None
        if users is not None:
            users.leave(self.deterministic)


def start_world(parallel: recipes.ParallelKeys, deterministic: bool) -> World:
    """Join the process group (that of torchrun or of the embedding program, or else a new one of this process alone)
    and make the device mesh. A group that is started here serves every World of the process, and ends with the last.

    Args:
        deterministic: on CUDA, cuBLAS gets a fixed workspace, and torch's ops use their deterministic forms. They do so
            only under `torch.use_deterministic_algorithms`, a switch of the whole process, which the last World to
            close turns off again. On a CPU it has no effect here. See also `ordered`.

    Raises:
        InputError: replicate * shard is not the number of ranks.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        expand_segments()
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    started = join_group()
    users = Users.of(distributed_c10d._get_default_group())
    counted = users.join(started, cuda and deterministic)
    try:
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
    except BaseException:
        users.leave(counted)
        raise
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(rank, size, device, mesh, users, counted)


@contextmanager
def one_group() -> Iterator[None]:
    """Inside, Worlds come and go in one process group: no rank looks for a group that another has left."""
    started = join_group()
    try:
        yield
    finally:
        if started and dist.is_initialized():
            dist.destroy_process_group()


def join_group() -> bool:
    """Join torchrun's ranks as a process group, or without torchrun make one of this process alone. Returns False
    where there is a group already. On CUDA the process takes the GPU of its local rank."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # torchrun sets LOCAL_RANK
    if dist.is_initialized():
        return False
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # checkpoints are written from CPU memory
    timeout = datetime.timedelta(minutes=30)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        # A launcher's store outlives the group. The next one needs names of its own, or a rank that is early finds the
        # addresses of the last one there, and waits for ranks that have left them.
        turn = store.add(f"groups that rank {rank} has joined", 1)
        store = dist.PrefixStore(f"group {turn}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return True


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


def shard(
    model: Transformer,
    *,
    mesh: DeviceMesh | None = None,
    dtype: torch.dtype | None = None,
    activation_checkpoint: str = "selective",
    reshard_after_forward: bool = True,
    gradients: str = "mean",
) -> Transformer:
    """Apply FSDP2 to a model that has its weights, for a training loop of one's own. In place; returns the model.

    Each rank keeps its rows of every parameter, in the parameter's dtype, so every rank must give the same weights.
    Only the model's own `forward` gathers them: call it on every rank, as often on each (a rank without rows runs some
    pack and multiplies its loss by 0). Make the optimizer after this call. The FSDP units are those of the Trainer:
    each block, the embedding and the head (one unit if they are tied), and the root. Gradients are reduced in fp32.

    Args:
        mesh: 1-D (shard), or 2-D (replicate, shard). Default: all ranks of the process group, which is torchrun's, or
            of this process alone, if there is none yet. That group is left to the program: destroy it, or not.
        dtype: that the model computes in, as bf16 over fp32 weights. Default: that of the parameters.
        activation_checkpoint: of each block, "none", "selective" (recompute what is elementwise) or "full".
        reshard_after_forward: free the gathered weights of a unit after its forward, and gather them again in backward.
        gradients: over the ranks of the mesh "mean", FSDP2's own: right for losses that each rank has divided by its
            own count, where the counts are equal. Or "sum": right for losses divided by the count of all ranks.

    Raises:
        InputError: a model without weights (on the meta device) or sharded already, a setting that is not known.
    """
    for name, value, allowed in (
        ("activation_checkpoint", activation_checkpoint, ("none", "selective", "full")),
        ("gradients", gradients, ("mean", "sum")),
    ):
        if value not in allowed:
            raise InputError(f"shard: {name} = {value!r} is not known; allowed: {', '.join(allowed)}")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise InputError(f"shard: {name} is sharded already")
        if parameter.is_meta:
            raise InputError(f"shard: {name} is on the meta device: load the weights first (vd.load_model)")
    if mesh is None:
        join_group()
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    _apply_fsdp(model, mesh, dtype, activation_checkpoint, reshard_after_forward, gradients == "sum")
    return model


def shard_model(
    model: Transformer, world: World, *, dtype: torch.dtype, activation_checkpoint: str, trainable: bool = True
) -> Transformer:
    """Apply FSDP2 to a model on the meta device and allocate its shards, uninitialised. A trained model has fp32 master
    weights; one that is not trained, and what an adapter has frozen, has weights in `dtype`. It computes in `dtype` and
    reduces gradients in fp32, as sums over ranks.

    Raises:
        ValueError: a model that has weights, which would be lost (`shard` keeps them).
    """
    if not all(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("shard_model: the model has weights, which would be lost; `shard` keeps them")
    if not trainable:
        model.requires_grad_(False)
    if not trainable or model.lora is not None:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad and not name.startswith("score."):
                parameter.data = parameter.data.to(dtype)
    # reshard_after_forward for the root too. By default the final norm would stay gathered after a forward without
    # backward, and a checkpoint would then find a plain bf16 tensor in place of a shard.
    _apply_fsdp(model, world.mesh, dtype, activation_checkpoint, True, True)
    model.to_empty(device=world.device)
    return model


def _apply_fsdp(
    model: Transformer,
    mesh: DeviceMesh,
    dtype: torch.dtype | None,
    activation_checkpoint: str,
    reshard_after_forward: bool,
    sum_gradients: bool,
) -> None:
    """`fully_shard` of each block, of the embedding and the head (one unit if they are tied, because a weight shared by
    two units is an error), and of the root, which has the final norm, so that the gradients of the head's unit have one
    dtype."""
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # casting would round the fp32 rotary tables to bf16
    )
    apply = partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    for block in model.blocks:
        block.activation_checkpoint = activation_checkpoint
        apply(block)
    if model.config.tie_word_embeddings:
        apply([model.model.embed_tokens, model.lm_head])
    else:
        apply(model.model.embed_tokens)
        if model.config.head == "scalar":  # a single row, for which bf16 would save nothing
            apply(model.score, mp_policy=dataclasses.replace(policy, param_dtype=torch.float32))
        else:
            apply(model.lm_head)
    apply(model)
    for module in model.modules():
        if sum_gradients and isinstance(module, FSDPModule) and mesh.size() > 1:  # on one rank 1.0 would cost a pass
            # Sum gradients over ranks, because the trainer divides once by the global count. A divide factor alone
            # would use a pre-multiplied sum, which Gloo does not have.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


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
