"""Recipes: what is read, what is refused and how, and that documentation and shipped recipes keep up."""

import dataclasses
from pathlib import Path

import pytest

from vdengine.data import formats
from vdengine.errors import InputError
from vdengine.objectives import BUILT_IN
from vdengine.recipe import (
    FORMATS,
    IN_MEMORY,
    OWN_BATCHES,
    Recipe,
    check,
    differences,
    load_recipe,
    load_scoring_recipe,
    make_recipe,
    saved_recipe,
    to_tables,
    to_toml,
)
from vdengine.train import main

REPO = Path(__file__).resolve().parent.parent
GOOD = '[run]\nsteps = 3\n\n[model]\nsource = "m"\n\n[data]\ntrain = "d"\n'


def write(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def test_round_trip(tmp_path):
    """Guards the resolved recipe in a run folder: it reads back to an equal one, odd strings included."""
    recipe = load_recipe(write(tmp_path, GOOD), ['data.train=["a\\tb", "c\\"d\\\\e"]', "optimizer.lr=1e-5"])
    assert recipe.data.train == ["a\tb", 'c"d\\e'] and recipe.optimizer.lr == 1e-5
    assert load_recipe(write(tmp_path, to_toml(recipe))) == recipe


def test_overrides_win_and_bare_words_are_strings(tmp_path):
    """Guards the command line."""
    recipe = load_recipe(write(tmp_path, GOOD), ["model.source=org/name", "run.steps=7", "run.resume=false"])
    assert (recipe.model.source, recipe.run.steps, recipe.run.resume) == ("org/name", 7, False)


def test_defaults_that_depend_on_the_objective(tmp_path):
    """Guards beta: 0.1 is DPO's scale, not SimPO's; and a recipe shows only keys that act."""
    assert load_recipe(write(tmp_path, GOOD)).objective.beta == 0.1
    simpo = load_recipe(write(tmp_path, GOOD), ["objective.name=simpo"])
    assert simpo.objective.beta == 2.0
    assert set(to_tables(simpo)["objective"]) == {"name", "beta", "gamma_beta_ratio"}
    assert set(to_tables(load_recipe(write(tmp_path, GOOD), ["objective.name=sft"]))["objective"]) == {"name"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "[optimizer]\nlrr = 1\n", ":10: unknown key optimizer.lrr; did you mean lr?"),
        (GOOD + "[optimiser]\nlr = 1\n", ":9: unknown section [optimiser]; did you mean optimizer?"),
        (GOOD + "[optimizer]\nlr = -1\n", ":10: optimizer.lr = -1.0 is out of range; allowed: >= 0.0"),
        (GOOD + '[optimizer]\nlr = "x"\n', ":10: optimizer.lr must be a number; got 'x'"),
        (
            GOOD + '[objective]\nname = "kto"\n',
            ":10: objective.name = 'kto' is not known; allowed: sft, dpo, ipo, simpo, orpo, reward, ppo",
        ),
        (
            GOOD + '[objective]\nname = "sft"\nbeta = 0.1\n',
            ':11: objective.beta has no effect with objective.name = "sft"; it belongs to dpo, ipo, simpo, orpo',
        ),
        (
            GOOD + '[objective]\nname = "simpo"\nlabel_smoothing = 0.1\n',
            ':11: objective.label_smoothing has no effect with objective.name = "simpo"; it belongs to dpo',
        ),
        ('[run]\nsteps = 3\n[model]\nsource = "m"\n', ": data.train is missing: every recipe must name it"),
        ('[model]\nsource = "m"\n[data]\ntrain = "d"\n', ": give one of run.steps and run.epochs"),
        (GOOD + "[batch]\ntokens = 100\n", ":10: batch.tokens = 100 is smaller than data.max_tokens = 1024"),
        (GOOD + "[probes]\nevery = 2\nbudget = 0.1\n", ":11: give one of probes.every and probes.budget"),
        (GOOD + "weights = [1.0, 2.0]\n", ":9: data.weights has 2 values for 1 sources in data.train"),
        (GOOD + "eval_every = 5\n", ":9: data.eval_every has no effect without data.eval or data.eval_fraction"),
        (GOOD + "[run\n", ": not valid TOML: "),
        ("steps = 3\n", ": unknown section [steps]"),
    ],
)
def test_bad_recipes_give_one_line_with_the_place(tmp_path, text, message):
    """Guards users: file, line, key, what is wrong, what is allowed."""
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert f"{path}{message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=1", "command line: 'lr=1' is not an override; write section.key=value"),
        ("optimizer.lr=fast", "command line: optimizer.lr must be a number; got 'fast'"),
        ("run.lr=1", "command line: unknown key run.lr; did you mean optimizer.lr?"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    """Guards the command line's errors."""
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path, GOOD), [override])
    assert message in str(error.value)


