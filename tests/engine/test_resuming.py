"""Folders that a run goes on in, and those that it must not."""

import json
import shutil

import pytest
from helpers.runs import recipe_of

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.panel_log import DriftLog
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.runfolder import RunFolder


def recipe_in(folder, tiny_models, data):
    r = recipe_of("sft", folder, str(tiny_models["qwen3"]), str(data))
    r.run.steps, r.probes.tokens, r.checkpoint.every, r.optimizer.schedule = 4, 8192, 2, "constant"
    return r


@pytest.fixture
def recipe(tmp_path, tiny_models, data):
    return recipe_in(tmp_path, tiny_models, data)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, tiny_models, data):
    """The folder of a run that was stopped after step 3, with a checkpoint after step 2."""
    trainer = Trainer(recipe_in(tmp_path_factory.mktemp("stopped"), tiny_models, data))
    for k in range(3):
        trainer.step()
        if k == 1:
            trainer.save()
    trainer.close()
    return trainer.folder


@pytest.fixture
def begun(recipe, stopped_run):
    """A copy of it, in the folder of the recipe."""
    shutil.copytree(stopped_run, recipe.run.folder)
    return RunFolder.at(recipe.run.folder)


def finish(recipe):
    trainer = Trainer(recipe)
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    trainer.finish()
    trainer.close()
    return trainer


@pytest.mark.parametrize("name", ["recipe.toml", "inputs.json"])
@pytest.mark.parametrize("state", ["missing", "empty"])
def test_a_folder_that_lost_what_it_is_of(recipe, begun, name, state):
    """Guards a run against going on with another recipe, or on other data."""
    path = begun.path / name
    path.unlink() if state == "missing" else path.write_text("")
    recipe.optimizer.lr = 5e-4
    with pytest.raises(InputError, match=rf"{name}: {state}, and metrics.jsonl beside it is of a run: put the file"):
        Trainer(recipe)


@pytest.mark.parametrize("name", ["metrics.jsonl", "drift/openings.bin"])
@pytest.mark.parametrize("damage", ["missing", "cut", "zeroed"])
def test_a_log_that_lost_something(recipe, begun, name, damage):
    """Guards the log against a hole: a later sample would silently become the baseline."""
    path = begun.path / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 3] if damage == "cut" else bytes(len(data)))
    with pytest.raises(
        InputError,
        match=rf"{path.name}.*(is missing:|has only .* bytes that it had|has other contents than that it had)",
    ):
        Trainer(recipe)
    if damage != "missing":
        path.write_bytes(data)
        Trainer(recipe).close()


def test_what_was_logged_after_the_checkpoint_is_not_needed(recipe, begun):
    """Guards against refusing a folder whose last lines a crash has cut: they are written again."""
    for name in ("metrics.jsonl", "drift/openings.bin"):
        path = begun.path / name
        path.write_bytes(path.read_bytes()[:-5])
    trainer = finish(recipe)
    assert [json.loads(line)["step"] for line in trainer.files.metrics.read_text().splitlines()] == [1, 2, 3, 4]
    assert DriftLog.open(trainer.folder).steps.tolist() == [0, 1, 2, 3, 4]


def test_checkpoints_that_are_passed_over_are_said(recipe, begun):
    """Guards against going on from an older one without a word, or falling over names that are none of ours."""
    root = begun.checkpoints
    shutil.copytree(root / "step-000002", root / "step-000004-copy")
    shutil.copytree(root / "step-000002", root / "step-000003")  # its manifest is of step 2
    for step, manifest in ((4, "[]"), (5, "null"), (6, '{"step": 6, "files": [], "logs": {}}'), (7, "")):
        (root / f"step-{step:06d}").mkdir()
        (root / f"step-{step:06d}" / "manifest.json").write_text(manifest)
    (root / "step-000008").write_text("a file")
    trainer = Trainer(recipe)
    trainer.close()
    assert trainer.step_count == 2
    assert [note.split(":")[0] for note in trainer.notes] == [
        f"checkpoint step-{k:06d} was passed over" for k in (7, 6, 5, 4, 3)
    ]


def test_no_checkpoint_yet_is_said(recipe, begun):
    """Guards a run that starts over against doing so without a word."""
    shutil.rmtree(begun.checkpoints)
    begun.saved.unlink()  # as if none had been
    trainer = Trainer(recipe)
    trainer.close()
    assert trainer.step_count == 0
    assert trainer.notes == ["no checkpoint yet (the run came to step 3): starting over"]


def test_lost_checkpoints_are_not_started_over(recipe):
    """Guards days of logs, and an export, against a run that starts over because its checkpoints are gone."""
    recipe.checkpoint.export = True
    trainer = finish(recipe)
    shutil.rmtree(trainer.files.checkpoints)
    with pytest.raises(InputError, match="no checkpoint, though the run came to step 4; starting over would overwrite"):
        Trainer(recipe)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_models_folder_is_no_run_folder(recipe, name):
    """Guards a model against logs and checkpoints among its files; a folder with a launcher's output is fine."""
    folder = RunFolder.at(recipe.run.folder).path
    folder.mkdir()
    (folder / "slurm.out").write_text("")
    Trainer(recipe).close()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / name).write_text("")
    with pytest.raises(InputError, match="is another thing's folder"):
        Trainer(recipe)


def test_home_is_expanded_everywhere(recipe, monkeypatch, tmp_path):
    """Guards a run folder with "~" against logs in one place and the export in another."""
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe.run.folder, recipe.checkpoint.export = "~/mine", True
    finish(recipe)
    assert {"export", "checkpoints", "metrics.jsonl"} <= {p.name for p in (tmp_path / "mine").iterdir()}


