"""KTO in whole runs: its batch's KL by hand, ranks, resume, probes, where the reference comes from, and bad input.

The loss is in tests/objectives/test_kto.py, the mismatched rows in tests/data/test_mismatched.py.
"""

import json

import numpy as np
import pytest
import torch
from helpers.runs import recipe_of
from helpers.scenarios import assert_close, same_bits

import vdengine as vd
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError


@pytest.fixture
def recipe(tmp_path, tiny_models, data):
    """KTO on a tiny model, both answers of pairs as rows of their own."""
    return recipe_of("kto", tmp_path, str(tiny_models["qwen3"]), str(data))


# ------------------------------------------------------------------------------------------- runs on 1 and 2 ranks


@pytest.mark.slow
def test_resume_is_exact_and_probes_do_not_touch_it(runs, one, start):
    """Guards the order of mismatched rows and their cached reference: a resumed run has the same, whatever else runs
    in the forward."""
    run = runs["kto"]
    assert same_bits(run, runs["kto_resumed"]) and not same_bits(run, start)
    assert [r["kl"] for r in run["rows"]] == [r["kl"] for r in runs["kto_resumed"]["rows"]]
    assert run["rows"][0]["kl"] < 1e-4 and max(r["kl"] for r in run["rows"]) > 0.1
    assert same_bits(one["kto"], one["kto_probed"])


@pytest.mark.slow
def test_one_rank_equals_two(one, two, start):
    """Guards the KL, a mean over the rows of all ranks, and the means of wanted and unwanted answers."""
    a, b = one["kto"], two["kto"]
    assert_close(a, b, start)
    for x, y in zip(a["rows"], b["rows"], strict=True):
        for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"):
            assert x.get(name) == pytest.approx(y.get(name), rel=1e-4, abs=1e-4), name
    assert a["eval"]["eval/loss"] == pytest.approx(b["eval"]["eval/loss"], rel=1e-5)


@pytest.mark.slow
def test_packs_and_the_kind_of_reference_do_not_matter(one, start):
    """Guards the KL of a batch of several packs, which must be known before the first of them is learned from; and the
    cache of mismatched rows against a second model."""
    assert one["kto_small_packs"]["rows"][-1]["micro_steps"] > 1
    assert_close(one["kto"], one["kto_small_packs"], start)
    assert same_bits(one["kto"], one["kto_live"])


# ------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_the_kl_by_hand(recipe, reference):
    """Guards which answer follows which prompt, and the clamp: of a step's rows as the store has them, in float64.

    Tolerance: log-probs of two fp32 forwards along other packs, sums of up to thirty terms up to 7: 16 EPS of 200.
    """
    recipe.objective.reference = reference
    trainer = Trainer(recipe)
    trainer.step()
    store, rows = trainer.store, trainer.loader.rows(1)
    policy, first = vd.load_model(recipe.model.source), vd.load_model(recipe.model.source)
    policy.load_state_dict({n: p.full_tensor() for n, p in trainer.model.named_parameters()}, strict=False)
    ratios = []
    for i, row in enumerate(rows):
        pack = vd.pack([vd.Tree(store.prompt(row), store.tree(rows[i - 1]).branches)])
        with torch.no_grad():
            ratios.append(float((policy(pack).logp.double() - first(pack).logp.double()).sum()))
    expected = max(0.0, float(np.mean(ratios)))
    assert expected > 0.1
    row = trainer.step()
    assert row["kl"] == pytest.approx(expected, abs=4e-4)
    trainer.close()


def test_the_first_step_knows_its_rewards(recipe):
    """Guards the reference: before the first update rewards and KL are 0, and every loss is half its weight."""
    recipe.objective.desirable_weight = recipe.objective.undesirable_weight = 1.0
    trainer = Trainer(recipe)
    row = trainer.step()
    assert row["loss"] == 0.5 and row["kl"] == row["rewards/chosen"] == row["rewards/rejected"] == 0.0
    trainer.close()


@pytest.mark.slow
def test_a_known_answer(recipe, tmp_path):
    """Guards the signs: answers of letters a to m are wanted, others not, and held-out ones come apart."""
    rng = np.random.default_rng(0)
    word = lambda letters: "".join(rng.choice(list(letters), 6))  # noqa: E731
    rows = []
    for i in range(120):
        wanted = bool(rng.random() < 0.4)  # labels of their own, not in pairs
        letters = "abcdefghijklm" if wanted else "nopqrstuvwxyz"
        rows.append({"prompt": f"say {i}", "completion": word(letters), "label": wanted})
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe.data.train, recipe.data.eval_fraction = [str(path)], 0.2
    recipe.run.steps, recipe.batch.examples = 30, 12
    recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.schedule = 1e-2, 1e-5, "constant"
    trainer = Trainer(recipe)
    for _ in range(30):
        trainer.step()
    found = trainer.evaluate()
    trainer.close()
    assert found["eval/rewards/margins"] > 1.0, found  # beta 0.2: five nats


# ------------------------------------------------------------------------------------------------------ bad input


def rows_of(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


A, B = {"prompt": "p", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([A, {"prompt": "q", "completion": "b"}], r"line 2: field 'label' is missing: true or false"),
        ([A, B | {"label": "maybe"}], r"line 2: field 'label' must be true or false"),
        ([A, B | {"label": 0.5}], r"line 2: field 'label' must be true or false"),
        ([A | {"kto_tag": False}, B], r"line 1: field '(label|kto_tag)' says .*, another one the opposite"),
        ([{"prompt": "p"}, {"prompt": "q"}], "the fields .*prompt.* fit no format; .*KTO reads"),
        ([A], "data.train: one row; at least 2 are needed"),
    ],
)
def test_rows_without_labels(recipe, tmp_path, rows, message):
    """Guards one clear line on rows that KTO cannot learn from."""
    recipe.data.train, recipe.data.eval_fraction = rows_of(tmp_path / "rows.jsonl", *rows), 0.0
    with pytest.raises(InputError, match=message):
        Trainer(recipe)


def test_a_batch_of_one_row(recipe):
    """Guards against a KL that would be the reward itself."""
    recipe.batch.examples = 1
    with pytest.raises(InputError, match="batch.examples = 1: kto needs at least 2"):
        Trainer(recipe)


def test_trees_have_no_labels(recipe, tmp_path):
    """Guards rows and batches in memory that come as token ids."""
    trees = [vd.Tree([1, 2], [[3]]), vd.Tree([1, 4], [[5]])]
    recipe.data.train, recipe.data.eval_fraction = [], 0.0
    with pytest.raises(InputError, match="data: trees have no label; give rows of text"):
        Trainer(recipe, data=trees)
    with pytest.raises(InputError, match="data.train is missing: kto reads labels, which trees do not have"):
        Trainer(recipe)
    trainer = Trainer(recipe, data=[A, B, A])
    with pytest.raises(InputError, match="step: trees have no labels, which kto reads"):
        trainer.step(batch=trees)
    trainer.close()


def test_a_remainder_of_one_row(recipe):
    """Guards the end of an epoch, where one row is left: it is given an answer of the batch before, not its own."""
    recipe.data.train, recipe.data.eval_fraction, recipe.batch.examples, recipe.run.steps = [], 0.0, 2, 2
    recipe.objective.reference = "live"
    trainer = Trainer(recipe, data=[A, B, {"prompt": "r", "completion": "c", "label": True}])
    assert len(trainer.loader.rows(1)) == 1
    assert trainer.batch_kl.mismatched.answers(1) == trainer.loader.rows(0)[-1:]
    trainer.step(), trainer.step()
    trainer.close()
