"""The fused preference losses against the objectives' definitions, in float64."""

import math

import pytest
import torch
from helpers.kernels import DEVICE

from vdengine import objectives
from vdengine.kernels import preference_loss, preference_loss_from_padded, segment_sum

LENGTHS = [3, 1, 700, 0, 256, 257, 0, 5]  # empty branches, and some at and around a block


def problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    logp = -torch.rand(int(offsets[-1]), generator=g) * 3
    reference = segment_sum(logp, offsets) + torch.randn(len(LENGTHS), generator=g) * 5
    return logp.to(DEVICE), offsets.to(DEVICE), reference.to(DEVICE)


CASES = {
    "dpo": {"name": "dpo", "beta": 0.1},
    "dpo, smoothed": {"name": "dpo", "beta": 0.3, "label_smoothing": 0.2},
    "dpo, saturated": {"name": "dpo", "beta": 40.0},
    "simpo": {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5},
}


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_reference", [True, False])
def test_equals_the_objectives_in_float64(backend, case, with_reference):
    """Guards the formula, its gradient and every metric, with signed and zero upstreams per pair."""
    options = CASES[case]
    if options["name"] == "simpo" and with_reference:
        pytest.skip("SimPO has no reference")
    logp, offsets, reference = problem()
    reference = reference if with_reference else None
    upstream = torch.tensor([1.0, -2.0, 0.0, 0.5], device=DEVICE)

    def exact_loss(x):
        sums = segment_sum(x, offsets)
        if options["name"] == "simpo":
            return objectives.simpo(sums, offsets.diff(), beta=2.0, gamma_beta_ratio=0.5)
        keywords = {k: v for k, v in options.items() if k != "name"}
        return objectives.dpo(sums, None if reference is None else reference.double(), **keywords)

    x = logp.double().requires_grad_()
    losses, metrics = exact_loss(x)
    losses.backward(upstream.double())
    y = logp.clone().requires_grad_()
    got = preference_loss(y, offsets, reference, order="interleaved", backend=backend, **options)
    got.losses.backward(upstream)
    # A sum of n terms around 1.5 carries n * 2^-24 relative at worst; beta and the reference scale it. exp and log add
    # a few units in the last place of 1.
    scale = options["beta"] * max(1.0, float(segment_sum(logp, offsets).abs().max()))
    assert torch.allclose(got.losses.double(), losses, atol=2**-20 * scale, rtol=2**-20)
    assert torch.allclose(y.grad.double(), x.grad, atol=2**-20 * scale * options["beta"], rtol=2**-18)
    for name, value in {
        "rewards/chosen": got.chosen_rewards, "rewards/rejected": got.rejected_rewards,
        "logps/chosen": got.chosen_logps, "logps/rejected": got.rejected_logps,
    }.items():  # fmt: skip
        unit = 1.0 if name.startswith("rewards") else options["beta"]  # sums are not scaled by beta
        assert torch.allclose(value.double(), metrics[name], atol=2**-20 * scale / unit, rtol=2**-20)
        assert not value.requires_grad


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_cached_reference_gives_a_margin_of_exactly_zero(backend):
    """Guards DPO's first step: the sums are those of `segment_sum`, to the bit."""
    logp, offsets, _ = problem()
    reference = segment_sum(logp, offsets, backend=backend)
    got = preference_loss(logp, offsets, reference, order="interleaved", beta=0.1, backend=backend)
    assert torch.equal(got.chosen_rewards, torch.zeros_like(got.chosen_rewards))
    assert torch.equal(got.chosen_rewards, got.rejected_rewards)
    assert torch.allclose(got.losses, torch.full_like(got.losses, math.log(2)), rtol=2**-22)


