"""The kernels on a GPU, against peers in the same run: time, memory, error against fp64, and equal bits.

Measured are (`measure_kernels.py`) ours and torch's methods first; then each other package in a process of its own with
a time limit, beside ours and the references ("x ours" is of one loop). So a peer that crashes, hangs or runs out of
memory affects no other figure. With --quick everything runs at tiny sizes, on a CPU too (there, peers in Triton are
skipped, with a note).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
import gpu_peers  # noqa: E402
import measure_kernels  # noqa: E402
from common import gpu  # noqa: E402
from measure_kernels import MEASURE  # noqa: E402
from measuring import GEMMS, SAMPLES, Case, spread  # noqa: E402

from vdengine.kernels.tune import interleaved  # noqa: E402

HEADS = ("Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B", "Llama-3.2-3B", "Llama-3.1-8B")
ROWS = (2048, 8192, 16384)
SUMMARY = {("Qwen3-0.6B", 8192), ("Qwen3-4B", 8192), ("Qwen3-8B", 8192), ("Llama-3.1-8B", 8192)}  # others: --full


def samples_of(settings) -> int:
    """Timings of each variant."""
    return settings.repeats or (2 if settings.quick else SAMPLES)


def run_case(case: Case, settings, report, targets_of: Callable[[list[dict[str, Any]], torch.device], Any]) -> None:
    """Measure ours and torch's methods here, then every other package in a process of its own, and report every row as
    soon as it is known. `targets_of` gives the targets of a table's rows."""
    device = gpu(settings)
    case.quick, case.samples = settings.quick, samples_of(settings)
    tables: dict[str, Any] = {}
    if settings.peers != "only":
        for m in MEASURE[case.kind](case, gpu_peers.TORCH if settings.full else gpu_peers.EAGER, device):
            tables[m.title] = report.table(m.title)
            for row in m.rows:
                tables[m.title].row(row)
            for note in m.notes:
                tables[m.title].note(note)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # gives memory to the next process
    absent = []
    for peer, package in gpu_peers.PACKAGES[case.kind].items() if settings.peers != "none" else ():
        reason = common.missing(package) or (None if device.type == "cuda" else "needs a CUDA device")
        if peer not in gpu_peers.SUMMARY and not settings.full:
            reason = "with --full"
        if reason is None:
            try:
                limit = min(settings.limit, 120.0)
                result = common.in_fresh_process(
                    measure_kernels.__file__, {**vars(case), "peer": peer}, settings.threads, limit
                )
            except common.Failed as e:
                reason = e.reason
            else:
                for title, rows, notes in result["tables"]:
                    if title not in tables:
                        tables[title] = report.table(title)
                    for row in rows:
                        if row["method"] == peer:
                            tables[title].row(row)
                    for note in notes:
                        if note.startswith(peer) or f", {peer}" in note:
                            tables[title].note(note)
        if reason is not None:
            absent.append(f"{peer}: {reason if reason != 'with --full' else 'measured with --full'}")
    if not tables:
        tables[""] = report.table(f"{case.kind.replace('_', ' ')}, {case.model}, peers")
    for note in absent:
        for table in tables.values():
            table.note(note)
    for table in tables.values():
        for name, target in targets_of(table.rows, device).items():
            table.target(name, *target)


# ------------------------------------------------------------------------------------------------------------- the head


def head_case(model: str, n: int, settings) -> None:
    """Skip the test where there is no device, or for a shape that only --full has."""
    gpu(settings)
    if (model, n) not in SUMMARY and (settings.quick or not settings.full):
        pytest.skip("a shape of --full")


