"""The runs before a run, found by what their recipes say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.report_runs import make_run, panel_of

from vdengine.drift.chain import difference, earlier_runs, edge
from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError


def recipe_in(folder: Path, after: str | None = None, named: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[run]", f'folder = "{named or folder}"'] + ([f'after = "{after}"'] if after else [])
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n")
    return folder


def test_a_run_after_a_run_after_a_run(tmp_path):
    """Guards the order: the first stage first, and a run without any is no history."""
    a, b, c = (recipe_in(tmp_path / name, str(tmp_path / before) if before else None)
               for name, before in (("a", ""), ("b", "a"), ("c", "b")))  # fmt: skip
    assert earlier_runs(c) == [a, b] and earlier_runs(a) == []
    assert earlier_runs(tmp_path / "new", str(c)) == [a, b, c]  # before it is there


def test_folders_that_have_moved_together(tmp_path, monkeypatch):
    """Guards a history against being lost by a move, or by a command given in another folder."""
    recipe_in(tmp_path / "runs" / "sft", named="runs/sft")
    recipe_in(tmp_path / "runs" / "dpo", after="runs/sft", named="runs/dpo")
    assert [f.name for f in earlier_runs(tmp_path / "runs" / "dpo")] == ["sft"]
    monkeypatch.chdir(tmp_path)
    assert earlier_runs("runs/dpo") == [Path("runs/sft")]  # as it was named
    shutil.move("runs", "kept")
    assert earlier_runs("kept/dpo") == [tmp_path / "kept" / "sft"]


def test_a_circle_and_a_hole(tmp_path):
    """Guards against a walk without an end, and one clear line where a folder is gone."""
    a = recipe_in(tmp_path / "a", str(tmp_path / "b"))
    b = recipe_in(tmp_path / "b", str(tmp_path / "a"))
    with pytest.raises(InputError, match=r"run\.after: goes in a circle: .*a after .*b after .*a"):
        earlier_runs(a)
    with pytest.raises(InputError, match="goes in a circle"):
        earlier_runs(tmp_path / "c", str(tmp_path / "c"))
    shutil.rmtree(b)
    with pytest.raises(InputError, match=r"a: run\.after: .*b: no such folder"):
        earlier_runs(a)
    planned = {Path(tmp_path / "b").resolve(): {"folder": str(tmp_path / "b"), "after": None}}
    assert earlier_runs(a, planned=planned) == [tmp_path / "b"]  # it is to come


def test_the_first_sample_against_the_last_one_before(tmp_path):
    """Guards the check that a stage starts from the weights that the one before ended with."""
    panel = panel_of(2, 4)
    sft = make_run(tmp_path / "sft", panel, total=8, answers=False)
    dpo = make_run(tmp_path / "dpo", panel, total=8, answers=False, seed=1, after=sft)
    before, after = DriftLog.open(sft), DriftLog.open(dpo)
    assert difference(before, after) == 0.0 and "to the bit" in edge("sft", 0.0)
    channel = after.channels["leads"]
    records = bytearray(channel.path.read_bytes())
    records[8:12] = np.float32(after.channels["leads"].values[0, 0] - 0.5).tobytes()
    channel.path.write_bytes(bytes(records))
    assert difference(before, DriftLog.open(dpo)) == pytest.approx(0.5, abs=1e-6)
    assert "differs from the last one of sft by up to 0.5 nats" in edge("sft", 0.5)
    leads, texts = (
        DriftLog.open(make_run(tmp_path / name, panel, total=8, answers=False, **{name: False}))
        for name in ("openings", "leads")
    )
    assert np.isnan(difference(leads, texts)) and "no score in common" in edge("sft", difference(leads, texts))


@pytest.mark.parametrize("after", ["~nosuchuser/x", "x" * 300, "a\\u0000b"])
def test_names_that_are_no_folder(tmp_path, after):
    """Guards one line, naming the key, for what a recipe of someone else may say."""
    run = recipe_in(tmp_path / "run", after)
    with pytest.raises(InputError, match=r"run: run\.after = .* is no folder's name") as error:
        earlier_runs(run)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"run\.after = "):
        earlier_runs(tmp_path / "new", after.replace("\\u0000", "\0"))
    with pytest.raises(InputError, match=r"run\.folder = "):
        earlier_runs(recipe_in(tmp_path / "b", str(tmp_path), named=after))
