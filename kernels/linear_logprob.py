"""Output head fused with its selected log-softmax: log p of one target per row, and never an [N, V] of logits.

With z = c W h (c = 1/temperature), p = softmax(z), y the target and g the upstream gradient of logp:

    logp     = z_y - logsumexp(z)
    P        = p - onehot(y)
    d hidden = -c g * (P @ W)               P @ W does not contain g: it is computed in forward
    d weight = -c P^T @ (g * hidden)        g scales [N, H] rows, never the [N, V] matrix

So any signed per-token gradient costs 6NVH FLOPs where P is kept until backward, and 8NVH where it is
recomputed; a frozen head costs 4NVH and keeps nothing of size V; without gradient it is one GEMM and a row
pass, 2NVH. Rows go through in chunks: a chunk's logits are the only [chunk, V] buffer, and P of as many chunks
as `saved_bytes` allows is kept.

Numerics. Logits are fp32 whatever the operands' dtype: rounded to bf16, logits between 16 and 32 have a spacing
of 0.125, which puts 0.01-0.02 nats per token of noise under every log-prob. P has the weight's dtype (it is an
operand of two GEMMs). d weight is accumulated and returned in fp32, chunk by chunk in order.
A row's result does not depend on `saved_bytes` or on whether gradients are wanted.

Entropy, if asked for, costs a term in the row pass; only a gradient through it needs the recomputation
(d z = -g_H p (log p + H)).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from vdengine.kernels.gather import accept_fp32_grad
from vdengine.kernels.rows import RowKernel, head_backend, row_buffer, row_kernel

SAVED_SHARE = 0.05  # of a GPU's memory: on 80 GB 13,000 rows of bf16 P at a vocabulary of 152k
SAVED_BYTES_ON_CPU = 1 << 31


class Scored(NamedTuple):
    """What `linear_logprob` gives when asked for the entropy."""

    logp: Tensor  # [N] fp32
    entropy: Tensor  # [N] fp32, nats


@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: Literal[False] = False,
    saved_bytes: int | None = None, fp32_weight_grad: bool = False, chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor: ...  # fmt: skip


@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy: bool,
    saved_bytes: int | None = None, fp32_weight_grad: bool = False, chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | Scored: ...  # fmt: skip


def linear_logprob(
    hidden: Tensor,  # [N, H] float32 or bfloat16 (float64 with the reference)
    weight: Tensor,  # [V, H] same dtype
    targets: Tensor,  # [N] int64 in [0, V)
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | Scored:
    """log softmax(hidden @ weight.T / temperature)[targets] -> [N] fp32, differentiable in hidden and weight.

    Args:
        entropy: also return the entropy of each row's distribution, as `Scored(logp, entropy)`, differentiable too.
        saved_bytes: memory that may hold softmax chunks until backward; 0 recomputes all. Default: 5% of a
            GPU's memory, 2 GiB on a CPU. No result depends on it.
        fp32_weight_grad: hand a bf16 weight the fp32 gradient that is accumulated, instead of rounding it: sets
            `weight.grad_dtype = None`. FSDP2 takes it where the weight is a unit of its own; optimizers over bf16
            weights and DDP do not.
        chunk_rows: rows whose logits exist at a time; default 4096 on CUDA, 256 or 512 on a CPU. A library may
            choose another GEMM for another number of rows: results of two sizes agree to rounding.
        backend: "auto" (by device), "triton" (CUDA), "native" (CPU), "torch" (any device, chunked) or "reference"
            (plain torch in one piece; float64 stays float64).

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit, naming the argument; on a CPU also a target
            out of range. On CUDA looking would wait for the device: there such a row's log-prob is NaN.
    """
    check_head("linear_logprob", hidden, weight, targets)
    if not isinstance(temperature, float | int) or not 1e-6 <= temperature <= 1e6:
        raise ValueError(f"linear_logprob: temperature must be a number in [1e-6, 1e6]; got {temperature}")
    if saved_bytes is not None and saved_bytes < 0:
        raise ValueError(f"linear_logprob: saved_bytes must be >= 0; got {saved_bytes}")
    check_targets("linear_logprob", targets, weight.shape[0])
    backend = head_backend("linear_logprob", backend, hidden.device)
    if backend == "reference":
        out = linear_logprob_reference(hidden, weight, targets, temperature)
        return out if entropy else out.logp
    kernel = check_rows("linear_logprob", hidden, chunk_rows, backend)
    if fp32_weight_grad:
        accept_fp32_grad(weight)
    grad = torch.is_grad_enabled()
    logp, ent, _, _ = _forward_op(
        hidden, weight, targets, 1.0 / temperature, entropy, saved_bytes,
        chunk_rows or kernel.chunk_rows(weight.shape[0]), backend,
        grad and hidden.requires_grad, grad and weight.requires_grad,
    )  # fmt: skip
    return Scored(logp, ent) if entropy else logp


def linear_logprob_reference(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Scored:
    """The definition, in plain torch. fp32 logits (float64 for float64 input); memory 3NV."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logp = torch.log_softmax(hidden.to(dtype) @ weight.to(dtype).t() / temperature, dim=-1)
    # clamped: where p underflows, p log p is 0 and so is its gradient (xlogy's would be 0 times infinity)
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(dtype).min)).sum(-1)
    return Scored(logp.gather(-1, targets[:, None])[:, 0], entropy)


