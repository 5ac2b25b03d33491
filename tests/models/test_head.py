"""Scalar heads on both architectures, as transformers reads and writes them.

Tolerance of scores against transformers: fp32 through three layers, 64 EPS of the largest (test_transformer.py).
"""

import numpy as np
import pytest
import torch
from helpers.peers import hf_model, ours, random_ids

import vdengine as vd
from vdengine.errors import InputError
from vdengine.models.weights import ScalarWeights, build_model, open_causal, open_weights

transformers = pytest.importorskip("transformers")

EPS = 2.0**-23


def trees(seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = [(5, [3, 9]), (1, [1]), (40, [1, 17, 2]), (7, [12])]
    return [vd.Tree(random_ids(p, g), [random_ids(n, g) for n in branches]) for p, branches in shape]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_scores_equal_transformers(kind, tmp_path):
    """Guards the scalar head's row: each branch's own last token, with one branch or several to a prompt."""
    hf = hf_model(kind, scalar=True, tied=kind == "llama")
    model = ours(hf, tmp_path)
    pack = vd.pack(trees())
    found = model(pack)
    assert found.logp.numel() == 0 and found.values.shape == (pack.num_tokens,) and found.values.dtype == torch.float32
    expected = [hf(torch.tensor([t.prompt + b])).logits.item() for t in trees() for b in t.branches]
    np.testing.assert_allclose(
        found.values[pack.ends].detach(), expected, rtol=0, atol=64 * EPS * np.abs(expected).max()
    )
    with pytest.raises(ValueError, match="no probes"):
        model(pack, probes=pack)


def test_ends_are_last_tokens():
    """Guards Pack.ends: the token there is the branch's last."""
    pack = vd.pack(trees())
    assert pack.tokens[pack.ends].tolist() == [b[-1] for t in trees() for b in t.branches]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_export_opens_in_transformers(kind, tmp_path, tiny_models):
    """Guards the folder: transformers gives the same scores, padded batches included; we open it again."""
    model = ours(hf_model(kind, scalar=True), tmp_path / "in")
    vd.save_model(model, None, tmp_path / "out")
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert hf.config.num_labels == 1
    ids = torch.tensor([[5, 6, 7, 8]])
    again, pack = vd.load_model(str(tmp_path / "out")), vd.pack([vd.Tree([5, 6], [[7, 8]])])
    assert torch.equal(again(pack).values, model(pack).values)
    assert hf(ids).logits.item() == pytest.approx(model(pack).values[-1].item(), abs=1e-5)

    tokenizer = vd.load_tokenizer(str(tiny_models["qwen3"]))
    vd.save_model(build_model(ScalarWeights(open_weights(str(tiny_models["qwen3"])), 0)), tokenizer, tmp_path / "pad")
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pad", dtype=torch.float32)
    end, pad = tokenizer.end_of_turn_id, hf.config.pad_token_id
    assert pad is not None and pad not in tokenizer.stop_ids  # or transformers would read before the answer's end
    both = hf(torch.tensor([[5, 6, 7, end, pad, pad], [5, 6, 7, 8, 9, end]])).logits[:, 0]
    pack = vd.pack([vd.Tree([5, 6, 7], [[end], [8, 9, end]])])
    mine = vd.load_model(str(tmp_path / "pad"))(pack).values[pack.ends]
    np.testing.assert_allclose(mine.detach(), both.detach(), rtol=0, atol=64 * EPS * both.abs().max().item())


def test_a_new_head(tiny_models):
    """Guards the start: the trunk as it is, a head drawn with deviation 1/sqrt(H + 1) by seed, or zeros for values."""
    trunk = open_weights(str(tiny_models["llama"]))
    drawn, same, other, zeros = (ScalarWeights(trunk, seed) for seed in (1, 1, 2, None))
    score = drawn.read("score.weight")
    assert torch.equal(score, same.read("score.weight")) and not torch.equal(score, other.read("score.weight"))
    assert 0.7 < score.std() * np.sqrt(trunk.config.hidden_size + 1) < 1.3 and not zeros.read("score.weight").any()
    assert drawn.hash == same.hash and len({drawn.hash, other.hash, zeros.hash, trunk.hash}) == 4
    model = build_model(drawn)
    assert not hasattr(model, "lm_head") and model.config.num_parameters == sum(p.numel() for p in model.parameters())
    assert torch.equal(model.model.embed_tokens.weight, trunk.read("model.embed_tokens.weight"))


def test_a_reward_model_is_no_language_model(tmp_path):
    """Guards SFT, DPO and the rest against a folder that has no output head."""
    ours(hf_model("llama", scalar=True), tmp_path)
    with pytest.raises(InputError, match="a reward model"):
        open_causal(str(tmp_path))
