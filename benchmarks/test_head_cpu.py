"""The output head on a CPU: `linear_logprob` against the plain formula and torch's fused cross-entropy.

A forward and backward of per-token log-probs with a signed upstream gradient, fp32, head shapes of SmolLM2-135M and
Qwen3-0.6B. Memory is what the pass takes above its inputs, the two gradients included.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from common import arguments, in_fresh_process, leave, peak_bytes, reset_peak, resident_bytes  # noqa: E402

SHAPES = {"SmolLM2": (49152, 576), "Qwen3-0.6B": (151936, 1024)}  # V, H
METHODS = {
    "vdengine": "linear_logprob",
    "vdengine, nothing saved": "linear_logprob(saved_bytes=0)",
    "torch formula": "log_softmax(h @ W.T).gather",
    "torch linear_cross_entropy": "F.linear_cross_entropy, unchunked",
    "torch linear_cross_entropy chunked": "F.linear_cross_entropy, in chunks of as many rows as ours",
}


@pytest.mark.parametrize("n", [512, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_head_cpu(shape, n, settings, report):
    vocab, width = SHAPES[shape] if not settings.quick else (1031, 64)
    repeats = settings.repeats or 3
    rows = []
    for method in METHODS:
        a = {"method": method, "n": n if not settings.quick else 32, "vocab": vocab, "width": width, "repeats": repeats}
        result = in_fresh_process(__file__, a, settings.threads)
        if result:
            rows.append({"method": method, **result})
    ours = rows[0]
    for row in rows:
        row["time ratio"] = row["seconds"] / ours["seconds"]
        row["memory ratio"] = row["MB"] / ours["MB"]
    floor = 6 * a["n"] * vocab * width
    notes = [f"GEMM work of a pass: {floor / 1e9:.0f} GFLOP; ours runs at {floor / ours['seconds'] / 1e9:.0f} GFLOP/s"]
    report(f"head {shape}, N = {a['n']}, V = {vocab}, H = {width}", rows, notes)


def measure() -> None:
    import torch
    import torch.nn.functional as F

    from vdengine.kernels import linear_logprob
    from vdengine.kernels.rows import NativeRowKernel

    a = arguments()
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(a["n"], a["width"], generator=g).requires_grad_()
    weight = torch.randn(a["vocab"], a["width"], generator=g).mul_(0.05).requires_grad_()
    targets = torch.randint(0, a["vocab"], (a["n"],), generator=g)
    upstream = torch.randn(a["n"], generator=g)

    def formula():
        return F.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]

    def cross_entropy(**options):
        return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", **options)

    # As many rows as our chunks. Its own choice, rows whose logits are no larger than `hidden`, is 4 of 1024 rows at
    # Qwen-3's vocabulary: a hundred thin GEMMs, 20 times slower than no chunks at all.
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    chunk = NativeRowKernel().chunk_rows(a["vocab"])
    method = {
        "vdengine": lambda: linear_logprob(hidden, weight, targets),
        "vdengine, nothing saved": lambda: linear_logprob(hidden, weight, targets, saved_bytes=0),
        "torch formula": formula,
        "torch linear_cross_entropy": cross_entropy if hasattr(F, "linear_cross_entropy") else None,
        "torch linear_cross_entropy chunked": (
            (lambda: cross_entropy(options=options(batch_chunk_size=chunk))) if options else None
        ),
    }[a["method"]]
    if method is None:  # this torch does not have it
        return leave(a, {})

    def run() -> float:
        hidden.grad = weight.grad = None
        started = time.perf_counter()
        (method() * upstream).sum().backward()
        return time.perf_counter() - started

    before = resident_bytes()
    reset_peak()
    run()
    seconds = statistics.median(run() for _ in range(a["repeats"]))
    leave(a, {"seconds": seconds, "MB": (peak_bytes() - before) / 1e6})


if __name__ == "__main__":
    measure()
