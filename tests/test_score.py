"""`vdengine score`: the same numbers as in training, for checkpoints and folders; and the panel's linter."""

import json

import numpy as np
import pytest
from runs import recipe_of
from test_trainer import data  # noqa: F401  # a fixture

from vdengine.cli.score import main
from vdengine.drift.opening_log import DriftLog
from vdengine.engine.saved_models import score
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.panels.panel import Panel


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_models, data):  # noqa: F811
    """A finished run of 4 steps with checkpoints at 2 and 4 and an export."""
    recipe = recipe_of("base", tmp_path_factory.mktemp("score"), str(tiny_models["qwen3"]), str(data))
    recipe.checkpoint.export = True
    trainer = Trainer(recipe)
    for k in range(4):
        trainer.step()
        if k == 1:
            trainer.save()
    trainer.finish()
    trainer.close()
    return trainer.folder


def test_checkpoints_score_as_the_run_did(run, tmp_path, capsys):
    """Guards the promise: bit for bit what training logged at that step; the log it leaves is a run's log."""
    checkpoints = [str(run / "checkpoints" / f"step-00000{k}") for k in (2, 4)]
    found = score(checkpoints, out=str(tmp_path / "scored"))
    logged = DriftLog.open(run)
    assert np.array_equal(found, logged.logp[[2, 4]])
    kept = DriftLog.open(tmp_path / "scored")
    assert kept.steps.tolist() == [2, 4] and np.array_equal(kept.logp, found) and kept.manifest == logged.manifest
    assert "How far the stances moved, step 2 to 4" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds scores already"):
        score(checkpoints[:1], out=str(tmp_path / "scored"))


def test_folders_score_as_the_run_did(run, tiny_models):
    """Guards export and loading: the starting folder is step 0, the exported one the last step, to the bit."""
    found = score([str(tiny_models["qwen3"]), str(run / "export")], tokens=8192, controls=False)
    assert np.array_equal(found, DriftLog.open(run).logp[[0, 4]])
    # among folders and checkpoints the run's own settings hold for all
    found = score([str(tiny_models["qwen3"]), str(run / "checkpoints" / "step-000004"), str(run / "export")])
    assert np.array_equal(found, DriftLog.open(run).logp[[0, 4, 4]])


def test_bad_models(run, tiny_models, tmp_path, capsys):
    """Guards one clear line: nothing named, no such folder, a damaged checkpoint."""
    assert main([]) == 2 and "name at least one model" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2 and "no such folder" in capsys.readouterr().err
    spoilt = run / "checkpoints" / "step-000002" / "manifest.json"
    text = spoilt.read_text()
    spoilt.write_text(json.dumps(json.loads(text) | {"files": {"gone": "0"}}))
    assert main([str(spoilt.parent)]) == 2 and "not a whole checkpoint" in capsys.readouterr().err
    spoilt.write_text(text)


def test_check_panel(real_tokenizer, tmp_path, capsys):
    """Guards the linter's way out: 0 and a summary for a sound panel, 1 and its warnings for another."""
    assert main(["--check-panel", "values-mini", "--tokenizer", str(real_tokenizer("qwen3"))]) == 0
    assert "no warnings" in capsys.readouterr().out
    rows = [p.to_row() for p in Panel.load("values-mini").probes[:1]]
    rows[0]["openings"]["support"][0]["text"] = "Yes " + "very " * 60 + "much."
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["--check-panel", str(tmp_path / "bad.jsonl"), "--tokenizer", str(real_tokenizer("qwen3"))]) == 1
    out = capsys.readouterr().out
    for found in ("polarity", "bare answer", "bytes", "tokens; 6 to 24 are usual"):
        assert found in out
    assert main(["--check-panel", "no-such"]) == 2 and "no built-in panel" in capsys.readouterr().err
