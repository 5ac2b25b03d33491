"""What a run is made of: weights, data, models, optimizers, probes, logs, opened from a recipe in order.

The file is above 500 lines because the order in which parts are opened is its one idea, and each needs those before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vdengine import recipe as recipes
from vdengine.data.locate import Source
from vdengine.data.memory import rows_in_memory
from vdengine.data.mismatched import Mismatched
from vdengine.data.store import Store
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.capability_log import CapabilityLog
from vdengine.drift.panel_log import DriftLog
from vdengine.engine import checkpoint
from vdengine.engine.adapting import open_adapter, write_adapter
from vdengine.engine.batch_kl import BatchKL
from vdengine.engine.capability import Capability
from vdengine.engine.checkpoint import Found, Trained, size_of
from vdengine.engine.clocks import SectionClock
from vdengine.engine.given import Given, read_recipe
from vdengine.engine.metrics import MetricsLog
from vdengine.engine.optim import make_optimizer
from vdengine.engine.own_batch import no_rows
from vdengine.engine.parallel import World, main_first, shard_model, start_world
from vdengine.engine.pattern import pattern_reward
from vdengine.engine.probes import Probes
from vdengine.engine.readings import Readings
from vdengine.engine.reference import CachedReference, LiveReference, cache_reference, live_reference
from vdengine.engine.resuming import check_folder, check_fresh, check_length, check_logs, differing, keep_old_end
from vdengine.engine.rollout import RewardFunction, Rollouts
from vdengine.engine.row_extras import RowExtras
from vdengine.engine.rows import open_loader, open_store
from vdengine.engine.sampler import Sampler
from vdengine.engine.saver import Saver
from vdengine.engine.skips import Skips
from vdengine.engine.stages import stages_before
from vdengine.engine.trouble import MAX_SKIPPED, NothingLearned, given_up
from vdengine.errors import InputError
from vdengine.files import Lock, check_space, json_hash, write_text
from vdengine.kernels._triton import INTERPRETED, resolve
from vdengine.models.attention import flash_attn_problem
from vdengine.models.device import compute_dtype
from vdengine.models.export import check_replaceable
from vdengine.models.live import LiveWeights
from vdengine.models.lora import add_lora
from vdengine.models.peft_config import tokenizer_of
from vdengine.models.transformer import Kernels, Transformer
from vdengine.models.weights import (
    ScalarWeights,
    Weights,
    check_vocabulary,
    load_adapter,
    load_into,
    open_causal,
    open_weights,
)
from vdengine.objectives import Objective
from vdengine.outside import json_object
from vdengine.panels.panel import Panel
from vdengine.runfolder import RunFolder
from vdengine.tasks.task import load_tasks
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer
from vdengine.trees import Pack, Tree, pack

_RUNS_ON = {"triton": "cuda", "flash": "cuda", "varlen": "cuda", "native": "cpu"}


class Setup:
    """All that a run is made of, opened in an order in which what is wrong is found before what takes long.

    Raises:
        InputError: anything wrong with the recipe's files.
    """

    def __init__(
        self,
        recipe: recipes.Recipe | str | Path | Mapping[str, Any],
        given: Given,
        objective: Objective | None,
    ) -> None:
        self.recipe = recipe = read_recipe(recipe, given, objective)
        self.objective: Objective = recipe.objective.declaration
        self.has_data = recipe.data.train != [recipes.OWN_BATCHES]
        self.world: World = start_world(recipe.parallel, recipe.run.deterministic)
        self.files = RunFolder.at(recipe.run.folder)
        self.folder = self.files.path
        self.lock: Lock | None = None
        self.notes: list[str] = []  # what is worth saying where the run starts
        torch.manual_seed(recipe.run.seed)
        try:
            self._lock_folder()
            self._check_folder()
            self.before = stages_before(recipe, panel=given.panel)
            self._check_kernels()
            self._open_weights(given)
            self._open_sources(given.reward)  # before the data: tokenising may take long
            self._open_data(given)
            self._check_inputs(given.panel)
            self._open_model()
            self._open_sampler()
            self._open_rollouts()
            self._open_readings(given.panel)
            self._open_run()
            self._open_reference()
            self._open_extras()
            self._open_saver()
            if self._live is not None:
                self._live.release()
        except BaseException:
            if self.lock is not None:
                self.lock.undo()
            self.world.close()
            raise

    # ------------------------------------------------------------------------------------------------ set-up

    def _lock_folder(self) -> None:
        """One run at a time writes to a folder."""
        with main_first(self.world):
            if self.world.is_main:
                self.lock = Lock(self.files.lock, "a run is being written here")

    def _check_folder(self) -> None:
        """A run folder may be taken up again only by a recipe that gives the same numbers."""
        if self.recipe.checkpoint.export:
            check_replaceable(self.files.export, self.recipe.models)
        self._old_recipe = check_folder(self.recipe, self.objective)

    def _check_kernels(self) -> None:
        """Backends that cannot run here are said before data is tokenised."""
        device, parts = self.world.device, dataclasses.asdict(self.recipe.kernels)
        if parts["attention"] == "flash" and (problem := flash_attn_problem()) is not None:
            raise InputError(f"kernels.attention = 'flash': {problem}")
        for name, backend in parts.items():
            where = _RUNS_ON.get(backend, device.type)
            if where != device.type and not (backend == "triton" and INTERPRETED):
                raise InputError(f"kernels.{name} = {backend!r} runs on {where}; this run is on {device.type}")
        fused, self.losses = self.objective.fused, self.objective.fn
        if resolve("kernels.preference", parts.pop("preference"), device) == "triton" and fused is not None:
            self.losses = fused  # one launch in place of a dozen; the same sums, to the bit
        self.kernels = Kernels(**parts)

    def _open_weights(self, given: Given) -> None:
        r = self.recipe
        scalar = self.objective.head == "scalar"
        self.frozen: frozenset[str] = frozenset()  # names of the parameters that are not trained
        self._live = None if given.model is None else LiveWeights(given.model, trained=not r.has_lora)
        self.weights: Weights
        if self._live is not None:
            self.weights, self.frozen = self._live, self._live.frozen
            if self.weights.config.head == "scalar" and not scalar:
                raise InputError(f"{self.weights.source}: a reward model; {self.objective.name} needs a language model")
        else:
            self.weights = open_weights(r.model.source) if scalar else open_causal(r.model.source)
        if scalar and self.weights.config.head == "causal":
            self.weights = ScalarWeights(self.weights, r.run.seed)
        self.lora, self.start = open_adapter(r, self.weights, self.notes)
        named = r.model.tokenizer or r.model.source
        self.tokenizer = load_tokenizer(tokenizer_of(named) if given.tokenizer is None else given.tokenizer)
        check_vocabulary(self.weights.config.vocab_size, self.tokenizer)

    def _open_sources(self, reward: RewardFunction | None) -> None:
        """A rollout's reward, and the weights that a critic starts from."""
        r = self.recipe
        self.reward: RewardFunction | None = reward
        self.reward_weights: Weights | None = None
        self.value_weights: Weights | None = None
        name = self.objective.name
        if not self.objective.rollout:
            if reward is not None:
                raise InputError(f'a reward function has no effect with objective.name = "{name}"')
            return
        source = r.reward.source
        if (reward is None) == (not source):
            raise InputError(
                f"{name} needs one reward: reward.source in the recipe, or a function given to the Trainer"
            )
        if source.startswith("regex:"):
            self.reward = pattern_reward(source.removeprefix("regex:"))
        elif source:
            self.reward_weights = self._open_scalar("reward.source", source)
        if not self.objective.critic:
            return
        if r.value.source:
            self.value_weights = self._open_scalar("value.source", r.value.source)
        else:  # a value model starts as the reward model, or as the policy with a first guess of 0
            self.value_weights = self.reward_weights or ScalarWeights(self.weights, None)

    def _open_scalar(self, key: str, source: str) -> Weights:
        """A reward model that reads the policy's own token ids; for a value model a language model serves too."""
        try:
            weights, tokenizer = open_weights(source), load_tokenizer(tokenizer_of(source))
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
        if weights.config.head == "causal" and key == "reward.source":
            raise InputError(f"{key}: {source} is a language model; a reward model (one label) is needed")
        if tokenizer.vocabulary_hash != self.tokenizer.vocabulary_hash:
            raise InputError(
                f"{key}: {source} has another vocabulary than {self.tokenizer.source} ({tokenizer.vocab_size} and "
                f"{self.tokenizer.vocab_size} ids): it would read other words than the policy writes"
            )
        check_vocabulary(weights.config.vocab_size, self.tokenizer)
        return weights if weights.config.head == "scalar" else ScalarWeights(weights, None)

    def _open_data(self, given: Given) -> None:
        r, vocab_size = self.recipe, self.weights.config.vocab_size
        self.renderer = Renderer(self.tokenizer, template=r.data.template)
        check_vocabulary(vocab_size, self.tokenizer, self.renderer)
        if self.objective.learns_answers and self.renderer.missing_end is not None:
            self.notes.append(self.renderer.missing_end)
        train: Sequence[str | Source] = r.data.train
        evaluation: str | Source = r.data.eval
        with main_first(self.world):  # rank 0 tokenises, the others open what it wrote
            progress = self.world.is_main
            if given.data is not None:
                train = [rows_in_memory(given.data, "data", vocab_size)]
            if given.eval_data is not None:
                evaluation = rows_in_memory(given.eval_data, "eval_data", vocab_size)
            self.store = open_store(r, train, self.renderer, progress, vocab_size) if self.has_data else no_rows(r)
            held_out: Store | float = r.data.eval_fraction
            if evaluation:
                held_out = open_store(r, [evaluation], self.renderer, progress, vocab_size)
        self.flops = self.weights.config.flops
        pin = self.world.device.type == "cuda"
        self.loader = open_loader(r, self.store, evaluation=held_out, flops=self.flops, pin=pin)
        if not self.objective.rollout:
            self.loader.check_budget(r.batch.tokens)
        self.own_batches = 0  # steps so far whose batch was given to `step`
        self.total_steps = r.run.steps or math.ceil((r.run.epochs or 0) * self.loader.steps_per_epoch)
        if self.total_steps > recipes.MOST_STEPS:
            raise InputError(f"run.epochs: {self.total_steps} steps; at most {recipes.MOST_STEPS} are allowed")
        # What a rank runs when a micro step has no rows for it: forwards are collectives. Its loss counts zero.
        self.idle = pack([Tree([0], [[0]] * self.objective.branches, id=-1)])

    def _check_inputs(self, panel: Panel | None) -> None:
        """A run folder may be taken up again only with the same contents of data, weights and tokenizer, which must be
        the same on every rank."""
        self.inputs = {
            "data.train": self.store.hash,
            "data.eval": self.loader.eval_store.hash,
            "model.source": self.weights.hash,
            "model.tokenizer or data.template": self.renderer.hash,
        }
        if self.frozen:
            self.inputs["frozen parameters"] = hashlib.blake2b(" ".join(sorted(self.frozen)).encode()).hexdigest()[:32]
        if panel is not None:
            self.inputs["probes.panel"] = panel.hash
        if self.start is not None:
            self.inputs["lora.start"] = self.start.hash
        self.tasks = load_tasks(self.recipe.capability.tasks, self.recipe.capability.limit)
        if self.tasks:
            self.inputs["capability.tasks"] = json_hash([[task.name, task.hash] for task in self.tasks])
        if self.reward_weights is not None:
            self.inputs["reward.source"] = self.reward_weights.hash
        if self.value_weights is not None:
            self.inputs["value.source"] = self.value_weights.hash
        everyone: list[Any] = [self.inputs] * self.world.size
        if self.world.size > 1:
            dist.all_gather_object(everyone, self.inputs)
        for rank, inputs in enumerate(everyone):
            if others := differing(everyone[0], inputs):
                raise InputError(f"rank {rank} has other contents than rank 0: {', '.join(others)}")
        if not (saved := self.files.inputs).exists():
            return
        if changed := differing(json_object(saved), self.inputs):
            raise InputError(f"{self.folder}: cannot resume, the contents have changed: {', '.join(changed)}")

    def _open_model(self) -> None:
        r, device = self.recipe, self.world.device
        self.dtype = compute_dtype(r.model.dtype, device)
        self.model = self._new_model(self.weights, trainable=True)
        self.trained = [Trained("", self.model, make_optimizer(self.model, r.optimizer), r.optimizer.lr)]
        self.step_clock, self.probe_clock = SectionClock(device), SectionClock(device)
        self.model.time_probes(self.probe_clock)

    def _new_model(self, weights: Weights, trainable: bool) -> Transformer:
        """A sharded model with these weights, each rank reading its own rows. With LoRA each trained model has an
        adapter of its own, and a frozen copy of the policy the one that it started with."""
        r, is_policy = self.recipe, weights is self.weights
        start = self.start if is_policy else None
        lora = self.lora if trainable or start is not None else None
        with torch.device("meta"):
            model = Transformer(weights.config, r.parallel.head_saved_bytes, self.kernels)
        if is_policy:  # a critic of the same names is trained whole
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in self.frozen)
        if lora is not None:
            add_lora(model, lora if is_policy or self.start is None else lora.without_patterns())
        if self.objective.rollout and weights.config.head == "causal":
            model.lm_head.temperature = r.rollout.temperature
        for block in model.blocks:
            block.self_attn.deterministic = r.run.deterministic
        shard_model(
            model,
            self.world,
            dtype=self.dtype,
            trainable=trainable,
            activation_checkpoint=r.parallel.activation_checkpoint if trainable else "none",
        )
        load_into(model, weights)
        if lora is not None:
            load_adapter(model, start, r.run.seed + (not is_policy))
        return model

    def _open_sampler(self) -> None:
        """One for rollouts and for answers: both sample the policy."""
        r, config = self.recipe, self.weights.config
        self.sampler: Sampler | None = None
        if self.objective.rollout is not None or r.answers.samples:
            self.sampler = Sampler(
                self.world,
                self.dtype,
                # one rank shares what is frozen
                config.num_parameters if self.lora is None or self.world.size > 1 else self.lora.num_parameters(config),
                weights=r.rollout.weights,
                slots=r.rollout.slots,
            )

    def _open_rollouts(self) -> None:
        self.rollouts: Rollouts | None = None
        r, rule = self.recipe, self.objective.rollout
        if rule is None or self.sampler is None:
            return
        critic: Transformer | None = None
        if self.value_weights is not None:
            critic = self._new_model(self.value_weights, trainable=True)
            lr = r.optimizer.lr if r.value.lr is None else r.value.lr
            self.trained.append(Trained("value/", critic, make_optimizer(critic, r.optimizer), lr))
        reference: LiveReference | None = None
        if rule.refers(r.objective):
            reference = live_reference(r, self.model, lambda: self._new_model(self.weights, trainable=False))
        frozen = None if self.reward_weights is None else self._new_model(self.reward_weights, trainable=False)
        reward = self.reward or frozen
        if reward is None:
            raise RuntimeError("_open_sources sees to it that there is a reward")
        self.rollouts = Rollouts(
            r,
            self.world,
            self.loader,
            self.renderer,
            self.idle,
            sampler=self.sampler,
            critic=critic,
            reference=reference,
            reward=reward,
            flops=self.flops,
            critic_flops=None if self.value_weights is None else self.value_weights.config.flops,
        )

    def _open_readings(self, panel: Panel | None) -> None:
        """The panel and the tasks, which are read in the training forwards."""
        self.readings = Readings(self.world)
        self.probes: Probes | None = None
        self.capability: Capability | None = None
        # a step's training FLOPs, over the mean step; not known where each step is given its rows
        examples = self.recipe.batch.examples if self.has_data else math.nan
        step_flops = self.recipe.forwards * float(self.loader.cost.mean()) * examples
        if self.rollouts is not None:
            step_flops = self.rollouts.step_flops
        if self.recipe.probes.every != 0:
            self.probes = Probes(
                self.recipe,
                self.renderer,
                Panel.load(self.recipe.probes.panel) if panel is None else panel,
                self.readings,
                self.sampler,
                total_steps=self.total_steps,
                step_flops=step_flops,
                flops=self.flops,
            )
        if self.tasks:
            self.capability = Capability(
                self.recipe.capability,
                self.tasks,
                self.renderer,
                self.readings,
                total_steps=self.total_steps,
                step_flops=step_flops,
                flops=self.flops,
            )

    def _open_run(self) -> None:
        """Make the run folder, or go on where its newest checkpoint stands."""
        self.step_count, self.tokens_seen = 0, 0
        self._skips = Skips.start(self.world.device)
        found = checkpoint.newest(self.folder, self.world)
        if found is not None:
            self.step_count = found.step
            self._set_numbers(checkpoint.load(found.folder, self.trained, self._numbers()))
            self._check_resumed(found)
            self.notes += found.notes
            if self.own_batches and self.world.is_main:
                warnings.warn(
                    f"{self.folder}: {self.own_batches} of its {self.step_count} steps took batches given to step(); "
                    f"for the same numbers give those of step {self.step_count + 1} and on as before",
                    stacklevel=4,
                )
        self.resumed_at, self._resumed = self.step_count, found is not None
        self.metrics_log: MetricsLog | None = None
        with main_first(self.world):
            if self.world.is_main:
                if found is None and self._old_recipe is not None:
                    self.notes += check_fresh(self.files)
                check_space(self.folder, size_of(self.trained), "a checkpoint (master weights and AdamW's moments)")
                write_text(self.files.inputs, json.dumps(self.inputs, indent=2) + "\n")
                write_text(self.files.recipe, recipes.to_toml(self.recipe))
                write_adapter(self.files, self.lora, self.weights.config, self.recipe)
                first = self.before.step if self.before else 0
                self.metrics_log = MetricsLog(self.folder, self.step_count, self.recipe, first)
            # The samples at a run's end stay: it has them already when it is opened again.
            finished = found is not None and self.step_count == self.total_steps
            if self.probes is not None:
                last = self.before.folders[-1] if self.before else None
                self.probes.open_log(self.folder, self.step_count + finished, last)
            if self.capability is not None:
                self.capability.open_log(self.folder, self.step_count + finished)

    def _check_resumed(self, found: Found) -> None:
        """The logs must be whole, and what has been done so far what this recipe would have done, and worth going on
        with."""
        with main_first(self.world):
            if self.world.is_main:
                check_logs(self.files, found.step, found.logs)
        in_a_row = int(self._skips.numbers()["skipped_in_a_row"])
        if in_a_row >= MAX_SKIPPED:
            proven = int(self._skips.numbers()["proven_step"])
            raise NothingLearned(f"{found.folder}: {given_up(self.folder, in_a_row, proven)}")
        old, per_epoch = self._old_recipe, self.loader.steps_per_epoch
        if old is None:
            return
        before = old.run.steps or math.ceil((old.run.epochs or 0) * per_epoch)
        taken = DriftLog.open(self.folder).steps.tolist() if self.files.has_panel_scores else []
        planned = self.probes.schedule.steps if self.probes is not None else ()
        sampled, checked = sorted(k for k in {*taken} ^ {*planned} if k < found.step), list[int]()
        if self.capability is not None and self.files.has_capability:
            taken = CapabilityLog.open(self.folder).steps.tolist()
            checked = sorted(k for k in {*taken} ^ {*self.capability.schedule.steps} if k < found.step)
        anchors: list[int] = []
        if self.probes is not None and self.probes.answers is not None and self.files.has_answers:
            anchors = self.probes.answers.out_of_plan(AnswerLog.open(self.folder).anchors, found.step)
        totals = before, self.total_steps
        check_length(
            old, self.recipe, totals=totals, done=found.step, sampled=sampled, checked=checked, anchors=anchors
        )
        if self.world.is_main and before != self.total_steps:
            self.notes += keep_old_end(self.files, found.step)

    def _numbers(self) -> dict[str, float]:
        """What a checkpoint holds beside tensors."""
        numbers = {"num_tokens": self.tokens_seen, "own_batches": self.own_batches} | self._skips.numbers()
        return numbers | (self.rollouts.state() if self.rollouts else {})

    def _set_numbers(self, numbers: dict[str, float]) -> None:
        self.tokens_seen, self.own_batches = int(numbers["num_tokens"]), int(numbers["own_batches"])
        self._skips = Skips.of_numbers(numbers, self.world.device)
        if self.rollouts:
            self.rollouts.load_state(numbers)

    def _open_reference(self) -> None:
        r, loader = self.recipe, self.loader
        self.reference: LiveReference | CachedReference | None = None
        self.eval_reference: LiveReference | CachedReference | None = None
        self.batch_kl: BatchKL | None = None
        self.eval_kl: BatchKL | None = None
        if not self.objective.reference or r.objective.reference == "none" or self.objective.rollout:
            return  # rollouts have one of their own, which gives log-probs by token
        # Before the first update the policy is the reference: no second copy. A resumed run needs one only if it
        # is live, or if the cache file has gone.
        fresh = self.step_count == 0
        live = live_reference(r, self.model, lambda: self._new_model(self.weights, trainable=False))
        if live is not None:
            self.reference = self.eval_reference = live
            self._open_batch_kl(lambda mismatched: live)
            return
        w, budget = self.world, r.batch.tokens
        epoch = range(self.total_steps if self.has_data else 0)
        train = ((loader.rows(k), lambda k=k: loader.packs(k, w.size, w.rank, budget)) for k in epoch)
        evals = [(loader.eval_rows, lambda: loader.eval_packs(w.size, w.rank, budget))] if len(loader.eval_rows) else []
        same = loader.eval_store is self.store

        def cached(store: Store | Mismatched, visits: Sequence[Any]) -> CachedReference:
            return cache_reference(
                (lambda: self.model) if fresh else (lambda: self._new_model(self.weights, trainable=False)),
                store,
                visits,
                self.idle,
                w,
                folders=[self.folder, Path(r.data.cache).expanduser()],
                weights_hash=self.weights.hash + ("" if self.start is None else self.start.hash),
                dtype=self.dtype,
                kernels=str(self.kernels),
                notes=self.notes,
            )

        if self.has_data:
            self.reference = cached(self.store, [*train, *(evals if same else [])])
        else:  # of no rows: each step is given its own sums
            self.reference = CachedReference(torch.zeros(0), torch.zeros(1, dtype=torch.int64))
        self.eval_reference = self.reference if same else cached(loader.eval_store, evals)

        def cached_mismatched(of: Mismatched) -> CachedReference:
            every = range(of.batches)
            numbers = (
                (of.start(k) + np.arange(len(of.rows(k))), lambda k=k: of.packs(k, w.size, w.rank, budget))
                for k in every
            )
            return cached(of, list(numbers))

        self._open_batch_kl(cached_mismatched)

    def _open_batch_kl(self, reference: Callable[[Mismatched], Callable[[Pack], Tensor] | None]) -> None:
        """The KL of a step's batch and of the held-out rows, where the objective reads one.

        Args:
            reference: gives that of mismatched trees.
        """
        if not self.objective.batch_kl:
            return
        rest = self.recipe.data.max_tokens, self.flops, self.world.device.type == "cuda"

        def of(mismatched: Mismatched) -> BatchKL:
            found = reference(mismatched)
            if found is None:
                raise RuntimeError("an objective that declares batch_kl has a reference")
            return BatchKL(mismatched, found, self.idle, self.world, self.recipe.batch.tokens)

        self.batch_kl = of(Mismatched.of_training(self.loader, self.total_steps, *rest))
        if len(self.loader.eval_rows):
            self.eval_kl = of(Mismatched.of_held_out(self.loader, *rest))

    def _open_saver(self) -> None:
        newest = self.resumed_at if self._resumed else None
        base = self.weights.hash if self.frozen or self.lora is not None else None
        self.saver = Saver(self.files, self.world, self.lock, self.recipe.checkpoint, newest, base)

    def _open_extras(self) -> None:
        """What training and held-out rows bring to their losses, and rows that are given to `step`."""
        device, live = self.world.device, isinstance(self.reference, LiveReference)
        self.train_extras = RowExtras.of(self.store, self.reference, device)
        self.eval_extras = RowExtras.of(self.loader.eval_store, self.eval_reference, device)
        self.own_extras = RowExtras.of_given(self.reference if live else None, device)
