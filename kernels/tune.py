"""Measure the launch table on this machine's GPU: `python -m vdengine.kernels.tune [--kernels head,rope] [--out FILE]`.

For each kernel and row width of the models below, every candidate (block and warps) is checked against the result of
the launch rule, then all are timed in turn. The fastest goes into `table.json`, with the device and versions. Rows of
other architectures stay. `--rule` needs no GPU: it writes the rows of the rule, with measured = null.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdengine.kernels._triton import arch, triton
from vdengine.kernels.decode_attention import decode_attention
from vdengine.kernels.gather import gather_sum
from vdengine.kernels.rms_norm import rms_norm
from vdengine.kernels.rope import qk_rope
from vdengine.kernels.rows import Transform, TritonRowKernel
from vdengine.kernels.sample import sample
from vdengine.kernels.swiglu import swiglu
from vdengine.kernels.table import Entry, Launch, power_of_two, rule, table, trying

KERNELS = ("head", "gather", "rms_norm", "rope", "swiglu", "decode", "sample")
ARCHITECTURES = (80, 90, 100)  # for which `--rule` writes rows
SAMPLES = 20  # timings of each candidate
FLUSH_BYTES = 1 << 30  # above any L2; while it is written twice the host queues the work that is timed next


class Shape(NamedTuple):
    """The sizes of a model that its kernels depend on."""

    vocab: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int


MODELS = {
    "SmolLM2-135M": Shape(49152, 576, 1536, 9, 3, 64),
    "Qwen3-0.6B": Shape(151936, 1024, 3072, 16, 8, 128),
    "Qwen3-1.7B": Shape(151936, 2048, 6144, 16, 8, 128),
    "Qwen3-4B": Shape(151936, 2560, 9728, 32, 8, 128),
    "Qwen3-8B": Shape(151936, 4096, 12288, 32, 8, 128),
    "Llama-3.2-3B": Shape(128256, 3072, 8192, 24, 8, 128),
    "Llama-3.1-8B": Shape(128256, 4096, 14336, 32, 8, 128),
}


def widths(kernel: str) -> list[int]:
    """The row widths with which the models launch a kernel."""
    widths_of: dict[str, Callable[[Shape], set[int]]] = {
        "head": lambda m: {m.vocab},
        "gather": lambda m: {m.hidden, m.kv_heads * m.head_dim},  # rows of the residual stream; keys and values
        "rms_norm": lambda m: {m.hidden},
        "rope": lambda m: {8 * m.head_dim},
        "swiglu": lambda m: {m.intermediate},
        "decode": lambda m: {m.head_dim},
        "sample": lambda m: {m.vocab},
    }
    return sorted(set().union(*(widths_of[kernel](m) for m in MODELS.values())))


def streamed(kernel: str) -> torch.dtype:
    """The dtype in the table: that of the rows that a kernel reads. The head and the sampler read fp32 logits."""
    return torch.float32 if kernel in ("head", "sample") else torch.bfloat16


# ------------------------------------------------------------------------------------------------------- timing


def interleaved(
    variants: dict[str, Callable[[Callable[[], None]], Any]], samples: int, device: torch.device
) -> dict[str, list[list[float]]]:
    """Time several variants of the same work. All take turns, in an order that rotates, so that clocks and temperature
    affect them alike. On CUDA each starts with a cold L2 and is timed by events on the device. Warm up beforehand.

    Args:
        variants: functions by name. Each is called with a function `mark`, a call of which ends a part of the work; the
            last part ends with the function.

    Returns:
        Seconds of each part, for each of `samples` timings: {name: [[part 1, part 2, ...], ...]}.
    """
    cuda = device.type == "cuda"
    flush = torch.empty(FLUSH_BYTES if cuda else 0, dtype=torch.uint8, device=device)
    names = list(variants)
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    for i in range(samples):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            marks: list[Any] = []

            def mark(marks: list[Any] = marks) -> None:
                if cuda:
                    marks.append(torch.cuda.Event(enable_timing=True))
                    marks[-1].record()
                else:
                    marks.append(time.perf_counter())

            for _ in range(2):
                flush.zero_()
            mark()
            variants[name](mark)
            mark()
            if cuda:
                torch.cuda.synchronize(device)
                seconds[name].append([a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:], strict=False)])
            else:
                seconds[name].append([b - a for a, b in zip(marks, marks[1:], strict=False)])
    return seconds


# -------------------------------------------------------------------------------------------------------- cases


class Case(NamedTuple):
    """One row of the table to be measured."""

    kernel: str
    dtype: torch.dtype
    width: int
    run: Callable[[], tuple[Tensor, ...]]  # forward, and backward if the row is for both; gives the results
    num_bytes: int  # that must be read and written at least
    candidates: list[Launch]


def cases(
    kernels: Iterable[str], device: torch.device, num_rows: int = 16384, only: Iterable[int] = ()
) -> Iterator[Case]:
    """The cases of the table, one at a time, because their inputs are large.

    Args:
        num_rows: of the inputs, roughly.
        only: widths to measure; default: those of the models.
    """
    make = {
        "head": _head,
        "gather": _gather,
        "rms_norm": _rms_norm,
        "rope": _rope,
        "swiglu": _swiglu,
        "decode": _decode,
        "sample": _sample,
    }
    for kernel in kernels:
        for width in list(only) or widths(kernel):
            run, num_bytes, blocks = make[kernel](width, num_rows, device)
            candidates = [Launch(b, w) for b in blocks for w in (1, 2, 4, 8, 16, 32) if 32 * w <= b <= 2048 * w]
            yield Case(kernel, streamed(kernel), width, run, num_bytes, candidates)


Made = tuple[
    Callable[[], tuple[Tensor, ...]], int, list[int]
]  # `run` and `num_bytes` of a case, and block sizes to try


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)


def _head(width: int, n: int, device: torch.device) -> Made:
    """The row pass of the head, with log-prob, entropy and P."""
    n = max(1, n // 16)  # a row is large
    logits = _random(n, width, device=device, dtype=torch.float32) * 3
    targets = torch.randint(width, (n,), device=device)
    logp, entropy = torch.empty(2, n, device=device)
    p = torch.empty(n, width, device=device, dtype=torch.bfloat16)
    kernel = TritonRowKernel()

    def run() -> tuple[Tensor, ...]:
        kernel.rows(logits, targets, Transform(1.0), logp, entropy, p)
        return logp, entropy, p

    return run, logits.nbytes + p.nbytes, [b for b in (1024, 2048, 4096, 8192) if b <= power_of_two(width)]


def _gather(width: int, n: int, device: torch.device) -> Made:
    """Groups of 0 to 4 rows in random order, as the keys of prompts and branches are."""
    src = _random(n, width, device=device)
    order = torch.randperm(n, device=device)
    counts = torch.randint(5, (n // 2,), device=device)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).clamp(max=n)
    offsets[-1] = n  # so that every row is in a group
    run = lambda: (gather_sum(src, order, offsets, backend="triton"),)  # noqa: E731
    num_bytes = (n + n // 2) * width * src.element_size()
    return run, num_bytes, [b for b in (128, 256, 512, 1024, 2048, 4096) if b <= power_of_two(width)]


def _rms_norm(width: int, n: int, device: torch.device) -> Made:
    """With a residual, forward and backward: 4 + 4 tensors. A program has a whole row, so there is one block size."""
    x, r, dy, ds = (_random(n, width, device=device) for _ in range(4))
    weight = _random(width, device=device).requires_grad_()
    x.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        out = rms_norm(x, weight, residual=r, backend="triton")
        return (*out, *torch.autograd.grad(out, (x, weight), (dy, ds)))

    return run, 8 * x.nbytes, [power_of_two(width)]


def _rope(width: int, n: int, device: torch.device) -> Made:
    """With both norms, 32 and 8 heads, forward and backward."""
    d = width // 8
    q, dq = (_random(n // 2, 32, d, device=device) for _ in range(2))
    k, dk = (_random(n // 2, 8, d, device=device) for _ in range(2))
    q_weight, k_weight = (_random(d, device=device).requires_grad_() for _ in range(2))
    angles = torch.arange(n // 2, device=device)[:, None] * torch.rand(d // 2, device=device)
    cos, sin = angles.cos(), angles.sin()
    inputs = (q.requires_grad_(), k.requires_grad_(), q_weight, k_weight)

    def run() -> tuple[Tensor, ...]:
        out = qk_rope(q, k, cos, sin, q_weight=q_weight, k_weight=k_weight, backend="triton")
        return (*out, *torch.autograd.grad(out, inputs, (dq, dk)))

    half = power_of_two(d // 2)
    return run, 5 * (q.nbytes + k.nbytes), [half * heads for heads in (1, 2, 4, 8, 16, 32)]


def _swiglu(width: int, n: int, device: torch.device) -> Made:
    """Forward and backward: 3 + 5 tensors."""
    gate, up, dy = (_random(n // 2, width, device=device) for _ in range(3))
    gate.requires_grad_(), up.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = swiglu(gate, up, backend="triton")
        return (y, *torch.autograd.grad(y, (gate, up), dy))

    return run, 8 * gate.nbytes, [256, 512, 1024, 2048, 4096, 8192]


def _decode(width: int, n: int, device: torch.device) -> Made:
    """Rows of 64 to 1024 keys, with 32 heads and 8 key heads, in pages of 16 keys in random order."""
    rows, page = max(1, n // 256), 16
    lengths = torch.randint(64, 1025, (rows,), device=device, dtype=torch.int32)
    table = torch.randperm(rows * 64, device=device).view(rows, 64).int()
    k, v = (_random(rows * 64, page, 8, width, device=device) for _ in range(2))
    q = _random(rows, 32, width, device=device)
    run = lambda: (decode_attention(q, k, v, table, lengths, backend="triton"),)  # noqa: E731
    num_bytes = 2 * int(lengths.sum()) * 8 * width * k.element_size()
    return run, num_bytes, [power_of_two(width) * keys for keys in (16, 32, 64, 128)]


def _sample(width: int, n: int, device: torch.device) -> Made:
    """The rows of a decoding step, with both filters."""
    rows = max(1, n // 256)
    logits = _random(rows, width, device=device, dtype=torch.float32) * 3
    noise = torch.rand(rows, device=device, dtype=torch.float64)
    run = lambda: tuple(sample(logits, noise, top_k=50, top_p=0.9, backend="triton"))  # noqa: E731
    return run, logits.nbytes, [b for b in (1024, 2048, 4096, 8192) if b <= power_of_two(width)]


# ------------------------------------------------------------------------------------------------------- search


def search(case: Case, device: torch.device, samples: int = SAMPLES) -> tuple[Launch, float]:
    """The fastest candidate and its median seconds.

    Raises:
        RuntimeError: the result of a candidate differs from that of the rule, which is a bug of the kernel.
    """
    rule_config = rule(case.kernel, case.width)
    with trying(case.kernel, rule_config):
        expected = [x.detach().float().clone() for x in case.run()]
    variants: dict[str, Callable[[Callable[[], None]], Any]] = {}
    for config in dict.fromkeys((rule_config, *case.candidates)):
        with trying(case.kernel, config):
            try:
                results = [x.detach() for x in case.run()]
            except triton.runtime.errors.OutOfResources:  # more shared memory or registers than there are
                continue
            for x, y in zip(results, expected, strict=True):
                # the order of fp32 additions differs, so a bf16 result may be rounded to the other side
                error = float((x.float() - y).norm() / y.norm().clamp(min=1e-30))
                if not error <= (1e-5 if x.dtype == torch.float32 else 4e-3):
                    raise RuntimeError(
                        f"{case.kernel}, width {case.width}: {config} is off from {rule_config} by {error:.1e}"
                    )

        def timed(_: Any, config: Launch = config) -> None:
            with trying(case.kernel, config):
                case.run()

        variants[f"{config.block} {config.warps}"] = timed
    times = interleaved(variants, samples, device)
    median = {name: statistics.median(sum(parts) for parts in seconds) for name, seconds in times.items()}
    best = min(median, key=lambda name: median[name])
    block, warps = (int(x) for x in best.split())
    return Launch(block, warps), median[best]


def by_rule() -> list[Entry]:
    """The rows of the rule, for each architecture."""
    entries = []
    for kernel in KERNELS:
        dtype = str(streamed(kernel)).removeprefix("torch.")
        entries += [Entry(kernel, a, dtype, w, *rule(kernel, w), None) for w in widths(kernel) for a in ARCHITECTURES]
    return entries


def measured(kernels: Iterable[str], device: torch.device) -> Iterator[Entry]:
    """Measure a row of the table for each case."""
    versions = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {triton.__version__}"
    for case in cases(kernels, device):
        config, seconds = search(case, device)
        rate = f"{case.num_bytes / seconds / 1e9:.0f} GB/s"
        dtype = str(case.dtype).removeprefix("torch.")
        today = datetime.date.today().isoformat()
        yield Entry(case.kernel, arch(device), dtype, case.width, *config, f"{versions}, {today}, {rate}")


def to_json(entries: Iterable[Entry]) -> str:
    """The text of `table.json`, one row per line, so that a diff shows the rows that changed."""
    ordered = sorted(entries, key=lambda e: (KERNELS.index(e.kernel), e.dtype, e.width, e.arch))
    return "[\n" + ",\n".join("  " + json.dumps(e._asdict()) for e in ordered) + "\n]\n"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vdengine.kernels.tune", description=__doc__.split("\n")[0])
    default = Path(__file__).parent / "table.json"
    parser.add_argument("--out", type=Path, default=default, help=f"the table to write (default: {default.name})")
    parser.add_argument("--kernels", default=",".join(KERNELS), help=f"of {','.join(KERNELS)}; default: all")
    parser.add_argument("--rule", action="store_true", help="write the rule's rows, not measured; needs no GPU")
    args = parser.parse_args(argv)
    kernels = args.kernels.split(",")
    if unknown := [k for k in kernels if k not in KERNELS]:
        parser.error(f"unknown kernel {unknown[0]!r}; allowed: {', '.join(KERNELS)}")
    if args.rule:
        args.out.write_text(to_json(e for e in by_rule() if e.kernel in kernels))
        return 0
    if not torch.cuda.is_available() or triton is None:
        print("tune: needs a CUDA device and triton; --rule writes the rule's rows without one", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    new = {}
    for entry in measured(kernels, device):
        print(*entry, flush=True)
        new[entry[:4]] = entry
    args.out.write_text(to_json({**{e[:4]: e for e in table()}, **new}.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
