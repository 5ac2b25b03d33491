"""Sampling against transformers, against the training forward, against exact probabilities, and against itself.

One file, above 500 lines, as its module is one: each of these asks the same call.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.launch import torchrun
from helpers.sampling import PROMPTS, SHORT, ids
from helpers.tiny import fill, tiny_config

import vdengine as vd
from vdengine.errors import InputError
from vdengine.kernels.sample import sample
from vdengine.models import generate as module
from vdengine.models.generate import BLOCK, Completion, Sampling, gather_model, generate
from vdengine.models.transformer import Kernels, Transformer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 2.0**-23
GREEDY = Sampling(max_tokens=24, temperature=0)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request) -> Transformer:
    return fill(Transformer(tiny_config(request.param))).to(DEVICE)


@pytest.fixture(scope="module")
def small() -> Transformer:
    """13 tokens: its distributions can be counted out."""
    return fill(Transformer(tiny_config("qwen3", vocab_size=13))).to(DEVICE)


def tokens_of(results: list[list[Completion]]) -> list[list[list[int]]]:
    return [[c.tokens for c in each] for each in results]


def assert_same(got: list[list[Completion]], expected: list[list[Completion]]) -> None:
    """The same tokens, and log-probs equal but for GEMMs of other shapes."""
    assert tokens_of(got) == tokens_of(expected)
    for a, b in zip(sum(got, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(a.logp, b.logp, rtol=0, atol=64 * EPS * 10)
        assert a.stopped == b.stopped


# ------------------------------------------------------------------------------------------------- against transformers


def assert_greedy_equals(hf, prompts: list[list[int]], got: list[list[Completion]], steps: int) -> None:
    """Token for token, up to a first step whose two likeliest are nearer than rounding."""
    hf.generation_config.eos_token_id = None
    torch.set_num_threads(1)  # for batches of one, a second thread is mostly waited for
    compared = 0
    for prompt, (completion,) in zip(prompts, got, strict=True):
        out = hf.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=steps, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        gaps = [float(z[0].topk(2).values.diff().abs()) for z in out.logits]
        sure = next((t for t, gap in enumerate(gaps) if gap < 1e-4), steps)
        assert completion.tokens[:sure] == out.sequences[0, len(prompt) :].tolist()[:sure]
        assert len(completion.tokens) == steps and not completion.stopped
        compared += sure
    assert compared >= 0.8 * steps * len(prompts)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_greedy_equals_transformers(kind, tmp_path):
    """Guards positions, the cache, shared blocks and tails: one key in a wrong place turns the text."""
    pytest.importorskip("transformers")
    from helpers.peers import hf_model, ours

    hf = hf_model(kind, tied=kind == "llama", scaled=kind == "llama")
    model = ours(hf, tmp_path / "weights")
    assert_greedy_equals(hf, PROMPTS, generate(model, PROMPTS, GREEDY, slots=4, prefill_tokens=32), 24)


@pytest.mark.slow
def test_greedy_equals_transformers_on_smollm2(smollm2_gguf):
    """Guards real weights: 30 layers, grouped heads, a vocabulary of 49152."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    model, tokenizer = vd.load_model(str(smollm2_gguf), dtype=torch.float32), vd.load_tokenizer(str(smollm2_gguf))
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    texts = ["Once", "The capital of France is", "It is right to break a promise when a life depends on it, because"]
    prompts = [tokenizer.encode(text) for text in texts]
    assert_greedy_equals(hf, prompts, generate(model, prompts, GREEDY, slots=8), 24)


# --------------------------------------------------------------------------------------------------------- log-probs


class LowRank(torch.nn.Linear):
    """An adapter that keeps `.weight` under its name."""

    def forward(self, x):
        return super().forward(x) + x @ self.down @ self.up


class Added(torch.nn.Module):
    """A parametrisation."""

    def __init__(self, delta):
        super().__init__()
        self.delta = delta

    def forward(self, weight):
        return weight + self.delta


class Wrapped(torch.nn.Module):
    """An adapter around a layer."""

    def __init__(self, layer, down, up):
        super().__init__()
        self.layer, self.down, self.up = layer, down, up

    def forward(self, x):
        return self.layer(x) + x @ self.down @ self.up


