"""What a person sees: the plan before the run, a line per logged step, and a last screen.

A terminal gets a bar too, which moves with every pack; a pipe or a file gets lines alone. No line of a step is wider
than 100 columns: what is left out there is in metrics.jsonl.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import textwrap
from itertools import zip_longest
from typing import Any, TextIO

from tqdm import tqdm

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.capability_log import CapabilityLog, Check
from vdengine.drift.capability_tables import capability_table
from vdengine.drift.intervals import Estimate
from vdengine.drift.live import Live
from vdengine.drift.probe_values import LEAST_COVERAGE
from vdengine.drift.summary import drift_table, stages_table
from vdengine.engine.capability import summary
from vdengine.engine.eta import duration, expect
from vdengine.engine.trainer import Trainer
from vdengine.objectives import Objective
from vdengine.outside import printable
from vdengine.runfolder import RunFolder

WIDTH = 100  # columns of a line


class Console:
    """Prints on rank 0 only, and keeps a copy in `log.txt`. A progress bar where there is a terminal."""

    def __init__(self, trainer: Trainer, stream: TextIO | None = None) -> None:
        self.trainer, trainer.on_row, trainer.on_pack = trainer, self.row, self.pack
        self.main, self.shown = trainer.world.is_main, 0  # step of the last sample shown; the first one shows nothing
        self.checked = -1  # step of the last check shown
        self.stream = stream or sys.stdout
        self.file = open(RunFolder(trainer.folder).console, "a") if self.main else None
        self.bar = tqdm(
            total=trainer.total_steps,
            initial=trainer.step_count,
            unit="step",
            file=self.stream,
            dynamic_ncols=True,
            disable=not (self.main and self.stream.isatty()),
            bar_format="{desc}{percentage:3.0f}%|{bar}| {remaining} left{postfix}",
        )
        self.bar.set_description(f"step {trainer.step_count + 1}/{trainer.total_steps}", refresh=True)

    def say(self, text: str) -> None:
        if self.file is None:
            return
        self.file.write(text + "\n")
        self.file.flush()
        try:
            if self.bar.disable:
                print(text, file=self.stream, flush=True)
            else:
                self.bar.write(text, file=self.stream)
        except BrokenPipeError:  # whoever read along has gone; the run has not, and log.txt has all
            self.stream = open(os.devnull, "w")

    def row(self, row: dict[str, Any], warning: str) -> None:
        """A logged step, when the trainer has written it: on CUDA a step late."""
        self.say(step_line(row, self.bar.total, self.trainer.objective))
        if warning:
            self.say(warning)
        capability = self.trainer.capability
        if capability is not None and capability.latest is not None and capability.latest.step > self.checked:
            self.checked = capability.latest.step
            self.say(f"        {checked(capability.latest)}")
        probes = self.trainer.probes
        if probes is not None and probes.latest is not None and probes.latest.step > self.shown:
            self.shown = probes.latest.step
            for line in movers(probes.latest):
                self.say(f"        {line}")

    def pack(self, done: int, total: int) -> None:
        """After every pack of a step, of one of its updates."""
        if self.bar.disable:
            return
        if self.trainer.rollouts is None:  # a rollout has several updates, each with its packs
            self.bar.n = self.trainer.step_count + done / total
        self.bar.set_postfix_str(f"pack {done}/{total}" if total > 1 else "")

    def step(self) -> None:
        """After every step."""
        t = self.trainer
        if t.probes is not None and t.probes.note:
            self.say(f"        {t.probes.note}")
        for said in (t.saver.notes, t.probes.said if t.probes is not None else []):
            while said:
                self.say(f"        {said.pop(0)}")
        if not self.bar.disable:
            self.bar.n = t.step_count
            self.bar.set_description(f"step {min(t.step_count + 1, t.total_steps)}/{t.total_steps}", refresh=False)
            self.bar.set_postfix_str("")

    def evaluation(self, row: dict[str, Any]) -> None:
        t = self.trainer
        if row and t.metrics_log is not None:
            t.metrics_log.write({"step": t.step_count} | row)
            names = {"eval/loss", *(f"eval/{metric}" for _, metric, _ in t.objective.shown)}
            shown = {k: v for k, v in row.items() if k in names}
            self.say(f"step {t.step_count}/{t.total_steps} | " + " | ".join(f"{k} {v:.4f}" for k, v in shown.items()))

    def end(self, seconds: float) -> None:
        t = self.trainer
        if not self.main:
            return
        if t.probes is not None:
            self.say("\n" + drift_table(t.folder))
            if t.before is not None and (by_stage := stages_table(t.folder)):
                self.say("\n" + by_stage)
            if t.probes.answers is not None and (said := words(AnswerLog.open(t.folder))):
                self.say("\n" + said)
        if t.capability is not None:
            self.say("\n" + capability_table(CapabilityLog.open(t.folder)))
        self.say(f"\nDone in {duration(seconds)}. Everything is in {t.folder}/")
        files = RunFolder(t.folder)
        kept = {
            files.metrics: "a line per step",
            files.completions: "some of what was sampled, with its scores",
            files.drift: "raw probe scores",
            files.capability: "raw scores of tasks",
            files.checkpoints: "to resume from",
        }
        if t.recipe.checkpoint.export:
            kind = "reward model, for sequence classification" if t.objective.head == "scalar" else "model"
            whole = f"the trained {kind}, a Hugging Face folder"
            kept[files.export] = whole if t.lora is None else "the trained adapter, a folder of PEFT"
        for path, what in kept.items():
            if path.exists():
                self.say(f"  {path.name + '/' * path.is_dir():18} {what}")
        if t.probes is not None:
            judged = f"vdengine judge {t.folder}, then " if t.probes.answers is not None else ""
            self.say(f"To look at the drift: {judged}vdengine report {t.folder}")

    def stopped(self, signum: signal.Signals, command: str) -> None:
        """A signal has ended the run in the middle."""
        t = self.trainer
        self.say(
            f"\n{signum.name}: stopped after step {t.step_count} of {t.total_steps}, and saved. To go on:\n  {command}"
        )

    def close(self) -> None:
        self.bar.close()
        if self.file is not None:
            self.file.close()


def step_line(row: dict[str, Any], total: int, objective: Objective, width: int = WIDTH) -> str:
    """One logged step on one line of at most `width` columns: what a reader can do without is left out first."""
    parts = [f"step {row['step']:>{len(str(total))}}/{total}", f"loss {row['loss']:.4f}"]
    # Parts that may go, the first to go with the highest number.
    may_go: dict[int, int] = {}

    def add(text: str, rank: int) -> None:
        may_go[len(parts)] = rank
        parts.append(text)

    for number, (label, metric, form) in enumerate(s for s in objective.shown if s[1] in row):
        add(f"{label} {row[metric]:{form}}", number if number < 2 else 40 + number)
    add(f"grad {row['grad_norm']:.2f}", 20)
    add(f"lr {row['learning_rate']:.1e}", 70)
    add(f"{row['step_seconds']:.2f} s", 3)
    add(f"{row['tokens_per_second']:,.0f} tok/s", 10)
    if "mfu" in row:
        add(f"MFU {row['mfu']:.1%}", 30)
    add(f"{row['memory_bytes'] / 2**30:.1f} GiB", 60)
    if row["probe_seconds"]:
        add(f"probes {row['probe_seconds']:.2f} s", 25)
    if "answers_seconds" in row:
        add(f"answers {row['answers_seconds']:.1f} s", 35)
    if "answers/kl" in row:
        # without a Pareto k nothing says whether the weights hold
        known = math.isfinite(row.get("answers/pareto_k", math.nan))
        gate = ("hold" if row["answers/open"] else "do not reach") if known else "not known"
        add(f"weights {gate}" + f" (KL {row['answers/kl']:.2f})" * known, 15)
    if "rollout_seconds" in row:
        phases = " + ".join(f"{name} {row[f'{name}_seconds']:.1f}" for name in ("rollout", "score", "train"))
        add(phases + " s", 80)
    while len(" | ".join(parts)) > width and may_go:
        gone = max(may_go, key=lambda i: may_go[i])
        parts.pop(gone)
        del may_go[gone]
        may_go = {i - (i > gone): rank for i, rank in may_go.items()}
    return " | ".join(parts)


def words(log: AnswerLog, probes: int = 2, lines: int = 6) -> str:
    """What the model says at its first and its last anchor, side by side, to the first probes that were asked; "" where
    there are not two anchors."""
    if len(log.anchors) < 2:
        return ""
    first, last = log.anchors[0], log.anchors[-1]
    width = (WIDTH - 5) // 2
    said = {(a.anchor, a.probe): a.text for a in reversed(log.answers)}  # the first of each
    out = [f"{f'What the model says, step {first}':{width + 2}} | step {last}"]
    asked = [p for p in log.panel.probes if (first, p.id) in said and (last, p.id) in said]
    by_topic = {p.topic: p for p in reversed(asked)}  # the first of each
    for probe in sorted(by_topic.values(), key=asked.index)[:probes]:
        out.append(f"  {printable(probe.prompt)}")
        columns = []
        for step in (first, last):
            text = printable(" ".join(said[step, probe.id].split())) or "(nothing)"
            columns.append(textwrap.wrap(text, width, max_lines=lines, placeholder=" ..."))
        out += [f"  {a:{width}} | {b}".rstrip() for a, b in zip_longest(*columns, fillvalue="")]
    return "\n".join([*out, "  One sample of each, at temperature 1: much of this is chance."])


def count(n: float) -> str:
    """A number of parameters: 8.03B, 135M, 66K."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= unit:
            value = n / unit
            return f"{value:.2f}{letter}" if value < 10 else f"{value:.0f}{letter}"
    return f"{n:.0f}"


