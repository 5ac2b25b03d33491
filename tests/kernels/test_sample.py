"""`sample` against its definition, written out in float64 one token after another, on every backend that runs here.

fp32 moves a probability by some 1e-7: noise is kept 2e-6 away from where the token changes, top_p from where the kept
set does, but for ties, which are exact. Blocks of 16 make several of a few dozen tokens: the interpreter takes a tenth
of a second for a row and filter.
"""

import importlib
import math

import pytest
import torch
from helpers.kernels import DEVICE

from vdengine.kernels.sample import sample, sample_reference
from vdengine.kernels.table import Launch, trying

BACKENDS = ["triton", "reference"]
EPS = 2.0**-23
BELOW_1 = 1 - 2.0**-53
FILTERS = [{}, {"top_k": 9}, {"top_p": 0.8}, {"temperature": 1.3, "top_k": 20, "top_p": 0.7}]


def draw(rows, noise, block=16, **options):
    """`sample` on the device, from rows and noise of any kind; tokens as a list."""
    z = torch.as_tensor(rows, dtype=torch.float32, device=DEVICE)
    u = torch.as_tensor(noise, dtype=torch.float64, device=DEVICE)
    with trying("sample", Launch(block, 1)):
        tokens, logp = sample(z.expand(len(u), -1) if z.ndim == 1 else z, u, **options)
    assert tokens.dtype == torch.int64 and logp.dtype == torch.float32 and tokens.shape == logp.shape == u.shape
    return tokens.tolist(), logp


def definition(z, temperature=1.0, top_k=0, top_p=1.0):
    """Of one row: the kept ids with the share of each, {id: share} in the order of the ids; the log-probs of all; and
    how far, in shares, top_p is from keeping another number of tokens."""
    high = max(z)
    w = [(high - x) / (temperature or 1.0) for x in z]
    p = [math.exp(-x) for x in w]
    logp = [-x - math.log(math.fsum(p)) for x in w]
    order = sorted(range(len(z)), key=lambda i: (w[i], i))
    order = order[:1] if temperature == 0 else order[: top_k or len(z)]
    whole, margin = math.fsum(p[i] for i in order), 1.0
    if top_p < 1 and temperature != 0:
        count, so_far = 0, 0.0
        while so_far < top_p * whole:
            so_far += p[order[count]]
            count += 1
            margin = min(margin, abs(so_far / whole - top_p))
        order = order[:count]
    whole = math.fsum(p[i] for i in order)
    return {i: p[i] / whole for i in sorted(order) if p[i] > 0}, logp, margin


def inverse(shares, noise):
    """The id whose part of [0, 1) noise is in, and how far that is from another's."""
    end, found, margin = 0.0, None, 1.0
    for i, share in shares.items():
        end += share
        margin = min(margin, abs(end - noise)) if end < 1 - 1e-12 else margin
        if found is None and noise < end:
            found = i
    return found, margin


