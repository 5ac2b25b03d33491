"""What the head's kernels need of a device: two GEMM shapes, a row pass, and a chunk size. One class a device.

The chunk loops and the algebra are in `linear_logprob.py` and `cross_entropy.py`; a new device adds a `RowKernel`.

The row pass, for logits z [V] of a row, c = 1/temperature, target y, with everything shifted by the row's maximum
before anything else (z - logsumexp(z) at z = 100 would lose 1e-5):

    S = sum exp(c (z - max))      logp = c (z_y - max) - log S      P = exp(c (z - max)) / S - onehot(y)
    entropy = log S - (1/S) sum exp(c (z - max)) c (z - max)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdengine import _native
from vdengine.kernels._triton import arch, device_of, jit, resolve, tl
from vdengine.kernels.table import launch

ROUND_ROWS = 512  # 311 MB of fp32 logits at a vocabulary of 152k


def row_buffer(like: Tensor, n: int, width: int, dtype: torch.dtype) -> Tensor:
    """[n, width], not written, on `like`'s device, in memory for a whole number of ROUND_ROWS rows.

    Every pack has another number of rows. Buffers of gigabytes that differ by a few rows do not fit into each other's
    freed memory: a caching allocator would keep one of each size. (On a CPU untouched pages cost nothing.)
    """
    held = torch.empty((-(-n // ROUND_ROWS) * ROUND_ROWS, width), dtype=dtype, device=like.device)
    return held.resize_((n, width))  # shrinking keeps the memory, and makes no view


class RowKernel:
    """Chunked rows in plain torch: runs anywhere. GEMM operands keep their dtype, logits are fp32."""

    def chunk_rows(self, vocab: int) -> int:
        """Rows to a chunk. 4096 keep a GPU's GEMMs full and the fp32 read-modify-write of d weight (8VH bytes a
        chunk) small."""
        return 4096

    def logit_operand(self, weight: Tensor) -> Tensor:
        """The [V, H] operand of the logits GEMM, made once per pass."""
        return weight

    def logits(self, hidden: Tensor, operand: Tensor, out: Tensor) -> None:
        """out [n, V] fp32 = hidden [n, H] @ operand.T. A CUDA GEMM can write its fp32 accumulator; torch's CPU GEMM
        would round it to bf16, so there the operands are widened first (exact)."""
        if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
            torch.mm(hidden, operand.t(), out_dtype=torch.float32, out=out)
        else:
            torch.mm(hidden.float(), operand.float().t(), out=out)

    def rows(
        self,
        logits: Tensor,  # [n, V] fp32; may be overwritten
        targets: Tensor,  # [n] int64; one outside [0, V) gives NaN, or a ValueError on the CPU
        c: float,  # 1 / temperature
        logp: Tensor,  # [n] fp32, written
        entropy: Tensor | None,  # [n] fp32, written
        p: Tensor | None,  # [n, V], written: P = softmax - onehot in its dtype; may be `logits` itself
    ) -> None:
        z = logits.sub_(logits.amax(-1, keepdim=True)).mul_(c)
        lse = torch.logsumexp(z, dim=-1)
        inside = (targets >= 0) & (targets < z.shape[1])  # what is not gives NaN: an assert would end a CUDA process
        targets = torch.where(inside, targets, 0)
        torch.sub(torch.where(inside, z.gather(1, targets[:, None])[:, 0], torch.nan), lse, out=logp)
        if entropy is None and p is None:
            return
        z.sub_(lse[:, None]).exp_()
        if entropy is not None:
            entropy.copy_(torch.special.xlogy(z, z).sum(-1).neg_())
        if p is not None:
            z.scatter_add_(1, targets[:, None], torch.full_like(lse, -1.0)[:, None])
            if p is not logits:
                p.copy_(z)

    def add_grad_weight(self, grad_weight: Tensor, p: Tensor, rows: Tensor, first: bool) -> None:
        """grad_weight [V, H] fp32 += p.T [V, n] @ rows [n, H], accumulated in fp32; `first`: = instead of +=."""
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
    """CPU: library GEMMs in fp32 and the C++ row kernel."""

    def chunk_rows(self, vocab: int) -> int:
        return 512 if vocab <= 65536 else 256  # at most 160 MB of logits for today's vocabularies

    def logit_operand(self, weight: Tensor) -> Tensor:
        return weight.float()  # once per pass, not once per chunk

    def rows(self, logits, targets, c, logp, entropy, p):
        lse = torch.empty_like(logp)
        _native.log_softmax_rows(
            logits.data_ptr(), "float32", logits.shape[0], logits.shape[1], logits.stride(0), targets.data_ptr(), c,
            logp.data_ptr(), lse.data_ptr(), 0 if entropy is None else entropy.data_ptr(),
            0 if p is None else p.data_ptr(), "float32" if p is None or p.dtype == torch.float32 else "bfloat16",
            0 if p is None else p.stride(0), torch.get_num_threads(),
        )  # fmt: skip


@jit
def head_rows_kernel(
    logits,  # [n, V] fp32
    targets,  # [n] int64
    logp,  # [n] fp32, out
    entropy,  # [n] fp32, out
    p,  # [n, V] fp32 or bf16, out; may be `logits`: a block is read before it is written
    stride_logits,
    stride_p,
    vocab,
    c,
    ENTROPY: tl.constexpr,
    WRITE_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row. Each lane keeps a running maximum and sums of its own, so the loop has no reduction across
    lanes and its loads overlap; lanes meet once, in a tree of fixed shape."""
    row = tl.program_id(0).to(tl.int64)
    z_row = logits + row * stride_logits
    lanes = tl.arange(0, BLOCK)
    high = tl.full([BLOCK], -1e30, tl.float32)  # finite: -inf minus -inf is no number
    total = tl.zeros([BLOCK], tl.float32)  # sum exp(c (z - high))
    moment = tl.zeros([BLOCK], tl.float32)  # sum exp(c (z - high)) c (z - high)
    for start in range(0, vocab, BLOCK):
        at = start + lanes
        z = tl.load(z_row + at, mask=at < vocab, other=-1e30)
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
    inside = (y >= 0) & (y < vocab)  # a device assert would end the process: NaN is found, and named, at the next log
    z_y = tl.load(z_row + y, mask=inside, other=float("nan"))
    tl.store(logp + row, (z_y - top) * c - tl.log(s))
    if ENTROPY:
        tl.store(entropy + row, tl.log(s) - tl.sum(weight * (moment + total * drop), 0) / s)
    if WRITE_P:
        p_row = p + row * stride_p
        for start in range(0, vocab, BLOCK):
            at = start + lanes
            z = tl.load(z_row + at, mask=at < vocab, other=-1e30)
            out = tl.exp((z - top) * c) / s - (at == y).to(tl.float32)
            tl.store(p_row + at, out.to(p.dtype.element_ty), mask=at < vocab)


