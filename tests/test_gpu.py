"""What the promises rest on where the device is a GPU: `pytest -m gpu` is the gate before anything is measured.

The kernels' own files have tests marked gpu too, at the widths of real models. With `--device cpu` most of these run on
a CPU, at small sizes: that shows that the tests run.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import fill, tiny_config, write_tiny_model

import vdengine as vd
from vdengine.drift.panel_log import DriftLog
from vdengine.engine.parallel import expand_segments, ordered
from vdengine.engine.trainer import Trainer
from vdengine.kernels import embedding_rows, gather_rows, linear_cross_entropy, linear_logprob, preference_loss
from vdengine.kernels.linear_logprob import default_saved_bytes, linear_logprob_reference
from vdengine.kernels.rows import ROUND_ROWS
from vdengine.models.attention import attend, flash_attn_problem
from vdengine.models.export import save_model
from vdengine.models.transformer import Transformer
from vdengine.recipe import make_recipe
from vdengine.trees import Lengths

pytestmark = pytest.mark.gpu


def half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@pytest.fixture(autouse=True)
def _clean():
    yield
    torch.use_deterministic_algorithms(False)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def test_segments_grow(cuda):
    """Guards memory: the allocator's setting is made for a process where CUDA had not started."""
    import subprocess
    import sys

    code = (
        "import torch; from vdengine.engine.parallel import expand_segments; expand_segments(); "
        "x = torch.empty(1 << 26, device='cuda'); s = torch.cuda.memory_snapshot(); "
        "print(any(segment.get('is_expandable') for segment in s))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stdout + done.stderr
    expand_segments()  # CUDA runs here: nothing happens


# ------------------------------------------------------------------------------------------------- the head


def head(device: torch.device, n: int, vocab: int, width: int, seed: int = 0):
    """hidden, weight, targets, upstream; logits of standard deviation 3, as a trained model's."""
    g = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(vocab, width, generator=g, device=device) * (3 / width**0.5)
    hidden = torch.randn(n, width, generator=g, device=device)
    targets = torch.randint(vocab, (n,), generator=g, device=device)
    hidden[::2] += 1.2 * weight[targets[::2]]
    upstream = torch.randn(n, generator=g, device=device)
    upstream[::5] = 0.0
    dtype = half(device)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, upstream


def grads(function, hidden, weight, targets, upstream):
    out = function(hidden, weight, targets)
    return out.detach(), *torch.autograd.grad((out * upstream).sum(), (hidden, weight))


@pytest.mark.parametrize("saved_bytes", [0, None], ids=["recomputed", "kept"])
def test_the_head_against_float64(device, saved_bytes):
    """Guards the GEMMs that write fp32 into given memory, the row kernel at a real vocabulary, several chunks with a
    short last one: each result is at most twice as far from float64 as torch's formula in the same dtype."""
    arguments = head(device, *((4096 + 77, 151_936, 256) if device.type == "cuda" else (77, 1031, 64)))
    exact = grads(lambda h, w, t: linear_logprob_reference(h.double(), w.double(), t).logp, *arguments)
    plain = grads(lambda h, w, t: torch.log_softmax((h @ w.t()).float(), -1).gather(1, t[:, None])[:, 0], *arguments)
    ours = grads(lambda h, w, t: linear_logprob(h, w, t, saved_bytes=saved_bytes), *arguments)
    again = grads(lambda h, w, t: linear_logprob(h, w, t, saved_bytes=saved_bytes), *arguments)
    eps = (2**-23, torch.finfo(half(device)).eps, torch.finfo(half(device)).eps)
    for name, x, y, p, e, unit in zip(("logp", "d hidden", "d weight"), ours, again, plain, exact, eps, strict=True):
        assert torch.equal(x, y), f"{name}: two runs differ"
        far, allowed = ((z.double() - e).norm() / e.norm() for z in (x, p))
        assert far <= 2 * allowed + unit, f"{name}: {far:.2e}, the formula {allowed:.2e}"


@pytest.mark.parametrize("kind", ["fp16", "fp32 weight", "bias, scale and soft cap"])
def test_other_peoples_heads_against_float64(device, kind):
    """Guards the head of models of transformers: fp16, a weight of another dtype, and what stands after the GEMM."""
    hidden, weight, targets, upstream = head(
        device, *((1024, 151_936, 256) if device.type == "cuda" else (77, 1031, 64))
    )
    options = {}
    if kind == "fp16":
        hidden, weight = (x.detach().half().requires_grad_() for x in (hidden, weight))
    elif kind == "fp32 weight":
        weight = weight.detach().float().requires_grad_()
    else:
        options = {"bias": torch.randn(len(weight), device=device), "scale": 0.5, "softcap": 5.0}

    def formula(h, w, t, dtype=None):
        w = w.to(h.dtype if dtype is None else dtype)
        logits = (h.to(w.dtype) @ w.t()).to(torch.float32 if dtype is None else dtype)
        if options:
            cap = options["softcap"]
            logits = cap * torch.tanh(options["scale"] * (logits + options["bias"].to(logits.dtype)) / cap)
        return torch.log_softmax(logits, -1).gather(1, t[:, None])[:, 0]

    arguments = (hidden, weight, targets, upstream)
    exact = grads(lambda h, w, t: formula(h, w, t, torch.float64), *arguments)
    plain = grads(formula, *arguments)
    ours = grads(lambda h, w, t: linear_logprob(h, w, t, **options), *arguments)
    unit = torch.finfo(hidden.dtype).eps
    for name, x, p, e in zip(("logp", "d hidden", "d weight"), ours, plain, exact, strict=True):
        far, allowed = ((z.double() - e.double()).norm() / e.double().norm() for z in (x, p))
        assert far <= 2 * allowed + unit, f"{name}: {far:.2e}, the formula {allowed:.2e}"


def test_the_loss_heads_against_float64(device):
    """Guards cross-entropy and the fused preference loss at a real vocabulary."""
    n, vocab, width = (512, 151_936, 256) if device.type == "cuda" else (48, 1031, 64)
    hidden, weight, targets, _ = head(device, n, vocab, width)
    hidden, weight = hidden.detach(), weight.detach()
    exact = -linear_logprob_reference(hidden.double(), weight.double(), targets).logp.mean()
    assert abs(linear_cross_entropy(hidden, weight, targets).double() - exact) <= 1e-5 * exact
    offsets = torch.linspace(0, n, 9, device=device).long()
    logp = linear_logprob(hidden, weight, targets).detach()
    for name in ("dpo", "simpo"):
        reference = torch.full((8,), -300.0, device=device) if name == "dpo" else None
        one = preference_loss(logp, offsets, reference, order="interleaved", name=name, beta=0.01)
        wide = None if reference is None else reference.double()
        true = preference_loss(
            logp.double(), offsets, wide, order="interleaved", name=name, beta=0.01, backend="reference"
        )
        assert torch.allclose(one.losses.double(), true.losses, rtol=1e-5, atol=1e-6), name


def test_memory_of_the_head(cuda):
    """Guards the claim that logits exist a chunk at a time: the peak above the inputs is one chunk of fp32 logits and
    of P, what is kept, and the gradients."""
    n, vocab, width, chunk = 8192, 151_936, 1024, 4096
    hidden, weight, targets, upstream = head(cuda, n, vocab, width)
    for saved in (0, 1 << 31):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = grads(
            lambda h, w, t, s=saved: linear_logprob(h, w, t, saved_bytes=s), hidden, weight, targets, upstream
        )
        peak = torch.cuda.max_memory_allocated() - before
        kept = saved // (2 * vocab) // chunk * chunk
        logits, p = 4 * chunk * vocab, 2 * (kept + chunk) * vocab
        gradient = (4 + 2) * vocab * width  # accumulated in fp32, handed over in the weight's dtype
        rows = 8 * 4 * n * width  # hidden's gradient, P @ W, what is scaled
        assert peak <= logits + p + gradient + rows, f"{peak / 1e9:.2f} GB with {saved} bytes to keep"
        del found


def test_the_head_does_not_fragment_memory(cuda):
    """Guards long runs: packs of ever other sizes do not make the allocator keep a buffer of each."""
    n, vocab, width = 4096, 151_936, 256
    sizes = torch.randint(n // 2, n, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    held = []
    for size in [n, *sizes]:
        grads(linear_logprob, *head(cuda, size, vocab, width))
        held.append(torch.cuda.memory_reserved())
    step = 6 * ROUND_ROWS * vocab
    assert held[-1] <= held[0] + 4 * step, f"{held[0] / 1e9:.2f} GB became {held[-1] / 1e9:.2f} GB"


def test_what_is_kept_is_a_share_of_the_device(cuda):
    """Guards the default of `saved_bytes`: one number does not suit an L40S and a B200."""
    total = torch.cuda.get_device_properties(cuda).total_memory
    assert 0.04 * total < default_saved_bytes(cuda) < 0.06 * total


def test_sums_have_an_order(device):
    """Guards bits: the backwards of gathers that repeat rows, twice, and against float64."""
    g = torch.Generator(device).manual_seed(0)
    n, width = (20_000, 512) if device.type == "cuda" else (200, 16)
    index = torch.randint(n // 10, (n,), generator=g, device=device)
    order = torch.argsort(index, stable=True)
    offsets = torch.nn.functional.pad(torch.bincount(index, minlength=n // 10).cumsum(0), (1, 0))
    x = torch.randn(n // 10, width, generator=g, device=device).to(half(device)).requires_grad_()
    dy = torch.randn(n, width, generator=g, device=device).to(half(device))
    first, second = (torch.autograd.grad(gather_rows(x, index, order, offsets), x, dy)[0] for _ in range(2))
    exact = torch.zeros(x.shape, dtype=torch.float64, device=device).index_add_(0, index, dy.double())
    assert torch.equal(first, second)
    assert (first.double() - exact).norm() / exact.norm() <= torch.finfo(half(device)).eps
    unique, inverse = torch.unique(index, return_inverse=True)
    order = torch.argsort(inverse, stable=True)
    offsets = torch.nn.functional.pad(torch.bincount(inverse).cumsum(0), (1, 0))
    found = []
    for _ in range(2):
        weight = x.detach().clone().requires_grad_()
        embedding_rows(weight, index, unique, order, offsets, fp32_weight_grad=True).backward(dy)
        found.append(weight.grad)
    assert found[0].dtype == torch.float32 and torch.equal(*found)
    assert (found[0].double() - exact).norm() / exact.norm() <= 1e-5


# ------------------------------------------------------------------------------------------------ attention


def segments(device: torch.device, sizes: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype):
    q_heads, kv_heads, d = heads
    g = torch.Generator().manual_seed(0)
    n, m = (sum(s[i] for s in sizes) for i in (0, 1))
    q, k, v = (torch.randn(r, h, d, generator=g) for r, h in ((n, q_heads), (m, kv_heads), (m, kv_heads)))
    cu = [torch.tensor([0, *(s[i] for s in sizes)]).cumsum(0).int().to(device) for i in (0, 1)]
    tensors = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
    upstream = torch.randn(n, q_heads, d, generator=g).to(device, dtype)
    return tensors, (*cu, max(s[0] for s in sizes), max(s[1] for s in sizes)), upstream


def backends(device: torch.device) -> list[str]:
    if device.type != "cuda":
        return ["sdpa"]
    return ["varlen", "sdpa", *(["flash"] if flash_attn_problem() is None else [])]


def test_attention_backends_agree_at_real_shapes(device):
    """Guards head grouping without expanded keys, long segments and branches behind a prompt: output and gradients of
    each backend are as near to fp32's as SDPA's in the same dtype."""
    sizes = [(1500, 1500), (300, 1800), (1, 1501), (700, 700)] if device.type == "cuda" else [(15, 15), (3, 18)]
    for heads in ((16, 8, 128), (32, 8, 128), (9, 3, 64)):
        (q, k, v), shape, upstream = segments(device, sizes, heads, half(device))
        wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
        exact = attend(*wide, *shape, backend="sdpa")
        exact = [exact, *torch.autograd.grad(exact, wide, upstream.float())]
        errors = {}
        for backend in backends(device):
            out = attend(q, k, v, *shape, backend=backend)
            found = [out, *torch.autograd.grad(out, (q, k, v), upstream)]
            errors[backend] = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        for backend, found in errors.items():
            for mine, base in zip(found, errors["sdpa"], strict=True):
                assert mine <= 2 * base + torch.finfo(half(device)).eps, (backend, heads, errors)


def test_attentions_backward_has_an_order(device):
    """Guards resume and the two streams where flash-attn is not installed: torch's own attention adds its gradients in
    a fixed order only while deterministic algorithms are on and no mere warning. Long segments: short ones have a
    single block of keys, and nothing to add in another order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    sizes = [(3000, 3000), (500, 3500), (500, 3500)] if device.type == "cuda" else [(30, 30), (5, 35)]
    for dtype in {half(device), torch.float32}:
        if dtype == torch.float32 and device.type == "cuda":
            sizes = [(700, 700), (100, 800)]
        for backend in backends(device) if dtype == half(device) else ["sdpa"]:
            (q, k, v), shape, upstream = segments(device, sizes, (16, 8, 128), dtype)
            found = []
            for _ in range(4):
                out = attend(q, k, v, *shape, backend=backend)
                with ordered(True):
                    found.append(torch.autograd.grad(out, (q, k, v), upstream))
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            for other in found[1:]:
                assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)), (backend, dtype)


def test_segment_lengths_are_known_to_the_host(cuda):
    """Guards fp32 on CUDA: attention waits for the device in no layer, where the lengths come along."""
    sizes = [(40, 40), (3, 43)]
    (q, k, v), shape, _ = segments(cuda, sizes, (4, 2, 32), torch.float32)
    lengths = Lengths.of(*shape[:2])
    expected = attend(q, k, v, *shape)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = attend(q, k, v, *shape, lengths=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


# --------------------------------------------------------------------------------------------- whole steps


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A model whose attention has several blocks of keys: rows of a thousand bytes, heads of 64."""
    folder = write_tiny_model(tmp_path_factory.mktemp("wide") / "tiny", "qwen3")
    config = dataclasses.replace(
        tiny_config("qwen3", vd.load_tokenizer(str(folder)).vocab_size), hidden_size=128, intermediate_size=256,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = fill(Transformer(config))
    for name, p in model.named_parameters():
        p.data.mul_(1.0 if "norm" in name else 0.3)
    save_model(model, vd.load_tokenizer(str(folder)), folder.parent / "model")
    g = torch.Generator().manual_seed(0)

    def text(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (1,), generator=g))
        return "".join(chr(97 + i) for i in torch.randint(0, 26, (n,), generator=g).tolist())

    rows = [{"prompt": text(300, 900), "chosen": text(20, 400), "rejected": text(20, 400)} for _ in range(24)]
    (folder.parent / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder.parent


def recipe(wide: Path, folder: Path, **sections):
    tables = {
        "run": {"folder": str(folder), "steps": 3, "seed": 3},
        "model": {"source": str(wide / "model")},
        "data": {"train": [str(wide / "pairs.jsonl")], "cache": str(folder.parent / "cache"), "max_tokens": 2048},
        "objective": {"name": "dpo", "beta": 0.1},
        "batch": {"examples": 4, "tokens": 4096},
        "optimizer": {"lr": 1e-3, "warmup": 0.0},
        "probes": {"panel": "values-mini", "every": 1, "controls": False},
        "checkpoint": {"every": 0, "export": False},
    }
    for section, changes in sections.items():
        tables[section] = tables.get(section, {}) | changes
    if sections.get("probes", {}).get("every") == 0:
        tables["probes"] = {"every": 0}
    return make_recipe(tables)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor().detach().clone() for name, p in trainer.model.named_parameters()}


def trained(r, stop_at: int | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses after all steps; `stop_at`: saved there, thrown away, and taken up again."""
    trainer = Trainer(r)
    losses = []
    try:
        while trainer.step_count < trainer.total_steps:
            losses.append(trainer.step()["loss"])
            if trainer.step_count == stop_at:
                trainer.save()
                trainer.step()  # lost
                trainer.close()
                trainer, stop_at = Trainer(r), None
        trainer.flush()
        return weights(trainer), losses
    finally:
        trainer.close()


def assert_same(a, b) -> None:
    assert a[1] == b[1], f"losses {a[1]} and {b[1]}"
    different = [name for name in a[0] if not torch.equal(a[0][name], b[0][name])]
    assert not different, different


_ONCE: list[tuple[dict[str, torch.Tensor], list[float]]] = []


@pytest.fixture
def once(wide, tmp_path_factory, device):
    """A run without probes, that others are compared with; trained once."""
    if not _ONCE:
        _ONCE.append(trained(recipe(wide, tmp_path_factory.mktemp("once") / "run", probes={"every": 0})))
    return _ONCE[0]


def test_a_run_twice(wide, tmp_path, once):
    """Guards "same recipe, data and world size, same bits": three steps, twice, whatever attention is there."""
    assert_same(once, trained(recipe(wide, tmp_path / "twice", probes={"every": 0})))


def test_probes_on_are_probes_off(wide, tmp_path, once):
    """Guards the second stream: training has the same bits with the panel riding in every forward."""
    assert_same(once, trained(recipe(wide, tmp_path / "probes")))
    assert len(DriftLog.open(tmp_path / "probes").steps) == 3


def test_resume_has_the_same_bits(wide, tmp_path, once):
    """Guards checkpoints: stopped after two steps and taken up again."""
    assert_same(once, trained(recipe(wide, tmp_path / "resumed", probes={"every": 0}), stop_at=2))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_steps_do_not_wait_for_the_device(wide, tmp_path, cuda, dtype):
    """Guards the host's lead with every step logged and probed: nothing in a step reads from the device, its metrics
    are there when they are looked at, and the files are whole at a checkpoint."""
    trainer = Trainer(recipe(wide, tmp_path / "run", run={"steps": 5}, model={"dtype": dtype}))
    rows = [trainer.step(), trainer.step()]  # the first compiles, and checks its known answer
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows += [trainer.step(), trainer.step()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [1, 2, 3]  # a step late
    rows.append(trainer.step())
    trainer.save()
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [dict(row) for row in rows] == written
    assert all(0 < row["step_seconds"] < 60 and row["probe_seconds"] > 0 for row in rows)
    trainer.close()


def test_gradients_stay_in_fp32(wide, tmp_path, device):
    """Guards the head's and the embedding's fp32 accumulation through autograd and FSDP2 at world size 1: the gradient
    that reaches the master weights is fp32, and not bf16 numbers in fp32's clothes."""
    trainer = Trainer(recipe(wide, tmp_path / "run", probes={"every": 0}))
    (mine, *_) = trainer.loader.batch(0, 1, 0, 4096).packs
    pack = mine.to(device)
    trainer.model(pack).logp.sum().backward()
    grad = trainer.model.model.embed_tokens.weight.grad.to_local()
    assert grad.dtype == torch.float32
    rounded = grad.bfloat16().float()
    assert (rounded != grad).float().mean() > 0.5
    trainer.close()