def test_triton_segment_sum_and_its_backward():
    """Guards sums of empty, short and long segments, and that they repeat to the bit."""
    logp, offsets, _ = problem()
    x = logp.clone().requires_grad_()
    got = segment_sum(x, offsets, backend="triton")
    exact = segment_sum(logp.double(), offsets)
    assert torch.allclose(got.double(), exact, rtol=2**-20)  # at most 3 sums of 256 lanes, then a tree of 8
    assert torch.equal(got, segment_sum(logp, offsets, backend="triton"))
    got.backward(torch.arange(len(LENGTHS), device=DEVICE, dtype=torch.float32))
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    assert torch.equal(x.grad, torch.arange(len(LENGTHS), device=DEVICE).repeat_interleave(lengths).float())


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_strided_arguments(backend):
    """Guards columns of a table, and offsets that skip: they are read where they lie."""
    logp, offsets, reference = problem()
    wide = torch.stack([reference, reference + 1], 1)[:, 0]
    every_other = torch.stack([offsets, offsets], 1)[:, 1]
    got = preference_loss(logp, every_other, wide, order="interleaved", beta=0.1, backend=backend)
    expected = preference_loss(logp, offsets, reference, order="interleaved", beta=0.1, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(segment_sum(logp, every_other, backend=backend), segment_sum(logp, offsets, backend=backend))


@pytest.mark.skipif(DEVICE == "cuda", reason="looking would wait for the device")
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("bounds", [[0, 2, 9], [1, 2, 3], [0, 3, 2]], ids=str)
def test_offsets_out_of_range_on_a_cpu(bounds, backend):
    """Guards against reading what is not ours: the process would end without a word."""
    for call in (preference_loss, segment_sum):
        options = {"beta": 0.1, "order": "interleaved"} if call is preference_loss else {}
        with pytest.raises(ValueError, match="offsets must ascend from 0 to 3"):
            call(torch.zeros(3), torch.tensor(bounds), backend=backend, **options)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_compiles_in_one_graph(backend):
    """Guards torch.compile."""
    logp, offsets, reference = problem()
    got = []
    for fn in (preference_loss, torch.compile(preference_loss, fullgraph=True, backend="aot_eager")):
        x = logp.clone().requires_grad_()
        out = fn(x, offsets, reference, order="interleaved", beta=0.1, backend=backend)
        out.losses.sum().backward()
        got.append((*(o.detach() for o in out), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


def as_halves(branches):
    """Chosen and rejected in turn -> all chosen, then all rejected."""
    return [*branches[0::2], *branches[1::2]]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("case", ["dpo, smoothed", "simpo"])
@pytest.mark.parametrize("padded", [False, True])
def test_both_orders_are_the_same_pairs(backend, case, padded):
    """Guards TRL's order, all chosen and then all rejected, against being taken for pairs in turn: the same losses,
    metrics and gradients come of both, bit by bit, from one long row or from padded ones."""
    logp, offsets, reference = problem()
    options = CASES[case] | {"backend": backend}
    reference = reference if options["name"] == "dpo" else None
    upstream = torch.tensor([1.0, -2.0, 0.0, 0.5], device=DEVICE)
    x = logp.clone().requires_grad_()
    expected = preference_loss(x, offsets, reference, order="interleaved", **options)
    expected.losses.backward(upstream)

    branches = as_halves(logp.split(LENGTHS))
    reference = None if reference is None else torch.stack(as_halves(reference.unbind()))
    if padded:
        # scored from the third position on, other numbers everywhere else
        rows = [torch.cat([b.new_full((2,), -9.0), b, b.new_full((801 - len(b),), 7.0)]) for b in branches]
        y = torch.stack(rows).requires_grad_()
        mask = torch.zeros(y.shape, dtype=torch.int64, device=DEVICE)
        for row, branch in zip(mask, branches, strict=True):
            row[2 : 2 + len(branch)] = 1
        got = preference_loss_from_padded(y, mask, reference, order="halves", **options)
        got.losses.backward(upstream)
        assert not y.grad[mask == 0].any()
        gradient = y.grad[mask == 1]
    else:
        y = torch.cat(branches).requires_grad_()
        lengths = torch.tensor([0, *map(len, branches)], device=DEVICE)
        got = preference_loss(y, lengths.cumsum(0), reference, order="halves", **options)
        got.losses.backward(upstream)
        gradient = y.grad
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(gradient, torch.cat(as_halves(x.grad.split(LENGTHS))))
    with pytest.raises(TypeError, match="order"):  # nobody gets an order by default
        preference_loss(x, offsets, reference, beta=0.1)


@pytest.mark.parametrize(
    ("logps", "mask", "message"),
    [
        ((4, 6), (4, 7), "logps and mask must be [2n, L]"),
        ((3, 6), (3, 6), "even number of rows; got 3"),
    ],
)
def test_padded_rows_that_do_not_fit(logps, mask, message):
    """Guards TRL's mask, which is a position longer than its log-probs."""
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        preference_loss_from_padded(torch.zeros(logps), torch.ones(mask), order="halves", beta=0.1)


def test_no_pairs():
    """Guards a pack without rows."""
    got = preference_loss(torch.zeros(0), torch.zeros(1, dtype=torch.int64), order="interleaved", beta=0.1)
    assert got.losses.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "trl"}, "unknown order 'trl'; allowed: interleaved (a pack), halves (TRL)"),
        ({"name": "ipo"}, "unknown name 'ipo'; allowed: dpo, simpo"),
        ({"offsets": torch.zeros(4, dtype=torch.int64)}, "offsets must be [2n+1] int64; got [4]"),
        ({"logp": torch.zeros(3, dtype=torch.bfloat16)}, "logp must be [R] float32"),
        ({"reference": torch.zeros(3)}, "reference must be [2] torch.float32, one per branch; got [3]"),
        ({"name": "simpo", "label_smoothing": 0.1}, "SimPO takes neither"),
        ({"gamma_beta_ratio": 0.1}, "DPO takes no gamma_beta_ratio"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument and the shapes."""
    arguments = {
        "logp": torch.zeros(3), "offsets": torch.tensor([0, 1, 3]), "order": "interleaved", "beta": 0.1,
    } | change  # fmt: skip
    with pytest.raises(ValueError) as error:
        preference_loss(**arguments)
    assert message in str(error.value)
