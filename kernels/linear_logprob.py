"""The output head fused with the log-softmax at one target per row, without a matrix [N, V] of all logits.

For N rows h of width H and a vocabulary of V, with z = c W h (c = 1/temperature), p = softmax(z), y the target and g
the upstream gradient of logp:

    logp     = z_y - logsumexp(z)
    P        = p - onehot(y)
    d hidden = -c g * (P @ W)               P @ W does not contain g, so it is computed in forward
    d weight = -c P^T @ (g * hidden)        g scales the rows of [N, H] and not the matrix [N, V]

A gradient with any weight per token thus takes 6NVH FLOPs if P is kept until backward, and 8NVH if it is recomputed. A
frozen head takes 4NVH and keeps nothing of size V. Without gradient it is one GEMM and a row pass, 2NVH. Rows are
processed in chunks: only the logits of one chunk exist at a time, and P is kept for as many chunks as `saved_bytes`
allows.

Numerics: logits are fp32 for operands of any dtype. Rounded to bf16, logits between 16 and 32 would have a spacing of
0.125, which is 0.01-0.02 nats of noise in every log-prob. P has the weight's dtype, because it is an operand of two
GEMMs. d weight is accumulated in fp32, one chunk after another in order, and returned in fp32. The result of a row does
not depend on `saved_bytes` or on which gradients are needed.

The entropy costs one more term in the row pass. Only a gradient through it needs a recomputation
(d z = -g_H p (log p + H), g_H its upstream gradient).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from vdengine.kernels.gather import accept_fp32_grad
from vdengine.kernels.rows import RowKernel, head_backend, row_buffer, row_kernel

# Memory for P that is kept until backward, by default.
SAVED_SHARE = 0.05  # of a GPU's memory; of 80 GB it is 13,000 rows of bf16 P at a vocabulary of 152k
SAVED_BYTES_ON_CPU = 1 << 31


class Scored(NamedTuple):
    """The result of `linear_logprob` with the entropy."""

    logp: Tensor  # [N] fp32, nats
    entropy: Tensor  # [N] fp32, nats


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: Literal[False] = False,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor | Scored: ...


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
    """log softmax(hidden @ weight.T / temperature)[targets]: [N] fp32, nats, differentiable in hidden and weight.

    Args:
        entropy: also return the entropy of each row's distribution, as `Scored(logp, entropy)`, differentiable too.
        saved_bytes: memory for softmax chunks that are kept until backward; 0: all are recomputed. Default: 5% of a
            GPU's memory, 2 GiB on a CPU. The result does not depend on it.
        fp32_weight_grad: give a bf16 weight the accumulated fp32 gradient without rounding it, by
            `weight.grad_dtype = None`. FSDP2 accepts it if the weight is a unit of its own; optimizers over bf16
            weights and DDP do not.
        chunk_rows: rows whose logits exist at a time; default: 4096 on CUDA, 256 or 512 on a CPU. Results with two
            sizes are equal up to rounding, because a library may choose another GEMM for another number of rows.
        backend: "auto" (by device), "triton" (CUDA), "native" (CPU), "torch" (any device, in chunks) or "reference"
            (plain torch, all rows at once; float64 stays float64).

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit; the message names the argument. On a CPU also
            a target out of range; on CUDA, where the check would wait for the device, the log-prob of such a row is
            NaN.
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
    logp, entropies, _, _ = _forward_op(
        hidden,
        weight,
        targets,
        1.0 / temperature,
        entropy,
        saved_bytes,
        chunk_rows or kernel.chunk_rows(weight.shape[0]),
        backend,
        grad and hidden.requires_grad,
        grad and weight.requires_grad,
    )
    return Scored(logp, entropies) if entropy else logp