class LinearLogprob(nn.Linear):
    """A language model's output layer that gives log-probs instead of logits; its weight is an `nn.Linear`'s.

    head = LinearLogprob(hidden_size, vocab_size)
    logp = head(hidden, targets)  # [N] fp32
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, saved_bytes: int | None = None, **kwargs: Any) -> None:
        super().__init__(hidden_size, vocab_size, bias=False, **kwargs)
        self.saved_bytes = saved_bytes

    def forward(self, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor | Scored:  # type: ignore[override]
        """`linear_logprob(hidden, self.weight, targets, **options)`."""
        return linear_logprob(hidden, self.weight, targets, **({"saved_bytes": self.saved_bytes} | options))


# ------------------------------------------------------------------------------------- what the head's kernels share


def check_head(op: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """ValueError, naming the argument, where shapes, dtypes or devices do not fit."""
    shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"{op}: hidden must be [N, H] and weight [V, H]; got {shapes}")
    if targets.ndim != 1 or targets.shape[0] != hidden.shape[0]:
        raise ValueError(f"{op}: targets must be [N], one per row of hidden; got {shapes}")
    if targets.dtype != torch.int64:
        raise ValueError(f"{op}: targets must be int64; got {targets.dtype}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"{op}: hidden and weight must share one floating dtype; got {hidden.dtype}, {weight.dtype}")
    if not hidden.device == weight.device == targets.device:
        raise ValueError(
            f"{op}: arguments are on different devices: {hidden.device}, {weight.device}, {targets.device}"
        )


def check_targets(op: str, targets: Tensor, vocab: int) -> None:
    """ValueError: a target out of range; on a CPU, in eager: elsewhere looking would wait, or break a graph."""
    if targets.device.type == "cpu" and not torch.compiler.is_compiling() and targets.numel():
        low, high = (int(x) for x in targets.aminmax())
        if low < 0 or high >= vocab:
            raise ValueError(f"{op}: targets must be in [0, {vocab}); got {low if low < 0 else high}")


def check_rows(op: str, hidden: Tensor, chunk_rows: int | None, backend: str) -> RowKernel:
    """The row kernel of a backend. ValueError: it cannot take this dtype, chunk or device."""
    if hidden.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{op}: hidden must be float32 or bfloat16; got {hidden.dtype}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"{op}: chunk_rows must be >= 1; got {chunk_rows}")
    return row_kernel(op, hidden.device, backend)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Rows 0..n in slices of `size`."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def softmax_chunk(
    kernel: RowKernel,
    hidden: Tensor,  # [n, H]
    operand: Tensor,  # kernel.logit_operand(weight)
    targets: Tensor,  # [n]
    c: float,
    logp: Tensor,  # [n] fp32, written
    entropy: Tensor | None,  # [n] fp32, written
    p: Tensor | None,  # [n, V], written; of the weight's dtype
) -> None:
    """Logits of a chunk and its row pass. fp32 logits that become P are computed in P's own memory."""
    in_place = p is not None and p.dtype == torch.float32
    logits = p if in_place else row_buffer(hidden, hidden.shape[0], operand.shape[0], torch.float32)
    assert logits is not None  # for mypy
    kernel.logits(hidden, operand, logits)
    kernel.rows(logits, targets, c, logp, entropy, p)


