"""Attention on every backend that runs here, against float64."""

import sys

import pytest
import torch
from helpers.runs import recipe_of

import vdengine as vd
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.models.attention import _has_flash_attn, attend
from vdengine.trees import Lengths


def segments(device="cpu", dtype=torch.float32):
    """q, k, v and offsets of five segments, bottom-right causal: some with as many queries as keys, some fewer."""
    g = torch.Generator().manual_seed(0)
    sizes = [(37, 37), (5, 42), (1, 38), (64, 64), (130, 200)]
    n, m = (sum(s[i] for s in sizes) for i in (0, 1))
    q = torch.randn(n, 6, 32, generator=g)
    k, v = torch.randn(m, 2, 32, generator=g), torch.randn(m, 2, 32, generator=g)
    cu = [torch.tensor([0, *(s[i] for s in sizes)]).cumsum(0).to(torch.int32) for i in (0, 1)]
    tensors = [x.to(device=device, dtype=dtype).requires_grad_() for x in (q, k, v)]
    grad = torch.randn(n, 6, 32, generator=g).to(device)
    return tensors, [c.to(device) for c in cu], max(s[0] for s in sizes), max(s[1] for s in sizes), grad


def attend64(q, k, v, cu_q, cu_k, scale=None, window=None):
    """The definition, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = []
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        n, m = int(b - a), int(d - c)
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * (scale or q.shape[-1] ** -0.5)
        distance = torch.arange(n)[:, None] + (m - n) - torch.arange(m)[None, :]
        hidden = (distance < 0) | (distance >= (window or m))
        scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    return torch.cat(out)


def attention_errors(backend, device, dtype, **options):
    """Largest error of the output and of the three gradients, against float64."""
    (q, k, v), (cu_q, cu_k), max_q, max_k, grad = segments(device, dtype)
    exact = attend64(q, k, v, cu_q, cu_k, **options)
    expected = torch.autograd.grad((exact * grad).sum(), (q, k, v))
    out = attend(q, k, v, cu_q, cu_k, max_q, max_k, backend=backend, **options)
    assert out.dtype == dtype
    got = torch.autograd.grad((out.float() * grad).sum(), (q, k, v))
    pairs = [(out, exact), *zip(got, expected, strict=True)]
    return [((a.double() - b.double()).abs().max() / b.abs().max()).item() for a, b in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_against_float64(dtype):
    """Guards against a mask that is not bottom-right aligned where a branch has fewer queries than keys."""
    # softmax weights, products and sums are each rounded once or twice: 8 units of the dtype
    assert max(attention_errors("sdpa", "cpu", dtype)) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [2, 9, 40, 130, 500])  # of 1 key the scores have no gradient
def test_window_against_float64(dtype, window):
    """Guards against a window that is off by one key, or not bottom-right aligned where a branch follows its prompt;
    and a scale that is given."""
    assert max(attention_errors("sdpa", "cpu", dtype, window=window, scale=0.2)) <= 8 * torch.finfo(dtype).eps


def test_a_window_longer_than_all_segments_changes_nothing():
    """Guards models whose window no text reaches: the same bits as without."""
    (q, k, v), (cu_q, cu_k), max_q, max_k, _ = segments()
    expected = attend(q, k, v, cu_q, cu_k, max_q, max_k)
    assert torch.equal(attend(q, k, v, cu_q, cu_k, max_q, max_k, window=200), expected)


@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_what_the_kernels_are_asked_for(backend, monkeypatch):
    """Guards the calls of kernels that only a GPU runs: a window of w keys is w - 1 before the query's own and none
    after it. An installed version without windows is refused in one line, and never attends to everything."""
    from types import SimpleNamespace

    import torch.nn.attention.varlen as varlen

    from vdengine.models import attention

    seen = {}

    def new(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale=None, scale=None, causal=False, deterministic=False,
            window_size=(-1, -1)):  # fmt: skip
        seen.update(window=window_size, scale=scale or softmax_scale)
        return q

    def old(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale=None, scale=None, causal=False, deterministic=False,
            is_causal=False):  # fmt: skip
        raise AssertionError("called without a window")

    (q, k, v), (cu_q, cu_k), max_q, max_k, _ = segments()
    monkeypatch.setattr(attention, "flash_attn_problem", lambda: None)
    attention._varlen_features.cache_clear()
    try:
        for function in (new, old):
            attention._varlen_features.cache_clear()
            monkeypatch.setattr(varlen, "varlen_attn", function)
            monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=function))
            arguments = (q, k, v, cu_q, cu_k, max_q, max_k)
            if function is new:
                attend(*arguments, window=9, scale=0.2, backend=backend)
                assert seen == {"window": (8, 0), "scale": 0.2}
            else:
                with pytest.raises(ValueError, match=f"^attend: backend '{backend}' has no sliding window[^\n]*$"):
                    attend(*arguments, window=9, backend=backend)
    finally:
        attention._varlen_features.cache_clear()


def test_a_pack_knows_its_segments_on_the_host():
    """Guards fp32 on CUDA, where attention would read the offsets from the device in every layer."""
    pack = vd.pack([vd.Tree([1, 2, 3], [[4], [5, 6]]), vd.Tree([1], [[2, 3]])])
    assert (pack.lengths.q, pack.lengths.k) == (pack.cu_seqlens_q.diff().tolist(), pack.cu_seqlens_k.diff().tolist())
    assert pack.to("cpu").lengths is pack.lengths
    assert pack.num_attention_pairs == 6 + (3 + 1) + (2 * 3 + 3) + 6
    (q, k, v), (cu_q, cu_k), max_q, max_k, _ = segments()
    lengths = Lengths.of(cu_q, cu_k)
    wrong = torch.zeros_like(cu_q), torch.zeros_like(cu_k)  # not looked at
    expected = attend(q, k, v, cu_q, cu_k, max_q, max_k)
    assert torch.equal(attend(q, k, v, *wrong, max_q, max_k, lengths=lengths), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_attention_backends_agree(backend):
    """Guards against a backend with another mask, scale or head grouping; on a GPU."""
    if backend == "flash" and not _has_flash_attn():
        pytest.skip("flash-attn is not installed")
    base = attention_errors("sdpa", "cuda", torch.bfloat16)
    for error, allowed in zip(attention_errors(backend, "cuda", torch.bfloat16), base, strict=True):
        assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps
    options = {"window": 40, "scale": 0.2}
    base = attention_errors("sdpa", "cuda", torch.bfloat16, **options)
    for error, allowed in zip(attention_errors(backend, "cuda", torch.bfloat16, **options), base, strict=True):
        assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps


def test_a_broken_flash_attn_is_one_line(tmp_path, tiny_models, data, monkeypatch):
    """Guards a build for another torch: it is found, and its import fails. Asked for by name it is an error before
    anything runs; where torch chooses, torch's own attention runs and the reason is said."""
    from vdengine.models import attention

    (tmp_path / "broken" / "flash_attn").mkdir(parents=True)
    (tmp_path / "broken" / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    for function in (attention.flash_attn_problem, attention._has_flash_attn):
        function.cache_clear()
        monkeypatch.setattr(attention, function.__name__, function)
    try:
        recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
        recipe.kernels.attention = "flash"
        message = "flash-attn is installed but cannot be imported (ImportError: undefined symbol: _ZN3c10)"
        with pytest.raises(InputError) as error:
            Trainer(recipe)
        assert str(error.value) == f"kernels.attention = 'flash': {message}"
        with pytest.raises(ValueError, match="undefined symbol"):
            attention.attend(*[torch.zeros(1, 1, 8)] * 3, *[torch.tensor([0, 1]).int()] * 2, 1, 1, backend="flash")
        with pytest.warns(UserWarning, match="undefined symbol.*torch's varlen attention is used instead"):
            assert not attention._has_flash_attn()
    finally:
        sys.modules.pop("flash_attn", None)
        for function in (attention.flash_attn_problem, attention._has_flash_attn):
            function.cache_clear()
