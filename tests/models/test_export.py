"""Weights out: a folder that transformers opens, from one rank or many."""

from __future__ import annotations

import fcntl
import json
import os
import shutil

import pytest
import torch
import torch.multiprocessing as mp
from helpers.shards import shard_worker
from helpers.tiny import fill
from helpers.weights import one_line, same_weights, their_model
from safetensors.torch import load_file

from vdengine.errors import InputError
from vdengine.models import export as module
from vdengine.models.export import check_replaceable, save_model
from vdengine.models.weights import load_model
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer

# --- the same numbers as transformers ---


KINDS = ("llama tied", "llama untied", "qwen3")


@pytest.mark.slow
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


def test_export_has_the_template_of_the_run(tmp_path, tiny_models):
    """Guards a base model that was trained on a template of the recipe: its export answers in this template, and stops
    where its turns end. A template whose end is no token is written all the same."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_models["qwen3"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    (tmp_path / "chatml.jinja").write_text(template)
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert tokenizer.chat_template is None and tokenizer.stop_ids == [256]
    save_model(model, tokenizer, tmp_path / "out", renderer=Renderer(tokenizer, str(tmp_path / "chatml.jinja")))
    again = load_tokenizer(str(tmp_path / "out"))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == again.chat_template == template
    assert again.stop_ids == [258, 256] and again.eos_id == 256
    for name in ("generation_config.json", "config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [258, 256]
    (tmp_path / "text.jinja").write_text(template.replace("<|im_end|>", "<|done|>"))
    with pytest.warns(UserWarning, match=r"ends an assistant turn with '<\|done\|>', .* trained without an end"):
        save_model(model, tokenizer, tmp_path / "text", renderer=Renderer(tokenizer, str(tmp_path / "text.jinja")))
    assert load_tokenizer(str(tmp_path / "text")).stop_ids == [256]


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


def test_a_model_that_is_no_export_stays(tmp_path, tiny_models):
    """Guards a model of the same file names that is not ours: downloaded, or saved by transformers over an export."""
    model = load_model(str(tiny_models["qwen3"]))
    shutil.copytree(tiny_models["qwen3"], tmp_path / "theirs")
    with one_line("no vdengine.json: it is no export"):
        save_model(model, None, tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "model.safetensors").keys() == dict(model.named_parameters()).keys()
    for name, change, said in (
        ("config.json", lambda path: path.write_text(path.read_text() + " "), "config.json: has changed"),
        ("model.safetensors", lambda path: (path.unlink(), path.symlink_to("config.json")), "safetensors: has changed"),
        ("vdengine.json", lambda path: path.write_text("[]"), "not a JSON object"),
        ("vdengine.json", lambda path: path.write_text("{}"), "which files the export has"),
        ("checkpoint", lambda path: path.mkdir(), "holds 'checkpoint', no part of the export"),
    ):
        save_model(model, None, tmp_path / "out")
        change(tmp_path / "out" / name)
        with one_line(said):
            save_model(model, None, tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for target, source in (("theirs", "link"), ("link", "theirs"), ("link/out", "theirs"), (".", "theirs/")):
        with one_line("which the run reads"):
            check_replaceable(tmp_path / target, [str(tmp_path / source)])
    check_replaceable(tmp_path / "other", [str(tmp_path / "theirs"), "org/name", "package://x/y.gguf"])


@pytest.mark.parametrize("value, dtype", [(70_000.0, torch.float16), (-70_000.0, torch.float16), (float("nan"), None)])
def test_values_that_a_dtype_has_not(value, dtype, tmp_path, tiny_models):
    """Guards against infinities in the place of a good export."""
    model = load_model(str(tiny_models["qwen3"]))
    save_model(model, None, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with one_line("model.norm.weight has values that are not finite as float" + ("16" if dtype else "32")):
        save_model(model, None, tmp_path / "out", dtype)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["out"]


def test_no_room_is_said_before_writing(tmp_path, tiny_models, monkeypatch):
    """Guards against a disk that is full half way."""
    monkeypatch.setattr("vdengine.files.shutil.disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(InputError, match="no room for the export"):
        save_model(load_model(str(tiny_models["qwen3"])), None, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_exports_at_once_and_what_killed_ones_left(tmp_path, tiny_models, monkeypatch):
    """Guards two exports to one place, of which each is whole and the later one stays, and the disk against leftovers
    of killed ones."""
    model = load_model(str(tiny_models["qwen3"]))
    dead, alive, other = (tmp_path / f".{name}.partial" for name in ("out.0123456789abcdef", "out." + "f" * 16, "mine"))
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    fd = os.open(alive, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # as a process that writes it does
    finish = module._finish_folder

    def while_another_finishes(*arguments):
        target = arguments[-2]
        (target / "sub").mkdir(parents=True, exist_ok=True)
        (target / "sub").rmdir()
        module._write_json(target / "config.json", {})
        module._write_json(target / module.MARK, {"files": {"config.json": 3}})
        finish(*arguments)

    monkeypatch.setattr(module, "_finish_folder", while_another_finishes)
    save_model(model, None, tmp_path / "out")
    same_weights(load_model(str(tmp_path / "out")), dict(model.named_parameters()))
    os.close(fd)
    assert sorted(os.listdir(tmp_path)) == sorted(["out", alive.name, other.name])


def test_an_adapter_is_not_dropped(tmp_path, tiny_models):
    """Guards against an export that transformers opens without the adapter, and its weights left in the file."""
    model = load_model(str(tiny_models["qwen3"]))
    model.blocks[0].self_attn.q_proj.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(2, 40)))
    with pytest.raises(
        ValueError, match=r"save_model: model.layers.0.self_attn.q_proj.lora_A is no parameter of a qwen3"
    ):
        save_model(model, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.slow
@pytest.mark.parametrize("kind, ranks", [("llama", 2), ("qwen3", 3), ("llama", 4)])
def test_shards_load_and_save(kind, ranks, tmp_path, tiny_models, monkeypatch):
    """Guards against wrong rows in uneven shards or HSDP replicas, ranks that read everything, and ranks that hang."""
    (tmp_path / f"taken{ranks}").mkdir()
    (tmp_path / f"taken{ranks}" / "mine.txt").write_text("x")
    mp.spawn(shard_worker, (ranks, str(tmp_path), str(tiny_models[kind])), nprocs=ranks)
    ours, again = load_model(str(tiny_models[kind])), load_model(str(tmp_path / f"out{ranks}"))
    same_weights(again, ours.state_dict())
