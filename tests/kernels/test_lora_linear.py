"""`lora_linear` against float64. The tolerance is that of `test_linear_logprob`."""

import pytest
import torch
from helpers.kernels import DEVICE, assert_close

from vdengine.kernels.lora_linear import lora_linear, lora_linear_reference

NAMES = ("y", "grad_x", "grad_dropped", "grad_A", "grad_B")


def problem(rows, inputs, outputs, rank, dtype, *, bias=True, seed=0):
    """x, dropped, weight, bias, A, B and an upstream gradient, signed and with zeros."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,), (rank, inputs), (outputs, rank), (rows, outputs))
    x, weight, b, lora_A, lora_B, upstream = (torch.randn(shape, generator=g).to(DEVICE, dtype) for shape in shapes)
    upstream[::3] = 0.0
    dropped = x * (torch.rand(x.shape, generator=g) > 0.3).to(DEVICE, dtype) / 0.7
    return x, dropped, weight, b if bias else None, lora_A, lora_B, upstream


def run(function, x, dropped, weight, bias, lora_A, lora_B, upstream, with_dropout=True):
    """y and the gradients of x, dropped, A and B."""
    x, dropped, lora_A, lora_B = (t.detach().requires_grad_() for t in (x, dropped, lora_A, lora_B))
    y = function(x, weight, lora_A, lora_B, scale=1.7, bias=bias, dropped=dropped if with_dropout else None)
    inputs = (x, dropped, lora_A, lora_B) if with_dropout else (x, lora_A, lora_B)
    found = torch.autograd.grad(y, inputs, upstream)
    return (y.detach(), *found) if with_dropout else (y.detach(), found[0], None, *found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize(("shape", "bias"), [((1, 1, 1, 1), True), ((37, 72, 51, 5), False), ((130, 33, 96, 16), True)])
def test_values_and_gradients_against_float64(shape, bias, with_dropout, dtype):
    """Guards the formulas, both inputs, and a rank that is no power of two."""
    arguments = problem(*shape, dtype, bias=bias)
    wide = [None if t is None else t.double() for t in arguments]
    exact = run(lora_linear_reference, *wide, with_dropout)
    plain = run(lora_linear_reference, *arguments, with_dropout)
    for name, got, peer, true in zip(NAMES, run(lora_linear, *arguments, with_dropout), plain, exact, strict=True):
        if got is not None:
            assert got.dtype == dtype
            assert_close(name, got, peer, true, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_without_an_adapters_term_it_is_the_layer(dtype):
    """Guards the start of training: with B = 0 the bits are those of the plain layer, so a reference's margin is 0."""
    x, _, weight, bias, lora_A, lora_B, _ = problem(130, 96, 72, 8, dtype)
    got = lora_linear(x, weight, lora_A, torch.zeros_like(lora_B), scale=2.0, bias=bias)
    assert torch.equal(got, torch.nn.functional.linear(x, weight, bias))


def test_no_rows_fp32_factors_and_equal_bits():
    """Guards empty packs, fp32 factors beside a bf16 layer, whose gradients are fp32, and results that differ from
    call to call."""
    x, _, weight, bias, lora_A, lora_B, upstream = problem(9, 24, 40, 4, torch.bfloat16)
    assert lora_linear(x[:0], weight, lora_A, lora_B, scale=1.0, bias=bias).shape == (0, 40)
    lora_A, lora_B = lora_A.float().requires_grad_(), lora_B.float().requires_grad_()
    twice = []
    for _ in range(2):
        y = lora_linear(x, weight, lora_A, lora_B, scale=1.0)
        twice.append((y, *torch.autograd.grad(y, (lora_A, lora_B), upstream)))
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))
    assert twice[0][0].dtype == torch.bfloat16 and twice[0][1].dtype == twice[0][2].dtype == torch.float32


def test_an_input_without_gradient():
    """Guards the first layer of a frozen model, whose input needs none."""
    x, dropped, weight, bias, lora_A, lora_B, upstream = problem(9, 24, 40, 4, torch.float32)
    _, *expected = run(lora_linear, x, dropped, weight, bias, lora_A, lora_B, upstream, with_dropout=False)
    lora_A, lora_B = lora_A.requires_grad_(), lora_B.requires_grad_()
    y = lora_linear(x, weight, lora_A, lora_B, scale=1.7, bias=bias)
    for got, peer in zip(torch.autograd.grad(y, (lora_A, lora_B), upstream), expected[2:], strict=True):
        assert torch.equal(got, peer)


def test_compiles_in_one_graph():
    """Guards torch.compile: fakes of both ops."""
    x, dropped, weight, bias, lora_A, lora_B, upstream = problem(9, 24, 40, 4, torch.float32)
    compiled = torch.compile(lora_linear, fullgraph=True, backend="aot_eager")
    for options in (True, False):
        got = run(compiled, x, dropped, weight, bias, lora_A, lora_B, upstream, options)
        for a, b in zip(
            got, run(lora_linear, x, dropped, weight, bias, lora_A, lora_B, upstream, options), strict=True
        ):
            assert a is None or torch.equal(a, b)


def test_wrong_arguments():
    """Guards messages, and a weight that would silently not learn."""
    x, dropped, weight, bias, lora_A, lora_B, _ = problem(9, 24, 40, 4, torch.float32)
    for change, message in (
        ({"weight": weight[:, :5]}, r"weight must be \[N, K\]"),
        ({"lora_A": lora_A[:, :5]}, r"lora_A must be \[r, K\] and lora_B \[N, r\]"),
        ({"lora_B": lora_B[:, :2]}, r"lora_A must be \[r, K\] and lora_B \[N, r\]"),
        ({"dropped": dropped[:3]}, "dropped must be as x"),
        ({"weight": weight.double()}, "weight must have x's dtype"),
        ({"bias": bias.clone().requires_grad_()}, "bias takes a gradient"),
    ):
        arguments = {"x": x, "weight": weight, "lora_A": lora_A, "lora_B": lora_B, "scale": 1.0} | change
        with pytest.raises(ValueError, match=f"^lora_linear: {message}"):
            lora_linear(**arguments)
