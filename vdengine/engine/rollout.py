"""What an objective that learns from samples has of its own in a run: rollouts, what they are scored by, and the
minibatches that are learned from.

One step of the trainer is one rollout and all updates on it:

    sample    completions of the step's prompts by the policy as it stands (`models.generate`), each prompt with its
              completions one tree
    score     one forward each of those models that the objective asks for (policy, reference, critic) and of a reward
              model, along the first pass's packs; then advantages, as the objective declares them (`OnPolicy`)
    train     the trainer's own loop over the minibatches

The old log-probs are recomputed by the training kernel, in the very packs of the first pass: its ratios are 1. Where a
rollout has one update they are those of that update, and are not computed twice.
Flat arrays over all completions of all ranks hold everything that is per token; each rank fills in what it computed
and a sum over ranks completes them, so advantages are of the whole batch, and the same on every rank.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vdengine import recipe as recipes
from vdengine.data.batching import Batch, Plan
from vdengine.data.loader import Loader
from vdengine.engine.parallel import World
from vdengine.engine.reference import LiveReference, branch_index
from vdengine.engine.sampler import Sampler
from vdengine.errors import InputError
from vdengine.kernels.gather import gather_rows
from vdengine.models.generate import Completion, Sampling
from vdengine.models.transformer import Transformer
from vdengine.noise import MINIBATCH_ORDER, counted_hash
from vdengine.objectives import Objective, OnPolicy, Rolled, Sampled
from vdengine.runfolder import RunFolder
from vdengine.text.renderer import Renderer
from vdengine.trees import Pack, Tree, pack, tree_cost

# (prompts, completions) as text, of this rank -> a score for each. A completion comes without its stop token.
RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True, eq=False)
class Rollout:
    """P prompts with B completions of N tokens in all, the same on every rank. Arrays of length N have a zero behind
    them: the idle pack, whose tree has the id -1, reads that."""

    trees: list[Tree]  # [P], with id = position
    tree_start: Tensor  # [P+1] int64
    offsets: Tensor  # [B+1] int64
    counted_tokens: np.ndarray  # [P] int64: those of each prompt's completions that are learned from
    drawn_logp: Tensor  # [N+1] fp32, by the sampler's kernels
    advantages: Tensor  # [N+1] fp32
    counted: Tensor  # [N+1] fp32: 1, or 0 where the completion is not learned from
    old_logp: Tensor | None  # [N+1] fp32; None: the only update's own
    reference: Tensor | None  # [N+1] fp32; None: there is no reference
    old_values: Tensor | None  # [N+1] fp32; None: there is no critic
    returns: Tensor | None  # [N+1] fp32
    batches: list[Batch]  # the first pass's, whose packs have been scored

    def tokens(self, pack: Pack) -> Tensor:
        """Index in the arrays of every scored token of a pack, [R] int64."""
        return token_index(pack, self.tree_start, self.offsets)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the models that score a rollout said of it, on the CPU; None: nobody was asked."""

    scores: Tensor  # [B] fp32
    logp: Tensor | None  # [N] fp32
    reference: Tensor | None  # [N] fp32
    values: Tensor | None  # [N] fp32


def token_index(pack: Pack, tree_start: Tensor, offsets: Tensor) -> Tensor:
    shift = offsets[branch_index(pack, tree_start)] - pack.branch_offsets[:-1]
    shift = shift.repeat_interleave(pack.branch_lengths, output_size=pack.num_scored)
    return shift + torch.arange(pack.num_scored, device=shift.device)


def state_values(pack: Pack, values: Tensor) -> Tensor:
    """Of a scalar model's values [T] those before each scored token, [R]."""
    inverse = pack.rows_inverse
    return gather_rows(values[:, None], pack.rows, inverse.order, inverse.offsets)[:, 0]


