"""PPO, GRPO and RLOO in whole runs: known answers, exact first ratios, ranks, resume, probes, and what may go wrong.

The formulas are in tests/objectives, sampling in tests/models/test_generate.py.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers.peers import hf_model, ours
from helpers.runs import STEPS, recipe_of
from helpers.scenarios import assert_close, same_bits

import vdengine as vd
from vdengine.engine.pattern import pattern_reward
from vdengine.engine.rollout import state_values, token_index
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError
from vdengine.models.weights import ScalarWeights, build_model, open_weights
from vdengine.recipe import make_recipe, to_tables


@pytest.fixture
def recipe(tmp_path, tiny_models, data):
    """A PPO recipe on a tiny model, without probes."""
    r = recipe_of("ppo_probes_off", tmp_path, str(tiny_models["qwen3"]), str(data))
    r.reward.normalize = False
    return r


def run(recipe, reward=None, steps=None):
    recipe.run.steps = steps or recipe.run.steps
    trainer = Trainer(recipe, reward=reward)
    rows = [trainer.step() for _ in range(trainer.total_steps)]
    return trainer, rows


# ------------------------------------------------------------------------------------------- runs on 1 and 2 ranks


@pytest.mark.slow
def test_one_rank_equals_two(one, two, start):
    """Guards noise, whitening and denominators against the number of ranks: the same completions, scores and, to
    rounding, weights."""
    a, b = one["ppo"], two["ppo"]
    for name in ("objective/scores", "completions/mean_length", "val/num_eos_tokens", "episode"):
        assert [r[name] for r in a["rows"]] == pytest.approx([r[name] for r in b["rows"]], rel=1e-6), name
    assert_close(a, b, start)


@pytest.mark.slow
def test_sharded_sampling_equals_gathered(runs, one, start):
    """Guards against another run where a rank gathers the weights layer by layer instead of sampling with a whole copy
    of them."""
    assert_close(one["ppo"], runs["ppo_sharded"], start)


@pytest.mark.slow
def test_probes_do_not_touch_training(runs, start):
    """Guards the second stream: it rides in the first update's forwards, and changes no bit."""
    assert same_bits(runs["ppo"], runs["ppo_probes_off"])
    assert not same_bits(runs["ppo"], start)
    steps, logp = runs["ppo"]["drift"]
    assert steps.tolist() == list(range(STEPS + 1)) and np.isfinite(logp).all() and (logp[0] != logp[-1]).any()


@pytest.mark.slow
def test_probe_scores_are_the_same_bits_on_two_ranks(one, two):
    """Guards theta_0's scores: they do not depend on the number of ranks."""
    assert np.array_equal(one["ppo"]["drift"][1][0], two["ppo"]["drift"][1][0])


@pytest.mark.slow
def test_one_sampler_is_kept_for_the_run(recipe):
    """Guards rollouts on a GPU: the copy of the weights, the cache and what is captured of them stay where they are
    from rollout to rollout, for PPO's samples and for answers alike, and the copy has the weights of its step."""
    recipe.model.dtype, recipe.run.steps = "bfloat16", 3
    recipe.probes.every, recipe.probes.tokens = 1, 2048
    recipe.answers.samples, recipe.answers.base, recipe.answers.probes, recipe.answers.max_tokens = 2, 2, 4, 3
    trainer = Trainer(recipe)
    held = []
    for _ in range(3):
        expected = {n: p.full_tensor().bfloat16() for n, p in trainer.model.named_parameters()}
        trainer.step()
        generator = trainer.sampler.generator
        assert all(torch.equal(p, expected[n]) for n, p in generator.model.named_parameters())
        held.append((generator, generator.memory, [p.data_ptr() for p in generator.model.parameters()]))
    assert trainer.rollouts.sampler is trainer.sampler is trainer.probes.answers.sampler
    assert all(h[0] is held[0][0] and h[1] is held[0][1] and h[2] == held[0][2] for h in held)
    assert len(generator.steps) == 2  # PPO's settings, and those of answers
    trainer.close()


