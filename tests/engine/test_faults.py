"""What may happen to the files of a run, as a user meets it: one line and a non-zero exit, nothing lost, no traceback.
Kills, and disks that are full at any write, are in test_kills.py."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import tables

from vdengine.engine.checkpoint import newest
from vdengine.engine.parallel import start_world
from vdengine.engine.trainer import Trainer
from vdengine.recipe import ParallelKeys, make_recipe, to_toml
from vdengine.train import main

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "removed": lambda data: None,
    "empty": lambda data: b"",
    "one byte short": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "one byte more": lambda data: data + b"\0",
    "zeroed": lambda data: bytes(len(data)),
    "second half zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "middle bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint(damage, finished_run, tmp_path) -> None:
    """Guards resume against every file of a checkpoint, damaged in every way: the one before it is taken, the spoilt
    one is set aside, and one line says which file was wrong."""
    world = start_world(ParallelKeys(), True)
    try:
        files = sorted(p.name for p in (finished_run / "checkpoints" / "step-000004").iterdir())
        assert {".metadata", "manifest.json"} < set(files)
        for name in files:
            run = tmp_path / name
            shutil.copytree(finished_run / "checkpoints", run / "checkpoints")
            path = run / "checkpoints" / "step-000004" / name
            data = DAMAGES[damage](path.read_bytes())
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)
            found = newest(run, world)
            assert found is not None
            if name == "manifest.json" and found.step == 4:  # its last byte is white space, and says nothing
                assert damage in ("one byte short", "last bit") and json.loads(path.read_bytes())["step"] == 4
                continue
            assert found.step == 2, name
            [note] = found.notes  # a flipped bit of the manifest may be in what it says of another file
            assert "step-000004" in note and "\n" not in note
            assert name in note or (name == "manifest.json" and damage.endswith("bit"))
            assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004.damaged"]
    finally:
        world.close()


@pytest.fixture
def recipe(tmp_path, tiny_models) -> Path:
    """A recipe that works, of a run of 3 steps without probes."""
    rows = [{"prompt": f"q{i}", "chosen": "yes it is", "rejected": f"no {i}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    t = tables(tmp_path, str(tiny_models["llama"]), str(tmp_path / "pairs.jsonl"), "run")
    t["run"]["steps"], t["batch"]["examples"], t["probes"] = 3, 4, {"every": 0}
    t["checkpoint"] = {"every": 1, "export": True}
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(make_recipe(t)))
    return path


def said(capsys) -> str:
    """The error's one line, without the traceback that there must not be."""
    text = capsys.readouterr().err
    assert "Traceback" not in text, text
    [line] = [line for line in text.splitlines() if line.startswith("error")]
    return line


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("run.folder", "run"),
        ("run.folder", "run/checkpoints"),
        ("run.folder", "run/export"),
        ("run.folder", "run/reference"),
        ("run.folder", "run/metrics.jsonl/"),
        ("run.folder", "run/recipe.toml/"),
        ("data.cache", "cache"),
        ("data.cache", "cache/store"),
    ],
)
def test_a_file_where_a_folder_should_be(key, path, recipe, tmp_path, capsys) -> None:
    """Guards the ways in which a folder cannot be what it should: a file stands there, or a folder where a file
    should be."""
    place = tmp_path / path
    place.parent.mkdir(exist_ok=True)
    if path.endswith("/"):
        (place / "something").mkdir(parents=True)
    else:
        place.write_text("in the way")
    assert main([str(recipe)]) != 0
    assert place.name in said(capsys)
    assert place.exists()


@pytest.mark.parametrize("key", ["run.folder", "data.cache"])
@pytest.mark.parametrize(
    "name", ["x" * 300, "nul\\u0000byte", "/proc/vdengine/x", "/dev/null/x"], ids=["long", "nul", "proc", "device"]
)
def test_names_that_no_folder_can_have(key, name, recipe, tmp_path, capsys) -> None:
    """Guards paths that the system refuses: the line says so, and nothing appears."""
    value = name if name.startswith("/") else f"{tmp_path}/{name}"
    assert main([str(recipe), f'{key}="{value}"']) != 0
    assert value[-10:].split("/")[0].split("\\")[0] in said(capsys)


@pytest.mark.parametrize("gone", ["all", "checkpoints", "cache"])
def test_a_folder_that_is_removed_midway(gone, recipe, tmp_path, monkeypatch, capsys) -> None:
    """Guards days of a run that goes on writing into a folder that nobody can see: it ends with a line. Checkpoints
    alone are written again, and the cache is not needed any more."""
    run = tmp_path / "run"
    places = {"all": run, "checkpoints": run / "checkpoints", "cache": tmp_path / "cache"}
    plain, removed = Trainer.step, []

    def step(trainer, *args, **options):
        if trainer.step_count == 2 and not removed:
            trainer.saver.wait()
            removed.append(places[gone])
            shutil.rmtree(removed[0])
        return plain(trainer, *args, **options)

    monkeypatch.setattr(Trainer, "step", step)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        status = main([str(recipe)])
    if gone == "all":
        assert status != 0 and "run" in said(capsys)
    else:
        assert status == 0 and (run / "export" / "model.safetensors").exists()
        assert sorted(p.name for p in (run / "checkpoints").iterdir())[-1] == "step-000003"
