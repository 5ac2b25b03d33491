"""Fused cross-entropy against float64 and against the per-token op."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import BACKENDS, DEVICE, DTYPES, assert_close, problem

from vdengine.kernels import LinearCrossEntropy, linear_cross_entropy, linear_logprob


def run(fn, hidden, weight, targets, upstream, **options):
    hidden, weight = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    if weight.dtype == torch.bfloat16:
        weight.grad_dtype = None
    loss = fn(hidden, weight, targets, **options)
    (loss * upstream).backward()
    return loss.detach()[None], hidden.grad, weight.grad


def plain(hidden, weight, targets, *, reduction="mean", denominator=None):
    """The usual formula, in the operands' dtype."""
    logits = hidden @ weight.t()
    loss = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum")
    if reduction == "mean":
        loss = loss / ((targets != -100).sum() if denominator is None else denominator)
    return loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"denominator": 977.0}], ids=str)
def test_loss_and_gradients_against_float64(backend, dtype, options):
    """Guards scaling: by the count of the rows that take part, or a global denominator, and by the upstream."""
    hidden, weight, targets, _ = problem(77, 517, 40, dtype)
    targets[::5] = -100
    upstream = torch.tensor(-0.7, device=DEVICE)
    exact = run(plain, hidden.double(), weight.double(), targets, upstream.double(), **options)
    peer = run(plain, hidden, weight, targets, upstream, **options)
    got = run(linear_cross_entropy, hidden, weight, targets, upstream, backend=backend, chunk_rows=32, **options)
    for name, *values in zip(("logp", "grad_hidden", "grad_weight"), got, peer, exact, strict=True):
        assert_close(name, *values, dtype)
    assert got[1][::5].abs().max() == 0  # rows left out


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_it_is_the_sum_of_the_log_probs(backend):
    """Guards what the head has in common with `linear_logprob`, which is tested against float64: bias, scale, soft cap,
    another dtype of the weight, autocast, leading shape, and each gradient."""
    hidden, weight, targets, _ = problem(78, 517, 40, torch.float32)
    bias = torch.randn(517, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    head = {"scale": 2.0, "softcap": 5.0, "backend": backend}
    for inputs, autocast in (((hidden, weight), False), ((hidden.half(), weight), False), ((hidden, weight), True)):
        found = []
        for fn in (linear_logprob, linear_cross_entropy):
            h, w, b = (x.clone().requires_grad_() for x in (*inputs, bias))
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                out = fn(h.view(2, 39, 40), w, targets.view(2, 39), bias=b, **head)
            loss = -out.mean() if fn is linear_logprob else out
            loss.backward()
            found.append((loss.detach(), h.grad, w.grad, b.grad))
        eps = 2**-7 if autocast else 2**-9 if inputs[0].dtype == torch.float16 else 2**-20  # a rounding in the operands
        for a, b in zip(*found, strict=True):
            assert a.dtype == b.dtype and (a - b).abs().max() <= eps * a.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_twice_the_same_bits_and_a_second_backward(backend):
    """Guards determinism, and gradients that a first backward would have scaled in place."""
    hidden, weight, targets, _ = problem(77, 517, 40, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets, backend=backend)
    first = torch.autograd.grad(2 * loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_derivative_is_an_error():
    """Guards gradient penalties: backward keeps no graph, so it must not pretend to."""
    hidden, weight, targets, _ = problem(20, 65, 16, torch.float32)
    hidden.requires_grad_()
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.square().sum().backward()


@pytest.mark.parametrize("rows", [0, 4])
def test_no_rows_give_a_loss_of_zero(rows):
    """Guards 0 / 0: an empty batch, and one whose rows are all left out."""
    hidden, weight, targets, _ = problem(5, 33, 16, torch.float32)
    hidden, weight = hidden[:rows].requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets[:rows], -100))
    loss.backward()
    assert loss == 0 and weight.grad.abs().max() == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_operand_gets_no_gradient(frozen):
    """Guards a frozen head or trunk: its GEMM is not run, the other gradient is unchanged."""
    hidden, weight, targets, _ = problem(20, 65, 16, torch.float32)
    _, grad_hidden, grad_weight = run(linear_cross_entropy, hidden, weight, targets, 1.0)
    h, w = hidden.clone().requires_grad_(frozen != "hidden"), weight.clone().requires_grad_(frozen != "weight")
    linear_cross_entropy(h, w, targets).backward()
    assert (h.grad is None) == (frozen == "hidden") and (w.grad is None) == (frozen == "weight")
    assert torch.equal(h.grad if w.grad is None else w.grad, grad_hidden if w.grad is None else grad_weight)


def test_compiles_in_one_graph():
    """Guards torch.compile."""
    hidden, weight, targets, _ = problem(30, 133, 16, torch.float32)
    got = []
    for fn in (linear_cross_entropy, torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")):
        got.append(run(fn, hidden, weight, targets, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


def test_module_takes_batches():
    """Guards the module form: [batch, length] targets, a head's weight from outside."""
    hidden, weight, targets, _ = problem(12, 33, 16, torch.float32)
    loss = LinearCrossEntropy()(weight, hidden.view(3, 4, 16), targets.view(3, 4))
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, targets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "none"}, "unknown reduction 'none'; allowed: mean, sum"),
        ({"reduction": "sum", "denominator": 3.0}, "denominator goes with reduction 'mean'"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"denominator": torch.ones(5)}, "denominator must be one number; got [5]"),
        ({"chunk_rows": -1}, "chunk_rows must be >= 1; got -1"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    """Guards embedders: a wrong call is named."""
    hidden, weight, targets, _ = problem(5, 33, 16, torch.float32)
    with pytest.raises(ValueError) as error:
        linear_cross_entropy(hidden, weight, targets, **options)
    assert message in str(error.value)
