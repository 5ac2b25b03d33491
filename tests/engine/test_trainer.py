"""Whole runs on real processes: 1 and 2 gloo ranks, FSDP2, tiny models."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import GROUPS, ON_TWO, SCENARIOS, STEPS, group_of, recipe_of
from helpers.scenarios import assert_close, same_bits

from vdengine.drift.opening_log import DriftLog
from vdengine.engine.trainer import Trainer


@pytest.mark.parametrize(
    ("ranks", "name"),
    [(1, name) for name in GROUPS["bits"]]
    + [pytest.param(1, name, marks=pytest.mark.slow) for name in SCENARIOS if group_of(name) != "bits"]
    + [pytest.param(2, name, marks=pytest.mark.slow) for name in ON_TWO],
)
def test_a_run_comes_to_its_end(ranks, name, one, two):
    """Guards each way of training by itself: every step is taken, its numbers are finite, and no update is skipped."""
    found = (one if ranks == 1 else two)[name]
    assert len(found["rows"]) == len(found["seen"]) == STEPS
    assert all(np.isfinite(row["loss"]) and row["skipped_updates"] == 0 for row in found["rows"])
    assert all(torch.isfinite(w).all() for w in found["weights"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sft", "reward"])
def test_one_rank_equals_two(name, one, two, start):
    """Guards the global denominator, the summed reduction and the order of the data."""
    assert one[name]["seen"] == two[name]["seen"]
    assert_close(one[name], two[name], start)


@pytest.mark.slow
def test_an_idle_rank_counts_nothing(one, two, start):
    """Guards a step with fewer examples than ranks: the idle rank's stand-in reads no reference of any row (row 0 is
    never visited, so its own is unknown) and adds nothing."""
    assert 0 not in [row for step in one["idle"]["seen"] for row in step]
    assert all(row["skipped_updates"] == 0 for row in two["idle"]["rows"])
    assert_close(one["idle"], two["idle"], start)


def test_one_pack_equals_several(runs, one, start):
    """Guards accumulation: the loss is divided once, by the global count."""
    assert one["base"]["rows"][0]["micro_steps"] == 1
    assert runs.ranks == 2 or runs["small_packs"]["rows"][0]["micro_steps"] >= 2
    assert_close(one["base"], runs["small_packs"], start)


def test_activation_checkpointing_changes_nothing(one):
    """Guards recomputation: selective and full give the same bits."""
    assert same_bits(one["base"], one["full_checkpointing"])


def test_metrics_and_folder(one):
    """Guards what a user finds: TRL's names in metrics.jsonl, a resolved recipe, a drift log."""
    assert one["base"]
    folder = one.out / "base"
    rows = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    wanted = {
        "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
        "logps/rejected", "entropy", "num_tokens", "grad_norm", "learning_rate", "step_seconds", "probe_seconds",
        "tokens", "scored_tokens", "tokens_per_second", "memory_bytes",
    }  # fmt: skip
    assert wanted <= rows[0].keys()
    assert rows[0]["probe_seconds"] > 0 and one["probes_off"]["rows"][0]["probe_seconds"] == 0
    assert (folder / "recipe.toml").exists() and (folder / "checkpoints" / "step-000004" / "manifest.json").exists()


def test_not_finite_moves_nothing_and_says_where(tmp_path, tiny_models, data):
    """Guards the weights: a poisoned step is skipped on the device, counted, and named with its rows."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    trainer = Trainer(recipe)
    before = {n: p.full_tensor().detach().clone() for n, p in trainer.model.named_parameters()}
    poisoned = trainer.loader.rows(0)[0]
    trainer.reference.sums[trainer.store.tree_start[poisoned]] = float("nan")
    row = trainer.step()
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in trainer.model.named_parameters())
    assert row["skipped_updates"] == 1 and "rows [" in trainer.warning and "step 1" in trainer.warning
    row = trainer.step()
    assert row["skipped_updates"] == 0 and np.isfinite(row["loss"])
    trainer.close()


def test_skipped_updates_between_logs_are_reported(tmp_path, tiny_models, data):
    """Guards log.every > 1: a skip between two logged steps is counted and named, and rates cover the interval."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.log.every = 2
    trainer = Trainer(recipe)
    trainer.reference.sums[trainer.store.tree_start[trainer.loader.rows(0)[0]]] = float("nan")
    assert trainer.step() == {}
    row = trainer.step()
    assert row["skipped_updates"] == 1 and "step 1, rank 0" in trainer.warning
    tokens = sum(trainer.store.num_tokens[trainer.loader.rows(k)].sum() for k in (0, 1))
    assert row["tokens_per_second"] == pytest.approx(tokens / (2 * row["step_seconds"]))
    trainer.close()