def weight_gradient(weight: Tensor, n: int) -> Tensor:
    """[V, H] fp32; the first chunk of rows writes it, so only no rows at all need zeros."""
    make = torch.empty_like if n else torch.zeros_like
    return make(weight, dtype=torch.float32, memory_format=torch.contiguous_format)


# ------------------------------------------------------------------------------------------------------- the ops
# Custom ops, so that torch.compile takes each for one node. What backward needs is an output like any other.


@functools.cache
def default_saved_bytes(device: torch.device) -> int:
    """Memory for softmax chunks where the caller names none. A fixed number would suit one card: 2 GiB recompute half
    of 8,192 rows at a vocabulary of 152k, a sixth more work than the head needs."""
    if device.type != "cuda":
        return SAVED_BYTES_ON_CPU
    return int(SAVED_SHARE * torch.cuda.get_device_properties(device).total_memory)


def _kept_rows(n: int, weight: Tensor, saved_bytes: int | None, chunk: int) -> int:
    """Rows whose P is kept for backward: as many whole chunks, from the first, as `saved_bytes` allows."""
    saved_bytes = default_saved_bytes(weight.device) if saved_bytes is None else saved_bytes
    row = weight.shape[0] * weight.element_size()
    if n * row <= saved_bytes:
        return n
    return saved_bytes // row // chunk * chunk


