"""What is said of a run in trouble."""

import pytest
import torch
from helpers.runs import recipe_of

from vdengine.engine.trainer import Trainer
from vdengine.engine.trouble import row_names
from vdengine.errors import InputError


@pytest.fixture
def trainer(tmp_path, tiny_models, data):
    trainer = Trainer(recipe_of("sft", tmp_path, str(tiny_models["qwen3"]), str(data)))
    yield trainer
    trainer.close()


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("[enforce fail] can't allocate memory: 1")]
)
def test_out_of_memory_names_the_pack_and_the_key(trainer, monkeypatch, error):
    """Guards the one line that a user needs: the pack with its tokens and rows, and what may be changed, with and
    without a new folder."""

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(trainer.model, "forward", full)
    with pytest.raises(InputError) as told:
        trainer.step()
    tokens = trainer.store.num_tokens[trainer.loader.rows(0)].sum()
    assert f"step 1, rank 0: a pack of {tokens:,} tokens beside" in str(told.value)
    assert "pairs.jsonl row" in str(told.value) and "\n" not in str(told.value)
    assert 'parallel.activation_checkpoint = "full"' in str(told.value) and "batch.tokens (4096)" in str(told.value)


def test_other_errors_stay_what_they_are(trainer, monkeypatch):
    """Guards faults of the program against being taken for a lack of memory."""

    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(trainer.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shape"):
        trainer.step()


def test_rows_are_named_by_file_and_line(trainer):
    """Guards messages: ids of the store are of no use to a user; of a given batch there is nothing else."""
    assert row_names(trainer.store, [-1]) == ""
    assert row_names(trainer.store, [0, -1, 1000]) == f"{trainer.store.where(0)}, row 1000"
    assert row_names(trainer.store, range(11)).endswith(" and 3 more")
