"""The trainer: one recipe, one run. `Trainer.step` is the loop's body, whole, top to bottom."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vdengine import objectives
from vdengine import recipe as recipes
from vdengine.data.batching import Batch
from vdengine.data.loader import Loader
from vdengine.data.store import Store, build_store
from vdengine.engine import checkpoint
from vdengine.engine.checkpoint import Trained
from vdengine.engine.clocks import Later, SectionClock, Totals, memory_bytes, peak_flops
from vdengine.engine.metrics import Metrics, MetricsLog
from vdengine.engine.optim import apply_update, learning_rate, make_optimizer
from vdengine.engine.parallel import World, grad_norm, main_first, ordered, shard_model, start_world
from vdengine.engine.ppo import PPO, RewardFunction, Rollout, pattern_reward
from vdengine.engine.probes import Probes
from vdengine.engine.reference import CachedReference, LiveReference, Margins, cache_reference
from vdengine.engine.rollouts import Sampler
from vdengine.errors import InputError
from vdengine.files import read_json, write_text
from vdengine.kernels._triton import INTERPRETED, resolve
from vdengine.kernels.preference import preference_loss
from vdengine.models.attention import flash_attn_problem
from vdengine.models.device import compute_dtype
from vdengine.models.export import check_replaceable, save_model
from vdengine.models.head import Scores
from vdengine.models.transformer import Kernels, Transformer
from vdengine.models.weights import ScalarWeights, Weights, check_vocabulary, load_into, open_causal, open_weights
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer
from vdengine.trees import Pack, Tree, pack

_RUNS_ON = {"triton": "cuda", "flash": "cuda", "varlen": "cuda", "native": "cpu"}
MAX_SKIPPED = 20  # consecutive updates skipped as not finite before the run gives up


@dataclasses.dataclass(frozen=True, eq=False)
class Logged:
    """A logged step whose numbers are on their way from the device."""

    metrics: Metrics
    skipped: Later  # [2]: updates skipped in a row, and since the last logged step
    finite: Later  # [packs]: whether the losses of each were
    packs: list[tuple[int, Tensor]]  # step and tree ids of each


def open_store(r: recipes.Recipe, paths: list[str], renderer: Renderer, progress: bool) -> Store:
    """The rows of `paths` as the recipe's objective reads them."""
    kind = {"sft": "sft", "ppo": "prompts"}.get(r.objective.name, "preference")
    room = r.rollout.max_new_tokens if kind == "prompts" else 0  # for what follows a prompt
    return build_store(
        paths, r.data.format, kind, renderer, max_tokens=r.data.max_tokens - room, overlong=r.data.overlong,
        cache=r.data.cache, progress=progress,
    )  # fmt: skip


