"""A model's config, read from a folder and written to one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.tiny import tiny_config
from helpers.weights import one_line

from vdengine.models.families import config_from_hf, config_to_hf
from vdengine.models.weights import open_weights


def test_config_round_trip_without_a_tokenizer():
    """Guards against a config key that is written in one way and read in another."""
    for kind in ("llama", "qwen3"):
        config = tiny_config(kind)
        assert config_from_hf(json.loads(json.dumps(config_to_hf(config, "float32", None))), "x") == config


@pytest.fixture
def folder(tmp_path, tiny_models) -> Path:
    return Path(shutil.copytree(tiny_models["qwen3"], tmp_path / "m"))


@pytest.mark.parametrize("kind, change, reason", [
    ("llama", {"model_type": "mistral"}, "model_type = \"mistral\" is not supported; supported: llama, qwen3"),
    ("llama", {"architectures": ["LlamaForTokenClassification"]}, "architectures"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "num_labels"),
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = \"linear\""),
    ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "rope_type = \"yarn\""),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ("llama", {"rope_scaling": [1]}, "rope_scaling"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama", {"hidden_size": "40"}, "hidden_size"),
    ("llama", {"vocab_size": None}, "vocab_size"),
    ("llama", {"num_key_value_heads": 4}, "num_key_value_heads"),
    ("llama", {"head_dim": 15}, "head_dim"),
    ("llama", {"rms_norm_eps": -1}, "rms_norm_eps"),
])  # fmt: skip
def test_unsupported_configs_are_refused(kind, change, reason):
    """Guards against a config key that changes the numbers and is passed over."""
    raw = config_to_hf(tiny_config(kind), "float32", None) | {"rope_parameters": None} | change
    with one_line(reason) as error:
        config_from_hf(raw, "m/config.json")
    assert str(error.value).startswith("m/config.json: ")


def test_broken_config_file(folder):
    """Guards against a traceback from a config.json that is not one."""
    (folder / "config.json").write_text('{\n"a": 1,\n}')
    with one_line("config.json: line 3: broken JSON"):
        open_weights(str(folder))
    (folder / "config.json").unlink()
    with one_line("config.json: no such file"):
        open_weights(str(folder))
