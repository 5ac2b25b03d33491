"""How the ranks of a run agree to stop: a signal that one of them has had, or a save that has failed, is known to all
at the end of the same step. It rides on the step's own all-reduce."""

from __future__ import annotations

import signal

import torch
from torch import Tensor

from vdengine.engine.clocks import Later
from vdengine.signals import SIGNALS


class Stopping:
    """What this rank has been asked, and what all ranks have agreed on.

    Attributes:
        signal: agreed on: stop after this step, because of this signal; None: go on.
        failed: agreed on: a checkpoint of some rank could not be written.
    """

    def __init__(self, device: torch.device, lag: bool) -> None:
        self._device, self._lag = device, lag
        self._nothing = torch.zeros(len(SIGNALS) + 1, device=device)
        self._asked: signal.Signals | None = None
        self._on_its_way: Later | None = None
        self.signal: signal.Signals | None = None
        self.failed = False

    def ask(self, signum: int) -> None:
        """Stop after the step that is going on. From any thread.

        Raises:
            ValueError: not one of SIGNALS.
        """
        if signum not in SIGNALS:
            raise ValueError(f"signal {signum}: allowed are {', '.join(s.name for s in SIGNALS)}")
        self._asked = signal.Signals(signum)

    def flags(self, failed: bool) -> Tensor:
        """What this rank adds to the all-reduce: [len(SIGNALS) + 1] fp32, ones and zeros."""
        asked = self._asked
        if asked is None and not failed:
            return self._nothing  # to copy a tensor from the host would wait for a device
        return torch.tensor([float(s == asked) for s in SIGNALS] + [float(failed)], device=self._device)

    def agree(self, flags: Tensor) -> None:
        """Take the sum of all ranks' `flags`. The host does not wait for a device: there it looks at those of the step
        before, which are the same on every rank too."""
        arrived, self._on_its_way = self._on_its_way, Later(flags)
        if not self._lag:
            arrived = self._on_its_way
        if arrived is None:
            return
        *signals, failed = arrived.get().tolist()
        self.signal = self.signal or next((s for s, count in zip(SIGNALS, signals, strict=True) if count), None)
        self.failed |= failed > 0
