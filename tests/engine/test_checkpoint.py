"""Runs that stop and go on."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.launch import environment
from helpers.runs import recipe_of
from helpers.scenarios import assert_close, same_bits
from safetensors.torch import load_file

from vdengine.drift.panel_log import DriftLog
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.recipe import to_toml


@pytest.mark.slow
def test_resume_is_exact(runs):
    """Guards checkpoints: stopped after step 2 and resumed, weights, metrics and drift have the same bits."""
    assert same_bits(runs["base"], runs["resumed"])
    for a, b in zip(runs["base"]["drift"], runs["resumed"]["drift"], strict=True):
        assert np.array_equal(a, b)
    losses = [json.loads(line)["loss"] for line in open(runs.out / "resumed" / "metrics.jsonl")]
    assert losses == [row["loss"] for row in runs["base"]["rows"]]


def test_a_changed_recipe_does_not_resume(tmp_path, tiny_models, data):
    """Guards a run folder against going on with other numbers; a key without effect on them may change."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.run.steps = 1
    trainer = Trainer(recipe)
    trainer.step()
    trainer.finish()
    trainer.close()
    recipe.checkpoint.keep = 5
    Trainer(recipe).close()
    recipe.optimizer.lr = 2e-3
    with pytest.raises(InputError, match=r"cannot resume, the recipe differs: optimizer.lr: 0.001 -> 0.002"):
        Trainer(recipe)


def test_changed_contents_do_not_resume(tmp_path, tiny_models, data):
    """Guards a run folder against data that changed under an unchanged name."""
    copy = tmp_path / "pairs.jsonl"
    copy.write_text(data.read_text())
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(copy))
    Trainer(recipe).close()
    copy.write_text(copy.read_text().replace("law", "lie"))
    with pytest.raises(InputError, match=r"contents have changed: data.train, data.eval"):
        Trainer(recipe)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path, tiny_models, data):
    """Guards resume after a crash that spoilt the newest checkpoint: the one before it, and the spoilt one set aside;
    with none left, an error that says so."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    trainer = Trainer(recipe)
    for _ in range(2):
        trainer.step()
        trainer.save()
    trainer.close()
    root = tmp_path / "base" / "checkpoints"
    (root / "step-000002" / "__0_0.distcp").write_bytes(b"")
    trainer = Trainer(recipe)
    assert trainer.step_count == 1 and sorted(p.name for p in root.iterdir()) == ["step-000001", "step-000002.damaged"]
    trainer.close()
    (root / "step-000001" / "manifest.json").unlink()
    with pytest.raises(InputError, match="no whole checkpoint: step-000001"):
        Trainer(recipe)


@pytest.mark.slow
def test_another_number_of_ranks_goes_on(tmp_path, tiny_models, data, start):
    """Guards a job that comes back with other hardware: a checkpoint of one rank, gone on with by two, ends where one
    rank alone does, but for the order of sums, and its logs have no hole."""
    found = []
    for name in ("alone", "handed on"):
        recipe = recipe_of("sft", tmp_path, str(tiny_models["qwen3"]), str(data))
        recipe.run.folder, recipe.checkpoint.export = str(tmp_path / name), True
        trainer = Trainer(recipe)
        for _ in range(2):
            trainer.step()
        trainer.save()
        if name == "alone":
            for _ in range(2):
                trainer.step()
            trainer.finish()
        trainer.close()
        if name == "handed on":
            (tmp_path / "recipe.toml").write_text(to_toml(recipe))
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command = [*torchrun, "-m", "vdengine.train", str(tmp_path / "recipe.toml")]
            done = subprocess.run(command, capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"))
            assert done.returncode == 0 and "resuming at step 2" in done.stdout, done.stdout + done.stderr
        rows = [json.loads(line) for line in trainer.files.metrics.read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert DriftLog.open(trainer.folder).steps.tolist() == [0, 1, 2, 3, 4]
        found.append({"weights": dict(load_file(trainer.files.export / "model.safetensors")), "rows": rows})
    assert_close(*found, start)
