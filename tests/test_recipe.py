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
            GOOD + '[objective]\nname = "cpo"\n',
            ":10: objective.name = 'cpo' is not known; allowed: sft, dpo, ipo, simpo, orpo, kto, reward, ppo, grpo, "
            "rloo",
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
        ("steps = 3\n", ":1: unknown section [steps]"),
    ],
)
def test_bad_recipes_give_one_line_with_the_place(tmp_path, text, message):
    """Guards users: file, line, key, what is wrong, what is allowed."""
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert f"{path}{message}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("rank = 0", ":10: lora.rank = 0 is out of range; allowed: >= 1 and <= 8192"),
        ("alpha = 8", ":10: lora.alpha has no effect without lora.rank or lora.start"),
        ("dropout = 0.1", ":10: lora.dropout has no effect without lora.rank or lora.start"),
        ('rank = 4\nstart = "x"', ":10: give one of lora.rank and lora.start: an adapter has its rank"),
        ('start = "x"\nrslora = true', ":11: lora.rslora has no effect with lora.start: the adapter says it"),
        ("rank = 4\ndropout = 1.0", ":11: lora.dropout = 1.0 is out of range; allowed: >= 0.0 and <= 0.99"),
        ("rank = 4\ntargets = []", ":11: lora.targets is empty"),
        ('rank = 4\ntargets = ["q_proj", "lm_head"]', ":11: lora.targets: lm_head has no adapter"),
        ('rank = 4\ntargets = "model.embed_tokens"', ":11: lora.targets: model.embed_tokens has no adapter"),
        (
            'rank = 4\ndropout = 0.1\n[objective]\nname = "ppo"',
            ":11: lora.dropout must be 0 with ppo: what is sampled and what is trained would be two policies",
        ),
        (
            '[objective]\nreference = "adapter_off"',
            ':11: objective.reference = "adapter_off" needs an adapter: lora.rank or lora.start; without one: cached',
        ),
    ],
)
def test_bad_adapters(tmp_path, lora, message):
    """Guards keys of [lora] that are without effect, and adapters that cannot be."""
    path = write(tmp_path, f"{GOOD}[lora]\n{lora}\n")
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert f"{path}{message}" in str(error.value)


def test_the_reference_of_an_adapter(tmp_path):
    """Guards the default: a new adapter's reference is the plain model; that of one to start with is where it starts.
    What is said is kept, and what is resolved reads back as it is."""

    def reference(*overrides: str) -> str:
        recipe = load_recipe(write(tmp_path, GOOD), overrides)
        assert load_recipe(write(tmp_path, to_toml(recipe))) == recipe == check(recipe)
        return recipe.objective.reference

    assert reference() == "cached" and reference("lora.rank=4") == "adapter_off"
    assert reference("lora.start=x") == reference("lora.rank=4", "objective.reference=cached") == "cached"
    assert reference("lora.start=x", "objective.reference=adapter_off") == "adapter_off"
    ppo = ("objective.name=ppo", "reward.source=r", "rollout.max_new_tokens=5")
    assert reference(*ppo) == "live" and reference(*ppo, "lora.rank=4") == "adapter_off"
    simpo = load_recipe(write(tmp_path, GOOD), ["objective.name=simpo", "lora.rank=4"])
    assert "reference" not in to_tables(simpo)["objective"]


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
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.toml'}: no such file\n"


def test_differences_name_keys_that_change_numbers():
    """Guards resume: results-changing keys are named, others may change."""
    base = {"run": {"steps": 3}, "model": {"source": "m"}, "data": {"train": "d"}}
    old = make_recipe(base)
    assert differences(old, make_recipe(base | {"log": {"every": 5}, "checkpoint": {"keep": 9}})) == []
    assert differences(old, make_recipe(base | {"optimizer": {"lr": 1e-3}})) == ["optimizer.lr: 5e-07 -> 0.001"]


@pytest.mark.parametrize("path", sorted((REPO / "recipes").rglob("*.toml")), ids=lambda p: p.stem)
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
        (
            ["answers.samples=16", "answers.weights_every=1", "answers.alarm=0.01", "probes.readouts=['lead']"],
            "answers.alarm has no effect: it is of the text likelihood",
        ),
        (["probes.readouts=[]"], r"probes.readouts = \[\] must name at least one of lead, text_likelihood"),
        (["probes.readouts=['lead', 'lead']"], "and none twice"),
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
        ({"answers": {"samples": 0, "anchors": 4}}, "answers.anchors has no effect with answers.samples = 0"),
        ({"answers": {"anchors": 1}}, "answers.anchors = 1: at least 2, the start and the end"),
        ({"answers": {"anchors": [3], "most_answers": 9}}, "give one of answers.anchors and answers.most_answers"),
        ({"answers": {"anchors": 4, "alarm": 0.1}}, "answers.alarm has no effect with answers.weights_every = 0"),
        ({"answers": {"samples": 4, "base": 2}}, "answers.base = 2 is below answers.samples = 4"),
        ({"answers": {"samples": 4}, "probes": {"every": 0}}, "probes.every is 0"),
    ],
)
def test_bad_recipe_of_answers(tables, message):
    """Guards keys without effect and pools that do not hold their bank."""
    with pytest.raises(InputError, match=message):
        make_recipe({"run": {"steps": 1}, "model": {"source": "m"}, "data": {"train": ["d"]}} | tables)


