"""The time of each public kernel, to be compared with that at another commit.

The shapes are those of Qwen3-0.6B, and for the heads also of SmolLM2-135M; in bf16 on a GPU if there is one, else in
fp32 with fewer rows on a CPU. "forward" is without gradient, "full" is forward and backward for all inputs, "frozen"
for all but the weight. `gather_sum` is the backward of `gather_rows`. On a GPU the time is that of the host, which
waits for the device, so for short kernels it is that of their launches. The inputs are the same in every round, so they
may be in a cache. `test_kernels_gpu.py` compares with peers, timed on the device with a cold L2.

`extra_info` of a benchmark has its shape, and either the necessary FLOPs (2NVH for each GEMM of a head) or the bytes
that must be moved (in each direction, each input is read once and each result written once, without index arrays), as
numbers and divided by the median time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vdengine.kernels import (
    decode_attention,
    embedding_rows,
    gather_rows,
    linear_cross_entropy,
    linear_logprob,
    preference_loss,
    qk_rope,
    rms_norm,
    segment_sum,
    swiglu,
    thin_linear,
)
from vdengine.kernels.tune import MODELS, Shape
from vdengine.trees import Pack, Tree, pack

HEADS = ("SmolLM2-135M", "Qwen3-0.6B")
QUICK = Shape(1031, 64, 96, 4, 2, 16)
GEMMS = {"forward": 1, "frozen": 2, "full": 3}  # that every head needs
both_passes = pytest.mark.parametrize("which", ["forward", "full"])


class Bench:
    """The device of a run, its inputs, and the timing of one pass of a kernel."""

    def __init__(self, benchmark: Any, settings: Any) -> None:
        self.benchmark, self.quick = benchmark, settings.quick
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if self.cuda else torch.device("cpu")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.threads = settings.threads
        torch.set_num_threads(self.threads)
        self.rounds = settings.repeats or (2 if self.quick else 20 if self.cuda else 5)
        self.generator = torch.Generator(self.device).manual_seed(0)

    def model(self, name: str = "Qwen3-0.6B") -> Shape:
        """The shape of a model."""
        return QUICK if self.quick else MODELS[name]

    def size(self, cuda: int, cpu: int, quick: int) -> int:
        """The size for this run."""
        return quick if self.quick else cuda if self.cuda else cpu

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of this shape."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype or self.dtype)

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers of this shape, in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def pairs(self) -> Pack:
        """Preference pairs as the trainer packs them: two answers to a prompt, with tokens of very different
        frequencies."""
        rng = np.random.default_rng(0)
        vocab = self.model().vocab

        def text(low: int, high: int) -> list[int]:
            return (rng.zipf(1.2, rng.integers(low, high)) % vocab).tolist()

        low, high = (2, 6) if self.quick else (32, 160)
        n = self.size(64, 8, 2)
        return pack([Tree(text(low, high), [text(low, high), text(low, high)]) for _ in range(n)]).to(self.device)

    def time(
        self,
        kernel: str,
        which: str,  # forward | frozen | full
        run: Callable[[str], Tensor | tuple[Tensor, ...]],  # forward, with a backend
        inputs: Sequence[Tensor] = (),  # those that get a gradient, unless `which` is "forward"
        upstream: Sequence[Tensor] = (),  # gradient of each result
        *,
        cpu: str,  # the backend on a CPU
        cuda: str = "triton",  # the backend on a GPU
        dtype: torch.dtype | None = None,  # default: that of the run
        shape: dict[str, Any],
        **work: int,  # FLOPs= or bytes=, of this pass
    ) -> None:
        """Time one pass, and record its shape, work and rate."""
        backend = cuda if self.cuda else cpu  # not "auto", so that the recorded backend is the one that ran
        for x in inputs if which != "forward" else ():
            x.requires_grad_()

        def one_pass() -> None:
            with torch.set_grad_enabled(which != "forward"):
                out = run(backend)
            if which != "forward":
                torch.autograd.grad(out, inputs, upstream)
            if self.cuda:
                torch.cuda.synchronize(self.device)

        self.benchmark.group = kernel
        self.benchmark.extra_info.update(
            shape=shape,
            dtype=str(dtype or self.dtype).removeprefix("torch."),
            backend=backend,
            threads=self.threads,
            device=torch.cuda.get_device_name(self.device) if self.cuda else "cpu",
            **work,
        )
        self.benchmark.pedantic(one_pass, rounds=self.rounds, warmup_rounds=1, iterations=1)
        if self.benchmark.stats is not None:  # None with --benchmark-disable
            for unit, amount in work.items():
                rate = amount / self.benchmark.stats.stats.median / 1e9
                self.benchmark.extra_info["GB/s" if unit == "bytes" else "GFLOP/s"] = rate


@pytest.fixture
def bench(benchmark, settings):
    return Bench(benchmark, settings)


# ----------------------------------------------------------------------------------------------------- the head


def head(bench: Bench, model: str) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Hidden rows, weight, targets, and their sizes. Logits have standard deviation 3, as in a trained model."""
    m, n = bench.model(model), bench.size(8192, 256, 32)
    weight = bench.random(m.vocab, m.hidden).mul_(3 / m.hidden**0.5)
    shape = {"model": model, "N": n, "V": m.vocab, "H": m.hidden}
    return bench.random(n, m.hidden), weight, bench.randint(0, m.vocab, n), shape


