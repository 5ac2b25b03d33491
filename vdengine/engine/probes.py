"""Probes in a training run: which packs ride in which forward, and what becomes of their scores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vdengine import recipe as recipes
from vdengine.data.batching import Forest, deal
from vdengine.drift.importance import Gate
from vdengine.drift.intervals import Estimate, mean_estimate
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.openings import Openings
from vdengine.drift.pooling import Pooling, on_axis
from vdengine.drift.schedule import Schedule
from vdengine.engine.anchors import Anchors, Bank
from vdengine.engine.clocks import Later
from vdengine.engine.parallel import World
from vdengine.engine.rollouts import Sampler
from vdengine.errors import InputError
from vdengine.models.transformer import Transformer
from vdengine.panels.panel import STANCES, Panel
from vdengine.text.renderer import Renderer
from vdengine.trees import Pack


@dataclass(eq=False)
class Reading:
    """Packs of a forest that are scored at one step, and where their branches' sums go. Reading them waits for the
    forwards that they ride in alone: sampling does not stall the step."""

    step: int
    forest: Forest
    packs: list[int]
    out: Tensor  # [branches] fp32
    bank: Bank | None = None  # the answers that the forest holds; None: openings
    _later: tuple[Later, Later] | None = None

    def complete(self) -> None:
        """`out` is final: send it to the host."""
        self._later = Later(torch.cat([self.forest.slots[i] for i in self.packs])), Later(self.out)

    @property
    def logp(self) -> np.ndarray:
        """[branches] fp32, NaN where not sampled."""
        if self._later is None:
            raise RuntimeError("a reading is looked at before its forwards have run")
        sampled, out = (x.get().numpy() for x in self._later)
        scores = np.full(self.forest.num_branches, np.nan, dtype=np.float32)
        scores[sampled] = out[sampled]
        return scores


@dataclass(frozen=True)
class Live:
    """What a sample of the openings says at once: shifts since the first sample, nats per byte, on the topics' axes."""

    step: int
    stance: dict[str, Estimate]  # by topic: support less oppose
    scalars: dict[str, float]  # value/{topic}/{stance}: of each stance against the mean of the three


Rider = tuple[Reading, int]  # one pack of a reading


