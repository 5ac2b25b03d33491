"""The CPU row kernel of the loss against torch: bytes of logits read per second, for each instruction set.

The reads of `torch.sum` are the machine's memory bandwidth as one thread a core sees it: the row kernel reads every
logit once as well, and with P it also writes them.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from vdengine import _native


@pytest.mark.parametrize("vocab", [49152, 151936])
def test_rows(vocab, settings, report):
    threads = settings.threads
    torch.set_num_threads(threads)
    n, vocab = (256, vocab) if not settings.quick else (4, 1000)
    logits = torch.randn(n, vocab, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(1))
    outputs = torch.empty(3, n)
    p, p16 = torch.empty_like(logits), torch.empty(n, vocab, dtype=torch.bfloat16)

    def native(simd: str, entropy: bool, p: torch.Tensor | None = None) -> None:
        logp, lse, h = (output.data_ptr() for output in outputs)
        dtype = "bfloat16" if p is p16 else "float32"
        _native.log_softmax_rows(
            logits.data_ptr(), "float32", n, vocab, vocab, targets.data_ptr(), 1.0, logp, lse, h if entropy else 0,
            0 if p is None else p.data_ptr(), dtype, vocab, threads, simd,
        )  # fmt: skip

    methods = {
        "torch.sum (reads only)": lambda: logits.sum(1),
        "torch.logsumexp": lambda: logits.logsumexp(1),
        "torch.log_softmax": lambda: logits.log_softmax(1),
    }
    for simd in _native.simd_levels():
        methods[f"{simd}: lse, logp"] = lambda simd=simd: native(simd, False)
        methods[f"{simd}: lse, logp, entropy"] = lambda simd=simd: native(simd, True)
        methods[f"{simd}: and P float32"] = lambda simd=simd: native(simd, True, p)
        methods[f"{simd}: and P bfloat16"] = lambda simd=simd: native(simd, True, p16)
    rows = []
    for name, run in methods.items():
        run()
        times = []
        for _ in range(settings.repeats or 7):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        rows.append({"method": name, "ms": seconds * 1e3, "GB/s of logits": logits.nbytes / seconds / 1e9})
    report(f"rows of log-softmax: {n} x {vocab}, float32, {threads} threads", rows)