@pytest.mark.parametrize("which", GEMMS)
@pytest.mark.parametrize("model", HEADS)
def test_linear_logprob(model, which, bench):
    hidden, weight, targets, shape = head(bench, model)
    bench.time(
        "linear_logprob",
        which,
        lambda backend: linear_logprob(hidden, weight, targets, backend=backend),
        [hidden, weight] if which == "full" else [hidden],
        [bench.random(len(hidden), dtype=torch.float32)],
        cpu="native",
        shape=shape,
        FLOPs=GEMMS[which] * 2 * len(hidden) * weight.numel(),
    )


@pytest.mark.parametrize("which", GEMMS)
@pytest.mark.parametrize("model", HEADS)
def test_linear_cross_entropy(model, which, bench):
    hidden, weight, targets, shape = head(bench, model)
    bench.time(
        "linear_cross_entropy",
        which,
        lambda backend: linear_cross_entropy(hidden, weight, targets, backend=backend),
        [hidden, weight] if which == "full" else [hidden],
        [torch.ones((), device=bench.device)],
        cpu="native",
        shape=shape,
        FLOPs=GEMMS[which] * 2 * len(hidden) * weight.numel(),
    )


@both_passes
def test_preference_loss(which, bench):
    """DPO with cached log-probs of a reference model, over the scored tokens of a pack."""
    p = bench.pairs()
    logp = bench.random(p.num_scored, dtype=torch.float32)
    reference = bench.random(p.num_branches, dtype=torch.float32)
    bench.time(
        "preference_loss",
        which,
        lambda backend: (
            preference_loss(logp, p.branch_offsets, reference, order="interleaved", beta=0.1, backend=backend).losses
        ),
        [logp],
        [torch.ones(p.num_trees, device=bench.device)],
        cpu="reference",
        dtype=logp.dtype,
        shape={"pairs": p.num_trees, "R": p.num_scored},
        bytes=logp.nbytes * (2 if which == "full" else 1),
    )


# --------------------------------------------------------------------------------------------------- the layers


@both_passes
def test_rms_norm(which, bench):
    """With a residual."""
    m, n = bench.model(), bench.size(16384, 2048, 32)
    x, residual, dy, ds = (bench.random(n, m.hidden) for _ in range(4))
    weight = bench.random(m.hidden)
    bench.time(
        "rms_norm",
        which,
        lambda backend: rms_norm(x, weight, residual=residual, backend=backend),
        [x, residual, weight],
        [dy, ds],
        cpu="reference",
        shape={"T": n, "H": m.hidden},
        bytes=x.nbytes * (8 if which == "full" else 4),
    )