class Probes:
    """The readouts of a run: openings, and answers where asked for. Sample k measures the weights after k updates.

    Under accumulation the weights are constant over a step's micro steps, so its packs are dealt over ranks and
    micro steps.

    Raises:
        InputError: a panel that cannot be read, or cannot be cut into the parts asked for.
    """

    def __init__(
        self, recipe: recipes.Recipe, renderer: Renderer, world: World, sampler: Sampler | None, *, total_steps: int,
        step_flops: float, flops: dict[str, float],
    ) -> None:  # fmt: skip
        settings = recipe.probes
        self.world, self.parts, self.tokenizer_hash = world, round(1 / settings.fraction), renderer.hash
        panel = Panel.load(settings.panel)
        self.openings = Openings.build(panel, renderer, settings.tokens, controls=settings.controls).to(world.device)
        if self.parts > self.openings.num_questions:
            raise InputError(
                f"probes.fraction: 1/{self.parts} of panel {panel.name} is less than one of its "
                f"{self.openings.num_questions} packs; take a larger fraction or lower probes.tokens"
            )
        self.answers: Anchors | None = None
        if recipe.answers.samples and sampler is not None:
            self.answers = Anchors(
                recipe.answers, panel, renderer, sampler, seed=recipe.run.seed, total_steps=total_steps,
                pack_tokens=settings.tokens, flops=flops,
            )  # fmt: skip
        questions = self.openings.part(0, 1)
        self.num_openings = len(panel.branches())
        self.num_tokens = sum(self.openings.packs[i].num_tokens for i in questions)
        self.schedule = Schedule.make(
            total_steps, every=settings.every, budget=settings.budget, step_cost=step_flops, parts=self.parts,
            panel_cost=self.openings.flops(flops, questions), whole_cost=self.openings.flops(flops),
        )  # fmt: skip
        self.over_budget = settings.budget is not None and self.schedule.cost > settings.budget
        self.answers_every = recipe.answers.every
        self.answers_cost = 0.0  # readings and sampling, an upper bound, as a share of the training FLOPs
        if self.answers:
            readings = len(self.schedule.steps[:: self.answers_every]) if self.answers_every else 0
            drawn = self.answers.most_answers / (len(self.answers.prompts) * recipe.answers.samples)
            self.answers_cost = (
                self.answers.reading_flops * (readings + drawn + self.answers.max_anchors) / (total_steps * step_flops)
            )
        self.log: DriftLog | None = None
        self.gate: Gate | None = None  # of the last reading of answers since it was reported
        self.note = ""  # what became of answers at this step, for a person
        self.seconds: dict[str, float] = {}  # of the last step's anchor
        self._now: list[Reading] = []  # of this step
        self._pending: list[Reading] = []
        asked = [b for b in self.openings.branches if b.variant == "question"]
        self._pooling = Pooling.of([b.probe.id for b in asked], [b.stance for b in asked], [b.num_bytes for b in asked])
        self._polarity = np.array([p.polarity for p in panel.probes])
        self._live: list[Live] = []
        self.latest: Live | None = None
        self._first: np.ndarray | None = None  # pooled openings of the first sample
        self._last: np.ndarray | None = None  # and of the last one

    def open_log(self, run_folder: Path, step: int) -> None:
        """Start the raw logs, or continue them at `step`. Rank 0 first, then the others."""
        o, main = self.openings, self.world.is_main
        if main:
            self.log = DriftLog.create(run_folder, o.panel, o.branches, o.num_tokens_of, self.tokenizer_hash)
            self.log.rewind(step)
        log = self.log or DriftLog.open(run_folder)
        steps, logp = log.steps, log.logp
        if len(steps):
            self._first, self._last = self._pool(logp[0]), self._pool(logp[-1])
        if self.answers is not None:
            self.answers.open_log(run_folder, step, main)
            if self.answers.anchors and len(steps):
                before = np.flatnonzero(steps < self.answers.anchors[-1])
                self.answers.reference = _stance(self._pool(logp[before[-1] if len(before) else 0]))
                self.answers.watch(_stance(self._pool(logp[-1])))

    def begin(self, step: int, micro_steps: int) -> list[list[Rider]]:
        """This rank's probe packs for each micro step of `step`; none where nothing is sampled."""
        sample = self.schedule.index(step)
        if sample is None:
            return [[] for _ in range(micro_steps)]
        # the baseline and the last sample take the whole panel and the controls, whatever the fraction
        whole = sample == 0 or step == self.schedule.steps[-1]
        packs = list(range(len(self.openings.packs))) if whole else self.openings.part(sample, self.parts)
        readings = [self._reading(step, self.openings, packs)]
        bank = self.answers.bank if self.answers else None
        if bank is not None and bank.anchor < step and self.answers_every and sample % self.answers_every == 0:
            readings.append(self._reading(step, bank.forest, bank=bank))
        self._pending += readings
        return self._deal(readings, micro_steps)

    def _reading(self, step: int, forest: Forest, packs: list[int] | None = None, bank: Bank | None = None) -> Reading:
        packs = list(range(len(forest.packs))) if packs is None else packs  # all
        return Reading(step, forest, packs, torch.zeros(forest.num_branches, device=self.world.device), bank)

    def _deal(self, readings: list[Reading], micro_steps: int) -> list[list[Rider]]:
        self._now = readings
        return deal([(r, i) for r in readings for i in r.packs], self.world.size, self.world.rank, micro_steps)

    def packs(self, riders: list[Rider]) -> list[Pack]:
        return [r.forest.packs[i] for r, i in riders]

    def collect(self, riders: list[Rider], probe_logp: Tensor | None) -> None:
        """Take over the scores of one forward."""
        at = 0
        for r, i in riders:
            if probe_logp is not None:
                n = r.forest.packs[i].num_scored
                r.forest.collect(r.out, [i], probe_logp[at : at + n])
                at += n

    def end(self) -> None:
        """After a step's forwards: gather the ranks' scores. Each branch was scored by one rank, the others hold
        zeros: the sum is exact."""
        for r in self._now:
            if self.world.size > 1:
                dist.all_reduce(r.out)
            r.complete()
        self._now = []

    def sample(self, model: Transformer, step: int) -> None:
        """A forward of probes alone: the sample after the last update."""
        self._score(model, self.begin(step, 1)[0])

    def _score(self, model: Transformer, mine: list[Rider]) -> None:
        if not self._now:
            return
        with torch.no_grad():  # a collective: ranks without a pack run it too
            scores = model(None, self.packs(mine))
        self.collect(mine, scores.probe_logp)
        self.end()

    def anchor(self, model: Transformer, step: int) -> None:
        """Before the forwards of `step`: draw answers where they are due, and score them once, so that their weights
        are 1 exactly. The old ones are scored too: how far off their weights have become shows at every anchor. A
        collective."""
        self.seconds, self.note = {}, ""
        if self.answers is None:
            return
        started = time.perf_counter()
        self.flush()  # whether they are due depends on the last sample
        why = self.answers.due(step)
        if why is None:
            return
        forest, old = self.answers.draw(model, step), self.answers.bank
        readings = [self._reading(step, forest)]
        if old is not None and self.answers.read_at != step:
            readings.append(self._reading(step, old.forest, bank=old))
        self._pending += readings[1:]
        self._score(model, self._deal(readings, 1)[0])
        self.flush()
        self.answers.anchor(step, forest, readings[0].logp, None if self._last is None else _stance(self._last))
        self.seconds = {"answers": time.perf_counter() - started}
        count = self.answers.settings.samples if step else self.answers.base
        self.note = f"step {step}: {count} answers to each of {len(self.answers.prompts)} probes drawn ({why})"

    def flush(self, before: int | None = None) -> None:
        """Write what is pending, on rank 0, and look at it; `before`: only what was read at an earlier step. The host
        waits for the forwards that it rode in."""
        due = [r for r in self._pending if before is None or r.step < before]
        self._pending = [r for r in self._pending if r not in due]
        for r in due:
            logp = r.logp
            if r.bank is None:
                if self.log is not None:
                    self.log.append(r.step, logp)
                self._last = self._pool(logp)
                self._first = self._last if self._first is None else self._first
                self._live.append(self._shifts(r.step))
                if self.answers is not None:
                    self.answers.watch(_stance(self._last))
            elif self.answers is not None:
                self.gate = self.answers.read(r.step, logp)
                if self.answers.log is not None:
                    self.answers.log.append_reading(r.step, r.bank.anchor, logp)

    def take_live(self) -> list[Live]:
        """Samples since the last call."""
        live, self._live = self._live, []
        self.latest = live[-1] if live else self.latest
        return live

    def take_gate(self) -> dict[str, float]:
        """Metrics of the last reading of answers since the last call."""
        g, self.gate = self.gate, None
        if g is None:
            return {}
        return {
            "answers/kl": g.kl, "answers/ess": g.ess, "answers/pareto_k": g.pareto_k,
            "answers/mean_weight": g.mean_weight, "answers/open": float(g.open),
        }  # fmt: skip

    def _pool(self, logp: np.ndarray) -> np.ndarray:
        """Mean log-prob per byte of each stance's openings, on the axis: [3, probes] float64, NaN where left out; from
        a sample's log-prob sums [branches] fp32, in which the panel's own questions come first."""
        means = self._pooling.means(logp[None, : len(self._pooling.num_bytes)])[0]
        return on_axis(means, self._polarity).T

    def _shifts(self, step: int) -> Live:
        """How far the last sample is from the first."""
        if self._first is None or self._last is None:
            raise RuntimeError("no sample yet")
        shift = self._last - self._first
        stance, each = _stance(shift), shift - shift.mean(0)
        found, scalars = {}, {}
        for topic in self.openings.panel.topics:
            of_topic = np.array([p.topic == topic for p in self.openings.panel.probes]) & np.isfinite(stance)
            if of_topic.any():
                found[topic] = mean_estimate(stance[of_topic])
                for name, x in zip(STANCES, each[:, of_topic].mean(1), strict=True):
                    scalars[f"value/{topic}/{name}"] = float(x)
        return Live(step, found, scalars)


def _stance(pooled: np.ndarray) -> np.ndarray:
    return pooled[STANCES.index("support")] - pooled[STANCES.index("oppose")]
