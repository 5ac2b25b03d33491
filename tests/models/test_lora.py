"""Adapters in the model: against PEFT on the same weights, without effect where they are off, and dropout that depends
on nothing but what it is of."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.peers import VOCAB, hf_logp, hf_model, ours, random_ids
from helpers.tiny import fill, tiny_config

import vdengine as vd
from vdengine.errors import InputError
from vdengine.models.generate import Sampling, generate
from vdengine.models.lora import adapted_layers, adapter_parameters, dropout, token_keys
from vdengine.models.transformer import Transformer

EPS = 2.0**-23
SEED_STEP = (3, 7)


def forest(g: torch.Generator, vocab: int = VOCAB) -> list[vd.Tree]:
    """Trees of two, one and three branches, with ids."""
    shapes = ((9, (5, 7)), (4, (6,)), (11, (3, 8, 2)))
    return [
        vd.Tree(random_ids(p, g, vocab), [random_ids(b, g, vocab) for b in branches], id=10 + i)
        for i, (p, branches) in enumerate(shapes)
    ]


def adapted(model: Transformer, *, seed: int = 1, **options) -> Transformer:
    """The model with adapters that matter."""
    vd.add_lora(model, vd.Lora(**{"rank": 4, "alpha": 7.0} | options))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter_parameters(model).values():
            p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    return model


def tiny(kind: str = "qwen3", **options) -> Transformer:
    return adapted(fill(Transformer(tiny_config(kind))), **options)


def assert_gradients_of_peft(model: Transformer, peer, scale: float = 128 * EPS) -> None:
    """Of every factor: two fp32 evaluations of three layers (tests/helpers/trl_trainers.py)."""
    theirs = {n: p.grad for n, p in peer.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if "lora_" in name:
            other = theirs.pop(f"base_model.model.{name}.default.weight")
            assert (p.grad - other).abs().max() <= scale * other.abs().max(), name
        elif "score" not in name:
            assert p.grad is None, name
    assert not [n for n in theirs if "lora_" in n]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
                                          "alpha_pattern": {"down_proj": 11}}], ids=["plain", "patterns"])  # fmt: skip
def test_from_peft(kind, options, tmp_path):
    """Guards an adapter that PEFT wrote: its log-probs and gradients, scales by pattern and rank-stabilised ones."""
    peft = pytest.importorskip("peft")
    hf = hf_model(kind)
    ours(hf, tmp_path / "base")
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    peer = peft.get_peft_model(
        hf, peft.LoraConfig(r=4, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM", **options)
    )
    peer.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    g = torch.Generator().manual_seed(1)
    for name, p in peer.named_parameters():
        if "lora_" in name:
            p.data.normal_(generator=g, std=0.15)
    peer.save_pretrained(tmp_path / "adapter")
    model = vd.load_model(str(tmp_path / "adapter"))
    trees = forest(g)
    logp, expected = model(vd.pack(trees)).logp, hf_logp(peer, trees)
    assert (logp - expected).abs().max() <= 64 * EPS * expected.abs().max()
    logp.sum().backward()
    expected.sum().backward()
    assert_gradients_of_peft(model, peer)


def test_to_peft(tmp_path):
    """Guards an adapter that we wrote: PEFT opens it with equal log-probs, and transformers its merged model."""
    peft = pytest.importorskip("peft")
    hf = hf_model("qwen3")
    model = adapted(ours(hf, tmp_path / "base"), targets=("all-linear",), rslora=True, rank_pattern={
        "model.layers.1.mlp.up_proj": 6}, alpha_pattern={"model.layers.0.self_attn.q_proj": 3.0})  # fmt: skip
    trees = forest(torch.Generator().manual_seed(2))
    logp = model(vd.pack(trees)).logp
    vd.save_adapter(model, None, tmp_path / "adapter", str(tmp_path / "base"))
    peer = peft.PeftModel.from_pretrained(hf, tmp_path / "adapter")
    assert (logp - hf_logp(peer, trees)).abs().max() <= 64 * EPS * logp.abs().max()
    vd.save_model(model, None, tmp_path / "merged")
    import transformers

    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logp - hf_logp(merged, trees)).abs().max() <= 64 * EPS * logp.abs().max()
    back = vd.load_model(str(tmp_path / "adapter"))
    assert torch.equal(back(vd.pack(trees)).logp, logp) and back.lora.rank_pattern == model.lora.rank_pattern


def test_a_reward_model_and_peft(tmp_path):
    """Guards scalar models both ways: the head, which is trained whole, is in the adapter's file."""
    peft = pytest.importorskip("peft")
    hf = hf_model("llama", scalar=True)
    model = adapted(ours(hf, tmp_path / "base"))
    assert model.score.weight.requires_grad and not model.model.norm.weight.requires_grad
    with torch.no_grad():
        model.score.weight.add_(0.3)
    tree = forest(torch.Generator().manual_seed(2))[1]
    values = model(vd.pack([tree])).values
    vd.save_adapter(model, None, tmp_path / "adapter", str(tmp_path / "base"))
    peer = peft.PeftModel.from_pretrained(hf, tmp_path / "adapter")
    ids = torch.tensor([tree.prompt + tree.branches[0]])
    assert abs(float(peer(ids).logits) - float(values[-1])) <= 64 * EPS * float(values.abs().max())
    peer.save_pretrained(tmp_path / "theirs")
    for folder in ("adapter", "theirs"):
        assert torch.equal(vd.load_model(str(tmp_path / folder))(vd.pack([tree])).values, values)


