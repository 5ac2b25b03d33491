"""Declarations: they load without torch, refuse to contradict themselves, and are all that the engine knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import vdengine as vd
from vdengine.errors import InputError
from vdengine.objectives import BUILT_IN, Objective, find
from vdengine.recipe import differences, load_recipe, load_scoring_recipe, to_toml
from vdengine.settings import key

NAMES = [o.name for o in BUILT_IN]


@dataclass
class Settings:
    scale: float = key(2.0, above=0)


def hinge(scored, settings):
    """max(0, 1 - scale (sum_c - sum_r) / 100) and one metric: an objective that the package does not have."""
    margin = settings.scale * (scored.sums[0::2] - scored.sums[1::2]) / 100
    return torch.relu(1 - margin), {"hinge/margin": margin.detach()}


HINGE = Objective("hinge", hinge, settings=Settings, shown=(("margin", "hinge/margin", "+.4f"),))


def tables(model: Path, data: Path, folder: Path, **objective) -> dict:
    return {
        "run": {"folder": str(folder), "steps": 3},
        "model": {"source": str(model), "dtype": "float32"},
        "data": {"train": [str(data)], "cache": str(folder.parent / "cache"), "max_tokens": 400},
        "objective": objective,
        "batch": {"examples": 4, "tokens": 4096},
        "optimizer": {"lr": 1e-3, "schedule": "constant", "warmup": 0.0},
        "probes": {"every": 0},
        "checkpoint": {"every": 0},
    }


def test_a_recipes_errors_do_not_wait_for_torch(tmp_path):
    """Guards the start of every command: importing torch takes seconds, and a typo should not cost them."""
    (tmp_path / "r.toml").write_text('[objective]\nname = "dpo"\nbeta = -1\n')
    code = (
        "import sys, vdengine.objectives, vdengine.train\n"
        f"status = vdengine.train.main([{str(tmp_path / 'r.toml')!r}])\n"
        "assert status == 2 and 'torch' not in sys.modules, sorted(m for m in sys.modules if 'torch' in m)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "objective.beta = -1.0 is out of range; allowed: > 0" in done.stderr


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"rows": "triples"}, "rows must be one of"),
        ({"per": "batch"}, "per must be one of example, token, sum"),
        ({"head": "vector"}, "head must be one of"),
        ({"reference": ("remote",)}, "'remote' is not one of cached, live, none"),
        ({"rollout": BUILT_IN[-1].rollout}, "go together"),
        ({"rows": "prompts", "branches": 1}, "go together"),
        ({"batch_kl": True, "reference": ("live",)}, 'batch_kl needs rows="unpaired" and a reference'),
        ({"batch_kl": True, "rows": "unpaired", "branches": 1}, "needs .* a reference"),
        ({"rows": "sft"}, "branches"),
        ({"name": "two words"}, "name must be a plain word"),
    ],
)
def test_a_declaration_cannot_contradict_itself(declaration, message):
    """Guards whoever writes one: the error comes at the declaration, not in the middle of a run."""
    with pytest.raises(ValueError, match=message):
        Objective(**({"name": "mine", "fn": hinge} | declaration))


@pytest.mark.parametrize("objective", BUILT_IN, ids=NAMES)
def test_defaults_are_in_range_and_round_trip(objective, tmp_path):
    """Guards a declaration whose own defaults a recipe would refuse, or that a run folder could not give back."""
    given = tables(Path("m"), Path("d"), tmp_path / "run", name=objective.name)
    if objective.rollout:
        given["data"]["max_tokens"] = 1024
        given["batch"]["tokens"] = 8192
    recipe = vd.make_recipe(given)
    assert recipe.objective.declaration is objective
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    again = load_recipe(tmp_path / "recipe.toml")
    assert again == recipe and not differences(again, recipe)
    defaults = vars(objective.keys())
    if objective.reference:
        refers = objective.rollout is None or objective.rollout.refers(recipe.objective)
        defaults |= {"reference": objective.reference[0] if refers else "none"}
    assert vars(recipe.objective) == defaults


@pytest.mark.parametrize("name", ["", "DPO", "dpo ", "bco", 3, None])
def test_an_unknown_objective_is_an_error(name):
    """Guards against falling through to some other loss."""
    with pytest.raises(
        InputError, match="is not known; allowed: sft, dpo, ipo, simpo, orpo, kto, reward, ppo, grpo, rloo"
    ):
        find(name)


def test_nothing_tests_an_objectives_name():
    """Guards one objective, one file: engine, recipe and console read declarations. A name in a comparison, or as a key
    of a table, would be a second place to change."""
    package = Path(vd.__file__).parent
    places = []
    # data.words knows the words that columns are named by, "kto" among them
    rooms = {*package.glob("engine/*.py"), *package.glob("data/*.py")} - {package / "data" / "words.py"}
    for path in [*sorted(rooms), package / "recipe.py", package / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            texts = []
            if isinstance(node, ast.Compare):
                texts = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
            elif isinstance(node, ast.Dict):
                texts = [k for k in node.keys if isinstance(k, ast.Constant)]
            # "sft" and "reward" are a kind of rows and a section of the recipe too
            names = [t.value for t in texts if t.value in set(NAMES) - {"sft", "reward"}]
            places += [f"{path.relative_to(package)}:{node.lineno}: {names}" for _ in names]
    assert not places, "\n".join(places)


def test_own_objective_in_a_recipe(tmp_path, tiny_models, data):
    """Guards embedders: an objective of one's own has its keys checked, and only where it is given."""
    given = tables(tiny_models["qwen3"], data, tmp_path / "run", name="hinge", scale=3)
    recipe = vd.make_recipe(given, objective=HINGE)
    assert recipe.objective.scale == 3.0
    with pytest.raises(InputError, match="'hinge' is not known"):
        vd.make_recipe(given)
    given["objective"]["scale"] = -1
    with pytest.raises(InputError, match=r"objective.scale = -1.0 is out of range; allowed: > 0"):
        vd.make_recipe(given, objective=HINGE)
    given["objective"] = {"name": "hinge", "beta": 0.1}
    with pytest.raises(InputError, match='objective.beta has no effect with objective.name = "hinge"'):
        vd.make_recipe(given, objective=HINGE)