@pytest.mark.parametrize("way", ["subclass", "wrapper", "hook", "parametrisation", "own forward"])
@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_an_adapter_samples_with_its_log_probs(kind, name, way):
    """Guards decoding against reading the weight of a layer that is more than its weight: samples would be those of the
    model without its adapter, with their log-probs, without a word."""
    model = fill(Transformer(tiny_config(kind))).to(DEVICE)
    results = generate(model, PROMPTS, GREEDY, slots=4)
    before = [x for (c,) in results for x in c.logp]
    g = torch.Generator().manual_seed(1)
    for block in model.blocks:
        parent, _, attribute = name.rpartition(".")
        holder = block.get_submodule(parent)
        layer = getattr(holder, attribute)
        down = (torch.randn(layer.in_features, 2, generator=g) * 0.2).to(DEVICE)
        up = (torch.randn(2, layer.out_features, generator=g) * 0.2).to(DEVICE)
        if way == "subclass":
            layer.__class__, layer.down, layer.up = LowRank, down, up
        elif way == "wrapper":
            setattr(holder, attribute, Wrapped(layer, down, up))
        elif way == "hook":
            layer.register_forward_hook(lambda _, args, out, down=down, up=up: out + args[0] @ down @ up)
        elif way == "own forward":
            layer.forward = lambda x, layer=layer, d=down, u=up: torch.nn.Linear.forward(layer, x) + x @ d @ u
        else:
            torch.nn.utils.parametrize.register_parametrization(layer, "weight", Added((down @ up).t()))
    results = generate(model, PROMPTS, GREEDY, slots=4)
    trees = [vd.Tree(p, [c.tokens]) for p, (c,) in zip(PROMPTS, results, strict=True)]
    with torch.no_grad():
        expected = model(vd.pack(trees).to(DEVICE)).logp.cpu()
    got = torch.tensor([x for (c,) in results for x in c.logp])
    assert (got - expected).abs().max() <= 64 * EPS * expected.abs().max()
    assert (got - torch.tensor(before)).abs().max() > 0.01
    if way != "parametrisation":  # of which there is no weight to copy
        with pytest.raises(ValueError, match=f"{name} is not a plain layer"):
            gather_model(model, torch.float32)


def test_hooked_norms_of_heads_count_in_both_forwards():
    """Guards the norm of queries and keys, whose weight the rotation's kernel reads: a hook on it is called."""
    model = fill(Transformer(tiny_config("qwen3"))).to(DEVICE)
    plain = generate(model, PROMPTS, GREEDY)
    for block in model.blocks:
        block.self_attn.q_norm.register_forward_hook(lambda _, args, out: 0.1 * out)
    hooked = generate(model, PROMPTS, GREEDY)
    trees = [vd.Tree(p, [c.tokens]) for p, (c,) in zip(PROMPTS, hooked, strict=True)]
    with torch.no_grad():
        expected = model(vd.pack(trees).to(DEVICE)).logp.cpu()
    got = torch.tensor([x for (c,) in hooked for x in c.logp])
    assert (got - expected).abs().max() <= 64 * EPS * expected.abs().max()
    assert tokens_of(hooked) != tokens_of(plain)


@pytest.mark.parametrize("sampling", [
    Sampling(20), Sampling(20, temperature=0.6), Sampling(20, temperature=1.3, top_p=0.8, top_k=30), GREEDY,
], ids=["plain", "cold", "filtered", "greedy"])  # fmt: skip
def test_log_probs_are_those_of_training(model, sampling):
    """Guards PPO's ratios: whatever filters did, log p is of the whole vocabulary at the sampling temperature.

    Two fp32 evaluations of one formula: the bound of test_transformer.py, 64 units of the largest value.
    """
    results = generate(model, PROMPTS, sampling, samples=2, slots=5, seed=3)
    trees = [vd.Tree(p, [c.tokens for c in each]) for p, each in zip(PROMPTS, results, strict=True)]
    model.lm_head.temperature = sampling.temperature or 1.0
    with torch.no_grad():
        expected = model(vd.pack(trees).to(DEVICE)).logp.cpu()
    model.lm_head.temperature = 1.0
    got = torch.tensor([x for each in results for c in each for x in c.logp])
    assert (got - expected).abs().max() <= 64 * EPS * expected.abs().max()


