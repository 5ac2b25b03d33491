"""The model against transformers on the same weights, and against itself in its other ways of running.

Rounding is counted in units of EPS = 2^-23 of the largest value. Two fp32 evaluations of one formula in different
orders differ by the roundings on the way to a number: about seven operations in each of three layers, the head,
and some amplification in norms and softmax. Seen are 8 EPS for values and, as gradients pass everything twice, 38 for
gradients; allowed are 64 and 128. A wrong mask, position or missing term shows as 1e-2 and more, 1e5 EPS.
"""

import math

import pytest
import torch
from helpers.peers import LAYERS, VOCAB, hf_logp, hf_model, ours, random_ids

import vdengine as vd

transformers = pytest.importorskip("transformers")

EPS = 2.0**-23


# llama3 scaling is trained for 64 positions here: the trees below go far beyond them
MODELS = {
    "llama_tied": {"kind": "llama", "tied": True},
    "llama_scaled": {"kind": "llama", "scaled": True},
    "llama_tied_scaled": {"kind": "llama", "tied": True, "scaled": True},
    "qwen3": {"kind": "qwen3"},
    "qwen3_tied": {"kind": "qwen3", "tied": True},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(transformers' model, ours) with the same weights."""
    hf = hf_model(**MODELS[request.param])
    return hf, ours(hf, tmp_path_factory.mktemp("weights") / request.param)


@pytest.fixture(scope="module")
def trees():
    g = torch.Generator().manual_seed(1)
    shapes = [(150, [30, 17, 1]), (5, [200]), (1, [3, 70]), (9, [1]), (90, [40, 41])]
    return [vd.Tree(random_ids(p, g), [random_ids(b, g) for b in branches]) for p, branches in shapes]


def upstream(n: int) -> torch.Tensor:
    """Signed gradients, a third of them zero."""
    w = torch.randn(n, generator=torch.Generator().manual_seed(2))
    w[::3] = 0.0
    return w


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def gradients(model, logp: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logp * upstream(len(logp))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(got, expected, ulps=128):
    assert got.keys() == expected.keys()
    for name, g in got.items():
        error = (g - expected[name]).abs().max() / expected[name].abs().max()
        assert error <= ulps * EPS, f"{name}: {error:.1e} of the largest gradient"


def test_log_probs_and_gradients_equal_transformers(pair, trees):
    """Guards against any difference of architecture: rope scaling, QK-norm, GQA, norms, tying, shared prompts."""
    hf, model = pair
    scores = model(vd.pack(trees), entropy=True)
    expected = hf_logp(hf, trees)
    assert (scores.logp - expected).abs().max() < 1e-4
    assert_same_gradients(gradients(model, scores.logp), gradients(hf, expected))


def test_entropy_equals_transformers(pair, trees):
    """Guards against an entropy over the wrong rows or in other units."""
    hf, model = pair
    tree = trees[0]
    with torch.no_grad():
        got = model(vd.pack([tree]), entropy=True).entropy[: len(tree.branches[0])]
        logp = hf(torch.tensor([tree.prompt + tree.branches[0]])).logits[0].log_softmax(-1)[len(tree.prompt) - 1 : -1]
    assert (got - -(logp.exp() * logp).sum(-1)).abs().max() <= 64 * EPS * math.log(VOCAB)


def test_rope_scaling_matters_here(trees):
    """Guards the tests above: with prompts this long, unscaled positions must give other numbers."""
    scaled, plain = (hf_model("llama", scaled=s) for s in (True, False))
    assert (hf_logp(scaled, trees[:1]) - hf_logp(plain, trees[:1])).abs().max() > 0.01


def test_tree_equals_its_branches_apart(pair, trees):
    """Guards against a branch that sees its sibling, or a prompt whose gradient counts one branch only."""
    _, model = pair
    apart = [vd.Tree(t.prompt, [b]) for t in trees for b in t.branches]
    together = model(vd.pack(trees)).logp
    together_gradients = gradients(model, together)
    alone = torch.cat([model(vd.pack([t])).logp for t in apart])
    assert (together - alone).abs().max() <= 64 * EPS * alone.abs().max()
    assert_same_gradients(together_gradients, gradients(model, alone))


def test_scored_mask_selects(pair, trees):
    """Guards against a mask that shifts targets: masked scores are the unmasked ones, tokens left out."""
    _, model = pair
    tree = trees[0]
    masks = [[i % 3 != 1 for i in range(len(b))] for b in tree.branches]
    with torch.no_grad():
        every = model(vd.pack([tree])).logp
        some = model(vd.pack([vd.Tree(tree.prompt, tree.branches, masks)])).logp
    keep = torch.tensor([s for mask in masks for s in mask])
    # other row counts take other GEMM tilings
    assert (some - every[keep]).abs().max() <= 64 * EPS * every.abs().max()


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_is_bitwise(pair, trees, mode):
    """Guards against recomputation that rounds differently, or that runs the probe stream again."""
    _, model = pair
    pack, probes = vd.pack(trees[:3]), [vd.pack(trees[3:])]
    plain = model(pack, probes)
    expected = gradients(model, plain.logp)
    for block in model.model.layers:
        block.activation_checkpoint = mode
    try:
        scores = model(pack, probes)
        got = gradients(model, scores.logp)
    finally:
        for block in model.model.layers:
            block.activation_checkpoint = "none"
    assert torch.equal(scores.logp, plain.logp) and torch.equal(scores.probe_logp, plain.probe_logp)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_probe_stream_is_bitwise_the_training_stream(pair, trees):
    """Guards against probes that are scored by other arithmetic than training: alone, or riding along."""
    _, model = pair
    packs = [vd.pack(trees[:2]), vd.pack(trees[2:])]
    expected = torch.cat([model(p).logp.detach() for p in packs])
    alone = model(None, packs)
    riding = model(vd.pack(trees), packs)
    assert alone.logp.numel() == 0 and not riding.probe_logp.requires_grad
    assert torch.equal(alone.probe_logp, expected) and torch.equal(riding.probe_logp, expected)


def test_probes_leave_training_bitwise_alone(pair, trees):
    """Guards against probes that change the values or the gradients of training."""
    _, model = pair
    pack = vd.pack(trees[:3])
    plain, riding = model(pack), model(pack, [vd.pack(trees[3:])])
    assert torch.equal(plain.logp, riding.logp)
    expected, got = gradients(model, plain.logp), gradients(model, riding.logp)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_export_opens_in_transformers(pair, trees, tmp_path):
    """Guards against an export whose config (rope, tying, head size) or tensors mean something else there."""
    _, model = pair
    vd.save_model(model, None, tmp_path / "export")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    with torch.no_grad():
        assert (model(vd.pack(trees)).logp - hf_logp(hf, trees)).abs().max() < 1e-4


@pytest.mark.slow
def test_bf16_noise_is_no_worse_than_transformers(pair, trees, tmp_path):
    """Guards against an avoidable rounding in bf16 (logits, norms, rope): noise under a drift measurement.

    Bound: a residual stream rounded about ten times a layer is off by 2^-9 sqrt(10 layers) of itself, and a logit by
    that share of its spread; a factor of 3 for what norms and softmax amplify. And a quarter above transformers' own.
    """
    vd.save_model(pair[1], None, tmp_path / "bf16", dtype=torch.bfloat16)  # the same weights in both dtypes
    exact, half = (vd.load_model(str(tmp_path / "bf16"), dtype=d) for d in (torch.float32, torch.bfloat16))
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.bfloat16)
    with torch.no_grad():
        expected, got = exact(vd.pack(trees)).logp, half(vd.pack(trees)).logp
        spread = hf(torch.tensor([trees[0].prompt])).logits.float().std()
        noise, peer_noise = rms(got - expected), rms(hf_logp(hf, trees) - expected)
    print(f"bf16 noise, nats a token: {noise:.4f} (transformers {peer_noise:.4f})")
    assert got.dtype == torch.float32
    assert noise <= 3 * 2**-9 * math.sqrt(10 * LAYERS) * spread
    assert noise <= 1.25 * peer_noise


# ------------------------------------------------------------------------------------------------ real weights


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    pytest.importorskip("gguf")
    model = vd.load_model(str(smollm2_gguf), dtype=torch.float32)
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    tokenizer = vd.load_tokenizer(str(smollm2_gguf))
    prompt = tokenizer.encode("Is it right to break a promise in order to save a life? Think about duty. " * 6)
    answers = ["Yes, a life outweighs any promise.", "No. A promise binds, whatever follows from it.", "It depends."]
    return model, hf, [vd.Tree(prompt, [tokenizer.encode(a) for a in answers]), vd.Tree(prompt[:7], [prompt[7:60]])]


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2):
    """Guards against weights read wrongly from GGUF (row permutation, dequantisation, tying) or a wrong config."""
    model, hf, trees = smollm2
    with torch.no_grad():
        got, expected = model(vd.pack(trees)).logp, hf_logp(hf, trees)
    assert expected.mean() > -4.0  # a language model, not noise
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_smollm2_export_opens_in_transformers(smollm2, tmp_path):
    """Guards against an export of real weights that transformers reads as another model."""
    model, _, trees = smollm2
    vd.save_model(model, None, tmp_path / "export")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    with torch.no_grad():
        assert (model(vd.pack(trees)).logp - hf_logp(hf, trees)).abs().max() < 1e-4


@pytest.mark.slow
def test_smollm2_bf16_noise(smollm2):
    """Guards against bf16 noise that would drown a drift: stated as nats a token, on real weights.

    Random rounding errors of 2^-9 in some 300 places of 30 layers add up to 3% of a logit's spread of about 3 nats.
    """
    model, _, trees = smollm2
    half = vd.Transformer(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())  # rounds: the noise of the weights is part of it
    with torch.no_grad():
        noise = half(vd.pack(trees)).logp - model(vd.pack(trees)).logp
    print(f"bf16 noise on SmolLM2, nats a token: rms {rms(noise):.4f}, mean {noise.mean():.4f}")
    assert rms(noise) < 0.1
