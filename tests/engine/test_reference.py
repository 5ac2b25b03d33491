"""What the policy is compared with."""

import hashlib
import io

import numpy as np
import pytest
import torch
from helpers.runs import recipe_of
from helpers.scenarios import same_bits

from vdengine.engine import reference
from vdengine.engine.reference import DIGEST
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
    adds what is missing without touching what is there."""
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
    buffer = io.BytesIO()
    np.save(buffer, then + 1)
    shared.write_bytes(buffer.getvalue() + hashlib.blake2b(buffer.getvalue(), digest_size=DIGEST).digest())
    again = Trainer(make("base"))
    assert np.array_equal(again.reference.sums[:-2].numpy()[~np.isnan(first)], first[~np.isnan(first)])
    again.close()


@pytest.mark.parametrize("damage", ["zeroed", "cut", "another length", "empty"])
def test_sums_that_are_not_whole_are_computed_anew(tmp_path, tiny_models, data, damage):
    """Guards training against a cache that a full disk or a copy has spoilt, with its size kept too: the same sums
    again, and a line that says so."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    first = Trainer(recipe)
    sums = first.reference.sums.clone()
    first.close()
    for folder in ("base", "cache"):
        (path,) = (tmp_path / folder / "reference").iterdir()
        whole = path.read_bytes()
        spoilt = {"zeroed": bytes(len(whole)), "cut": whole[:100], "another length": whole + b"0", "empty": b""}
        path.write_bytes(spoilt[damage])
    again = Trainer(recipe)
    assert torch.equal(again.reference.sums.nan_to_num(), sums.nan_to_num())
    assert len(again.notes) == 2 and all("computed anew" in note for note in again.notes)
    again.close()
    assert (tmp_path / "base" / "reference" / path.name).read_bytes() == whole
    third = Trainer(recipe)
    assert not third.notes
    third.close()


@pytest.mark.parametrize("shape", [b"(2**60,)", b"(1152921504606846976,)", b"(5", b"'x'", b"(3,)"])
def test_sums_of_someone_else_are_computed_anew(tmp_path, shape):
    """Guards against a traceback of NumPy, or an array of another length, from a file whose hash is right."""
    out = io.BytesIO()
    np.save(out, np.zeros(4, np.float32))
    head, _, rest = out.getvalue().partition(b"\n")
    body = head.replace(b"(4,)", shape)[: len(head)].ljust(len(head)) + b"\n" + rest
    path = tmp_path / "sums.npy"
    path.write_bytes(body + hashlib.blake2b(body, digest_size=DIGEST).digest())
    sums, fault = reference._read(path, np.zeros(4, np.float32))
    assert np.isnan(sums).all() and "computed anew" in fault and "\n" not in fault


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, tiny_models, data, monkeypatch):
    """Guards a run whose shared cache is read-only: it has its own copy, and says that others have none."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    write = reference.write_bytes

    def read_only(path, content):
        if path.is_relative_to(tmp_path / "cache"):
            raise OSError(30, "Read-only file system", str(path))
        write(path, content)

    monkeypatch.setattr(reference, "write_bytes", read_only)
    trainer = Trainer(recipe)
    assert "not kept for other runs (Read-only file system)" in trainer.notes[0]
    trainer.close()