def test_bf16_log_probs_have_fp32_logits():
    """Guards a bf16 model's log-probs: they differ from its training forward by rounded activations, not by logits that
    are rounded (a spacing of 1/32 to 1/8 here)."""
    model = fill(Transformer(tiny_config("llama"))).to(DEVICE, torch.bfloat16)
    results = generate(model, PROMPTS, Sampling(16), slots=4)
    trees = [vd.Tree(p, [c.tokens for c in each]) for p, each in zip(PROMPTS, results, strict=True)]
    with torch.no_grad():
        expected = model(vd.pack(trees).to(DEVICE)).logp.cpu()
    got = torch.tensor([x for each in results for c in each for x in c.logp])
    # of 2^-9 relative, in some ten places of three layers, on logits that spread over 1: half of what a step may be
    assert (got - expected).square().mean().sqrt() < 2**-9 * 30**0.5


def test_draws_on_given_logits():
    """Guards the choice itself: ties, filters at their ends, and logits that are no numbers."""
    z = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]], device=DEVICE)

    def seen(**options) -> set[int]:
        noise = torch.linspace(0, 1 - 2**-52, 2001, dtype=torch.float64, device=DEVICE)
        return set(sample(z.expand(2001, 5).clone(), noise, **options).tokens.tolist())

    assert seen() == {0, 1, 2, 3, 4}
    assert seen(top_k=2) == {1, 2}  # of equals the first
    assert seen(top_k=9) == {0, 1, 2, 3, 4} and seen(top_k=4) == {0, 1, 2, 3}
    assert seen(top_p=1e-9) == {1} and seen(top_p=0.5) == {1, 2}  # each has 0.313: two are the fewest
    assert seen(top_k=3, top_p=0.6) == {1, 2}  # a third each, of what top_k left
    assert seen(temperature=0) == {1} and seen(temperature=1e-3, top_k=1) == {1}
    half = torch.full((1,), 0.5, dtype=torch.float64, device=DEVICE)
    for options in ({}, {"top_k": 2, "top_p": 0.9}, {"temperature": 0}):
        drawn = sample(torch.full((1, 5), torch.nan, device=DEVICE), half, **options)
        assert 0 <= int(drawn.tokens) < 5 and drawn.logp.isnan().all()


def test_draws_take_the_inverse_of_the_distribution():
    """Guards the use of noise: token i is chosen by the numbers between the sums up to i - 1 and up to i, and no number
    below 1 falls behind the last token that has weight."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 300, generator=g).to(DEVICE) * 4
    z[0, -20:] = -1e4  # no weight at all
    exact = z[0].double().softmax(0).cumsum(0)
    noise = torch.rand(500, generator=g, dtype=torch.float64).to(DEVICE)
    noise[0], noise[1] = 0.0, 1 - 2**-52
    drawn = sample(z.expand(500, 300).clone(), noise)
    expected = torch.searchsorted(exact, noise, right=True).clamp(max=279)
    # fp32 probabilities move each sum by some 1e-7
    sure = (noise[:, None] - exact).abs().amin(1) > 1e-6
    assert torch.equal(drawn.tokens[sure], expected[sure]) and sure.sum() > 490
    assert int(drawn.tokens.max()) <= 279 and int(drawn.tokens[0]) == 0
    exact_logp = z.double().log_softmax(1).expand(500, 300).gather(1, drawn.tokens[:, None])[:, 0]
    assert (drawn.logp - exact_logp).abs().max() <= 8 * EPS * exact_logp.abs().max()


# ------------------------------------------------------------------------------------------------------- distributions


# Upper 0.001 points of chi-square by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.4)
CHI_SQUARE = {
    1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 6: 22.458, 7: 24.322, 8: 26.125, 9: 27.877, 10: 29.588,
    11: 31.264, 12: 32.910,
}  # fmt: skip


def filtered(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """Exact probabilities by the definition, in float64, one token after another."""
    p = np.exp((logits - logits.max()) / s.temperature)
    order = np.argsort(-p, kind="stable")
    if s.top_k:
        p[order[s.top_k :]] = 0
    p /= p.sum()
    kept, mass = [], 0.0
    for token in order:
        if mass >= s.top_p or p[token] == 0:
            break
        kept.append(token)
        mass += p[token]
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


def assert_distributed(tokens: list[int], p: np.ndarray) -> None:
    """Pearson's test; tokens that are expected fewer than 5 times count as one."""
    n, counts = len(tokens), np.bincount(tokens, minlength=len(p))
    assert not counts[p == 0].any()
    rare = (p > 0) & (p * n < 5)
    expected = np.append((p * n)[(p > 0) & ~rare], (p * n)[rare].sum())
    found = np.append(counts[(p > 0) & ~rare], counts[rare].sum())
    expected, found = expected[expected > 0], found[expected > 0]
    statistic = ((found - expected) ** 2 / expected).sum()
    assert len(expected) >= 2 and statistic < CHI_SQUARE[len(expected) - 1], (statistic, counts, p * n)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [
    Sampling(2), Sampling(2, temperature=0.7), Sampling(2, top_p=0.8), Sampling(2, top_k=4),
    Sampling(2, temperature=1.5, top_k=6, top_p=0.7),
], ids=str)  # fmt: skip
def test_samples_are_distributed_as_they_should_be(small, sampling):
    """Guards the noise (its two uses in a row are independent), each filter and their order: first and second tokens
    of 4000 samples against exact probabilities."""
    prompt = [5, 1, 7]
    (results,) = generate(small, [prompt], sampling, samples=4000, seed=11, slots=64)
    first = filtered(next_logits(small, [prompt])[0], sampling)
    assert_distributed([c.tokens[0] for c in results], first)
    second = [filtered(z, sampling) for z in next_logits(small, [[*prompt, t] for t in range(13)])]
    assert_distributed([c.tokens[1] for c in results], first @ np.stack(second))
    likeliest = int(first.argmax())
    assert_distributed([c.tokens[1] for c in results if c.tokens[0] == likeliest], second[likeliest])


