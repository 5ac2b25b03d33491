"""Updates that were skipped because loss or gradients were not finite, counted on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Skips(NamedTuple):
    """Counts of a run, the same on every rank.

    counts [3] float64: updates skipped in a row up to now; skipped since the last logged step; and the newest step
    whose weights an update that was not skipped has followed, -1: none.
    """

    counts: Tensor

    @classmethod
    def start(cls, device: torch.device, in_a_row: float = 0, since_log: float = 0, proven: float = -1) -> Skips:
        """Of a run at its start, or where it goes on."""
        return cls(torch.tensor([in_a_row, since_log, proven], dtype=torch.float64, device=device))

    def after(self, finite: Tensor, step: int) -> Skips:
        """After an update of the weights of `step`; finite: [] bool, whether it was applied. Nothing here waits for a
        device: it is given numbers as arguments of kernels, and no tensor to copy."""
        in_a_row, since, proven = self.counts
        now = torch.full_like(proven, step)
        skipped = torch.stack([in_a_row + 1, since + 1, proven])
        return Skips(torch.where(finite, torch.stack([torch.zeros_like(since), since, now]), skipped))

    def logged(self) -> Skips:
        """After a step is logged."""
        counts = self.counts.clone()
        counts[1].zero_()
        return Skips(counts)

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps of them. Waits for the device."""
        in_a_row, since, proven = self.counts.tolist()
        return {"skipped_in_a_row": in_a_row, "skipped_since_log": since, "proven_step": proven}

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, float], device: torch.device) -> Skips:
        """From what a checkpoint has kept."""
        return cls.start(device, *(numbers[k] for k in ("skipped_in_a_row", "skipped_since_log", "proven_step")))