def run(recipe: vd.Recipe) -> tuple[vd.Trainer, list[dict]]:
    trainer = vd.Trainer(recipe)
    rows = [dict(trainer.step()) for _ in range(trainer.total_steps - trainer.step_count)]
    return trainer, rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ipo", "orpo", "hinge"])
def test_runs_learn_and_resume(tmp_path, tiny_models, data, name):
    """Guards objectives that are nothing but a declaration and a function: a run learns, gives the same bits when it is
    taken up again, exports, and its saved weights are read without knowing the objective."""
    own = HINGE if name == "hinge" else None
    given = tables(tiny_models["qwen3"], data, tmp_path / "whole", name=name)
    trainer, rows = run(vd.make_recipe(given, objective=own))
    trainer.finish()
    weights = {n: p.full_tensor().clone() for n, p in trainer.model.named_parameters()}
    trainer.close()
    assert all(row["skipped_updates"] == 0 and row["grad_norm"] > 0 for row in rows)
    assert {"ipo": "rewards/margins", "orpo": "log_odds_ratio", "hinge": "hinge/margin"}[name] in rows[0]
    if name == "ipo":  # the policy is the reference: every pair is 1 / (2 beta) from its target
        assert rows[0]["loss"] == pytest.approx(25.0, abs=1e-4) and rows[0]["rewards/margins"] == 0.0

    given["run"]["folder"] = str(tmp_path / "parts")
    first = vd.Trainer(vd.make_recipe(given, objective=own))
    first.step()
    first.save()
    first.close()
    second, rest = run(vd.make_recipe(given, objective=own))
    assert second.resumed_at == 1 and rest[-1]["loss"] == rows[-1]["loss"]
    assert all(torch.equal(p.full_tensor(), weights[n]) for n, p in second.model.named_parameters())
    second.finish()
    second.close()
    assert (tmp_path / "parts" / "export" / "model.safetensors").exists()
    assert load_scoring_recipe(tmp_path / "parts" / "recipe.toml").model.source == str(tiny_models["qwen3"])