def next_logits(model: Transformer, prompts: list[list[int]]) -> np.ndarray:
    """Log-probs of every token after each prompt, [n, 13] float64: what the training forward says of 13 branches."""
    trees = [vd.Tree(p, [[t] for t in range(13)]) for p in prompts]
    with torch.no_grad():
        return model(vd.pack(trees).to(DEVICE)).logp.view(-1, 13).double().cpu().numpy()


def test_noise_differs_in_every_argument(small):
    """Guards samples, prompts, steps and seeds that share noise."""

    def first(**options) -> list[list[list[int]]]:
        return tokens_of(generate(small, [[3, 4], [3, 4]], Sampling(12), samples=2, **options))

    base = first()
    assert len({tuple(t) for each in base for t in each}) == 4
    assert base == first() and base == first(prompt_ids=[0, 1])
    for other in (first(seed=1), first(step=1), first(prompt_ids=[2, 3])):
        assert not {tuple(t) for each in base for t in each} & {tuple(t) for each in other for t in each}
    swapped = first(prompt_ids=[1, 0])
    assert swapped == base[::-1]


# ----------------------------------------------------------------------------------------------- rows, blocks, the loop


class Pools(list):
    """Every pool of a test, with the fewest blocks that were free."""

    def __init__(self, monkeypatch) -> None:
        pools = self

        class Watched(module.BlockPool):
            def __init__(self, num_blocks: int) -> None:
                super().__init__(num_blocks)
                self.size, self.least = num_blocks - 1, num_blocks - 1
                pools.append(self)

            def take(self, count: int) -> list[int]:
                taken = super().take(count)
                self.least = min(self.least, len(self.free))
                return taken

        monkeypatch.setattr(module, "BlockPool", Watched)