@torch.library.custom_op(
    "vdengine::linear_logprob",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor targets, float c, bool entropy, int? saved_bytes, int chunk_rows, "
    "str backend, bool need_hidden, bool need_weight) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, c: float, entropy: bool, saved_bytes: int | None,
    chunk_rows: int, backend: str, need_hidden: bool, need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """logp [N], entropy [N] or [0], U = P @ W [N, H] or [0], P of the kept rows [K, V]."""
    kernel = row_kernel("linear_logprob", hidden.device, backend)
    vocab = weight.shape[0]
    kept_rows = _kept_rows(hidden.shape[0], weight, saved_bytes, chunk_rows) if need_weight else 0
    logp, ent, u = _row_results(hidden, entropy, need_hidden)
    kept = row_buffer(weight, kept_rows, vocab, weight.dtype)
    hidden, targets = hidden.contiguous(), targets.contiguous()
    operand = kernel.logit_operand(weight)
    for rows in chunks(hidden.shape[0], chunk_rows):
        p = None
        if rows.stop <= kept.shape[0]:
            p = kept[rows]
        elif need_hidden:  # without it, P is only for d weight, which makes it again
            p = row_buffer(weight, rows.stop - rows.start, vocab, weight.dtype)
        softmax_chunk(
            kernel, hidden[rows], operand, targets[rows], c, logp[rows], ent[rows] if entropy else None, p
        )  # fmt: skip
        if need_hidden and p is not None:
            torch.mm(p, weight, out=u[rows])
    return logp, ent, u, kept


@_forward_op.register_fake
def _forward_fake(
    hidden, weight, targets, c, entropy, saved_bytes, chunk_rows, backend, need_hidden, need_weight
):  # fmt: skip
    kept_rows = _kept_rows(hidden.shape[0], weight, saved_bytes, chunk_rows) if need_weight else 0
    return *_row_results(hidden, entropy, need_hidden), weight.new_empty((kept_rows, weight.shape[0]))


def _row_results(hidden: Tensor, entropy: bool, need_hidden: bool) -> tuple[Tensor, Tensor, Tensor]:
    """logp [N], entropy [N] or [0] and U [N, H] or [0], not written."""
    n = hidden.shape[0]
    logp, ent = (hidden.new_empty(rows, dtype=torch.float32) for rows in (n, n if entropy else 0))
    return logp, ent, hidden.new_empty(hidden.shape if need_hidden else 0)


@torch.library.custom_op(
    "vdengine::linear_logprob_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor hidden, Tensor weight, Tensor targets, Tensor u, Tensor kept, float c, "
    "int chunk_rows, str backend, bool need_hidden, bool need_weight) -> (Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, u: Tensor, kept: Tensor, c: float, chunk_rows: int,
    backend: str, need_hidden: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """d hidden [N, H] (or [0]) and d weight [V, H] fp32 (or [0])."""
    kernel = row_kernel("linear_logprob", hidden.device, backend)
    g = (-c * grad)[:, None]  # [N, 1] fp32
    grad_hidden = (g * u).to(hidden.dtype) if need_hidden else hidden.new_empty(0)
    if not need_weight:
        return grad_hidden, weight.new_empty(0, dtype=torch.float32)
    hidden, targets = hidden.contiguous(), targets.contiguous()
    scaled = (g * hidden).to(weight.dtype)  # [N, H]
    grad_weight = weight_gradient(weight, hidden.shape[0])
    operand: Tensor | None = None
    for rows in chunks(hidden.shape[0], chunk_rows):
        if rows.stop <= kept.shape[0]:
            p = kept[rows]
        else:
            operand = kernel.logit_operand(weight) if operand is None else operand
            p = row_buffer(weight, rows.stop - rows.start, weight.shape[0], weight.dtype)
            softmax_chunk(kernel, hidden[rows], operand, targets[rows], c, torch.empty_like(grad[rows]), None, p)
        kernel.add_grad_weight(grad_weight, p, scaled[rows], rows.start == 0)
        del p  # before the next chunk's is made
    return grad_hidden, grad_weight


@torch.library.custom_op(
    "vdengine::linear_logprob_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_entropy, Tensor hidden, Tensor weight, Tensor targets, Tensor entropy, float c, "
    "int chunk_rows, str backend, bool need_hidden, bool need_weight) -> (Tensor, Tensor)",
)
def _entropy_backward_op(
    grad: Tensor, grad_entropy: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, entropy: Tensor, c: float,
    chunk_rows: int, backend: str, need_hidden: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both gradients by recomputation: dz = c (g (onehot - p) - g_H p (log p + H))."""
    kernel = row_kernel("linear_logprob", hidden.device, backend)
    hidden = hidden.contiguous()
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = weight_gradient(weight, hidden.shape[0]) if need_weight else weight.new_empty(0, dtype=torch.float32)
    operand = kernel.logit_operand(weight)
    targets = targets.clamp(0, weight.shape[0] - 1)  # one out of range has made the row's log-prob NaN
    for rows in chunks(hidden.shape[0], chunk_rows):
        p, dz = (row_buffer(hidden, rows.stop - rows.start, weight.shape[0], torch.float32) for _ in range(2))
        kernel.logits(hidden[rows], operand, p)
        p.sub_(p.amax(-1, keepdim=True)).mul_(c).exp_()
        p.div_(p.sum(-1, keepdim=True))
        # p log p is 0 in the limit p -> 0, also where a logit is -inf
        g = grad[rows, None]
        torch.special.xlogy(p, p, out=dz)
        dz.addcmul_(p, entropy[rows, None]).mul_(-grad_entropy[rows, None])
        dz.add_(p.mul_(-g).scatter_add_(1, targets[rows, None], g))
        del p
        dz = dz.mul_(c)
        if weight.dtype != dz.dtype:
            dz = row_buffer(dz, *dz.shape, weight.dtype).copy_(dz)
        if need_hidden:
            torch.mm(dz, weight, out=grad_hidden[rows])
        if need_weight:
            kernel.add_grad_weight(grad_weight, dz, hidden[rows], rows.start == 0)
        del dz
    return grad_hidden, grad_weight


@_backward_op.register_fake
def _backward_fake(grad, hidden, weight, targets, u, kept, c, chunk_rows, backend, need_hidden, need_weight):
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_weight else 0, dtype=torch.float32),
    )


@_entropy_backward_op.register_fake
def _entropy_backward_fake(
    grad, grad_entropy, hidden, weight, targets, entropy, c, chunk_rows, backend, need_hidden, need_weight
):  # fmt: skip
    return _backward_fake(grad, hidden, weight, targets, None, None, c, chunk_rows, backend, need_hidden, need_weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, c, _, _, chunk_rows, backend, need_hidden, need_weight = inputs
    _, entropy, u, kept = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, entropy, u, kept)
    ctx.options = c, chunk_rows, backend, need_hidden, need_weight


def _backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    hidden, weight, targets, entropy, u, kept = ctx.saved_tensors
    *_, need_hidden, need_weight = ctx.options
    if grad is None and grad_entropy is None:
        return (None,) * 10
    if grad_entropy is None:
        found = _backward_op(grad, hidden, weight, targets, u, kept, *ctx.options)
    else:
        g = torch.zeros_like(grad_entropy) if grad is None else grad
        found = _entropy_backward_op(g, grad_entropy, hidden, weight, targets, entropy, *ctx.options)
    grad_hidden, grad_weight = found
    return (grad_hidden if need_hidden else None, grad_weight if need_weight else None, *(None,) * 8)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
