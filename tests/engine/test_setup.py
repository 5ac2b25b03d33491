"""Runs of what is in memory: the same as of files, and what does not fit together."""

import json
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.embedding import ROWS, STEPS, tables, trees, whole
from helpers.peers import hf_model

import vdengine as vd
from vdengine.drift.panel_log import DriftLog
from vdengine.engine.saved_models import SavedModel
from vdengine.objectives.simpo import SIMPO
from vdengine.recipe import load_scoring_recipe, to_toml


@pytest.fixture
def tiny(tiny_models) -> str:
    return str(tiny_models["qwen3"])


def train(trainer: vd.Trainer, steps: int = STEPS) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [trainer.step()["loss"] for _ in range(steps)]
    weights = whole(trainer.model)
    trainer.close()
    return losses, weights


def same(a: tuple, b: tuple) -> bool:
    return a[0] == b[0] and all(torch.equal(w, b[1][n]) for n, w in a[1].items())


def from_files(tmp_path: Path, tiny: str, folder: str = "files", **sections) -> vd.Recipe:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    t = tables(tmp_path, folder, **sections)
    t["model"]["source"], t["data"]["train"] = tiny, str(rows)
    return vd.make_recipe(t)


def test_a_run_in_memory_is_that_of_the_files(tmp_path, tiny):
    """Guards embedders: model, tokenizer, rows or trees in memory give the bits of the same run by names, with probes
    of a panel in memory too. The given model is read and never changed."""
    panel = vd.Panel("few", vd.Panel.load("values-mini").probes[:4])
    panel.save(tmp_path / "few.jsonl")
    keys = {"every": 2, "tokens": 4096, "controls": False}
    named = vd.Trainer(from_files(tmp_path, tiny, probes=keys | {"panel": str(tmp_path / "few.jsonl")}))
    expected = train(named)
    model, tokenizer = vd.load_model(tiny), vd.load_tokenizer(tiny)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, rows in (("rows", ROWS), ("trees", trees(tokenizer))):
        recipe = tables(tmp_path, name, probes=keys)
        live = vd.Trainer(recipe, model=model, tokenizer=tokenizer, data=rows, panel=panel)
        assert same(train(live), expected)
        logs = [DriftLog.open(tmp_path / folder) for folder in ("files", name)]
        assert np.array_equal(logs[0].samples(), logs[1].samples(), equal_nan=True) and len(logs[1].steps) > 1
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert not any(isinstance(v, torch.nn.Module) and v is model for v in vars(live).values())
    written = tomllib.loads((tmp_path / "rows" / "recipe.toml").read_text())
    assert written["model"]["source"] == written["model"]["tokenizer"] == written["probes"]["panel"] == "in memory"
    assert written["data"]["train"] == ["in memory"]


def test_a_model_of_transformers(tmp_path, tiny):
    """Guards a live model and tokenizer of transformers: the run is that of the folders they would be saved in."""
    from transformers import AutoTokenizer

    hf, tokenizer = hf_model("llama", tied=True, scaled=True), AutoTokenizer.from_pretrained(tiny)
    hf.save_pretrained(tmp_path / "hf")
    live = vd.Trainer(tables(tmp_path, "live"), model=hf, tokenizer=tokenizer, data=ROWS)
    named = tables(tmp_path, "named")
    named["model"] |= {"source": str(tmp_path / "hf"), "tokenizer": tiny}
    assert same(train(live), train(vd.Trainer(named, data=ROWS)))


def test_it_is_taken_up_again_with_the_same_contents(tmp_path, tiny):
    """Guards resume: bitwise with equal contents, also by the run folder's own recipe, and refused with others."""
    model, tokenizer = vd.load_model(tiny), vd.load_tokenizer(tiny)
    given = {"model": model, "tokenizer": tokenizer, "data": ROWS}
    expected = train(vd.Trainer(tables(tmp_path, "whole"), **given))
    first = vd.Trainer(tables(tmp_path, "parts"), **given)
    losses = [first.step()["loss"], first.step()["loss"]]
    first.save()
    first.close()
    saved = tmp_path / "parts" / "recipe.toml"
    with pytest.raises(vd.InputError, match="contents have changed: data.train, data.eval"):
        vd.Trainer(saved, model=model, tokenizer=tokenizer, data=ROWS[1:])
    with pytest.raises(
        vd.InputError, match="recipe.toml:.* model.source was in memory; give it to the Trainer as model="
    ):
        vd.Trainer(saved, tokenizer=tokenizer, data=ROWS)
    with torch.no_grad():
        model.model.norm.weight[0] += 1.0
    with pytest.raises(vd.InputError, match="contents have changed: model.source"):
        vd.Trainer(saved, **given)
    again = vd.Trainer(saved, model=vd.load_model(tiny), tokenizer=tokenizer, data=ROWS)
    assert again.resumed_at == 2
    rest = train(again, 2)
    assert same((losses + rest[0], rest[1]), expected)


