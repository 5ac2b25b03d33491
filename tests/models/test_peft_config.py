"""adapter_config.json: what is read of it, what is refused by name, and which layers an adapter has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.tiny import tiny_config

from vdengine.errors import InputError
from vdengine.models.peft_config import Lora, peft_config, read_peft_config, short_names, tokenizer_of

CONFIG = tiny_config("qwen3")
GOOD = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def written(folder: Path, **changes) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(GOOD | changes))
    return folder


def test_layers_and_scales():
    """Guards targets by the end of a name, and both scales."""
    lora = Lora(4, 6.0, ("q_proj", "layers.1.mlp.up_proj"), rank_pattern={"model.layers.1.mlp.up_proj": 2})
    modules = lora.modules(CONFIG)
    assert list(modules) == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj",
        "model.layers.2.self_attn.q_proj",
    ]  # fmt: skip
    assert modules["model.layers.1.mlp.up_proj"] == (2, 3.0)
    assert Lora(4, 6.0, rslora=True).modules(CONFIG)["model.layers.0.mlp.up_proj"] == (4, 3.0)
    assert len(Lora(4).modules(CONFIG)) == 21
    assert lora.num_parameters(CONFIG) == 3 * 4 * (40 + 96) + 2 * (40 + 72)
    assert short_names(Lora(4, targets=("mlp.up_proj", "layers.0.self_attn.q_proj")).modules(CONFIG), CONFIG) == (
        "model.layers.0.self_attn.q_proj", "up_proj",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank = 0 is out of range; allowed: 1 to"),
        ({"alpha": 0.0}, "alpha = 0.0 is out of range"),
        ({"alpha": float("nan")}, "alpha = nan is out of range"),
        ({"dropout": 1.0}, "dropout = 1.0 is out of range"),
        ({"targets": ()}, "no targets"),
        ({"targets": ("lm_head",)}, "lm_head cannot be a target"),
        ({"targets": ("model.embed_tokens",)}, "model.embed_tokens cannot be a target"),
        ({"targets": ("qproj",)}, "target 'qproj' fits no linear layer of this qwen3 of 3 layers; there are down_proj"),
        ({"targets": ("proj",)}, "target 'proj' fits no linear layer"),
        ({"targets": ("q_proj",), "rank_pattern": {"model.layers.0.mlp.up_proj": 2}}, "is no target"),
    ],
)
def test_what_no_adapter_can_be(arguments, message):
    """Guards against targets that match nothing, or a part of a name, and values without sense."""
    with pytest.raises(InputError, match=f"^LoRA: .*{message}"):
        Lora(**arguments).modules(CONFIG)


def test_there_and_back(tmp_path):
    """Guards what a run writes of its adapter against what is read of it later."""
    lora = Lora(4, 6.5, ("q_proj", "layers.1.mlp.up_proj"), 0.1, True, {"model.layers.1.mlp.up_proj": 2},
                {"model.layers.0.self_attn.q_proj": 3.0})  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(lora, CONFIG, "some/base")))
    found = read_peft_config(tmp_path)
    again = found.lora(found.targeted(CONFIG) or [], CONFIG)
    assert again.modules(CONFIG) == lora.modules(CONFIG) and again.dropout == 0.1 and found.base == "some/base"


def test_what_peft_writes_is_read(tmp_path):
    """Guards against a key of PEFT's that is new, or that a default of it is refused."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM", base_model_name_or_path="a/b")
    config.save_pretrained(tmp_path)
    found = read_peft_config(tmp_path)
    assert (found.rank, found.alpha, found.targets, found.base) == (8, 8.0, ("q_proj",), "a/b")
    assert found.targeted(CONFIG) == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    config.target_modules = r".*\.(q|v)_proj"
    config.save_pretrained(tmp_path)
    assert read_peft_config(tmp_path).targeted(CONFIG) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported; LORA is"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"lora_bias": True}, "lora_bias = True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = .* is not supported"),
        ({"modules_to_save": ["score"]}, "modules_to_save = .* is not supported"),  # of a language model
        ({"trainable_token_indices": [1]}, "trainable_token_indices = .* is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication = .* is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = .*changes the base model's weights"),
        ({"something_new": {"a": 1}}, "something_new = .* is not supported"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type = .* is not supported"),
        ({"target_modules": {"a": 1}}, "target_modules must be a list of names"),
        ({"r": 0}, "rank = 0 is out of range"),
        ({"r": "8"}, "r = '8' is no such number"),
        ({"r": True}, "r = True is no such number"),
        ({"lora_alpha": 1e400}, "lora_alpha = inf is no such number"),
        ({"rank_pattern": [1]}, "rank_pattern must map names to numbers"),
        ({"alpha_pattern": {"(a+)+$": 2}}, r"alpha_pattern: .* is an expression; names of layers are read"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path must be a text"),
    ],
)
def test_what_is_refused(changes, message, tmp_path):
    """Guards against an adapter that is read as less than it is, and against a stranger's expression that is run."""
    with pytest.raises(InputError, match=message) as error:
        found = read_peft_config(written(tmp_path, **changes))
        found.lora(["model.layers.0.self_attn.q_proj"], CONFIG)
    assert "\n" not in str(error.value)


def test_whose_tokenizer(tmp_path):
    """Guards an adapter of a trainer that saved no tokenizer."""
    folder = written(tmp_path, base_model_name_or_path="org/base")
    assert tokenizer_of(str(folder)) == "org/base" and tokenizer_of("org/other") == "org/other"
    (folder / "tokenizer.json").write_text("{}")
    assert tokenizer_of(str(folder)) == str(folder)