def test_adapter_off_is_the_plain_model():
    """Guards DPO's reference: the bits of the model before it had adapters; and a model whose adapters are new."""
    model = fill(Transformer(tiny_config("llama")))
    pack = vd.pack(forest(torch.Generator().manual_seed(0), 250))
    plain = model(pack).logp
    vd.add_lora(model, vd.Lora(rank=4, dropout=0.5))
    assert torch.equal(model(pack, dropout=SEED_STEP).logp, plain)  # B is zero
    with torch.no_grad():
        for p in adapter_parameters(model).values():
            p.fill_(0.1)
    assert not torch.equal(model(pack).logp, plain)
    with model.adapter_off(), pytest.raises(RuntimeError), model.adapter_off():
        assert torch.equal(model(pack, pack).probe_logp, plain) and torch.equal(model(pack).logp, plain)
        raise RuntimeError
    assert not torch.equal(model(pack).logp, plain)
    with pytest.raises(ValueError, match="has no adapter"), fill(Transformer(tiny_config("llama"))).adapter_off():
        pass


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_changes_no_bit(mode):
    """Guards dropout in a layer that is computed again, and what selective checkpointing keeps."""
    model = tiny(dropout=0.3)
    pack = vd.pack(forest(torch.Generator().manual_seed(0), 250))
    found = []
    for checkpointing in ("none", mode):
        for block in model.blocks:
            block.activation_checkpoint = checkpointing
        model.zero_grad()
        model(pack, dropout=SEED_STEP).logp.sum().backward()
        found.append({n: p.grad.clone() for n, p in adapter_parameters(model).items()})
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_dropout_is_of_tokens_not_of_places():
    """Guards 1 rank = 2 ranks and resuming: a tree's gradient is the same alone, among others and in another order; it
    differs with the step, the seed and the row; and nothing is dropped without being asked for, nor of probes."""
    model = tiny(dropout=0.3)
    trees = forest(torch.Generator().manual_seed(0), 250)

    def logp(*chosen: int, key=SEED_STEP) -> dict[int, torch.Tensor]:
        pack = vd.pack([trees[i] for i in chosen])
        sizes = [sum(map(len, trees[i].branches)) for i in chosen]
        return dict(zip(chosen, model(pack, dropout=key).logp.split(sizes), strict=True))

    alone = {i: logp(i)[i] for i in range(3)}
    for order in ((0, 1, 2), (2, 0, 1), (1, 2)):
        for i, found in logp(*order).items():
            torch.testing.assert_close(found, alone[i], rtol=1e-5, atol=1e-5)
    for key in ((3, 8), (4, 7), None):
        assert (logp(0, key=key)[0] - alone[0]).abs().max() > 1e-3
    plain = model(vd.pack(trees)).logp
    assert torch.equal(model(vd.pack(trees), vd.pack(trees), dropout=SEED_STEP).probe_logp, plain)
    renamed = [dataclasses.replace(trees[0], id=99)]
    assert (model(vd.pack(renamed), dropout=SEED_STEP).logp - alone[0]).abs().max() > 1e-3


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.99])
def test_dropout_drops_the_share_it_says(probability):
    """Guards the mean and the variance of what stays, odd widths, and columns, rows or layers that drop alike. Of n
    elements the dropped share is within 5 sqrt(p q / n) of p."""
    x = torch.ones(400, 333)
    keys = torch.arange(400) * 7919
    found = dropout(x, keys, probability, 3)
    n = x.numel()
    dropped = (found == 0).float()
    assert abs(float(dropped.mean()) - probability) < 5 * (probability * (1 - probability) / n) ** 0.5
    assert (found[found > 0] - 1 / (1 - probability)).abs().max() < 1e-2 / (1 - probability)
    for shifted in (dropped.roll(1, 0), dropped.roll(1, 1), (dropout(x, keys, probability, 4) == 0).float()):
        both = float((dropped * shifted).mean())
        assert abs(both - probability**2) < 5 * (probability**2 / n) ** 0.5
    assert torch.equal(found, dropout(x, keys, probability, 3))


