"""What `linear_logprob` needs of a device: two GEMM shapes, a row pass, and a chunk size. One class a device.

The chunk loop and the algebra are in `linear_logprob.py`; a new device adds a `RowKernel` here and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vdengine import _native


class RowKernel:
    """Chunked rows in plain torch: runs anywhere. GEMM operands keep their dtype, logits are fp32."""

    def chunk_rows(self, vocab: int) -> int:
        """Rows to a chunk. 4096 keep a GPU's GEMMs full and the fp32 read-modify-write of d weight (8VH bytes a
        chunk) small."""
        return 4096

    def chunks(self, n: int, vocab: int) -> Iterator[slice]:
        size = self.chunk_rows(vocab)
        return (slice(i, min(i + size, n)) for i in range(0, n, size))

    def logit_operand(self, weight: Tensor) -> Tensor:
        """The [V, H] operand of the logits GEMM, made once per pass."""
        return weight

    def logits(self, hidden: Tensor, operand: Tensor) -> Tensor:
        """hidden [n, H] @ operand.T -> [n, V] fp32. A CUDA GEMM can write its fp32 accumulator; torch's CPU GEMM
        would round it to bf16, so there the operands are widened first (exact)."""
        if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
            return torch.mm(hidden, operand.t(), out_dtype=torch.float32)
        return torch.mm(hidden.float(), operand.float().t())

    def rows(
        self,
        logits: Tensor,  # [n, V] fp32; may be overwritten
        targets: Tensor,  # [n] int64
        c: float,  # 1 / temperature
        logp: Tensor,  # [n] fp32, written
        entropy: Tensor | None,  # [n] fp32, written
        p_dtype: torch.dtype | None,  # None: no P wanted
    ) -> Tensor | None:  # [n, V] P = softmax - onehot
        # Shifted by the row's maximum before anything else: z - logsumexp(z) at z = 100 would lose 1e-5.
        z = logits.sub_(logits.amax(-1, keepdim=True)).mul_(c)
        lse = torch.logsumexp(z, dim=-1)
        torch.sub(z.gather(1, targets[:, None])[:, 0], lse, out=logp)
        if entropy is None and p_dtype is None:
            return None
        p = z.sub_(lse[:, None]).exp_()
        if entropy is not None:
            entropy.copy_(torch.special.xlogy(p, p).sum(-1).neg_())
        if p_dtype is None:
            return None
        p.scatter_add_(1, targets[:, None], torch.full_like(lse, -1.0)[:, None])
        return p.to(p_dtype)

    def add_grad_weight(self, grad_weight: Tensor, p: Tensor, rows: Tensor) -> None:
        """grad_weight [V, H] fp32 += p.T [V, n] @ rows [n, H], accumulated in fp32."""
        if p.device.type == "cuda" and p.dtype != torch.float32:
            torch.addmm(grad_weight, p.t(), rows, out_dtype=torch.float32, out=grad_weight)
        else:
            grad_weight.addmm_(p.float().t(), rows.float())


class NativeRowKernel(RowKernel):
    """CPU: library GEMMs in fp32 and the C++ row kernel."""

    def chunk_rows(self, vocab: int) -> int:
        return 512 if vocab <= 65536 else 256  # at most 160 MB of logits for today's vocabularies

    def logit_operand(self, weight: Tensor) -> Tensor:
        return weight.float()  # once per pass, not once per chunk

    def rows(self, logits, targets, c, logp, entropy, p_dtype):
        p = None
        if p_dtype is not None:  # in place where the dtypes agree
            p = logits if p_dtype == torch.float32 else torch.empty(logits.shape, dtype=p_dtype)
        lse = torch.empty_like(logp)
        _native.log_softmax_rows(
            logits.data_ptr(), "float32", logits.shape[0], logits.shape[1], logits.stride(0), targets.data_ptr(), c,
            logp.data_ptr(), lse.data_ptr(), 0 if entropy is None else entropy.data_ptr(),
            0 if p is None else p.data_ptr(), "float32" if p_dtype in (None, torch.float32) else "bfloat16",
            0 if p is None else p.stride(0), torch.get_num_threads(),
        )  # fmt: skip
        return p


def row_kernel(device: torch.device, backend: str = "auto") -> RowKernel:
    """The row kernel for a device. Dispatch happens here and nowhere else."""
    if backend == "auto":
        backend = "native" if device.type == "cpu" else "torch"
    if backend == "native":
        if device.type != "cpu":
            raise ValueError(f"linear_logprob: backend 'native' is for CPU tensors; got {device}")
        return NativeRowKernel()
    if backend == "torch":
        return RowKernel()
    raise ValueError(f"linear_logprob: unknown backend {backend!r}; allowed: auto, native, torch, reference")