@pytest.mark.parametrize("keys", [{"anchors": 4}, {"anchors": [2]}, {"generated_tokens": 9000}, {"most_answers": 90}])
def test_recipe_of_answers(keys):
    """Guards the default of two answers, wherever it is said how many there are to be, and only there."""
    recipe = make_recipe({"run": {"steps": 4}, "model": {"source": "m"}, "data": {"train": ["d"]}, "answers": keys})
    assert recipe.answers.samples == 2 and check(recipe) == recipe
    assert not make_recipe({"run": {"steps": 4}, "model": {"source": "m"}, "data": {"train": ["d"]}}).answers.samples


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


WORST = {  # of what may stand in any file; by what it is
    "4,400 digits": "9" * 4400, "600 brackets": "[" * 600 + "]" * 600, "10^5 brackets": "[" * 10**5,
    "10^5 tables": "{a=" * 10**5, "10^6 hexadecimal digits": "0x" + "f" * 10**6, "an infinity": "inf", "NaN": "nan",
    "2^64": str(2**64), "-1": "-1", "10^9": str(10**9), "10^400": "1e400", "a date": "2026-01-31", "true": "true",
    "an empty text": '""', "a list": "[1]", "lists in lists": "[[1]]", "a table": "{a = 1}", "a NUL": '"a\\u0000b"',
    "a text": '"x"', "nothing": "", "a bare word": "x", "no date": "2026-99-99", "several": '[1, "a", nan]',
}  # fmt: skip


@pytest.mark.parametrize("worst", WORST.values(), ids=WORST)
def test_no_value_of_any_key_ends_in_a_traceback(tmp_path, worst):
    """Guards every key against every kind of value: a recipe, or one line with file, line and key; the same on the
    command line."""
    (base := tmp_path / "base.toml").write_text(GOOD)
    keys = [f"{s.name}.{f.name}" for s in dataclasses.fields(Recipe) for f in dataclasses.fields(s.default_factory())]
    for dotted in keys[:: 30 if len(worst) > 10**4 else 4]:
        section, _, name = dotted.partition(".")
        path = write(tmp_path, f"[{section}]\n{name} = {worst}\n")
        for arguments in ((path, []), (base, [f"{dotted}={worst}"])):
            try:
                load_recipe(*arguments)
            except InputError as error:
                message = str(error)
                assert "\n" not in message and len(message) < 700, dotted
                assert message.startswith((str(path), "command line", str(base))), message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("3", str(10**9)), ":2: run.steps = 1000000000 is out of range; allowed: >= 1 and <= 10000000"),
        (GOOD.replace("3", "nan"), ":2: run.steps must be a whole number; got nan"),
        (GOOD + f"[run]\nseed = {2**64}\n", "not valid TOML: "),  # a table twice
        (
            GOOD.replace("steps", f"seed = {2**64}\nsteps"),
            f":2: run.seed = {2**64} is out of range; allowed: >= 0 and <= {2**63 - 1}",
        ),
        (GOOD + f"[batch]\nexamples = {2**31}\n", f":10: batch.examples = {2**31} is out of range; allowed: >= 1 and"),
        (GOOD + "[optimizer]\nlr = inf\n", ":10: optimizer.lr = inf is out of range; allowed: >= 0.0 and finite"),
        (GOOD + "[optimizer]\nlr = " + "9" * 400 + "\n", ":10: optimizer.lr = inf is out of range"),
        (GOOD + '[log]\ntrackers = "a\\u0000"\n', ":10: log.trackers must be text; got 'a\\x00'"),
        (GOOD + "[parallel]\nshard = -1\n", ":10: parallel.shard = -1 is out of range; allowed: >= 1"),
        (GOOD + "weights = [nan]\n", ":9: data.weights = nan is out of range; allowed: > 0 and <= 10000.0"),
        (GOOD + "weights = [0]\n", ":9: data.weights = 0.0 is out of range"),
        ("optimizer.lr = -1\n" + GOOD, ":1: optimizer.lr = -1.0 is out of range"),
        (GOOD + '[ "optimizer" ]\n"lr" = -1\n', ":10: optimizer.lr = -1.0 is out of range"),
        (GOOD + "[optimizer]\n# a line that is none\u2028\u0085\x0c\nlr = -1\n", "not valid TOML: "),
        (GOOD + "[optimizer]\n# not three\u2028\u0085lines\nlr = -1\n", ":11: optimizer.lr = -1.0 is out of range"),
        (GOOD + '["run\\nsteps"]\n', r": unknown section [run\x0asteps]"),
        (GOOD + f"{'k' * 10**5} = 1\n", ":9: unknown key data.kkk"),
        (GOOD.replace('"m"', '["m"]'), ":5: model.source must be a string; got ['m']"),
        (GOOD.replace('"m"', "2026-01-31"), ":5: model.source must be a string; got datetime.date(2026, 1, 31)"),
    ],
)
def test_hostile_recipes_give_one_line_with_the_place(tmp_path, text, message):
    """Guards values that numbers of the machine cannot hold, and places that TOML may write in several ways."""
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert message in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe[run]\n", "line 1: not UTF-8"),
        (GOOD.encode() + b'[log]\ntrackers = "\xe9"\n', "line 10: not UTF-8"),
        (GOOD.encode() + b"\0", "not valid TOML"),
        (b"#" * 2**20 + b"\n", "has more than 1 MiB"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, data, message):
    """Guards what is not even text, or too long for a recipe."""
    (path := tmp_path / "r.toml").write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_recipe(path)


