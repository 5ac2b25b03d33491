"""The output head fused with the log-softmax at one target per row, without a matrix [N, V] of all logits.

For N rows h of width H and a vocabulary of V, with z = c W h (c = 1/temperature), p = softmax(z), y the target and g
the upstream gradient of logp:

    logp     = z_y - logsumexp(z)
    P        = p - onehot(y)
    d hidden = -c g * (P @ W)               P @ W does not contain g, so it is computed in forward
    d weight = -c P^T @ (g * hidden)        g scales the rows of [N, H] and not the matrix [N, V]

Heads of other models may have a bias, a scale and a soft cap (Gemma-2, arXiv 2408.00118). In this order, as
transformers and TRL apply them,

    z = softcap * tanh(scale (W h + bias) / softcap) / temperature

and P is multiplied by 1 - tanh^2, c = scale / temperature, and d bias = -c P^T @ g.

A gradient with any weight per token thus takes 6NVH FLOPs if P is kept until backward, and 8NVH if it is recomputed. A
frozen head takes 4NVH and keeps nothing of size V. Without gradient it is one GEMM and a row pass, 2NVH. Rows are
processed in chunks: only the logits of one chunk exist at a time, and P is kept for as many chunks as `saved_bytes`
allows.

Numerics: logits are fp32 for operands of any dtype. Rounded to bf16, logits between 16 and 32 would have a spacing of
0.125, which is 0.01-0.02 nats of noise in every log-prob. P has the operands' dtype, because it is one in two GEMMs. In
fp16 probabilities below 2^-25 are 0 in it, which is below the rounding of those that are not. d weight is accumulated
in fp32, one chunk after another in order, and returned in fp32. The result of a row does not depend on `saved_bytes` or
on which gradients are needed.

The operands have autocast's dtype where autocast is on, as those of `F.linear` would, else that of `hidden`. They are
converted within the op: an fp32 weight gets its gradient unrounded, and no copy of it is kept for backward.

The file is above 500 lines because it has, as the file of every kernel, the maths, the ops, the function and its
reference; the parts that cross-entropy uses too are in `head_chunks`.

The entropy costs one more term in the row pass. Only a gradient through it needs a recomputation
(d z = -g_H p (log p + H), g_H its upstream gradient).
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from vdengine.kernels.gather import accept_fp32_grad
from vdengine.kernels.head_chunks import (
    STATS,
    HeadGradient,
    check_head,
    check_rows,
    check_targets,
    chunks,
    gathered,
    head_transform,
    no_head_gradient,
    operand_dtype,
    row_stats,
    softmax_chunk,
)
from vdengine.kernels.rows import Transform, head_backend, row_buffer, row_kernel

# Memory for P that is kept until backward, by default.
SAVED_SHARE = 0.05  # of a GPU's memory; of 80 GB it is 13,000 rows of bf16 P at a vocabulary of 152k
SAVED_BYTES_ON_CPU = 1 << 31


class Scored(NamedTuple):
    """The result of `linear_logprob` with the entropy."""

    logp: Tensor  # [...] fp32, nats
    entropy: Tensor  # [...] fp32, nats


class Described(NamedTuple):
    """The result of `linear_logprob` with `stats`, none of which has a gradient."""

    logp: Tensor  # [...] fp32, nats
    entropy: Tensor | None  # [...] fp32, nats; None unless asked for
    stats: dict[str, Tensor]  # each [...] fp32, by name


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: Literal[False] = False,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
    stats: tuple[()] = (),
) -> Tensor: ...


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
    stats: tuple[()] = (),
) -> Tensor | Scored: ...


@overload
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
    stats: tuple[str, ...],
) -> Tensor | Scored | Described: ...


def linear_logprob(
    hidden: Tensor,  # [..., H] float32, bfloat16 or float16 (float64 with the reference)
    weight: Tensor,  # [V, H], its dtype may be another
    targets: Tensor,  # [...] int64 in [0, V)
    *,
    bias: Tensor | None = None,  # [V], its dtype may be another
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    saved_bytes: int | None = None,
    fp32_weight_grad: bool = False,
    chunk_rows: int | None = None,
    backend: str = "auto",
    stats: tuple[str, ...] = (),
) -> Tensor | Scored | Described:
    """log softmax(hidden @ weight.T / temperature)[targets]: [...] fp32, nats, differentiable in hidden, weight and
    bias.

    A weight that is a DTensor (of FSDP2 outside of its module's forward, or of tensor parallelism) is gathered. Its
    gradient is a DTensor, the mean over the mesh: FSDP2's gradient where ranks have other rows, and the gradient
    itself where all have the same.

    Args:
        bias: added to the logits.
        scale: multiplies the logits after the bias (`logit_scale` of Cohere, 1/`logits_scaling` of Granite).
        softcap: then softcap * tanh(logits / softcap) (`final_logit_softcapping` of Gemma).
        temperature: divides the logits at the end.
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
        stats: names of `STATS`; then the result is `Described`. Each takes a pass over the logits.

    Raises:
        ValueError: shapes, dtypes, devices or a backend that do not fit; the message names the argument. On a CPU also
            a target out of range; on CUDA, where the check would wait for the device, the log-prob of such a row is
            NaN.
    """
    check_head("linear_logprob", hidden, weight, targets, bias)
    transform = head_transform("linear_logprob", scale, softcap, temperature)
    if saved_bytes is not None and saved_bytes < 0:
        raise ValueError(f"linear_logprob: saved_bytes must be >= 0; got {saved_bytes}")
    if unknown := [name for name in stats if name not in STATS]:
        raise ValueError(f"linear_logprob: unknown stats {unknown}; allowed: {', '.join(STATS)}")
    check_targets("linear_logprob", targets, weight.shape[0])
    backend = head_backend("linear_logprob", backend, hidden.device)
    weight, bias = gathered(weight), None if bias is None else gathered(bias)
    rows, targets_of_rows, dtype = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), operand_dtype(hidden)
    if backend == "reference":
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _reference_logits(rows.to(dtype), weight.to(dtype), bias, scale, softcap) / temperature
            logp, entropies = _reference_scores(logits, targets_of_rows)
            described = row_stats(stats, logits.detach(), targets_of_rows, Transform(1.0))
    else:
        kernel = check_rows("linear_logprob", dtype, hidden.device, chunk_rows, backend)
        if fp32_weight_grad:
            accept_fp32_grad(weight)
        grad = torch.is_grad_enabled()
        logp, entropies, described, _, _ = _forward_op(
            rows,
            weight,
            bias,
            targets_of_rows,
            transform.c,
            transform.r,
            dtype,
            entropy,
            list(stats),
            saved_bytes,
            chunk_rows or kernel.chunk_rows(weight.shape[0]),
            backend,
            grad and hidden.requires_grad,
            grad and (weight.requires_grad or (bias is not None and bias.requires_grad)),
        )
    if targets.ndim != 1:  # not of every call: FSDP2 warns of a view among a module's outputs
        logp, entropies = logp.reshape(targets.shape), entropies.reshape(targets.shape) if entropy else entropies
    if not stats:
        return Scored(logp, entropies) if entropy else logp
    by_name = {name: row.reshape(targets.shape) for name, row in zip(stats, described.detach(), strict=True)}
    return Described(logp, entropies if entropy else None, by_name)


def linear_logprob_reference(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    targets: Tensor,  # [N] int64
    temperature: float = 1.0,
    *,
    bias: Tensor | None = None,  # [V]
    scale: float = 1.0,
    softcap: float | None = None,
) -> Scored:  # each [N]
    """The definition in plain torch, with fp32 logits (float64 for float64 input). Its memory is 3NV."""
    return _reference_scores(_reference_logits(hidden, weight, bias, scale, softcap) / temperature, targets)


def _reference_logits(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    scale: float,
    softcap: float | None,
) -> Tensor:  # [N, V]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    if bias is not None:
        logits = logits + bias.to(dtype)
    if scale != 1.0:
        logits = scale * logits
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _reference_scores(
    logits: Tensor,  # [N, V]
    targets: Tensor,  # [N] int64
) -> Scored:  # each [N]
    logp = torch.log_softmax(logits, dim=-1)  # [N, V]
    # clamped so that p log p and its gradient are 0 where p underflows (the gradient of xlogy would be 0 * infinity)
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)  # [N]
    return Scored(logp.gather(-1, targets[:, None])[:, 0], entropy)


class LinearLogprob(nn.Linear):
    """The output layer of a language model, with log-probs in place of logits. Its parameters are those of `nn.Linear`.

    head = LinearLogprob(hidden_size, vocab_size)
    logp = head(hidden, targets)  # [...] fp32
    """

    def __init__(
        self, hidden_size: int, vocab_size: int, bias: bool = False, *, saved_bytes: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(hidden_size, vocab_size, bias=bias, **kwargs)
        self.saved_bytes = saved_bytes

    def forward(self, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor | Scored | Described:  # type: ignore[override]
        """`linear_logprob(hidden, self.weight, targets, bias=self.bias, **options)`."""
        options = {"saved_bytes": self.saved_bytes} | options
        return linear_logprob(hidden, self.weight, targets, bias=self.bias, **options)


# ------------------------------------------------------------------------------------- shared by the kernels of the
# head


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
    schema="(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, float c, float? r, ScalarType dtype, "
    "bool entropy, str[] stats, int? saved_bytes, int chunk_rows, str backend, bool need_hidden, bool need_head) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward_op(
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    targets: Tensor,  # [N] int64
    c: float,  # of Transform
    r: float | None,  # of Transform
    dtype: torch.dtype,  # of the operands
    entropy: bool,
    stats: list[str],
    saved_bytes: int | None,  # None: the default
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_head: bool,  # a gradient of weight or bias
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logp [N] fp32, entropy [N] fp32 or [0], stats [stats, N] fp32, U = P @ W [N, H] or [0], P of the kept rows
    [K, V]."""
    kernel, transform = row_kernel("linear_logprob", hidden.device, backend), Transform(c, r, bias)
    hidden, weight, targets = hidden.to(dtype).contiguous(), weight.to(dtype), targets.contiguous()
    vocab = weight.shape[0]
    kept_rows = _kept_rows(hidden.shape[0], weight, saved_bytes, chunk_rows) if need_head else 0
    logp, entropies, described, u = _row_results(hidden, entropy, stats, need_hidden)
    kept = row_buffer(weight, kept_rows, vocab, dtype)
    operand = kernel.logit_operand(weight)
    for rows in chunks(hidden.shape[0], chunk_rows):
        p = None
        if rows.stop <= kept.shape[0]:
            p = kept[rows]
        elif need_hidden:  # otherwise P is only needed for d weight, whose backward recomputes it
            p = row_buffer(weight, rows.stop - rows.start, vocab, dtype)
        softmax_chunk(
            kernel,
            hidden[rows],
            operand,
            targets[rows],
            transform,
            logp[rows],
            entropies[rows] if entropy else None,
            p,
            stats,
            described[:, rows] if stats else None,
        )
        if need_hidden and p is not None:
            torch.mm(p, weight, out=u[rows])
    return logp, entropies, described, u, kept


@_forward_op.register_fake
def _forward_fake(
    hidden, weight, bias, targets, c, r, dtype, entropy, stats, saved_bytes, chunk_rows, backend, need_hidden, need_head
):
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    kept_rows = _kept_rows(hidden.shape[0], weight, saved_bytes, chunk_rows) if need_head else 0
    return *_row_results(hidden, entropy, stats, need_hidden), weight.new_empty((kept_rows, weight.shape[0]))


def _row_results(
    hidden: Tensor,  # [N, H], of the operands' dtype
    entropy: bool,
    stats: list[str],
    need_hidden: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for logp [N], entropy [N] or [0], stats [stats, N], and U [N, H] or [0]."""
    n = hidden.shape[0]
    logp, entropies = (hidden.new_empty(rows, dtype=torch.float32) for rows in (n, n if entropy else 0))
    described = hidden.new_empty((len(stats), n), dtype=torch.float32)
    return logp, entropies, described, hidden.new_empty(hidden.shape if need_hidden else 0)


@torch.library.custom_op(
    "vdengine::linear_logprob_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor u, Tensor kept, float c, "
    "float? r, ScalarType dtype, int chunk_rows, str backend, bool need_hidden, bool need_head) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    grad: Tensor,  # [N] fp32, of logp
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    targets: Tensor,  # [N] int64
    u: Tensor,  # [N, H] or [0]
    kept: Tensor,  # [K, V]
    c: float,  # of Transform
    r: float | None,  # of Transform
    dtype: torch.dtype,  # of the operands
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_head: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d hidden [N, H] or [0], d weight [V, H] fp32 or [0], d bias [V] fp32 or [0]; u and kept are those of forward."""
    kernel, transform = row_kernel("linear_logprob", hidden.device, backend), Transform(c, r, bias)
    g = (-transform.slope * grad)[:, None]  # [N, 1] fp32
    grad_hidden = (g * u).to(hidden.dtype) if need_hidden else hidden.new_empty(0)
    if not need_head:
        return grad_hidden, *no_head_gradient(weight)
    hidden, targets = hidden.to(dtype).contiguous(), targets.contiguous()
    g, loss_scale = _within_fp16(g) if dtype == torch.float16 else (g, None)
    scaled = (g * hidden).to(dtype)  # [N, H]
    gradient = HeadGradient(kernel, weight, bias, hidden.shape[0])
    operand: Tensor | None = None
    for rows in chunks(hidden.shape[0], chunk_rows):
        if rows.stop <= kept.shape[0]:
            p = kept[rows]
        else:
            operand = kernel.logit_operand(weight.to(dtype)) if operand is None else operand
            p = row_buffer(weight, rows.stop - rows.start, weight.shape[0], dtype)
            softmax_chunk(
                kernel, hidden[rows], operand, targets[rows], transform, torch.empty_like(grad[rows]), None, p
            )
        gradient.add(p, scaled[rows], g[rows])
        del p  # before P of the next chunk is allocated
    if loss_scale is not None:
        gradient.weight.mul_(loss_scale)
        gradient.bias.mul_(loss_scale)
    return grad_hidden, gradient.weight, gradient.bias


def _within_fp16(
    g: Tensor,  # [N, 1] fp32
) -> tuple[Tensor, Tensor | None]:
    """g divided by a power of two so that none is above 1, and that power, [] fp32: times a loss scale of 2^16, as is
    usual in fp16, a hidden state would overflow where the gradient does not."""
    if not g.numel():
        return g, None
    power = torch.ldexp(g.new_ones(()), torch.frexp(g.abs().amax()).exponent)
    return g / power, power


@torch.library.custom_op(
    "vdengine::linear_logprob_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor grad_entropy, Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, "
    "Tensor entropy, float c, float? r, ScalarType dtype, int chunk_rows, str backend, bool need_hidden, "
    "bool need_head) -> (Tensor, Tensor, Tensor)",
)
def _entropy_backward_op(
    grad: Tensor,  # [N] fp32, of logp
    grad_entropy: Tensor,  # [N] fp32, g_H
    hidden: Tensor,  # [N, H]
    weight: Tensor,  # [V, H]
    bias: Tensor | None,  # [V]
    targets: Tensor,  # [N] int64
    entropy: Tensor,  # [N] fp32
    c: float,  # of Transform
    r: float | None,  # of Transform
    dtype: torch.dtype,  # of the operands
    chunk_rows: int,
    backend: str,
    need_hidden: bool,
    need_head: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients by recomputation, with da = slope (g (onehot - p) - g_H p (log p + H)), and times 1 - x^2 with a
    soft cap. Results as in `_backward_op`."""
    kernel, transform = row_kernel("linear_logprob", hidden.device, backend), Transform(c, r, bias)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0, dtype=dtype)
    input_dtype, hidden, head = hidden.dtype, hidden.to(dtype).contiguous(), weight.to(dtype)
    gradient = HeadGradient(kernel, weight, bias, hidden.shape[0]) if need_head else None
    operand = kernel.logit_operand(head)
    targets = targets.clamp(0, weight.shape[0] - 1)  # a target out of range has made the row's log-prob NaN in forward
    for rows in chunks(hidden.shape[0], chunk_rows):
        p, da = (row_buffer(hidden, rows.stop - rows.start, weight.shape[0], torch.float32) for _ in range(2))
        kernel.logits(hidden[rows], operand, p)
        transform.apply_(p)
        cap_slope = transform.cap_slope(p)
        p.sub_(p.amax(-1, keepdim=True)).mul_(c).exp_()
        p.div_(p.sum(-1, keepdim=True))
        # xlogy, because p log p is 0 in the limit p -> 0, also where a logit is -inf
        g = grad[rows, None]  # [n, 1]
        torch.special.xlogy(p, p, out=da)
        da.addcmul_(p, entropy[rows, None]).mul_(-grad_entropy[rows, None])
        da.add_(p.mul_(-g).scatter_add_(1, targets[rows, None], g))
        del p
        da = da.mul_(transform.slope)
        if cap_slope is not None:
            da.mul_(cap_slope)
        if dtype != da.dtype:
            da = row_buffer(da, *da.shape, dtype).copy_(da)
        if need_hidden:
            torch.mm(da, head, out=grad_hidden[rows])
        if gradient is not None:
            gradient.add(da, hidden[rows], torch.ones_like(g))
        del da
    if gradient is None:
        return grad_hidden.to(input_dtype), *no_head_gradient(weight)
    return grad_hidden.to(input_dtype), gradient.weight, gradient.bias


@_backward_op.register_fake
def _backward_fake(
    grad, hidden, weight, bias, targets, u, kept, c, r, dtype, chunk_rows, backend, need_hidden, need_head
):
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_head else 0, dtype=torch.float32),
        weight.new_empty(bias.shape if need_head and bias is not None else 0, dtype=torch.float32),
    )


@_entropy_backward_op.register_fake
def _entropy_backward_fake(grad, grad_entropy, hidden, weight, bias, targets, entropy, *options):
    return _backward_fake(grad, hidden, weight, bias, targets, None, None, *options)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, c, r, dtype, *_, chunk_rows, backend, need_hidden, need_head = inputs
    _, entropy, _, u, kept = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, bias, targets, entropy, u, kept)
    ctx.options = c, r, dtype, chunk_rows, backend, need_hidden, need_head


def _backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    hidden, weight, bias, targets, entropy, u, kept = ctx.saved_tensors
    *_, need_hidden, need_head = ctx.options
    if grad is None and grad_entropy is None:
        return (None,) * 14
    if grad_entropy is None:
        gradients = _backward_op(grad, hidden, weight, bias, targets, u, kept, *ctx.options)
    else:
        g = torch.zeros_like(grad_entropy) if grad is None else grad
        gradients = _entropy_backward_op(g, grad_entropy, hidden, weight, bias, targets, entropy, *ctx.options)
    grad_hidden, grad_weight, grad_bias = gradients
    return (
        grad_hidden if need_hidden else None,
        grad_weight if need_head else None,
        grad_bias if need_head and bias is not None else None,
        *(None,) * 11,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