@pytest.mark.slow
def test_resume_is_exact(runs):
    """Guards checkpoints between rollouts: value model, both optimizers, score scale and counters go on where they
    stood."""
    assert same_bits(runs["ppo"], runs["ppo_resumed"])
    lines = {}
    for name in ("ppo", "ppo_resumed"):
        folder = runs.out / name
        lines[name] = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        samples = [json.loads(line) for line in open(folder / "completions.jsonl")]
        assert [s["step"] for s in samples] == [0] * 8 + [2] * 8  # 4 prompts x 2 samples, every 2 steps
    for a, b in zip(lines["ppo"], lines["ppo_resumed"], strict=True):
        timed = [k for k in a if "second" in k or k == "memory_bytes"]
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_groups_resume_exactly_on_any_number_of_ranks(one, two, start, name):
    """Guards runs without a critic: the same completions, groups and denominators on two ranks as on one, and the same
    bits from a checkpoint between rollouts."""
    a, b = one[name], two[name]
    for metric in ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "episode", "kl"):
        assert [r[metric] for r in a["rows"]] == pytest.approx([r[metric] for r in b["rows"]], rel=1e-4, abs=1e-6)
    assert_close(a | {"rows": []}, b | {"rows": []}, start)  # the sum of a group's losses is 0 but for rounding
    assert same_bits(a, one[f"{name}_resumed"]) and not same_bits(a, start)
    assert "value/grad_norm" not in a["rows"][0] and a["rows"][-1]["grad_norm"] > 0


@pytest.mark.slow
def test_probes_do_not_touch_groups(one):
    """Guards the second stream, in the first of several updates of a rollout."""
    assert same_bits(one["grpo"], one["grpo_probed"])


@pytest.mark.slow
def test_metrics_have_trls_names(two):
    """Guards what a user of TRL's PPO looks for, and the three phases."""
    row = two["ppo"]["rows"][-1]
    wanted = {
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
        "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
        "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "episode", "grad_norm",
        "value/grad_norm", "learning_rate", "rollout_seconds", "score_seconds", "train_seconds", "probe_seconds",
    }  # fmt: skip
    assert wanted <= row.keys()
    assert all(math.isfinite(row[name]) for name in wanted)
    parts = row["rollout_seconds"] + row["score_seconds"] + row["train_seconds"]
    assert parts == pytest.approx(row["step_seconds"])
    assert row["episode"] == STEPS * 6 * 2


# ------------------------------------------------------------------------------------------------------ exactness


def test_the_first_ratio_is_exactly_one(recipe):
    """Guards old log-probs against the sampler's kernels, another temperature or other packs."""
    recipe.objective.num_ppo_epochs, recipe.objective.num_mini_batches = 1, 1
    trainer, rows = run(recipe)
    for row in rows:
        assert row["val/ratio"] == 1.0 and row["policy/approxkl_avg"] == 0.0 and row["policy/clipfrac_avg"] == 0.0
        # fp32 kernels of two kinds on log-probs around 5: rounding, no more
        assert row["sampling/sampling_logp_difference/mean"] < 1e-5
    assert rows[0]["objective/kl"] == 0.0  # the policy is its own reference
    assert rows[-1]["objective/kl"] != 0.0
    trainer.close()