def test_the_verb_prints_one_line_and_fails(tmp_path, capsys):
    """Guards the exit status and that no traceback reaches a user."""
    assert main([str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.toml'}: no such recipe\n"


def test_differences_name_keys_that_change_numbers():
    """Guards resume: results-changing keys are named, others may change."""
    base = {"run": {"steps": 3}, "model": {"source": "m"}, "data": {"train": "d"}}
    old = make_recipe(base)
    assert differences(old, make_recipe(base | {"log": {"every": 5}, "checkpoint": {"keep": 9}})) == []
    assert differences(old, make_recipe(base | {"optimizer": {"lr": 1e-3}})) == ["optimizer.lr: 5e-07 -> 0.001"]


@pytest.mark.parametrize("path", sorted((REPO / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    """Guards recipes/ against keys that moved."""
    load_recipe(path)


def test_every_key_is_documented():
    """Guards docs/recipe.md against keys added or removed in the code."""
    documented = {
        line.split("`")[1]
        for line in (REPO / "docs/recipe.md").read_text().splitlines()
        if line[:3] == "| `" and "." in line.split("`")[1]
    }
    sections = [(s.name, s.default_factory) for s in dataclasses.fields(Recipe) if s.name != "objective"]
    sections += [("objective", o.keys) for o in BUILT_IN]
    keys = {f"{name}.{f.name}" for name, section in sections for f in dataclasses.fields(section)}
    assert documented == keys


def test_check_of_a_recipe_made_by_hand():
    """Guards embedders: a Recipe built from dataclasses gets the same checks and defaults as a file."""
    r = Recipe()
    r.run.steps, r.model.source, r.data.train = 2, "folder", ["rows.jsonl"]
    assert check(r).objective.beta == 0.1 and check(r) is not r
    assert check(check(r)) == check(r)
    r.batch.examples = 0
    with pytest.raises(InputError, match="batch.examples = 0 is out of range; allowed: >= 1"):
        check(r)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["probes.fraction=0.4"], r"probes.fraction = 0.4 must be one n-th.* 0.5 \(1/2\)"),
        (["optimizer.schedule=constant", "optimizer.min_lr=0.1"], "optimizer.min_lr has no effect"),
        (["data.eval_examples=5"], "data.eval_examples has no effect"),
    ],
)
def test_keys_that_would_do_nothing(tmp_path, overrides, message):
    """Guards the promise that nothing a user writes is silently without effect."""
    path = tmp_path / "r.toml"
    path.write_text('[run]\nsteps = 2\n[model]\nsource = "m"\n[data]\ntrain = "d.jsonl"\n')
    with pytest.raises(InputError, match=message):
        load_recipe(path, overrides)


def test_probes_off_wins(tmp_path):
    """Guards `probes.every=0` on the command line of a recipe that has a budget."""
    path = tmp_path / "r.toml"
    path.write_text('[run]\nsteps = 2\n[model]\nsource = "m"\n[data]\ntrain = "d.jsonl"\n[probes]\nbudget = 0.1\n')
    assert load_recipe(path, ["probes.every=0"]).probes.budget is None


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"answers": {"max_tokens": 9}}, "answers.max_tokens has no effect with answers.samples = 0"),
        ({"answers": {"samples": 4, "base": 2}}, "answers.base = 2 is below answers.samples = 4"),
        ({"answers": {"samples": 4}, "probes": {"every": 0}}, "probes.every is 0"),
    ],
)
def test_recipe_of_answers(tables, message):
    """Guards keys without effect and pools that do not hold their bank."""
    with pytest.raises(InputError, match=message):
        make_recipe({"run": {"steps": 1}, "model": {"source": "m"}, "data": {"train": ["d"]}} | tables)


def test_formats_are_those_of_the_data_room():
    """Guards a format that a recipe would refuse, or one that nothing reads: recipes stand below the data."""
    assert set(FORMATS) == {"auto", *formats.FORMATS}


def test_sources_in_memory(tmp_path):
    """Guards a recipe without names for what a program has in memory: filled in with what is true, read back from a
    run folder, and refused by whoever has no such object."""
    given = {"model.source": IN_MEMORY, "data.train": IN_MEMORY}
    recipe = make_recipe({"run": {"steps": 1}}, given=given)
    assert recipe.model.source == IN_MEMORY and recipe.data.train == [IN_MEMORY]
    path = write(tmp_path, to_toml(recipe))
    assert saved_recipe(path) == recipe == load_recipe(path, given=given) == check(recipe, given)
    with pytest.raises(InputError, match=r":\d+: model.source was in memory; give it to the Trainer as model="):
        load_recipe(path)
    with pytest.raises(InputError, match=r":\d+: data.train was in memory; give it to the Trainer as data="):
        load_recipe(path, ["model.source=m"])
    with pytest.raises(InputError, match=r"model.source = 'm', but model= is given too; leave one of them out"):
        load_recipe(write(tmp_path, GOOD), given=given)
    own = make_recipe({"run": {"steps": 1}, "model": {"source": "m"}}, given={"data.train": OWN_BATCHES})
    assert own.data.train == [OWN_BATCHES]
    with pytest.raises(InputError, match="the run had no data but each step's own; use vd.Trainer"):
        load_recipe(write(tmp_path, to_toml(own)))
    with pytest.raises(InputError, match="the run's model was in memory"):
        load_scoring_recipe(write(tmp_path, to_toml(recipe)))
