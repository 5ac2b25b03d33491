"""PPO's own part of a run: rollouts, what they are scored by, and the minibatches that are learned from.

One step of the trainer is one rollout and the `num_ppo_epochs` x `num_mini_batches` updates on it:

    sample    completions of the step's prompts by the policy as it stands (`models.generate`)
    score     one forward each of policy, reference, value and reward model, along the first epoch's packs; then KL
              penalty, rewards, advantages
    train     the trainer's own loop over the minibatches

The old log-probs are recomputed by the training kernel, in the very packs of the first update: its ratios are 1.
Flat arrays over all completions of all ranks hold everything that is per token; each rank fills in what it computed
and a sum over ranks completes them, so advantages are whitened over the whole batch, and the same on every rank.
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

from vdengine import objectives
from vdengine import recipe as recipes
from vdengine.data.batching import Batch, Plan
from vdengine.data.loader import Loader
from vdengine.engine.parallel import World
from vdengine.engine.reference import LiveReference, branch_index
from vdengine.engine.rollouts import Sampler
from vdengine.errors import InputError
from vdengine.kernels.gather import gather_rows
from vdengine.models.generate import Completion, Sampling
from vdengine.models.transformer import Transformer
from vdengine.noise import MINIBATCH_ORDER, counted_hash
from vdengine.objectives import Sampled
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
    old_logp: Tensor  # [N+1] fp32
    old_values: Tensor  # [N+1] fp32
    advantages: Tensor  # [N+1] fp32
    returns: Tensor  # [N+1] fp32
    batches: list[Batch]  # the first epoch's, whose packs have been scored

    def tokens(self, pack: Pack) -> Tensor:
        """Index in the arrays of every scored token of a pack, [R] int64."""
        return token_index(pack, self.tree_start, self.offsets)


def token_index(pack: Pack, tree_start: Tensor, offsets: Tensor) -> Tensor:
    shift = offsets[branch_index(pack, tree_start)] - pack.branch_offsets[:-1]
    shift = shift.repeat_interleave(pack.branch_lengths, output_size=pack.num_scored)
    return shift + torch.arange(pack.num_scored, device=shift.device)


def state_values(pack: Pack, values: Tensor) -> Tensor:
    """Of a scalar model's values [T] those before each scored token, [R]."""
    inverse = pack.rows_inverse
    return gather_rows(values[:, None], pack.rows, inverse.order, inverse.offsets)[:, 0]


