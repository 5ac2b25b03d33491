"""The kernels on a GPU, against peers in the same run: time, memory, error against fp64, and equal bits.

All variants of a shape take turns in one loop, in an order that rotates, with a cold L2; medians of SAMPLES. The
yardsticks are measured in that loop too: bare library GEMMs of the head's three shapes, and a device-to-device copy.
Ours and torch's come first; then each other package in a process of its own with a limit, ours and the yardsticks
beside it ("x ours" is of one loop): a peer that crashes, hangs or runs out of memory takes no figure with it.
With --quick everything runs at tiny sizes, on a CPU as well (peers in Triton are skipped there, by name).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
import gpu_peers  # noqa: E402
from common import gpu  # noqa: E402
from gpu_peers import attempt, collect  # noqa: E402

from vdengine.kernels import linear_cross_entropy, linear_logprob, preference_loss  # noqa: E402
from vdengine.kernels.rms_norm import rms_norm, rms_norm_reference  # noqa: E402
from vdengine.kernels.rope import qk_rope, qk_rope_reference  # noqa: E402
from vdengine.kernels.swiglu import swiglu, swiglu_reference  # noqa: E402
from vdengine.kernels.tune import MODELS, Shape, interleaved  # noqa: E402

SAMPLES = 20
HEADS = ("Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B", "Llama-3.2-3B", "Llama-3.1-8B")
ROWS = (2048, 8192, 16384)
SUMMARY = {("Qwen3-0.6B", 8192), ("Qwen3-4B", 8192), ("Qwen3-8B", 8192), ("Llama-3.1-8B", 8192)}  # others: --full
GEMM_ROWS = 4096  # of a bare GEMM: the chunk of `linear_logprob`
CHECKED = 128  # rows, and vocabulary entries, whose gradients are compared with fp64
GEMMS = "bare GEMMs"


# ------------------------------------------------------------------------------------------------ measuring


def samples_of(settings) -> int:
    return settings.repeats or (2 if settings.quick else SAMPLES)


class Spread(NamedTuple):
    """Milliseconds."""

    p50: float
    p20: float
    p80: float


def spread(seconds: list[float]) -> Spread:
    ms = torch.tensor(seconds, dtype=torch.float64) * 1e3
    return Spread(*(float(torch.quantile(ms, q)) for q in (0.5, 0.2, 0.8)))


def peak_mb(function: Callable[[], Any], device: torch.device) -> float | None:
    """Memory that `function` takes above what is allocated when it starts. None on a CPU."""
    if device.type != "cuda":
        function()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def same_bits(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )


def error(found: Tensor, true: Tensor) -> float:
    """|found - true| / |true|, in fp64."""
    return float((found.double() - true).norm() / true.norm())


def nothing() -> None:
    """In place of `mark` where nothing is timed."""


# ----------------------------------------------------------------------------------------------------- head


@dataclass
class Head:
    """One problem, with its solution in fp64 on a sample of rows and of vocabulary entries."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [N]
    logp: Tensor  # [N] fp64

    @classmethod
    def make(cls, shape: Shape, n: int, device: torch.device, quick: bool) -> Head:
        """Logits of standard deviation 3, as a trained model's; every other row is sure of its target."""
        vocab, width = (1031, 64) if quick else (shape.vocab, shape.hidden)
        n = 48 if quick else n
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        g = torch.Generator(device).manual_seed(0)
        weight = torch.randn(vocab, width, generator=g, device=device) * (3 / width**0.5)
        targets = torch.randint(vocab, (n,), generator=g, device=device)
        hidden = torch.randn(n, width, generator=g, device=device)
        hidden[::2] += 1.2 * weight[targets[::2]]
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        return cls(hidden, weight, targets, cls._logp(hidden, weight, targets))

    @staticmethod
    def _logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        h = hidden.double()
        lse = torch.full((len(h),), -torch.inf, dtype=torch.float64, device=h.device)
        for part in weight.split(4096):
            lse = torch.logaddexp(lse, torch.logsumexp(h @ part.double().t(), 1))
        return (h * weight[targets].double()).sum(1) - lse

    def gradients(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """True d hidden of the first CHECKED rows and d weight of the first CHECKED rows' targets, for g = d / d logp
        [N]."""
        h, g, some = self.hidden.double(), g.double(), slice(0, CHECKED)
        lse = (h * self.weight[self.targets].double()).sum(1) - self.logp
        mean = torch.zeros_like(h[some])  # of weight rows under p
        for part in self.weight.split(4096):
            w = part.double()
            mean += torch.exp(h[some] @ w.t() - lse[some, None]) @ w
        grad_hidden = g[some, None] * (self.weight[self.targets[some]].double() - mean)
        entries = self.targets[some]
        p = torch.exp(h @ self.weight[entries].double().t() - lse[:, None])  # [N, CHECKED]
        p -= (self.targets[:, None] == entries).double()
        return grad_hidden, -(p * g[:, None]).t() @ h

    def gemms(self) -> Callable[[Callable[[], None]], None]:
        """The three GEMMs that no exact method can do without, 2NVH each, with nothing between them."""
        h, w = self.hidden, self.weight
        z = h.new_empty(min(len(h), GEMM_ROWS), len(w))
        # a softmax, as in the real thing: a GPU is faster on zeros and slower on noise
        p = torch.softmax(torch.mm(h[: len(z)], w.t()).float(), -1).to(h.dtype)
        u, dw = torch.empty_like(h), torch.empty_like(w)
        chunks = [slice(i, min(i + GEMM_ROWS, len(h))) for i in range(0, len(h), GEMM_ROWS)]

        def run(mark: Callable[[], None]) -> None:
            for rows in chunks:
                torch.mm(h[rows], w.t(), out=z[: rows.stop - rows.start])
            mark()
            for rows in chunks:
                torch.mm(p[: rows.stop - rows.start], w, out=u[rows])
            mark()
            for rows in chunks:
                torch.mm(p[: rows.stop - rows.start].t(), h[rows], out=dw)

        return run


class Pass:
    """A method in one mode: "full" (both gradients), "frozen" (that of hidden alone) or "no grad"."""

    def __init__(self, method: Callable[..., Tensor], head: Head, upstream: Tensor | None, mode: str) -> None:
        self.method, self.targets, self.upstream, self.mode = method, head.targets, upstream, mode
        self.hidden = head.hidden.detach().requires_grad_(mode != "no grad")
        self.weight = head.weight.detach().requires_grad_(mode == "full")

    def __call__(self, mark: Callable[[], None] = nothing) -> list[Tensor | None]:
        with torch.set_grad_enabled(self.mode != "no grad"):
            out = self.method(self.hidden, self.weight, self.targets)
        if self.mode != "no grad":
            mark()
            out.backward(self.upstream)
        found = [out.detach(), self.hidden.grad, self.weight.grad]
        self.hidden.grad = self.weight.grad = None  # no pass keeps memory for the next
        return found


def measure_head(
    head: Head, ours: dict[str, Any], peers: dict[str, gpu_peers.Maker], upstream: Tensor | None, samples: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the table, and notes. `upstream` [N]: of per-token log-probs; None: of the mean loss."""
    device, n = head.hidden.device, len(head.hidden)
    methods, notes = collect(peers)
    methods = ours | methods
    work = 2 * n * head.weight.numel()  # FLOPs of one of the three GEMMs
    g = torch.full_like(head.logp, -1 / n) if upstream is None else upstream
    true = head.logp if upstream is not None else -head.logp.mean()
    true_hidden, true_weight = head.gradients(g)
    rows: list[dict[str, Any]] = []
    for mode, gemms in (("full", 3), ("frozen", 2), ("no grad", 1)):
        passes, facts = {}, {}
        for name, method in methods.items():
            one = Pass(method, head, upstream, mode)

            def check(one: Pass = one) -> dict[str, Any]:
                out, dh, dw = first = one()
                second = one()
                return {
                    "logp error": float((out.double() - true).square().mean().sqrt()),
                    "dh error": None if dh is None else error(dh[:CHECKED], true_hidden),
                    "dw error": None if dw is None else error(dw[head.targets[:CHECKED]], true_weight),
                    "same bits": "yes" if same_bits(first, second) else "no",
                }

            # twice: the first checks also warm up and compile, so the peak is that of a later pass
            found = attempt(f"{name}, {mode}", notes, check)
            if found is not None:
                facts[name] = {"MB": peak_mb(one, device), **found}
                passes[name] = one
        times = interleaved({GEMMS: head.gemms(), **passes}, samples, device)
        bare = sum(spread([t[i] for t in times[GEMMS]]).p50 for i in range(3))  # ms for 3 GEMMs
        parts = [("forward", 0), ("backward", 1), ("full", None)] if mode == "full" else [(mode, None)]
        for name in passes:
            for part, index in parts:
                ms = spread([sum(t) if index is None else t[index] for t in times[name]])
                whole = index is None
                rows.append({
                    "method": name, "pass": part, "ms": ms.p50, "p20": ms.p20, "p80": ms.p80,
                    "TFLOP/s": gemms * work / ms.p50 / 1e9 if whole else None,
                    "% of GEMM": 100 * (bare * gemms / 3) / ms.p50 if whole else None,
                    "x floor": ms.p50 / (bare * gemms / 3) if whole else None,
                    "x ours": ms.p50 / spread([sum(t) if whole else t[index] for t in times["vdengine"]]).p50,
                    **(facts[name] if whole else dict.fromkeys(facts[name])),
                })  # fmt: skip
        bare_row = {"method": GEMMS, "pass": mode, "ms": bare * gemms / 3, "TFLOP/s": 3 * work / bare / 1e9}
        rows.append({**dict.fromkeys(rows[0]), **bare_row})
    return rows, notes


def head_targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Ratios within one loop each; none on a CPU."""
    if device.type != "cuda":
        return {}
    of = {(row["method"], row["pass"]): row for row in rows}
    targets = {}
    for mode, limit in (("full", 1.15), ("frozen", 1.15), ("no grad", 1.2)):
        if ("vdengine", mode) in of:
            targets[f"{mode} / floor"] = (of["vdengine", mode]["x floor"], "<=", limit)
        # CCE's default leaves gradients out: it does not compute the same function
        others = [r for r in rows if r["pass"] == mode and not r["method"].startswith(("vdengine", GEMMS))]
        if same := [r["x ours"] for r in others if r["method"] != "CCE"]:
            targets[f"{mode} / fastest peer"] = (1 / min(same), "<=", 1.0)
    # torch's formula and those like it round their logits to bf16
    if (eager := of.get(("torch eager", "full"))) and ("vdengine", "full") in of:
        better = eager["logp error"] / max(of["vdengine", "full"]["logp error"], 1e-12)
        targets["log-prob error of bf16 logits / ours"] = (better, ">=", 4.0)
    return targets


@dataclass
class Case:
    """What is measured, as plain data: a process of its own is told the same."""

    kind: str  # of MEASURE
    model: str
    n: int = 0
    name: str = ""
    quick: bool = False
    samples: int = SAMPLES


class Measured(NamedTuple):
    title: str
    rows: list[dict[str, Any]]
    notes: list[str]


def run_case(case: Case, settings, report, targets_of: Callable[[list[dict[str, Any]], torch.device], Any]) -> None:
    """Ours and torch's here; then every other package in a process of its own. Rows are reported as they are known."""
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
        torch.cuda.empty_cache()  # room for the next process
    absent = []
    for peer, package in gpu_peers.PACKAGES[case.kind].items() if settings.peers != "none" else ():
        reason = common.missing(package) or (None if device.type == "cuda" else "needs a CUDA device")
        if peer not in gpu_peers.SUMMARY and not settings.full:
            reason = "with --full"
        if reason is None:
            try:
                limit = min(settings.limit, 120.0)
                found = common.in_fresh_process(__file__, {**vars(case), "peer": peer}, settings.threads, limit)
            except common.Failed as e:
                reason = e.reason
            else:
                for title, rows, notes in found["tables"]:
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
        for name, found in targets_of(table.rows, device).items():
            table.target(name, *found)


def head_case(model: str, n: int, settings) -> None:
    gpu(settings)
    if (model, n) not in SUMMARY and (settings.quick or not settings.full):
        pytest.skip("a shape of --full")


def head_of(case: Case, device: torch.device) -> tuple[Head, str]:
    head = Head.make(MODELS[case.model], case.n, device, case.quick)
    (n, width), vocab = head.hidden.shape, len(head.weight)
    return head, f"head of {case.model}, N = {n}, V = {vocab}, H = {width}, {head.hidden.dtype}"


NOTES = [
    "x floor: time over 6NVH (full), 4NVH (frozen) or 2NVH (no grad) at the rate of the bare GEMMs in the same loop",
    "MB: peak above the inputs. Errors against fp64: logp in nats (rms), gradients relative, on a sample of rows",
]


def measure_logprob(case: Case, peers: frozenset[str], device: torch.device) -> list[Measured]:
    head, title = head_of(case, device)
    g = torch.Generator(device).manual_seed(1)
    upstream = torch.randn(len(head.hidden), generator=g, device=device)
    upstream[::10] = 0.0
    ours: dict[str, Any] = {"vdengine": linear_logprob}
    if peers <= gpu_peers.TORCH:  # not again beside every package
        for gib in (0, 2, 4):
            name = f"vdengine, {gib} GiB kept" if gib else "vdengine, nothing kept"
            ours[name] = lambda h, w, t, gib=gib: linear_logprob(h, w, t, saved_bytes=gib << 30)
    makers = gpu_peers.chosen(gpu_peers.logprob_peers(case.quick), peers)
    rows, notes = measure_head(head, ours, makers, upstream, case.samples)
    return [Measured(f"linear_logprob, {title}", rows, [*NOTES, *notes])]


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("model", HEADS)
def test_linear_logprob(model, n, settings, report):
    head_case(model, n, settings)
    run_case(Case("linear_logprob", model, n), settings, report, head_targets)


def measure_cross_entropy(case: Case, peers: frozenset[str], device: torch.device) -> list[Measured]:
    head, title = head_of(case, device)
    makers = gpu_peers.chosen(gpu_peers.cross_entropy_peers(case.quick), peers)
    rows, notes = measure_head(head, {"vdengine": linear_cross_entropy}, makers, None, case.samples)
    return [Measured(f"linear_cross_entropy, {title}", rows, [*NOTES, *notes])]


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("model", HEADS)
def test_cross_entropy(model, n, settings, report):
    head_case(model, n, settings)
    if model == "Qwen3-4B" and not settings.full:
        pytest.skip("a shape of --full")

    def targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
        found = head_targets(rows, device)
        found.pop("log-prob error of bf16 logits / ours", None)  # a mean hides rounding
        return found

    run_case(Case("cross_entropy", model, n), settings, report, targets)


# ---------------------------------------------------------------------------------------------- preference


class Padded(NamedTuple):
    """Pairs as trainers pad them: all chosen, then all rejected, to the longest."""

    hidden: Tensor  # [2n, T, H]
    targets: Tensor  # [2n, T], -100 where nothing is scored
    at: Tensor  # [N]: the padded rows' place of each packed row, flat

    @classmethod
    def of(cls, head: Head, lengths: Tensor) -> Padded:
        """lengths [2n]: chosen and rejected of each pair in turn, as the rows are packed."""
        device, longest, n = head.hidden.device, int(lengths.max()), len(lengths) // 2
        branch = torch.repeat_interleave(torch.arange(2 * n, device=device), lengths)
        within = torch.arange(len(branch), device=device) - (lengths.cumsum(0) - lengths)[branch]
        at = (branch // 2 + (branch % 2) * n) * longest + within
        hidden = head.hidden.new_zeros(2 * n * longest, head.hidden.shape[1])
        targets = torch.full((2 * n * longest,), -100, device=device)
        hidden[at], targets[at] = head.hidden, head.targets
        return cls(hidden.unflatten(0, (2 * n, longest)), targets.unflatten(0, (2 * n, longest)), at)


def measure_preference(case: Case, chosen: frozenset[str], device: torch.device) -> list[Measured]:
    """Hidden rows to loss to gradients. Ours takes the rows packed, peers take them padded to the longest."""
    name, pairs = case.name, 2 if case.quick else 8
    g = torch.Generator().manual_seed(0)
    low, high = (4, 12) if case.quick else (100, 800)
    lengths = torch.randint(low, high, (2 * pairs,), generator=g).to(device)
    if case.quick:
        lengths[-1] += 48 - lengths.sum()  # the quick head has 48 rows
    head = Head.make(MODELS[case.model], int(lengths.sum()), device, case.quick)
    padded = Padded.of(head, lengths)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    # sums of log-probs lie a hundred apart: a small beta keeps the loss out of saturation
    beta, gamma_beta_ratio = (0.01, 0.0) if name == "dpo" else (2.0, 0.5)
    margin = {"name": name, "beta": beta, "gamma_beta_ratio": gamma_beta_ratio}

    logp = head.logp.clone().requires_grad_()
    true = preference_loss(logp, offsets, backend="reference", **margin).losses.mean()
    true_hidden, true_weight = head.gradients(torch.autograd.grad(true, logp)[0])

    def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return preference_loss(linear_logprob(hidden, weight, targets), offsets, **margin).losses.mean()

    makers = gpu_peers.preference_peers(name, beta, beta * gamma_beta_ratio, case.quick)
    peers, notes = collect(gpu_peers.chosen(makers, chosen))
    passes, facts = {}, {}
    for method, function in {"vdengine": ours, **peers}.items():
        packed = method == "vdengine"
        given = head if packed else Head(padded.hidden, head.weight, padded.targets, head.logp)
        one = Pass(function, given, None, "full")

        def check(one: Pass = one, packed: bool = packed) -> dict[str, Any]:
            out, dh, dw = first = one()
            dh = dh if packed else dh.flatten(0, 1)[padded.at]
            return {
                "loss error": float((out.double() - true.detach()).abs()),
                "dh error": error(dh[:CHECKED], true_hidden),
                "dw error": error(dw[head.targets[:CHECKED]], true_weight),
                "same bits": "yes" if same_bits(first, one()) else "no",
            }

        found = attempt(method, notes, check)
        if found is not None:
            facts[method] = {"MB": peak_mb(one, device), **found}
            passes[method] = one
    times = interleaved({GEMMS: head.gemms(), **passes}, case.samples, device)
    bare, first = (spread([sum(t) for t in times[method]]).p50 for method in (GEMMS, "vdengine"))
    rows = []
    for method in passes:
        ms = spread([sum(t) for t in times[method]])
        row = {"method": method, "ms": ms.p50, "p20": ms.p20, "p80": ms.p80, "x floor": ms.p50 / bare}
        rows.append(row | {"x ours": ms.p50 / first, **facts[method]})
    note = (
        f"{pairs} pairs: {len(head.hidden)} scored tokens, {padded.targets.numel()} padded; floor: the GEMMs of the "
        f"scored ones, {bare:.3f} ms. No reference: Liger's loss takes none that was computed beforehand"
    )
    return [Measured(f"{name} end to end, head of {case.model}", rows, [note, *notes])]


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


# -------------------------------------------------------------------------------------------- memory-bound


@dataclass
class Op:
    """A kernel bound by memory: its inputs, and the bytes that must be moved at least."""

    name: str
    ours: Callable[..., Any]
    reference: Callable[..., Any]  # takes fp64 too
    peers: dict[str, gpu_peers.Maker]
    inputs: list[Tensor]  # those of a floating dtype that `frozen` does not name are differentiated
    upstream: list[Tensor]
    forward_bytes: int
    backward_bytes: int
    frozen: tuple[int, ...] = ()

    def run(
        self, method: Callable[..., Any], inputs: list[Tensor], upstream: list[Tensor], mark: Callable[[], None]
    ) -> list[Tensor]:
        out = method(*inputs)
        out = list(out) if isinstance(out, tuple) else [out]
        mark()
        wanted = [x for i, x in enumerate(inputs) if i not in self.frozen]
        return [*out, *torch.autograd.grad(out, wanted, upstream)]

    def fresh(self, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of inputs and upstream: Liger works in place."""
        inputs = [x.detach().clone() if dtype is None else x.detach().to(dtype) for x in self.inputs]
        upstream = [x.clone() if dtype is None else x.to(dtype) for x in self.upstream]
        return [x.requires_grad_(i not in self.frozen) for i, x in enumerate(inputs)], upstream


def ops(shape: Shape, norm_heads: bool, tokens: int, device: torch.device, quick: bool) -> list[Op]:
    g = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device=device).to(dtype)

    h, i, d, heads, kv = shape.hidden, shape.intermediate, shape.head_dim, shape.heads, shape.kv_heads
    x, gate, q, k = random(tokens, h), random(tokens, i), random(tokens, heads, d), random(tokens, kv, d)
    angles = torch.arange(tokens, device=device)[:, None] * torch.rand(d // 2, generator=g, device=device)
    weights = [random(d), random(d)] if norm_heads else []

    def turn(rope: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, k, c, s, *w: rope(q, k, c, s, **dict(zip(("q_weight", "k_weight"), w, strict=False)))

    def turn_reference(q: Tensor, k: Tensor, c: Tensor, s: Tensor, *w: Tensor) -> Any:
        return qk_rope_reference(q, k, c, s, *(w or (None, None)), 1e-6)

    heads_bytes = q.nbytes + k.nbytes
    return [
        Op(
            "rms_norm with residual", lambda x, r, w: rms_norm(x, w, residual=r),
            lambda x, r, w: rms_norm_reference(x, w, 1e-6, residual=r), gpu_peers.rms_norm_peers(quick),
            [x, random(tokens, h), random(h)], [random(tokens, h), random(tokens, h)], 4 * x.nbytes, 4 * x.nbytes,
        ),
        Op(
            "qk_rope with norms" if weights else "qk_rope", turn(qk_rope), turn_reference,
            gpu_peers.qk_rope_peers(quick), [q, k, angles.cos(), angles.sin(), *weights],
            [random(tokens, heads, d), random(tokens, kv, d)], 2 * heads_bytes,
            (3 if weights else 2) * heads_bytes, frozen=(2, 3),
        ),
        Op(
            "swiglu", swiglu, swiglu_reference, gpu_peers.swiglu_peers(quick), [gate, random(tokens, i)],
            [random(tokens, i)], 3 * gate.nbytes, 5 * gate.nbytes,
        ),
    ]  # fmt: skip


def measure_memory_bound(case: Case, chosen: frozenset[str], device: torch.device) -> list[Measured]:
    """RMSNorm, RoPE and SwiGLU in GB/s of the bytes that must move, beside a copy in the same loop."""
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
        into = torch.empty_like(source)
        variants["copy"] = lambda mark, a=source, b=into: b.copy_(a)
        times = interleaved(variants, case.samples, device)
        copied = 2 * source.nbytes / spread([t[0] for t in times.pop("copy")]).p50 / 1e6  # GB/s
        rows = []
        for name, found in times.items():
            for i, (part, moved) in enumerate((("forward", op.forward_bytes), ("backward", op.backward_bytes))):
                ms = spread([t[i] for t in found])
                rate = moved / ms.p50 / 1e6
                row = {"method": name, "pass": part, "ms": ms.p50, "p20": ms.p20, "p80": ms.p80, "GB/s": rate}
                row |= {"of copy": rate / copied, "x ours": ms.p50 / spread([t[i] for t in times["vdengine"]]).p50}
                rows.append(row | facts[name])
        note = f"copy: {copied:.0f} GB/s; error: the largest of all results, relative to fp64; MB: forward and backward"
        measured.append(Measured(f"{op.name}, {case.model}, {tokens} tokens", rows, [note, *notes]))
    return measured


@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-4B", "Qwen3-8B", "Llama-3.1-8B"])
def test_memory_bound(model, settings, report):
    gpu(settings)
    if model not in ("Qwen3-4B", "Llama-3.1-8B") and not settings.full:
        pytest.skip("a shape of --full")

    def targets(rows: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
        mine = [row for row in rows if row["method"] == "vdengine" and device.type == "cuda"]
        return {f"{row['pass']} / copy rate": (row["of copy"], ">=", 0.85) for row in mine}

    run_case(Case("memory_bound", model), settings, report, targets)


# --------------------------------------------------------------------------------------------------- rates


def test_rates(settings, report):
    """The yardsticks of everything else: a device-to-device copy, and bf16 GEMMs, square and of Qwen3's layers."""
    device = gpu(settings)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = [(8192, 8192, 8192), (4570, 3072, 1024), (4570, 1024, 3072), (4570, 9728, 2560), (4096, 151936, 2560)]
    table = report.table(f"rates, {dtype}")
    source = torch.empty(1 << (20 if settings.quick else 31), dtype=torch.uint8, device=device)
    into = torch.empty_like(source)
    copy = {"copy": lambda mark, a=source, b=into: b.copy_(a)}
    times = interleaved(copy, samples_of(settings), device)["copy"]
    ms = spread([t[0] for t in times])
    rate = 2 * source.nbytes / ms.p50 / 1e6
    table.row({"what": "copy", "ms": ms.p50, "GB/s": rate, "TFLOP/s": None})
    del source, into, copy
    for m, n, k in sizes:
        if settings.quick:
            m, n, k = 64, 96, 32
        x, w = (torch.randn(*size, device=device, dtype=dtype) for size in ((m, k), (n, k)))
        torch.mm(x, w.t())
        times = interleaved({"mm": lambda mark, x=x, w=w: torch.mm(x, w.t())}, samples_of(settings), device)["mm"]
        ms = spread([t[0] for t in times])
        rate = 2 * m * n * k / ms.p50 / 1e9
        table.row({"what": f"GEMM {m} x {n} x {k}", "ms": ms.p50, "GB/s": None, "TFLOP/s": rate})


MEASURE = {
    "linear_logprob": measure_logprob,
    "cross_entropy": measure_cross_entropy,
    "preference": measure_preference,
    "memory_bound": measure_memory_bound,
}

if __name__ == "__main__":
    given = common.arguments()
    told = Case(**{name: given[name] for name in Case.__dataclass_fields__})
    where = torch.device("cuda", torch.cuda.current_device())
    common.leave(given, {"tables": MEASURE[told.kind](told, frozenset({given["peer"]}), where)})
