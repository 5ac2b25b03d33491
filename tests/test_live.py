"""What a person or a tracker sees while a run goes on, and what a recipe may ask of answers."""

import sys
import types

import numpy as np
import pytest
from runs import recipe_of
from test_trainer import data  # noqa: F401  # a fixture

from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import opening_values
from vdengine.engine import console
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.recipe import make_recipe


class Recorder:
    """wandb's and trackio's calls, kept."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []
        self.settings: dict = {}
        self.finished = False

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, scalars, step):
        self.rows.append((step, scalars))

    def finish(self):
        self.finished = True


def train(recipe) -> Trainer:
    trainer = Trainer(recipe)
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    trainer.finish()
    trainer.close()
    return trainer


def test_trackers(tmp_path, tiny_models, data, monkeypatch):  # noqa: F811
    """Guards the curves of trackers: steps never fall (wandb drops what comes late), and `value/...` at the weights'
    own step is what the log's estimators give; none is lost where steps are logged rarely."""
    wandb, trackio = Recorder(), Recorder()
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=wandb.init))
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=trackio.init))
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.log.every, recipe.log.trackers = 2, ["wandb", "trackio"]
    trainer = train(recipe)
    steps = [step for step, _ in wandb.rows]
    assert steps == sorted(steps) and wandb.finished and wandb.rows == trackio.rows
    assert wandb.settings["config"]["run"]["seed"] == 3
    values = {step: row for step, row in wandb.rows if "value/abortion/support" in row}
    assert list(values) == [0, 1, 2, 3, 4]
    readings = opening_values(DriftLog.open(trainer.folder))
    stance = readings.channels["stance"][:, readings.topics == "abortion"]
    for i, (step, row) in enumerate(values.items()):
        found = row["value/abortion/support"] - row["value/abortion/oppose"]
        assert found == pytest.approx((stance[i] - stance[0]).mean(), abs=1e-12), step
        assert sum(row[f"value/abortion/{s}"] for s in ("support", "neutral", "oppose")) == pytest.approx(0, abs=1e-12)


def test_tensorboard(tmp_path, tiny_models, data):  # noqa: F811
    """Guards the names under which TensorBoard shows values, and their steps."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.log.trackers = ["tensorboard"]
    trainer = train(recipe)
    events = EventAccumulator(str(trainer.folder / "tensorboard")).Reload()
    assert {"loss", "value/immigration/support", "value/immigration/neutral"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("value/immigration/support")] == [0, 1, 2, 3, 4]


def test_a_tracker_that_is_not_there(tmp_path, tiny_models, data, monkeypatch):  # noqa: F811
    """Guards one clear line that says what to install."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.log.trackers = ["wandb"]
    with pytest.raises(InputError, match="log.trackers: wandb is not installed: pip install wandb"):
        Trainer(recipe)


def test_plan_and_movers(tmp_path, tiny_models, data):  # noqa: F811
    """Guards what is printed: the budget of answers before the run, the topics that move and new anchors during it."""
    trainer = Trainer(recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data)))
    plan = console.plan(trainer)
    assert "answers 4 to each of 8 probes (6 at the start), up to 6 tokens, at steps 0, 4, and at up to 2 more" in plan
    assert "at most 864 tokens to generate and 144 answers to judge" in plan  # 8 x (6 + 3 x 4) answers of 6 tokens
    rows = [trainer.step()]
    assert "6 answers to each of 8 probes drawn (as planned)" in trainer.probes.note
    rows += [trainer.step() for _ in range(3)]
    trainer.close()
    gates = [r for r in rows if "answers/kl" in r]
    assert gates and all(r["answers/ess"] <= 1 + 1e-6 and np.isfinite(r["answers/kl"]) for r in gates)
    line = console.movers(trainer.probes.latest)
    assert line.startswith("openings at step 3") and any(t in line for t in trainer.probes.openings.panel.topics)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"anchors": [4]}, r"answers.anchors: 4 not within the run: 1 to 3 are"),
        ({"generated_tokens": 400}, r"answers.generated_tokens = 400: the 2 anchors that are sure .* take up to 480"),
        ({"judge_calls": 79}, r"answers.judge_calls = 79: the 2 anchors that are sure .* take up to 80"),
        ({"max_anchors": 2, "anchors": [1, 2]}, r"answers.max_anchors = 2: 4 are sure"),
    ],
)
def test_budgets_that_do_not_do(keys, message, tmp_path, tiny_models, data):  # noqa: F811
    """Guards budgets and steps: what is asked for, what is sure to come, and what to change."""
    recipe = recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data))
    for name, value in keys.items():
        setattr(recipe.answers, name, value)
    with pytest.raises(InputError, match=message):
        Trainer(recipe)


def test_budgets_bound_the_anchors(tmp_path, tiny_models, data):  # noqa: F811
    """Guards the recipe's word: with calls for three anchors, the alarm gets one."""
    recipe = recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.answers.judge_calls = 8 * (6 + 4 + 4) + 5
    trainer = train(recipe)
    assert trainer.probes.answers.max_anchors == 3 and len(trainer.probes.answers.anchors) == 3


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