class PPO:
    """Everything a PPO run has beside its policy.

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
        critic: Transformer,  # trained; values before each token
        reference: LiveReference | None,
        reward: Transformer | RewardFunction,  # frozen scalar model, or a function of text
        flops: dict[str, float],  # of the policy
        critic_flops: dict[str, float],
    ) -> None:
        self.recipe, self.world, self.loader, self.idle = recipe, world, loader, idle
        self.tokenizer = renderer.tokenizer
        self.critic, self.reference, self.reward = critic, reference, reward
        self.flops = {name: flops[name] + critic_flops[name] for name in flops}
        self.kl_coef = recipe.objective.kl_coef
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
        self.step_flops = (
            recipe.forwards * recipe.objective.num_ppo_epochs * float(per_prompt.mean()) * recipe.batch.examples
        )
        self.sampler = sampler
        sampler.expect(int(store.prompt_len.max()))
        self.seconds: dict[str, float] = {}  # of the last rollout, by phase

    # -------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, float]:
        """What the next rollout depends on beside weights and step."""
        mean, deviation = self.score_scale or (math.nan, math.nan)
        return {
            "kl_coef": self.kl_coef,
            "episodes": self.episodes,
            "score_mean": mean,
            "score_deviation": deviation,
        }

    def load_state(self, state: dict[str, float]) -> None:
        self.kl_coef, self.episodes = state["kl_coef"], int(state["episodes"])
        known = not math.isnan(state["score_mean"])
        self.score_scale = (state["score_mean"], state["score_deviation"]) if known else None

    # ------------------------------------------------------------------------------------------------ rollout

    def rollout(self, policy: Transformer, step: int) -> tuple[Rollout, dict[str, float]]:
        """Sample and score: the rollout and its metrics, TRL's names. A collective.

        Raises:
            InputError: a score that is not finite, with the prompt it belongs to. The weights have not moved.
        """
        o, started = self.recipe.objective, time.perf_counter()
        prompts, completions = self._sample(policy, step)
        sampled = time.perf_counter()

        each = [c for of_prompt in completions for c in of_prompt]
        trees = [
            Tree(p, [c.tokens for c in cs], id=i) for i, (p, cs) in enumerate(zip(prompts, completions, strict=True))
        ]
        tree_start = torch.tensor([0, *np.cumsum([len(t.branches) for t in trees])])
        offsets = torch.tensor([0, *np.cumsum([len(c.tokens) for c in each])])
        batches = self._minibatches(trees, step, epoch=0)
        logp, reference, values, scores = self._score(policy, batches, tree_start, offsets, completions, prompts)

        stopped = torch.tensor([c.stopped for c in each])
        self._check_scores(scores, trees, tree_start, step)
        raw = scores
        if self.recipe.reward.normalize:
            if self.score_scale is None:
                self.score_scale = (float(raw.mean()), float(raw.std()) if len(raw) > 1 else 1.0)
            scores = (raw - self.score_scale[0]) / max(self.score_scale[1], 1e-8)
        scores = scores - o.missing_eos_penalty * ~stopped
        kl = None if reference is None else objectives.kl_penalty(logp, reference, o.kl_estimator)
        penalty = torch.zeros_like(logp) if kl is None else self.kl_coef * kl
        rewards = objectives.token_rewards(penalty, scores, offsets)
        if o.whiten_rewards:
            rewards = objectives.whiten(rewards, shift_mean=False)
        advantages, returns = objectives.gae(rewards, values, offsets, o.gamma, o.lam)
        advantages = objectives.whiten(advantages)

        self.episodes += len(each)
        drawn = torch.tensor([x for c in each for x in c.logp])
        metrics = {
            "objective/scores": float(raw.mean()),
            "objective/rlhf_reward": float((scores.sum() - penalty.sum()) / len(each)),
            "objective/non_score_reward": float(0.0 - penalty.sum() / len(each)),
            "objective/entropy": float(-logp.sum() / len(each)),
            "episode": self.episodes,
            "val/num_eos_tokens": int(stopped.sum()),
            "completions/mean_length": len(logp) / len(each),
            # the sampler's kernels against the training ones: rounding, or something is wrong
            "sampling/sampling_logp_difference/mean": float((drawn - logp).abs().mean()),
        }
        if kl is not None:
            mean_kl = float(kl.sum() / len(each))
            metrics |= {"objective/kl": mean_kl, "objective/kl_coef": self.kl_coef}
            if o.kl_target:
                self.kl_coef = objectives.adapt_kl_coef(self.kl_coef, mean_kl, o.kl_target, len(each), o.kl_horizon)
        self._show(step, trees, each, raw, kl, tree_start, offsets)
        self.seconds = {"rollout": sampled - started, "score": time.perf_counter() - sampled}
        device = self.world.device

        def flat(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros(1)]).to(device)

        made = Rollout(
            trees,
            tree_start.to(device),
            offsets.to(device),
            old_logp=flat(logp),
            old_values=flat(values),
            advantages=flat(advantages),
            returns=flat(returns),
            batches=batches,
        )
        return made, metrics

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
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Log-probs of policy and reference and values [N], scores [B], on the CPU."""
        device, n, b = self.world.device, int(offsets[-1]), len(offsets) - 1
        tree_start_, offsets_ = tree_start.to(device), offsets.to(device)
        flat = torch.zeros(3 * n + b, device=device)
        logp, reference, values, scores = flat.split([n, n, n, b])
        for share in (p for batch in batches for p in batch.packs):  # forwards are collectives: idle ranks run them too
            pack = (self.idle if share is None else share).to(device, non_blocking=True)
            policy_logp, critic_values = policy(pack, entropy=True).logp, self.critic(pack).values
            reference_logp = None if self.reference is None else self.reference.logp(pack)
            reward_values = self.reward(pack).values if isinstance(self.reward, Transformer) else None
            if share is None:
                continue
            tokens = token_index(pack, tree_start_, offsets_)
            logp[tokens], values[tokens] = policy_logp, state_values(pack, critic_values)
            if reference_logp is not None:
                reference[tokens] = reference_logp
            if reward_values is not None:
                scores[branch_index(pack, tree_start_)] = reward_values[pack.ends]
        if not isinstance(self.reward, Transformer):
            self._call_reward(self.reward, scores, tree_start, completions, prompts)
        if self.world.size > 1:  # each entry was computed by one rank, the others hold zeros: the sum is exact
            dist.all_reduce(flat)
        logp, reference, values, scores = flat.cpu().split([n, n, n, b])
        return logp, None if self.reference is None else reference, values, scores

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
        rewards = list(reward([p for p, _ in texts], [c for _, c in texts])) if texts else []
        if len(rewards) != len(texts):
            raise InputError(f"the reward function gave {len(rewards)} scores for {len(texts)} completions")
        branches = [k for i in share for k in range(int(tree_start[i]), int(tree_start[i + 1]))]
        scores[torch.tensor(branches, device=scores.device, dtype=torch.int64)] = torch.tensor(
            [float(r) for r in rewards], device=scores.device
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
        """The minibatches of all epochs, shuffled anew in each."""
        yield from rollout.batches
        for epoch in range(1, self.recipe.objective.num_ppo_epochs):
            yield from self._minibatches(rollout.trees, step, epoch)

    def _minibatches(self, trees: list[Tree], step: int, epoch: int) -> list[Batch]:
        order = np.argsort(
            counted_hash(np.arange(len(trees)), self.recipe.run.seed, MINIBATCH_ORDER, step, epoch), kind="stable"
        )
        # the last step of an epoch of prompts may have fewer of them than there are minibatches
        parts = np.array_split(order, min(self.recipe.objective.num_mini_batches, len(trees)))
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

    def sampled(self, pack: Pack, rollout: Rollout) -> Sampled:
        """Of a rollout, what belongs to the scored tokens of one pack. A collective: the critic's forward."""
        tokens = rollout.tokens(pack)
        return Sampled(
            values=state_values(pack, self.critic(pack).values),
            old_values=rollout.old_values[tokens],
            old_logp=rollout.old_logp[tokens],
            advantages=rollout.advantages[tokens],
            returns=rollout.returns[tokens],
        )

    # --------------------------------------------------------------------------------------------------- show

    def _show(
        self,
        step: int,
        trees: list[Tree],
        each: list[Completion],
        scores: Tensor,
        kl: Tensor | None,
        tree_start: Tensor,
        offsets: Tensor,
    ) -> None:
        """Some completions, for a person to read: a line of completions.jsonl for each."""
        r = self.recipe.rollout
        if not self.world.is_main or not r.show_every or step % r.show_every:
            return
        with open(RunFolder.at(self.recipe.run.folder).completions, "a", encoding="utf-8") as file:
            for tree in trees[: r.show]:
                for k in range(int(tree_start[tree.id]), int(tree_start[tree.id + 1])):
                    row = {
                        "step": step,
                        "prompt": self.tokenizer.decode(tree.prompt),
                        "completion": self.tokenizer.decode(each[k].tokens),
                        "score": float(scores[k]),
                        "kl": None if kl is None else float(kl[offsets[k] : offsets[k + 1]].sum()),
                        "tokens": len(each[k].tokens),
                        "stopped": each[k].stopped,
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