def test_a_checkpoint_of_a_model_in_memory_is_not_scored(tmp_path, tiny):
    """Guards `vdengine score`: one line that says what was in memory and what to score instead."""
    given = {"model": vd.load_model(tiny), "tokenizer": vd.load_tokenizer(tiny), "data": ROWS}
    trainer = vd.Trainer(tables(tmp_path, run={"steps": 1}), **given)
    trainer.step()
    trainer.finish()
    trainer.close()
    with pytest.raises(vd.InputError, match="the run's model was in memory.*use the folder export/") as error:
        SavedModel.find(str(tmp_path / "run" / "checkpoints" / "step-000001"))
    assert "\n" not in str(error.value)
    named = from_files(tmp_path, tiny)
    named.probes.panel = "in memory"
    (tmp_path / "named.toml").write_text(to_toml(named))
    assert load_scoring_recipe(tmp_path / "named.toml").probes.panel == str(tmp_path / "drift" / "panel.jsonl")


@pytest.mark.parametrize(
    ("sections", "without", "message"),
    [
        (
            {"model": {"source": "org/name"}},
            (),
            "model.source = 'org/name', but model= is given too; leave one of them",
        ),
        ({"data": {"train": ["a.jsonl"]}}, (), r"data.train = \['a.jsonl'\], but data= is given too"),
        ({"model": {"tokenizer": "org/name"}}, (), "model.tokenizer = 'org/name', but tokenizer= is given too"),
        ({}, ("model",), "model.source is missing: every recipe must name it"),
        (
            {},
            ("tokenizer",),
            "a model is given without a tokenizer: give tokenizer= too, or name it in model.tokenizer",
        ),
        (
            {"model": {"source": "in memory"}},
            ("model",),
            "model.source was in memory; give it to the Trainer as model=",
        ),
        ({"objective": {"name": "ipo"}}, (), 'objective.name = "ipo", but the objective given is "simpo"'),
        ({"data": {"eval_every": 1}}, (), "data.eval_every has no effect without data.eval"),
        ({"data": {"format": "alpaca"}}, (), "data: format 'alpaca' has no rejected answer"),
    ],
)
def test_what_does_not_fit_together(tmp_path, tiny, sections, without, message):
    """Guards against a name, an objective or an object that would silently be without effect."""
    given = {"model": vd.load_model(tiny), "tokenizer": vd.load_tokenizer(tiny), "data": ROWS, "objective": SIMPO}
    recipe = tables(tmp_path, **{"objective": {"beta": 2.0}} | sections)
    if sections.get("objective", {}).get("name") == "ipo":
        recipe["objective"] = {"name": "ipo"}
    with pytest.raises(vd.InputError, match=message) as error:
        vd.Trainer(recipe, **{name: value for name, value in given.items() if name not in without})
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_panel_without_probes_and_a_reward_model(tmp_path, tiny):
    """Guards a panel that nothing reads, and a reward model given as a language model."""
    given = {"tokenizer": vd.load_tokenizer(tiny), "data": ROWS}
    with pytest.raises(vd.InputError, match=r"a panel has no effect with probes.every = 0"):
        vd.Trainer(tables(tmp_path), model=vd.load_model(tiny), panel=vd.Panel.load("values-mini"), **given)
    with pytest.raises(vd.InputError, match=r"model \(LlamaForSequenceClassification\): a reward model; simpo needs"):
        vd.Trainer(tables(tmp_path), model=hf_model("llama", scalar=True), **given)