class Rollouts:
    """Everything that a run has beside its policy where it learns from samples.

    Raises:
        InputError: a prompt that, with its completions, is above `batch.tokens`; a template whose end of a turn is no
            token, so that no completion could end.
    """

    def __init__(
        self,
        recipe: recipes.Recipe,
        world: World,
        loader: Loader,
        renderer: Renderer,
        idle: Pack,
        *,
        sampler: Sampler,
        critic: Transformer | None,  # trained; values before each token
        reference: LiveReference | None,
        reward: Transformer | RewardFunction,  # frozen scalar model, or a function of text
        flops: dict[str, float],  # of the policy
        critic_flops: dict[str, float] | None,
    ) -> None:
        self.recipe, self.world, self.loader, self.idle = recipe, world, loader, idle
        self.tokenizer = renderer.tokenizer
        self.critic, self.reference, self.reward = critic, reference, reward
        self.flops = flops if critic_flops is None else {name: flops[name] + critic_flops[name] for name in flops}
        objective: Objective = recipe.objective.declaration
        if objective.rollout is None:
            raise ValueError(f"{objective.name} makes no rollouts")
        self.rule: OnPolicy = objective.rollout
        self.passes, self.updates_a_pass = self.rule.passes(recipe.objective)
        # of a single update the old log-probs are its own
        self.reads_logp = self.rule.logp(recipe.objective) or self.passes * self.updates_a_pass > 1
        self.rule_state = self.rule.state(recipe.objective)
        self.episodes = 0  # completions sampled since the run began
        self.score_scale: tuple[float, float] | None = None  # mean and deviation of the first rollout's scores
        r = recipe.rollout
        self.sampling = Sampling(r.max_new_tokens, r.temperature, stop_ids=tuple(renderer.stop_ids))
        longest = int(loader.store.prompt_len.max()) + r.samples * r.max_new_tokens
        if longest > recipe.batch.tokens:
            raise InputError(
                f"batch.tokens: the longest prompt with rollout.samples = {r.samples} completions of up to "
                f"{r.max_new_tokens} tokens takes {longest} tokens, above the budget of {recipe.batch.tokens}"
            )
        store = loader.store
        trees = np.arange(len(store) + 1) * r.samples
        lengths = np.full(trees[-1], r.max_new_tokens)
        per_prompt = tree_cost(
            store.prompt_len, lengths, trees, np.full(len(store), r.samples * r.max_new_tokens), **flops
        )
        # policy alone, an upper bound: every completion as long as it may be
        self.step_flops = recipe.forwards * self.passes * float(per_prompt.mean()) * recipe.batch.examples
        self.sampler = sampler
        sampler.expect(int(store.prompt_len.max()))
        self.seconds: dict[str, float] = {}  # of the last rollout, by phase

    # -------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, float]:
        """What the next rollout depends on beside weights and step."""
        mean, deviation = self.score_scale or (math.nan, math.nan)
        return self.rule_state | {"episodes": self.episodes, "score_mean": mean, "score_deviation": deviation}

    def load_state(self, state: dict[str, float]) -> None:
        self.rule_state = {name: state[name] for name in self.rule_state}
        self.episodes = int(state["episodes"])
        known = not math.isnan(state["score_mean"])
        self.score_scale = (state["score_mean"], state["score_deviation"]) if known else None

    # ------------------------------------------------------------------------------------------------ rollout

    def rollout(self, policy: Transformer, step: int) -> tuple[Rollout, dict[str, float]]:
        """Sample and score: the rollout and its metrics, TRL's names. A collective.

        Raises:
            InputError: a score that is not finite, with the prompt it belongs to. The weights have not moved.
        """
        started = time.perf_counter()
        prompts, completions = self._sample(policy, step)
        sampled = time.perf_counter()

        each = [c for of_prompt in completions for c in of_prompt]
        trees = [
            Tree(p, [c.tokens for c in cs], id=i) for i, (p, cs) in enumerate(zip(prompts, completions, strict=True))
        ]
        tree_start = torch.tensor([0, *np.cumsum([len(t.branches) for t in trees])])
        lengths = torch.tensor([len(c.tokens) for c in each])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        batches = self._minibatches(trees, step, number=0)
        seen = self._score(policy, batches, tree_start, offsets, completions, prompts)
        self._check_scores(seen.scores, trees, tree_start, step)

        stopped = torch.tensor([c.stopped for c in each])
        rolled = Rolled(
            self.recipe.rollout.samples,
            offsets,
            stopped,
            rewards=seen.scores,
            scores=self._normalised(seen.scores),
            logp=seen.logp,
            reference=seen.reference,
            values=seen.values,
        )
        made = self.rule.advantages(rolled, self.recipe.objective, self.rule_state)
        self.rule_state = made.state
        self.episodes += len(each)
        drawn = torch.tensor([x for c in each for x in c.logp])
        metrics = made.metrics | {"episode": self.episodes} | _lengths(lengths, stopped)
        if seen.logp is not None:
            metrics["sampling/sampling_logp_difference/mean"] = float((drawn - seen.logp).abs().mean())
        self._show(step, trees, each, rolled, tree_start)
        self.seconds = {"rollout": sampled - started, "score": time.perf_counter() - sampled}

        counted = torch.ones(len(each), dtype=torch.bool) if made.counted is None else made.counted
        counted_tokens = np.add.reduceat((lengths * counted).numpy(), tree_start[:-1].numpy())
        device = self.world.device

        def flat(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros(1)]).to(device)

        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else flat(x)

        rollout = Rollout(
            trees,
            tree_start.to(device),
            offsets.to(device),
            counted_tokens,
            drawn_logp=flat(drawn),
            advantages=flat(made.advantages),
            counted=flat(counted.float().repeat_interleave(lengths)),
            old_logp=maybe(seen.logp),
            reference=maybe(seen.reference),
            old_values=maybe(seen.values),
            returns=maybe(made.returns),
            batches=batches,
        )
        return rollout, metrics

    def _normalised(self, scores: Tensor) -> Tensor:
        """Scores [B], by the first rollout's mean and deviation where the recipe says so."""
        if not self.recipe.reward.normalize:
            return scores
        if self.score_scale is None:
            self.score_scale = (float(scores.mean()), float(scores.std()) if len(scores) > 1 else 1.0)
        return (scores - self.score_scale[0]) / max(self.score_scale[1], 1e-8)

    def _sample(self, policy: Transformer, step: int) -> tuple[list[list[int]], list[list[Completion]]]:
        """The step's prompts and the completions of each, all ranks'."""
        prompts = [self.loader.store.prompt(i) for i in self.loader.rows(step)]
        r, seed = self.recipe.rollout, self.recipe.run.seed
        return prompts, self.sampler(policy, prompts, self.sampling, samples=r.samples, seed=seed, step=step)

    # -------------------------------------------------------------------------------------------------- score

    @torch.no_grad()
    def _score(
        self,
        policy: Transformer,
        batches: list[Batch],
        tree_start: Tensor,
        offsets: Tensor,
        completions: list[list[Completion]],
        prompts: list[list[int]],
    ) -> Seen:
        """One forward of each model that is asked, along the packs of the first pass."""
        device, n = self.world.device, int(offsets[-1])
        tree_start_, offsets_ = tree_start.to(device), offsets.to(device)
        asked = {"logp": self.reads_logp, "reference": self.reference is not None, "values": self.critic is not None}
        names = [name for name, is_asked in asked.items() if is_asked]
        flat = torch.zeros(len(names) * n + len(offsets) - 1, device=device)
        of_tokens, scores = dict(zip(names, flat.split(n), strict=False)), flat[len(names) * n :]
        reward = self.reward if isinstance(self.reward, Transformer) else None
        forwards = [p for batch in batches for p in batch.packs] if names or reward is not None else []
        for share in forwards:  # forwards are collectives: idle ranks run them too
            pack = (self.idle if share is None else share).to(device, non_blocking=True)
            found = {}
            if self.reads_logp:
                found["logp"] = policy(pack, entropy=True).logp
            if self.reference is not None:
                found["reference"] = self.reference.logp(pack)
            if self.critic is not None:
                found["values"] = state_values(pack, self.critic(pack).values)
            rewards = None if reward is None else reward(pack).values
            if share is None:
                continue
            tokens = token_index(pack, tree_start_, offsets_)
            for name, values in found.items():
                of_tokens[name][tokens] = values
            if rewards is not None:
                scores[branch_index(pack, tree_start_)] = rewards[pack.ends]
        if not isinstance(self.reward, Transformer):
            self._call_reward(self.reward, scores, tree_start, completions, prompts)
        if self.world.size > 1:  # each entry was computed by one rank, the others hold zeros: the sum is exact
            dist.all_reduce(flat)
        flat = flat.cpu()
        seen = dict(zip(names, flat.split(n), strict=False))
        return Seen(flat[len(names) * n :], seen.get("logp"), seen.get("reference"), seen.get("values"))

    def _call_reward(
        self,
        reward: RewardFunction,
        scores: Tensor,
        tree_start: Tensor,
        completions: list[list[Completion]],
        prompts: list[list[int]],
    ) -> None:
        share = range(self.world.rank, len(prompts), self.world.size)  # this rank's prompts
        texts = [
            (self.tokenizer.decode(prompts[i]), self.tokenizer.decode(c.tokens[: len(c.tokens) - c.stopped]))
            for i in share
            for c in completions[i]
        ]
        rewards: list[float] = []
        problem: Exception | None = None
        try:
            rewards = [float(r) for r in reward([p for p, _ in texts], [c for _, c in texts])] if texts else []
            if len(rewards) != len(texts):
                raise InputError(f"the reward function gave {len(rewards)} scores for {len(texts)} completions")
        except Exception as error:  # whatever it is, the other ranks must not wait for this one
            problem = error
        said = [None if problem is None else f"{type(problem).__name__}: {problem}"] * self.world.size
        if self.world.size > 1:
            dist.all_gather_object(said, said[self.world.rank])
        if problem is not None:
            raise problem
        for rank, message in enumerate(said):
            if message is not None:
                raise InputError(f"the reward function failed on rank {rank}: {message}")
        branches = [k for i in share for k in range(int(tree_start[i]), int(tree_start[i + 1]))]
        scores[torch.tensor(branches, device=scores.device, dtype=torch.int64)] = torch.tensor(
            rewards, device=scores.device
        )

    def _check_scores(self, scores: Tensor, trees: list[Tree], tree_start: Tensor, step: int) -> None:
        bad = torch.nonzero(~torch.isfinite(scores)).flatten().tolist()
        if bad:
            tree = int(torch.searchsorted(tree_start, bad[0], right=True)) - 1
            completion = trees[tree].branches[bad[0] - int(tree_start[tree])]
            row = self.loader.store.where(int(self.loader.rows(step)[tree]))
            raise InputError(
                f"step {step}: the reward of {len(bad)} of {len(scores)} completions is not finite, the first "
                f"{float(scores[bad[0]])} for {row}, completion {self.tokenizer.decode(completion)[:80]!r}"
            )

    # -------------------------------------------------------------------------------------------------- train

    def updates(self, rollout: Rollout, step: int) -> Iterator[Batch]:
        """The minibatches of all passes, shuffled anew in each."""
        yield from rollout.batches
        for number in range(1, self.passes):
            yield from self._minibatches(rollout.trees, step, number)

    def _minibatches(self, trees: list[Tree], step: int, number: int) -> list[Batch]:
        """Those of one pass."""
        order = np.argsort(
            counted_hash(np.arange(len(trees)), self.recipe.run.seed, MINIBATCH_ORDER, step, number), kind="stable"
        )
        # the last step of an epoch of prompts may have fewer of them than there are minibatches
        parts = np.array_split(order, min(self.updates_a_pass, len(trees)))
        return [self._batch(trees, np.sort(part)) for part in parts]

    def _batch(self, trees: list[Tree], rows: np.ndarray) -> Batch:
        w, chosen = self.world, [trees[i] for i in rows]
        prompt_len = np.array([len(t.prompt) for t in chosen], np.int64)
        branch_len = np.array([len(b) for t in chosen for b in t.branches], np.int64)
        tree_start = np.cumsum([0, *(len(t.branches) for t in chosen)])
        scored = np.add.reduceat(branch_len, tree_start[:-1])
        cost = tree_cost(prompt_len, branch_len, tree_start, scored, **self.flops)
        packs: list[Pack | None] = []
        for share in Plan.make(prompt_len + scored, cost, w.size, self.recipe.batch.tokens).share(w.rank):
            laid_out = pack([chosen[i] for i in share]) if len(share) else None
            packs.append(laid_out.pin_memory() if laid_out is not None and w.device.type == "cuda" else laid_out)
        num_scored = int(scored.sum())
        return Batch(packs, rows, int(prompt_len.sum()) + num_scored, num_scored, float(cost.sum()), 0.0)

    def sampled(self, pack: Pack, rollout: Rollout, update: Batch, logp: Tensor) -> Sampled:
        """Of a rollout, what belongs to the scored tokens of one pack of an update. A collective where there is a
        critic: its forward.

        Args:
            logp: [R] fp32, the policy's now.
        """
        tokens = rollout.tokens(pack)

        def of_pack(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[tokens]

        return Sampled(
            old_logp=logp.detach() if rollout.old_logp is None else rollout.old_logp[tokens],
            advantages=rollout.advantages[tokens],
            counted=rollout.counted[tokens],
            completions=len(update.rows) * self.recipe.rollout.samples,
            counted_tokens=max(1, int(rollout.counted_tokens[update.rows].sum())),
            max_tokens=self.recipe.rollout.max_new_tokens,
            reference=of_pack(rollout.reference),
            values=None if self.critic is None else state_values(pack, self.critic(pack).values),
            old_values=of_pack(rollout.old_values),
            returns=of_pack(rollout.returns),
        )

    def metrics(self, pack: Pack, rollout: Rollout, logp: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What is said of a rollout by its only update, if nothing was computed before: the sampler's kernels against
        the training ones. It is rounding, or something is wrong."""
        if rollout.old_logp is not None:
            return {}
        difference = (rollout.drawn_logp[rollout.tokens(pack)] - logp.detach()).abs()
        return {"sampling/sampling_logp_difference/mean": (difference, torch.ones_like(difference))}

    # --------------------------------------------------------------------------------------------------- show

    def _show(self, step: int, trees: list[Tree], each: list[Completion], rolled: Rolled, tree_start: Tensor) -> None:
        """Some completions, for a person to read: a line of completions.jsonl for each."""
        r = self.recipe.rollout
        if not self.world.is_main or not r.show_every or step % r.show_every:
            return
        kl: Tensor | None = None
        if rolled.logp is not None and rolled.reference is not None:
            kl = rolled.logp - rolled.reference
        with open(RunFolder.at(self.recipe.run.folder).completions, "a", encoding="utf-8") as file:
            for tree in trees[: r.show]:
                for k in range(int(tree_start[tree.id]), int(tree_start[tree.id + 1])):
                    row = {
                        "step": step,
                        "prompt": self.tokenizer.decode(tree.prompt),
                        "completion": self.tokenizer.decode(each[k].tokens),
                        "score": float(rolled.rewards[k]),
                        "kl": None if kl is None else float(kl[rolled.offsets[k] : rolled.offsets[k + 1]].sum()),
                        "tokens": len(each[k].tokens),
                        "stopped": each[k].stopped,
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _lengths(lengths: Tensor, stopped: Tensor) -> dict[str, float]:
    """TRL's metrics of how long completions are ([B] int64), and which of them ended by themselves ([B] bool); of
    those that did, 0 where none did."""
    ended = lengths[stopped] if stopped.any() else lengths.new_zeros(1)
    return {
        "completions/mean_length": float(lengths.sum()) / len(lengths),
        "completions/min_length": int(lengths.min()),
        "completions/max_length": int(lengths.max()),
        "completions/clipped_ratio": 1 - float(stopped.float().mean()),
        "completions/mean_terminated_length": float(ended.sum()) / len(ended),
        "completions/min_terminated_length": int(ended.min()),
        "completions/max_terminated_length": int(ended.max()),
    }
