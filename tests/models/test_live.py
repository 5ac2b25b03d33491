"""Weights of a model in memory."""

import pytest
import torch
from helpers.peers import hf_model, ours

import vdengine as vd
from vdengine.errors import InputError
from vdengine.models.live import LiveWeights
from vdengine.models.weights import ScalarWeights, build_model, open_weights


@pytest.mark.parametrize(("kind", "tied", "scaled"), [("llama", True, True), ("qwen3", False, False)])
def test_a_model_of_transformers_is_that_of_its_folder(tmp_path, kind, tied, scaled):
    """Guards the way around the disk: config (rope scaling too), names, a tied head and every number are those that
    `save_pretrained` would write, and ours read."""
    hf = hf_model(kind, tied=tied, scaled=scaled)
    live, folder = build_model(LiveWeights(hf)), ours(hf, tmp_path / "hf")
    assert live.config == folder.config
    pack = vd.pack([vd.Tree([1, 2, 3], [[4, 5], [6]])])
    assert torch.equal(live(pack).logp, folder(pack).logp)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_our_model_is_that_of_its_folder(tiny_models, kind):
    """Guards a `vd.Transformer` as a source; it is only read."""
    model = vd.load_model(str(tiny_models[kind]))
    again = build_model(LiveWeights(model))
    for (name, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    scalar = build_model(ScalarWeights(LiveWeights(model), 3))  # the start of a reward model
    assert torch.equal(
        scalar.score.weight, build_model(ScalarWeights(open_weights(str(tiny_models[kind])), 3)).score.weight
    )


def test_the_hash_is_of_the_contents(tiny_models, monkeypatch):
    """Guards resume and the reference cache: equal weights have one hash however large the parts are that are hashed;
    one changed number, another dtype or other names, another one."""
    model = vd.load_model(str(tiny_models["llama"]))
    first = LiveWeights(model).hash
    assert LiveWeights(vd.load_model(str(tiny_models["llama"]))).hash == first
    with torch.no_grad():
        model.model.norm.weight[7] += 2**-20
    assert LiveWeights(model).hash != first
    assert len({first, LiveWeights(vd.load_model(str(tiny_models["llama"]), dtype=torch.bfloat16)).hash}) == 2
    with torch.no_grad():
        model.model.norm.weight[7] -= 2**-20
    assert LiveWeights(model).hash == first


def test_reading_copies_nothing(tiny_models):
    """Guards peak memory: rows are views of the model's own tensors, and a released one holds none of them."""
    model = vd.load_model(str(tiny_models["llama"]))
    weights, name = LiveWeights(model), "model.layers.1.mlp.up_proj.weight"
    parameter = dict(model.named_parameters())[name]
    part = weights.read(name, 2, 5)
    assert part.shape[0] == 3 and part.data_ptr() == parameter[2:].data_ptr() and not part.requires_grad
    weights.release()
    assert not any(value is parameter for value in vars(weights).values()) and weights._tensors == {}


def test_frozen_parameters_are_named(tiny_models):
    """Guards a model of which a part is not to be trained."""
    model = vd.load_model(str(tiny_models["llama"]))
    assert LiveWeights(model).frozen == frozenset()
    model.model.embed_tokens.weight.requires_grad_(False)
    assert LiveWeights(model).frozen == {"model.embed_tokens.weight"}
    with pytest.raises(InputError, match="no parameter takes a gradient"):
        LiveWeights(model.requires_grad_(False))


def test_what_cannot_be_read_is_refused(tiny_models):
    """Guards against weights that are not there, or mean something else than their names."""
    hf = hf_model("llama")
    with pytest.raises(InputError, match=r"model \(Linear\): neither a vd.Transformer nor a model of transformers"):
        LiveWeights(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="is on the meta device: the model has no weights"):
        LiveWeights(hf.to("meta"))
    hf = hf_model("llama")
    hf.lm_head.weight = hf.model.embed_tokens.weight
    with pytest.raises(InputError, match="the config says tie_word_embeddings = false"):
        LiveWeights(hf)
    hf = hf_model("llama")
    hf.model.norm.weight = torch.nn.Parameter(hf.model.norm.weight[:3].detach())
    with pytest.raises(InputError, match=r"model \(LlamaForCausalLM\): model.norm.weight has shape \(3,\)"):
        LiveWeights(hf)
    hf.peft_config = {}
    with pytest.raises(InputError, match=r"merge it first \(merge_and_unload\)"):
        LiveWeights(hf)