@pytest.fixture
def pools(monkeypatch) -> Pools:
    return Pools(monkeypatch)


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Rows of every decoding step."""
    found: list[int] = []
    decode = Transformer.decode

    def counted(self, tokens, stream, caches, draw):
        if draw is not None:
            found.append(len(tokens))
        return decode(self, tokens, stream, caches, draw)

    monkeypatch.setattr(Transformer, "decode", counted)
    return found


@pytest.mark.slow
def test_any_number_of_slots_and_any_split(model, pools, monkeypatch):
    """Guards refilling: a row's samples do not depend on its slot, its neighbours, the packs its prompt was computed
    in, or how the prompts were dealt out; and every block comes back."""
    expected = generate(model, PROMPTS, SHORT, samples=3, seed=5)
    assert len({len(c.tokens) for each in expected for c in each}) > 4
    for slots, prefill_tokens in ((1, 8192), (3, 32), (64, 1)):
        got = generate(model, PROMPTS, SHORT, samples=3, seed=5, slots=slots, prefill_tokens=prefill_tokens)
        assert_same(got, expected)
    parts = [generate(model, PROMPTS[r::2], SHORT, samples=3, seed=5, prompt_ids=range(r, 6, 2)) for r in range(2)]
    assert_same([parts[i % 2][i // 2] for i in range(6)], expected)
    assert generate(model, PROMPTS, SHORT, samples=3, seed=5) == expected  # to the bit
    assert_same(generate(model, PROMPTS, SHORT, samples=3, seed=5, backend="reference"), expected)
    # a host that looks every 5 steps only, and steps that compute more rows than there are
    monkeypatch.setattr(module._Call, "_steps", lambda self: 5 * bool(self.rows))
    monkeypatch.setattr(module._Call, "_size", lambda self: 9)
    assert_same(generate(model, PROMPTS, SHORT, samples=3, seed=5, slots=9), expected)
    assert len(pools) == 9 and all(len(set(pool.free)) == pool.size for pool in pools)


def test_a_free_slot_is_filled_at_once(small, steps):
    """Guards throughput: but for the end, no step runs with fewer rows than there are slots."""
    sampling = Sampling(max_tokens=30, stop_ids=(2, 3))
    results = generate(small, [[1], [4, 4], [5] * 20], sampling, samples=20, slots=6)
    total = sum(len(c.tokens) for each in results for c in each)
    assert sum(steps) == total  # no row is computed that is not needed
    assert all(n == 6 for n in steps[: len(steps) - 30])


def test_blocks_are_shared(small, pools):
    """Guards memory: the samples of a prompt read one copy of its full blocks, each has its own tail and what follows,
    and the last takes the prompt's tail for its own."""
    prompt = ids(3 * BLOCK + 6, vocab=13)  # 3 full blocks and 5 keys
    generate(small, [prompt], Sampling(max_tokens=BLOCK), samples=4, slots=4)
    assert pools[0].size - pools[0].least == 3 + 4 * 2 and len(pools[0].free) == pools[0].size
    generate(small, [prompt[: 3 * BLOCK + 1]], Sampling(max_tokens=BLOCK), samples=4, slots=4)
    assert pools[1].size - pools[1].least == 3 + 4 * 1  # no tail
    generate(small, [prompt, prompt], Sampling(max_tokens=BLOCK), slots=2)
    assert pools[2].size - pools[2].least == 2 * (3 + 2)


def test_a_small_cache_admits_fewer_rows(small, pools, steps):
    """Guards admission: a row starts when all that it may need is free, and with room for one row all are served."""
    c = small.config
    block_bytes = 2 * c.num_hidden_layers * BLOCK * c.num_key_value_heads * c.head_dim * 4
    prompts, sampling = [ids(n, vocab=13) for n in (3, 40, 17, 30)], Sampling(max_tokens=20)
    expected = generate(small, prompts, sampling, samples=3)
    steps.clear()
    # 39 keys and 20 tokens: two full blocks, a tail that is copied, two blocks of its own
    assert_same(generate(small, prompts, sampling, samples=3, cache_bytes=6 * block_bytes), expected)
    assert pools[1].size == 5 and len(pools[1].free) == 5 and max(steps) == 2  # of the short prompt: two blocks a row
    with pytest.raises(InputError) as error:
        generate(small, prompts, sampling, samples=3, cache_bytes=5 * block_bytes)
    assert str(error.value) == (
        f"generate: cache_bytes = {5 * block_bytes} holds 4 blocks beside an idle one, of {block_bytes} bytes and "
        f"{BLOCK} tokens each; prompts[1] of 40 tokens, with max_tokens = 20, needs 5"
    )


def test_stop_ids_end_a_row(small):
    """Guards the ends: a completion runs through its first stop token, or to max_tokens, and says which it was. Noise
    is counted, so without stop ids the same samples only go on."""
    free = generate(small, [[1, 2], [3]], Sampling(max_tokens=15), samples=30)
    ended = generate(small, [[1, 2], [3]], Sampling(max_tokens=15, stop_ids=(4, 9)), samples=30, slots=7)
    for a, b in zip(sum(free, []), sum(ended, []), strict=True):
        at = next((i for i, t in enumerate(a.tokens) if t in (4, 9)), None)
        assert b.tokens == a.tokens[: None if at is None else at + 1] and b.stopped == (at is not None)
        assert len(a.tokens) == len(a.logp) == 15 and len(b.logp) == len(b.tokens) and not a.stopped
    assert {c.stopped for each in ended for c in each} == {True, False}
    (one,) = generate(small, [[1]], Sampling(max_tokens=1), samples=3)
    assert all(len(c.tokens) == 1 for c in one)


