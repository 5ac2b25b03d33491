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
    def start(cls, device: torch.device, in_a_row: float = 0, proven: float = -1) -> Skips:
        """Of a run at its start, or where it goes on."""
        return cls(torch.tensor([in_a_row, 0.0, proven], dtype=torch.float64, device=device))

    def after(self, finite: Tensor, step: int) -> Skips:
        """After an update of the weights of `step`; finite: [] bool, whether it was applied."""
        in_a_row, since, proven = self.counts
        applied = self.counts.new_tensor([0.0, 0.0, step])
        applied[1] = since
        return Skips(torch.where(finite, applied, torch.stack([in_a_row + 1, since + 1, proven])))

    def logged(self) -> Skips:
        """After a step is logged."""
        return Skips(self.counts * self.counts.new_tensor([1.0, 0.0, 1.0]))

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps of them. Waits for the device."""
        in_a_row, _, proven = self.counts.tolist()
        return {"skipped_in_a_row": in_a_row, "proven_step": proven}

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, float], device: torch.device) -> Skips:
        """From what a checkpoint has kept."""
        return cls.start(device, numbers["skipped_in_a_row"], numbers["proven_step"])