def test_a_longer_run_keeps_the_answers_of_its_old_end(recipe):
    """Guards answers that someone has paid to have judged: the longer run has none at that step, so a copy is kept."""
    recipe.run.steps, recipe.answers.samples, recipe.answers.probes, recipe.answers.max_tokens = 2, 2, 4, 4
    finish(recipe)
    before = AnswerLog.open(recipe.run.folder)
    recipe.run.steps = 3
    trainer = Trainer(recipe)
    trainer.close()
    (note,) = trainer.notes
    kept = before.folder / "answers-until-step-2.jsonl"
    assert note.endswith(f"the 8 of step 2 are kept in {kept}")
    assert [json.loads(line)["anchor"] for line in kept.read_text().splitlines()] == [a.anchor for a in before.answers]


def test_a_finished_run_that_is_opened_again_keeps_its_end(recipe):
    """Guards the samples at a run's end against whoever opens it to look at its model, or starts it again."""
    recipe.answers.samples, recipe.answers.probes, recipe.answers.max_tokens = 2, 4, 4
    trainer = finish(recipe)
    names = [p for p in trainer.files.drift.rglob("*") if p.suffix in (".bin", ".jsonl")]
    before = {p: p.read_bytes() for p in names}
    Trainer(recipe).close()
    assert {p: p.read_bytes() for p in names} == before
    finish(recipe)
    assert {p: p.read_bytes() for p in names} == before
    log = before[trainer.files.drift / "openings.bin"]
    (trainer.files.drift / "openings.bin").write_bytes(log[: -len(log) // 5])  # the last of five samples
    finish(recipe)
    assert {p: p.read_bytes() for p in names} == before


def test_what_a_run_reads_may_have_moved(recipe, begun, tmp_path, data):
    """Guards a run on another machine, or with data under another name: contents are compared, and not names."""
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(data.read_bytes())
    recipe.data.train = [str(moved)]
    trainer = Trainer(recipe)
    trainer.close()
    assert trainer.step_count == 2
    moved.write_bytes(data.read_bytes() + data.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match="cannot resume, the contents have changed: data.train"):
        Trainer(recipe)


def test_two_runs_on_one_folder(recipe):
    """Guards logs against two writers: the second has one line, and the first is not disturbed."""
    first = Trainer(recipe)
    with pytest.raises(InputError, match="sft: a run is being written here by this process"):
        Trainer(recipe)
    first.step()
    first.close()
    Trainer(recipe).close()


def test_a_finished_run_can_be_made_longer(recipe, tmp_path):
    """Guards a longer run with a constant schedule: the bits of a run that was as long from the start."""
    finish(recipe)
    recipe.run.steps = 6
    longer = finish(recipe)
    recipe.run.folder = str(tmp_path / "whole")
    whole = finish(recipe)
    for a, b in ((longer, whole),):
        logs = [DriftLog.open(t.folder) for t in (a, b)]
        assert logs[0].steps.tolist() == logs[1].steps.tolist() == list(range(7))
        assert logs[0].samples().tobytes() == logs[1].samples().tobytes()
        losses = [[json.loads(line)["loss"] for line in t.files.metrics.read_text().splitlines()] for t in (a, b)]
        assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize(("every", "message"), [(0, "as at step 0"), (2, "as at step 1")])
def test_samples_before_the_checkpoint_stay(recipe, begun, every, message):
    """Guards the log against a hole where only the plan of probes changes: with samples at other steps than those of
    the log, or none, a run does not go on."""
    recipe.probes.every = every
    with pytest.raises(InputError, match=rf"probes.every: 1 -> {every}: the samples of probes .*{message}"):
        Trainer(recipe)


@pytest.mark.parametrize("how_many", [{"anchors": 5}, {"most_answers": 64}])
def test_a_longer_run_keeps_to_its_anchors(recipe, how_many):
    """Guards the anchors of a run that is made longer: 5 of them became six, and a budget of 64 answers 72. What would
    have been drawn at other steps is refused with what to do, which then does: a list of steps, and no anchor more."""
    recipe.run.steps, recipe.probes.every, recipe.answers.max_tokens, recipe.answers.probes = 10, 2, 2, 4
    recipe.answers.samples, recipe.answers.base = 2, 8
    for name, value in how_many.items():
        setattr(recipe.answers, name, value)
    log = AnswerLog.open(finish(recipe).folder)
    before = log.anchors
    recipe.run.steps = 20
    with pytest.raises(InputError, match="run.steps: 10 -> 20: the anchors .* give answers.anchors as a list of steps"):
        Trainer(recipe)
    assert AnswerLog.open(recipe.run.folder).anchors == before
    recipe.answers.anchors, recipe.answers.most_answers = before[1:-1], None
    assert AnswerLog.open(finish(recipe).folder).anchors == [*before[:-1], 20]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__schedule": "cosine"}, r"cosine schedule of 6 steps has another .* model.source = its export"),
        ({"optimizer__warmup": 0.5}, r"the warm-up is another; the same one is optimizer.warmup = 0.333333"),
    ],
)
def test_what_would_have_been_otherwise_is_refused_with_advice(recipe, changes, message):
    """Guards the lr of the steps done: where it would have been another, the line says what can be done."""
    for name, value in changes.items():
        setattr(recipe.optimizer, name.split("__")[1], value)
    finish(recipe)
    recipe.run.steps = 6
    with pytest.raises(InputError, match=message):
        Trainer(recipe)


def test_a_shorter_run_than_its_steps(recipe, begun):
    """Guards a run against ending before where it stands."""
    recipe.run.steps = 1
    with pytest.raises(InputError, match="run.steps: 4 -> 1: cannot resume, 2 steps are done already"):
        Trainer(recipe)