def test_a_prompt_may_fill_the_positions(small):
    """Guards the last position: the longest prompt that is allowed runs, one token more is an error."""
    import dataclasses

    config = dataclasses.replace(small.config, max_position_embeddings=40)
    model = fill(Transformer(config)).to(DEVICE)
    assert len(generate(model, [ids(30, vocab=13)], Sampling(max_tokens=10))[0][0].tokens) == 10
    with pytest.raises(InputError) as error:
        generate(model, [[1], ids(31, vocab=13)], Sampling(max_tokens=10))
    assert str(error.value) == (
        "generate: prompts[1] has 31 tokens; with max_tokens = 10 at most 30 fit into the model's 40 positions"
    )


def test_training_is_left_alone(model):
    """Guards the trainer: sampling in between changes no bit of a forward or a gradient, and no mode of torch's."""
    pack = vd.pack([vd.Tree(PROMPTS[3], [PROMPTS[1], PROMPTS[2]])]).to(DEVICE)

    def bits() -> list[torch.Tensor]:
        logp = model(pack).logp
        return [logp, *torch.autograd.grad(logp.sum(), list(model.parameters()))]

    before = bits()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        generate(model, PROMPTS[:2], Sampling(3))
        assert torch.is_deterministic_algorithms_warn_only_enabled() and torch.is_grad_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(), strict=True))


def test_steps_and_sizes_on_cuda():
    """Guards captures: a few sizes that hold all rows, and no steps after the one that must end the last row."""
    cuda = SimpleNamespace(device=torch.device("cuda"), slots=64, sampling=Sampling(30))

    def at(*counts: int) -> tuple[int, int]:
        cuda.rows = [SimpleNamespace(count=n) for n in counts]
        return module._Call._size(cuda), module._Call._steps(cuda)

    assert [at(*[0] * n)[0] for n in (64, 17, 16, 5, 4, 1, 0)] == [64, 64, 16, 16, 4, 4, 4]
    assert [at(*counts)[1] for counts in ((0,), (25, 27), (29,), ())] == [8, 5, 1, 0]
    cuda.slots = 1
    assert at(0)[0] == 2


@pytest.mark.parametrize("longest", [0, 60])
def test_a_generator_keeps_what_it_has(model, monkeypatch, longest):
    """Guards what stays between calls: rows of an earlier call, other settings, more or longer prompts and weights that
    have changed in place leave no trace; and room is made anew only where it must be."""
    made = []
    memory = module.RowMemory
    monkeypatch.setattr(module, "RowMemory", lambda *a: made.append(a[2:]) or memory(*a))
    generator = module.Generator(model, slots=7, longest=longest)
    other = Sampling(max_tokens=3, temperature=0.5, top_k=20)
    calls = [(PROMPTS, SHORT, 2), (PROMPTS[:2], other, 3), (PROMPTS, SHORT, 2), (PROMPTS[1:], other, 1)]
    for step, (prompts, sampling, samples) in enumerate(calls):
        found = generator(prompts, sampling, samples=samples, seed=5, step=step)
        assert_same(found, generate(model, prompts, sampling, samples=samples, seed=5, step=step, slots=7))
    assert len(made) == 1 + len(calls) and len(generator.steps) == 2  # one of its own, one for each `generate`
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    try:
        assert_same(generator(PROMPTS, SHORT, seed=5), generate(model, PROMPTS, SHORT, seed=5, slots=7))
        long = [ids(90, vocab=200)]
        assert_same(generator(long, SHORT, seed=5), generate(model, long, SHORT, seed=5, slots=7))
        assert generator.memory.sizes[1] == -(-(89 + SHORT.max_tokens) // BLOCK) and len(generator.steps) == 1
    finally:
        with torch.no_grad():
            for p in model.parameters():
                p.div_(1.01)


def test_a_call_that_fails_leaves_nothing_behind(model, monkeypatch):
    """Guards a rollout after an error in the middle of one: rows that were running do not go on."""
    generator = module.Generator(model, slots=4)
    collect = module._Call._collect
    monkeypatch.setattr(module._Call, "_collect", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        generator(PROMPTS, SHORT)
    monkeypatch.setattr(module._Call, "_collect", collect)
    assert_same(generator(PROMPTS, SHORT, seed=5), generate(model, PROMPTS, SHORT, seed=5, slots=4))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
def test_graphs_give_the_same(model, monkeypatch):
    """Guards captured steps: of several sizes, refilled between two replays; and captured once, not in every call."""
    generator = module.Generator(model, slots=32)
    captured = generator(PROMPTS, SHORT, samples=6)
    graphs = dict(generator.steps[SHORT].graphs)
    assert len(graphs) > 1
    assert_same(captured, generator(PROMPTS, SHORT, samples=6))
    assert generator.steps[SHORT].graphs == graphs
    eager = module.Generator(model, slots=32)
    monkeypatch.setattr(module.DecodeStep, "__call__", module.DecodeStep.run)
    assert_same(captured, eager(PROMPTS, SHORT, samples=6))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "prompts[1] is empty; it needs at least one token (a BOS will do)"),
        ([[1, 13]], "prompts[0] has the token id 13; the model's are 0 to 12"),
        ([[1], [2, -1]], "prompts[1] has the token id -1; the model's are 0 to 12"),
    ],
)
def test_bad_prompts(small, prompts, message):
    """Guards users: the prompt is named, before anything runs."""
    with pytest.raises(InputError) as error:
        generate(small, prompts, Sampling(4))
    assert str(error.value) == f"generate: {message}"


