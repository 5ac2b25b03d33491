"""Anchors: sampled answers in a training run, when they are drawn, and their scores at later steps.

An anchor at step k draws answers with the weights after k updates. Anchors are at the start, at the end, and between
them at steps that are fixed before the run (`drift.schedule.AnchorSchedule`).

With importance weights (`answers.weights_every`) an anchor's bank, `samples` answers to each probe, is also scored in
the training forwards of later steps, which gives the weights of `drift/importance.py`. Another anchor then comes at the
step after a sample whose weights cannot be trusted (the gate), or in which the text likelihood has moved far since the
last anchor (the alarm). The decisions depend on the logs alone, so a run that is continued decides the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdengine import recipe as recipes
from vdengine.data.batching import Forest
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.importance import Gate, gate
from vdengine.drift.intervals import ROUNDING
from vdengine.drift.panel_packs import stratified_order
from vdengine.drift.schedule import AnchorSchedule, Schedule
from vdengine.drift.trajectory import listed
from vdengine.engine.sampler import Sampler
from vdengine.models.generate import Completion, Sampling
from vdengine.models.transformer import Transformer
from vdengine.noise import ANSWERS_NOISE
from vdengine.panels.panel import Panel
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree, tree_cost


@dataclass(eq=False)
class Bank:
    """The answers of an anchor that are scored later, as branches of their prompts, one probe after another."""

    anchor: int  # step
    forest: Forest
    baseline: np.ndarray  # [probes * samples] fp32, nats: log-prob sums under the weights that drew them


@dataclass(frozen=True)
class AnswerPlan:
    """The questions that a run asks, when, and what the answers take at most."""

    panel: Panel  # the probes that are asked
    prompts: list[list[int]]  # [probes], token ids
    schedule: AnchorSchedule
    max_tokens: int  # of an answer
    weights_every: int

    @classmethod
    def make(cls, settings: recipes.AnswersKeys, panel: Panel, renderer: Renderer, total_steps: int) -> AnswerPlan:
        """The plan of a recipe that asks for answers.

        Raises:
            InputError: as `AnchorSchedule.make`.
        """
        chosen = sorted(stratified_order(panel)[: settings.probes or None])
        asked = Panel(panel.name, tuple(panel.probes[i] for i in chosen))
        prompts = [renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in asked.probes]
        schedule = AnchorSchedule.make(settings, len(prompts), total_steps)
        return cls(asked, prompts, schedule, settings.max_tokens, settings.weights_every)

    @property
    def most_answers(self) -> int:
        """Upper bound on the answers of a run, which a judge may have to read."""
        return self.schedule.num_answers(self.schedule.most)

    def cost(self, samples: Schedule, flops: dict[str, float]) -> float:
        """FLOPs of drawing answers, and of scoring them where they are weighted: an upper bound, all answers at their
        longest.

        Args:
            samples: of the panel.
            flops: `ModelConfig.flops`.
        """
        # To draw an answer takes as many FLOPs as to score it.
        anchors, bank = self.schedule.most, self._flops(self.schedule.samples, flops)
        drawn = self._flops(self.schedule.base, flops) + (anchors - 1) * bank
        if not self.weights_every:
            return drawn
        # An anchor scores its own bank and the one before it.
        return drawn + bank * (2 * anchors - 1 + len(samples.steps[:: self.weights_every]))

    def summary(self, cost: float) -> str:
        """The plan in two lines; cost: as a share of the training FLOPs."""
        s, answers = self.schedule, self.most_answers
        further = f", and at up to {s.most - len(s.steps)} more where the weights or the text likelihood ask for it"
        at_once = f"{s.samples} answer{'s' * (s.samples > 1)} to each of {s.probes} probes ({s.base} at the start)"
        return (
            f"{len(s.steps)} anchors, at steps {listed(np.array(s.steps))}{further * (s.most > len(s.steps))}\n"
            f"{at_once}, {answers:,} in all, at most {answers * self.max_tokens:,} tokens, {cost:.1%} of the "
            "training FLOPs"
        )

    def _flops(self, count: int, flops: dict[str, float]) -> float:
        """FLOPs of `count` answers to each probe."""
        size, probes = self.max_tokens, len(self.prompts)
        cost = tree_cost(  # [probes]
            np.array([len(prompt) for prompt in self.prompts]),
            np.full(probes * count, size),
            np.arange(probes + 1) * count,
            np.full(probes, count * size),
            **flops,
        )
        return float(cost.sum())


class Anchors:
    """The answers readout of a run. It is the same on every rank; rank 0 writes the log.

    Args:
        seed: of the run; the noise of answers differs from that of rollouts.
        pack_tokens: most tokens of a pack of answers, unless a single answer needs more.

    Raises:
        InputError: as `AnswerPlan.make`.
    """

    def __init__(
        self,
        settings: recipes.AnswersKeys,
        panel: Panel,
        renderer: Renderer,
        sampler: Sampler,
        *,
        seed: int,
        total_steps: int,
        pack_tokens: int,
    ) -> None:
        self.settings, self.sampler, self.seed = settings, sampler, seed
        self.tokenizer, self.tokenizer_hash = renderer.tokenizer, renderer.hash
        self.plan = AnswerPlan.make(settings, panel, renderer, total_steps)
        self.panel, self.prompts, self.schedule = self.plan.panel, self.plan.prompts, self.plan.schedule
        sampler.expect(max(map(len, self.prompts)))
        self.sampling = Sampling(settings.max_tokens, 1.0, stop_ids=tuple(renderer.stop_ids))
        self.pack_tokens = max(pack_tokens, max(map(len, self.prompts)) + settings.max_tokens)
        self.log: AnswerLog | None = None
        self.bank: Bank | None = None  # with importance weights
        self.anchors: list[int] = []  # steps
        self.read_at = -1  # step of the bank's last reading
        self.asked: str | None = None  # the reason if the next step should be an anchor
        self.reference: np.ndarray | None = None  # [probes], text stance at the last anchor, nats per byte

    @property
    def is_weighted(self) -> bool:
        """Whether banks are scored at later steps."""
        return self.settings.weights_every > 0

    # --------------------------------------------------------------------------------------------------- run

    def open_log(self, run_folder: Path, step: int, main: bool) -> None:
        """Create the log, or continue it at `step`. Rank 0 must call this before the other ranks, which read the
        log."""
        if main:
            self.log = AnswerLog.create(
                run_folder,
                self.panel,
                self.tokenizer_hash,
                samples=self.schedule.samples,
                max_tokens=self.plan.max_tokens,
            )
            self.log.rewind(step)
            last = self.log.anchors[-1:]
            if last and self.is_weighted and last[0] not in self.log.readings()["anchor"]:  # killed between the two
                self.log.rewind(last[0])
        self._restore(self.log or AnswerLog.open(run_folder))

    def _restore(self, log: AnswerLog) -> None:
        """Restore anchors, bank and gate from the log."""
        self.anchors = log.anchors
        if not self.anchors or not self.is_weighted:
            return
        anchor, readings = self.anchors[-1], log.readings()
        readings = readings[readings["anchor"] == anchor]
        self.bank = Bank(anchor, self._plant([a.ids for a in log.bank(anchor)]), readings["logp"][0].copy())
        if len(readings) > 1:
            self.read(int(readings["step"][-1]), readings["logp"][-1])

    def out_of_plan(self, anchors: list[int], step: int) -> list[int]:
        """The steps before `step` at which the plan has an anchor and a log with these anchors has none, or the other
        way round; with importance weights a log has more than those that are sure."""
        sure = {k for k in self.schedule.steps if k < step}
        drawn = {k for k in anchors if k < step}
        return sorted(sure - drawn if self.is_weighted else sure ^ drawn)

    def due(self, step: int) -> str | None:
        """The reason if answers are to be drawn at `step`, else None."""
        if step in self.anchors:
            return None
        if step in self.schedule.steps:
            return "as planned"
        num_scheduled = sum(k > step for k in self.schedule.steps)
        return self.asked if len(self.anchors) + num_scheduled < self.schedule.most else None

    def draw(self, policy: Transformer, step: int) -> Forest | None:
        """Sample the answers of an anchor and log them. Returns those of its bank, not scored yet; None without
        importance weights. A collective."""
        count = self.schedule.base if step == 0 else self.schedule.samples
        completions = self.sampler(
            policy, self.prompts, self.sampling, samples=count, seed=self.seed ^ ANSWERS_NOISE, step=step
        )  # [probes][samples]
        if self.log is not None:
            self.log.append([answer for i, cs in enumerate(completions) for answer in self._answers(step, i, cs)])
        if not self.is_weighted:
            return None
        return self._plant([c.tokens for cs in completions for c in cs[: self.schedule.samples]])

    def anchor(self, step: int, bank: Bank | None = None, text: np.ndarray | None = None) -> None:
        """Count the anchor whose answers were drawn.

        Args:
            bank: of it, scored, relative to which later steps are read; None: without importance weights.
            text: [probes of the whole panel], text stance at this step, nats per byte; NaN where not scored.
        """
        self.anchors.append(step)
        self.bank, self.asked, self.reference = bank, None, text
        if self.log is not None and bank is not None:
            self.log.append_reading(step, step, bank.baseline)

    def read(self, step: int, logp: np.ndarray) -> Gate:
        """The gate of a reading of the bank; if it is closed, the next step should be an anchor.

        Args:
            logp: [probes * samples] fp32, nats, log-prob sums of the bank's answers under the weights of a later step.
        """
        if self.bank is None:
            raise RuntimeError("a reading needs an anchor")
        self.read_at = step
        reading_gate = gate(self.bank.baseline, logp)
        if not reading_gate.open:
            self.asked = "the weights no longer reach"
        return reading_gate

    def watch(self, stance: np.ndarray) -> None:
        """The alarm: if the text likelihood has moved far since the last anchor, the next step should be an anchor.

        Args:
            stance: [probes of the whole panel], text stance on the axis, nats per byte; NaN where not scored.
        """
        if not self.is_weighted:
            return
        if self.reference is None:
            self.reference = stance
            return
        shift = stance - self.reference
        shift = shift[np.isfinite(shift)]  # [scored probes]
        far = max(self.settings.alarm, ROUNDING["nats per byte"])
        if self.settings.alarm and len(shift) and abs(float(shift.mean())) > far:
            self.asked = "the text likelihood has moved"

    def _answers(self, step: int, i: int, completions: list[Completion]) -> list[Answer]:
        """The completions of probe i as entries of the log."""
        return [
            Answer(
                step,
                self.panel.probes[i].id,
                k,
                c.tokens,
                c.stopped,
                self.tokenizer.decode(c.tokens[: len(c.tokens) - c.stopped]).strip(),
            )
            for k, c in enumerate(completions)
        ]

    def _plant(self, ids: list[list[int]]) -> Forest:
        """The token ids of a bank's answers, [probes * samples] lists, as branches of their prompts in packs."""
        n = self.schedule.samples
        trees = [Tree(prompt, ids[i * n : (i + 1) * n], id=i) for i, prompt in enumerate(self.prompts)]
        slots = [list(range(i * n, (i + 1) * n)) for i in range(len(trees))]
        return Forest.plant(trees, slots, self.pack_tokens).to(self.sampler.world.device)