def test_every_token_has_a_key_of_its_own():
    """Guards two tokens of a pack against one mask: prompts, branches of the same position, and firsts without rows."""
    g = torch.Generator().manual_seed(0)
    same = random_ids(5, g)
    trees = [vd.Tree(same, [same, same], id=1), vd.Tree(same, [same], id=2, firsts=[3, 4]), vd.Tree(same, [same], id=3)]
    pack = vd.pack(trees)
    keys = token_keys(pack, 0, 0)
    assert keys.shape == (pack.num_tokens,) and len(set(keys.tolist())) == pack.num_tokens


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("slots", [2, 8])
def test_samples_have_the_forwards_log_probs(kind, slots):
    """Guards decoding through adapters, prompts and tokens alike, on and off."""
    model = tiny(kind)
    g = torch.Generator().manual_seed(3)
    prompts = [random_ids(n, g, 250) for n in (3, 17, 70)]

    def check() -> list[list[int]]:
        with torch.no_grad():
            found = generate(model, prompts, Sampling(6, 1.0), samples=2, seed=1, slots=slots)
            trees = [vd.Tree(p, [c.tokens for c in cs]) for p, cs in zip(prompts, found, strict=True)]
            expected = model(vd.pack(trees)).logp
        got = torch.tensor([x for cs in found for c in cs for x in c.logp])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        return [c.tokens for cs in found for c in cs]

    on = check()
    with model.adapter_off():
        assert check() != on


def test_bf16(tmp_path):
    """Guards fp32 adapters beside bf16 weights: they stay fp32, and so do their gradients."""
    model = fill(Transformer(tiny_config("qwen3"))).bfloat16()
    adapted(model)
    for _, layer in adapted_layers(model):
        assert layer.weight.dtype == torch.bfloat16 and layer.lora_A.dtype == torch.float32
    pack = vd.pack(forest(torch.Generator().manual_seed(0), 250))
    model(pack).logp.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapter_parameters(model).values())
    with torch.no_grad():
        generate(model, [[1, 2, 3]], Sampling(3, 1.0))


def test_the_first_values(tmp_path):
    """Guards a start that depends on anything but the seed: A uniform in +-1/sqrt(in), B zero."""
    found = []
    for seed in (0, 0, 2**63 - 1):
        model = fill(Transformer(tiny_config("qwen3")))
        vd.add_lora(model, vd.Lora(rank=8), seed)
        found.append({n: p.detach() for n, p in adapter_parameters(model).items()})
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    for name, value in found[0].items():
        if name.endswith("lora_B"):
            assert not value.any()
            continue
        bound = value.shape[1] ** -0.5
        assert value.abs().max() <= bound and abs(value.std() - bound / 3**0.5) < 0.1 * bound
        assert not torch.equal(value, found[2][name])
    assert not torch.equal(*(found[0][f"model.layers.{i}.self_attn.q_proj.lora_A"] for i in (0, 1)))


def test_bad_input():
    """Guards a second adapter, and targets that this model has not."""
    model = tiny()
    with pytest.raises(InputError, match="has an adapter already"):
        vd.add_lora(model, vd.Lora(rank=2))
    with pytest.raises(
        InputError, match=r"target 'layers.9.mlp.up_proj' fits no linear layer of this qwen3 of 3 layers"
    ):
        vd.add_lora(fill(Transformer(tiny_config("qwen3"))), vd.Lora(targets=("layers.9.mlp.up_proj",)))
    with pytest.raises(ValueError, match="save_adapter: the model has no adapter"):
        vd.save_adapter(fill(Transformer(tiny_config("qwen3"))), None, "nowhere", "base")
