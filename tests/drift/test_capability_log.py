"""The raw log of tasks: what is written, read, compared, and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers.task_rows import favour, write_tasks

import vdengine as vd
from vdengine.drift.capability_log import CapabilityLog, checks_of
from vdengine.drift.load import load_run
from vdengine.errors import InputError
from vdengine.tasks.task import load_tasks
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer


@pytest.fixture(scope="module")
def packs(tiny_models, tmp_path_factory):
    files = write_tasks(tmp_path_factory.mktemp("tasks"))
    renderer = Renderer(vd.load_tokenizer(str(tiny_models["qwen3"])))
    return TaskPacks.build(load_tasks([files["facts"], files["goals"]], 5), renderer, 2048)


@pytest.fixture(scope="module")
def fewer(tiny_models, tmp_path_factory):
    """Other packs: one task, of fewer rows."""
    files = write_tasks(tmp_path_factory.mktemp("tasks"))
    renderer = Renderer(vd.load_tokenizer(str(tiny_models["qwen3"])))
    return TaskPacks.build(load_tasks([files["facts"]], 3), renderer, 2048)


def test_outcomes_and_paired_changes(packs, tmp_path):
    """Guards the way back from the file to rows: which are right at each step, and what changed between two."""
    log = CapabilityLog.create(tmp_path, packs, "hash")
    first = [True, True, False, True, False, True, True, True, True, False]
    second = [True, False, False, False, True, *first[5:]]
    log.append(0, favour(packs, first))
    log.append(7, favour(packs, second))
    log = CapabilityLog.open(tmp_path)
    assert [task.name for task in log.tasks] == ["facts", "goals"] and log.steps.tolist() == [0, 7]
    assert log.outcomes("facts").astype(bool).tolist() == [first[:5], second[:5]]
    moved = log.change("facts", 0, 7)
    assert (moved.lost, moved.gained, moved.mean) == (2, 1, pytest.approx(-0.2))
    assert log.change("goals", 0, 7).mean == 0.0
    check = log.checks()[1]
    assert check.accuracies["facts", "acc"].value == 0.4 and check.changes["facts", "acc"] == moved
    assert check.scalars["capability/goals/acc"] == 0.8 and "capability/goals/acc_stderr" in check.scalars
    run = load_run(tmp_path)
    rows = run.rows("capability")
    assert len(rows) == 2 * 2 * 3 and rows[-1]["change_lost"] == 0
    table = run.rows("capability_rows")
    assert [row["acc"] for row in table if row["step"] == 7 and row["task"] == "facts"] == [int(x) for x in second[:5]]
    assert len(run.rows("capability_choices")) == 2 * packs.num_branches
    for wrong in (lambda: log.change("facts", 0, 3), lambda: log.task("x")):
        with pytest.raises(InputError, match="were|there are"):
            wrong()


def test_a_log_of_other_tasks_is_not_continued(packs, tmp_path):
    """Guards a folder against numbers of two kinds of rows in one file."""
    CapabilityLog.create(tmp_path, packs, "hash").append(0, favour(packs, [True] * 10))
    assert CapabilityLog.create(tmp_path, packs, "hash").steps.tolist() == [0]
    with pytest.raises(InputError, match="another tokenizer"):
        CapabilityLog.create(tmp_path, packs, "other")
    log = CapabilityLog.open(tmp_path)
    log.rewind(0)
    assert not len(log.steps) and not log.checks()


def test_damaged_logs_are_refused(packs, tmp_path):
    """Guards readers: a manifest and choices that do not belong together, each with one line."""
    CapabilityLog.create(tmp_path, packs)
    folder = tmp_path / "capability"
    manifest, items = (folder / "manifest.json").read_text(), (folder / "choices.jsonl").read_text()
    lines = items.splitlines(keepends=True)
    spoilt = json.loads(manifest)
    cases = {
        "manifest.json": [
            "{}",
            json.dumps(spoilt | {"tasks": []}),
            json.dumps(spoilt | {"tasks": spoilt["tasks"][::-1]}),
            json.dumps(spoilt | {"tasks": [spoilt["tasks"][0] | {"metrics": ["f1"]}, spoilt["tasks"][1]]}),
            json.dumps(spoilt | {"channel": 3}),
        ],
        "choices.jsonl": [
            "".join(lines[:-1]),
            "".join([lines[1], lines[0], *lines[2:]]),
            items.replace('"right": true', '"right": 1', 1),
            items.replace('"text": "A"', '"text": ""', 1),
        ],
    }
    for name, texts in cases.items():
        for text in texts:
            (folder / "manifest.json").write_text(manifest)
            (folder / "choices.jsonl").write_text(items)
            (folder / name).write_text(text)
            with pytest.raises(InputError) as error:
                CapabilityLog.open(tmp_path)
            assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no tasks were scored here"):
        CapabilityLog.open(tmp_path / "none")


def test_checks_of_a_history(packs, fewer, tmp_path):
    """Guards stages: their checks are at the history's steps, changes are since the first stage's start, the later
    sample stands at an edge, and a stage with other tasks is left out."""
    every, two = [True] * 10, [True, True, *[False] * 8]
    logs = [CapabilityLog.create(tmp_path / name, packs, "hash") for name in ("sft", "dpo")]
    for log, (first, last) in zip(logs, ((every, two), (two, every[:5] + two[:5])), strict=True):
        log.append(0, favour(packs, first))
        log.append(7, favour(packs, last))
    found = checks_of([(0, logs[0]), (7, logs[1])])
    assert [check.step for check in found] == [0, 7, 14] and not found[0].changes
    assert found[1].accuracies["facts", "acc"].value == 0.4 and found[1].changes["facts", "acc"].lost == 3
    assert found[2].changes["facts", "acc"].mean == 0 and found[2].changes["goals", "acc"].lost == 3
    as_chat = replace(logs[0], manifest=logs[0].manifest | {"chat": True})  # the same choices after other prompts
    assert [check.step for check in checks_of([(0, as_chat), (7, logs[1])])] == [7, 14]
    another = CapabilityLog.create(tmp_path / "other", fewer, "hash")
    another.append(0, favour(fewer, [True] * 3))
    assert [check.step for check in checks_of([(0, another), (7, logs[1])])] == [7, 14]
