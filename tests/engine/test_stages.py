"""A run that goes on after another: from its weights, and only where the samples of both are of the same things."""

import json
import os

import pytest
import torch
from helpers.runs import tables

from vdengine.drift import load_history
from vdengine.drift.panel_log import DriftLog
from vdengine.engine import metrics
from vdengine.engine.console import plan
from vdengine.engine.stages import planned_steps, stages_before, unfinished
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.files import Lock
from vdengine.recipe import load_recipe, make_recipe, saved_recipe, to_toml
from vdengine.runfolder import RunFolder


def recipe_of(where, model, data, folder, after=None, **changes):
    t = tables(where, str(model), str(data), folder)
    t["objective"] = {"name": "sft"}
    t["run"]["steps"], t["checkpoint"]["export"] = 2, True
    if after is not None:
        t["run"]["after"] = str(after)
        del t["model"]["source"]
        t["objective"] = {"name": "simpo", "beta": 2.0}
    for dotted, value in changes.items():
        section, name = dotted.split("__")
        t.setdefault(section, {})[name] = value
    return make_recipe(t)


def finish(trainer):
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    trainer.finish()
    trainer.close()
    return trainer


@pytest.fixture(scope="module")
def sft(tmp_path_factory, tiny_models, data):
    """A finished first stage."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    return finish(Trainer(recipe_of(tmp_path_factory.mktemp("sft"), tiny_models["qwen3"], data, "sft"))).folder


class Tracker:
    """What a tracker is sent."""

    def __init__(self, *_):
        self.steps = []

    def log(self, scalars, step):
        self.steps.append(step)

    def flush(self): ...

    def close(self): ...


def test_the_next_stage_goes_on(sft, tmp_path, tiny_models, data, monkeypatch):
    """Guards the whole: weights taken over to the bit, the first sample the last one before, trackers that count on,
    and a saved recipe that says the same again."""
    monkeypatch.setattr(metrics, "_TensorBoard", Tracker)
    recipe = recipe_of(tmp_path, tiny_models["qwen3"], data, "dpo", sft, log__trackers=["tensorboard"])
    assert recipe.model.source == str(sft / "export")
    trainer = Trainer(recipe)
    assert "stage   2, after sft: steps 3 to 4 of their history" in plan(trainer)
    finish(trainer)
    assert trainer.probes.said == ["the first sample is the last one of sft, to the bit"]
    assert trainer.metrics_log.trackers[0].steps[0] == 2 and max(trainer.metrics_log.trackers[0].steps) == 4
    first, last = DriftLog.open(trainer.folder).samples()[0], DriftLog.open(sft).samples()[-1]
    assert first.tobytes() == last.tobytes()
    assert load_history(trainer.folder).analysis().values.steps.tolist() == [0, 1, 2, 3, 4]
    again = saved_recipe(trainer.files.recipe)
    assert again == recipe and f'after = "{sft}"' in to_toml(again)
    third = stages_before(recipe_of(tmp_path, "", data, "ppo", trainer.folder))
    assert third.names == ["sft", "dpo"] and third.step == 4


def test_a_run_that_is_not_finished(sft, tmp_path, tiny_models, data):
    """Guards against half of a stage: no run, one that stands in the middle or is trained now, one without an export,
    an export of a run that was made longer since."""

    def refused(folder, said):
        with pytest.raises(InputError, match=said):
            stages_before(recipe_of(tmp_path, "", data, "next", folder))

    refused(tmp_path / "none", r"run\.after: .*none: no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not the folder of a run")
    half = Trainer(recipe_of(tmp_path, tiny_models["qwen3"], data, "half"))
    half.step()
    half.flush()
    refused(half.folder, r"not finished \(step 1 of 2\), and being trained now: wait for it")
    half.close()
    refused(half.folder, r"not finished \(step 1 of 2\): train it to its end first, vdengine train")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("recipe.toml", "metrics.jsonl"):
        (copy / name).write_text((sft / name).read_text())
    refused(copy, "has no export: vdengine export")
    (copy / "export").mkdir()
    assert unfinished(copy) == ""
    longer = (copy / "recipe.toml").read_text().replace("steps = 2", "steps = 3")
    (copy / "recipe.toml").write_text(longer)
    assert unfinished(copy).startswith("not finished (step 2 of 3)")
    refused(tmp_path / "next", "goes in a circle")
    coming = recipe_of(tmp_path, tiny_models["qwen3"], data, "coming", checkpoint__export=False)
    with pytest.raises(InputError, match=r"coming: has checkpoint\.export = false"):
        stages_before(recipe_of(tmp_path, "", data, "next", tmp_path / "coming"), [coming])


def test_planned_steps_of_epochs(tmp_path):
    """Guards the end of a run that counts epochs, from what it has logged."""
    t = tables(tmp_path, "m", "d", "run") | {"run": {"folder": str(tmp_path), "epochs": 1.5}}
    recipe, files = make_recipe(t), RunFolder(tmp_path)
    assert planned_steps(files, recipe) is None
    rows = [{"step": 7, "epoch": 7 / 9}, {"step": 7, "eval/loss": 1.0}]
    files.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert planned_steps(files, recipe) == 14
    for epoch in (1e-320, 1e-300, float("nan")):  # of a broken log: not known
        files.metrics.write_text(json.dumps({"step": 7, "epoch": epoch}) + "\n")
        assert planned_steps(files, recipe) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probes__panel": "controls"}, r"probes\.panel: controls is another panel than that of .*sft \(values-mini\)"),
        ({"probes__readouts": ["lead"]}, r"probes\.readouts: lead, and .*sft has lead, text_likelihood"),
        ({"probes__every": 0}, r"sft is probed and .*next is not \(probes\.every = 0\)"),
        ({"data__template": "alpaca"}, r"data\.template: reads the panel in other tokens than .*sft did"),
    ],
)
def test_what_must_be_the_same(sft, tmp_path, data, changes, said):
    """Guards one curve against two measures: each refusal names the key and the way out."""
    with pytest.raises(InputError, match=said) as caught:
        stages_before(recipe_of(tmp_path, "", data, "next", sft, **changes))
    assert "in model.source, without run.after: a history of its own" in str(caught.value)


def test_what_may_be_named(sft, tmp_path, tiny_models, data):
    """Guards the same tokenizer and template under another name, a model that is named twice alike, and one that is
    not."""
    same = {"model__tokenizer": str(tiny_models["qwen3"]), "data__template": "auto"}
    assert stages_before(recipe_of(tmp_path, "", data, "next", sft, **same)).step == 2
    recipe_of(tmp_path, "", data, "next", sft, model__source=str(sft / "export"))
    with pytest.raises(InputError, match=r"model\.source = .*qwen3', but run\.after = .* starts from .*export; leave"):
        recipe_of(tmp_path, "", data, "next", sft, model__source=str(tiny_models["qwen3"]))
    path = tmp_path / "r.toml"
    path.write_text(to_toml(recipe_of(tmp_path, "", data, "next", sft)))
    assert load_recipe(path, [f"run.after={sft}"]).run.after == str(sft)


def test_a_reward_model_after_sft(sft, tmp_path, data):
    """Guards the classic pipeline: its trunk is the SFT's, it is not probed, and no language model goes on from it."""
    t = tables(tmp_path, "", str(data), "reward")
    t |= {"run": {"folder": str(tmp_path / "reward"), "steps": 2, "after": str(sft)}, "objective": {"name": "reward"}}
    del t["probes"], t["model"]["source"]
    recipe = make_recipe(t)
    assert recipe.model.source == str(sft / "export") and stages_before(recipe).step == 2


def test_the_lock_of_a_finished_run_is_not_asked_for(sft, tmp_path, data):
    """Guards several stages that start from one run at once."""
    lock = Lock(RunFolder(sft).lock, "someone reads it")
    assert stages_before(recipe_of(tmp_path, "", data, "next", sft)).names == ["sft"]
    lock.close()