def test_a_rollout_by_hand(recipe):
    """Guards what a rollout is made of: every number of it recomputed from the completions alone, in float64.

    Tolerance: fp32 forwards along other packs may differ by 16 EPS of log-probs up to 7, 2e-5; a return adds five such
    terms, 1e-4; whitening divides by a deviation of 0.25, which makes that 4e-4. A wrong term shows as 1e-1.
    """
    recipe.objective.kl_coef, recipe.objective.missing_eos_penalty = 0.3, 0.7
    trainer = Trainer(recipe)
    trainer.step()  # away from the reference
    got, metrics = trainer.rollouts.rollout(trainer.model, 1)
    o, t = recipe.objective, recipe.rollout.temperature
    plain, stop = vd.load_model(recipe.model.source), set(trainer.renderer.stop_ids)
    plain.load_state_dict({n: p.full_tensor() for n, p in trainer.model.named_parameters()}, strict=False)
    reference = vd.load_model(recipe.model.source)
    reference.lm_head.temperature = plain.lm_head.temperature = t
    rewards, values, advantages, scores = [], [], [], []
    at = 0
    for tree in got.trees:
        for branch in tree.branches:
            one = vd.pack([vd.Tree(tree.prompt, [branch])])
            with torch.no_grad():
                logp, ref = plain(one).logp.double(), reference(one).logp.double()
                v = state_values(one, trainer.rollouts.critic(one).values).double()
            ended = branch[-1] in stop
            text = trainer.tokenizer.decode(branch[:-1] if ended else branch)
            (score,) = pattern_reward("[a-m]")([""], [text])
            scores.append(score)
            r = -o.kl_coef * (logp - ref)
            r[-1] += score - (0.0 if ended else o.missing_eos_penalty)
            a, later = torch.zeros(len(r), dtype=torch.float64), 0.0
            for i in reversed(range(len(r))):
                delta = r[i] + o.gamma * (v[i + 1] if i + 1 < len(r) else 0.0) - v[i]
                a[i] = later = delta + o.gamma * o.lam * later
            np.testing.assert_allclose(got.old_logp[at : at + len(r)], logp, atol=2e-5)
            np.testing.assert_allclose(got.old_values[at : at + len(r)], v, atol=2e-5)
            np.testing.assert_allclose(got.returns[at : at + len(r)], a + v, atol=1e-4)
            rewards.append(r), values.append(v), advantages.append(a)
            at += len(r)
    a = torch.cat(advantages)
    np.testing.assert_allclose(got.advantages[:-1], (a - a.mean()) / (a.var() + 1e-8).sqrt(), atol=4e-4)
    assert got.old_logp.shape == (at + 1,) and got.old_logp[-1] == 0.0  # what the idle pack reads
    assert metrics["objective/scores"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert metrics["objective/rlhf_reward"] == pytest.approx(float(torch.cat(rewards).sum()) / len(scores), abs=1e-4)
    trainer.close()


def test_token_index_and_state_values():
    """Guards the way from a pack to the rollout's arrays, any subset of trees in any order."""
    trees = [vd.Tree([1, 2], [[3, 4, 5], [6]], id=0), vd.Tree([7], [[8, 9]], id=1), vd.Tree([1], [[2], [3, 4]], id=2)]
    start, offsets = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 3, 4, 6, 7, 9])
    tokens = torch.tensor([3, 4, 5, 6, 8, 9, 2, 3, 4])
    for chosen in ([0, 1, 2], [2, 0], [1], [1, 2]):
        pack = vd.pack([trees[i] for i in chosen])
        assert torch.equal(tokens[token_index(pack, start, offsets)], pack.targets)
        values = torch.arange(pack.num_tokens, dtype=torch.float32)
        assert torch.equal(state_values(pack, values), values[pack.rows])
    idle = vd.pack([vd.Tree([0], [[0]], id=-1)])
    assert token_index(idle, start, offsets).tolist() == [9]  # behind the last


GROUPS = {"grpo": {"loss_type": "grpo"}, "rloo": {"beta": 0.0}}


def in_groups(recipe, name, **objective):
    """The recipe for an objective that compares the completions of a prompt."""
    tables = to_tables(recipe)
    for key in ("samples", "temperature", "max_new_tokens"):
        tables["rollout"][key] = getattr(recipe.rollout, key)
    tables["objective"] = {"name": name} | GROUPS[name] | objective
    tables.pop("value")
    return make_recipe(tables)


