"""Whole runs on real processes: 1 and 2 gloo ranks, FSDP2, tiny models."""

import json

import numpy as np
import pytest
import torch
from helpers.embedding import ROWS, tables, trees, whole
from helpers.launch import torchrun
from helpers.runs import GROUPS, ON_TWO, SCENARIOS, STEPS, group_of, recipe_of
from helpers.scenarios import assert_close, same_bits

import vdengine as vd
from vdengine.drift.panel_log import DriftLog
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
    assert (
        row["skipped_updates"] == 1 and trainer.store.where(poisoned) in trainer.warning and "step 1" in trainer.warning
    )
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
    assert np.array_equal(logs[0].samples(), logs[1].samples())


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
    assert told[1][2].startswith("step 2: 1 update skipped, not finite (step 2, rank 0: ") and not told[2][2]


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


# ------------------------------------------------------------------------------------- in a program of one's own


@pytest.fixture
def given(tiny_models) -> dict:
    source = str(tiny_models["qwen3"])
    return {"model": vd.load_model(source), "tokenizer": vd.load_tokenizer(source)}


def test_no_step_beyond_the_end(tmp_path, given):
    """Guards against updates that nobody planned, at a rate that rises again: one line, and no weight moves."""
    trainer = Trainer(tables(tmp_path, run={"steps": 1}), data=ROWS, **given)
    trainer.step()
    before = whole(trainer.model)
    with pytest.raises(vd.InputError, match=r"run: all 1 planned steps are done; .* more run.steps"):
        trainer.step()
    assert trainer.step_count == 1 and all(torch.equal(before[n], w) for n, w in whole(trainer.model).items())
    trainer.close()


def test_given_batches_are_steps_of_the_schedule(tmp_path, given):
    """Guards `step(batch)`: the rows that the schedule would take, given as trees or as one pack, give its very bits;
    what the data would have brought is passed over, and the learning rate goes on."""
    planned = Trainer(tables(tmp_path, "planned"), data=ROWS, **given)
    rows = [planned.loader.rows(k) for k in range(STEPS)]
    packs = [planned.loader.packs(k, 1, 0, 400) for k in range(STEPS)]
    expected = [dict(planned.step()) for _ in range(STEPS)]
    weights = whole(planned.model)
    planned.close()
    every = trees(given["tokenizer"])
    assert all(len(p) == 1 for p in packs)  # so that the bits are those of one sum
    trainer = Trainer(tables(tmp_path, "given"), data=ROWS, **given)
    found = [
        trainer.step(packs[0][0]),
        trainer.step(),
        trainer.step([every[i] for i in packs[2][0].tree_ids]),
        trainer.step([vd.Tree(t.prompt, t.branches, t.scored) for t in (every[i] for i in packs[3][0].tree_ids)]),
    ]
    for row, wanted in zip(found, expected, strict=True):
        names = ("loss", "learning_rate", "rewards/margins", "tokens", "scored_tokens", "num_tokens", "grad_norm")
        assert [row[n] for n in names] == [wanted[n] for n in names]
    assert trainer.own_batches == 3 and all(torch.equal(w, weights[n]) for n, w in whole(trainer.model).items())
    assert sorted(rows[0]) == sorted(packs[0][0].tree_ids.tolist())
    trainer.close()