def rows_of(kind, v=45):
    g = torch.Generator().manual_seed(7)
    z = torch.randn(v, generator=g) * 2
    if kind == "ties":  # a quarter apart: some six of each
        z = torch.randint(-8, 1, (v,), generator=g) / 4
    if kind == "holes":  # no weight at the ends, in a whole block, and in the last but for one
        z[:3] = z[16:32] = z[36:39] = z[42:] = -torch.inf
        z[12:16] = -300.0  # and p that is 0 only in fp32
        z -= 250  # so would all be, if 0 counted as a logit
    return z


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["plain", "ties", "holes"])
@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.3}, {"temperature": 0}, {"top_k": 45}], ids=str)
def test_tokens_and_log_probs_by_the_definition(backend, kind, options):
    """Guards the kept set, the inverse, log-probs of the whole vocabulary, and the ends of blocks: on both sides of an
    inner boundary and at both ends, one token kept too many or too few moves some noise to another token."""
    z = rows_of(kind)
    shares, logp, margin = definition(z.tolist(), **options)
    assert margin > 2e-6 or kind == "ties"
    inner = math.fsum(list(shares.values())[: max(1, len(shares) // 2)])
    near = max(5e-6, min(shares.values()) / 20)
    noise = [near, inner - near, min(inner + near, BELOW_1), 1 - near]
    expected = [inverse(shares, u) for u in noise]
    sure = [a for a in range(4) if expected[a][1] > 2e-6]
    assert len(sure) >= 2
    tokens, got = draw(z, [noise[a] for a in sure], backend=backend, **options)
    assert tokens == [expected[a][0] for a in sure]
    exact = torch.tensor([logp[i] for i in tokens], dtype=torch.float64)
    assert (got.cpu().double() - exact).abs().max() <= 4 * EPS * (1 + exact.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equals_the_lower_ids_are_kept(backend):
    """Guards ties: exactly k of them, whatever block the last is in; and a top_p of equals that is exact, as it would
    not be in fp32, where 0.1 is more than a tenth."""

    def kept(z, count, **options):
        """Whether the ids kept are the first `count` of those with the most: by the first, the last and one between."""
        ids = [i for i, x in enumerate(z) if x == max(z)][:count]
        which = sorted({0, count // 2, count - 1})
        tokens, _ = draw(z, [(a + 0.5) / count for a in which], backend=backend, **options)
        assert tokens == [ids[a] for a in which]

    flat, some = [1.5] * 40, [0.0, 2.0, 2.0, -1.0] * 12
    kept(flat, 40)
    kept(flat, 16, top_k=16)  # a block
    kept(flat, 17, top_k=17)
    kept(some, 19, top_k=19)
    kept([0.0, -0.0, -1.0] * 12, 20, top_k=20)  # of which either may be the maximum
    kept([-0.0, 0.0, -1.0] * 12, 20, top_k=20)
    kept(flat, 4, top_p=0.1)
    kept(flat[:10], 1, top_p=0.1)
    kept(flat, 5, top_p=0.1 + 2**-50)
    kept(flat, 40, top_p=BELOW_1)
    kept(flat, 1, top_p=1e-300)
    kept(some, 3, top_k=6, top_p=0.5)
    kept(some, 1, top_k=1, top_p=0.5)
    kept(some, 1, top_k=1, temperature=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_top_k_comes_first(backend):
    """Guards the order of the filters: top_p is of what top_k has left, and the temperature is before both."""
    z = [1.0, 3.0, 3.0, 3.0, 0.0]  # 0.04, 0.31, 0.31, 0.31, 0.02
    assert draw(z, [0.01, 0.99], top_p=0.6, backend=backend)[0] == [1, 2]
    assert draw(z, [0.01, 0.99], top_k=3, top_p=0.7, backend=backend)[0] == [1, 3]
    assert draw(z, [0.01, 0.99], top_k=2, top_p=0.6, backend=backend)[0] == [1, 2]
    assert draw(z, [0.01, 0.99], top_k=2, top_p=0.4, backend=backend)[0] == [1, 1]
    assert draw(z, [0.001, 0.999], temperature=1e6, top_p=0.9, backend=backend)[0] == [0, 4]  # all alike: all kept
    assert draw(z, [0.001, 0.999], temperature=0.1, top_p=0.9999, backend=backend)[0] == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [*FILTERS, {"top_p": BELOW_1}, {"top_k": 39}], ids=str)
def test_no_token_without_probability(backend, options):
    """Guards noise at the ends of [0, 1): not a filtered token, nor one whose p is 0, first or last, at any noise; and
    filters that ask for more tokens than have any."""
    z = torch.full((40,), -torch.inf)
    for weights in ({20: 1.0}, {17: 0.0, 18: 60.0, 33: 60.0}):  # alone; and a token whose share fp64 does not see
        for i, x in weights.items():
            z[i] = x
        tokens, _ = draw(z, [0.0, BELOW_1], backend=backend, **options)
        likely = [i for i, x in weights.items() if x == max(weights.values())]
        assert tokens[1] == likely[-1] and (tokens[0] == likely[0] or tokens[0] in weights)
        z[:] = -1e4
    z = torch.zeros(40)
    z[0] = z[39] = -200.0  # 0 in fp32
    assert draw(z, [0.0, BELOW_1], backend=backend)[0] == [1, 38]


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_at_the_end_when_sums_round(backend):
    """Guards the last block: sums of the same terms in two orders, of which the one that noise is a part of is larger
    than the one it is looked for in (so it is for these seeds), must not lead past the last token that has weight."""
    for seed in (0, 1, 2, 14):
        z = torch.full((80,), -torch.inf)  # the third block ends in tokens without weight, and two more have no other
        z[:44] = torch.randn(44, generator=torch.Generator().manual_seed(seed)) * 8
        (token,), _ = draw(z, [BELOW_1], backend=backend)
        p = z.double().softmax(0)
        assert p[token] > 0 and p[token + 1 :].sum() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbouring_floats(backend):
    """Guards the last digit of the search: twenty logits that differ in their last two bits, in every number kept."""
    z = torch.tensor([0.0] + [-1.0 - (i % 5) * EPS for i in range(20)])
    for k in (2, 5, 6, 9, 10, 13, 14, 17, 18):
        shares, _, _ = definition(z.tolist(), top_k=k)
        noise = [0.6, 1 - 1e-4] if k < 10 else [1 - 1e-4]
        assert draw(z, noise, top_k=k, backend=backend)[0] == [inverse(shares, u)[0] for u in noise]


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_in_fp32_is_equally_likely(backend):
    """Guards the tie of two probabilities that differ by less than fp32 has, after a top_k that tells them apart: the
    tokens that it has dropped do not count among the equals."""
    z = torch.arange(40) * 1e-4
    assert draw(z, [0.1, 0.5, 0.9], temperature=1e6, top_k=6, top_p=0.5, backend=backend)[0] == [34, 35, 36]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0}], ids=str)
def test_rows_without_probabilities(backend, options):
    """Guards a model that has diverged: some token of the vocabulary, NaN for log-prob, and other rows untouched."""
    z = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
    shares, logp, _ = definition(z[4].tolist(), **options)
    z[0, 5], z[1], z[2, 30], z[3] = torch.nan, torch.nan, torch.inf, -torch.inf
    tokens, got = draw(z, [0.4, 0.4, 0.9, 0.9, 0.4], backend=backend, **options)
    assert all(0 <= t < 37 for t in tokens) and got[:4].isnan().all()
    assert tokens[4] == inverse(shares, 0.4)[0] and abs(got[4].item() - logp[tokens[4]]) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("v", [1, 2, 13, 16, 17])
def test_small_vocabularies(backend, v):
    """Guards rows shorter than a block, of a block, and of a token more; one token is all there is."""
    z = torch.randn(v, generator=torch.Generator().manual_seed(v))
    for options in ({}, {"temperature": 0}, {"top_k": v - 1 or 5, "top_p": 0.9}):
        shares, logp, _ = definition(z.tolist(), **options)
        tokens, got = draw(z, [0.1, 0.77], backend=backend, **options)
        assert tokens == [inverse(shares, u)[0] for u in (0.1, 0.77)]
        assert abs(got[0].item() - logp[tokens[0]]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 30.0, 1e6])
def test_temperatures_at_their_ends(backend, temperature):
    """Guards scaled logits that are -inf, or all alike: the likeliest token alone, or every one."""
    z = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 4
    shares, logp, _ = definition(z.tolist(), temperature)
    for options in ({}, {"top_k": 49, "top_p": 0.999}):
        tokens, got = draw(z, [0.5, 0.25], temperature=temperature, backend=backend, **options)
        if temperature <= 1e-3:
            assert set(tokens) == {int(z.argmax())} and not got.any()
        else:
            kept, _, _ = definition(z.tolist(), temperature, **options)
            assert tokens == [inverse(kept, u)[0] for u in (0.5, 0.25)]
            assert abs(got[0].item() - logp[tokens[0]]) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_spread_as_the_distribution(backend):
    """Guards the distribution as a whole: of n equally spaced numbers each token gets its share of n, give or take the
    one at each end."""
    z = torch.randn(13, generator=torch.Generator().manual_seed(3)) * 1.5
    for n, options in ((100, {}), (400, {"temperature": 0.7, "top_k": 6, "top_p": 0.9})):
        if n > 100 and backend == "triton" and DEVICE == "cpu":
            continue  # a minute
        shares, _, _ = definition(z.tolist(), **options)
        tokens, _ = draw(z, (torch.arange(n) + 0.5) / n, backend=backend, **options)
        for i in range(13):
            assert abs(tokens.count(i) - n * shares.get(i, 0.0)) <= 1
        assert tokens == sorted(tokens)


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="fp32 exp is another on the device")
@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.95}, {"top_k": 100, "top_p": 0.5}], ids=str)
def test_kernel_equals_reference(options):
    """Guards longer rows, with a last block that is not full: the same tokens on random logits and random noise."""
    g = torch.Generator().manual_seed(11)
    z, u = torch.randn(4, 331, generator=g) * 2, torch.rand(4, generator=g, dtype=torch.float64)
    z[2:] = (z[2:] * 4).round() / 4  # ties
    tokens, logp = draw(z, u, block=64, backend="triton", **options)
    expected = sample_reference(z, u, **options)
    assert tokens == expected.tokens.tolist()
    torch.testing.assert_close(logp, expected.logp, rtol=2 * EPS, atol=2 * EPS)