@pytest.mark.slow
def test_rows_are_written_a_step_late_on_a_gpu(tmp_path, tiny_models, data):
    """Guards the host's lead on a GPU (its order of events, made to happen here): a step reads none of its numbers, the
    row is written a step later, at an evaluation and a checkpoint at once, and the files are the same."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.run.steps, recipe.data.eval_fraction = 6, 0.2
    plain = Trainer(recipe)
    for _ in range(6):
        plain.step()
    plain.finish()
    plain.close()
    expected = [json.loads(line) for line in open(tmp_path / "base" / "metrics.jsonl")]

    recipe.run.folder = str(tmp_path / "late")
    trainer = Trainer(recipe)
    trainer.lag = True
    told, steps = [], lambda: [json.loads(line)["step"] for line in open(tmp_path / "late" / "metrics.jsonl")]
    trainer.on_row = lambda row, warning: told.append((row["step"], warning))
    found = [trainer.step() for _ in range(2)]
    assert all(metrics and metrics._row is not None for metrics in found[:1]) and found[1]._row is None
    assert steps() == [1] and told == [(1, "")]
    trainer.evaluate()
    assert steps() == [1, 2]
    found.append(trainer.step())
    assert steps() == [1, 2] and found[2]["loss"] == expected[2]["loss"]  # looked at: read, and not yet written
    assert steps() == [1, 2]
    trainer.save()
    assert steps() == [1, 2, 3] and list(DriftLog.open(tmp_path / "late").steps) == [0, 1, 2]
    trainer.step()
    trainer.close()  # a crash: step 4 is not written, and a resumed run writes it again
    assert steps() == [1, 2, 3]
    trainer = Trainer(recipe)
    trainer.lag = True
    assert trainer.step_count == 3
    while trainer.step_count < 6:
        trainer.step()
    assert steps() == [1, 2, 3, 4, 5, 6]  # the last one at once: nothing comes after it
    trainer.finish()
    trainer.close()
    rows = [json.loads(line) for line in open(tmp_path / "late" / "metrics.jsonl")]
    changing = ("seconds", "per_second", "memory")  # nothing else may differ
    for a, b in zip(rows, expected, strict=True):
        assert {k: v for k, v in a.items() if not any(c in k for c in changing)} == {
            k: v for k, v in b.items() if not any(c in k for c in changing)
        }
    logs = [DriftLog.open(tmp_path / name) for name in ("base", "late")]
    assert list(logs[0].steps) == list(logs[1].steps) == [*range(7)]
    assert np.array_equal(logs[0].logp, logs[1].logp)


def test_a_skip_is_named_a_step_late_too(tmp_path, tiny_models, data):
    """Guards the report of a poisoned step where rows are written late: its own number, its own rows."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    trainer = Trainer(recipe)
    trainer.lag = True
    told = []
    trainer.on_row = lambda row, warning: told.append((row["step"], row["skipped_updates"], warning))
    trainer.reference.sums[trainer.store.tree_start[trainer.loader.rows(1)[0]]] = float("nan")
    for _ in range(3):
        trainer.step()
    trainer.flush()
    trainer.close()
    assert [t[:2] for t in told] == [(1, 0), (2, 1), (3, 0)]
    assert told[1][2].startswith("step 2: 1 update skipped, not finite (step 2, rank 0, rows [") and not told[2][2]


def test_eval_and_epochs(tmp_path, tiny_models, data):
    """Guards the held-out part: never trained on, evaluated with the same reference, and an epoch's length."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.run.steps, recipe.run.epochs, recipe.data.eval_fraction = None, 1, 0.2
    trainer = Trainer(recipe)
    trained = {r for k in range(trainer.total_steps) for r in trainer.loader.rows(k).tolist()}
    assert trained.isdisjoint(trainer.loader.eval_rows.tolist()) and len(trained) + len(trainer.loader.eval_rows) == 40
    first = trainer.evaluate()
    assert first["eval/loss"] == pytest.approx(np.log(2), abs=1e-6)
    for _ in range(3):
        trainer.step()
    assert trainer.evaluate()["eval/loss"] != first["eval/loss"]
    trainer.close()
