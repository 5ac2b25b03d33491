"""Anchors: sampled answers in a training run, when they are drawn, and their scores at later steps.

An anchor at step k draws answers with the weights after k updates. Its bank, `samples` answers to each probe, is scored
in the training forwards of later steps, which gives the importance weights of `drift/importance.py`. Anchors are at the
start, at the end, and at the steps that the recipe lists. Another one comes at the step after a sample whose importance
weights cannot be trusted (the gate), or in which the openings have moved far since the last anchor (the alarm). The
decisions depend on the logs alone, so a run that is continued decides the same.
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
    """The answers of an anchor that are scored later, as branches of their prompts, one probe after another."""

    anchor: int  # step
    forest: Forest
    baseline: np.ndarray  # [probes * samples] fp32, nats: log-prob sums under the weights that drew them


class Anchors:
    """The answers readout of a run. It is the same on every rank; rank 0 writes the log.

    Args:
        seed: of the run; the noise of answers differs from that of rollouts.
        pack_tokens: most tokens of a pack of answers, unless a single answer needs more.
        flops: `ModelConfig.flops`.

    Raises:
        InputError: anchors outside the run, or budgets too small for the anchors that are certain.
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
        flops: dict[str, float],
    ) -> None:
        self.settings, self.sampler, self.seed, self.total_steps = settings, sampler, seed, total_steps
        self.tokenizer, self.tokenizer_hash = renderer.tokenizer, renderer.hash
        chosen = sorted(stratified_order(panel)[: settings.probes or None])
        self.panel = Panel(panel.name, tuple(panel.probes[i] for i in chosen))
        self.prompts = [
            renderer.prompt_ids([{"role": "user", "content": p.prompt}], opening=True) for p in self.panel.probes
        ]
        sampler.expect(max(map(len, self.prompts)))
        self.sampling = Sampling(settings.max_tokens, 1.0, stop_ids=tuple(renderer.stop_ids))
        self.base = settings.base or 3 * settings.samples
        self.pack_tokens = max(pack_tokens, max(map(len, self.prompts)) + settings.max_tokens)
        if wrong := [k for k in settings.anchors if not 0 < k < total_steps]:
            raise InputError(
                f"answers.anchors: {', '.join(map(str, wrong))} not within the run: 1 to {total_steps - 1} are (its "
                "first and last step have answers anyway)"
            )
        self.scheduled = sorted({0, total_steps, *settings.anchors})
        self.max_anchors = self._max_anchors()
        n = settings.samples
        lengths = np.full(len(self.prompts) * n, settings.max_tokens)  # [probes * samples]
        cost = tree_cost(  # [probes]
            np.array([len(prompt) for prompt in self.prompts]),
            lengths,
            np.arange(len(self.prompts) + 1) * n,
            np.full(len(self.prompts), n * settings.max_tokens),
            **flops,
        )
        self.reading_flops = float(cost.sum())  # of scoring a bank once, if all answers have max_tokens
        self.log: AnswerLog | None = None
        self.bank: Bank | None = None
        self.anchors: list[int] = []  # steps
        self.read_at = -1  # step of the bank's last reading
        self.asked: str | None = None  # the reason if the next step should be an anchor
        self.reference: np.ndarray | None = None  # [probes], stance of the openings at the last anchor, nats per byte

    # ------------------------------------------------------------------------------------------------ budget

    def _max_anchors(self) -> int:
        """The number of anchors that the recipe's budgets allow, the first and the last included.

        Raises:
            InputError: it is below the number of anchors that are certain.
        """
        s, probes = self.settings, len(self.prompts)
        first, later = probes * self.base, probes * s.samples  # answers of the first anchor and of each later one
        count, need = s.max_anchors, len(self.scheduled)
        for name, budget, unit in (
            ("generated_tokens", s.generated_tokens, s.max_tokens),
            ("judge_calls", s.judge_calls, 1),
        ):
            if budget is not None:
                count = min(count, 1 + (budget - first * unit) // (later * unit))
                minimum = (first + (need - 1) * later) * unit
                if count < need:
                    raise InputError(
                        f"answers.{name} = {budget}: the {need} anchors that are sure (start, end, answers.anchors) "
                        f"take up to {minimum}; raise it, or lower answers.samples, base, probes or max_tokens"
                    )
        if count < need:
            raise InputError(f"answers.max_anchors = {s.max_anchors}: {need} are sure (start, end, answers.anchors)")
        return count

    @property
    def most_answers(self) -> int:
        """Upper bound on the answers of a run, which a judge may have to read."""
        return len(self.prompts) * (self.base + (self.max_anchors - 1) * self.settings.samples)

    # --------------------------------------------------------------------------------------------------- run

    def open_log(self, run_folder: Path, step: int, main: bool) -> None:
        """Create the log, or continue it at `step`. Rank 0 must call this before the other ranks, which read the
        log."""
        if main:
            s = self.settings
            self.log = AnswerLog.create(
                run_folder, self.panel, self.tokenizer_hash, samples=s.samples, max_tokens=s.max_tokens
            )
            self.log.rewind(step)
            last = self.log.anchors[-1:]
            if last and last[0] not in self.log.readings()["anchor"]:  # killed between the two
                self.log.rewind(last[0])
        self._restore(self.log or AnswerLog.open(run_folder))

    def _restore(self, log: AnswerLog) -> None:
        """Restore anchors, bank and gate from the log."""
        self.anchors = log.anchors
        if not self.anchors:
            return
        anchor, readings = self.anchors[-1], log.readings()
        readings = readings[readings["anchor"] == anchor]
        self.bank = Bank(anchor, self._plant([a.ids for a in log.bank(anchor)]), readings["logp"][0].copy())
        if len(readings) > 1:
            self.read(int(readings["step"][-1]), readings["logp"][-1])

    def due(self, step: int) -> str | None:
        """The reason if answers are to be drawn at `step`, else None."""
        if step in self.anchors:
            return None
        if step in self.scheduled:
            return "as planned"
        num_scheduled = sum(k > step for k in self.scheduled)
        return self.asked if len(self.anchors) + num_scheduled < self.max_anchors else None

    def draw(self, policy: Transformer, step: int) -> Forest:
        """Sample the answers of an anchor and log them. Returns its bank, not scored yet. A collective."""
        count = self.base if step == 0 else self.settings.samples
        completions = self.sampler(
            policy, self.prompts, self.sampling, samples=count, seed=self.seed ^ ANSWERS_NOISE, step=step
        )  # [probes][samples]
        if self.log is not None:
            self.log.append([answer for i, cs in enumerate(completions) for answer in self._answers(step, i, cs)])
        return self._plant([c.tokens for cs in completions for c in cs[: self.settings.samples]])

    def anchor(self, step: int, forest: Forest, logp: np.ndarray, openings: np.ndarray | None) -> None:
        """Make the answers drawn at `step` the bank, relative to which later steps are read.

        Args:
            forest: of the answers.
            logp: [probes * samples] fp32, nats, their log-prob sums under the weights that drew them.
            openings: [probes of the whole panel], stance of the openings at this step, nats per byte; NaN where not
                scored.
        """
        self.anchors.append(step)
        self.bank, self.asked, self.reference = Bank(step, forest, logp), None, openings
        if self.log is not None:
            self.log.append_reading(step, step, logp)

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
        """The alarm: if the openings have moved far since the last anchor, the next step should be an anchor.

        Args:
            stance: [probes of the whole panel], of the openings on the axis, nats per byte; NaN where not scored.
        """
        if self.reference is None:
            self.reference = stance
            return
        shift = stance - self.reference
        shift = shift[np.isfinite(shift)]  # [scored probes]
        far = max(self.settings.alarm, ROUNDING["nats per byte"])
        if self.settings.alarm and len(shift) and abs(float(shift.mean())) > far:
            self.asked = "the openings have moved"

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
        n = self.settings.samples
        trees = [Tree(prompt, ids[i * n : (i + 1) * n], id=i) for i, prompt in enumerate(self.prompts)]
        slots = [list(range(i * n, (i + 1) * n)) for i in range(len(trees))]
        return Forest.plant(trees, slots, self.pack_tokens).to(self.sampler.world.device)
