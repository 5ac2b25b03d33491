"""GGUF files: what llama.cpp writes is read, and one clear line for files that are not whole."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fuzzing import damage, read_or_refused
from helpers.tiny import fill
from helpers.weights import one_line, same_weights

from vdengine.errors import InputError
from vdengine.gguf import read_gguf
from vdengine.models.families import FAMILIES, Llama3Scaling, ModelConfig
from vdengine.models.transformer import Transformer
from vdengine.models.weights import load_model, open_weights


def write_gguf(path: Path, config: ModelConfig, state: dict[str, torch.Tensor], quantise: str = "F32", **meta) -> None:
    """What llama.cpp's converter writes: its names, and for families that it permutes its row order of q and k."""
    import gguf

    arch = config.model_type
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    if "llama__attention__head_count_kv" not in meta:
        w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_rope_freq_base(config.rope_theta)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    adders = {str: w.add_string, bool: w.add_bool, float: w.add_float32, int: w.add_uint32}
    for key, value in meta.items():
        adders[type(value)](key.replace("__", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], 99)
    for name, tensor in state.items():
        if name == "rope_freqs.weight":
            w.add_tensor(name, tensor.numpy())
            continue
        array = tensor.float().numpy()
        if config.family.gguf_permuted and ("q_proj" in name or "k_proj" in name):
            heads = array.shape[0] // config.head_dim
            array = array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType[quantise if array.ndim == 2 else "F32"]
        w.add_tensor(
            names.get_name(name, (".weight", ".bias")) or name, gguf.quants.quantize(array, kind), raw_dtype=kind
        )
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def small(kind: str, **changes) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    values = {
        "model_type": kind, "vocab_size": 37, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "rope_scaling": None, "tie_word_embeddings": kind == "llama", "max_position_embeddings": 512,
    }  # fmt: skip
    config = ModelConfig(**(values | changes))
    model = fill(Transformer(config))
    return config, {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.gguf])
