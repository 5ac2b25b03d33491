"""Probes in a training run: which packs are due at which step, and what is done with their scores."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from vdengine import recipe as recipes
from vdengine.drift.chain import difference, edge
from vdengine.drift.importance import Gate
from vdengine.drift.live import Live, LivePanel
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.panel_packs import PanelPacks
from vdengine.drift.schedule import Schedule
from vdengine.engine.anchors import Anchors, Bank
from vdengine.engine.readings import Reading, Readings
from vdengine.engine.sampler import Sampler
from vdengine.errors import InputError
from vdengine.files import bytes_before
from vdengine.models.transformer import Transformer
from vdengine.panels.panel import Panel
from vdengine.runfolder import RunFolder
from vdengine.text.renderer import Renderer


class Probes:
    """The readouts of a run: leads and openings, and answers if the recipe asks for them. A sample at step k measures
    the weights after k updates.

    Args:
        readings: of the run, which this is a source of.
        sampler: draws the answers; None: there are none.
        step_flops: of a training step, all ranks; NaN where it is not known, and the recipe has no budget.
        flops: `ModelConfig.flops`.

    Raises:
        InputError: a panel that has fewer packs than the recipe's fraction asks for parts.
    """

    def __init__(
        self,
        recipe: recipes.Recipe,
        renderer: Renderer,
        panel: Panel,
        readings: Readings,
        sampler: Sampler | None,
        *,
        total_steps: int,
        step_flops: float,
        flops: dict[str, float],
    ) -> None:
        settings = recipe.probes
        self.readings, world = readings, readings.world
        self.world, self.parts, self.tokenizer_hash = world, round(1 / settings.fraction), renderer.hash
        self.panel_packs = PanelPacks.build(
            panel, renderer, settings.tokens, controls=settings.controls, readouts=settings.readouts
        ).to(world.device)
        if self.parts > (count := len(self.panel_packs.null_of)):
            raise InputError(
                f"probes.fraction: 1/{self.parts} of panel {panel.name} is less than one of its {count} packs; take a "
                "larger fraction or lower probes.tokens"
            )
        self.answers: Anchors | None = None
        if recipe.answers.samples and sampler is not None:
            self.answers = Anchors(
                recipe.answers,
                panel,
                renderer,
                sampler,
                seed=recipe.run.seed,
                total_steps=total_steps,
                pack_tokens=settings.tokens,
            )
        whole = self.panel_packs.part(0, 1)
        self.num_tokens = sum(self.panel_packs.packs[i].num_tokens for i in whole)
        self.schedule = Schedule.make(
            total_steps,
            every=settings.every,
            budget=settings.budget,
            step_cost=step_flops,
            parts=self.parts,
            panel_cost=self.panel_packs.flops(flops, whole),
            whole_cost=self.panel_packs.flops(flops),
        )
        self.over_budget = settings.budget is not None and self.schedule.cost > settings.budget
        self.answers_every = recipe.answers.weights_every
        self.answers_cost = 0.0  # an upper bound, as a share of the training FLOPs
        if self.answers:
            self.answers_cost = self.answers.plan.cost(self.schedule, flops) / (total_steps * step_flops)
        self.log: DriftLog | None = None
        self.gate: Gate | None = None  # of the last reading of answers, until it is reported
        self.note = ""  # a sentence for the console if answers were drawn at this step
        self.said: list[str] = []  # what is worth saying of the samples, until someone has said it
        self._before: Path | None = None  # the stage before this run, until the first sample is compared with its last
        self.seconds: dict[str, float] = {}  # of sampling at this step
        self._pending: list[Reading] = []  # not written yet
        self.logged = -1
        self.live = LivePanel(panel, self.panel_packs.requests)
        self._untold: list[Live] = []
        self.latest: Live | None = None
        readings.sources.append(self)

    def open_log(self, run_folder: Path, step: int, stage_before: Path | None = None) -> None:
        """Create the raw logs, or continue them with the samples of `step`. Rank 0 must call this before the other
        ranks. stage_before: the folder of the one that ended with the weights which this run starts from."""
        main = self.world.is_main
        log = DriftLog.create(run_folder, self.panel_packs.panel, self.panel_packs.requests, self.tokenizer_hash)
        if main:
            self.log = log
            self.log.rewind(step)
        steps, logp = log.steps, log.samples()  # [samples], [samples, branches]
        self.live.continue_from(logp)
        self.logged = int(steps[-1]) if len(steps) else -1  # a sample that need not be taken again
        if main and not len(steps) and stage_before is not None and RunFolder(stage_before).has_panel_scores:
            self._before = stage_before
        if self.answers is not None:
            self.answers.open_log(run_folder, step, main)
            if self.answers.anchors and len(steps):
                earlier = np.flatnonzero(steps < self.answers.anchors[-1])
                self.answers.reference = self.live.read(logp[earlier[-1] if len(earlier) else 0]).text
                self.answers.watch(self.live.read(logp[-1]).text)

    def bytes_before(self, step: int) -> dict[Path, int]:
        """Of each file of the logs the bytes that are of the steps before this one; {} on ranks that write none."""
        if self.log is None:
            return {}
        own = {
            channel.path: int((channel.steps < step).sum()) * channel.record_bytes
            for channel in self.log.channels.values()
        }
        answers = self.answers.log if self.answers is not None else None
        if answers is None:
            return own
        readings = int((answers.readings()["step"] < step).sum()) * answers.record_bytes
        return own | {
            answers.weights_path: readings,
            answers.answers_path: bytes_before(answers.answers_path, step, "anchor"),
        }

    def due(self, step: int) -> list[Reading]:
        """The readings of `step`: of the panel, and of answers that are weighted; [] if the step has no sample."""
        sample = self.schedule.index(step)
        if sample is None:
            return []
        # the first and the last sample score the whole panel and the controls, whatever the fraction
        is_whole = sample == 0 or step == self.schedule.steps[-1]
        forest = self.panel_packs
        packs = list(range(len(forest.packs))) if is_whole else forest.part(sample, self.parts)
        found = [self.readings.new(step, forest, packs)]
        bank = self.answers.bank if self.answers else None
        if bank is not None and bank.anchor < step and self.answers_every and sample % self.answers_every == 0:
            found.append(self.readings.new(step, bank.forest, bank=bank))
        self._pending += found
        return found

    def anchor(self, model: Transformer, step: int) -> None:
        """Before the forwards of `step`: draw answers if they are due. Where they are weighted they are scored once, so
        that their importance weights at this step are exactly 1, and so is the bank of the anchor before, which shows
        at every anchor how far its weights have moved. A collective."""
        self.seconds, self.note = {}, ""
        if self.answers is None:
            return
        started = time.perf_counter()
        if self.answers.is_weighted:
            self.flush()  # whether answers are due depends on the last sample
        reason = self.answers.due(step)
        if reason is None:
            return
        forest, old_bank = self.answers.draw(model, step), self.answers.bank
        if forest is None:
            self.answers.anchor(step)
        else:
            readings = [self.readings.new(step, forest)]
            if old_bank is not None and self.answers.read_at != step:
                readings.append(self.readings.new(step, old_bank.forest, bank=old_bank))
            self._pending += readings[1:]
            self.readings.score(model, readings)
            self.flush()
            text = None if self.live.last is None else self.live.last.text
            self.answers.anchor(step, Bank(step, forest, readings[0].logp), text)
        self.seconds = {"answers": time.perf_counter() - started}
        count = self.answers.schedule.samples if step else self.answers.schedule.base
        drawn = f"{count} answer{'s' * (count > 1)} to each of {len(self.answers.prompts)} probes drawn"
        self.note = f"step {step}: {drawn} ({reason})"

    def abandon(self) -> None:
        """Forget the readings whose forwards have not all run: of a step that ended with an error."""
        self._pending = [reading for reading in self._pending if reading.is_complete]

    def flush(self, before: int | None = None) -> None:
        """Evaluate pending readings, and on rank 0 write them to the logs. The host waits for their forwards.

        Args:
            before: only readings of steps before this one; default: all.
        """
        due = [reading for reading in self._pending if before is None or reading.step < before]
        self._pending = [reading for reading in self._pending if reading not in due]
        for reading in due:
            logp = reading.logp  # [branches of the forest]
            if reading.bank is None:
                if self.log is not None:
                    self.log.append(reading.step, logp)
                    self._compare()
                self._untold.append(self.live.add(reading.step, logp))
                if self.answers is not None and self.live.last is not None:
                    self.answers.watch(self.live.last.text)
            elif self.answers is not None:
                self.gate = self.answers.read(reading.step, logp)
                if self.answers.log is not None:
                    self.answers.log.append_reading(reading.step, reading.bank.anchor, logp)

    def _compare(self) -> None:
        """Say whether the first sample is the last one of the stage before: the weights should be the same."""
        before, self._before = self._before, None
        if before is not None and self.log is not None:
            self.said.append(edge(before.resolve().name, difference(DriftLog.open(before), self.log)))

    def take_live(self) -> list[Live]:
        """The samples since the last call."""
        live, self._untold = self._untold, []
        self.latest = live[-1] if live else self.latest
        return live

    def take_gate(self) -> dict[str, float]:
        """Metrics of the last reading of answers since the last call; {} if there was none."""
        last_gate, self.gate = self.gate, None
        if last_gate is None:
            return {}
        return {
            "answers/kl": last_gate.kl,
            "answers/ess": last_gate.ess,
            "answers/pareto_k": last_gate.pareto_k,
            "answers/mean_weight": last_gate.mean_weight,
            "answers/open": float(last_gate.open),
        }
