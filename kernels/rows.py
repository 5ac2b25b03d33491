"""The parts of the head's kernels that depend on the device: two GEMM shapes, a row pass, and a chunk size. There is
one class per kind of device.

The loops over chunks and the algebra are in `linear_logprob.py` and `cross_entropy.py`; a new device adds a
`RowKernel`.

The row pass, for the logits a [V] of a row and target y, is over z = c x:

    x = a + bias, or tanh(r (a + bias)) with a soft cap      c x: the logits of the softmax (see `Transform`)

The maximum of the row is subtracted first (c x - logsumexp(c x) at c x = 100 would lose 1e-5):

    S = sum exp(c (x - max))      logp = c (x_y - max) - log S      P = exp(c (x - max)) / S - onehot(y)
    entropy = log S - (1/S) sum exp(c (x - max)) c (x - max)

With a soft cap P is multiplied by 1 - x^2, so that in any case d logp / d a = - slope P.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vdengine import _native
from vdengine.kernels._triton import arch, device_of, jit, resolve, tl
from vdengine.kernels.table import launch

ROUND_ROWS = 512  # 311 MB of fp32 logits at a vocabulary of 152k


def row_buffer(like: Tensor, n: int, width: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory [n, width] on `like`'s device, with the allocation rounded up to a multiple of ROUND_ROWS
    rows.

    Every pack has another number of rows. Large buffers that differ by a few rows do not fit into each other's freed
    memory, and a caching allocator would keep one of each size. (On a CPU, pages that are not written cost nothing.)
    """
    rounded = torch.empty((-(-n // ROUND_ROWS) * ROUND_ROWS, width), dtype=dtype, device=like.device)
    return rounded.resize_((n, width))  # shrinks without freeing memory, and makes no view


class Transform(NamedTuple):
    """What becomes of a head's logits a = W h before the softmax: c x, with x = a + bias, or x = tanh(r (a + bias))."""

    c: float
    r: float | None = None  # None: no soft cap
    bias: Tensor | None = None  # [V]

    @property
    def slope(self) -> float:
        """d (c x) / d a, but for the factor 1 - x^2 of a soft cap, which P has."""
        return self.c if self.r is None else self.c * self.r

    def apply_(
        self,
        logits: Tensor,  # [n, V] fp32
    ) -> Tensor:  # [n, V] fp32
        """x, in the memory of the logits."""
        if self.bias is not None:
            logits.add_(self.bias)
        return logits if self.r is None else logits.mul_(self.r).tanh_()

    def cap_slope(
        self,
        x: Tensor,  # [n, V] fp32
    ) -> Tensor | None:  # [n, V] fp32
        """1 - x^2 with a soft cap."""
        return None if self.r is None else torch.addcmul(x.new_ones(()), x, x, value=-1)


class RowKernel:
    """The row kernel in plain torch, for any device. GEMM operands keep their dtype, logits are fp32."""

    def chunk_rows(self, vocab: int) -> int:
        """Rows of a chunk. 4096 are enough for efficient GEMMs on a GPU, and make the fp32 read-modify-write of d
        weight (8VH bytes per chunk) small."""
        return 4096

    def logit_operand(self, weight: Tensor) -> Tensor:
        """The operand of the logits GEMM, [V, H], made once per forward or backward."""
        return weight

    def logits(self, hidden: Tensor, operand: Tensor, out: Tensor) -> None:
        """out [n, V] fp32 = hidden [n, H] @ operand.T. A CUDA GEMM can write its fp32 accumulator. torch's CPU GEMM
        would round it to bf16, so on a CPU the operands are converted to fp32 first, which is exact."""
        if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
            torch.mm(hidden, operand.t(), out_dtype=torch.float32, out=out)
        else:
            torch.mm(hidden.float(), operand.float().t(), out=out)

    def rows(
        self,
        logits: Tensor,  # [n, V] fp32; may be overwritten
        targets: Tensor,  # [n] int64; one outside [0, V) gives NaN, or on a CPU a ValueError
        transform: Transform,
        logp: Tensor,  # [n] fp32, out
        entropy: Tensor | None,  # [n] fp32, out
        p: Tensor | None,  # [n, V], out: P, in p's dtype; may be `logits` itself
    ) -> None:
        """The row pass of a chunk."""
        x = transform.apply_(logits)
        cap_slope = None if p is None else transform.cap_slope(x)
        z = x.sub_(x.amax(-1, keepdim=True)).mul_(transform.c)  # [n, V]
        lse = torch.logsumexp(z, dim=-1)  # [n]
        # a target out of range gives NaN, because a device assert would end a CUDA process
        inside = (targets >= 0) & (targets < z.shape[1])
        targets = torch.where(inside, targets, 0)
        torch.sub(torch.where(inside, z.gather(1, targets[:, None])[:, 0], torch.nan), lse, out=logp)
        if entropy is None and p is None:
            return
        z.sub_(lse[:, None]).exp_()  # the softmax
        if entropy is not None:
            entropy.copy_(torch.special.xlogy(z, z).sum(-1).neg_())
        if p is not None:
            z.scatter_add_(1, targets[:, None], torch.full_like(lse, -1.0)[:, None])
            if cap_slope is not None:
                z.mul_(cap_slope)
            if p is not logits:
                p.copy_(z)

    def add_grad_weight(self, grad_weight: Tensor, p: Tensor, rows: Tensor, first: bool) -> None:
        """grad_weight [V, H] fp32 += p.T [V, n] @ rows [n, H], accumulated in fp32; if `first`, = in place of +=."""
        if p.device.type == "cuda" and p.dtype != torch.float32:
            if first:
                torch.mm(p.t(), rows, out_dtype=torch.float32, out=grad_weight)
            else:
                torch.addmm(grad_weight, p.t(), rows, out_dtype=torch.float32, out=grad_weight)
        elif first:
            torch.mm(p.float().t(), rows.float(), out=grad_weight)
        else:
            grad_weight.addmm_(p.float().t(), rows.float())


class NativeRowKernel(RowKernel):
    """The row kernel on a CPU: library GEMMs in fp32 and a row pass in C++."""

    def chunk_rows(self, vocab: int) -> int:
        """Rows of a chunk, of at most 160 MB of logits for today's vocabularies."""
        return 512 if vocab <= 65536 else 256

    def logit_operand(self, weight: Tensor) -> Tensor:
        """The weight in fp32, so that it is converted once and not in every chunk."""
        return weight.float()

    def rows(self, logits, targets, transform, logp, entropy, p):
        """As `RowKernel.rows`. A soft cap, and a P in fp16, take a pass of torch more."""
        x = transform.apply_(logits)
        cap_slope = None if p is None else transform.cap_slope(x)
        direct = cap_slope is None and (p is None or p.dtype in (torch.float32, torch.bfloat16))
        written = p if direct else logits
        lse = torch.empty_like(logp)
        _native.log_softmax_rows(
            logits.data_ptr(),
            "float32",
            logits.shape[0],
            logits.shape[1],
            logits.stride(0),
            targets.data_ptr(),
            transform.c,
            logp.data_ptr(),
            lse.data_ptr(),
            0 if entropy is None else entropy.data_ptr(),
            0 if written is None else written.data_ptr(),
            "float32" if written is None or written.dtype == torch.float32 else "bfloat16",
            0 if written is None else written.stride(0),
            torch.get_num_threads(),
        )
        if cap_slope is not None:
            torch.mul(logits, cap_slope, out=p)
        elif not direct:
            p.copy_(logits)


@jit
def shaped(
    a,  # [BLOCK] fp32, or a number
    bias,  # [V] fp32
    at,  # places of a in its row
    mask,
    r,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """x of logits a. The error of this tanh is that of an exp below 1, c times which is 1 ulp of the largest logit."""
    if BIAS:
        a += tl.load(bias + at, mask=mask, other=0.0)
    if SOFTCAP:
        small = tl.exp(-2.0 * r * tl.abs(a))
        x = (1.0 - small) / (1.0 + small)
        a = tl.where(a < 0, -x, x)
    return a


@jit
def head_rows_kernel(
    logits,  # [n, V] fp32
    targets,  # [n] int64
    bias,  # [V] fp32
    logp,  # [n] fp32, out
    entropy,  # [n] fp32, out
    p,  # [n, V] fp32, bf16 or fp16, out; may be `logits`: a block is read before it is written
    stride_logits,
    stride_p,
    vocab,
    c,
    r,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    WRITE_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row. Each lane has its own running maximum and sums, so the loop has no reduction across lanes
    and its loads overlap. The lanes are reduced once at the end, in a tree of fixed shape."""
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * stride_logits
    lanes = tl.arange(0, BLOCK)
    high = tl.full([BLOCK], -1e30, tl.float32)  # running maximum; finite, because -inf minus -inf is NaN
    total = tl.zeros([BLOCK], tl.float32)  # sum exp(c (z - high))
    moment = tl.zeros([BLOCK], tl.float32)  # sum exp(c (z - high)) c (z - high)
    for start in range(0, vocab, BLOCK):
        at = start + lanes
        z = tl.load(z_row + at, mask=at < vocab, other=-1e30)
        z = shaped(z, bias, at, at < vocab, r, BIAS, SOFTCAP)
        if SOFTCAP:
            z = tl.where(at < vocab, z, -1e30)
        new = tl.maximum(high, z)
        drop = (high - new) * c
        rise = (z - new) * c
        e = tl.exp(rise)
        if ENTROPY:
            moment = tl.exp(drop) * (moment + total * drop) + tl.where(e > 0, e * rise, 0.0)
        total = total * tl.exp(drop) + e
        high = new
    top = tl.max(high, 0)
    drop = (high - top) * c
    weight = tl.exp(drop)
    s = tl.sum(total * weight, 0)
    y = tl.load(targets + row)
    inside = (y >= 0) & (y < vocab)  # NaN if not, because a device assert would end the process
    z_y = tl.load(z_row + y, mask=inside, other=float("nan"))
    z_y = shaped(z_y, bias, y, inside, r, BIAS, SOFTCAP)
    tl.store(logp + row, (z_y - top) * c - tl.log(s))
    if ENTROPY:
        tl.store(entropy + row, tl.log(s) - tl.sum(weight * (moment + total * drop), 0) / s)
    if WRITE_P:
        p_row = p + row * stride_p
        for start in range(0, vocab, BLOCK):
            at = start + lanes
            z = tl.load(z_row + at, mask=at < vocab, other=-1e30)
            z = shaped(z, bias, at, at < vocab, r, BIAS, SOFTCAP)
            out = tl.exp((z - top) * c) / s - (at == y).to(tl.float32)
            if SOFTCAP:
                out *= 1.0 - z * z
            tl.store(p_row + at, out.to(p.dtype.element_ty), mask=at < vocab)


class TritonRowKernel(RowKernel):
    """The row kernel on CUDA: library GEMMs that write their fp32 accumulator, and a row pass in Triton."""

    def rows(self, logits, targets, transform, logp, entropy, p):
        """As `RowKernel.rows`."""
        n, vocab = logits.shape
        if n == 0:
            return
        bias = transform.bias
        # a bias and a cap take registers, which spill at 16 warps
        narrow = 1 if bias is None and transform.r is None else 2
        config = launch("head", torch.float32, vocab, arch(logits.device))
        with device_of(logits):
            head_rows_kernel[(n,)](
                logits,
                targets,
                logits if bias is None else bias.float().contiguous(),
                logp,
                logp if entropy is None else entropy,
                logits if p is None else p,
                logits.stride(0),
                0 if p is None else p.stride(0),
                vocab,
                transform.c,
                0.0 if transform.r is None else transform.r,
                BIAS=bias is not None,
                SOFTCAP=transform.r is not None,
                ENTROPY=entropy is not None,
                WRITE_P=p is not None,
                BLOCK=config.block // narrow,
                num_warps=max(1, config.warps // narrow),
            )


_KERNELS = {"native": NativeRowKernel, "torch": RowKernel, "triton": TritonRowKernel}


def row_kernel(op: str, device: torch.device, backend: str) -> RowKernel:
    """The row kernel of a backend that `head_backend` has returned.

    Raises:
        ValueError: the backend does not run on `device`.
    """
    if backend == "native" and device.type != "cpu":
        raise ValueError(f"{op}: backend 'native' is for CPU tensors; got {device}")
    return _KERNELS[backend]()


def head_backend(op: str, backend: str, device: torch.device) -> str:
    """`resolve` for the kernels of the output head, with their backends."""
    return resolve(op, backend, device, cpu="native", more=("torch",))