@both_passes
def test_qk_rope(which, bench):
    """With both norms."""
    m, n = bench.model(), bench.size(16384, 2048, 32)
    q, dq = (bench.random(n, m.heads, m.head_dim) for _ in range(2))
    k, dk = (bench.random(n, m.kv_heads, m.head_dim) for _ in range(2))
    weights = [bench.random(m.head_dim) for _ in range(2)]
    angles = torch.arange(n, device=bench.device)[:, None] * torch.logspace(0, -6, m.head_dim // 2, device=bench.device)
    cos, sin = angles.cos(), angles.sin()

    def run(backend: str) -> tuple[Tensor, ...]:
        return qk_rope(q, k, cos, sin, q_weight=weights[0], k_weight=weights[1], backend=backend)

    bench.time(
        "qk_rope",
        which,
        run,
        [q, k, *weights],
        [dq, dk],
        cpu="reference",
        shape={"T": n, "heads": m.heads, "kv_heads": m.kv_heads, "D": m.head_dim},
        bytes=(q.nbytes + k.nbytes) * (5 if which == "full" else 2) + cos.nbytes * (4 if which == "full" else 2),
    )


@both_passes
def test_swiglu(which, bench):
    m, n = bench.model(), bench.size(16384, 2048, 32)
    gate, up, dy = (bench.random(n, m.intermediate) for _ in range(3))
    bench.time(
        "swiglu",
        which,
        lambda backend: swiglu(gate, up, backend=backend),
        [gate, up],
        [dy],
        cpu="reference",
        shape={"T": n, "I": m.intermediate},
        bytes=gate.nbytes * (8 if which == "full" else 3),
    )


# ------------------------------------------------------------------------------------------------ rows of a pack


def gather_backends(which: str) -> dict[str, str]:
    """The backends that a gather runs with; it has no argument for it, and its forward is `index_select`."""
    return {"cpu": "torch", "cuda": "torch"} if which == "forward" else {"cpu": "native", "cuda": "triton"}


@both_passes
def test_gather_rows(which, bench):
    """The keys of every branch: those of its prompt and its own."""
    m, p = bench.model(), bench.pairs()
    x, dy = bench.random(p.num_tokens, m.kv_heads, m.head_dim), bench.random(len(p.kv_index), m.kv_heads, m.head_dim)
    bench.time(
        "gather_rows",
        which,
        lambda _: gather_rows(x, p.kv_index, p.kv_inverse.order, p.kv_inverse.offsets),
        [x],
        [dy],
        **gather_backends(which),
        shape={"T": p.num_tokens, "K": len(p.kv_index), "kv_heads": m.kv_heads, "D": m.head_dim},
        bytes=(x.nbytes + dy.nbytes) * (2 if which == "full" else 1),
    )


@both_passes
def test_embedding_rows(which, bench):
    m, p = bench.model(), bench.pairs()
    weight, dy = bench.random(m.vocab, m.hidden), bench.random(p.num_tokens, m.hidden)
    unique, inverse = p.token_inverse
    read = len(unique) * m.hidden * weight.element_size()
    bench.time(
        "embedding_rows",
        which,
        lambda _: embedding_rows(weight, p.tokens, unique, inverse.order, inverse.offsets),
        [weight],
        [dy],
        **gather_backends(which),
        shape={"T": p.num_tokens, "V": m.vocab, "H": m.hidden, "distinct": len(unique)},
        bytes=read + dy.nbytes + (dy.nbytes + weight.nbytes if which == "full" else 0),
    )


@both_passes
def test_segment_sum(which, bench):
    """The log-probs of a pack's branches."""
    p = bench.pairs()
    x = bench.random(p.num_scored, dtype=torch.float32)
    bench.time(
        "segment_sum",
        which,
        lambda backend: segment_sum(x, p.branch_offsets, backend=backend),
        [x],
        [bench.random(p.num_branches, dtype=torch.float32)],
        cpu="reference",
        dtype=x.dtype,
        shape={"R": p.num_scored, "branches": p.num_branches},
        bytes=x.nbytes * (2 if which == "full" else 1),
    )


# ------------------------------------------------------------------------------------------------------ sampling


def test_decode_attention(bench):
    """Rows of 64 to 1024 keys, in pages of 16 in random order. It has no backward."""
    m, rows, page = bench.model(), bench.size(64, 16, 2), 16
    pages = bench.size(64, 64, 4)  # to a row
    lengths = bench.randint(min(64, page * pages // 2), page * pages + 1, rows).int()
    table = torch.randperm(rows * pages, generator=bench.generator, device=bench.device).view(rows, pages).int()
    keys, values = (bench.random(rows * pages, page, m.kv_heads, m.head_dim) for _ in range(2))
    q = bench.random(rows, m.heads, m.head_dim)
    bench.time(
        "decode_attention",
        "forward",
        lambda backend: decode_attention(q, keys, values, table, lengths, backend=backend),
        cpu="native",
        shape={"rows": rows, "keys": int(lengths.sum()), "heads": m.heads, "kv_heads": m.kv_heads, "D": m.head_dim},
        bytes=2 * int(lengths.sum()) * m.kv_heads * m.head_dim * q.element_size() + 2 * q.nbytes,
    )


def test_thin_linear(bench):
    """The gate and up projections of a decoding step. It has no backward; on a GPU it is `F.linear`."""
    m, rows = bench.model(), bench.size(64, 16, 2)
    x, weights = bench.random(rows, m.hidden), [bench.random(m.intermediate, m.hidden) for _ in range(2)]
    num_bytes = x.nbytes + sum(w.nbytes + rows * len(w) * w.element_size() for w in weights)
    bench.time(
        "thin_linear",
        "forward",
        lambda backend: thin_linear(x, *weights, backend=backend),
        cpu="native",
        cuda="reference",
        shape={"M": rows, "K": m.hidden, "N": [m.intermediate] * 2},
        bytes=num_bytes,
    )