@pytest.mark.parametrize(
    "objective",
    [
        {"loss_type": "grpo", "beta": 0.1},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.1, "num_mini_batches": 2},
        {"loss_type": "dapo", "mask_truncated_completions": True, "num_mini_batches": 2},
    ],
)
def test_a_group_by_hand(recipe, objective):
    """Guards a whole GRPO update, denominators over all packs of it included: the gradient of every minibatch is that
    of the written-out loss over its completions, each a sequence of its own, in one graph.

    Tolerance: fp32 gradients along other packs, 256 EPS of the largest entry of a tensor.
    """
    recipe.rollout.samples, recipe.rollout.max_new_tokens = 3, 8
    recipe = in_groups(recipe, "grpo", **objective)
    recipe.data.max_tokens = recipe.batch.tokens = 140  # several packs an update
    trainer = Trainer(recipe)
    ends = tuple(range(60))  # of the byte tokens: some completions end, others are cut off
    trainer.rollouts.sampling = type(trainer.rollouts.sampling)(8, recipe.rollout.temperature, stop_ids=ends)
    rollout, _ = trainer.rollouts.rollout(trainer.model, 0)
    o, plain = recipe.objective, vd.load_model(recipe.model.source)
    plain.lm_head.temperature = recipe.rollout.temperature
    updates = list(trainer.rollouts.updates(rollout, 0))
    assert len(updates) == o.num_mini_batches and max(len(u.packs) for u in updates) > 1
    seen = []
    for update in updates:
        # ours, through the trainer's own loop body
        trainer.model.zero_grad()
        for pack in update.packs:
            losses, _ = trainer._losses(pack, trainer.model(pack), trainer.train_extras, rollout, update)
            losses.sum().backward()
        plain.zero_grad()
        terms, counted_tokens = [], 0
        for row in update.rows:
            tree = rollout.trees[row]
            texts = [trainer.tokenizer.decode(b[:-1] if b[-1] in ends else b) for b in tree.branches]
            scores = np.array(pattern_reward("[a-m]")([""] * 3, texts))
            advantages = scores - scores.mean()
            if o.scale_rewards == "group":
                advantages = advantages / (scores.std(ddof=1) + 1e-4)
            for branch, advantage in zip(tree.branches, advantages, strict=True):
                seen.append(branch[-1] in ends)
                if o.mask_truncated_completions and branch[-1] not in ends:
                    continue
                logp = plain(vd.pack([vd.Tree(tree.prompt, [branch])])).logp
                # the policy is the sampling one and the reference: ratios are 1, the KL is 0 with a gradient of 0
                each = -advantage * (logp - logp.detach()).exp()
                terms.append(each.mean() if o.loss_type == "grpo" else each.sum())
                counted_tokens += len(branch)
        count = len(update.rows) * 3
        divisor = {"grpo": count, "dr_grpo": count * 8, "dapo": max(1, counted_tokens)}[o.loss_type]
        (torch.stack(terms).sum() / divisor).backward()
        for name, p in plain.named_parameters():
            ours_ = dict(trainer.model.named_parameters())[name].grad.full_tensor()
            assert (ours_ - p.grad).abs().max() <= 256 * 2.0**-23 * max(p.grad.abs().max(), 1e-3), name
    assert 0 < sum(seen) < len(seen)  # some ended, some did not
    trainer.close()


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_one_update_needs_no_forward_for_its_old_log_probs(recipe, name):
    """Guards the saved forward: with old log-probs computed before or not, an update has the same bits, and says how
    far the sampler's kernels are from the training ones."""
    recipe = in_groups(recipe, name)
    found = []
    for computed in (False, True):
        recipe.run.folder = f"{recipe.run.folder}-{computed}"
        trainer = Trainer(recipe)
        assert trainer.rollouts.reads_logp is False and trainer.rollouts.critic is trainer.rollouts.reference is None
        trainer.rollouts.reads_logp = computed
        row = trainer.step()
        assert row["ratio"] == 1.0 and row["sampling/sampling_logp_difference/mean"] < 1e-5
        assert len(trainer.trained) == 1 and "kl" not in row
        found.append([p.full_tensor().clone() for p in trainer.model.parameters()])
        trainer.close()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# -------------------------------------------------------------------------------------------------- known answers


