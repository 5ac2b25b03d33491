"""`DriftCallback` in Lightning's Trainer."""

import warnings

import numpy as np
import pytest
import torch
from helpers.causal_lms import by_its_own_logits, causal_lm, sampled
from torch.utils.data import DataLoader

from vdengine.drift.load import load_run
from vdengine.errors import InputError

lightning = pytest.importorskip("lightning.pytorch")

NATS = 64 * 2.0**-23 * 512  # see test_foreign.py


def module(model):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            return self.model(batch, labels=batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return Module()


def fit(folder, callbacks, model):
    g = torch.Generator().manual_seed(0)
    rows = DataLoader(torch.randint(0, 256, (12, 20), generator=g), batch_size=2)
    from lightning.pytorch.loggers import CSVLogger

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            default_root_dir=folder, max_steps=3, accumulate_grad_batches=2, accelerator="cpu", callbacks=callbacks,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=CSVLogger(folder),
        )  # fmt: skip
        trainer.fit(module(model), rows)
    return trainer


def test_a_run_of_lightning(tok, panel, tmp_path):
    """Guards the hooks: a sample a due update though batches are accumulated, the last weights at the end, bit-equal
    weights, and curves in the trainer's own logger."""
    from vdengine.integrations.lightning import DriftCallback

    plain, model = causal_lm("qwen2"), causal_lm("qwen2")
    fit(tmp_path, [], plain)
    callback = DriftCallback(panel, tok, run=tmp_path / "run", every=2, tokens=1024)
    trainer = fit(tmp_path, [callback], model)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    run = load_run(tmp_path / "run")
    assert run.log.steps.tolist() == [0, 2, 3] and run.total_steps == 3
    own = sampled(callback.scorer)
    assert np.abs(run.log.samples()[-1, own] - by_its_own_logits(model, panel, tok)).max() < NATS
    trainer.logger.save()
    (written,) = tmp_path.glob("lightning_logs/version_1/metrics.csv")
    assert f"lead/{panel.topics[0]}" in written.read_text()


def test_a_module_without_a_model_says_what_to_give(tok, panel, tmp_path):
    """Guards the default: the attribute `model`."""
    from vdengine.integrations.lightning import DriftCallback

    class Bare(lightning.LightningModule):
        pass

    callback = DriftCallback(panel, tok, run=tmp_path)
    with pytest.raises(InputError, match="Bare has no attribute `model`: give the callback model="):
        callback.model(Bare())
    with pytest.raises(InputError, match="every = 0"):
        DriftCallback(panel, tok, run=tmp_path, every=0)