def linear_logprob_reference(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N] int64
    temperature: float = 1.0,
) -> Scored:  # each [N]
    """The definition in plain torch, with fp32 logits (float64 for float64 input). Its memory is 3NV."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logp = torch.log_softmax(hidden.to(dtype) @ weight.to(dtype).t() / temperature, dim=-1)  # [N, V]
    # clamped so that p log p and its gradient are 0 where p underflows (the gradient of xlogy would be 0 * infinity)
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(dtype).min)).sum(-1)  # [N]
    return Scored(logp.gather(-1, targets[:, None])[:, 0], entropy)


class LinearLogprob(nn.Linear):
    """The output layer of a language model, with log-probs in place of logits. Its weight is that of `nn.Linear`.

    head = LinearLogprob(hidden_size, vocab_size)
    logp = head(hidden, targets)  # [N] fp32
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, saved_bytes: int | None = None, **kwargs: Any) -> None:
        super().__init__(hidden_size, vocab_size, bias=False, **kwargs)
        self.saved_bytes = saved_bytes

    def forward(self, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor | Scored:  # type: ignore[override]
        """`linear_logprob(hidden, self.weight, targets, **options)`."""
        return linear_logprob(hidden, self.weight, targets, **({"saved_bytes": self.saved_bytes} | options))


# ------------------------------------------------------------------------------------- shared by the kernels of the
# head


def check_head(op: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Raise ValueError where shapes, dtypes or devices do not fit."""
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


def check_rows(op: str, hidden: Tensor, chunk_rows: int | None, backend: str) -> RowKernel:
    """The row kernel of a backend.

    Raises:
        ValueError: a dtype, chunk size or device that it cannot take.
    """
    if hidden.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{op}: hidden must be float32 or bfloat16; got {hidden.dtype}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"{op}: chunk_rows must be >= 1; got {chunk_rows}")
    return row_kernel(op, hidden.device, backend)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover rows 0 .. n."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def softmax_chunk(
    kernel: RowKernel,
    hidden: Tensor,  # [n, H]
    operand: Tensor,  # [V, H], kernel.logit_operand(weight)
    targets: Tensor,  # [n] int64
    c: float,  # 1 / temperature
    logp: Tensor,  # [n] fp32, out
    entropy: Tensor | None,  # [n] fp32, out
    p: Tensor | None,  # [n, V], out; of the weight's dtype
) -> None:
    """The logits of a chunk and its row pass. If P is fp32, the logits are computed in its memory."""
    in_place = p is not None and p.dtype == torch.float32
    logits = p if in_place else row_buffer(hidden, hidden.shape[0], operand.shape[0], torch.float32)
    assert logits is not None  # for mypy
    kernel.logits(hidden, operand, logits)
    kernel.rows(logits, targets, c, logp, entropy, p)


def weight_gradient(
    weight: Tensor,  # [V, H]
    n: int,  # rows
) -> Tensor:  # [V, H] fp32
    """Memory for the gradient of a weight: [V, H] fp32. The first chunk of rows overwrites it, so it is zeroed only if
    there are no rows."""
    make = torch.empty_like if n else torch.zeros_like
    return make(weight, dtype=torch.float32, memory_format=torch.contiguous_format)


# -------------------------------------------------------------------------------------------------------------- the ops
# They are custom ops, so that torch.compile treats each as one node. What backward needs is an output like any other.


@functools.cache
def default_saved_bytes(device: torch.device) -> int:
    """Default memory for softmax chunks. A fixed number would suit one card only: with 2 GiB, half of 8,192 rows at a
    vocabulary of 152k are recomputed, a sixth more work than necessary."""
    if device.type != "cuda":
        return SAVED_BYTES_ON_CPU
    return int(SAVED_SHARE * torch.cuda.get_device_properties(device).total_memory)


def _kept_rows(n: int, weight: Tensor, saved_bytes: int | None, chunk: int) -> int:
    """The number of rows, from the first, whose P is kept for backward: as many whole chunks as `saved_bytes`
    allows."""
    saved_bytes = default_saved_bytes(weight.device) if saved_bytes is None else saved_bytes
    row_bytes = weight.shape[0] * weight.element_size()
    if n * row_bytes <= saved_bytes:
        return n
    return saved_bytes // row_bytes // chunk * chunk


@torch.library.custom_op(
    "vdengine::linear_logprob",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor targets, float c, bool entropy, int? saved_bytes, int chunk_rows, "
    "str backend, bool need_hidden, bool need_weight) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N] int64
    c: float,  # 1 / temperature
    entropy: bool,
    saved_bytes: int | None,  # None: the default
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp [N] fp32, entropy [N] fp32 or [0], U = P @ W [N, H] or [0], P of the kept rows [K, V]."""
    kernel = row_kernel("linear_logprob", hidden.device, backend)
    vocab = weight.shape[0]
    kept_rows = _kept_rows(hidden.shape[0], weight, saved_bytes, chunk_rows) if need_weight else 0
    logp, entropies, u = _row_results(hidden, entropy, need_hidden)
    kept = row_buffer(weight, kept_rows, vocab, weight.dtype)
    hidden, targets = hidden.contiguous(), targets.contiguous()
    operand = kernel.logit_operand(weight)
    for rows in chunks(hidden.shape[0], chunk_rows):
        p = None
        if rows.stop <= kept.shape[0]:
            p = kept[rows]
        elif need_hidden:  # otherwise P is only needed for d weight, whose backward recomputes it
            p = row_buffer(weight, rows.stop - rows.start, vocab, weight.dtype)
        softmax_chunk(
            kernel, hidden[rows], operand, targets[rows], c, logp[rows], entropies[rows] if entropy else None, p
        )
        if need_hidden and p is not None:
            torch.mm(p, weight, out=u[rows])
    return logp, entropies, u, kept


@_forward_op.register_fake
def _forward_fake(hidden, weight, targets, c, entropy, saved_bytes, chunk_rows, backend, need_hidden, need_weight):
    kept_rows = _kept_rows(hidden.shape[0], weight, saved_bytes, chunk_rows) if need_weight else 0
    return *_row_results(hidden, entropy, need_hidden), weight.new_empty((kept_rows, weight.shape[0]))


def _row_results(
    hidden: Tensor,  # [N, H]
    entropy: bool,
    need_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for logp [N], entropy [N] or [0], and U [N, H] or [0]."""
    n = hidden.shape[0]
    logp, entropies = (hidden.new_empty(rows, dtype=torch.float32) for rows in (n, n if entropy else 0))
    return logp, entropies, hidden.new_empty(hidden.shape if need_hidden else 0)


@torch.library.custom_op(
    "vdengine::linear_logprob_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor hidden, Tensor weight, Tensor targets, Tensor u, Tensor kept, float c, "
    "int chunk_rows, str backend, bool need_hidden, bool need_weight) -> (Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor,  # [N] fp32, of logp
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N] int64
    u: Tensor,  # [N, H] or [0]
    kept: Tensor,  # [K, V]
    c: float,  # 1 / temperature
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """d hidden [N, H] or [0], and d weight [V, H] fp32 or [0]; u and kept are those of forward."""
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
        del p  # before P of the next chunk is allocated
    return grad_hidden, grad_weight


@torch.library.custom_op(
    "vdengine::linear_logprob_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_entropy, Tensor hidden, Tensor weight, Tensor targets, Tensor entropy, float c, "
    "int chunk_rows, str backend, bool need_hidden, bool need_weight) -> (Tensor, Tensor)",
)
def _entropy_backward_op(
    grad: Tensor,  # [N] fp32, of logp
    grad_entropy: Tensor,  # [N] fp32, g_H
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N] int64
    entropy: Tensor,  # [N] fp32
    c: float,  # 1 / temperature
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients by recomputation, with dz = c (g (onehot - p) - g_H p (log p + H)). Results as in
    `_backward_op`."""
    kernel = row_kernel("linear_logprob", hidden.device, backend)
    hidden = hidden.contiguous()
    grad_hidden = torch.empty_like(hidden) if need_hidden else hidden.new_empty(0)
    grad_weight = weight_gradient(weight, hidden.shape[0]) if need_weight else weight.new_empty(0, dtype=torch.float32)
    operand = kernel.logit_operand(weight)
    targets = targets.clamp(0, weight.shape[0] - 1)  # a target out of range has made the row's log-prob NaN in forward
    for rows in chunks(hidden.shape[0], chunk_rows):
        p, dz = (row_buffer(hidden, rows.stop - rows.start, weight.shape[0], torch.float32) for _ in range(2))
        kernel.logits(hidden[rows], operand, p)
        p.sub_(p.amax(-1, keepdim=True)).mul_(c).exp_()
        p.div_(p.sum(-1, keepdim=True))
        # xlogy, because p log p is 0 in the limit p -> 0, also where a logit is -inf
        g = grad[rows, None]  # [n, 1]
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
):
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
        gradients = _backward_op(grad, hidden, weight, targets, u, kept, *ctx.options)
    else:
        g = torch.zeros_like(grad_entropy) if grad is None else grad
        gradients = _entropy_backward_op(g, grad_entropy, hidden, weight, targets, entropy, *ctx.options)
    grad_hidden, grad_weight = gradients
    return (grad_hidden if need_hidden else None, grad_weight if need_weight else None, *(None,) * 8)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