def learns(recipe):
    """Settings under which a tiny model learns a simple reward within seconds."""
    recipe.batch.examples, recipe.batch.tokens, recipe.rollout.samples, recipe.rollout.max_new_tokens = 8, 4096, 4, 6
    recipe.rollout.temperature, recipe.rollout.show_every = 1.0, 0
    recipe.objective.kl_coef, recipe.objective.num_ppo_epochs, recipe.objective.num_mini_batches = 0.0, 2, 1
    recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.schedule = 1e-2, 1e-5, "constant"
    return recipe


@pytest.mark.slow
def test_a_known_answer(recipe):
    """Guards the sign and flow of everything: letters a to m are rewarded; chance gives 0.05, the best is 1."""
    recipe = learns(recipe)
    recipe.objective.reference = "none"
    trainer, rows = run(recipe, steps=20)
    scores = [row["objective/scores"] for row in rows]
    assert scores[0] < 0.15 and np.mean(scores[-3:]) > 0.9, scores
    assert "objective/kl" not in rows[0]
    trainer.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, objective",
    [
        ("grpo", {"loss_type": "grpo"}),
        ("grpo", {"loss_type": "dr_grpo", "scale_rewards": "none", "num_iterations": 2}),
        ("grpo", {"loss_type": "dapo", "epsilon_high": 0.28}),
        ("rloo", {"num_iterations": 2}),
    ],
)
def test_groups_solve_a_known_answer(recipe, name, objective):
    """Guards the sign and flow of everything without a critic: letters a to m are rewarded; chance gives 0.05, the best
    is 1."""
    recipe = in_groups(learns(recipe), name, **objective)
    recipe.rollout.samples = 8
    trainer, rows = run(recipe, steps=25)
    rewards = [row["reward"] for row in rows]
    assert rewards[0] < 0.15 and np.mean(rewards[-3:]) > 0.9, rewards
    trainer.close()


@pytest.mark.slow
def test_a_large_kl_coefficient_keeps_the_policy(recipe, tmp_path):
    """Guards the penalty: under it the same run stays where it was, and without it goes far."""
    recipe = learns(recipe)
    recipe.optimizer.lr = 3e-3
    recipe.objective.kl_coef = 10.0
    trainer, held = run(recipe, steps=12)
    trainer.close()
    recipe.run.folder, recipe.objective.kl_coef = str(tmp_path / "free"), 0.0
    trainer, free = run(recipe, steps=12)
    trainer.close()
    held, free = (np.mean([row["objective/kl"] for row in rows[-3:]]) for rows in (held, free))
    # whitened advantages push with the same force whatever their size: the policy stays near, it does not stand still
    assert held < 0.3 * free and free > 1.0, (held, free)


@pytest.mark.slow
def test_a_reward_model_of_our_own(recipe, tmp_path, tiny_models):
    """Guards the whole way: preferences -> reward model -> its folder -> PPO, whose scores reach the preferred's."""
    rng = np.random.default_rng(0)
    word = lambda letters: "".join(rng.choice(list(letters), 6))  # noqa: E731
    anything = [chr(c) for c in range(33, 127)]
    rows = [{"prompt": f"say {i}", "chosen": word("abcdefghijklm"), "rejected": word(anything)} for i in range(160)]
    pairs = tmp_path / "letters.jsonl"
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows))
    first = recipe_of("reward", tmp_path, str(tiny_models["qwen3"]), str(pairs))
    first.checkpoint.export, first.run.steps, first.batch.examples = True, 40, 16
    first.optimizer.lr, first.optimizer.eps = 3e-3, 1e-8
    trainer = Trainer(first)
    for _ in range(40):
        found = trainer.step()
    assert found["accuracy"] > 0.9
    trainer.finish()
    trainer.close()

    recipe = learns(recipe)
    recipe.reward.source, recipe.reward.normalize = str(tmp_path / "reward" / "export"), True
    trainer, rows = run(recipe, steps=40)
    trainer.close()
    scores = [row["objective/scores"] for row in rows]
    # What it finds is seldom the letters: the reward model has never seen most of the bytes that a random model writes,
    # and some of them score high. PPO is to find what scores as the preferred answers do, and it does.
    preferred = found["mean_reward"] + found["margin"] / 2
    gap = preferred - scores[0]
    assert gap > 2.0 and np.mean(scores[-5:]) > scores[0] + 0.8 * gap, (scores, preferred)


