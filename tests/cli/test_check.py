"""`vdengine check`: what a run will do and need, against the run itself."""

import json

import pytest
from helpers.runs import PPO, recipe_of, tables

from vdengine.cli.check import main
from vdengine.engine.outlook import outlook
from vdengine.engine.preflight import preflight
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.recipe import make_recipe, to_toml


@pytest.fixture
def data_file(tmp_path):
    rows = [{"prompt": f"question {i}", "chosen": "yes " * (1 + i % 5), "rejected": f"no {i}"} for i in range(40)]
    rows[3]["chosen"] = "long " * 100
    rows[4]["chosen"] = rows[4]["rejected"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path, tiny_models, data_file):
    t = tables(tmp_path, str(tiny_models["llama"]), str(data_file), "run")
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(make_recipe(t)))
    return path


def test_it_says_what_the_run_then_does(recipe, tmp_path, capsys):
    """Guards estimates that are none: where all rows are read, rows, steps, schedule, cost and first example are those
    of the trainer. Nothing is written."""
    assert main([str(recipe), "--json", "run.steps=5"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists() and out["first_example"]["exact"]
    trainer = Trainer(recipe_of("base", tmp_path, out["model"]["source"], out["data"][0]["source"]))
    steps_of, cost = trainer.probes.schedule.steps, trainer.probes.schedule.cost
    rows, epoch = len(trainer.store), trainer.loader.steps_per_epoch
    first = trainer.store.where(int(trainer.loader.rows(0)[0]))
    trainer.close()
    assert out["data"][0]["examples"] == rows and out["run"]["steps_per_epoch"] == epoch
    assert out["probes"]["steps"] == [*steps_of, 5] and first in out["first_example"]["text"]
    assert out["probes"]["cost"] == pytest.approx(cost * (6 / 5) / (5 / 4), rel=0.01)  # one more sample, one more step
    assert out["data"][0]["too_long"] == 1 and sum(out["data"][0]["dropped"].values()) == 1
    assert out["template"]["stops"] == [{"id": 258, "token": "<|im_end|>"}]
    assert out["memory"]["total"] == sum(out["memory"]["parts"].values()) and out["disk"]["free"] > 0


def test_for_a_person(recipe, capsys):
    """Guards the page: what matters is on it, in 160 columns; a sample is marked as one."""
    assert main(["--rows", "10", str(recipe), "optimizer.lr=0.1", "data.max_tokens=64", "batch.tokens=400"]) == 0
    said = capsys.readouterr().out
    for part in ("estimated from the first 10", "an example:", "memory   about", "<|im_end|> (258)", "4 steps of 6"):
        assert part in said, part
    assert said.startswith("warning: optimizer.lr = 0.1 is far from what is usual for dpo")
    assert "data.max_tokens = 64 drops" in said and "have at most" in said and "no checkpoint before the end" in said
    assert max(map(len, said.splitlines())) <= 200


@pytest.mark.parametrize("end", ["###", "<|eot_id|>", ""])
def test_answers_without_an_end(end, recipe, tmp_path, capsys):
    """Guards the warning where the run can start, and the error where it samples and could not."""
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "\n{% endfor %}")
    words = [str(recipe), f"data.template={template}", "probes.readouts=['text_likelihood']"]  # yes is no one token
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("warning: ") and "answers are trained without an end" in said.split("\n\n")[0]
    assert main([*words, "answers.samples=2"]) == (2 if end else 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train=none.jsonl"], "none.jsonl"),
        (["data.max_tokens=20", "batch.tokens=20"], "none of the first 40 rows"),
        (["batch.tokens=400", "data.max_tokens=400", "parallel.replicate=3"], "does not make the 1 ranks of this run"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["probes.tokens=64"], "probes.tokens"),
    ],
)
def test_what_could_not_start(words, said, recipe, capsys):
    """Guards status 2 and one line where the run would end with an error."""
    assert main([str(recipe), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error, error


def test_other_objectives(tmp_path, tiny_models, data_file):
    """Guards what rollouts, answers and a scalar head change: prompts, generated tokens, no probes."""
    t = tables(tmp_path, str(tiny_models["llama"]), str(data_file), "run")
    ppo = make_recipe(t | {k: {n: v for n, v in s.items() if v is not None} for k, s in PPO.items()})
    out = outlook(ppo, preflight(ppo))
    assert out["data"][0]["format"] == "preference" and "value model, trained" in out["memory"]["parts"]
    t["answers"] = {"samples": 4, "base": 6, "probes": 8, "max_tokens": 6, "anchors": 3}
    answers = make_recipe(t)
    out = outlook(answers, preflight(answers))
    found = out["answers"]
    assert (found["probes"], found["anchors"], found["answers"], found["tokens"]) == (8, [3, 3], [112, 112], 672)
    assert found["summary"].startswith("3 anchors, at steps 0, ") and f"{found['cost']:.1%} of" in found["summary"]
    t["answers"] = {"generated_tokens": 900, "probes": 8}
    small = make_recipe(t)
    with pytest.raises(InputError, match="answers.generated_tokens = 900: 2 anchors, start and end included, take up"):
        outlook(small, preflight(small))
    reward = make_recipe(
        {k: v for k, v in t.items() if k not in ("answers", "probes")} | {"objective": {"name": "reward"}}
    )
    out = outlook(reward, preflight(reward))
    assert out["probes"] is None and out["answers"] is None
