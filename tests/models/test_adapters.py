"""Adapters on disk: for another base, cut short, or with tensors that are no adapter's."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.tiny import fill, tiny_config
from safetensors.torch import load_file, save_file

import vdengine as vd
from vdengine.errors import InputError
from vdengine.models.adapters import Adapter
from vdengine.models.export import Base
from vdengine.models.lora import adapter_parameters
from vdengine.models.transformer import Transformer
from vdengine.models.weights import open_weights


@pytest.fixture
def adapter(tmp_path, tiny_models):
    """A folder with an adapter of q_proj and up_proj, and its model."""
    model = vd.load_model(str(tiny_models["qwen3"]))
    vd.add_lora(model, vd.Lora(rank=2, alpha=3.0, targets=("q_proj", "up_proj")))
    with torch.no_grad():
        for p in adapter_parameters(model).values():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()), std=0.1)
    vd.save_adapter(model, None, tmp_path / "adapter", Base(str(tiny_models["qwen3"]), "0" * 32))
    mark = tmp_path / "adapter" / "vdengine.json"
    assert json.loads(mark.read_text())["base"] == "0" * 32
    mark.unlink()  # as PEFT's, which has none
    return tmp_path / "adapter", model


def change(folder, function) -> None:
    """Apply a function to the tensors of the file."""
    tensors = load_file(folder / "adapter_model.safetensors")
    function(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_merged_rows(adapter, tiny_models):
    """Guards a merged model that is read row by row, as sharded loading does, and its hash."""
    folder, model = adapter
    weights, base = open_weights(str(folder)), open_weights(str(tiny_models["qwen3"]))
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_submodule(name)
    whole = base.read(f"{name}.weight") + 1.5 * layer.lora_B.detach() @ layer.lora_A.detach()
    torch.testing.assert_close(weights.read(f"{name}.weight"), whole)
    torch.testing.assert_close(weights.read(f"{name}.weight", 5, 9), whole[5:9])
    assert torch.equal(weights.read("model.norm.weight"), base.read("model.norm.weight"))
    before = weights.hash
    change(folder, lambda t: t["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].add_(1))
    assert open_weights(str(folder)).hash != before != base.hash


PREFIX = "base_model.model."


def factors(name: str) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}{name}.lora_{factor}.weight": torch.ones(2, 2) for factor in "AB"}


UP = f"{PREFIX}model.layers.1.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda t: t.pop(UP), "up_proj has no lora_A"),
        (lambda t: t.update({UP: t[UP][:, :7].clone()}), r"for another base model .*\[72, 40\] here"),
        (lambda t: t.update({UP: torch.zeros(3, 40)}), "for another base model"),
        (lambda t: t.update({UP: torch.full((2, 40), torch.nan)}), "up_proj.lora_A has values that are not finite"),
        (lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}), "is F8_E4M3; F32, F16, BF16 and F64 are read"),
        (lambda t: t.update({UP.replace("lora_A.weight", "lora_magnitude_vector"): t[UP] + 1}), "no factor of LoRA"),
        (lambda t: t.update(factors("lm_head")), "adapter of lm_head"),
        (lambda t: t.update(factors("model.layers.7.mlp.up_proj")), "this qwen3 of 3 layers has no model.layers.7"),
        (lambda t: [t.pop(n) for n in list(t) if ".1.mlp.up_proj" in n], "target_modules names .*which .* lacks"),
        (lambda t: t.clear(), "no factor of LoRA"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(function, message, adapter):
    """Guards against an adapter that is read in part, or put on another model."""
    change(adapter[0], function)
    with pytest.raises(InputError, match=message) as error:
        vd.load_model(str(adapter[0]))
    assert "\n" not in str(error.value)


def test_files_that_are_none(adapter, tmp_path, tiny_models):
    """Guards against a folder without tensors, a pickle, a file that is cut short, a base that is gone or
    itself, and a model that is taken for an adapter."""
    folder = adapter[0]

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            vd.load_model(str(folder))

    config = json.loads((folder / "adapter_config.json").read_text())
    for base, message in (("", "base_model_name_or_path is missing"), ("gone/for/good", "its base model: gone"),
                          (str(folder), "more than 8 or in a circle")):  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        refused(message)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    refused("r = 3, but model.layers.0.mlp.up_proj has rank 2")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    refused("a reward model's adapter|no base_model.model.score.weight")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused("not a usable safetensors file")
    file.rename(folder / "adapter_model.bin")
    refused("no adapter_model.safetensors .*pickles are not read")
    with pytest.raises(InputError, match="no adapter: it has no adapter_config.json"):
        Adapter(str(tiny_models["qwen3"]))
    both = shutil.copytree(tiny_models["qwen3"], tmp_path / "both")
    shutil.copy(folder / "adapter_config.json", both)
    with pytest.raises(InputError, match="holds a model and an adapter_config.json"):
        vd.load_model(str(both))


def test_another_base_by_hash(adapter, tiny_models):
    """Guards weights of the same shapes, where the adapter knows whose it is."""
    (adapter[0] / "vdengine.json").write_text(json.dumps({"base": "0" * 32}))
    with pytest.raises(InputError, match="an adapter for another base model .*had the hash 0000"):
        vd.load_model(str(adapter[0]))


def test_a_model_with_an_adapter_is_exported_merged(tmp_path):
    """Guards an export that transformers would open without the adapter, in parts of files too."""
    model = fill(Transformer(tiny_config("llama")))
    pack = vd.pack([vd.Tree([1, 2, 3], [[4, 5, 6]])])
    vd.add_lora(model, vd.Lora(rank=2))
    with torch.no_grad():
        for p in adapter_parameters(model).values():
            p.fill_(0.05)
    vd.save_model(model, None, tmp_path / "merged")
    torch.testing.assert_close(vd.load_model(str(tmp_path / "merged"))(pack).logp, model(pack).logp)
