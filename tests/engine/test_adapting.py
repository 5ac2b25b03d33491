"""Training adapters: the promises of any run hold for one whose weights are frozen, and its adapters go in and out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import recipe_of, tables
from helpers.scenarios import assert_close, same_bits, train

import vdengine as vd
from vdengine.engine.exporting import export
from vdengine.engine.preflight import check_model, preflight
from vdengine.engine.saved_models import SavedModel, load_checkpoint
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.models.weights import open_weights
from vdengine.recipe import make_recipe


def factors(found: dict) -> dict[str, torch.Tensor]:
    return {n: w for n, w in found["weights"].items() if "lora_" in n}


def test_only_the_adapter_learns(runs, start):
    """Guards frozen weights against an update, and adapters against none."""
    found = runs["lora"]
    moved = factors(found)
    assert len(moved) == 2 * 7 * 3 and all(w.abs().max() > 0 for w in moved.values())
    for name, weight in start["weights"].items():
        assert torch.equal(found["weights"][name], weight), name


def test_the_reference_is_the_model_without_its_adapter(runs):
    """Guards DPO's reference: the margin of the first step is 0, not nearly, though dropout is on; then it moves."""
    rows = runs["lora"]["rows"]
    assert rows[0]["rewards/margins"] == rows[0]["rewards/chosen"] == 0.0
    assert rows[-1]["rewards/margins"] != 0.0
    assert runs["lora_bf16"]["rows"][0]["rewards/margins"] == 0.0


def test_probes_change_no_bit(runs):
    """Guards dropout against what rides in the same forward, and against a generator that both would draw from."""
    assert same_bits(runs["lora"], runs["lora_probes_off"])


def test_a_resumed_run_has_the_same_bits(runs):
    """Guards dropout's noise and the adapters' moments across a checkpoint."""
    assert same_bits(runs["lora"], runs["lora_resumed"])
    assert runs["lora"]["answers"] == runs["lora_resumed"]["answers"]


def test_packs_do_not_matter(one, start):
    """Guards dropout against depending on where a token stands in a pack: with that, losses differ by 1e-2."""
    assert_close(one["lora"], one["lora_small_packs"], start)


@pytest.mark.slow
def test_one_rank_is_two_ranks(one, two, start):
    """Guards sharded adapters beside frozen weights, and dropout against the rank."""
    for name in ("lora", "lora_reward"):
        assert_close(one[name], two[name], start)


def test_ppo(runs):
    """Guards PPO with adapters: ratios of 1, no distance from the reference at first, and a critic that learns."""
    rows = runs["lora_ppo"]["rows"]
    assert rows[0]["objective/kl"] == 0.0 and rows[-1]["objective/kl"] != 0.0
    assert rows[0]["value/grad_norm"] > 0
    assert rows[0]["sampling/sampling_logp_difference/mean"] < 1e-5


def test_a_reward_models_head_is_trained_whole(one, start):
    """Guards the new head, which an adapter alone would leave as it was drawn."""
    assert one["lora_reward"]["weights"]["score.weight"].shape == (1, 40)
    assert one["lora_reward"]["rows"][-1]["loss"] != one["lora_reward"]["rows"][0]["loss"]


# ------------------------------------------------------------------------------------------------ files of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_models, data):
    """A finished run with an adapter, and its trainer."""
    out = tmp_path_factory.mktemp("run")
    model = shutil.copytree(tiny_models["qwen3"], out / "base")
    recipe = recipe_of("lora_probes_off", out, str(model), str(data))
    recipe.checkpoint.export = True
    return train(recipe)


def test_a_checkpoint_has_what_is_trained(run):
    """Guards the size of checkpoints, and that it is known whose adapter one is."""
    folder = run.files.checkpoint(4)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["base"] == run.weights.hash
    held = sum(p.numel() for p in run.model.parameters() if p.requires_grad) * 12
    assert sum(f.stat().st_size for f in folder.glob("*.distcp")) < 2 * held + 2**20
    from vdengine.engine.metadata import SafeReader

    names = SafeReader(folder).read_metadata().state_dict_metadata
    assert all("lora_" in n or n.startswith("numbers.") for n in names) and len(names) > 100


def test_saved_models_are_the_trained_one(run, tmp_path):
    """Guards checkpoint, adapter and merged export: all three give the trained model's log-probs, the first two its
    bits."""
    pack = run.idle
    trained = run.model(pack).logp
    source = str(run.files.path.parent / "base")
    opened = load_checkpoint(run.files.checkpoint(4), open_weights(source))
    assert torch.equal(opened(pack).logp, trained)
    assert torch.equal(SavedModel.find(str(run.files.checkpoint(4))).model("float32")(pack).logp, trained)
    assert torch.equal(vd.load_model(str(run.files.export))(pack).logp, trained)
    step, folder = export(run.files.path, merge=True)
    merged = vd.load_model(str(folder))
    assert (step, folder.name) == (4, "merged-4") and merged.lora is None
    torch.testing.assert_close(merged(pack).logp, trained, rtol=1e-5, atol=1e-5)
    _, again = export(run.files.path, 4, tmp_path / "again")
    assert (again / "adapter_model.safetensors").read_bytes() == (
        run.files.export / "adapter_model.safetensors"
    ).read_bytes()


