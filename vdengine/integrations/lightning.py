"""Drift in Lightning's Trainer.

from vdengine.integrations.lightning import DriftCallback

trainer = lightning.Trainer(callbacks=[DriftCallback("values", tokenizer, run="runs/x", every=10)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from vdengine.errors import InputError
from vdengine.integrations.scorer import PanelScorer, Sample
from vdengine.panels.panel import Panel
from vdengine.recipe import READOUTS
from vdengine.tasks.task import Task


class DriftCallback(Callback):
    """Scores a panel every few updates, as `vdengine.integrations.transformers.DriftCallback` does, and sends
    `Live.scalars` to the trainer's loggers.

    A sample at step k has the weights after k updates (`trainer.global_step`): it is taken when the next batch begins.

    Args:
        panel, tokenizer, run: as `PanelScorer` takes them.
        every: updates from one sample to the next.
        model: of a LightningModule its causal language model. Default: the module's attribute `model`, or the module
            itself where it has an output head.
        template, tokens, controls, readouts, tasks, tasks_every, chat, layout: as `PanelScorer` takes them.

    Raises:
        InputError: arguments out of range; in training, as `PanelScorer`.
    """

    def __init__(
        self,
        panel: Panel | str | Path,
        tokenizer: Any,
        *,
        run: str | Path,
        every: int = 10,
        model: Callable[[LightningModule], nn.Module] | None = None,
        template: str = "auto",
        tokens: int = 2048,
        controls: bool = True,
        readouts: Sequence[str] = READOUTS,
        tasks: Sequence[Task | str | Path] = (),
        tasks_every: int = 0,
        chat: bool = False,
        layout: str = "auto",
    ) -> None:
        if every < 1:
            raise InputError(f"DriftCallback: every = {every}: at least 1 step")
        self.panel, self.tokenizer, self.run, self.every = panel, tokenizer, run, every
        self.options: dict[str, Any] = {
            "template": template, "tokens": tokens, "controls": controls, "readouts": readouts, "layout": layout,
            "tasks": tasks, "tasks_every": tasks_every, "chat": chat,
        }  # fmt: skip
        self.model = model or _model_of
        self._at_end = {"controls": controls, "tasks": True}  # of the last sample, wherever it is
        self.scorer: PanelScorer | None = None
        self.sample: Sample | None = None  # the last one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run folder."""
        if self.scorer is not None:  # of a training that was broken off
            self.scorer.close()
        self.sample = None
        steps = trainer.estimated_stepping_batches
        model = self.model(pl_module)
        source = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        self.scorer = PanelScorer(
            self.panel,
            self.tokenizer,
            self.run,
            total_steps=int(steps) if steps != float("inf") else None,
            about={"run": {"trainer": "lightning"}, "model": {"source": source}},
            **self.options,
        )
        self.scorer.open(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A sample where one is due, before the update."""
        if trainer.global_step % self.every == 0:
            self._score(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last sample, after the last update, and the end of the log."""
        self._score(trainer, pl_module, last=True)
        if self.scorer is not None:
            self.scorer.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the run folder free."""
        if self.scorer is not None:
            self.scorer.close()

    def _score(self, trainer: Trainer, pl_module: LightningModule, last: bool = False) -> None:
        step = trainer.global_step
        if self.scorer is None or (self.sample is not None and self.sample.step == step):
            return  # batches that are accumulated belong to one update
        self.sample = self.scorer.score(self.model(pl_module), step, **(self._at_end if last else {}))
        if self.sample.note and self.scorer.is_main:
            print(f"drift: {self.sample.note}")
        if self.scorer.is_main:
            for logger in trainer.loggers:
                logger.log_metrics(self.sample.scalars, step=step)


def _model_of(module: LightningModule) -> nn.Module:
    model = getattr(module, "model", None)
    if isinstance(model, nn.Module):
        return model
    if hasattr(module, "get_output_embeddings"):
        return module
    raise InputError(
        f"{type(module).__name__} has no attribute `model`: give the callback model=, a function of the module that "
        "returns its language model"
    )