def movers(live: Live, count: int = 3) -> list[str]:
    """What a sample of the panel says, a line a readout: the topics that have moved most since the first sample, by how
    far the interval is from 0."""
    lines = []
    if live.lead:
        yes, no = live.leads
        covered = {t: e for t, e in live.lead.items() if live.coverage[t][1] >= LEAST_COVERAGE}
        if covered:
            lines.append(_ranked(f"lead at step {live.step}, p({yes}) - p({no}): ", covered, 1.0, count))
        elif any(math.isfinite(e.mean) for e in live.lead.values()):
            most = max(now for _, now in live.coverage.values())
            lines.append(
                f"lead at step {live.step}: at most {most:.0%} of answers begin with {yes} or {no}, so nothing is said"
            )
    if live.text:
        lines.append(_ranked(f"text at step {live.step}, nats per 100 bytes: ", live.text, 100.0, count))
    known = [e for e in (*live.lead.values(), *live.text.values()) if math.isfinite(e.mean)]
    return lines if known else [f"panel at step {live.step}: no finite score, so nothing is known"]


def _ranked(line: str, shifts: dict[str, Estimate], scale: float, count: int) -> str:
    known = {topic: e for topic, e in shifts.items() if math.isfinite(e.mean)}
    ranked = sorted(known.items(), key=lambda item: -max(item[1].low, -item[1].high))
    shown = [
        f"{topic} {e.mean * scale:+.2f} [{e.low * scale:+.2f}, {e.high * scale:+.2f}]" for topic, e in ranked[:count]
    ]
    line += shown[0] if shown else "-"
    for text in shown[1:]:
        if len(line) + len(text) + 2 <= WIDTH - 8:  # it is indented
            line += f", {text}"
    return line


