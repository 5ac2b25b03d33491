"""Metrics on their way to trackers."""

import sys
import types

import pytest
import torch
from helpers.runs import recipe_of
from helpers.scenarios import train

from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import lead_values, text_values
from vdengine.engine.metrics import Sums
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError


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


@pytest.mark.slow
def test_trackers(tmp_path, tiny_models, data, monkeypatch):
    """Guards the curves of trackers: steps never fall (wandb drops what comes late), and readouts at the weights'
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
    values = {step: row for step, row in wandb.rows if "lead/abortion" in row}
    assert list(values) == [0, 1, 2, 3, 4]
    log = DriftLog.open(trainer.folder)
    for name, readings, scale in (("lead", lead_values(log), 1), ("text_likelihood", text_values(log), 100)):
        shift = readings.channels[readings.primary][:, readings.topics == "abortion"]
        for i, (step, row) in enumerate(values.items()):
            assert row[f"{name}/abortion"] == pytest.approx(scale * (shift[i] - shift[0]).mean(), abs=1e-12), step
    assert all(0 < row["lead_coverage/abortion"] < 1 for row in values.values())


@pytest.mark.slow
def test_tensorboard(tmp_path, tiny_models, data):
    """Guards the names under which TensorBoard shows values, and their steps."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.log.trackers = ["tensorboard"]
    trainer = train(recipe)
    events = EventAccumulator(str(trainer.folder / "tensorboard")).Reload()
    assert {"loss", "lead/immigration", "text_likelihood/immigration"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("lead/immigration")] == [0, 1, 2, 3, 4]


def test_a_tracker_that_is_not_there(tmp_path, tiny_models, data, monkeypatch):
    """Guards one clear line that says what to install."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.log.trackers = ["wandb"]
    with pytest.raises(InputError, match="log.trackers: wandb is not installed: pip install wandb"):
        Trainer(recipe)


def test_means_over_what_counts():
    """Guards denominators: of the whole batch, of tokens for the entropy, a metric's own weights, an idle pack that
    counts nothing, and a mean over nothing, which is left out and no NaN."""
    sums = Sums({"": 4, "entropy": 10})
    wanted = torch.tensor([1.0, 0.0])
    sums.add({"loss": torch.tensor([1.0, 3.0]), "chosen": (torch.tensor([5.0, 7.0]), wanted)}, 1.0)
    sums.add({"loss": torch.tensor([2.0, 2.0]), "chosen": (torch.tensor([9.0, 1.0]), wanted)}, 1.0)
    sums.add({"loss": torch.tensor([99.0]), "chosen": (torch.tensor([99.0]), torch.ones(1))}, 0.0)
    sums.add({"entropy": torch.tensor([2.0, 3.0]), "none": (torch.ones(2), torch.zeros(2))}, 1.0)
    both_ranks = (2 * sums.tensor()).tolist()
    assert sums.means(both_ranks) == {"chosen": 7.0, "entropy": 1.0, "loss": 4.0}
