"""What the policy is compared with."""

import numpy as np
import pytest
import torch
from helpers.runs import recipe_of
from helpers.scenarios import same_bits

from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError


@pytest.mark.parametrize(("ranks", "name"), [(1, "live"), (1, "base"), pytest.param(2, "base", marks=pytest.mark.slow)])
def test_dpo_starts_at_ln_2(ranks, name, one, two):
    """Guards the reference: at step 0 it is the policy. Exact for live (same packs, same kernels); cached, too,
    along the same packs."""
    row = (one if ranks == 1 else two)[name]["rows"][0]
    assert row["loss"] == pytest.approx(np.log(2), abs=1e-7) and row["rewards/margins"] == 0.0


def test_a_reference_along_other_packs(one):
    """Guards cached sums that were computed in other packs: the same to 1e-6."""
    assert one["small_packs"]["rows"][0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_live_equals_cached(one):
    """Guards one reference against the other: the weights have the same bits."""
    assert same_bits(one["base"], one["live"])


def test_a_wrong_reference_stops_before_the_first_update(tmp_path, tiny_models, data):
    """Guards the known answer of step 0: a reference of another model moves nothing and ends the run."""
    trainer = Trainer(recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data)))
    before = {n: p.full_tensor().detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.reference.sums[np.array(trainer.store.tree_start[:-1])] += 1.0  # every chosen branch by one nat
    with pytest.raises(InputError, match="step 0: rewards/margins is 1 nats from 0 .* not this model's"):
        trainer.step()
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in trainer.model.named_parameters())
    trainer.close()


def test_reference_sums_are_never_replaced(tmp_path, tiny_models, data):
    """Guards a resumed run's bits: what the run folder holds wins over the shared cache, and a run along other packs
    adds what is missing without touching what is there. A damaged file is named."""
    make = lambda name: recipe_of(name, tmp_path, str(tiny_models["qwen3"]), str(data))  # noqa: E731
    Trainer(make("base")).close()
    (mine,) = (tmp_path / "base" / "reference").iterdir()
    shared = tmp_path / "cache" / "reference" / mine.name
    first = np.load(shared)
    other = make("small_packs")
    other.run.steps = 6
    Trainer(other).close()
    then = np.load(shared)
    assert (
        np.array_equal(then[~np.isnan(first)], first[~np.isnan(first)]) and np.isnan(then).sum() < np.isnan(first).sum()
    )
    np.save(shared, then + 1)
    again = Trainer(make("base"))
    assert np.array_equal(again.reference.sums[:-2].numpy()[~np.isnan(first)], first[~np.isnan(first)])
    again.close()
    mine.write_bytes(mine.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{mine.name}: damaged"):
        Trainer(make("base"))