class TritonRowKernel(RowKernel):
    """CUDA: library GEMMs that write their fp32 accumulator, and one Triton kernel between them."""

    def rows(self, logits, targets, c, logp, entropy, p):
        n, vocab = logits.shape
        if n == 0:
            return
        at = launch("head", torch.float32, vocab, arch(logits.device))
        with device_of(logits):
            head_rows_kernel[(n,)](
                logits, targets, logp, logp if entropy is None else entropy, logits if p is None else p,
                logits.stride(0), 0 if p is None else p.stride(0), vocab, c,
                ENTROPY=entropy is not None, WRITE_P=p is not None, BLOCK=at.block, num_warps=at.warps,
            )  # fmt: skip


_KERNELS = {"native": NativeRowKernel, "torch": RowKernel, "triton": TritonRowKernel}


def row_kernel(op: str, device: torch.device, backend: str) -> RowKernel:
    """The row kernel of a resolved backend. ValueError: it does not run on `device`."""
    if backend == "native" and device.type != "cpu":
        raise ValueError(f"{op}: backend 'native' is for CPU tensors; got {device}")
    return _KERNELS[backend]()


def head_backend(op: str, backend: str, device: torch.device) -> str:
    """`resolve` for the kernels of the output head."""
    return resolve(op, backend, device, cpu="native", more=("torch",))