def test_an_own_objective_needs_no_name(tmp_path, tiny):
    """Guards a recipe that leaves [objective] out, and one that names the objective that is given."""

    def loss(scored, settings):
        return -scored.sums[0::2] / scored.lengths[0::2], {"own": scored.margins}

    own = vd.Objective("own", loss)
    given = {"model": vd.load_model(tiny), "tokenizer": vd.load_tokenizer(tiny), "data": ROWS, "objective": own}
    found = []
    for name, section in (("left_out", {}), ("named", {"name": "own"})):
        recipe = tables(tmp_path, name)
        recipe["objective"] = section
        trainer = vd.Trainer(recipe, **given)
        assert trainer.objective is own
        found.append(train(trainer, 2))
    assert same(*found)
    recipe = vd.make_recipe({"run": {"steps": 1}, "model": {"source": "m"}, "data": {"train": ["d"]}}, objective=own)
    assert recipe.objective.name == "own"


def test_held_out_rows_in_memory(tmp_path, tiny):
    """Guards eval_data: evaluated, and never trained on."""
    given = {"model": vd.load_model(tiny), "tokenizer": vd.load_tokenizer(tiny)}
    trainer = vd.Trainer(tables(tmp_path), data=ROWS[:5], eval_data=ROWS[5:], **given)
    assert len(trainer.store) == 5 and len(trainer.loader.eval_rows) == 3
    expected = trainer.evaluate()
    assert expected["eval/loss"] > 0
    trainer.close()
    trainer = vd.Trainer(tables(tmp_path, "batches"), eval_data=ROWS[5:], **given)  # each step is given its rows
    assert trainer.evaluate() == expected
    trainer.close()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"run": {"steps": None, "epochs": 1}},
            "run.steps is needed: without data nothing says how long run.epochs are",
        ),
        (
            {"probes": {"every": None, "budget": 0.1}},
            "probes.every is needed: without data nothing says what a step costs",
        ),
        ({"data": {"eval_fraction": 0.1}}, "data.eval_fraction: without data there is nothing to hold out"),
    ],
)
def test_what_a_run_without_data_needs(tmp_path, tiny, sections, message):
    """Guards a run that is given each step's rows: what would be derived from the data is asked for."""
    recipe = tables(tmp_path, **sections)
    recipe = {s: {k: v for k, v in keys.items() if v is not None} for s, keys in recipe.items()}
    with pytest.raises(vd.InputError, match=message):
        vd.Trainer(recipe, model=vd.load_model(tiny), tokenizer=vd.load_tokenizer(tiny))


def test_given_batches_are_told_at_resume(tmp_path, tiny):
    """Guards the one thing that a checkpoint cannot hold: the rows of steps to come. A run of its own data says
    nothing."""
    given = {"model": vd.load_model(tiny), "tokenizer": vd.load_tokenizer(tiny)}
    batches = [trees(given["tokenizer"])[k : k + 3] for k in range(STEPS)]

    def run(folder: str, stop: int | None) -> tuple[list[float], dict[str, torch.Tensor]]:
        trainer, losses = vd.Trainer(tables(tmp_path, folder), **given), []
        while trainer.step_count < STEPS:
            losses.append(trainer.step(batches[trainer.step_count])["loss"])
            if trainer.step_count == stop:
                trainer.save()
                trainer.close()
                with pytest.warns(UserWarning, match=r"2 of its 2 steps took batches given to step\(\); .* of step 3"):
                    trainer = vd.Trainer(tables(tmp_path, folder), **given)
        weights = whole(trainer.model)
        trainer.close()
        return losses, weights

    assert same(run("whole", None), run("parts", 2))
    assert 'train = ["own batches"]' in (tmp_path / "parts" / "recipe.toml").read_text()
    with pytest.raises(vd.InputError, match=r"the recipe differs: data.train: \['own batches'\] -> \['in memory'\]"):
        vd.Trainer(tables(tmp_path, "parts"), data=ROWS, **given)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*given to step")
        for _ in range(2):
            trainer = vd.Trainer(tables(tmp_path, "rows"), data=ROWS, **given)
            if trainer.step_count == 0:
                trainer.step()
                trainer.save()
            trainer.close()


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_answers_without_an_end_are_said_where_the_run_starts(name, tmp_path, tiny):
    """Guards against a trained model that never stops, noticed only when it is used; a reward model writes nothing."""
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}###\n{% endfor %}")
    t = tables(tmp_path, name) | {"objective": {"name": name}}
    t["data"]["template"] = str(template)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 8
    rows = [{"prompt": "a", "completion": "b"}] * 8 if name == "sft" else rows
    trainer = vd.Trainer(t, model=vd.load_model(tiny), tokenizer=vd.load_tokenizer(tiny), data=rows)
    assert [note for note in trainer.notes if "trained without an end" in note] == trainer.notes[: name == "sft"]
    trainer.close()
