"""Drift in the trackers that another trainer reports to."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vdengine.runfolder import RunFolder


class Trackers:
    """Those of wandb, trackio and tensorboard that are asked for.

    A run of wandb or trackio that the trainer has begun is used, with a step axis of its own (value/step), because
    their own step is the trainer's and may not go back. TensorBoard's events go to the run folder.

    Args:
        names: of trackers; others are not ours to write to.
    """

    def __init__(self, names: Iterable[str], run: Path, step: int) -> None:
        self.hosted: list[Any] = []
        self.board: Any = None
        for name in names:
            # one that nobody has imported has no run that could be written to
            if name in ("wandb", "trackio") and name in sys.modules:
                module = importlib.import_module(name)
                self.hosted.append(module)
                if getattr(module, "run", None) is not None and hasattr(module, "define_metric"):
                    module.define_metric("value/step")
                    module.define_metric("value/*", step_metric="value/step")
            elif name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(RunFolder(run).tensorboard), purge_step=step)

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Send the scalars of a sample."""
        for module in self.hosted:
            if module.__name__ == "trackio" or getattr(module, "run", None) is not None:
                module.log({"value/step": step, **scalars})
        if self.board is not None:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is not written yet."""
        if self.board is not None:
            self.board.close()
