"""Tasks along a run: they touch nothing, their scores are the same bits anywhere, and a run goes on with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.embedding import ROWS, tables
from helpers.embedding import whole as weights_of
from helpers.task_rows import write_tasks

from vdengine.drift.capability_log import CapabilityLog
from vdengine.drift.load import load_run
from vdengine.drift.panel_log import DriftLog
from vdengine.engine.saved_models import TaskOptions, score
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError

PROBES = {"panel": "values-mini", "every": 2, "tokens": 8192, "controls": False, "readouts": ["lead"]}


@pytest.fixture(autouse=True)
def one_thread():
    """Bits are those of a number of threads, and runs that fixtures make come before that of tests is set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models, files):
    """make(name, steps=None, **sections): a run, or a part of it; its weights and its rows of metrics."""
    out = tmp_path_factory.mktemp("runs")
    tasks = {"tasks": [str(files["facts_3"]), str(files["goals"])], "every": 2, "limit": 6, "tokens": 8192}

    def make(name, steps=None, **sections):
        torch.set_num_threads(1)  # as `one_thread`
        keys = {"model": {"source": str(tiny_models["qwen3"])}, "capability": tasks} | sections
        trainer = Trainer(tables(out, name, **keys), data=ROWS)
        rows = []
        while trainer.step_count < (steps or trainer.total_steps):
            rows.append(dict(trainer.step()))
            if trainer.step_count == 2:
                trainer.save()
        if steps is None:
            trainer.finish()
        else:
            trainer.save()
        weights = weights_of(trainer.model)
        trainer.close()
        return out / name, weights, rows

    return make


@pytest.fixture(scope="module")
def whole(made):
    return made("whole", probes=PROBES)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_tasks_do_not_touch_training(made, whole):
    """Guards the second stream: weights and losses have the same bits with tasks, with a panel, with both, with none;
    and the panel's numbers the same with and without tasks beside it."""
    folder, weights, rows = whole
    for name, sections in {
        "neither": {"capability": {}},
        "tasks": {},
        "panel": {"capability": {}, "probes": PROBES},
    }.items():
        other, others, other_rows = made(name, **sections)
        assert same(weights, others) and [r["loss"] for r in rows] == [r["loss"] for r in other_rows]
        if name == "panel":
            assert np.array_equal(DriftLog.open(folder).samples(), DriftLog.open(other).samples(), equal_nan=True)
        if name == "tasks":
            mine, theirs = (CapabilityLog.open(f).channel.values for f in (folder, other))
            assert np.array_equal(mine, theirs) and mine.shape == (3, 6 * 4 + 6 * 2)


def test_what_a_run_says(whole):
    """Guards steps, metrics and tables: a check at the start, every second step and the end."""
    folder, _, rows = whole
    run = load_run(folder)
    assert run.capability.steps.tolist() == [0, 2, 4]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = run.capability.checks()[0]
    assert logged[0]["capability/goals/acc"] == first.accuracies["goals", "acc"].value
    assert "capability/goals/acc" not in logged[1] and "capability/goals/acc_norm_stderr" in rows[2]


def test_lr_zero_changes_nothing(made):
    """Guards the measurement: unchanged weights answer alike at every check, to the bit."""
    folder, _, _ = made("lr0", optimizer={"lr": 0.0})
    log = CapabilityLog.open(folder)
    assert (log.channel.values == log.channel.values[0]).all() and np.isfinite(log.channel.values).all()
    changes = log.checks()[-1].changes.values()
    assert changes and all(c.mean == c.lost == c.gained == 0 and c.low <= 0 <= c.high and c.p == 1 for c in changes)


def test_score_is_training(whole, files, tiny_models, tmp_path):
    """Guards `vdengine score`: of a checkpoint the bits that its run logged, by the run's own tasks or by name; JSON
    and text of tasks alone."""
    folder, _, _ = whole
    values = CapabilityLog.open(folder).channel.values
    said: list[str] = []
    at_2, at_4 = (str(folder / "checkpoints" / f"step-00000{k}") for k in (2, 4))
    own = score([at_2, at_4], out=str(tmp_path / "out"), controls=False, say=said.append)
    assert np.array_equal(own[:, -values.shape[1] :], values[1:]) and "Tasks, with standard errors" in "\n".join(said)
    assert np.array_equal(CapabilityLog.open(tmp_path / "out").channel.values, values[1:])
    options = TaskOptions([str(files["facts_3"]), str(files["goals"])], 6, tokens=8192)
    alone = score([str(tiny_models["qwen3"])], tasks=options, json_path="-", say=said.append)
    assert np.array_equal(alone, values[:1])
    found = json.loads(said[-1])
    assert found["capability"]["checks"][0]["tasks"]["goals"]["acc"] == pytest.approx(
        CapabilityLog.open(folder).checks()[0].accuracies["goals", "acc"].value
    )
    with pytest.raises(InputError, match="holds scores already"):
        score([at_2], out=str(tmp_path / "out"), say=said.append)


def test_a_run_goes_on(made, whole, files):
    """Guards resume: after a stop at step 3 the log has the same bits as that of a run without one, and other tasks or
    other steps of checks are refused."""
    folder, weights, _ = whole
    stopped, _, _ = made("stopped", steps=3, probes=PROBES)
    tasks = {"tasks": [str(files["goals"])], "every": 2, "limit": 6, "tokens": 8192}
    for changed, said in (
        (tasks, "the contents have changed: capability.tasks"),
        (tasks | {"limit": 5}, "the recipe differs: capability.limit: 6 -> 5"),
        (
            tasks | {"tasks": [str(files["facts_3"]), str(files["goals"])], "every": 1},
            "leave capability.every as it was",
        ),
    ):
        with pytest.raises(InputError, match=said):
            made("stopped", probes=PROBES, capability=changed)
    resumed, others, _ = made("stopped", probes=PROBES)
    assert same(weights, others) and stopped == resumed
    for name in ("capability/choices.bin", "drift/leads.bin"):
        assert (folder / name).read_bytes() == (resumed / name).read_bytes()


def test_bad_recipes(made):
    """Guards early lines: keys without tasks, a reward model, a budget that a prompt does not fit."""
    for sections, said in (
        ({"capability": {"every": 2}}, "capability.every has no effect without capability.tasks"),
        ({"capability": {"tasks": ["none.yaml"]}}, "none.yaml: no such file"),
        ({"objective": {"name": "reward", "beta": None}}, "capability.tasks has no effect|unknown|beta"),
    ):
        with pytest.raises(InputError, match=said):
            made("bad", **sections)
