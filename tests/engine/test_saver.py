"""Checkpoints written beside training: atomic, hashed, pruned; and what becomes of one that cannot be written."""

import json

import pytest
import torch
from helpers.runs import recipe_of

from vdengine.engine import saver
from vdengine.engine.checkpoint import checkpoints, inspect, step_of
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError


@pytest.fixture
def make(tmp_path, tiny_models, data):
    """Opens the trainer of a run without probes; keys of its recipe as `checkpoint__keep=1`."""

    def make(**keys):
        recipe = recipe_of("sft", tmp_path, str(tiny_models["qwen3"]), str(data))
        recipe.run.steps, recipe.probes.every = 8, 0
        for name, value in keys.items():
            section, key = name.split("__")
            setattr(getattr(recipe, section), key, value)
        return Trainer(recipe)

    return make


def steps_of(trainer):
    return [step_of(folder) for folder in checkpoints(trainer.folder)]


def test_a_save_holds_the_weights_of_its_step(make):
    """Guards the copy that is made while the next step computes: the weights move only after it."""
    trainer = make()
    trainer.step()
    before = {n: p.full_tensor().clone() for n, p in trainer.model.named_parameters()}
    folder = trainer.save()
    trainer.step()
    trainer.saver.wait()
    trainer.close()
    assert inspect(folder)[1] == ""
    again = make()
    assert again.step_count == 1
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in again.model.named_parameters())
    again.close()


def test_keep_and_keep_every(make):
    """Guards the disk, and the checkpoints that a user asked to keep."""
    trainer = make(checkpoint__keep=2, checkpoint__keep_every=3)
    for _ in range(8):
        trainer.step()
        trainer.save()
    trainer.close()
    assert steps_of(trainer) == [3, 6, 7, 8]
    assert sorted(p.name for p in trainer.files.checkpoints.iterdir()) == [f"step-{k:06d}" for k in (3, 6, 7, 8)]


def test_good_checkpoints_stay_while_updates_are_skipped(make):
    """Guards a run whose weights are spoilt: the last checkpoint that an applied update has followed is not rotated
    out by those that came after it, and the count of skips goes on in a resumed run until it gives up at once."""
    trainer = make(checkpoint__keep=1, run__steps=60)
    for _ in range(3):
        trainer.step()
        trainer.save()
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.fill_(float("nan"))
    for _ in range(4):
        trainer.step()
        trainer.save()
    trainer.close()
    assert steps_of(trainer) == [2, 7]
    trainer = make(checkpoint__keep=1, run__steps=60)
    with pytest.raises(InputError, match="20 in a row|the last 20 updates were skipped") as error:
        for _ in range(60):
            trainer.step()
    assert trainer.step_count == 23 and "the checkpoint of step 2 is from before it" in str(error.value)
    trainer.save()
    trainer.close()
    with pytest.raises(InputError, match="step-000023: the last 20 updates were skipped"):
        make(checkpoint__keep=1, run__steps=60)
    assert steps_of(trainer)[0] == 2


