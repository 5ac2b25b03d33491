"""What the kernels of the output head share (`linear_logprob`, `cross_entropy`): their operands, checked and gathered,
a chunk of rows with its softmax, and the gradients of weight and bias, summed over chunks in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vdengine.kernels.rows import RowKernel, Transform, row_buffer, row_kernel

# What `linear_logprob` can say of a row's logits z besides, for metrics.
STATS = (
    "is_top1",  # 1 if the target is the most likely token, and the first of those; else 0
    "mean_logits",  # mean z
    "log_sum_sq_probs",  # log sum p^2, nats
)


def check_head(op: str, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError where shapes, dtypes or devices do not fit."""
    shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}"
    if hidden.ndim < 1 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: hidden must be [..., H] and weight [V, H]; got {shapes}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"{op}: targets must be [...], one per row of hidden; got {shapes}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must be [V], weight is [V, H]; got {list(bias.shape)}, {list(weight.shape)}")
    if targets.dtype != torch.int64:
        raise ValueError(f"{op}: targets must be int64; got {targets.dtype}")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be of a floating dtype; got {tensor.dtype}")
        if tensor is not None and tensor.device != targets.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, targets are on {targets.device}")
    if hasattr(hidden, "full_tensor"):
        raise ValueError(f"{op}: hidden must be a plain tensor, the rows of this rank; got a DTensor")


def head_transform(op: str, scale: float, softcap: float | None, temperature: float) -> Transform:
    """What becomes of the logits, without the bias.

    Raises:
        ValueError: a number that does not fit.
    """
    for name, number in (("scale", scale), ("softcap", softcap), ("temperature", temperature)):
        if number is not None and (not isinstance(number, float | int) or not 1e-6 <= number <= 1e6):
            raise ValueError(f"{op}: {name} must be a number in [1e-6, 1e6]; got {number}")
    if softcap is None:
        return Transform(scale / temperature)
    return Transform(softcap / temperature, scale / softcap)


def operand_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype in which the head's GEMMs run: autocast's, or else that of the hidden states."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def gathered(tensor: Any) -> Tensor:
    """The whole of a DTensor, whose gradient is the mean over its mesh; any other tensor as it is.

    The sum over ranks is divided here, because gloo has no mean.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor  # type: ignore[no-any-return]
    from torch.distributed.tensor import Partial

    mesh = tensor.device_mesh
    whole = tensor.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        whole.register_hook(lambda gradient: gradient / mesh.size())
    return whole


def check_targets(
    op: str,
    targets: Tensor,  # [N] int64
    vocab: int,
) -> None:
    """Raise ValueError for a target out of range, on a CPU in eager mode: elsewhere the check would wait for the device
    or break a graph."""
    if targets.device.type == "cpu" and not torch.compiler.is_compiling() and targets.numel():
        low, high = (int(x) for x in targets.aminmax())
        if low < 0 or high >= vocab:
            raise ValueError(f"{op}: targets must be in [0, {vocab}); got {low if low < 0 else high}")


def check_rows(op: str, dtype: torch.dtype, device: torch.device, chunk_rows: int | None, backend: str) -> RowKernel:
    """The row kernel of a backend.

    Raises:
        ValueError: a dtype, chunk size or device that it cannot take.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{op}: hidden must be float32, bfloat16 or float16; got {dtype}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"{op}: chunk_rows must be >= 1; got {chunk_rows}")
    return row_kernel(op, device, backend)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover rows 0 .. n."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def softmax_chunk(
    kernel: RowKernel,
    hidden: Tensor,  # [n, H]
    operand: Tensor,  # [V, H], kernel.logit_operand(weight)
    targets: Tensor,  # [n] int64
    transform: Transform,
    logp: Tensor,  # [n] fp32, out
    entropy: Tensor | None,  # [n] fp32, out
    p: Tensor | None,  # [n, V], out; of the operands' dtype
    stats: Sequence[str] = (),
    described: Tensor | None = None,  # [stats, n] fp32, out
) -> None:
    """The logits of a chunk and its row pass. If P is fp32, the logits are computed in its memory."""
    fp32 = p is not None and p.dtype == torch.float32
    logits = p if p is not None and fp32 else row_buffer(hidden, hidden.shape[0], operand.shape[0], torch.float32)
    kernel.logits(hidden, operand, logits)
    if described is not None:
        described.copy_(row_stats(stats, logits, targets, transform))
    kernel.rows(logits, targets, transform, logp, entropy, p)


def row_stats(
    stats: Sequence[str],
    logits: Tensor,  # [n, V] fp32
    targets: Tensor,  # [n] int64
    transform: Transform,
) -> Tensor:  # [stats, n] fp32
    """The `STATS` of those names, in that order."""
    plain = not stats or (transform.bias is None and transform.r is None)
    x, c = logits if plain else transform.apply_(logits.clone()), transform.c  # [n, V]
    found = logits.new_empty((len(stats), logits.shape[0]))
    for name, out in zip(stats, found, strict=True):
        if name == "is_top1":
            out.copy_(x.argmax(-1) == targets)
        elif name == "mean_logits":
            out.copy_(x.mean(-1)).mul_(c)
        else:
            z = (x - x.amax(-1, keepdim=True)).mul_(c)
            torch.sub(torch.logsumexp(2 * z, -1), torch.logsumexp(z, -1), alpha=2, out=out)
    return found


class HeadGradient:
    """The gradients of weight and bias, summed in fp32 over chunks of rows, in order.

    The first chunk overwrites the memory, so it is zeroed only if there are no rows.
    """

    def __init__(
        self,
        kernel: RowKernel,
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        n: int,  # rows
    ) -> None:
        self.kernel = kernel
        make = torch.empty if n else torch.zeros
        self.weight = make(weight.shape, dtype=torch.float32, device=weight.device)  # [V, H]
        self.bias = make(0 if bias is None else bias.shape, dtype=torch.float32, device=weight.device)  # [V] or [0]
        self.has_bias, self.first = bias is not None, True

    def add(
        self,
        p: Tensor,  # [n, V]
        hidden: Tensor,  # [n, H], of P's dtype
        g: Tensor,  # [n, 1]
    ) -> None:
        """d weight += P^T @ hidden, d bias += P^T @ g."""
        self.kernel.add_grad_weight(self.weight, p, hidden, self.first)
        if self.has_bias:
            self.kernel.add_grad_weight(self.bias[:, None], p, g.to(p.dtype), self.first)
        self.first = False


def no_head_gradient(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[0] fp32 for each of weight and bias, of which no gradient is needed."""
    return weight.new_empty(0, dtype=torch.float32), weight.new_empty(0, dtype=torch.float32)
