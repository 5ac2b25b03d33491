"""The trainer: one recipe, one run. `Trainer.step` is the loop's body, whole, top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vdengine import recipe as recipes
from vdengine.data.batching import Batch
from vdengine.engine import trouble
from vdengine.engine.clocks import Later, Totals, memory_bytes, peak_flops
from vdengine.engine.given import Given
from vdengine.engine.learning_rate import learning_rate
from vdengine.engine.metrics import Logged, Metrics, Sums
from vdengine.engine.optim import apply_update
from vdengine.engine.own_batch import misused, own_batch, own_probes
from vdengine.engine.parallel import grad_norm, ordered
from vdengine.engine.reference import CachedReference, GivenReference
from vdengine.engine.rollout import RewardFunction, Rollout
from vdengine.engine.row_extras import RowExtras
from vdengine.engine.setup import Setup
from vdengine.engine.stopping import Stopping
from vdengine.engine.trouble import MAX_SKIPPED, NothingLearned
from vdengine.errors import InputError
from vdengine.models.export import Base, save_adapter, save_model
from vdengine.models.head import Scores
from vdengine.objectives import Losses, Objective, Scored
from vdengine.objectives.metrics import means_of
from vdengine.panels.panel import Panel
from vdengine.trees import Pack, Tree


class Trainer(Setup):
    """A run of a recipe, on every rank of the process group (one is made if there is none).

        trainer = Trainer(recipe)
        while trainer.step_count < trainer.total_steps:
            metrics = trainer.step()  # a mapping, read when it is looked at
        trainer.finish()
        trainer.close()

    `step_count` is the number of steps the weights have had: one update each, or those of one rollout.

    What is in memory already is given as an object, and the recipe leaves its name out; the run folder says "in memory"
    there and keeps a hash of the contents, so that a run is taken up again with the same ones only. Several trainers
    may run in one process, one after another or in turns.

    Args:
        recipe: a `Recipe`, the path of one, or nested dictionaries as `make_recipe` takes them.
        model: the weights to start from, instead of `model.source`: a `Transformer`, or a causal language model of
            transformers, the same on every rank. They are read as a file's are: what is trained is a sharded copy in
            fp32, `trainer.model`, and the given model never changes. Nothing here keeps it after this call, so its
            memory is free once the caller lets go of it. Parameters with `requires_grad=False` stay as they are.
        tokenizer: instead of `model.tokenizer`: ours, or a fast one of transformers. A given model needs one.
        data: rows instead of `data.train`: dictionaries in any of the data formats, `Tree`s of token ids, or a
            `datasets.Dataset`; the same on every rank. Without rows every step is given its own (`step`).
        eval_data: the same instead of `data.eval`.
        objective: one's own. The recipe's [objective] may name it, or leave the name out.
        reward: of a rollout, instead of `reward.source`: (prompts, completions) as text, of this rank -> scores.
        panel: instead of `probes.panel`.

    Attributes:
        probe_logp: of the last step, [P] fp32 on the device: log-probs of the scored tokens of the packs that it was
            given as `probes`, one after another; None if it had none.

    Raises:
        InputError: anything wrong with what is named or given, before the first step; something that is both.
    """

    def __init__(
        self,
        recipe: recipes.Recipe | str | Path | Mapping[str, Any],
        *,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        data: Iterable[Any] | None = None,
        eval_data: Iterable[Any] | None = None,
        objective: Objective | None = None,
        reward: RewardFunction | None = None,
        panel: Panel | None = None,
    ) -> None:
        super().__init__(recipe, Given(model, tokenizer, data, eval_data, panel, reward), objective)
        self._start_clock()

    def _start_clock(self) -> None:
        self.probe_logp: Tensor | None = None
        self._unlogged: list[tuple[int, Tensor, Tensor]] = []  # step, tree ids and losses of packs not yet logged
        self._since_log = Totals()
        self.lag = self.world.device.type == "cuda"  # a row is written a step after its own
        self._waiting: Logged | None = None  # the last logged step, where it is not yet written
        self.stopping = Stopping(self.world.device, self.lag)
        self._memory_for = partial(trouble.memory_for, recipe=self.recipe, store=self.store, world=self.world)
        self.on_pack: Callable[[int, int], None] = lambda done, total: None  # told of each pack of a step
        self.on_row: Callable[[dict[str, Any], str], None] = lambda row, warning: None  # told of each row when written
        self.warning = ""  # the last one

    # -------------------------------------------------------------------------------------------------- step

    def step(
        self,
        batch: Sequence[Tree] | Pack | None = None,
        probes: Pack | Sequence[Pack] | None = None,
        reference: Tensor | None = None,
    ) -> Metrics:
        """One optimizer step, or a rollout and all updates on it. Its metrics where `log.every` (or the last
        step) asks for them, else empty. The host does not wait for the device: a row is read when it is looked at, and
        on CUDA it is written a step later, when it is there.

        Args:
            batch: this rank's rows instead of those of the data, which do not come another time: trees, which are laid
                out in packs of `batch.tokens`, or one pack. It is given on every rank or on none; a rank without rows
                gives []. Counts are summed over ranks, so a step is the same however its rows are spread. Their margin
                is 1. A run that is taken up again must be given the same ones.
            probes: packs of this rank to score with the weights before the update, beside the schedule's own and in the
                same forward; training does not depend on them. See `probe_logp`.
            reference: [branches of the batch] fp32, nats: their log-prob sums by the reference model, in the order of
                the batch, where objective.reference is "cached". It is cached by rows of the data, and has none of
                these.

        Raises:
            InputError: all planned steps are done; no data and no batch; a batch that does not fit objective, model or
                `batch.tokens`; reference sums that are needed, or not. The weights have not moved.
        """
        k, r, w, device = self.step_count, self.recipe, self.world, self.world.device
        self._abandon()
        given, extras, own_packs = self._given(batch, probes, reference)
        self.step_clock.__enter__()
        if self.probes:
            self.probes.anchor(self.model, k)
        rollout, batches, extra = self._work(k, given)
        extras = self._with_kl(extras, k)
        logged: list[tuple[Sums, Tensor]] = []

        for update in batches:
            denominator = self._denominator(update)
            sampling = not logged  # theta_k is theta before the step's first update
            riders = self.readings.begin(k, len(update.packs)) if sampling else [[] for _ in update.packs]
            sums = Sums({"": denominator, "entropy": update.num_scored})

            # Under FSDP every forward and backward is a collective: all ranks run the same number, rows or no rows.
            for number, (share, rider) in enumerate(zip(update.packs, riders, strict=True), 1):
                pack, counts = (self.idle, 0.0) if share is None else (share, 1.0)
                pack = pack.to(device, non_blocking=True)
                scheduled = self.readings.packs(rider)
                with self._memory_for(k, pack, scheduled):
                    scores = self.model(pack, [*scheduled, *own_packs], entropy=True, dropout=(r.run.seed, k))
                    losses, metrics = self._losses(pack, scores, extras, rollout, update)
                    with ordered(self.recipe.run.deterministic):
                        (losses.sum() * (counts / denominator)).backward()  # global, known before the first forward
                if own_packs and scores.probe_logp is not None:
                    self.probe_logp = scores.probe_logp[sum(p.num_scored for p in scheduled) :]
                    own_packs = []  # with the weights before the first update
                self.readings.collect(rider, scores.probe_logp)
                if scores.entropy is not None:
                    metrics = {**metrics, "entropy": scores.entropy.detach()}
                sums.add({**metrics, "loss": losses.detach()}, counts)
                if share is not None:
                    self._unlogged.append((k, share.tree_ids, losses.detach()))  # of own batches: `Tree.id`
                self.on_pack(number, len(update.packs))
            if sampling:
                self.readings.end()

            # One small all-reduce, so that every rank skips, or does not skip, the same update.
            own, asked = sums.tensor(), self.stopping.flags(self.saver.failed)
            totals = torch.cat([own, asked])
            if w.size > 1:
                dist.all_reduce(totals)
            totals, asked = totals.split([len(own), len(asked)])
            norms = [grad_norm(t.parameters) for t in self.trained]
            finite = torch.isfinite(sum(norms, totals.sum()))
            self._skips = self._skips.after(finite, k)
            self.saver.staged()  # a checkpoint's copy of the weights is made before they move
            if k == 0 and not logged and not isinstance(extras.reference, GivenReference):  # that may be any model's
                first = sums.means(totals.tolist())
                trouble.check_start(self.recipe, first, self.dtype, referred=self.reference is not None)
            for t, norm in zip(self.trained, norms, strict=True):
                lr = learning_rate(self.recipe.optimizer, k, self.total_steps, t.lr)
                apply_update(t.optimizer, lr, norm, (~finite).float(), self.recipe.optimizer.clip)
            logged.append((sums, torch.cat([totals, torch.stack(norms)])))
            self._since_log.flops += self.recipe.forwards * update.cost

        self.step_clock.__exit__()
        self.stopping.agree(asked)
        seen = [update] if rollout is None else rollout.batches
        num_tokens, num_scored = sum(b.num_tokens for b in seen), sum(b.num_scored for b in seen)
        self.step_count += 1
        self.own_batches += given is not None
        self.tokens_seen += num_tokens
        phases = (self.rollouts.seconds if self.rollouts else {}) | (self.probes.seconds if self.probes else {})
        self._since_log.add(num_tokens, num_scored, phases)
        self._settle()  # the step that was logged last; the device has long been done with it
        if self.step_count % self.recipe.log.every and self.step_count != self.total_steps:
            return Metrics()
        extra |= {"learning_rate": learning_rate(self.recipe.optimizer, k, self.total_steps)}
        extra |= {"tokens": num_tokens, "scored_tokens": num_scored, "micro_steps": len(update.packs)}
        self._waiting = row = self._log(logged, extra)
        if not self.lag or self.step_count == self.total_steps:  # all is there, or nothing comes that it could hold up
            self._settle()
        return row.metrics

    def _abandon(self) -> None:
        """Forget what is left of a step that ended with an error: it is taken again from its beginning."""
        for t in self.trained:
            t.optimizer.zero_grad(set_to_none=True)
        self._unlogged = [pack for pack in self._unlogged if pack[0] < self.step_count]
        self.readings.abandon()
        if self.probes is not None:
            self.probes.abandon()
        if self.capability is not None:
            self.capability.abandon()

    def _given(
        self,
        batch: Sequence[Tree] | Pack | None,
        probes: Pack | Sequence[Pack] | None,
        reference: Tensor | None,
    ) -> tuple[Batch | None, RowExtras, list[Pack]]:
        """What a step is given, checked: the batch of all ranks with what its rows bring, and this rank's packs to
        score, on the device. A collective if there is a batch."""
        if self.step_count >= self.total_steps:
            raise InputError(
                f"{self.folder}: all {self.total_steps} planned steps are done; a longer run has another schedule: "
                "start it with more run.steps (or run.epochs) and a new run.folder"
            )
        cached = isinstance(self.reference, CachedReference)
        problem = misused(batch, reference, objective=self.objective, has_data=self.has_data, cached=cached)
        packs: list[Pack] = []
        try:
            packs = own_probes(probes, self.weights.config.vocab_size)
            if packs and self.objective.head == "scalar":
                raise InputError("step: probes have no effect with a reward model, which has no log-probs")
        except InputError as error:
            problem = problem or str(error)
        if problem and batch is None and self.has_data:
            raise InputError(problem)  # the other ranks are told of nothing here; of a batch they are
        self.probe_logp = None
        packs = [pack.to(self.world.device) for pack in packs]
        if batch is None and not problem:
            return None, self.train_extras, packs
        made, sums = own_batch(
            batch or [],
            self.world,
            branches=self.objective.branches,
            vocab_size=self.weights.config.vocab_size,
            budget=self.recipe.batch.tokens,
            flops=self.flops,
            reference=reference,
            problem=problem,
        )
        extras = dataclasses.replace(self.own_extras, reference=GivenReference(sums)) if cached else self.own_extras
        return made, extras, packs

    def _work(self, k: int, given: Batch | None) -> tuple[Rollout | None, Iterable[Batch], dict[str, float]]:
        """The batches of step k, one update each, and what is known before them."""
        if given is not None:
            return None, [given], {}
        if self.rollouts is None:
            return None, [self.loader.batch(k, self.world.size, self.world.rank, self.recipe.batch.tokens)], {}
        rollout, metrics = self.rollouts.rollout(self.model, k)
        return rollout, self.rollouts.updates(rollout, k), metrics

    def _with_kl(self, extras: RowExtras, k: int | None) -> RowExtras:
        """With the KL of step k's rows, or of the held-out ones, where the objective reads it. A collective."""
        kl = self.batch_kl if k is not None else self.eval_kl
        return extras if kl is None else dataclasses.replace(extras, batch_kl=kl(self.model, k or 0))

    def _denominator(self, batch: Batch) -> int:
        """What a batch's losses are divided by, over all ranks: its examples, its scored tokens, or nothing."""
        return {"example": batch.num_examples, "token": batch.num_scored, "sum": 1}[self.objective.per]

    def _log(self, logged: list[tuple[Sums, Tensor]], extra: dict[str, Any]) -> Logged:
        """A row of metrics, to be read later: its numbers leave the device now. Rates are since the last logged one."""
        since, self._since_log = self._since_log, Totals()
        packs, self._unlogged = self._unlogged, []
        fine = [torch.isfinite(losses).all() for _, _, losses in packs]
        totals = Later(torch.cat([numbers for _, numbers in logged]))
        skipped, whole = Later(self._skips.counts), Later(torch.stack(fine) if fine else self._skips.counts[:0])
        self._skips = self._skips.logged()
        step, step_seconds, probe_seconds = self.step_count, self.step_clock.cut(), self.probe_clock.cut()
        row: dict[str, Any] = {"step": step}
        if self.has_data:
            row["epoch"] = step / self.loader.steps_per_epoch
        known = {"num_tokens": self.tokens_seen, "memory_bytes": memory_bytes(self.world.device)}

        def read() -> dict[str, Any]:
            seconds = step_seconds()
            row.update(self._means(logged, totals.get().tolist()) | extra)
            row.update(
                {
                    "step_seconds": seconds / since.steps,
                    "probe_seconds": probe_seconds() / since.steps,
                    "tokens_per_second": since.tokens / seconds,
                    "scored_tokens_per_second": since.scored / seconds,
                }
                | known
            )
            if since.phases:  # a rollout's, and answers; what is left of a step is training
                row.update({f"{name}_seconds": s / since.steps for name, s in since.phases.items()})
                row["train_seconds"] = (seconds - sum(since.phases.values())) / since.steps
            if peak := peak_flops(self.world.device):
                row["mfu"] = since.flops / seconds / self.world.size / peak
            row["skipped_updates"] = int(skipped.get()[1])
            return row | self._report_probes(step)

        return Logged(Metrics(read), skipped, whole, [(k, ids) for k, ids, _ in packs])

    def _means(self, logged: list[tuple[Sums, Tensor]], totals: list[float]) -> dict[str, float]:
        """Global means of a step's metrics, over its updates. `totals`: of all updates, one after another."""
        rows, first = [], 0
        for sums, numbers in logged:
            values = totals[first : first + len(numbers)]
            first += len(numbers)
            norms = zip(self.trained, values[len(values) - len(self.trained) :], strict=True)
            rows.append(sums.means(values) | {f"{t.prefix}grad_norm": norm for t, norm in norms})
        return (self.objective.summary or means_of)(rows)

    def _settle(self) -> None:
        """Write the step that was logged last, if it is not. All ranks together: what was skipped is gathered."""
        logged, self._waiting = self._waiting, None
        if logged is None:
            return
        row = logged.metrics.row
        if self.metrics_log is not None:
            self.metrics_log.write(row)
        self.on_row(row, self._check_finite(row["step"], logged))

    def flush(self) -> None:
        """Write all that is logged or sampled so far; the host waits for the device. A collective."""
        self._abandon()
        self._settle()
        self._report_probes()

    def _report_probes(self, before: int | None = None) -> dict[str, float]:
        """Write the samples that are waiting (`before`: those of earlier steps); what metrics should say of them."""
        told: dict[str, float] = {}
        scalars: dict[int, dict[str, float]] = {}  # of trackers, by step
        if self.probes is not None:
            self.probes.flush(before)
            scalars |= {live.step: live.scalars for live in self.probes.take_live()}
            told |= self.probes.take_gate()
        if self.capability is not None:
            for check in self.capability.flush(before):
                scalars[check.step] = scalars.get(check.step, {}) | check.scalars
                told |= check.scalars
        if self.metrics_log is not None:
            for step in sorted(scalars):
                self.metrics_log.track(scalars[step], step)
        return told

    def _losses(
        self,
        pack: Pack,
        scores: Scores,
        extras: RowExtras,
        rollout: Rollout | None = None,
        update: Batch | None = None,
    ) -> Losses:
        """Losses and metrics of one pack, per example or, where the objective says so, per token."""
        sampled, compared = None, {}
        if self.rollouts is not None and rollout is not None and update is not None:
            sampled = self.rollouts.sampled(pack, rollout, update, scores.logp)
            compared = self.rollouts.metrics(pack, rollout, scores.logp)
        scored = Scored(
            pack,
            scores.logp,
            scores.values,
            reference=None if extras.reference is None else extras.reference(pack),
            row_margins=extras.row_margins,
            row_labels=extras.row_labels,
            batch_kl=extras.batch_kl,
            sampled=sampled,
        )
        losses, metrics = self.losses(scored, self.recipe.objective)
        return losses, {**metrics, **compared}

    def _check_finite(self, step: int, logged: Logged) -> str:
        """A line on the updates that were skipped before `step`: at which step, rank and rows; "" if there are none.

        Raises:
            InputError: too many in a row; the run would only burn time.
        """
        in_a_row, skipped, proven = (int(n) for n in logged.skipped.get().tolist())
        if not skipped:
            return ""
        bad = [
            f"step {k + 1}, rank {self.world.rank}: {self._rows(k, ids)}"
            for (k, ids), finite in zip(logged.packs, logged.finite.get().tolist(), strict=True)
            if not finite
        ]
        where: list[Any] = [None] * self.world.size
        dist.all_gather_object(where, bad)
        places = "; ".join(sorted({b for part in where for b in part})) or "the losses are finite, the norm is not"
        updates = "1 update" if skipped == 1 else f"{skipped} updates"
        self.warning = f"step {step}: {updates} skipped, not finite ({places})"
        if in_a_row >= MAX_SKIPPED:
            raise NothingLearned(f"{self.warning}; {trouble.given_up(self.folder, in_a_row, proven)}")
        return self.warning

    def _rows(self, k: int, tree_ids: Tensor) -> str:
        """The rows of a pack, for messages. A rollout's trees are numbered by their place in the step."""
        ids = (tree_ids if self.rollouts is None else torch.from_numpy(self.loader.rows(k))[tree_ids.cpu()]).tolist()
        return trouble.row_names(self.store, ids)

    def _check_learned(self) -> None:
        """The end of a run must be a good one. A collective.

        Raises:
            NothingLearned: it is none (`trouble.spoilt`).
        """
        in_a_row, _, proven = (int(n) for n in self._skips.counts.tolist())
        idle, ordered = self.idle.to(self.world.device), self.recipe.run.deterministic
        if trouble.spoilt(self.trained, idle, in_a_row, proven, self.total_steps, ordered):
            self.save()
            self.saver.wait()
            given_up = trouble.given_up(self.folder, in_a_row, proven)
            raise NothingLearned(f"step {self.step_count}: {given_up}; nothing is exported")

    # ------------------------------------------------------------------------------------- between the steps

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Loss and metrics on the held-out examples, under `eval/`; {} if there are none."""
        w, loader = self.world, self.loader
        self.flush()
        if not len(loader.eval_rows):
            return {}
        rows, extras = loader.eval_rows, self._with_kl(self.eval_extras, None)
        count = {"example": len(rows), "token": int(loader.eval_store.num_scored[rows].sum()), "sum": 1}
        sums = Sums({"": count[self.objective.per]})
        for share in loader.eval_packs(w.size, w.rank, self.recipe.batch.tokens):
            pack, counts = (self.idle, 0.0) if share is None else (share, 1.0)
            pack = pack.to(w.device)
            losses, metrics = self._losses(pack, self.model(pack), extras)
            sums.add({**metrics, "loss": losses}, counts)
        totals = sums.tensor()
        if w.size > 1:
            dist.all_reduce(totals)
        means = sums.means(totals.tolist())
        return {f"eval/{name}": value for name, value in (self.objective.summary or means_of)([means]).items()}

    def save(self) -> Path:
        """Begin a checkpoint of this step, whose folder is returned; the logs are written up to it. The next steps go
        on meanwhile. `close`, `finish` and the next save wait until it is complete. A collective.

        Raises:
            InputError: there is no room for it, or the one before could not be written.
        """
        self.flush()
        if self.metrics_log is not None:
            self.metrics_log.flush()
        logs = {} if self.metrics_log is None else self.metrics_log.bytes_before(self.step_count)
        for part in (self.probes, self.capability):
            logs |= {} if part is None else part.bytes_before(self.step_count)
        numbers = self._numbers()
        return self.saver.save(self.step_count, self.trained, numbers, logs, proven=int(numbers["proven_step"]))

    def finish(self) -> None:
        """The last probe sample (theta after the last update), the last checkpoint, and the export. A collective.

        Raises:
            InputError: nothing was learned, so nothing is exported; no room.
        """
        self.flush()
        self._check_learned()
        self.readings.sample(self.model, self.step_count)
        if self.probes:
            self.probes.anchor(self.model, self.step_count)
        self.save()
        self.saver.wait()
        if self.recipe.checkpoint.export and self.lora is not None:
            base = Base(self.recipe.model.source, self.weights.base_hash)
            save_adapter(self.model, self.tokenizer, self.files.export, base, renderer=self.renderer)
        elif self.recipe.checkpoint.export:
            save_model(self.model, self.tokenizer, self.files.export, renderer=self.renderer)

    def close(self) -> None:
        """Wait for the last checkpoint, and release the folder, the loader's thread, the logs and, after the last
        trainer of those that share it, the process group that they started. In the middle of a run a row that is not
        yet written is lost, as after a crash (a resumed run writes it again): `flush` first.

        Raises:
            InputError: the last checkpoint could not be written.
        """
        with contextlib.ExitStack() as stack:  # each of them, whatever becomes of the others; the last one first
            for part in (self.world, self.lock, self.metrics_log, self.loader, self.saver):
                if part is not None:
                    stack.callback(part.close)
