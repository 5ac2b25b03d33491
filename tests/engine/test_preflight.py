"""What is wrong with a recipe's files is said before torch is there."""

import json
import subprocess
import sys

import pytest
from helpers.runs import PPO, tables

from vdengine.engine.preflight import check_names, preflight
from vdengine.errors import InputError
from vdengine.recipe import make_recipe, to_toml

# override of a working recipe: what the error names
CASES = {
    "model.source=no-such": "model.source: no-such",
    "model.source=package://no_such_package/x.gguf": "no_such_package",
    "model.source=DATA": "model.source",
    "model.tokenizer=no-such": "no-such",
    "lora.start=no-such": "lora.start: no-such",
    "lora.start=DATA": "lora.start",
    "data.template=none.jinja": "none.jinja",
    "data.template=chatml": "chatml",
    "data.train=none.jsonl": "data.train: none.jsonl",
    "data.train=values-synth:sideways": "sideways",
    "data.format=alpaca": "alpaca",
    "data.eval=none.jsonl": "data.eval: none.jsonl",
    "probes.panel=value-mini": "nearest: values-mini",
    "probes.panel=none.jsonl": "none.jsonl",
}
CHILD = """
import sys
from vdengine.cli.arguments import RecipeParser
from vdengine.engine.preflight import preflight
from vdengine.errors import InputError
for override in sys.argv[2:]:
    try:
        preflight(RecipeParser(prog="vdengine train").read([sys.argv[1], override])[1])
        print("nothing is wrong")
    except InputError as error:
        print(error)
    assert "torch" not in sys.modules, override
"""


@pytest.fixture
def recipe(tmp_path, tiny_models):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "q", "chosen": "yes", "rejected": "no"}) + "\n")
    return tables(tmp_path, str(tiny_models["llama"]), str(data), "run")


def test_errors_come_before_torch(recipe, tmp_path):
    """Guards the first two seconds: each error that needs only files is said by a process that has no torch."""
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(make_recipe(recipe)))
    overrides = [case.replace("DATA", recipe["data"]["train"][0]) for case in CASES]
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), *overrides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(CASES), lines
    for line, (case, word) in zip(lines, CASES.items(), strict=True):
        assert word in line, f"{case}: {line}"


def test_what_is_found(recipe):
    """Guards the way on: tokenizer, template, sources with their formats, panel."""
    found = preflight(make_recipe(recipe))
    assert found.formats == ("preference",) and found.train[0].name.endswith("pairs.jsonl")
    assert found.tokenizer is not None and found.renderer is not None
    assert found.panel is not None and found.panel.name == "values-mini" and found.eval is None
    assert preflight(make_recipe(recipe | {"probes": {"every": 0}})).panel is None


@pytest.mark.parametrize(
    ("section", "key", "value", "word"),
    [
        ("reward", "source", "regex:(", "not a usable regular expression"),
        ("reward", "source", "regex:(?R)?", "reward.source: the pattern"),
        ("value", "source", "no-such-model", "value.source: no-such-model"),
        ("reward", "source", "no-such-model", "reward.source: no-such-model"),
        ("reward", "source", "MODEL", "is a language model"),
    ],
)
def test_models_of_a_rollout(section, key, value, word, recipe):
    """Guards PPO's other models, of which a name alone is known in a recipe."""
    t = recipe | {k: dict(v) for k, v in PPO.items()}
    del t["objective"]["beta"]
    t.setdefault(section, {})[key] = value.replace("MODEL", recipe["model"]["source"])
    with pytest.raises(InputError, match=word):
        preflight(make_recipe(t))


def test_what_is_elsewhere_is_left_to_it(recipe, monkeypatch):
    """Guards ranks that would wait for a download: of several, none looks on the hub here."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe["model"]["source"], recipe["data"]["train"] = "some-org/some-model", ["some-org/some-data"]
    found = preflight(make_recipe(recipe))
    assert found.tokenizer is None and not found.train


def test_names_of_saved_models(tiny_models):
    """Guards `score` and `judge` against an import of torch for a slip in a name."""
    check_names([str(tiny_models["llama"])], "values-mini")
    for models, panel in ((["no-such"], None), ([], "value-mini")):
        with pytest.raises(InputError):
            check_names(models, panel)