def test_a_step_without_data_needs_its_batch(tmp_path, given):
    """Guards a run without rows, and one whose reference log-probs are by rows: one line each, weights untouched."""
    trainer = Trainer(tables(tmp_path), **given)
    with pytest.raises(vd.InputError, match=r"the run has no data \(data.train, or data=\); give the step its batch"):
        trainer.step()
    with pytest.raises(vd.InputError, match="batch row 1: a tree of 1 branches; a preference pair has 2"):
        trainer.step([vd.Tree([1], [[2]])])
    row = trainer.step(trees(given["tokenizer"])[:2])
    assert row["step"] == 1 and "epoch" not in row and trainer.evaluate() == {}
    trainer.close()
    cached = Trainer(tables(tmp_path, "cached", objective={"name": "dpo", "beta": 0.1}), data=ROWS, **given)
    with pytest.raises(vd.InputError, match='objective.reference = "cached" is of rows of the data; give the batch'):
        cached.step(trees(given["tokenizer"])[:2])
    with pytest.raises(vd.InputError, match="reference has no effect without a batch"):
        cached.step(reference=torch.zeros(4))
    assert cached.step()["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the first step is still to come
    cached.close()
    keys = {"name": "dpo", "beta": 0.1, "reference": "live"}
    live = Trainer(tables(tmp_path, "live", objective=keys), **given)
    assert live.step(trees(given["tokenizer"])[:2])["loss"] == pytest.approx(np.log(2), abs=1e-6)
    live.close()


def test_reference_sums_may_be_given(tmp_path, given):
    """Guards a cached reference for batches that no cache can know: with the sums that the run's own has, the bits are
    those of the run, also where the run has no data at all."""
    keys = {"objective": {"name": "dpo", "beta": 0.1}, "batch": {"tokens": 200}}
    cached = Trainer(tables(tmp_path, "cached", **keys), data=ROWS, **given)
    planned = [cached.loader.rows(k).tolist() for k in range(2)]
    sums = cached.reference.sums[: 2 * len(ROWS)].view(-1, 2)
    expected = [cached.step()["loss"] for _ in planned]
    cached.close()
    every = trees(given["tokenizer"])
    trainer = Trainer(tables(tmp_path, "given", **keys), **given)
    found = [
        trainer.step([every[i] for i in sorted(rows)], reference=sums[sorted(rows)].flatten())["loss"]
        for rows in planned
    ]
    # the same rows in other packs: their sums differ by rounding
    assert found == pytest.approx(expected, abs=1e-5) and found[0] == pytest.approx(np.log(2), abs=1e-5)
    trainer.close()
    other = Trainer(tables(tmp_path, "other", **keys), **given)  # a reference that is not the policy's start
    assert other.step(every[:1], reference=torch.tensor([-9.0, 0.0]))["loss"] != pytest.approx(np.log(2), abs=0.1)
    other.close()


def test_probes_of_a_step_change_nothing(tmp_path, given):
    """Guards `step(probes=)`: scores of the weights before the update, beside the schedule's own, and not a bit of the
    training, nor of the drift log."""
    probes = {"every": 2, "tokens": 4096, "controls": False}
    every = trees(given["tokenizer"])
    own = [vd.pack(every[:2]), vd.pack(every[2:3])]
    runs = []
    for name, packs in (("without", None), ("with", own)):
        trainer = Trainer(tables(tmp_path, name, probes=probes, batch={"tokens": 200}), data=ROWS, **given)
        scores = []
        for _ in range(2):
            row = trainer.step(probes=packs)
            scores.append(trainer.probe_logp)
        assert row["micro_steps"] > 1
        trainer.flush()
        runs.append((whole(trainer.model), DriftLog.open(tmp_path / name).samples(), scores))
        if packs:
            with torch.no_grad():
                again = trainer.model(None, own).probe_logp
            trainer.step(probes=own[0])
            assert torch.equal(trainer.probe_logp, again[: own[0].num_scored])  # of the weights before the update
            trainer.step()
            assert trainer.probe_logp is None
        trainer.close()
    assert all(torch.equal(w, runs[1][0][n]) for n, w in runs[0][0].items())
    assert np.array_equal(runs[0][1], runs[1][1]) and runs[0][2] == [None] * 2
    with torch.no_grad():
        expected = torch.cat([given["model"](pack).logp for pack in own])
    assert torch.allclose(runs[1][2][0], expected, atol=1e-5) and not torch.equal(runs[1][2][0], runs[1][2][1])


def test_two_trainers_in_turns(tmp_path, given):
    """Guards several trainers in one process: step by step in turns each has the bits that it has alone; the group that
    they share outlives the first to close, and ends with the last."""
    assert not torch.distributed.is_initialized()
    keys = ({}, {"objective": {"name": "sft", "beta": None}, "optimizer": {"lr": 3e-3}})

    def make(folder: str, i: int) -> Trainer:
        recipe = tables(tmp_path, folder, **keys[i])
        recipe["objective"] = {k: v for k, v in recipe["objective"].items() if v is not None}
        return Trainer(recipe, data=ROWS[i:], **given)

    alone = []
    for i in range(2):
        trainer = make(f"alone{i}", i)
        alone.append(([trainer.step()["loss"] for _ in range(STEPS)], whole(trainer.model)))
        trainer.close()
        assert not torch.distributed.is_initialized()
    both = [make(f"both{i}", i) for i in range(2)]
    losses = [[], []]
    for _ in range(STEPS - 1):
        for i in range(2):
            losses[i].append(both[i].step()["loss"])
    losses[0].append(both[0].step()["loss"])
    weights = [whole(both[0].model)]
    both[0].close()
    losses[1].append(both[1].step()["loss"])
    both[1].save()  # a collective
    weights.append(whole(both[1].model))
    both[1].close()
    both[1].close()
    assert not torch.distributed.is_initialized()
    for i in range(2):
        assert losses[i] == alone[i][0] and all(torch.equal(w, alone[i][1][n]) for n, w in weights[i].items())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_frozen_parameters_stay_and_are_not_saved(tmp_path, tiny_models, kind):
    """Guards a model of which a part is frozen (the embedding, tied to the head or not): it trains the rest, its
    checkpoint has nothing of the frozen part, and it is taken up again bit for bit; with another part, refused."""
    source = str(tiny_models[kind])

    def frozen(name: str) -> dict:
        model = vd.load_model(source)
        for parameter, tensor in model.named_parameters():
            tensor.requires_grad_(name not in parameter)
        return {"model": model, "tokenizer": vd.load_tokenizer(source), "data": ROWS}

    trainer = Trainer(tables(tmp_path, "whole"), **frozen("embed_tokens"))
    before = whole(trainer.model)
    losses = [trainer.step()["loss"] for _ in range(STEPS)]
    weights = whole(trainer.model)
    trainer.close()
    moved = {n for n, w in weights.items() if not torch.equal(w, before[n])}
    assert moved == set(before) - {"model.embed_tokens.weight"}
    trainer = Trainer(tables(tmp_path, "parts"), **frozen("embed_tokens"))
    again = [trainer.step()["loss"] for _ in range(2)]
    folder = trainer.save()
    trainer.close()
    names = torch.distributed.checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    assert "model.model.norm.weight" in names and "optimizer.exp_avg.model.norm.weight" in names
    assert not [name for name in names if "embed_tokens" in name]
    trainer = Trainer(tables(tmp_path, "parts"), **frozen("embed_tokens"))
    again += [trainer.step()["loss"] for _ in range(2)]
    assert again == losses and all(torch.equal(w, weights[n]) for n, w in whole(trainer.model).items())
    trainer.close()
    for other in ("layers.0", "nothing"):
        with pytest.raises(vd.InputError, match="contents have changed: frozen parameters"):
            Trainer(tables(tmp_path, "parts"), **frozen(other))


@pytest.mark.slow
def test_own_batches_and_own_loops_on_two_ranks(tmp_path, tiny_models):
    """Guards what each rank gives: a step is that of one rank with all rows, also where a rank has none; what is wrong
    on one rank is said on both; probes of a rank are its own; what is
    frozen stays. And `vd.shard`: weights kept, gradients as it says."""
    source = str(tiny_models["qwen3"])
    for ranks in (1, 2):
        torchrun(ranks, "embedding", tmp_path, source)
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in ("1-0", "2-0", "2-1"))
    expected = one["batches"]
    # sums over other packs and ranks differ by rounding: 1e-6 of a loss near 1, and lr 1e-3 at eps 1e-3 passes a
    # gradient's rounding on about as it is
    assert two[0]["batches"]["losses"] == two[1]["batches"]["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    for name, weight in expected["weights"].items():
        assert torch.equal(two[0]["batches"]["weights"][name], two[1]["batches"]["weights"][name])
        assert torch.allclose(two[0]["batches"]["weights"][name], weight, atol=1e-5), name
    loaded = dict(vd.load_model(source).named_parameters())
    still = {name for name, weight in two[0]["batches"]["weights"].items() if torch.equal(weight, loaded[name])}
    assert still == {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"}
    assert two[0]["batches"]["scores"] == [None] * STEPS
    for found, wanted in zip(two[1]["batches"]["scores"], expected["scores"], strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    said = ["rank 1: step: batch row 1: a tree of 1 branches; a preference pair has 2, chosen and rejected"]
    said += ["step: the batch has no rows on any rank"]
    assert two[0]["batches"]["errors"] == two[1]["batches"]["errors"] == said
    loaded = vd.load_model(source)
    (-(pack := vd.pack(trees(vd.load_tokenizer(source))[:4])).branch_sum(loaded(pack).logp)).sum().backward()
    for loop, scale in ((one["loop"], 1.0), (two[0]["loop"], 2.0), (two[1]["loop"], 2.0)):
        for name, parameter in loaded.named_parameters():
            assert torch.equal(loop["weights"][name], parameter)
            # another order of sums: some 2^-24 a term of the largest gradient
            tolerance = 1e-5 * float(parameter.grad.abs().max())
            assert torch.allclose(loop["sum"][name], parameter.grad, atol=tolerance), name
            assert torch.allclose(loop["mean"][name] * scale, parameter.grad, atol=tolerance), name
    assert torch.equal(two[0]["loop"]["probes"], two[1]["loop"]["probes"])
    assert torch.equal(one["loop"]["probes"], two[0]["loop"]["probes"])


def test_a_step_that_ended_with_an_error_leaves_nothing(tmp_path, tiny_models, data, monkeypatch):
    """Guards whoever goes on after an error inside of a step (Ctrl-C in a notebook, a pack that does not fit): the next
    call takes the step from its beginning, without the gradients and half the sample of the first try."""

    def run(name, interrupted):
        recipe = recipe_of("small_packs", tmp_path, str(tiny_models["qwen3"]), str(data))
        recipe.run.folder, recipe.batch.tokens = str(tmp_path / name), 500
        trainer = Trainer(recipe)
        if interrupted:

            def stop(done, total):
                assert total > 1
                raise KeyboardInterrupt

            trainer.on_pack = stop
            with pytest.raises(KeyboardInterrupt):
                trainer.step()
            trainer.flush()
            trainer.on_pack = lambda done, total: None
        rows = [dict(trainer.step()) for _ in range(2)]
        trainer.save()
        trainer.close()
        return [row["grad_norm"] for row in rows], (trainer.files.drift / "openings.bin").read_bytes()

    assert run("plain", interrupted=False) == run("interrupted", interrupted=True)
