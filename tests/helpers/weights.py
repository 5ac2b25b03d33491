"""Models of transformers to compare with, and what is equal."""

from __future__ import annotations

import pytest
import torch

from vdengine.errors import InputError
from vdengine.models.families import expected_shapes
from vdengine.models.transformer import Transformer

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def one_line(match: str):
    return pytest.raises(InputError, match=f"^[^\n]*{match}[^\n]*$")


def same_weights(model: Transformer, state: dict[str, torch.Tensor]) -> None:
    names = [n for n, _ in model.named_parameters()]
    assert len(names) == len(set(names)) >= len(expected_shapes(model.config))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, state[name]), name


def their_model(kind: str):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 267, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    if kind == "qwen3":
        config = transformers.Qwen3Config(
            **sizes, head_dim=32, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        )
        return transformers.Qwen3ForCausalLM(config)
    config = transformers.LlamaConfig(
        **sizes, tie_word_embeddings=kind == "llama tied", rope_parameters=LLAMA3 | {"rope_theta": 5e5}
    )
    return transformers.LlamaForCausalLM(config)
