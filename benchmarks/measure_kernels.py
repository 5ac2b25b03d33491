"""Measuring the kernels of `test_kernels_gpu.py`. Those of the head are in `measure_head.py`; here are those whose time
is that of memory, and the script that measures one peer in a process of its own, with a `Case` and the peer's name as
JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
import gpu_peers  # noqa: E402
from gpu_peers import attempt, collect  # noqa: E402
from measure_head import measure_cross_entropy, measure_logprob, measure_preference  # noqa: E402
from measuring import Case, Measured, error, nothing, peak_mb, same_bits, spread  # noqa: E402

from vdengine.kernels.rms_norm import rms_norm, rms_norm_reference  # noqa: E402
from vdengine.kernels.rope import qk_rope, qk_rope_reference  # noqa: E402
from vdengine.kernels.swiglu import swiglu, swiglu_reference  # noqa: E402
from vdengine.kernels.tune import MODELS, Shape, interleaved  # noqa: E402


@dataclass
class Op:
    """A kernel whose time is that of memory: its inputs, and the bytes that must be read and written at least."""

    name: str
    ours: Callable[..., Any]
    reference: Callable[..., Any]  # for fp64 too
    peers: dict[str, gpu_peers.Maker]
    inputs: list[Tensor]
    upstream: list[Tensor]  # gradients of the results
    forward_bytes: int
    backward_bytes: int
    frozen: tuple[int, ...] = ()  # indexes of the inputs without a gradient

    def run(
        self, method: Callable[..., Any], inputs: list[Tensor], upstream: list[Tensor], mark: Callable[[], None]
    ) -> list[Tensor]:
        """The results of a method and the gradients of its inputs."""
        out = method(*inputs)
        out = list(out) if isinstance(out, tuple) else [out]
        mark()
        trainable = [x for i, x in enumerate(inputs) if i not in self.frozen]
        return [*out, *torch.autograd.grad(out, trainable, upstream)]

    def fresh(self, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of the inputs and upstream gradients, because Liger overwrites them."""
        inputs = [x.detach().clone() if dtype is None else x.detach().to(dtype) for x in self.inputs]
        upstream = [x.clone() if dtype is None else x.to(dtype) for x in self.upstream]
        return [x.requires_grad_(i not in self.frozen) for i, x in enumerate(inputs)], upstream


def ops(shape: Shape, norm_heads: bool, tokens: int, device: torch.device, quick: bool) -> list[Op]:
    """The kernels with random inputs of a model's shapes."""
    g = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device).to(dtype)

    h, i, d, heads, kv = shape.hidden, shape.intermediate, shape.head_dim, shape.heads, shape.kv_heads
    x, gate, q, k = random(tokens, h), random(tokens, i), random(tokens, heads, d), random(tokens, kv, d)
    angles = torch.arange(tokens, device=device)[:, None] * torch.rand(d // 2, generator=g, device=device)
    weights = [random(d), random(d)] if norm_heads else []

    def with_weights(rope: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, k, c, s, *w: rope(q, k, c, s, **dict(zip(("q_weight", "k_weight"), w, strict=False)))

    def rope_reference(q: Tensor, k: Tensor, c: Tensor, s: Tensor, *w: Tensor) -> Any:
        return qk_rope_reference(q, k, c, s, *(w or (None, None)), 1e-6)

    heads_bytes = q.nbytes + k.nbytes
    return [
        Op(
            "rms_norm with residual",
            lambda x, r, w: rms_norm(x, w, residual=r),
            lambda x, r, w: rms_norm_reference(x, w, 1e-6, residual=r),
            gpu_peers.rms_norm_peers(quick),
            [x, random(tokens, h), random(h)],
            [random(tokens, h), random(tokens, h)],
            4 * x.nbytes,
            4 * x.nbytes,
        ),
        Op(
            "qk_rope with norms" if weights else "qk_rope",
            with_weights(qk_rope),
            rope_reference,
            gpu_peers.qk_rope_peers(quick),
            [q, k, angles.cos(), angles.sin(), *weights],
            [random(tokens, heads, d), random(tokens, kv, d)],
            2 * heads_bytes,
            (3 if weights else 2) * heads_bytes,
            frozen=(2, 3),
        ),
        Op(
            "swiglu",
            swiglu,
            swiglu_reference,
            gpu_peers.swiglu_peers(quick),
            [gate, random(tokens, i)],
            [random(tokens, i)],
            3 * gate.nbytes,
            5 * gate.nbytes,
        ),
    ]


def measure_memory_bound(case: Case, chosen: frozenset[str], device: torch.device) -> list[Measured]:
    """RMSNorm, RoPE and SwiGLU in GB/s of the bytes that must be moved, beside a copy in the same loop."""
    shape = Shape(1031, 64, 96, 4, 2, 16) if case.quick else MODELS[case.model]
    tokens, measured = 32 if case.quick else 16384, []
    for op in ops(shape, case.model.startswith("Qwen3"), tokens, device, case.quick):
        peers, notes = collect(gpu_peers.chosen(op.peers, chosen))
        true = op.run(op.reference, *op.fresh(torch.float64), nothing)
        variants, facts = {}, {}
        for name, method in {"vdengine": op.ours, **peers}.items():

            def check(method: Callable[..., Any] = method, op: Op = op, true: list[Tensor] = true) -> dict[str, Any]:
                first = op.run(method, *op.fresh(), nothing)
                second = op.run(method, *op.fresh(), nothing)
                worst = max(error(x, y) for x, y in zip(first, true, strict=True))
                return {"error": worst, "same bits": "yes" if same_bits(first, second) else "no"}

            facts[name] = attempt(f"{op.name}, {name}", notes, check)
            if facts[name] is not None:
                inputs, upstream = op.fresh()
                args = (method, inputs, upstream)
                facts[name] = {"MB": peak_mb(lambda a=args, op=op: op.run(*a, nothing), device)} | facts[name]
                variants[name] = lambda mark, a=args, op=op: op.run(*a, mark)
        source = torch.empty(op.forward_bytes // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        variants["copy"] = lambda mark, a=source, b=target: b.copy_(a)
        times = interleaved(variants, case.samples, device)
        copy_rate = 2 * source.nbytes / spread([t[0] for t in times.pop("copy")]).p50 / 1e6  # GB/s
        rows = []
        for name, seconds in times.items():
            for i, (part, num_bytes) in enumerate((("forward", op.forward_bytes), ("backward", op.backward_bytes))):
                ms = spread([t[i] for t in seconds])
                rate = num_bytes / ms.p50 / 1e6
                row = {"method": name, "pass": part, "ms": ms.p50, "p20": ms.p20, "p80": ms.p80, "GB/s": rate}
                row |= {"of copy": rate / copy_rate, "x ours": ms.p50 / spread([t[i] for t in times["vdengine"]]).p50}
                rows.append(row | facts[name])
        note = (
            f"copy: {copy_rate:.0f} GB/s; error: the largest of all results, relative to fp64; MB: forward and backward"
        )
        measured.append(Measured(f"{op.name}, {case.model}, {tokens} tokens", rows, [note, *notes]))
    return measured


MEASURE = {
    "linear_logprob": measure_logprob,
    "cross_entropy": measure_cross_entropy,
    "preference": measure_preference,
    "memory_bound": measure_memory_bound,
}

if __name__ == "__main__":
    arguments = common.arguments()
    case = Case(**{name: arguments[name] for name in Case.__dataclass_fields__})
    device = torch.device("cuda", torch.cuda.current_device())
    common.leave(arguments, {"tables": MEASURE[case.kind](case, frozenset({arguments["peer"]}), device)})
