"""Drift in `transformers.Trainer` and in TRL's trainers, and the fused head.

from vdengine.integrations.transformers import DriftCallback

trainer = DPOTrainer(model, ..., callbacks=[DriftCallback("values", run="runs/x", every=10)])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vdengine.errors import InputError
from vdengine.integrations.fused_head import use_in_trl, use_linear_logprob
from vdengine.integrations.scorer import PanelScorer, Sample
from vdengine.integrations.tracking import Trackers
from vdengine.panels.panel import Panel
from vdengine.recipe import READOUTS
from vdengine.tasks.task import Task

__all__ = ["DriftCallback", "use_in_trl", "use_linear_logprob"]


class DriftCallback(TrainerCallback):
    """Scores a panel every few steps with the weights that training has at that point, and writes the drift log of a
    run folder. Training is bit for bit as without it. Each sample costs a forward of the panel, and its seconds are
    logged (`Sample.seconds`, metrics.jsonl).

    A sample at step k has the weights after k updates: it is taken when step k + 1 begins, and the last one after the
    last update. With several ranks all of them score a part of the panel. A run that is resumed from a checkpoint goes
    on with its log, and takes again the samples that came after the checkpoint.

    Args:
        panel: a `Panel`, a built-in name, or the path of a .jsonl file.
        run: the run folder, for `vdengine report` and `vd.drift.load_run`.
        every: steps from one sample to the next.
        tokenizer: default: the trainer's `processing_class`.
        template, tokens, controls, readouts, tasks, tasks_every, chat, layout: as `PanelScorer` takes them.
        track: send `Live.scalars` (lead, lead_coverage and text_likelihood, each of every topic) to those of wandb,
            trackio and tensorboard that the trainer reports to. In wandb and trackio these have their own step axis,
            value/step.

    Raises:
        InputError: arguments out of range; in training, as `PanelScorer`.
    """

    def __init__(
        self,
        panel: Panel | str | Path = "values",
        *,
        run: str | Path,
        every: int = 10,
        tokenizer: Any = None,
        template: str = "auto",
        tokens: int = 2048,
        controls: bool = True,
        readouts: Sequence[str] = READOUTS,
        tasks: Sequence[Task | str | Path] = (),
        tasks_every: int = 0,
        chat: bool = False,
        layout: str = "auto",
        track: bool = True,
    ) -> None:
        if every < 1:
            raise InputError(f"DriftCallback: every = {every}: at least 1 step")
        self.panel = panel if isinstance(panel, Panel) else Panel.load(panel)
        self.run, self.every, self.tokenizer, self.track = Path(run), every, tokenizer, track
        self.options: dict[str, Any] = {
            "template": template, "tokens": tokens, "controls": controls, "readouts": readouts, "layout": layout,
            "tasks": tasks, "tasks_every": tasks_every, "chat": chat,
        }  # fmt: skip
        self._at_end = {"controls": controls, "tasks": True}  # of the last sample, wherever it is
        self.scorer: PanelScorer | None = None
        self.trackers: Trackers | None = None
        self.sample: Sample | None = None  # the last one

    # ----------------------------------------------------------------------------------------------------- events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Open the run folder."""
        tokenizer = self.tokenizer or more.get("processing_class") or more.get("tokenizer")
        if tokenizer is None:
            raise InputError("DriftCallback: the trainer has no processing_class: give tokenizer=")
        model = more["model"]
        if self.scorer is not None:  # of a training that was broken off
            self.scorer.close()
        self.sample = None
        self.scorer = PanelScorer(
            self.panel,
            tokenizer,
            self.run,
            total_steps=state.max_steps,
            about=_about(args, model),
            **self.options,
        )
        self.scorer.open(state.global_step)
        reports = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
        self.trackers = Trackers(reports if self.track and self.scorer.is_main else [], self.run, state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """A sample where one is due, before the update."""
        if state.global_step % self.every == 0:
            self._score(more["model"], state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """The last sample, after the last update: later `load_best_model_at_end` may put other weights in place."""
        if state.global_step >= state.max_steps:
            self._score(more["model"], state.global_step, last=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """The last sample of a run that is stopped early: later the best weights may be put in place."""
        if control.should_training_stop:
            self._score(more["model"], state.global_step, last=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """The last sample of a run that was stopped early, and the end of the log."""
        replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if not replaced:
            self._score(more["model"], state.global_step, last=True)
        if self.scorer is not None:
            self._say(f"`vdengine report {self.run}` shows it")
            self.scorer.close()
        if self.trackers is not None:
            self.trackers.close()

    def _score(self, model: PreTrainedModel, step: int, last: bool = False) -> None:
        if self.scorer is None or (self.sample is not None and self.sample.step == step):
            return  # a step of several batches begins once; the last one may end twice
        first = self.sample is None
        if first:
            self._say(f"scoring {len(self.panel.probes)} probes at step {step} ...")
        self.sample = self.scorer.score(model, step, **(self._at_end if last else {}))
        if first:
            self._say(f"that took {self.sample.seconds:.0f} s, and comes again every {self.every} steps")
        if self.sample.note:
            self._say(self.sample.note)
        if self.trackers is not None:
            self.trackers.log(self.sample.scalars, step)

    def _say(self, text: str) -> None:
        """A line on rank 0, above the trainer's progress bar."""
        if self.scorer is not None and self.scorer.is_main:
            tqdm.write(f"drift: {text}")


def _about(args: TrainingArguments, model: Any) -> dict[str, dict[str, Any]]:
    """What the trainer knows of the run, as a recipe would say it."""
    name = type(args).__name__.removesuffix("Config")  # of TRL: DPOConfig
    objective = {} if name == "TrainingArguments" else {"objective": {"name": name.lower()}}
    source = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
    return {
        "run": {"seed": args.seed, "trainer": "transformers" if not objective else "trl"},
        "model": {"source": source},
        "optimizer": {"lr": args.learning_rate},
        **objective,
    }