def test_bad_arguments(small):
    """Guards embedders; and no prompts are no error."""
    assert generate(small, [], Sampling(4)) == []
    for options, message in (
        ({"samples": 0}, "samples must be >= 1; got 0"),
        ({"slots": 0}, "slots must be >= 1; got 0"),
        ({"prompt_ids": [1, 2]}, "2 prompt_ids for 1 prompts"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(small, [[1, 2]], Sampling(4), **options)
    for field, values in {
        "max_tokens": (0,), "temperature": (-0.1, 1e-9, float("nan")), "top_p": (0.0, 1.1), "top_k": (-1,)
    }.items():  # fmt: skip
        for value in values:
            with pytest.raises(ValueError, match=f"{field} must be"):
                Sampling(**{field: value})
    import dataclasses

    scalar = fill(Transformer(dataclasses.replace(tiny_config("qwen3"), head="scalar")))
    with pytest.raises(ValueError, match="a scalar model has no tokens to give"):
        generate(scalar, [[1]], Sampling(4))


# ------------------------------------------------------------------------------------------------- sharded models


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_gather_model_of_one_rank(kind):
    """Guards memory and tying: what need not be copied is shared, a tied weight stays one, and backends are kept."""
    model = fill(Transformer(tiny_config(kind), kernels=Kernels(swiglu="reference", head="torch")))
    for dtype in (torch.float32, torch.bfloat16):
        plain = gather_model(model, dtype)
        assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == (kind == "llama")
        assert plain.kernels == model.kernels and plain.lm_head.backend == "torch"
        for (name, a), (other, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
            assert name == other and a.dtype == dtype and not a.requires_grad and torch.equal(a, b.to(dtype))
            assert (a.data_ptr() == b.data_ptr()) == (dtype == torch.float32)
    assert_same(generate(gather_model(model, torch.float32), PROMPTS, SHORT), generate(model, PROMPTS, SHORT))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    where = {name: p.data_ptr() for name, p in plain.named_parameters()}
    assert gather_model(model, torch.bfloat16, into=plain) is plain  # in their place: graphs know where they are
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert a.data_ptr() == where[name] and torch.equal(a, b.to(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_two_ranks_give_what_one_gives(kind, tiny_models, tmp_path):
    """Guards sharded models, tied and not: layer by layer and gathered, with unequal shares of the prompts, with no
    prompt at all on one rank, and with one rank's prompts bad, which ends both."""
    torchrun(2, "sampling", tmp_path, tiny_models[kind], seconds=300)
    model = vd.load_model(str(tiny_models[kind]), dtype=torch.float32)
    expected = generate(model, PROMPTS, SHORT, samples=2, seed=5)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    def joined(name: str) -> list[list[Completion]]:
        return [[Completion(*c) for c in each] for rank in range(2) for each in found[rank][name]]

    for name in ("sharded", "gathered", "alone"):
        assert_same(joined(name), expected)
    assert found[1]["alone"] == []
    for rank in range(2):  # bf16 compute over fp32 shards: the same casts, the same steps, the same bits
        assert found[rank]["half"] == found[rank]["half gathered"]
    assert "prompts[1] is empty" in found[0]["error"] and "another rank's prompts" in found[1]["error"]
    assert found[0]["same"] and found[1]["same"]  # the trainer's forward, before and after
