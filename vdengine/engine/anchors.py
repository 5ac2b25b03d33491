"""Sampled answers in a training run: when they are drawn, and how their log-probs ride along until they no longer do.

An anchor at step k draws answers from the weights after k updates. Its bank, `samples` answers of each probe, is then
scored in training forwards: the importance weights of `drift/importance.py`. Anchors stand at the start, at the end,
at the steps that the recipe lists, and at the step after a sample whose weights cannot be trusted (the gate) or at
which the openings have moved far since the last anchor (the alarm). What is decided depends on nothing but the logs,
so a run that is taken up again decides the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdengine import recipe as recipes
from vdengine.data.batching import Forest
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.importance import Gate, gate
from vdengine.drift.openings import stratified_order
from vdengine.engine.rollouts import Sampler
from vdengine.errors import InputError
from vdengine.models.generate import Completion, Sampling
from vdengine.models.transformer import Transformer
from vdengine.noise import ANSWERS_NOISE
from vdengine.panels.panel import Panel
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree, tree_cost


@dataclass(eq=False)
class Bank:
    """The answers of an anchor, as branches of their prompts, probe by probe."""

    anchor: int
    forest: Forest
    baseline: np.ndarray  # [probes * samples] fp32: log-prob sums under the weights that they were drawn from


class Anchors:
    """The answers readout of a run, on every rank alike; rank 0 keeps the log.

    Raises:
        InputError: anchors outside the run, or budgets that do not pay for those that are sure to come.
    """

    def __init__(
        self, settings: recipes.AnswersKeys, panel: Panel, renderer: Renderer, sampler: Sampler, *, seed: int,
        total_steps: int, pack_tokens: int, flops: dict[str, float],
    ) -> None:  # fmt: skip
        self.settings, self.sampler, self.seed, self.total_steps = settings, sampler, seed, total_steps
        self.tokenizer, self.tokenizer_hash = renderer.tokenizer, renderer.hash
        chosen = sorted(stratified_order(panel)[: settings.probes or None])
        self.panel = Panel(panel.name, tuple(panel.probes[i] for i in chosen))
        self.prompts = [
            renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in self.panel.probes
        ]
        sampler.expect(max(map(len, self.prompts)))
        self.sampling = Sampling(settings.max_tokens, 1.0, stop_ids=tuple(renderer.tokenizer.stop_ids))
        self.base = settings.base or 3 * settings.samples
        self.pack_tokens = max(pack_tokens, max(map(len, self.prompts)) + settings.max_tokens)
        if wrong := [k for k in settings.anchors if not 0 < k < total_steps]:
            raise InputError(
                f"answers.anchors: {', '.join(map(str, wrong))} not within the run: 1 to {total_steps - 1} are (its "
                "first and last step have answers anyway)"
            )
        self.scheduled = sorted({0, total_steps, *settings.anchors})
        self.max_anchors = self._affordable()
        n = settings.samples
        lengths = np.full(len(self.prompts) * n, settings.max_tokens)
        cost = tree_cost(
            np.array([len(p) for p in self.prompts]), lengths, np.arange(len(self.prompts) + 1) * n,
            np.full(len(self.prompts), n * settings.max_tokens), **flops,
        )  # fmt: skip
        self.reading_flops = float(cost.sum())  # of the bank once, every answer as long as it may be
        self.log: AnswerLog | None = None
        self.bank: Bank | None = None
        self.anchors: list[int] = []
        self.read_at = -1  # step of the bank's last reading
        self.asked: str | None = None  # why the next step should be an anchor
        self.reference: np.ndarray | None = None  # openings at the last anchor: [probes] stance, nats per byte

    # ------------------------------------------------------------------------------------------------ budget

    def _affordable(self) -> int:
        """How many anchors the recipe's budgets pay for, the first and the last included."""
        s, probes = self.settings, len(self.prompts)
        first, each = probes * self.base, probes * s.samples  # answers
        count, need = s.max_anchors, len(self.scheduled)
        for name, budget, unit in (
            ("generated_tokens", s.generated_tokens, s.max_tokens),
            ("judge_calls", s.judge_calls, 1),
        ):
            if budget is not None:
                count = min(count, 1 + (budget - first * unit) // (each * unit))
                least = (first + (need - 1) * each) * unit
                if count < need:
                    raise InputError(
                        f"answers.{name} = {budget}: the {need} anchors that are sure (start, end, answers.anchors) "
                        f"take up to {least}; raise it, or lower answers.samples, base, probes or max_tokens"
                    )
        if count < need:
            raise InputError(f"answers.max_anchors = {s.max_anchors}: {need} are sure (start, end, answers.anchors)")
        return count

    @property
    def most_answers(self) -> int:
        """What may have to be judged after the run."""
        return len(self.prompts) * (self.base + (self.max_anchors - 1) * self.settings.samples)

    # --------------------------------------------------------------------------------------------------- run

    def open_log(self, run_folder: Path, step: int, main: bool) -> None:
        """Start the log, or go on at `step`. Rank 0 first; then the others read what it left."""
        if main:
            s = self.settings
            self.log = AnswerLog.create(
                run_folder, self.panel, self.tokenizer_hash, samples=s.samples, max_tokens=s.max_tokens
            )
            self.log.rewind(step)
        self._restore(self.log or AnswerLog.open(run_folder))

    def _restore(self, log: AnswerLog) -> None:
        self.anchors = log.anchors
        if not self.anchors:
            return
        anchor, readings = self.anchors[-1], log.readings()
        readings = readings[readings["anchor"] == anchor]
        self.bank = Bank(anchor, self._plant([a.ids for a in log.bank(anchor)]), readings["logp"][0].copy())
        if len(readings) > 1:
            self.read(int(readings["step"][-1]), readings["logp"][-1])

    def due(self, step: int) -> str | None:
        """Why answers are to be drawn at `step`, if they are."""
        if step in self.anchors:
            return None
        if step in self.scheduled:
            return "as planned"
        sure = sum(k > step for k in self.scheduled)
        return self.asked if len(self.anchors) + sure < self.max_anchors else None

    def draw(self, policy: Transformer, step: int) -> Forest:
        """Sample the answers of an anchor: its bank, not yet scored. A collective."""
        count = self.base if step == 0 else self.settings.samples
        found = self.sampler(
            policy, self.prompts, self.sampling, samples=count, seed=self.seed ^ ANSWERS_NOISE, step=step
        )  # fmt: skip
        if self.log is not None:
            self.log.append([a for i, cs in enumerate(found) for a in self._answers(step, i, cs)])
        return self._plant([c.tokens for cs in found for c in cs[: self.settings.samples]])

    def anchor(self, step: int, forest: Forest, logp: np.ndarray, openings: np.ndarray | None) -> None:
        """From here on weights are against these answers and openings shifts against this step."""
        self.anchors.append(step)
        self.bank, self.asked, self.reference = Bank(step, forest, logp), None, openings
        if self.log is not None:
            self.log.append_reading(step, step, logp)

    def read(self, step: int, logp: np.ndarray) -> Gate:
        """Judge a reading of the bank: [probes * samples] fp32, under the weights of a later step."""
        if self.bank is None:
            raise RuntimeError("a reading needs an anchor")
        self.read_at = step
        found = gate(self.bank.baseline, logp)
        if not found.open:
            self.asked = "the weights no longer reach"
        return found

    def watch(self, stance: np.ndarray) -> None:
        """Look at the openings of a sample, [probes of the whole panel] nats per byte on the axis, NaN where left out:
        the alarm."""
        if self.reference is None:
            self.reference = stance
            return
        shift = stance - self.reference
        shift = shift[np.isfinite(shift)]
        if self.settings.alarm and len(shift) and abs(float(shift.mean())) > self.settings.alarm:
            self.asked = "the openings have moved"

    def _answers(self, step: int, i: int, found: list[Completion]) -> list[Answer]:
        return [
            Answer(step, self.panel.probes[i].id, k, c.tokens, c.stopped,
                   self.tokenizer.decode(c.tokens[: len(c.tokens) - c.stopped]).strip())
            for k, c in enumerate(found)
        ]  # fmt: skip

    def _plant(self, ids: list[list[int]]) -> Forest:
        n = self.settings.samples
        trees = [Tree(p, ids[i * n : (i + 1) * n], id=i) for i, p in enumerate(self.prompts)]
        slots = [list(range(i * n, (i + 1) * n)) for i in range(len(trees))]
        return Forest.plant(trees, slots, self.pack_tokens).to(self.sampler.world.device)
