"""All kernels in one model: Triton against the references, under torch.compile, and where they may not run."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import DEVICE
from helpers.tiny import fill, tiny_config
from torch import nn

import vdengine as vd
from vdengine.kernels import (
    LinearLogprob,
    RMSNorm,
    _triton,
    embedding_rows,
    gather_rows,
    linear_cross_entropy,
    linear_logprob,
    preference_loss,
    qk_rope,
    rms_norm,
    segment_sum,
    swiglu,
)  # fmt: skip
from vdengine.models.transformer import Kernels, Transformer

TRITON = Kernels(rms_norm="triton", rope="triton", swiglu="triton", head="triton")
PLAIN = Kernels(rms_norm="reference", rope="reference", swiglu="reference", head="torch")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_model_on_triton_kernels_equals_one_on_references(kind):
    """Guards the wiring: a kernel given the wrong weight, angle or residual in the model, with trees and probes."""
    g = torch.Generator().manual_seed(0)
    trees = [
        vd.Tree(prompt=torch.randint(0, 259, (n,), generator=g).tolist(),
                branches=[torch.randint(0, 259, (m,), generator=g).tolist() for m in (3, 5)])
        for n in (4, 9)
    ]  # fmt: skip
    pack = vd.pack(trees).to(DEVICE)
    found = []
    for kernels in (PLAIN, TRITON):
        model = fill(Transformer(tiny_config(kind), kernels=kernels)).to(DEVICE)
        out = model(pack, probes=pack, entropy=True)
        (out.logp * torch.linspace(-1, 1, pack.num_scored, device=DEVICE)).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((out.logp.detach(), out.entropy.detach(), out.probe_logp, grads))
    # fp32 both ways: sums of at most 259 terms in another order, through 3 layers
    for plain, ours in zip(*found, strict=True):
        assert (plain - ours).norm() <= 1e-5 * plain.norm()
    assert torch.equal(found[1][0], found[1][2])  # the probe stream is the training stream's forward


class Small(nn.Module):
    """One layer that uses every kernel, and a preference loss."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.embed = nn.Parameter(torch.randn(50, 16))
        self.norm, self.last = RMSNorm(16, backend=backend), RMSNorm(16, backend=backend)
        self.q, self.k, self.v, self.gate, self.up, self.down = (nn.Linear(16, 16, bias=False) for _ in range(6))
        self.head = LinearLogprob(16, 50)

    def forward(self, tokens, unique, by_token, cos, sin, rows, by_row, targets, offsets):
        x = embedding_rows(self.embed, tokens, unique, *by_token)
        h = self.norm(x)
        q, k = (p(h).unflatten(-1, (2, 8)) for p in (self.q, self.k))
        q, k = qk_rope(q, k, cos, sin, q_weight=self.norm.weight[:8], k_weight=self.norm.weight[8:],
                       backend=self.backend)  # fmt: skip
        v = self.v(h).unflatten(-1, (2, 8))
        a = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), is_causal=True)
        h, x = self.last(a.transpose(0, 1).flatten(1), residual=x)
        x = gather_rows(x + self.down(swiglu(self.gate(h), self.up(h), backend=self.backend)), rows, *by_row)
        head = "triton" if self.backend == "triton" else "auto"
        logp = self.head(x, targets, backend=head)
        reference = segment_sum(logp.detach(), offsets)
        pairs = preference_loss(logp, offsets, reference, order="interleaved", beta=0.1, backend=self.backend)
        return pairs.losses.sum() + linear_cross_entropy(x, self.head.weight, targets, backend=head)


def inverse(index, m):
    order = torch.argsort(index, stable=True)
    return order, torch.searchsorted(index[order], torch.arange(m + 1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_small_model_compiles_in_one_graph(backend):
    """Guards torch.compile on all ops together: no break, forward or backward, and eager's numbers."""
    torch.manual_seed(0)
    model = Small(backend).to(DEVICE)
    tokens, rows = torch.randint(0, 50, (12,)), torch.tensor([2, 3, 4, 2, 6, 7, 8, 9])
    unique = tokens.unique()
    angles = torch.outer(torch.arange(12.0), torch.rand(4))
    inputs = (
        tokens, unique, inverse(torch.searchsorted(unique, tokens), len(unique)), angles.cos(), angles.sin(), rows,
        inverse(rows, 12), torch.randint(0, 50, (8,)), torch.tensor([0, 2, 5, 6, 8]),
    )  # fmt: skip
    inputs = torch.utils._pytree.tree_map(lambda t: t.to(DEVICE), inputs)
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = run(*inputs)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


X = torch.zeros(3, 4, device=DEVICE)

OPS = {
    "linear_logprob": lambda: linear_logprob(X, X, torch.zeros(3, dtype=torch.int64), backend="triton"),
    "linear_cross_entropy": lambda: linear_cross_entropy(X, X, torch.zeros(3, dtype=torch.int64), backend="triton"),
    "preference_loss": lambda: preference_loss(
        X[0], torch.tensor([0, 1, 2]), order="interleaved", beta=0.1, backend="triton"
    ),
    "segment_sum": lambda: segment_sum(X[0], torch.tensor([0, 1, 2]), backend="triton"),
    "rms_norm": lambda: rms_norm(X, X[0], backend="triton"),
    "qk_rope": lambda: qk_rope(X[:, None], X[:, None], X[:, :2], X[:, :2], backend="triton"),
    "swiglu": lambda: swiglu(X, X, backend="triton"),
}


@pytest.mark.skipif(DEVICE == "cuda", reason="about CPU tensors")
@pytest.mark.parametrize("op", OPS)
def test_triton_on_cpu_tensors_is_an_error_outside_the_interpreter(op, monkeypatch):
    """Guards a laptop: a launch on host memory would end the process; the error names the op and the device."""
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match=f"{op}: backend 'triton' is for CUDA tensors; got cpu"):
        OPS[op]()