def plan(t: Trainer) -> str:
    """What is about to happen, in a few lines."""
    r, c = t.recipe, t.weights.config
    replicas = f" ({r.parallel.replicate} replicas)" if r.parallel.replicate > 1 else ""
    where = f"{t.world.size} x {t.world.device.type}{replicas}"
    dtype = str(t.dtype).removeprefix("torch.")
    lines = [
        f"model   {r.model.source}",
        f"        {c.model_type}, {count(c.num_parameters)} parameters, {dtype} on {where}",
        *_labelled("data", t.store.summary()),
        f"train   {t.objective.name}, {t.total_steps} steps of {r.batch.examples} {t.objective.unit} "
        f"({t.total_steps / t.loader.steps_per_epoch:.2f} epochs), lr {r.optimizer.lr:g} {r.optimizer.schedule}",
    ]
    if t.before is not None:
        first, names = t.before.step, t.before.names
        steps = f"steps {first + 1} to {first + t.total_steps}"
        lines.append(f"stage   {len(names) + 1}, after {', '.join(names)}: {steps} of their history")
    if t.rollouts is not None:
        roll, kl = r.rollout, getattr(r.objective, t.rollouts.rule.kl)
        weights = "gathered for decoding" if t.rollouts.sampler.gathers else "sharded, gathered layer by layer"
        penalty = f"KL {kl:g}" if kl else "no KL penalty"
        lines += [
            f"rollout {roll.samples} x {roll.max_new_tokens} tokens a prompt at T = {roll.temperature:g}; "
            f"passes x updates: {t.rollouts.passes} x {t.rollouts.updates_a_pass}",
            f"        weights {weights}",
            f"reward  {r.reward.source or 'a function'}, {penalty}",
        ]
    if t.probes is not None:
        p, s = t.probes, t.probes.schedule
        steps = ", ".join(map(str, s.steps if len(s.steps) <= 12 else (*s.steps[:8], "...", s.steps[-1])))
        steps += ", the first and last with controls" * r.probes.controls
        lines += [
            f"probes  {p.panel_packs.panel.name}: {len(p.panel_packs.panel.probes)} probes, "
            f"{', '.join(r.probes.readouts)}; {p.num_tokens:,} tokens a sample",
            f"        {len(s.steps)} samples, at steps {steps}",
            f"        estimated cost {s.cost:.1%} of the training FLOPs"
            + (" (the first and last sample alone are above probes.budget)" if p.over_budget else ""),
        ]
        if p.answers is not None:
            lines += _labelled("answers", p.answers.plan.summary(p.answers_cost))
    else:
        lines.append("probes  off")
    if t.capability is not None:
        lines += _labelled("tasks", summary(t.capability.packs, t.capability.schedule))
    if expected := expect(t):
        lines.append(f"time    {expected}")
    lines.append(f"folder  {t.folder}")
    if t.resumed_at:
        done = t.resumed_at == t.total_steps
        lines.append(
            f"        all {t.total_steps} steps are done already: nothing is left to train"
            if done
            else f"        resuming at step {t.resumed_at}"
        )
    lines += [f"        {note}" for note in t.notes]
    return "\n".join(lines)


def checked(check: Check) -> str:
    """What a check of the tasks says, on one line: each task's first metric, and its change since the first check."""
    parts: list[str] = []
    line = f"tasks at step {check.step}: "
    seen: set[str] = set()
    for (task, metric), now in check.accuracies.items():
        if task in seen or not math.isfinite(now.value):
            continue
        seen.add(task)
        text = f"{printable(task)[:30]} {metric} {now.value:.3f} +- {now.stderr:.3f}"
        if (moved := check.changes.get((task, metric))) is not None:
            text += f" ({moved.mean:+.3f} [{moved.low:+.3f}, {moved.high:+.3f}])"
        if not parts or len(line + ", ".join([*parts, text])) <= WIDTH - 8:  # it is indented
            parts.append(text)
    return line + (", ".join(parts) or "no finite score, so nothing is known")


def _labelled(label: str, text: str) -> list[str]:
    first, *rest = text.splitlines()
    return [f"{label:8}{first}", *(f"        {line}" for line in rest)]