def head_targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The targets of a head: ratios, each within one loop; none on a CPU."""
    if device.type != "cuda":
        return {}
    by_method = {(row["method"], row["pass"]): row for row in rows}
    targets = {}
    for mode, limit in (("full", 1.15), ("frozen", 1.15), ("no grad", 1.2)):
        if ("vdengine", mode) in by_method:
            targets[f"{mode} / floor"] = (by_method["vdengine", mode]["x floor"], "<=", limit)
        # CCE by default leaves small gradients out, so it computes another function
        others = [r for r in rows if r["pass"] == mode and not r["method"].startswith(("vdengine", GEMMS))]
        if same_function := [r["x ours"] for r in others if r["method"] != "CCE"]:
            targets[f"{mode} / fastest peer"] = (1 / min(same_function), "<=", 1.0)
    # torch's formula, and similar ones, round the logits to bf16
    if (eager := by_method.get(("torch eager", "full"))) and ("vdengine", "full") in by_method:
        error_ratio = eager["logp error"] / max(by_method["vdengine", "full"]["logp error"], 1e-12)
        targets["log-prob error of bf16 logits / ours"] = (error_ratio, ">=", 4.0)
    return targets


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("model", HEADS)
def test_linear_logprob(model, n, settings, report):
    head_case(model, n, settings)
    run_case(Case("linear_logprob", model, n), settings, report, head_targets)


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("model", HEADS)
def test_cross_entropy(model, n, settings, report):
    head_case(model, n, settings)
    if model == "Qwen3-4B" and not settings.full:
        pytest.skip("a shape of --full")

    def targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
        ratios = head_targets(rows, device)
        ratios.pop("log-prob error of bf16 logits / ours", None)  # in a mean, rounding errors cancel
        return ratios

    run_case(Case("cross_entropy", model, n), settings, report, targets)


# ----------------------------------------------------------------------------------------------------------- the others


@pytest.mark.parametrize("name", ["dpo", "simpo"])
@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Llama-3.1-8B"])
def test_preference(model, name, settings, report):
    gpu(settings)
    if model == "Qwen3-0.6B" and not settings.full and not settings.quick:
        pytest.skip("a shape of --full")

    def targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
        others = [row["x ours"] for row in rows if row["method"] != "vdengine"]
        return {"time / fastest peer": (1 / min(others), "<=", 1.0)} if others and device.type == "cuda" else {}

    run_case(Case("preference", model, name=name), settings, report, targets)


@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B", "Llama-3.1-8B"])
def test_memory_bound(model, settings, report):
    gpu(settings)
    if model not in ("Qwen3-4B", "Llama-3.1-8B") and not settings.full:
        pytest.skip("a shape of --full")

    def targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
        ours = [row for row in rows if row["method"] == "vdengine" and device.type == "cuda"]
        return {f"{row['pass']} / copy rate": (row["of copy"], ">=", 0.85) for row in ours}

    run_case(Case("memory_bound", model), settings, report, targets)


def test_rates(settings, report):
    """The rates that the others are compared with: a device-to-device copy, and bf16 GEMMs, square and of Qwen3's
    layers."""
    device = gpu(settings)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = [(8192, 8192, 8192), (4570, 3072, 1024), (4570, 1024, 3072), (4570, 9728, 2560), (4096, 151936, 2560)]
    table = report.table(f"rates, {dtype}")
    source = torch.empty(1 << (20 if settings.quick else 31), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = {"copy": lambda mark, a=source, b=target: b.copy_(a)}
    times = interleaved(copy, samples_of(settings), device)["copy"]
    ms = spread([t[0] for t in times])
    rate = 2 * source.nbytes / ms.p50 / 1e6
    table.row({"what": "copy", "ms": ms.p50, "GB/s": rate, "TFLOP/s": None})
    del source, target, copy
    for m, n, k in sizes:
        if settings.quick:
            m, n, k = 64, 96, 32
        x, w = (torch.randn(*size, device=device, dtype=dtype) for size in ((m, k), (n, k)))
        torch.mm(x, w.t())
        times = interleaved({"mm": lambda mark, x=x, w=w: torch.mm(x, w.t())}, samples_of(settings), device)["mm"]
        ms = spread([t[0] for t in times])
        rate = 2 * m * n * k / ms.p50 / 1e9
        table.row({"what": f"GEMM {m} x {n} x {k}", "ms": ms.p50, "GB/s": None, "TFLOP/s": rate})
