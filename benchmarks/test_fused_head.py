"""The fused head behind TRL's trainers: `use_in_trl` against TRL's own kernel, both through TRL's contract.

A forward and backward of the log-probs of a batch at the head shape of SmolLM2-135M, in fp32, with the outputs that a
trainer of TRL asks for: the log-probs alone, and those of DPOTrainer (entropy, mean logits, top-1 accuracy). Time and
memory are ratios to TRL's kernel in the same run: times are interleaved, memory is that of a pass above its inputs, the
gradients included, each method in a process of its own.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import arguments, in_fresh_process, leave, peak_bytes, reset_peak, resident_bytes  # noqa: E402
from measuring import spread  # noqa: E402

from vdengine.integrations.fused_head import TRLKernel  # noqa: E402

SHAPE = (49152, 576)  # V, H of SmolLM2-135M
ROWS = 1024
TILE = 32768  # TRL's own: columns of the vocabulary at a time
OUTPUTS = {"log_probs": ("log_probs",), "DPOTrainer": ("log_probs", "entropy", "mean_logits", "is_top1")}
METHODS = ("TRL", "vdengine")


class Pass:
    """Forward and backward of one method; the entropy gets no gradient, as in the trainers."""

    def __init__(self, method: str, outputs: str, n: int, vocab: int, width: int) -> None:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(n, width, generator=g).requires_grad_()
        self.weight = torch.randn(vocab, width, generator=g).mul_(0.05).requires_grad_()
        self.targets = torch.randint(0, vocab, (n,), generator=g)
        self.upstream = torch.randn(n, generator=g)
        self.kernel: Any = ChunkedLogProbFunction if method == "TRL" else TRLKernel
        self.outputs = OUTPUTS[outputs]

    def __call__(self) -> Tensor:
        self.hidden.grad = self.weight.grad = None
        logp = self.kernel.apply(self.hidden, self.weight, None, self.targets, 1.0, TILE, None, 1.0, self.outputs)[0]
        (logp * self.upstream).sum().backward()
        return logp.detach()


def size(settings: Any) -> dict[str, int]:
    """The sizes of a pass."""
    vocab, width = (1031, 64) if settings.quick else SHAPE
    return {"n": 64 if settings.quick else ROWS, "vocab": vocab, "width": width}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_against_trl(outputs, settings, report):
    pytest.importorskip("trl")
    torch.set_num_threads(settings.threads)
    sizes = size(settings)
    passes = {method: Pass(method, outputs, **sizes) for method in METHODS}
    found = {method: one_pass() for method, one_pass in passes.items()}  # also the first call of each
    assert torch.allclose(found["TRL"], found["vdengine"], rtol=0, atol=1e-4)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(settings.repeats or (2 if settings.quick else 5)):
        for method, one_pass in passes.items():
            start = time.perf_counter()
            one_pass()
            seconds[method].append(time.perf_counter() - start)
    memory = {
        m: in_fresh_process(__file__, sizes | {"method": m, "outputs": outputs}, settings.threads)["MB"]
        for m in METHODS
    }
    times = {method: spread(s) for method, s in seconds.items()}
    rows = [
        {
            "method": m, "ms": times[m].p50, "p20": times[m].p20, "p80": times[m].p80,
            "time ratio": times[m].p50 / times["TRL"].p50, "MB": memory[m], "memory ratio": memory[m] / memory["TRL"],
        }
        for m in METHODS
    ]  # fmt: skip
    title = f"TRL's fused head, {outputs}: N = {sizes['n']}, V = {sizes['vocab']}, H = {sizes['width']}, fp32"
    report(title, rows, ["ratios are to TRL's own kernel"])


def measure() -> None:
    """In the fresh process: the memory of a pass."""
    task = arguments()
    Pass(task["method"], task["outputs"], 4, 64, 16)()  # a small pass first, because a first call loads libraries
    one_pass = Pass(task["method"], task["outputs"], task["n"], task["vocab"], task["width"])
    before = resident_bytes()
    reset_peak()
    one_pass()
    memory = max(peak_bytes() - before, 4096)  # at least a page: with --quick the memory may have been free already
    leave(task, {"MB": memory / 1e6})


if __name__ == "__main__":
    measure()
