"""Results of the scenarios of `helpers.runs`: a group is launched when the first of it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.launch import launch
from helpers.runs import failure_file, group_of
from vdengine.engine.trainer import Trainer

Result = dict[str, Any]  # weights, rows, seen, drift, and what answers there are


class Scenarios:
    """`scenarios[name]` on so many ranks: what it left, or the failure of the test that asks.

    A scenario that fails ends its launch; those behind it are launched again without it.
    """

    def __init__(self, ranks: int, names: Sequence[str], out: Path, model: Path, data: Path) -> None:
        self.ranks, self.names, self.out = ranks, list(names), out
        self._arguments = (out, model, data)
        self._found: dict[str, Result | str] = {}  # or why it failed

    def __getitem__(self, name: str) -> Result:
        if name not in self._found:
            self._launch([n for n in self.names if group_of(n) == group_of(name)])
        found = self._found[name]
        if isinstance(found, str):
            pytest.fail(f"scenario {name} on {self.ranks} ranks: {found}", pytrace=False)
        return found

    def _launch(self, names: list[str]) -> None:
        while names:
            ended = launch(self.ranks, "runs", *self._arguments, *names)
            if not any((self.out / f"{n}.begun").exists() for n in names):
                self._found |= dict.fromkeys(names, str(ended))  # none was begun: this has to do with no scenario
                return
            whole = [n for n in names if (self.out / f"{n}.pt").exists()]
            for n in whole:
                self._found[n] = torch.load(self.out / f"{n}.pt", weights_only=False)
            if ended.status == 0 and whole == names:
                return
            said = [n for n in names if failure_file(self.out, n).exists()]
            missing = [n for n in names if n not in whole]
            failed = [*said, *missing, names[-1]][0]  # the last one: all are there, and the end was no good end
            self._found[failed] = failure_file(self.out, failed).read_text() if said else str(ended)
            names = names[names.index(failed) + 1 :]


def train(recipe) -> Trainer:
    """A run from its first step to its end."""
    trainer = Trainer(recipe)
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    trainer.finish()
    trainer.close()
    return trainer


def same_bits(a: Result, b: Result) -> bool:
    """Of all weights."""
    return all(torch.equal(a["weights"][n], b["weights"][n]) for n in a["weights"])


def assert_close(a: Result, b: Result, start: Result) -> None:
    """Weights, losses and gradient norms, to what another order of the same sums does to them.

    The same fp32 terms are summed in another order where packings or world sizes differ, so log-prob sums of some
    hundred terms around 5 differ by about 1e-6 relative, and four AdamW steps of lr 1e-3 (eps 1e-3, so linear in the
    gradient) carry that to 1e-6 of a weight's change.
    """
    for n, w in a["weights"].items():
        moved = (w - start["weights"].get(n, 0)).abs().max()  # a reward model's new head is not in a language model
        assert (w - b["weights"][n]).abs().max() <= 1e-4 * moved + 1e-7, n
    for x, y in zip(a["rows"], b["rows"], strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)