@pytest.mark.parametrize("quantise", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_round_trip(kind, quantise, tmp_path):
    """Guards against wrong names (of norms and biases too), ties, row order, or rows cut in the middle of a block."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    config, state = small(kind)
    write_gguf(tmp_path / "m.gguf", config, state, quantise)
    weights = open_weights(str(tmp_path / "m.gguf"))
    assert weights.config == config
    for name, tensor in state.items():
        if tensor.ndim == 2:
            kind_id = GGMLQuantizationType[quantise]
            tensor = torch.from_numpy(dequantize(quantize(tensor.numpy(), kind_id), kind_id).copy())
        assert torch.equal(weights.read(name), tensor), name
        for start, stop in ((0, 1), (3, 20), (5, None), (8, 8)):
            assert torch.equal(weights.read(name, start, stop), tensor[start:stop]), name
    same_weights(load_model(str(tmp_path / "m.gguf")), {n: weights.read(n) for n in state})


def test_gguf_keeps_llama3_rope_scaling(tmp_path):
    """Guards against Llama-3.1 GGUF files, which hold the scaling as factors only, read without it."""
    from vdengine.models.transformer import rope_frequencies

    scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    config, state = small("llama", rope_scaling=scaling, head_dim=64)
    plain, _ = small("llama", head_dim=64)
    plain_rope, rope = plain.ropes[0], config.ropes[0]
    factors = rope_frequencies(plain_rope, 64) / rope_frequencies(rope, 64)
    write_gguf(tmp_path / "m.gguf", config, state | {"rope_freqs.weight": factors})
    assert open_weights(str(tmp_path / "m.gguf")).config == config
    write_gguf(tmp_path / "other.gguf", config, state | {"rope_freqs.weight": factors.flip(0)})
    with one_line("Llama-3.1's scaling"):
        open_weights(str(tmp_path / "other.gguf"))


@pytest.mark.parametrize("meta, reason", [
    ({"llama__expert_count": 8}, "expert_count"),
    ({"llama__rope__scaling__type": "yarn"}, "scaling.type"),
    ({"llama__rope__dimension_count": 16}, "rope.dimension_count"),
    ({"llama__attention__sliding_window": 128}, "sliding_window"),
    ({"llama__rope__scaling__factor": 4.0}, "rope.scaling.factor = 4.0 is not supported"),  # linear, in llama.cpp
    ({"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0}, "rope.scaling.factor"),
    ({"llama__rope__scale_linear": 2.0}, "rope.scale_linear"),
    ({"llama__rope__scaling__attn_factor": 0.5}, "attn_factor"),
    ({"llama__attention__scale": 0.5}, "attention.scale"),
    ({"llama__attention__clamp_kqv": 8.0}, "clamp_kqv"),
    ({"llama__attention__causal": False}, "attention.causal"),
    ({"llama__attention__max_alibi_bias": 8.0}, "max_alibi_bias"),
    ({"llama__logit_scale": 0.5}, "logit_scale"),
    ({"llama__final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ({"llama__a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
    ({"llama__vocab_size": 38}, "vocab_size = 38 is not supported; the embedding has 37 rows"),
    ({"llama__attention__head_count_kv": "2"}, "attention.head_count_kv"),
    ({"general__type": "adapter"}, "general.type = 'adapter'"),
    ({"adapter__type": "lora"}, "keys that are not known: adapter.type; known are general.*, tokenizer.*, llama.*"),
    ({"rope__scaling__factor": 4.0}, "not known: rope.scaling.factor"),
    ({"qwen2__rope__scaling__factor": 4.0}, "not known: qwen2.rope"),
    ({"LLAMA__rope__scaling__factor": 4.0}, "not known: LLAMA.rope"),
    ({"General__type": "adapter"}, "not known: General.type"),
    ({"split__count": 3}, "split.count = .3.: one part"),
])  # fmt: skip
def test_gguf_of_other_kinds_is_refused(meta, reason, tmp_path):
    """Guards against a model whose numbers would come out wrong without a word."""
    config, state = small("llama")
    write_gguf(tmp_path / "m.gguf", config, state, **meta)
    with one_line(reason):
        open_weights(str(tmp_path / "m.gguf"))


def test_gguf_keys_that_change_nothing(tmp_path):
    """Guards against a refusal of what converters write into every file."""
    config, state = small("llama")
    meta = {
        "rope__scaling__type": "none", "rope__scaling__factor": 1.0, "expert_count": 0, "vocab_size": 37,
        "rope__dimension_count": 32, "attention__causal": True, "logit_scale": 1.0, "attention__sliding_window": 0,
    }  # fmt: skip
    made = {
        "quantize__imatrix__file": "x",
        "general__tags": "x",
        "tokenizer__ggml__x": 1,
        "mradermacher__quantized_by": "x",
    }
    write_gguf(tmp_path / "m.gguf", config, state, **{f"llama__{k}": v for k, v in meta.items()}, **made)
    assert open_weights(str(tmp_path / "m.gguf")).config == config


@pytest.mark.parametrize("quantise", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gguf_values_that_are_not_finite(quantise, bad, tmp_path):
    """Guards against scores of a broken model: NaN among weights, or as the scale of a block of quantised ones."""
    config, state = small("llama")
    write_gguf(tmp_path / "m.gguf", config, state, quantise)
    tensor = read_gguf(tmp_path / "m.gguf").tensors["blk.1.ffn_up.weight"]
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    value = np.array(bad, np.float32 if quantise == "F32" else np.float16).tobytes()
    data[tensor.offset : tensor.offset + len(value)] = value
    (tmp_path / "m.gguf").write_bytes(bytes(data))
    with one_line("model.layers.1.mlp.up_proj.weight has values that are not finite"):
        load_model(str(tmp_path / "m.gguf"))


def test_gguf_that_is_no_file(tmp_path):
    """Guards against a FIFO that is waited for."""
    os.mkfifo(tmp_path / "m.gguf")
    with one_line("m.gguf: not a regular file"):
        read_gguf(tmp_path / "m.gguf")


def test_gguf_with_missing_or_foreign_tensors(tmp_path):
    """Guards against biases that are dropped, and layers that stay uninitialised."""
    config, state = small("llama")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}
    write_gguf(tmp_path / "a.gguf", config, state | bias)
    with one_line("1 unexpected .model.layers.0.self_attn.q_proj.bias"):
        open_weights(str(tmp_path / "a.gguf"))
    del state["model.layers.1.mlp.up_proj.weight"]
    write_gguf(tmp_path / "b.gguf", config, state)
    with one_line("1 missing .model.layers.1.mlp.up_proj.weight"):
        open_weights(str(tmp_path / "b.gguf"))
    write_gguf(tmp_path / "c.gguf", small("llama", hidden_size=96)[0], small("llama")[1])
    with one_line("has shape"):
        open_weights(str(tmp_path / "c.gguf"))


def test_gguf_cut_short_or_damaged(tmp_path):
    """Guards against a hostile or damaged header: endless loops, huge allocations, reads beyond the file."""
    config, state = small("llama")
    write_gguf(tmp_path / "m.gguf", config, state)
    whole = (tmp_path / "m.gguf").read_bytes()
    header = min(t.offset for t in read_gguf(tmp_path / "m.gguf").tensors.values())
    bad = tmp_path / "bad.gguf"

    def attempt(data: bytes) -> str | None:
        bad.write_bytes(data)
        try:
            for name in (weights := open_weights(str(bad))).names:
                weights.read(name)
        except InputError as error:
            assert "\n" not in str(error) and "bad.gguf" in str(error)
            return str(error)
        return None

    rng = random.Random(1)
    for _ in range(150):  # lengths and offsets of 2^62 too
        bad.write_bytes(damage(rng, bad.name, whole))
        read_or_refused(lambda: load_model(str(bad)))
    rng = random.Random(0)
    for size in [0, 3, 4, 23, 24, header - 1, header, len(whole) - 64, *(rng.randrange(len(whole)) for _ in range(60))]:
        assert attempt(whole[:size]) is not None, size
    assert "not a GGUF" in (attempt(b"PK\3\4" + whole[4:]) or "")
    assert "version 99" in (attempt(whole[:4] + b"\x63\0\0\0" + whole[8:]) or "")
    for at in (8, 16, 24):  # the tensor count, the key count, the first string's length
        for value in (2**64 - 1, 2**63, 2**40, 2**31):
            assert attempt(whole[:at] + value.to_bytes(8, "little") + whole[at + 8 :]) is not None
    for _ in range(400):  # any damage: a clear error, or a file that can still be read
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(header)] = rng.choice((0, 1, 8, 9, 127, 255, rng.randrange(256)))
        attempt(bytes(data))