def test_reference_on_long_rows(monkeypatch):
    """Guards the reference's blocks, parts of rows and partial sort: several of each, against running sums in fp64."""
    monkeypatch.setattr(importlib.import_module("vdengine.kernels.sample"), "AT_ONCE", 100_000)
    g = torch.Generator().manual_seed(5)
    z, u = torch.randn(12, 30_000, generator=g) * 2, torch.rand(12, generator=g, dtype=torch.float64)
    z[6:] *= 0.01  # flat: top_p needs more than the first 1024
    z[:, -2000:] = -torch.inf
    u[0], u[1] = 0.0, BELOW_1
    p = (z - z.amax(1, keepdim=True)).exp().double()
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 3000, "top_p": 0.9}):
        q = p.clone()
        if "top_k" in options:
            q[z < z.topk(options["top_k"]).values[:, -1:]] = 0
        if "top_p" in options:
            ordered, index = q.sort(dim=1, descending=True, stable=True)
            before = ordered.cumsum(1) - ordered
            q.scatter_(1, index, ordered * (before < options["top_p"] * q.sum(1, keepdim=True)))
        ends = q.cumsum(1)
        expected = torch.searchsorted(ends, u[:, None] * ends[:, -1:], right=True)[:, 0]
        got = sample(z, u, backend="reference", **options)
        assert torch.equal(got.tokens, expected)
        exact = z.double().log_softmax(1).gather(1, expected[:, None])[:, 0]
        assert (got.logp - exact).abs().max() <= 4 * EPS * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_has_the_same_bits_anywhere(backend):
    """Guards samples: not the rows beside it, how they lie in memory, nor a second run may change a row; and logits
    are only read."""
    g = torch.Generator().manual_seed(2)
    z = torch.randn(3, 45, generator=g).to(DEVICE)
    u = torch.rand(3, generator=g, dtype=torch.float64).to(DEVICE)
    before, options = z.clone(), {"top_p": 0.9, "backend": backend}
    tokens, logp = draw(z, u, **options)
    assert torch.equal(z, before)
    wide = torch.full((3, 2, 64), torch.nan, device=DEVICE)
    wide[:, 1, 7:52] = z
    for view in (z, z.t().contiguous().t(), wide[:, 1, 7:52]):
        got = draw(view, u, **options)
        assert got[0] == tokens and torch.equal(got[1], logp)
    one = draw(z[1:2], torch.stack((u, u), 1)[1:2, 0], **options)
    assert one[0] == tokens[1:2] and torch.equal(one[1], logp[1:2])
    assert draw(z[:0], u[:0], **options)[0] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_is_one_graph_and_equal(backend):
    """Guards torch.compile: no graph break."""
    z, u = torch.randn(3, 40, device=DEVICE), torch.rand(3, dtype=torch.float64, device=DEVICE)
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    got, expected = compiled(z, u, temperature=0.8, backend=backend), sample(z, u, temperature=0.8, backend=backend)
    assert torch.equal(got.tokens, expected.tokens) and torch.equal(got.logp, expected.logp)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("v", [50257, 151936])
