"""The reward model's loss against its formula written out in float64; and whole runs.

Tolerance: fp32 results may be off by 8 units in the last place of the largest intermediate.
"""

import json

import numpy as np
import pytest
import torch
from helpers.branches import EPS, as_tensor, branch_sums, softplus
from helpers.runs import recipe_of

import vdengine as vd
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.objectives import (
    reward,
)

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("margin", [0.0, 1.5])
@pytest.mark.parametrize("center", [0.0, 0.01])
def test_reward_formula(margin, center):
    """Guards the order of a pair, the margin's sign and the centring term."""
    scores = branch_sums(3, scale=4.0) + 2.0
    chosen, rejected = scores[0::2], scores[1::2]
    expected = softplus(-(chosen - rejected - margin)) + center * (chosen + rejected) ** 2
    losses, metrics = reward(as_tensor(scores), as_tensor(np.full(6, margin)), center=center)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=8 * EPS, atol=8 * EPS * 4)
    np.testing.assert_array_equal(metrics["accuracy"].numpy(), chosen > rejected)
    np.testing.assert_allclose(metrics["margin"].numpy(), chosen - rejected, atol=8 * EPS * 4)
    np.testing.assert_allclose(metrics["mean_reward"].numpy(), (chosen + rejected) / 2, atol=8 * EPS * 4)


@pytest.mark.slow
def test_a_run_learns_and_its_export_serves(tmp_path, tiny_models):
    """Guards the whole path: preference rows in, a rising held-out accuracy, a folder that scores as the run did."""
    rows = tmp_path / "rows.jsonl"
    rng = np.random.default_rng(0)
    word = lambda letters: "".join(rng.choice(list(letters), rng.integers(3, 12)))  # noqa: E731
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"say {i}", "chosen": word("aab"), "rejected": word("bcd"), "margin": 2.0}) + "\n"
            for i in range(80)
        )
    )
    recipe = recipe_of("reward", tmp_path, str(tiny_models["qwen3"]), str(rows))
    recipe.optimizer.lr, recipe.optimizer.eps = 3e-3, 1e-8
    recipe.run.steps, recipe.data.eval_fraction, recipe.checkpoint.export, recipe.objective.margin = 25, 0.2, True, 0.5
    trainer = Trainer(recipe)
    before = trainer.evaluate()
    rows = [trainer.step() for _ in range(25)]
    after = trainer.evaluate()
    # at first scores are small: the loss is near -log sigmoid(-margin) with the rows' own margin, 0.5 * 2
    assert rows[0]["loss"] == pytest.approx(np.log1p(np.e), abs=0.5)
    assert {"accuracy", "margin", "mean_reward", "loss", "grad_norm"} <= rows[0].keys() and "entropy" not in rows[0]
    assert after["eval/accuracy"] == 1.0 > before["eval/accuracy"] and after["eval/loss"] < 0.5 * before["eval/loss"]
    trainer.finish()
    pack = trainer.loader.packs(0, 1, 0, 4096)[0]
    exported = vd.load_model(str(trainer.folder / "export"))
    with torch.no_grad():
        assert torch.equal(exported(pack).values, trainer.model(pack).values)
    trainer.close()


def test_probes_do_not_go_with_a_reward_model(tmp_path, tiny_models):
    """Guards against a panel that would silently not be read."""
    recipe = recipe_of("reward", tmp_path, str(tiny_models["qwen3"]), "rows.jsonl")
    recipe.probes.every = 2
    with pytest.raises(InputError, match="probes.every must be 0"):
        Trainer(recipe)
