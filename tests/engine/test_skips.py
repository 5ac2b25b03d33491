"""Skipped updates, counted; and the end of a run that learned nothing."""

import pytest
import torch
from helpers.runs import recipe_of

from vdengine.engine.skips import Skips
from vdengine.engine.trainer import Trainer
from vdengine.engine.trouble import NothingLearned


def test_counts():
    """Guards the counts against the device's arithmetic: in a row, since the last log, and the last good step."""
    skips = Skips.start(torch.device("cpu"))
    for step, finite in enumerate([True, True, False, False]):
        skips = skips.after(torch.tensor(finite), step)
    assert skips.counts.tolist() == [2, 2, 1]
    skips = skips.logged().after(torch.tensor(False), 4)
    assert skips.counts.tolist() == [3, 1, 1]
    again = Skips.of_numbers(skips.numbers(), torch.device("cpu")).after(torch.tensor(True), 2**40)
    assert again.counts.tolist() == [0, 1, 2**40]


@pytest.mark.parametrize("spoil", ["nan", "overflow", "lr at the last step", "lr", "lr for long"])
def test_a_run_that_learned_nothing_has_no_good_end(tmp_path, tiny_models, data, spoil):
    """Guards against "Done", exit 0 and an export of weights that are not usable, in a run too short to give up."""
    recipe = recipe_of("sft", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.run.steps, recipe.probes.every, recipe.checkpoint.export = 2, 0, True
    if spoil.startswith("lr"):
        recipe.run.steps = {"lr at the last step": 1, "lr": 2, "lr for long": 10}[spoil]
        recipe.optimizer.lr = 1e30
    trainer = Trainer(recipe)
    if not spoil.startswith("lr"):
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.mul_(float("nan") if spoil == "nan" else 1e38)
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    with pytest.raises(NothingLearned, match=r"nothing is exported") as error:
        trainer.finish()
    trainer.close()
    assert "\n" not in str(error.value) and not trainer.files.export.exists()
    assert ("none was ever applied" in str(error.value)) == (not spoil.startswith("lr"))


def test_one_skipped_update_at_the_end_is_no_bad_end(tmp_path, tiny_models, data):
    """Guards a long run whose last row alone was bad: its weights are good, and are exported."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.run.steps, recipe.probes.every, recipe.checkpoint.export = 2, 0, True
    trainer = Trainer(recipe)
    trainer.step()
    trainer.reference.sums[:] = float("nan")
    assert trainer.step()["skipped_updates"] == 1
    trainer.finish()
    trainer.close()
    assert trainer.files.export.exists()