def fail_at(monkeypatch, where, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(*where, fail)


@pytest.mark.parametrize("where", ["write", "sync", "hash", "manifest", "logs"])
def test_a_full_disk_loses_nothing(make, monkeypatch, where):
    """Guards what is there against a disk that fills up in any part of a save: one line, the checkpoint before whole,
    nothing beside it, and the run goes on from there once there is room."""
    trainer = make()
    trainer.step()
    trainer.save()
    trainer.step()
    trainer.saver.wait()
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        targets = {
            "write": ("torch.distributed.checkpoint.filesystem._write_item",),
            "sync": ("torch.distributed.checkpoint.filesystem.os.fsync",),
            "hash": (saver, "_entry"),
            "manifest": (saver, "write_text"),
            "logs": (saver, "sync"),
        }
        fail_at(patch, targets[where], full)
        trainer.save()
        with pytest.raises(InputError, match=r"step-000002: cannot be written: .*No space left on device") as error:
            trainer.saver.wait()
    assert "\n" not in str(error.value) and "started again, the run goes on from step" in str(error.value)
    names = sorted(p.name for p in trainer.files.checkpoints.iterdir())
    assert names[0] == "step-000001" and not [name for name in names if name.endswith(".tmp")]
    trainer.close()
    again = make()
    assert again.step_count == 1
    again.step()
    again.save()
    again.close()


@pytest.mark.parametrize("after", [False, True])
def test_a_first_save_that_is_cut_short_can_be_taken_again(make, monkeypatch, after):
    """Guards a run whose first checkpoint was about to get its name when it was killed, or when the disk was full: it
    is no run that has lost its checkpoints, and starts over; with the name given it goes on."""
    trainer = make()
    trainer.step()
    real = saver.Path.rename

    def rename(path, target):
        if path.name == "step-000001.tmp":
            if after:
                real(path, target)
            raise OSError(28, "No space left on device")
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(saver.Path, "rename", rename)
        trainer.save()
        with pytest.raises(InputError, match=r"step-000001: cannot be written"):
            trainer.saver.wait()
    assert not trainer.files.saved.exists()
    trainer.close()
    again = make()
    assert again.step_count == int(after)
    again.step()
    again.save()
    again.close()
    assert again.files.saved.exists()


def test_a_failed_save_is_known_at_the_end_of_a_step(make, monkeypatch):
    """Guards days of training without a checkpoint: every rank learns of it at the same step."""
    trainer = make()
    trainer.step()
    with monkeypatch.context() as patch:
        fail_at(patch, (saver, "_entry"), OSError(5, "Input/output error"))
        trainer.save()
        while not trainer.saver.failed:
            pass
    trainer.step()
    assert trainer.stopping.failed
    with pytest.raises(InputError, match="Input/output error"):
        trainer.save()
    trainer.close()


def test_room_is_checked_before_writing(make, monkeypatch):
    """Guards against half a checkpoint where the disk is nearly full."""
    trainer = make()
    trainer.step()
    monkeypatch.setattr("vdengine.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match=r"no room for the checkpoint of step 1: it takes .* GiB, .* GiB are free"):
        trainer.save()
    assert not list(trainer.files.checkpoints.glob("*")) if trainer.files.checkpoints.exists() else True
    trainer.close()


def test_a_folder_that_was_removed_is_said(make):
    """Guards a run that would go on writing into a folder that nobody can see."""
    import shutil

    trainer = make()
    trainer.step()
    shutil.rmtree(trainer.folder)
    with pytest.raises(InputError, match="sft: was removed while the run wrote to it"):
        trainer.save()
    trainer.close()


def test_a_copy_that_fails_is_a_failed_save(make, monkeypatch):
    """Guards the ranks against waiting for one whose memory did not hold the copy: the step goes on, the save fails."""
    trainer = make()
    trainer.step()
    fail_at(monkeypatch, (trainer.saver._stager, "_stage"), MemoryError("pinned memory"))
    trainer.save()
    trainer.step()
    with pytest.raises(InputError, match="step-000001: cannot be written: .*pinned memory; there is no checkpoint"):
        trainer.saver.wait()
    trainer.close()


def test_an_old_checkpoint_that_cannot_be_removed_is_no_error(make, monkeypatch):
    """Guards a run against ending because someone reads an old checkpoint on a network file system."""
    trainer = make(checkpoint__keep=1)
    remove = saver._remove

    def held(folder):
        if folder.name == "step-000001" and folder.exists():
            raise OSError(39, "Directory not empty")
        remove(folder)

    monkeypatch.setattr(saver, "_remove", held)
    for _ in range(3):
        trainer.step()
        trainer.save()
    trainer.close()
    assert trainer.saver.notes == [f"{trainer.files.checkpoint(1)}: cannot be removed (Directory not empty)"]
    assert steps_of(trainer) == [1, 2, 3]  # and 2, which an update has followed


def test_what_a_killed_save_left_is_removed(make):
    """Guards the disk against checkpoints that were never finished."""
    trainer = make()
    trainer.close()
    for name in ("step-000004.tmp", "step-000002.old.tmp"):
        (trainer.files.checkpoints / name).mkdir(parents=True)
    make().close()
    assert not list(trainer.files.checkpoints.iterdir())


def test_the_manifest_names_every_file_and_log(make):
    """Guards what resume relies on: a size and a hash of each file, and of each log's part before the step."""
    trainer = make()
    trainer.step()
    trainer.save()
    trainer.close()
    manifest = json.loads((trainer.files.checkpoint(1) / "manifest.json").read_text())
    names = {p.name for p in trainer.files.checkpoint(1).iterdir()}
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["logs"]["metrics.jsonl"]["bytes"] == trainer.files.metrics.stat().st_size