# -------------------------------------------------------------------------------------------------------- options


@pytest.mark.slow
def test_normalised_scores_and_adaptive_kl(recipe):
    """Guards the first rollout's scale, kept for the run, and a coefficient that moves and is logged."""
    recipe.reward.normalize, recipe.objective.kl_target, recipe.objective.kl_horizon = True, 1.0, 100
    trainer, rows = run(recipe)
    mean, deviation = trainer.rollouts.score_scale
    assert rows[0]["objective/scores"] == pytest.approx(mean) and deviation > 0
    # 12 completions, KL 0 at first: down by a fifth of 12 / 100
    assert rows[1]["objective/kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 12 / 100))
    trainer.close()


def test_a_function_sees_text(recipe):
    """Guards an embedder's reward: prompts as rendered, completions without their stop token, one score for each."""
    seen = []

    def reward(prompts, completions):
        seen.append((prompts, completions))
        return [float(len(c)) for c in completions]

    recipe.reward.source = ""
    trainer, (row,) = run(recipe, reward, steps=1)
    ((prompts, completions),) = seen
    assert len(prompts) == len(completions) == 12 and all(p.endswith("<|im_start|>assistant\n") for p in prompts)
    assert not any("<|im_end|>" in c for c in completions)
    assert row["objective/scores"] == pytest.approx(np.mean([len(c) for c in completions]))
    trainer.close()


def test_a_value_model_starts_where_it_is_told(recipe, tmp_path, tiny_models):
    """Guards the first guess: 0 on the policy's trunk; a reward model's own scores when that is the reward; a language
    model's trunk when it is named."""
    trainer = Trainer(recipe)
    assert not trainer.rollouts.critic.score.weight.full_tensor().any()
    trainer.close()
    folder = tmp_path / "scores"
    tokenizer = vd.load_tokenizer(recipe.model.source)
    vd.save_model(build_model(ScalarWeights(open_weights(recipe.model.source), 5)), tokenizer, folder)
    recipe.reward.source, recipe.run.folder = str(folder), str(tmp_path / "from-reward")
    trainer = Trainer(recipe)
    assert torch.equal(
        trainer.rollouts.critic.score.weight.full_tensor(), trainer.rollouts.reward.score.weight.full_tensor()
    )
    assert trainer.rollouts.critic.score.weight.full_tensor().any()
    trainer.close()
    recipe.value.source, recipe.run.folder = str(tiny_models["llama"]), str(tmp_path / "from-other")
    trainer = Trainer(recipe)
    assert (
        trainer.rollouts.critic.config.model_type == "llama"
        and not trainer.rollouts.critic.score.weight.full_tensor().any()
    )
    trainer.close()


def test_no_completion_ends(recipe):
    """Guards truncation and the penalty: no stop id among so few tokens is an ordinary case."""
    recipe.objective.missing_eos_penalty = 1.0
    trainer = Trainer(recipe)
    trainer.rollouts.sampling = type(trainer.rollouts.sampling)(3, 0.9, stop_ids=())
    row = trainer.step()
    assert row["val/num_eos_tokens"] == 0 and row["completions/mean_length"] == 3.0
    assert row["objective/rlhf_reward"] == pytest.approx(row["objective/scores"] - 1.0, abs=1e-6)
    trainer.close()


def test_every_completion_ends_at_once(recipe):
    """Guards the shortest completion, its stop token alone: a text of no characters, one action, no NaN."""
    trainer = Trainer(recipe)
    trainer.rollouts.sampling = type(trainer.rollouts.sampling)(
        5, 0.9, stop_ids=tuple(range(trainer.weights.config.vocab_size))
    )
    row = trainer.step()
    assert row["val/num_eos_tokens"] == 12 and row["completions/mean_length"] == 1.0 and row["skipped_updates"] == 0
    assert all(torch.isfinite(p.full_tensor()).all() for p in trainer.model.parameters())
    trainer.close()


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "count"])
def test_a_bad_reward_moves_nothing(recipe, bad):
    """Guards the weights against NaN from outside; the error names the row."""
    recipe.reward.source = ""

    def reward(prompts, completions):
        return [0.0] * 3 if bad == "count" else [0.0] * 4 + [bad] + [0.0] * (len(completions) - 5)

    trainer = Trainer(recipe, reward=reward)
    before = {n: p.full_tensor().detach().clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(
        InputError, match="3 scores for 12" if bad == "count" else r"not finite, .* row \d+, completion"
    ):
        trainer.step()
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in trainer.model.named_parameters())
    trainer.close()


