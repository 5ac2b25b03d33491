"""The CPU row kernel of the loss, as a share of the memory's bandwidth, for each instruction set.

The rate at which `torch.sum` reads is taken as the memory bandwidth of the machine with one thread per core. The row
kernel also reads every logit once, and with P it writes as many. Each cell is a benchmark, each vocabulary a group, and
`extra_info` has the bytes that must be moved and their rate. The share of the bandwidth is from timings in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from vdengine import _native
from vdengine.kernels.tune import interleaved

VOCABS = (49152, 151936)
TORCH = ("sum", "logsumexp", "log_softmax")
WORK = ("lse and logp", "also entropy", "also P float32", "also P bfloat16")  # P with entropy, lse and logp too


class Rows:
    """Rows of logits, and the functions that process them."""

    def __init__(self, vocab: int, settings: Any) -> None:
        self.threads = settings.threads
        torch.set_num_threads(self.threads)
        n, vocab = (256, vocab) if not settings.quick else (4, 1000)
        self.logits = torch.randn(n, vocab, generator=torch.Generator().manual_seed(0)) * 3
        self.targets = torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(1))
        self.outputs = torch.empty(3, n)
        self.shape = {"n": n, "V": vocab}

    def method(self, engine: str, work: str) -> tuple[Callable[[], Any], int]:
        """A function, and the bytes that it must move. `engine`: "torch", or an instruction set."""
        num_bytes = self.logits.nbytes
        if engine == "torch":
            return lambda: getattr(self.logits, work)(1), num_bytes * (2 if work == "log_softmax" else 1)
        (n, vocab), (logp, lse, entropy) = self.logits.shape, (output.data_ptr() for output in self.outputs)
        dtype = "bfloat16" if work.endswith("bfloat16") else "float32"
        p = torch.empty(n, vocab, dtype=getattr(torch, dtype)) if "P" in work else None

        def run() -> None:
            _native.log_softmax_rows(
                self.logits.data_ptr(),
                "float32",
                n,
                vocab,
                vocab,
                self.targets.data_ptr(),
                1.0,
                logp,
                lse,
                0 if work == WORK[0] else entropy,
                0 if p is None else p.data_ptr(),
                dtype,
                vocab,
                self.threads,
                engine,
            )

        return run, num_bytes + (0 if p is None else p.nbytes)


def rounds(settings: Any) -> int:
    """Rounds of a benchmark."""
    return settings.repeats or (2 if settings.quick else 7)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("engine, work", [*product(["torch"], TORCH), *product(_native.simd_levels(), WORK)])
def test_rows(engine, work, vocab, benchmark, settings):
    rows = Rows(vocab, settings)
    run, num_bytes = rows.method(engine, work)
    benchmark.group = "rows of log-softmax, {n} x {V}".format(**rows.shape)
    benchmark.extra_info.update(shape=rows.shape, dtype="float32", threads=rows.threads, bytes=num_bytes)
    benchmark.pedantic(run, rounds=rounds(settings), warmup_rounds=1, iterations=1)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["GB/s"] = num_bytes / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("vocab", VOCABS)
def test_share_of_bandwidth(vocab, settings, report):
    """The best instruction set of this machine and `torch.sum`, in turn."""
    rows, simd = Rows(vocab, settings), _native.simd_levels()[0]
    methods = {"torch sum": rows.method("torch", "sum")} | {f"{simd}, {w}": rows.method(simd, w) for w in WORK}
    for run, _ in methods.values():
        run()
    variants = {name: lambda mark, run=run: run() for name, (run, _) in methods.items()}
    times = interleaved(variants, rounds(settings), torch.device("cpu"))
    rates = {
        name: num_bytes / statistics.median(t[0] for t in times[name]) / 1e9 for name, (_, num_bytes) in methods.items()
    }
    report(
        "rows of log-softmax, {n} x {V}, float32, {threads} threads".format(**rows.shape, threads=rows.threads),
        [{"method": name, "GB/s": rate, "of torch sum": rate / rates["torch sum"]} for name, rate in rates.items()],
    )
