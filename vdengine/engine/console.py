"""What a person sees: the plan before the run, a line per logged step, and a last screen."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

from vdengine.drift.intervals import Estimate
from vdengine.drift.live import Live
from vdengine.drift.summary import drift_table
from vdengine.engine.anchors import Anchors
from vdengine.engine.trainer import Trainer
from vdengine.objectives import Objective
from vdengine.runfolder import RunFolder


class Console:
    """Prints on rank 0 only, and keeps a copy in `log.txt`. A progress bar where there is a terminal."""

    def __init__(self, trainer: Trainer, stream: TextIO | None = None) -> None:
        self.trainer, trainer.on_row = trainer, self.row
        self.main, self.shown = trainer.world.is_main, 0  # step of the last sample shown; the first one shows nothing
        self.stream = stream or sys.stdout
        self.file = open(RunFolder(trainer.folder).console, "a") if self.main else None
        self.bar = tqdm(
            total=trainer.total_steps,
            initial=trainer.step_count,
            unit="step",
            file=self.stream,
            dynamic_ncols=True,
            disable=not (self.main and self.stream.isatty()),
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {remaining}",
        )

    def say(self, text: str) -> None:
        if self.file is None:
            return
        self.file.write(text + "\n")
        self.file.flush()
        if self.bar.disable:
            print(text, file=self.stream, flush=True)
        else:
            self.bar.write(text, file=self.stream)

    def row(self, row: dict[str, Any], warning: str) -> None:
        """A logged step, when the trainer has written it: on CUDA a step late."""
        self.say(step_line(row, self.bar.total, self.trainer.objective))
        if warning:
            self.say(warning)
        probes = self.trainer.probes
        if probes is not None and probes.latest is not None and probes.latest.step > self.shown:
            self.shown = probes.latest.step
            self.say(f"        {movers(probes.latest)}")

    def step(self) -> None:
        """After every step."""
        if self.trainer.probes is not None and self.trainer.probes.note:
            self.say(f"        {self.trainer.probes.note}")
        self.bar.update()

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
        self.say(f"\nDone in {seconds:.0f} s. Everything is in {t.folder}/")
        files = RunFolder(t.folder)
        kept = {
            files.metrics: "a line per step",
            files.completions: "some of what was sampled, with its scores",
            files.drift: "raw probe scores",
            files.checkpoints: "to resume from",
        }
        if t.recipe.checkpoint.export:
            kind = "reward model, for sequence classification" if t.objective.head == "scalar" else "model"
            kept[files.export] = f"the trained {kind}, a Hugging Face folder"
        for path, what in kept.items():
            if path.exists():
                self.say(f"  {path.name + '/' * path.is_dir():18} {what}")
        if t.probes is not None:
            judged = f"vdengine judge {t.folder}, then " if t.probes.answers is not None else ""
            self.say(f"To look at the drift: {judged}vdengine report {t.folder}")

    def close(self) -> None:
        self.bar.close()
        if self.file is not None:
            self.file.close()


def step_line(row: dict[str, Any], total: int, objective: Objective) -> str:
    """One logged step on one line."""
    parts = [f"step {row['step']:>{len(str(total))}}/{total}", f"loss {row['loss']:.4f}"]
    parts += [f"{label} {row[metric]:{form}}" for label, metric, form in objective.shown if metric in row]
    parts += [
        f"grad {row['grad_norm']:.2f}",
        f"lr {row['learning_rate']:.1e}",
        f"{row['step_seconds']:.2f} s",
        f"{row['tokens_per_second']:,.0f} tok/s",
    ]
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    parts.append(f"{row['memory_bytes'] / 2**30:.1f} GiB")
    if row["probe_seconds"]:
        parts.append(f"probes {row['probe_seconds']:.2f} s")
    if "answers_seconds" in row:
        parts.append(f"answers {row['answers_seconds']:.1f} s")
    if "answers/kl" in row:
        parts.append(f"weights {'hold' if row['answers/open'] else 'do not reach'} (KL {row['answers/kl']:.2f})")
    if "rollout_seconds" in row:
        parts.append(
            " + ".join(f"{name} {row[f'{name}_seconds']:.1f}" for name in ("rollout", "score", "train")) + " s"
        )
    return " | ".join(parts)


def movers(live: Live, count: int = 3) -> str:
    """The topics whose openings have moved most since the first sample, by how far the interval is from 0."""

    def sure(e: Estimate) -> float:
        return max(e.low, -e.high)

    ranked = sorted(live.stance.items(), key=lambda item: -sure(item[1]))
    shown = [f"{topic} {e.mean * 100:+.2f} [{e.low * 100:+.2f}, {e.high * 100:+.2f}]" for topic, e in ranked[:count]]
    return f"openings at step {live.step}, nats per 100 bytes: {', '.join(shown)}"


def plan(t: Trainer) -> str:
    """What is about to happen, in a few lines."""
    r, c = t.recipe, t.weights.config
    replicas = f" ({r.parallel.replicate} replicas)" if r.parallel.replicate > 1 else ""
    where = f"{t.world.size} x {t.world.device.type}{replicas}"
    dtype = str(t.dtype).removeprefix("torch.")
    lines = [
        f"model   {r.model.source}",
        f"        {c.model_type}, {c.num_parameters / 1e6:,.0f}M parameters, {dtype} on {where}",
        *_labelled("data", t.store.summary()),
        f"train   {t.objective.name}, {t.total_steps} steps of {r.batch.examples} {t.objective.unit} "
        f"({t.total_steps / t.loader.steps_per_epoch:.2f} epochs), lr {r.optimizer.lr:g} {r.optimizer.schedule}",
    ]
    if t.ppo is not None:
        o, roll = r.objective, r.rollout
        weights = "gathered for decoding" if t.ppo.sampler.gathers else "sharded, gathered layer by layer"
        penalty = f"KL {o.kl_coef:g} ({o.kl_estimator})" if o.kl_coef else "no KL penalty"
        lines += [
            f"rollout {roll.samples} x {roll.max_new_tokens} tokens a prompt at T = {roll.temperature:g}; "
            f"{o.num_ppo_epochs} epochs x {o.num_mini_batches} minibatches",
            f"        weights {weights}",
            f"reward  {r.reward.source or 'a function'}, {penalty}",
        ]
    if t.probes is not None:
        p, s = t.probes, t.probes.schedule
        steps = ", ".join(map(str, s.steps if len(s.steps) <= 12 else (*s.steps[:8], "...", s.steps[-1])))
        steps += ", the first and last with controls" * r.probes.controls
        lines += [
            f"probes  {p.openings.panel.name}: {len(p.openings.panel.probes)} probes, {p.num_openings} "
            f"openings, {p.num_tokens:,} tokens a sample",
            f"        {len(s.steps)} samples, at steps {steps}",
            f"        estimated cost {s.cost:.1%} of the training FLOPs"
            + (" (the first and last sample alone are above probes.budget)" if p.over_budget else ""),
        ]
        if p.answers is not None:
            lines += _answers_plan(p.answers, p.answers_cost)
    else:
        lines.append("probes  off")
    lines.append(f"folder  {t.folder}")
    if t.resumed_at:
        lines.append(f"        resuming at step {t.resumed_at}")
    return "\n".join(lines)


def _answers_plan(a: Anchors, cost: float) -> list[str]:
    s, sure = a.settings, ", ".join(map(str, a.scheduled))
    more = a.max_anchors - len(a.scheduled)
    asked = f", and at up to {more} more where the weights or the openings ask for it" if more else ""
    return [
        f"answers {s.samples} to each of {len(a.prompts)} probes ({a.base} at the start), up to {s.max_tokens} tokens, "
        f"at steps {sure}{asked}",
        f"        at most {a.most_answers * s.max_tokens:,} tokens to generate and {a.most_answers:,} answers to judge",
        f"        at most {cost:.1%} of the training FLOPs",
    ]


def _labelled(label: str, text: str) -> list[str]:
    first, *rest = text.splitlines()
    return [f"{label:8}{first}", *(f"        {line}" for line in rest)]
