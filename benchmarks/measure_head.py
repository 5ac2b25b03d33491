"""Measuring the output head, and the preference losses on it, against peers: `test_kernels_gpu.py`.

All variants of a shape take turns in an order that rotates, each with a cold L2; times are medians. The reference is
measured in the same loop: bare library GEMMs of the head's three shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gpu_peers
import torch
from gpu_peers import attempt, collect
from measuring import GEMMS, Case, Measured, error, nothing, peak_mb, same_bits, spread
from torch import Tensor

from vdengine.kernels import linear_cross_entropy, linear_logprob, preference_loss
from vdengine.kernels.tune import MODELS, Shape, interleaved

GEMM_ROWS = 4096  # of a bare GEMM: the chunk of `linear_logprob`
CHECKED = 128  # rows, and vocabulary entries, whose gradients are compared with fp64


@dataclass
class Head:
    """The inputs of a head of N rows, with log-probs in fp64."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    targets: Tensor  # [N]
    logp: Tensor  # [N] fp64

    @classmethod
    def make(cls, shape: Shape, n: int, device: torch.device, quick: bool) -> Head:
        """Random inputs with logits of standard deviation 3, as in a trained model. In every other row the target has a
        high probability."""
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
    def _logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # [N] fp64
        h = hidden.double()
        lse = torch.full((len(h),), -torch.inf, dtype=torch.float64, device=h.device)
        for part in weight.split(4096):
            lse = torch.logaddexp(lse, torch.logsumexp(h @ part.double().t(), 1))
        return (h * weight[targets].double()).sum(1) - lse

    def gradients(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients in fp64 on a sample: of the first CHECKED rows of hidden, [CHECKED, H], and of the weight rows
        that are their targets, [CHECKED, H]. g [N] is the upstream gradient of logp."""
        h, g, sample = self.hidden.double(), g.double(), slice(0, CHECKED)
        lse = (h * self.weight[self.targets].double()).sum(1) - self.logp  # [N], logsumexp of the logits
        mean = torch.zeros_like(h[sample])  # [CHECKED, H], mean of the weight's rows under the softmax
        for part in self.weight.split(4096):
            w = part.double()
            mean += torch.exp(h[sample] @ w.t() - lse[sample, None]) @ w
        grad_hidden = g[sample, None] * (self.weight[self.targets[sample]].double() - mean)
        entries = self.targets[sample]
        p = torch.exp(h @ self.weight[entries].double().t() - lse[:, None])  # [N, CHECKED]
        p -= (self.targets[:, None] == entries).double()
        return grad_hidden, -(p * g[:, None]).t() @ h

    def gemms(self) -> Callable[[Callable[[], None]], None]:
        """A function that runs the three GEMMs that every exact method needs, 2NVH each, without work between them."""
        h, w = self.hidden, self.weight
        z = h.new_empty(min(len(h), GEMM_ROWS), len(w))
        # a softmax, as in a head, because the speed of a GPU depends on the values: it is faster with zeros than with
        # noise
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
    """A method in one mode: "full" (both gradients), "frozen" (only that of hidden) or "no grad".

    Args:
        upstream: gradient of the method's result.
    """

    def __init__(self, method: Callable[..., Tensor], head: Head, upstream: Tensor | None, mode: str) -> None:
        self.method, self.targets, self.upstream, self.mode = method, head.targets, upstream, mode
        self.hidden = head.hidden.detach().requires_grad_(mode != "no grad")
        self.weight = head.weight.detach().requires_grad_(mode == "full")

    def __call__(self, mark: Callable[[], None] = nothing) -> list[Tensor | None]:
        """The result and the gradients of hidden and weight; None for one that the mode does not have."""
        with torch.set_grad_enabled(self.mode != "no grad"):
            out = self.method(self.hidden, self.weight, self.targets)
        if self.mode != "no grad":
            mark()
            out.backward(self.upstream)
        results = [out.detach(), self.hidden.grad, self.weight.grad]
        self.hidden.grad = self.weight.grad = None  # so that no pass takes memory from the next
        return results


def measure_head(
    head: Head, ours: dict[str, Any], peers: dict[str, gpu_peers.Maker], upstream: Tensor | None, samples: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure methods of the head in all modes.

    Args:
        upstream: [N], if the methods give log-probs per token; None if they give the mean loss.

    Returns:
        The rows of the table, and notes.
    """
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
            one_pass = Pass(method, head, upstream, mode)

            def check(one_pass: Pass = one_pass) -> dict[str, Any]:
                out, dh, dw = first = one_pass()
                second = one_pass()
                return {
                    "logp error": float((out.double() - true).square().mean().sqrt()),
                    "dh error": None if dh is None else error(dh[:CHECKED], true_hidden),
                    "dw error": None if dw is None else error(dw[head.targets[:CHECKED]], true_weight),
                    "same bits": "yes" if same_bits(first, second) else "no",
                }

            # the checks also warm up and compile, so the peak of memory is that of a later pass
            errors = attempt(f"{name}, {mode}", notes, check)
            if errors is not None:
                facts[name] = {"MB": peak_mb(one_pass, device), **errors}
                passes[name] = one_pass
        times = interleaved({GEMMS: head.gemms(), **passes}, samples, device)
        bare = sum(spread([t[i] for t in times[GEMMS]]).p50 for i in range(3))  # ms of all three GEMMs
        parts = [("forward", 0), ("backward", 1), ("full", None)] if mode == "full" else [(mode, None)]
        for name in passes:
            for part, index in parts:
                ms = spread([sum(t) if index is None else t[index] for t in times[name]])
                is_total = index is None  # forward and backward together
                rows.append(
                    {
                        "method": name,
                        "pass": part,
                        "ms": ms.p50,
                        "p20": ms.p20,
                        "p80": ms.p80,
                        "TFLOP/s": gemms * work / ms.p50 / 1e9 if is_total else None,
                        "% of GEMM": 100 * (bare * gemms / 3) / ms.p50 if is_total else None,
                        "x floor": ms.p50 / (bare * gemms / 3) if is_total else None,
                        "x ours": ms.p50 / spread([sum(t) if is_total else t[index] for t in times["vdengine"]]).p50,
                        **(facts[name] if is_total else dict.fromkeys(facts[name])),
                    }
                )
        bare_row = {"method": GEMMS, "pass": mode, "ms": bare * gemms / 3, "TFLOP/s": 3 * work / bare / 1e9}
        rows.append({**dict.fromkeys(rows[0]), **bare_row})
    return rows, notes


# ------------------------------------------------------------------------------------------ log-probs and cross-entropy


def head_of(case: Case, device: torch.device) -> tuple[Head, str]:
    """The inputs of a case, and their description for a title."""
    head = Head.make(MODELS[case.model], case.n, device, case.quick)
    (n, width), vocab = head.hidden.shape, len(head.weight)
    return head, f"head of {case.model}, N = {n}, V = {vocab}, H = {width}, {head.hidden.dtype}"


NOTES = [
    "x floor: time over 6NVH (full), 4NVH (frozen) or 2NVH (no grad) at the rate of the bare GEMMs in the same loop",
    "MB: peak above the inputs. Errors against fp64: logp in nats (rms), gradients relative, on a sample of rows",
]


def measure_logprob(case: Case, peers: frozenset[str], device: torch.device) -> list[Measured]:
    """`linear_logprob` with any upstream gradient per token."""
    head, title = head_of(case, device)
    g = torch.Generator(device).manual_seed(1)
    upstream = torch.randn(len(head.hidden), generator=g, device=device)
    upstream[::10] = 0.0
    ours: dict[str, Any] = {"vdengine": linear_logprob}
    if peers <= gpu_peers.TORCH:  # only once, and not beside every package
        for gib in (0, 2, 4):
            name = f"vdengine, {gib} GiB kept" if gib else "vdengine, nothing kept"
            ours[name] = lambda h, w, t, gib=gib: linear_logprob(h, w, t, saved_bytes=gib << 30)
    makers = gpu_peers.chosen(gpu_peers.logprob_peers(case.quick), peers)
    rows, notes = measure_head(head, ours, makers, upstream, case.samples)
    return [Measured(f"linear_logprob, {title}", rows, [*NOTES, *notes])]


def measure_cross_entropy(case: Case, peers: frozenset[str], device: torch.device) -> list[Measured]:
    """The mean of `linear_cross_entropy`."""
    head, title = head_of(case, device)
    makers = gpu_peers.chosen(gpu_peers.cross_entropy_peers(case.quick), peers)
    rows, notes = measure_head(head, {"vdengine": linear_cross_entropy}, makers, None, case.samples)
    return [Measured(f"linear_cross_entropy, {title}", rows, [*NOTES, *notes])]


# ---------------------------------------------------------------------------------------------------- preference losses


class Padded(NamedTuple):
    """n pairs as other trainers pad them to the longest, T: all chosen, then all rejected."""

    hidden: Tensor  # [2n, T, H]
    targets: Tensor  # [2n, T], -100 where nothing is scored
    place: Tensor  # [N], index of each packed row among the 2n * T padded rows

    @classmethod
    def of(cls, head: Head, lengths: Tensor) -> Padded:
        """Pad packed rows. lengths: [2n], of the chosen and the rejected branch of each pair in turn."""
        device, longest, n = head.hidden.device, int(lengths.max()), len(lengths) // 2
        branch = torch.repeat_interleave(torch.arange(2 * n, device=device), lengths)  # [N]
        position = (
            torch.arange(len(branch), device=device) - (lengths.cumsum(0) - lengths)[branch]
        )  # [N], in the branch
        place = (branch // 2 + (branch % 2) * n) * longest + position
        hidden = head.hidden.new_zeros(2 * n * longest, head.hidden.shape[1])
        targets = torch.full((2 * n * longest,), -100, device=device)
        hidden[place], targets[place] = head.hidden, head.targets
        return cls(hidden.unflatten(0, (2 * n, longest)), targets.unflatten(0, (2 * n, longest)), place)


def measure_preference(case: Case, chosen: frozenset[str], device: torch.device) -> list[Measured]:
    """A preference loss from hidden rows to gradients. Ours takes the rows packed, peers take them padded."""
    name, pairs = case.name, 2 if case.quick else 8
    g = torch.Generator().manual_seed(0)
    low, high = (4, 12) if case.quick else (100, 800)
    lengths = torch.randint(low, high, (2 * pairs,), generator=g).to(device)
    if case.quick:
        lengths[-1] += 48 - lengths.sum()  # the quick head has 48 rows
    head = Head.make(MODELS[case.model], int(lengths.sum()), device, case.quick)
    padded = Padded.of(head, lengths)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    # the sums of log-probs differ by about a hundred, and with a small beta the loss is not saturated
    beta, gamma_beta_ratio = (0.01, 0.0) if name == "dpo" else (2.0, 0.5)
    margin = {"order": "interleaved", "name": name, "beta": beta, "gamma_beta_ratio": gamma_beta_ratio}

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
        inputs = head if packed else Head(padded.hidden, head.weight, padded.targets, head.logp)
        one_pass = Pass(function, inputs, None, "full")

        def check(one_pass: Pass = one_pass, packed: bool = packed) -> dict[str, Any]:
            out, dh, dw = first = one_pass()
            dh = dh if packed else dh.flatten(0, 1)[padded.place]
            return {
                "loss error": float((out.double() - true.detach()).abs()),
                "dh error": error(dh[:CHECKED], true_hidden),
                "dw error": error(dw[head.targets[:CHECKED]], true_weight),
                "same bits": "yes" if same_bits(first, one_pass()) else "no",
            }

        errors = attempt(method, notes, check)
        if errors is not None:
            facts[method] = {"MB": peak_mb(one_pass, device), **errors}
            passes[method] = one_pass
    times = interleaved({GEMMS: head.gemms(), **passes}, case.samples, device)
    bare, our_ms = (spread([sum(t) for t in times[method]]).p50 for method in (GEMMS, "vdengine"))
    rows = []
    for method in passes:
        ms = spread([sum(t) for t in times[method]])
        row = {"method": method, "ms": ms.p50, "p20": ms.p20, "p80": ms.p80, "x floor": ms.p50 / bare}
        rows.append(row | {"x ours": ms.p50 / our_ms, **facts[method]})
    note = (
        f"{pairs} pairs: {len(head.hidden)} scored tokens, {padded.targets.numel()} padded; floor: the GEMMs of the "
        f"scored ones, {bare:.3f} ms. No reference: Liger's loss takes none that was computed beforehand"
    )
    return [Measured(f"{name} end to end, head of {case.model}", rows, [note, *notes])]