@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0}], ids=str)
def test_real_vocabularies_in_a_graph(v, options):
    """Guards launches that the interpreter cannot try, capture (nothing may wait for the host), and rows beyond 2^31
    elements; against the reference, up to noise that is as near to a boundary as two exps are to each other."""
    g = torch.Generator(DEVICE).manual_seed(0)
    n = 2**31 // v + 64
    all_rows, all_noise = torch.zeros(n, v, device=DEVICE), torch.zeros(n, dtype=torch.float64, device=DEVICE)
    z, u = all_rows[-64:].normal_(std=3, generator=g), all_noise[-64:].uniform_(generator=g)
    z[32:] = (z[32:] * 8).round() / 8  # ties
    expected = sample(z, u, backend="triton", **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = sample(z, u, backend="triton", **options)
    graph.replay()
    assert torch.equal(got.tokens, expected.tokens) and torch.equal(got.logp, expected.logp)
    last = sample(all_rows, all_noise, backend="triton", **options)
    assert torch.equal(last.tokens[-64:], expected.tokens) and torch.equal(last.logp[-64:], expected.logp)
    reference = sample(z, u, backend="reference", **options)
    same = got.tokens == reference.tokens
    assert same.sum() >= 62
    torch.testing.assert_close(got.logp[same], reference.logp[same], rtol=4 * EPS, atol=4 * EPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "logits must be [n, V] float32, V > 0; got [3] torch.float32"),
        ({"logits": torch.zeros(3, 0)}, "logits must be [n, V] float32, V > 0; got [3, 0] torch.float32"),
        ({"logits": torch.zeros(3, 8).bfloat16()}, "logits must be [n, V] float32, V > 0; got [3, 8] torch.bfloat16"),
        ({"noise": torch.zeros(2).double()}, "noise must be [n] float64, n = 3; got [2] torch.float64"),
        ({"noise": torch.zeros(3)}, "noise must be [n] float64, n = 3; got [3] torch.float32"),
        ({"noise": torch.zeros(3, device="meta").double()}, "noise is on meta, logits on cpu"),
        ({"temperature": -1.0}, "temperature must be 0 (greedy) or in [1e-6, 1e6]; got -1.0"),
        ({"temperature": math.nan}, "temperature must be 0 (greedy) or in [1e-6, 1e6]; got nan"),
        ({"temperature": 1e-7}, "temperature must be 0 (greedy) or in [1e-6, 1e6]; got 1e-07"),
        ({"top_k": -1}, "top_k must be >= 0 (0: all); got -1"),
        ({"top_p": 0.0}, "top_p must be in (0, 1]; got 0.0"),
        ({"top_p": 1.1}, "top_p must be in (0, 1]; got 1.1"),
        ({"backend": "native"}, "unknown backend 'native'; allowed: auto, triton, reference"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    """Guards embedders: a wrong call names the argument and what is allowed, in one line."""
    with pytest.raises(ValueError) as error:
        sample(**({"logits": torch.zeros(3, 8), "noise": torch.zeros(3).double()} | change))
    assert str(error.value) == f"sample: {message}"