def test_starting_from_an_adapter(run, tmp_path, data):
    """Guards the second stage: it goes on where the first ended, its reference is where it starts, and one that is said
    to be the plain model is not taken for a fault."""
    t = tables(tmp_path, str(run.files.path.parent / "base"), str(data), "next")
    t |= {"lora": {"start": str(run.files.export)}, "probes": {"every": 0}}
    trainer = Trainer(make_recipe(t))
    assert trainer.recipe.objective.reference == "cached" and trainer.lora.rank == 4
    for name, p in trainer.model.named_parameters():
        if "lora_" in name:
            assert torch.equal(p.full_tensor(), dict(run.model.named_parameters())[name].full_tensor())
    assert abs(trainer.step()["rewards/margins"]) < 1e-5
    trainer.close()
    t["run"] |= {"folder": str(tmp_path / "off")}
    t["objective"] |= {"reference": "adapter_off"}
    trainer = Trainer(make_recipe(t))
    assert abs(trainer.step()["rewards/margins"]) > 1e-4
    trainer.close()
    t["run"] |= {"folder": str(tmp_path / "live")}
    t["objective"] |= {"reference": "live"}
    trainer = Trainer(make_recipe(t))
    assert trainer.step()["rewards/margins"] == 0.0
    trainer.close()


def other_weights(folder: Path, source: Path) -> Path:
    """A base of the same shapes."""
    model = vd.load_model(str(source))
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    vd.save_model(model, vd.load_tokenizer(str(source)), folder)
    return folder


def test_another_base_is_refused(run, tmp_path, tiny_models, data):
    """Guards against an adapter beside weights that it was not trained with: at the start, on resuming, in a score."""
    base = run.files.path.parent / "base"
    other = other_weights(tmp_path / "other", base)
    t = tables(tmp_path, str(other), str(data), "next") | {"lora": {"start": str(run.files.export)}}
    with pytest.raises(InputError, match=r"^lora.start: .*export: an adapter for another base model .*hash"):
        Trainer(make_recipe(t))
    t["model"]["source"] = str(tiny_models["llama"])
    with pytest.raises(InputError, match=r"^lora.start: .*export: an adapter for another base model"):
        Trainer(make_recipe(t))
    with pytest.raises(InputError, match=r"step-000004: of a base model with the hash .*; this one's is"):
        load_checkpoint(run.files.checkpoint(4), open_weights(str(other)))
    recipe = recipe_of("lora_probes_off", run.files.path.parent, str(other), str(data))
    with pytest.raises(InputError, match="cannot resume, the contents have changed: model.source"):
        Trainer(recipe)


def test_a_given_model(run, tmp_path, data):
    """Guards a model in memory as the base: it is not changed, may be frozen, and must be without an adapter."""
    base = str(run.files.path.parent / "base")
    t = tables(tmp_path, base, str(data), "given") | {"lora": {"rank": 2}, "probes": {"every": 0}}
    del t["model"]["source"]
    model = vd.load_model(base).requires_grad_(False)
    trainer = Trainer(t, model=model, tokenizer=vd.load_tokenizer(base))
    assert trainer.step()["rewards/margins"] == 0.0
    trainer.close()
    vd.add_lora(model, vd.Lora(rank=2))
    with pytest.raises(InputError, match="has an adapter; write it with vd.save_adapter"):
        Trainer(t, model=model, tokenizer=vd.load_tokenizer(base))


def test_an_adapter_over_an_adapter(tmp_path, tiny_models, data):
    """Guards SFT and then DPO, both with LoRA: the second adapter is over the merged first, and its export is read back
    with the bits that were trained."""
    first = recipe_of("lora", tmp_path / "a", str(tiny_models["qwen3"]), str(data))
    first.checkpoint.export = True
    train(first)
    second = recipe_of("lora", tmp_path / "b", str(tiny_models["qwen3"]), str(data))
    second.checkpoint.export = True
    second.model.source = str(Path(first.run.folder) / "export")
    preflight(second)
    trainer = train(second)
    ids = torch.arange(20, 40)
    packed = vd.pack([vd.Tree(ids[:8].tolist(), [ids[8:].tolist()])])
    found = vd.load_model(str(Path(second.run.folder) / "export"))
    with torch.no_grad():
        assert torch.equal(found(packed).logp, trainer.model(packed).logp)


def test_a_reward_models_adapter(tmp_path, tiny_models, data):
    """Guards reward models trained with LoRA: what a run exports is opened by the next one, whatever seed its head
    began with, and is no language model."""
    made = recipe_of("lora_reward", tmp_path, str(tiny_models["qwen3"]), str(data))
    made.run.steps, made.checkpoint.export, made.run.seed = 1, True, 3
    train(made)
    folder = str(Path(made.run.folder) / "export")
    assert open_weights(folder).config.head == "scalar" and vd.load_model(folder).config.head == "scalar"
    assert check_model(folder, None).head == "scalar"
    with pytest.raises(InputError, match="an adapter of a reward model; a language model is needed"):
        check_model(folder, "causal")
