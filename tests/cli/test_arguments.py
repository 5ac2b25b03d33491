"""The command line: any order, one line for what is wrong, hints for what was meant."""

import pytest

from vdengine.cli.arguments import Parser, RecipeParser
from vdengine.errors import InputError

RECIPE = '[run]\nsteps = 2\n[model]\nsource = "m"\n[data]\ntrain = "d.jsonl"\n'


@pytest.fixture
def path(tmp_path) -> str:
    file = tmp_path / "r.toml"
    file.write_text(RECIPE)
    return str(file)


def parser() -> RecipeParser:
    made = RecipeParser(prog="vdengine train")
    made.add_argument("--show-batch", type=int)
    made.add_argument("--json", action="store_true")
    return made


@pytest.mark.parametrize(
    "words",
    [
        ["R", "run.folder=x", "optimizer.lr=1e-5", "--show-batch", "2"],
        ["R", "--show-batch", "2", "run.folder=x", "optimizer.lr=1e-5"],
        ["--show-batch", "2", "run.folder=x", "R", "optimizer.lr=1e-5"],
        ["run.folder=x", "optimizer.lr=1e-5", "--show-batch=2", "R"],
        ["run.folder=x", "--show-batch", "2", "optimizer.lr = 1e-5", "--json", "R"],
    ],
)
def test_any_order(words, path):
    """Guards options, overrides and the recipe in every order: the same run."""
    args, recipe = parser().read([path if word == "R" else word for word in words])
    assert (args.show_batch, recipe.run.folder, recipe.optimizer.lr, recipe.run.steps) == (2, "x", 1e-5, 2)


def test_no_overrides(path):
    """Guards a recipe alone."""
    assert parser().read([path])[1].run.folder == "runs/run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["R", "--optimizer.lr=1e-5"], "without dashes: optimizer.lr=1e-5"),
        (["R", "--optimizer.lr", "1e-5"], "without dashes: optimizer.lr=1e-5"),
        (["--optimizer.lr", "1e-5", "R"], "without dashes: optimizer.lr=1e-5"),
        (["R", "-optimizer.lr=1e-5"], "without dashes: optimizer.lr=1e-5"),
        (["R", "--optimiser.lr=1e-5"], "without dashes: optimizer.lr=1e-5"),
        (["R", "--optimizer.lrr=1"], "without dashes: optimizer.lr=1"),
        (["R", "--max-tokens", "64"], "data.max_tokens=64 or answers.max_tokens=64"),
        (["R", "--beta"], "without dashes: objective.beta=VALUE"),
        (["R", "--cliprange", "0.1"], "without dashes: objective.cliprange=0.1"),
        (["R", "--no.such.key=1"], "unknown option --no.such.key=1"),
        (["R", "lr=1e-5"], "lr=1e-5 names no section: write value.lr=1e-5 or optimizer.lr=1e-5"),
        (["R", "optimizer.lr", "1e-5"], "optimizer.lr has no value"),
        (["R", "optimizer.lr=1", "optimizer.lr=2"], "optimizer.lr is given twice"),
        (["R", "other.toml"], "other.toml no override"),
        (["R", "--show-batch", "two"], "--show-batch"),
        (["R", "--shw-batch", "2"], "did you mean --show-batch?"),
        (["R", "optimizer.lrr=1"], "did you mean lr?"),
        (["run.steps=3"], "name a recipe"),
        ([], "name a recipe"),
    ],
)
def test_what_was_meant(words, said, path):
    """Guards slips of the command line: one line, with the right spelling where it is clear."""
    with pytest.raises(InputError) as error:
        parser().read([path if word == "R" else word for word in words])
    assert said in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--panel", "p", "b"], None),
        (["--panel", "p", "a", "b"], None),
        (["a", "--panl", "p"], "did you mean --panel?"),
        (["a", "--pan", "p"], "unknown option --pan"),
        (["--panel"], "expected one argument"),
        (["a", "--line\nbreak"], "\\x0a"),
    ],
)
def test_other_verbs(words, said):
    """Guards the same of verbs without a recipe; an option that is cut short is none, so that a new one breaks no
    script."""
    made = Parser(prog="vdengine score")
    made.add_argument("models", nargs="+")
    made.add_argument("--panel")
    if said is None:
        args = made.parse_args(words)
        assert (args.models, args.panel) == (["a", "b"], "p")
        return
    with pytest.raises(InputError) as error:
        made.parse_args(words)
    assert said in str(error.value) and "vdengine score --help" in str(error.value) and "\n" not in str(error.value)