def test_a_nan_gradient_is_skipped(recipe):
    """Guards both models: what is not finite in one update of a rollout moves neither."""
    trainer = Trainer(recipe)
    rollout, metrics = trainer.rollouts.rollout(trainer.model, 0)
    rollout.returns[:] = float("nan")
    trainer.rollouts.rollout = lambda model, step: (rollout, metrics)
    before = [p.full_tensor().detach().clone() for t in trainer.trained for p in t.parameters]
    row = trainer.step()
    assert row["skipped_updates"] == 4 and "pairs.jsonl row " in trainer.warning
    after = [p.full_tensor() for t in trainer.trained for p in t.parameters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    trainer.close()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: setattr(r.reward, "source", ""), "ppo needs one reward"),
        (lambda r: setattr(r.reward, "source", "regex:["), "not a usable regular expression"),
        (lambda r: setattr(r.reward, "source", r.model.source), "is a language model"),
        (lambda r: setattr(r.rollout, "temperature", 0.0), "rollout.temperature = 0.0 is out of range; allowed: > 0"),
        (lambda r: setattr(r.rollout, "temperature", -1.0), "rollout.temperature = -1.0 is out of range"),
        (lambda r: setattr(r.rollout, "max_new_tokens", 400), "leaves no room for a prompt"),
        (lambda r: setattr(r.rollout, "samples", 2000), "above the budget of 4096"),
        (lambda r: setattr(r.objective, "num_mini_batches", 7), "7 minibatches of 6 prompts"),
        (lambda r: setattr(r.objective, "reference", "none"), "needs objective.kl_coef = 0"),
        (lambda r: setattr(r.objective, "reference", "cached"), "'cached' is not known; allowed: live, none"),
        (lambda r: setattr(r.data, "eval_fraction", 0.1), "has no effect with objective.name"),
        (lambda r: setattr(r.data, "max_tokens", 12), "no usable row .*prompt too long"),
    ],
)
def test_bad_recipes(recipe, change, message):
    """Guards one clear line, before the first step."""
    change(recipe)
    with pytest.raises(InputError, match=message):
        Trainer(recipe)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_bad_recipes_of_groups(recipe, name, tmp_path):
    """Guards one clear line: a group of one sample, a reference that is weighed and not there, a critic's keys, a
    normalisation of what is normalised."""
    for change, message in (
        ({"rollout": {"samples": 1}}, f"rollout.samples = 1: {name} compares the completions of a prompt"),
        ({"objective": {"beta": 0.1, "reference": "none"}}, '"none" needs objective.beta = 0'),
        ({"objective": {"num_mini_batches": 7}}, "7 minibatches of 6 prompts"),
        ({"value": {"lr": 1e-6}}, "value.lr has no effect with objective.name"),
        ({"objective": {"gamma": 0.9}}, "objective.gamma has no effect with .*; it belongs to ppo"),
    ):
        tables = to_tables(in_groups(recipe, name))
        for section, keys in change.items():
            tables.setdefault(section, {}).update(keys)
        with pytest.raises(InputError, match=message):
            make_recipe(tables)
    recipe = in_groups(recipe, name)
    recipe.rollout.samples = 1  # set on the object: no default takes its place
    with pytest.raises(InputError, match="rollout.samples = 1"):
        Trainer(recipe)
    if name == "grpo":
        recipe.rollout.samples, recipe.reward.normalize = 2, True
        with pytest.raises(InputError, match=r"reward.normalize has no effect: objective.scale_rewards = \"group\""):
            Trainer(recipe)