class Trainer:
    """A run of a recipe, on every rank of the process group (one is made if there is none).

        trainer = Trainer(recipe)
        while trainer.step_count < trainer.total_steps:
            metrics = trainer.step()  # a mapping, read when it is looked at
        trainer.finish()

    `step_count` is the number of steps the weights have had: one update each, with PPO those of one rollout.

    Args:
        reward: PPO's, instead of the recipe's `reward.source`: (prompts, completions) as text, of this rank -> scores.

    Raises:
        InputError: anything wrong with the recipe's files, before the first step.
    """

    def __init__(self, recipe: recipes.Recipe, reward: RewardFunction | None = None) -> None:
        self.recipe = recipe = recipes.check(recipe)
        self.world: World = start_world(recipe.parallel, recipe.run.deterministic)
        self.folder = Path(recipe.run.folder)
        torch.manual_seed(recipe.run.seed)
        try:
            self._check_folder()
            self._check_kernels()
            self._open_weights()
            self._open_sources(reward)  # before the data: tokenising may take long
            self._open_data()
            self._check_inputs()
            self._open_model()
            self._open_sampler()
            self._open_ppo()
            self._open_probes()
            self._open_run()
            self._open_reference()
        except BaseException:
            self.world.close()
            raise
        self._start_clock()

    # ------------------------------------------------------------------------------------------------ set-up

    def _check_folder(self) -> None:
        """A run folder may be taken up again only by a recipe that gives the same numbers."""
        r, saved = self.recipe, self.folder / "recipe.toml"
        if r.checkpoint.export:
            check_replaceable(self.folder / "export")
        if not saved.exists():
            return
        if not r.run.resume:
            raise InputError(f"{self.folder}: exists already; give run.folder a new name or set run.resume = true")
        if changed := recipes.differences(recipes.load_recipe(saved), r):
            raise InputError(f"{self.folder}: cannot resume, the recipe differs: {'; '.join(changed)}")

    def _check_kernels(self) -> None:
        """Backends that cannot run here are said before data is tokenised."""
        device, parts = self.world.device, dataclasses.asdict(self.recipe.kernels)
        if parts["attention"] == "flash" and (problem := flash_attn_problem()) is not None:
            raise InputError(f"kernels.attention = 'flash': {problem}")
        for name, backend in parts.items():
            where = _RUNS_ON.get(backend, device.type)
            if where != device.type and not (backend == "triton" and INTERPRETED):
                raise InputError(f"kernels.{name} = {backend!r} runs on {where}; this run is on {device.type}")
        preference = parts.pop("preference")
        self.fused_preference = resolve("kernels.preference", preference, device) == "triton"
        self.kernels = Kernels(**parts)

    def _open_weights(self) -> None:
        r = self.recipe
        self.weights = open_weights(r.model.source) if r.objective.name == "reward" else open_causal(r.model.source)
        if r.objective.name == "reward" and self.weights.config.head == "causal":
            self.weights = ScalarWeights(self.weights, r.run.seed)
        self.tokenizer = load_tokenizer(r.model.tokenizer or r.model.source)
        check_vocabulary(self.weights.config, self.tokenizer)

    def _open_sources(self, reward: RewardFunction | None) -> None:
        """PPO's reward, and the weights its value model starts from."""
        r = self.recipe
        self.reward: RewardFunction | None = reward
        self.reward_weights: Weights | None = None
        self.value_weights: Weights | None = None
        if r.objective.name != "ppo":
            if reward is not None:
                raise InputError(f'a reward function has no effect with objective.name = "{r.objective.name}"')
            return
        source = r.reward.source
        if (reward is None) == (not source):
            raise InputError("ppo needs one reward: reward.source in the recipe, or a function given to the Trainer")
        if source.startswith("regex:"):
            self.reward = pattern_reward(source.removeprefix("regex:"))
        elif source:
            self.reward_weights = self._open_scalar("reward.source", source)
        if r.value.source:
            self.value_weights = self._open_scalar("value.source", r.value.source)
        else:  # a value model starts as the reward model, or as the policy with a first guess of 0
            self.value_weights = self.reward_weights or ScalarWeights(self.weights, None)

    def _open_scalar(self, key: str, source: str) -> Weights:
        """A reward model that reads the policy's own token ids; for a value model a language model serves too."""
        try:
            weights, tokenizer = open_weights(source), load_tokenizer(source)
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
        if weights.config.head == "causal" and key == "reward.source":
            raise InputError(f"{key}: {source} is a language model; a reward model (one label) is needed")
        if tokenizer.vocabulary_hash != self.tokenizer.vocabulary_hash:
            raise InputError(
                f"{key}: {source} has another vocabulary than {self.tokenizer.source} ({tokenizer.vocab_size} and "
                f"{self.tokenizer.vocab_size} ids): it would read other words than the policy writes"
            )
        check_vocabulary(weights.config, self.tokenizer)
        return weights if weights.config.head == "scalar" else ScalarWeights(weights, None)

    def _open_data(self) -> None:
        r = self.recipe
        self.renderer = Renderer(self.tokenizer, template=r.data.template)
        with main_first(self.world):  # rank 0 tokenises, the others open what it wrote
            progress = self.world.is_main
            self.store = open_store(r, r.data.train, self.renderer, progress)
            named = r.data.eval
            held_out: Store | float = open_store(r, [named], self.renderer, progress) if named else r.data.eval_fraction
        self.flops = self.weights.config.flops
        self.loader = Loader(
            self.store,
            examples=r.batch.examples,
            seed=r.run.seed,
            weights=r.data.weights,
            evaluation=held_out,
            eval_examples=r.data.eval_examples,
            flops=self.flops,
            pin=self.world.device.type == "cuda",
        )
        if r.objective.name != "ppo":
            self.loader.check_budget(r.batch.tokens)
        self.total_steps = r.run.steps or math.ceil((r.run.epochs or 0) * self.loader.steps_per_epoch)
        # What a rank runs when a micro step has no rows for it: forwards are collectives. Its loss counts zero.
        self.idle = pack([Tree([0], [[0]] * (1 if r.objective.name in ("sft", "ppo") else 2), id=-1)])

    def _check_inputs(self) -> None:
        """A run folder may be taken up again only with the same contents of data, weights and tokenizer."""
        self.inputs = {
            "data.train": self.store.hash,
            "data.eval": self.loader.eval_store.hash,
            "model.source": self.weights.hash,
            "model.tokenizer or data.template": self.renderer.hash,
        }
        if self.reward_weights is not None:
            self.inputs["reward.source"] = self.reward_weights.hash
        if self.value_weights is not None:
            self.inputs["value.source"] = self.value_weights.hash
        if not (saved := self.folder / "inputs.json").exists():
            return
        was = read_json(saved)
        if changed := [name for name, found in self.inputs.items() if was.get(name) != found]:
            raise InputError(f"{self.folder}: cannot resume, the contents have changed: {', '.join(changed)}")

    def _open_model(self) -> None:
        r, device = self.recipe, self.world.device
        self.dtype = compute_dtype(r.model.dtype, device)
        self.model = self._new_model(self.weights, trainable=True)
        self.trained = [Trained("", self.model, make_optimizer(self.model, r.optimizer), r.optimizer.lr)]
        self.step_clock, self.probe_clock = SectionClock(device), SectionClock(device)
        self.model.time_probes(self.probe_clock)

    def _new_model(self, weights: Weights, trainable: bool) -> Transformer:
        """A sharded model with these weights, each rank reading its own rows."""
        r = self.recipe
        with torch.device("meta"):
            model = Transformer(weights.config, r.parallel.head_saved_bytes, self.kernels)
        if r.objective.name == "ppo" and weights.config.head == "causal":
            model.lm_head.temperature = r.rollout.temperature
        for block in model.blocks:
            block.self_attn.deterministic = r.run.deterministic
        shard_model(
            model, self.world, dtype=self.dtype, trainable=trainable,
            activation_checkpoint=r.parallel.activation_checkpoint if trainable else "none",
        )  # fmt: skip
        load_into(model, weights)
        return model

    def _open_sampler(self) -> None:
        """One for PPO's rollouts and for answers: both sample the policy."""
        r = self.recipe
        self.sampler: Sampler | None = None
        if self.value_weights is not None or r.answers.samples:
            self.sampler = Sampler(
                self.world, self.dtype, self.weights.config.num_parameters, weights=r.rollout.weights,
                slots=r.rollout.slots,
            )  # fmt: skip

    def _open_ppo(self) -> None:
        self.ppo: PPO | None = None
        r = self.recipe
        if self.value_weights is None or self.sampler is None:
            return
        critic = self._new_model(self.value_weights, trainable=True)
        lr = r.optimizer.lr if r.value.lr is None else r.value.lr
        self.trained.append(Trained("value/", critic, make_optimizer(critic, r.optimizer), lr))
        live = r.objective.reference == "live"
        frozen = None if self.reward_weights is None else self._new_model(self.reward_weights, trainable=False)
        reward = self.reward or frozen
        if reward is None:
            raise RuntimeError("_open_sources sees to it that there is a reward")
        self.ppo = PPO(
            r, self.world, self.loader, self.tokenizer, self.idle, sampler=self.sampler, critic=critic,
            reference=self._new_model(self.weights, trainable=False) if live else None, reward=reward,
            flops=self.flops, critic_flops=self.value_weights.config.flops,
        )  # fmt: skip

    def _open_probes(self) -> None:
        self.probes: Probes | None = None
        if self.recipe.probes.every == 0:
            return
        # a step's training FLOPs: three forwards over the mean step
        step_flops = 3 * float(self.loader.cost.mean()) * self.recipe.batch.examples
        if self.ppo is not None:
            step_flops = self.ppo.step_flops
        self.probes = Probes(
            self.recipe, self.renderer, self.world, self.sampler, total_steps=self.total_steps, step_flops=step_flops,
            flops=self.flops,
        )  # fmt: skip

    def _open_run(self) -> None:
        """Make the run folder, or go on where its newest checkpoint stands."""
        self.step_count, self.tokens_seen = 0, 0
        if found := checkpoint.newest(self.folder, self.world):
            path, self.step_count = found
            self._set_numbers(checkpoint.load(path, self.trained, self._numbers()))
        self.resumed_at = self.step_count
        self.metrics_log: MetricsLog | None = None
        with main_first(self.world):
            if self.world.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(self.folder / "inputs.json", json.dumps(self.inputs, indent=2) + "\n")
                write_text(self.folder / "recipe.toml", recipes.to_toml(self.recipe))
                self.metrics_log = MetricsLog(self.folder, self.step_count, self.recipe)
            if self.probes is not None:
                self.probes.open_log(self.folder, self.step_count)

    def _numbers(self) -> dict[str, float]:
        """What a checkpoint holds beside tensors."""
        return {"num_tokens": self.tokens_seen} | (self.ppo.state() if self.ppo else {})

    def _set_numbers(self, numbers: dict[str, float]) -> None:
        self.tokens_seen = int(numbers["num_tokens"])
        if self.ppo:
            self.ppo.load_state(numbers)

    def _open_reference(self) -> None:
        r, loader = self.recipe, self.loader
        self.reference: LiveReference | CachedReference | Margins | None = None
        self.eval_reference: LiveReference | CachedReference | Margins | None = None
        if r.objective.name == "reward" and r.objective.margin:
            self.reference = Margins(self.store, r.objective.margin, self.world.device)
            self.eval_reference = Margins(loader.eval_store, r.objective.margin, self.world.device)
        if r.objective.name != "dpo" or r.objective.reference == "none":
            return
        # Before the first update the policy is the reference: no second copy. A resumed run needs one only if it
        # is live, or if the cache file has gone.
        fresh = self.step_count == 0
        if r.objective.reference == "live":
            self.reference = self.eval_reference = LiveReference(self._new_model(self.weights, trainable=False))
            return
        w, budget = self.world, r.batch.tokens
        epoch = range(self.total_steps)
        train = ((loader.rows(k), lambda k=k: loader.packs(k, w.size, w.rank, budget)) for k in epoch)
        evals = [(loader.eval_rows, lambda: loader.eval_packs(w.size, w.rank, budget))] if len(loader.eval_rows) else []
        same = loader.eval_store is self.store

        def cached(store: Store, visits: Sequence[Any]) -> CachedReference:
            return cache_reference(
                (lambda: self.model) if fresh else (lambda: self._new_model(self.weights, trainable=False)),
                store, visits, self.idle, w, folders=[self.folder, Path(r.data.cache).expanduser()],
                weights_hash=self.weights.hash, dtype=self.dtype, kernels=str(self.kernels),
            )  # fmt: skip

        self.reference = cached(self.store, [*train, *(evals if same else [])])
        self.eval_reference = self.reference if same else cached(loader.eval_store, evals)

    def _start_clock(self) -> None:
        self._unlogged: list[tuple[int, Tensor, Tensor]] = []  # step, tree ids and losses of packs not yet logged
        self._skipped = torch.zeros(2, device=self.world.device)  # updates skipped in a row; and since the last log
        self._since_log = Totals()
        self.lag = self.world.device.type == "cuda"  # a row is written a step after its own
        self._waiting: Logged | None = None  # the last logged step, where it is not yet written
        self.on_row: Callable[[dict[str, Any], str], None] = lambda row, warning: None  # told of each row when written
        self.warning = ""  # the last one

    # -------------------------------------------------------------------------------------------------- step

    def step(self) -> Metrics:
        """One optimizer step; with PPO a rollout and all updates on it. Its metrics where `log.every` (or the last
        step) asks for them, else empty. The host does not wait for the device: a row is read when it is looked at, and
        on CUDA it is written a step later, when it is there."""
        k, w, device = self.step_count, self.world, self.world.device
        self.step_clock.__enter__()
        if self.probes:
            self.probes.anchor(self.model, k)
        rollout, batches, extra = self._work(k)
        logged: list[tuple[list[str], Tensor, Batch]] = []

        for batch in batches:
            count = self._count(batch)
            sampling = self.probes is not None and not logged  # theta_k is theta before the step's first update
            riders = self.probes.begin(k, len(batch.packs)) if self.probes and sampling else [[] for _ in batch.packs]
            sums: dict[str, Tensor] = {}

            # Under FSDP every forward and backward is a collective: all ranks run the same number, rows or no rows.
            for mine, rider in zip(batch.packs, riders, strict=True):
                this, live = (self.idle, 0.0) if mine is None else (mine, 1.0)
                this = this.to(device, non_blocking=True)
                scores = self.model(this, self.probes.packs(rider) if self.probes else None, entropy=True)
                if self.probes:
                    self.probes.collect(rider, scores.probe_logp)
                losses, metrics = self._losses(this, scores, self.reference, rollout)
                with ordered(self.recipe.run.deterministic):
                    (losses.sum() * (live / count)).backward()  # one global denominator, known before the first forward
                if scores.entropy is not None:
                    metrics = {**metrics, "entropy": scores.entropy.detach()}
                for name, x in {**metrics, "loss": losses.detach()}.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + live * x.sum()
                if mine is not None:
                    self._unlogged.append((k, mine.tree_ids, losses.detach()))
            if self.probes and sampling:
                self.probes.end()

            # One small all-reduce, so that every rank skips, or does not skip, the same update.
            names = sorted(sums)
            totals = torch.stack([sums[name] for name in names])
            if w.size > 1:
                dist.all_reduce(totals)
            norms = [grad_norm(t.parameters) for t in self.trained]
            finite = torch.isfinite(sum(norms, totals.sum()))
            self._skipped = torch.stack([torch.where(finite, 0.0, self._skipped[0] + 1), self._skipped[1] + ~finite])
            if k == 0 and not logged:
                self._check_start({name: t / count for name, t in zip(names, totals, strict=True)})
            for t, norm in zip(self.trained, norms, strict=True):
                lr = learning_rate(self.recipe.optimizer, k, self.total_steps, t.lr)
                apply_update(t.optimizer, lr, norm, (~finite).float(), self.recipe.optimizer.clip)
            logged.append((names, torch.cat([totals, torch.stack(norms)]), batch))
            self._since_log.flops += 3 * batch.cost

        self.step_clock.__exit__()
        seen = [batch] if rollout is None else rollout.batches
        num_tokens, num_scored = sum(b.num_tokens for b in seen), sum(b.num_scored for b in seen)
        self.step_count += 1
        self.tokens_seen += num_tokens
        phases = (self.ppo.seconds if self.ppo else {}) | (self.probes.seconds if self.probes else {})
        self._since_log.add(num_tokens, num_scored, phases)
        self._settle()  # the step that was logged last; the device has long been done with it
        if self.step_count % self.recipe.log.every and self.step_count != self.total_steps:
            return Metrics()
        extra |= {"learning_rate": learning_rate(self.recipe.optimizer, k, self.total_steps)}
        extra |= {"tokens": num_tokens, "scored_tokens": num_scored, "micro_steps": len(batch.packs)}
        self._waiting = found = self._log(logged, extra)
        if not self.lag or self.step_count == self.total_steps:  # all is there, or nothing comes that it could hold up
            self._settle()
        return found.metrics

    def _work(self, k: int) -> tuple[Rollout | None, Iterable[Batch], dict[str, float]]:
        """The batches of step k, one update each, and what is known before them."""
        if self.ppo is None:
            return None, [self.loader.batch(k, self.world.size, self.world.rank, self.recipe.batch.tokens)], {}
        rollout, metrics = self.ppo.rollout(self.model, k)
        return rollout, self.ppo.updates(rollout, k), metrics

    def _count(self, batch: Batch) -> int:
        """The denominator of a batch's loss, over all ranks: examples, or scored tokens."""
        return batch.num_scored if self.recipe.objective.name in ("sft", "ppo") else batch.num_examples

    def _log(self, logged: list[tuple[list[str], Tensor, Batch]], extra: dict[str, Any]) -> Logged:
        """A row of metrics, to be read later: its numbers leave the device now. Rates are since the last logged one."""
        i, self._since_log = self._since_log, Totals()
        packs, self._unlogged = self._unlogged, []
        fine = [torch.isfinite(losses).all() for _, _, losses in packs]
        totals = Later(torch.cat([x for _, x, _ in logged]))
        skipped, whole = Later(self._skipped), Later(torch.stack(fine) if fine else self._skipped[:0])
        self._skipped[1] = 0.0
        step, step_seconds, probe_seconds = self.step_count, self.step_clock.cut(), self.probe_clock.cut()
        row = {"step": step, "epoch": step / self.loader.steps_per_epoch}
        known = {"num_tokens": self.tokens_seen, "memory_bytes": memory_bytes(self.world.device)}

        def read() -> dict[str, Any]:
            seconds = step_seconds()
            row.update(self._means(logged, totals.get().tolist()) | extra)
            row.update({
                "step_seconds": seconds / i.steps,
                "probe_seconds": probe_seconds() / i.steps,
                "tokens_per_second": i.tokens / seconds,
                "scored_tokens_per_second": i.scored / seconds,
            } | known)  # fmt: skip
            if i.phases:  # PPO's, and answers; what is left of a step is training
                row.update({f"{name}_seconds": s / i.steps for name, s in i.phases.items()})
                row["train_seconds"] = (seconds - sum(i.phases.values())) / i.steps
            if peak := peak_flops(self.world.device):
                row["mfu"] = i.flops / seconds / self.world.size / peak
            row["skipped_updates"] = int(skipped.get()[1])
            return row | self._report_probes(step)

        return Logged(Metrics(read), skipped, whole, [(k, ids) for k, ids, _ in packs])

    def _means(self, logged: list[tuple[list[str], Tensor, Batch]], totals: list[float]) -> dict[str, float]:
        """Global means of a step's metrics, over its updates. `totals`: of all updates, one after another."""
        rows, at = [], 0
        for names, part, batch in logged:
            values, count = totals[at : at + len(part)], self._count(batch)
            at += len(part)
            row = {n: v / (batch.num_scored if n == "entropy" else count) for n, v in zip(names, values, strict=False)}
            norms = zip(self.trained, values[len(names) :], strict=True)
            rows.append(row | {f"{t.prefix}grad_norm": norm for t, norm in norms})
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        if self.ppo is not None:  # TRL's names
            ratios = [row["val/ratio"] for row in rows]
            means["val/ratio_var"] = statistics.variance(ratios) if len(ratios) > 1 else 0.0
            means["policy/entropy_avg"] = means.pop("entropy")
        return means

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
        self._settle()
        self._report_probes()

    def _report_probes(self, before: int | None = None) -> dict[str, float]:
        """Write the samples that are waiting (`before`: those of earlier steps); what metrics should say of them."""
        if self.probes is None:
            return {}
        self.probes.flush(before)
        if self.metrics_log is not None:
            for live in self.probes.take_live():
                self.metrics_log.track(live.scalars, live.step)
        return self.probes.take_gate()

    def _losses(
        self, this: Pack, scores: Scores, reference: Any, rollout: Rollout | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and metrics of one pack, per example or, with PPO, per token."""
        o, beta = self.recipe.objective, float(self.recipe.objective.beta or 0.0)  # `recipes.check` has filled it in
        if self.ppo is not None and rollout is not None:
            return self.ppo.losses(this, scores, rollout)
        sums = None if reference is None else reference(this)  # of a reward model: margins
        if scores.values is not None:
            ends = scores.values[this.ends]
            return objectives.reward(ends, 0.0 if sums is None else sums, center=o.center_rewards_coefficient)
        if o.name != "sft" and self.fused_preference:  # one launch in place of a dozen; same sums, to the bit
            gamma = o.gamma_beta_ratio if o.name == "simpo" else 0.0
            p = preference_loss(
                scores.logp, this.branch_offsets, sums, name=o.name, beta=beta, label_smoothing=o.label_smoothing,
                gamma_beta_ratio=gamma,
            )  # fmt: skip
            return p.losses, objectives.preference_metrics(*p[1:])
        policy = this.branch_sum(scores.logp)
        if o.name == "sft":
            return objectives.sft(policy)
        if o.name == "simpo":
            return objectives.simpo(policy, this.branch_lengths, beta=beta, gamma_beta_ratio=o.gamma_beta_ratio)
        return objectives.dpo(policy, sums, beta=beta, label_smoothing=o.label_smoothing)

    def _check_finite(self, step: int, logged: Logged) -> str:
        """A line on the updates that were skipped before `step`: at which step, rank and rows; "" if there are none.

        Raises:
            InputError: too many in a row; the run would only burn time.
        """
        in_a_row, skipped = (int(n) for n in logged.skipped.get().tolist())
        if not skipped:
            return ""
        bad = [
            f"step {k + 1}, rank {self.world.rank}, rows {self._rows(k, ids)[:8]}"
            for (k, ids), finite in zip(logged.packs, logged.finite.get().tolist(), strict=True)
            if not finite
        ]
        where: list[Any] = [None] * self.world.size
        dist.all_gather_object(where, bad)
        found = "; ".join(sorted({b for part in where for b in part})) or "the losses are finite, the norm is not"
        updates = "1 update" if skipped == 1 else f"{skipped} updates"
        self.warning = f"step {step}: {updates} skipped, not finite ({found})"
        if in_a_row >= MAX_SKIPPED:
            raise InputError(f"{self.warning}; {in_a_row} in a row: lower optimizer.lr or look at these rows")
        return self.warning

    def _rows(self, k: int, tree_ids: Tensor) -> list[int]:
        """Rows of the store; a rollout's trees are numbered by their place in the step."""
        return (tree_ids if self.ppo is None else torch.from_numpy(self.loader.rows(k))[tree_ids]).tolist()

    def _check_start(self, row: dict[str, Tensor]) -> None:
        """The first update knows its own answer. PPO: the policy made the rollout, every ratio is 1, whatever the
        dtype, for the old log-probs come from the same packs and kernels. DPO: policy = reference, so the loss is
        ln 2 and the margin 0.

        Tolerance, in nats of a pair's mean margin: the two differ by rounding when the cache was filled along other
        packs. A sum of some hundred log-probs around 5 carries 1e-4 in fp32; in bf16 activations differ by 2^-8 a
        layer, 0.03 nats a token with random signs, so half a nat. A reference of another model is off by tens.

        Raises:
            InputError: the reference log-probs are not this model's. The weights have not moved.
            RuntimeError: a ratio that is not 1: the forward does not repeat itself on this device.
        """
        if self.ppo is not None:
            ratio = float(row["val/ratio"])
            if math.isfinite(ratio) and abs(ratio - 1) > 1e-3:
                raise RuntimeError(f"PPO at step 0: the first update's mean probability ratio is {ratio:.6f}, not 1")
        if self.reference is None or "rewards/margins" not in row:
            return
        margin = abs(float(row["rewards/margins"])) / float(self.recipe.objective.beta or 1.0)
        tolerance = 1e-2 if self.dtype == torch.float32 else 1.0
        if math.isfinite(margin) and margin > tolerance:  # what is not finite is skipped, and named with its rows
            where = Path(self.recipe.data.cache).expanduser() / "reference"
            raise InputError(
                f"DPO at step 0: the margin is {margin:.4g} nats, not 0 (loss {float(row['loss']):.6f}, not ln 2): the "
                f"reference log-probs are not this model's; remove {where} and start again with a new run.folder"
            )

    # ------------------------------------------------------------------------------------- between the steps

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Loss and metrics on the held-out examples, under `eval/`; {} if there are none."""
        w, loader, sft = self.world, self.loader, self.recipe.objective.name == "sft"
        self.flush()
        if not len(loader.eval_rows):
            return {}
        sums: dict[str, Tensor] = {}
        for mine in loader.eval_packs(w.size, w.rank, self.recipe.batch.tokens):
            this, live = (self.idle, 0.0) if mine is None else (mine, 1.0)
            this = this.to(w.device)
            losses, metrics = self._losses(this, self.model(this), self.eval_reference)
            for name, x in {**metrics, "loss": losses}.items():
                sums[name] = sums.get(name, torch.zeros((), device=w.device)) + live * x.sum()
        names = sorted(sums)
        totals = torch.stack([sums[name] for name in names])
        if w.size > 1:
            dist.all_reduce(totals)
        rows = loader.eval_rows
        count = int(loader.eval_store.num_scored[rows].sum()) if sft else len(rows)
        return {f"eval/{name}": v / count for name, v in zip(names, totals.tolist(), strict=True)}

    def save(self) -> Path:
        """A checkpoint of this step; the logs are written up to it. All ranks together."""
        self.flush()
        return checkpoint.save(
            self.folder, self.step_count, self.trained, self._numbers(), self.world, self.recipe.checkpoint.keep
        )

    def finish(self) -> None:
        """The last probe sample (theta after the last update), the last checkpoint, and the export."""
        if self.probes:
            self.probes.sample(self.model, self.step_count)
            self.probes.anchor(self.model, self.step_count)
        self.save()
        if self.recipe.checkpoint.export:
            save_model(self.model, self.tokenizer, self.folder / "export")

    def close(self) -> None:
        """Release the loader's thread, the logs and, if this trainer made it, the process group. In the middle of a run
        a row that is not yet written is lost, as after a crash (a resumed run writes it again): `flush` first."""
        self.loader.close()
        if self.metrics_log is not None:
            self.metrics_log.close()
        self.world.close()