def test_line_ends_and_marks_of_other_editors_are_read(tmp_path):
    """Guards recipes from Windows: a byte order mark and CRLF."""
    (path := tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(path).run.steps == 3


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "."])
def test_a_path_that_is_no_file(tmp_path, name):
    """Guards the readers of a path: none, one with a NUL, one too long, a folder."""
    with pytest.raises(InputError):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.train=["a', "data.train=[\"a': not valid TOML"),
        ('data.train="a', "not valid TOML"),
        ("data.train={a", "not valid TOML"),
        ("run.steps=3\n[run]\nseed=1", "is more than one value"),
        ("run.steps=3\nseed=1", "is more than one value"),
        ("run.steps=", "run.steps must be a whole number; got ''"),
        ("run.steps=1_", "run.steps must be a whole number; got '1_'"),
        ("run.steps.x=1", "unknown key run.steps.x"),
        ("run-steps=1", "is not an override"),
        ("r\u00fcn.steps=1", "unknown section [r\u00fcn]; did you mean run?"),
        ("run.seed=" + "9" * 5000, "run.seed must be a whole number; got '999"),
        ("model.source=a\udcff", "model.source must be text"),
    ],
)
def test_an_override_is_a_value_or_an_error(tmp_path, override, message):
    """Guards the command line: what begins as a list or a quoted text never becomes a bare word, nothing after a value
    is lost, and what no file can hold is refused."""
    with pytest.raises(InputError) as error:
        load_recipe(write(tmp_path, GOOD), [override])
    assert message in str(error.value) and "command line" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.folder=2026-01-31", "2026-01-31"),
        ("run.folder= runs/a b ", "runs/a b"),
        ("run.folder='x' # why", "x"),
        ("run.folder=a#b", "a#b"),
        ("run.folder=caf\u00e9=1", "caf\u00e9=1"),
        ("run.folder=7b-base", "7b-base"),
    ],
)
def test_bare_words_are_taken_as_they_are(tmp_path, override, value):
    """Guards names that look a little like TOML."""
    assert load_recipe(write(tmp_path, GOOD), [override]).run.folder == value


def test_a_lost_recipe_of_a_run_is_named(tmp_path):
    """Guards resuming: a run's recipe that is gone, empty or cut is an error with its name, and never the defaults."""
    path = tmp_path / "recipe.toml"
    with pytest.raises(InputError, match=r"recipe\.toml: no such file"):
        saved_recipe(path)
    whole = to_toml(load_recipe(write(tmp_path, GOOD)))
    for text, message in (("", "is empty"), ("\n", "is empty"), (whole[: len(whole) // 2 - 1] + "=", "not valid TOML")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            saved_recipe(path)


def test_the_command_lines_length_wins(tmp_path):
    """Guards `run.epochs=1` on the command line against the recipe's own run.steps, and the other way round."""
    path = tmp_path / "r.toml"
    path.write_text('[run]\nsteps = 5\n[model]\nsource = "m"\n[data]\ntrain = "d"\n')
    recipe = load_recipe(path, ["run.epochs=2"])
    assert recipe.run.steps is None and recipe.run.epochs == 2
    with pytest.raises(InputError, match="give one of run.steps and run.epochs"):
        load_recipe(path, ["run.epochs=2", "run.steps=3"])


@pytest.mark.parametrize("after", ["~nosuchuser/x", "x" * 300, "a/" * 4000, "a\\u0000"])
def test_a_run_before_that_is_no_path(tmp_path, after):
    """Guards one line that names run.after for a name that no folder can have."""
    path = write(tmp_path, GOOD.replace("steps", f'after = "{after}"\nsteps'))
    with pytest.raises(InputError, match=r"r\.toml:2: run\.after") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)