def test_defaults_of_groups():
    """Guards what a recipe that leaves [rollout] out samples: TRL's defaults of each objective."""
    tables = {"run": {"steps": 1}, "model": {"source": "m"}, "data": {"train": ["d"]}}
    for name, samples, tokens, temperature in (("grpo", 8, 512, 1.0), ("rloo", 2, 512, 1.0), ("ppo", 1, 53, 0.7)):
        r = make_recipe(tables | {"objective": {"name": name}}).rollout
        assert (r.samples, r.max_new_tokens, r.temperature) == (samples, tokens, temperature)
        r = make_recipe(tables | {"objective": {"name": name}, "rollout": {"samples": 3}}).rollout
        assert (r.samples, r.max_new_tokens) == (3, tokens)


def test_the_templates_end_of_turn_ends_a_completion(recipe, tmp_path):
    """Guards PPO on a base model: the end of turn of the recipe's template stops a completion, beside the tokenizer's
    own EOS, and is said where it is no token."""
    folder = tmp_path / "base"
    shutil.copytree(recipe.model.source, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    (tmp_path / "chatml.jinja").write_text(template)
    recipe.model.source, recipe.data.template = str(folder), str(tmp_path / "chatml.jinja")
    trainer = Trainer(recipe)
    token_id = trainer.tokenizer.token_id
    assert trainer.rollouts.sampling.stop_ids == (token_id("<|im_end|>"), token_id("<|endoftext|>"))
    trainer.close()
    (tmp_path / "chatml.jinja").write_text(template.replace("<|im_end|>", "<|done|>"))
    recipe.run.folder = str(tmp_path / "other")
    with pytest.raises(InputError, match=r"ends an assistant turn with '<\|done\|>', which is no single token"):
        Trainer(recipe)


@pytest.mark.slow
def test_a_reward_model_of_another_vocabulary(recipe, tmp_path, tiny_models):
    """Guards against a reward that reads other words than the policy writes, and one that has no tokenizer at all."""
    model = ours(hf_model("qwen3", scalar=True), tmp_path / "other")
    recipe.reward.source = str(tmp_path / "other")
    with pytest.raises(InputError, match="no tokenizer.json"):
        Trainer(recipe)
    tokenizer = json.loads((tiny_models["qwen3"] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="another vocabulary"):
        Trainer(recipe)
    assert model.config.head == "scalar"
    config = json.loads((tmp_path / "other" / "config.json").read_text()) | {"model_type": "gpt2"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match='model_type = "gpt2" is not supported'):
        Trainer(recipe)


def test_two_rewards_or_one_too_many(recipe, tiny_models, tmp_path, data):
    """Guards against a reward that would be ignored."""
    with pytest.raises(InputError, match="ppo needs one reward"):
        Trainer(recipe, reward=lambda p, c: [0.0] * len(c))
    with pytest.raises(InputError, match="a reward function has no effect"):
        Trainer(recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data)), reward=lambda p, c: [0.0])
