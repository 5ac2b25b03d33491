"""The output head on a CPU: `linear_logprob` against the plain formula and torch's fused cross-entropy.

A forward and backward of log-probs per token with any upstream gradient, in fp32, with the head shapes of SmolLM2-135M
and Qwen3-0.6B. For time there is one benchmark per method, and a group per shape. Memory is that of a pass above its
inputs, the two gradients included, each method in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import arguments, in_fresh_process, leave, peak_bytes, reset_peak, resident_bytes  # noqa: E402

from vdengine.kernels import linear_logprob  # noqa: E402
from vdengine.kernels.rows import NativeRowKernel  # noqa: E402

SHAPES = {"SmolLM2": (49152, 576), "Qwen3-0.6B": (151936, 1024)}  # V, H
ROWS = (512, 1024)
FUSED = hasattr(F, "linear_cross_entropy")
OPTIONS = getattr(torch.nn, "LinearCrossEntropyOptions", None)
METHODS = {  # by name: whether this torch has it
    "vdengine": True,
    "vdengine, nothing saved": True,
    "torch formula": True,
    "torch linear_cross_entropy": FUSED,
    "torch linear_cross_entropy chunked": FUSED and OPTIONS is not None,
}


class Pass:
    """Forward and backward of one method."""

    def __init__(self, method: str, n: int, vocab: int, width: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(n, width, generator=g).requires_grad_()
        self.weight = torch.randn(vocab, width, generator=g).mul_(0.05).requires_grad_()
        self.targets = torch.randint(0, vocab, (n,), generator=g)
        self.upstream = torch.randn(n, generator=g)
        self.logp = self._logp(method)

    def _logp(self, method: str) -> Callable[[], Tensor]:
        h, w, y = self.hidden, self.weight, self.targets
        if method.startswith("vdengine"):
            return lambda: linear_logprob(h, w, y, saved_bytes=0 if method.endswith("nothing saved") else None)
        if method == "torch formula":
            return lambda: F.log_softmax(h @ w.t(), -1).gather(1, y[:, None])[:, 0]
        options = {}
        if method.endswith("chunked"):
            # The rows of our chunks. By default torch takes rows whose logits are not larger than `hidden`, 4 of 1024
            # rows at Qwen-3's vocabulary: hundreds of thin GEMMs, 20 times slower than without chunks.
            options["options"] = OPTIONS(batch_chunk_size=NativeRowKernel().chunk_rows(len(w)))
        return lambda: -F.linear_cross_entropy(h, w, y, reduction="none", **options)

    def forget(self) -> None:
        """Drop the gradients."""
        self.hidden.grad = self.weight.grad = None

    def __call__(self) -> None:
        (self.logp() * self.upstream).sum().backward()


def size(shape: str, n: int, settings: Any) -> dict[str, int]:
    """The sizes of a pass."""
    vocab, width = SHAPES[shape] if not settings.quick else (1031, 64)
    return {"n": n if not settings.quick else n // 16, "vocab": vocab, "width": width}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_time(shape, n, method, benchmark, settings):
    if not METHODS[method]:
        pytest.skip(f"needs a torch that has {method.removeprefix('torch ')}; this is {torch.__version__}")
    torch.set_num_threads(settings.threads)
    sizes = size(shape, n, settings)
    work = 6 * sizes["n"] * sizes["vocab"] * sizes["width"]  # FLOPs of the three GEMMs that every method needs
    one_pass = Pass(method, **sizes)
    benchmark.group = f"head {shape}, N = {sizes['n']}, V = {sizes['vocab']}, H = {sizes['width']}"
    benchmark.extra_info.update(shape=sizes, dtype="float32", threads=settings.threads, FLOPs=work)
    rounds = settings.repeats or (2 if settings.quick else 3)
    benchmark.pedantic(one_pass, setup=one_pass.forget, rounds=rounds, warmup_rounds=1, iterations=1)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["GFLOP/s"] = work / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_memory(shape, n, settings, report):
    sizes = size(shape, n, settings)
    methods = [method for method, available in METHODS.items() if available]
    peaks = {m: in_fresh_process(__file__, sizes | {"method": m}, settings.threads)["MB"] for m in methods}
    rows = [{"method": m, "MB": peak, "memory ratio": peak / peaks["vdengine"]} for m, peak in peaks.items()]
    notes = [f"this torch, {torch.__version__}, has no {m}" for m, available in METHODS.items() if not available]
    title = f"head {shape}, N = {sizes['n']}, V = {sizes['vocab']}, H = {sizes['width']}: memory above the inputs"
    report(title, rows, notes)


def measure() -> None:
    """In the fresh process: the memory of a pass."""
    task = arguments()
    Pass(task["method"], 4, 64, 16)()  # a small pass first, because a first call loads libraries
    one_pass = Pass(task["method"], task["n"], task["vocab"], task["width"])
    before = resident_bytes()
    reset_peak()
    one_pass()
    memory = max(peak_bytes() - before, 4096)  # at least a page: with --quick the memory may have been free already
    leave(task, {"MB": memory / 1e6})


if __name__ == "__main__":
    measure()
