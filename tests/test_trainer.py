"""Whole runs on real processes: 1 and 2 gloo ranks, FSDP2, tiny models.

Tolerance between different packings or world sizes: the same fp32 terms are summed in another order, so log-prob
sums of some hundred terms around 5 differ by about 1e-6 relative, and four AdamW steps of lr 1e-3 (eps 1e-3, so
linear in the gradient) carry that to 1e-6 of a weight's change.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import SCENARIOS, STEPS, recipe_of

from vdengine.drift.analysis import analyse
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import opening_values
from vdengine.engine.trainer import Trainer
from vdengine.errors import InputError

HERE = Path(__file__).parent
ON_TWO = ["base", "small_packs", "probes_off", "resumed", "sft", "fraction", "idle", "reward", "answers"]


def torchrun(ranks: int, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """40 preference rows of very different lengths."""
    g = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    words = "the a value of people think that law is right wrong free world very many few".split()

    def text(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (1,), generator=g))
        return " ".join(words[i] for i in torch.randint(0, len(words), (n,), generator=g).tolist())

    rows = [{"prompt": text(2, 15), "chosen": text(1, 30), "rejected": text(1, 30)} for _ in range(40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_models, data):
    """Results of every scenario on one rank."""
    out = tmp_path_factory.mktemp("one")
    torchrun(1, HERE / "runs.py", out, tiny_models["qwen3"], data, *SCENARIOS)
    return {name: torch.load(out / f"{name}.pt", weights_only=False) for name in SCENARIOS} | {"out": out}


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_models, data):
    """The same on two ranks."""
    out = tmp_path_factory.mktemp("two")
    torchrun(2, HERE / "runs.py", out, tiny_models["qwen3"], data, *ON_TWO)
    return {name: torch.load(out / f"{name}.pt", weights_only=False) for name in ON_TWO}


def same_bits(a: dict, b: dict) -> bool:
    return all(torch.equal(a["weights"][n], b["weights"][n]) for n in a["weights"])


def assert_close(a: dict, b: dict, start: dict) -> None:
    for n, w in a["weights"].items():
        moved = (w - start["weights"].get(n, 0)).abs().max()  # a reward model's new head is not in a language model
        assert (w - b["weights"][n]).abs().max() <= 1e-4 * moved + 1e-7, n
    for x, y in zip(a["rows"], b["rows"], strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)


def test_one_rank_equals_two(one, two):
    """Guards the global denominator, the summed reduction and the order of the data."""
    for name in ("base", "sft", "reward"):
        assert one[name]["seen"] == two[name]["seen"]
        assert_close(one[name], two[name], one["lr0"])


def test_an_idle_rank_counts_nothing(one, two):
    """Guards a step with fewer examples than ranks: the idle rank's stand-in reads no reference of any row (row 0 is
    never visited, so its own is unknown) and adds nothing."""
    assert 0 not in [row for step in one["idle"]["seen"] for row in step]
    assert all(row["skipped_updates"] == 0 for row in two["idle"]["rows"])
    assert_close(one["idle"], two["idle"], one["lr0"])


def test_one_pack_equals_several(one, two):
    """Guards accumulation: the loss is divided once, by the global count."""
    assert one["base"]["rows"][0]["micro_steps"] == 1
    assert one["small_packs"]["rows"][0]["micro_steps"] >= 2
    assert_close(one["base"], one["small_packs"], one["lr0"])
    assert_close(one["base"], two["small_packs"], one["lr0"])


def test_probes_do_not_touch_training(one, two):
    """Guards the second stream: with activation checkpointing, on 1 and 2 ranks, weights have the same bits with
    probes on and off."""
    assert same_bits(one["base"], one["probes_off"])
    assert same_bits(two["base"], two["probes_off"])
    assert not same_bits(one["base"], one["lr0"])


def test_resume_is_exact(one, two):
    """Guards checkpoints: stopped after step 2 and resumed, weights, metrics and drift have the same bits."""
    for runs in (one, two):
        assert same_bits(runs["base"], runs["resumed"])
        for a, b in zip(runs["base"]["drift"], runs["resumed"]["drift"], strict=True):
            assert np.array_equal(a, b)
    losses = [json.loads(line)["loss"] for line in open(one["out"] / "resumed" / "metrics.jsonl")]
    assert losses == [row["loss"] for row in one["base"]["rows"]]


def test_activation_checkpointing_changes_nothing(one):
    """Guards recomputation: selective and full give the same bits."""
    assert same_bits(one["base"], one["full_checkpointing"])


def test_probe_scores_are_the_same_bits_anywhere(one, two):
    """Guards the fixed packs: theta_0's scores do not depend on ranks, packing of the batch or what else rides."""
    base = one["base"]["drift"][1][0]
    for other in (two["base"], one["small_packs"], two["small_packs"], one["sft"], one["lr0"]):
        assert np.array_equal(base, other["drift"][1][0])
    assert np.array_equal(one["base"]["drift"][0], np.arange(STEPS + 1))


def test_lr_zero_drifts_by_exactly_nothing(one):
    """Guards the measurement: unchanged weights give an unchanged reading, to the bit."""
    steps, logp = one["lr0"]["drift"]
    assert (logp == logp[0]).all() and np.isfinite(logp).all()
    found = analyse(opening_values(DriftLog.open(one["out"] / "lr0")))
    assert all(
        d.magnitude.mean == d.magnitude.low == d.magnitude.high == 0 and not d.significant
        for d in found.drifts.values()
    )


def test_rotating_fraction_samples_whole_packs(one, two):
    """Guards partial panels: the ends are whole, the middle alternates halves that together make the panel."""
    for runs in (one, two):
        steps, logp = runs["fraction"]["drift"]
        seen = np.isfinite(logp)
        assert seen[0].all() and seen[-1].all()
        assert 0 < seen[1].sum() < seen.shape[1] and (seen[1] ^ seen[2]).all()


def test_dpo_starts_at_ln_2(one, two):
    """Guards the reference: at step 0 it is the policy. Exact for live (same packs, same kernels); cached, too,
    along the same packs; 1e-6 when packs differ."""
    for name, runs in (("live", one), ("base", one), ("base", two)):
        row = runs[name]["rows"][0]
        assert row["loss"] == pytest.approx(np.log(2), abs=1e-7) and row["rewards/margins"] == 0.0, name
    assert one["small_packs"]["rows"][0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert same_bits(one["base"], one["live"])


def test_bf16_noise_is_stated(one):
    """Guards the noise floor: bf16 compute scores theta_0 within what 8 mantissa bits allow, and not equal."""
    fp32, bf16 = one["base"]["drift"][1][0], one["bf16"]["drift"][1][0]
    tokens = np.array([row["num_tokens"] for row in DriftLog.open(one["out"] / "base").table])
    per_token = np.abs(fp32 - bf16) / tokens
    # activations carry 2^-9 relative rounding through 3 layers; log-probs here are about 6 nats
    assert 0 < per_token.mean() < 0.02


def test_metrics_and_folder(one):
    """Guards what a user finds: TRL's names in metrics.jsonl, a resolved recipe, a drift log."""
    folder = one["out"] / "base"
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


def test_a_changed_recipe_does_not_resume(tmp_path, tiny_models, data):
    """Guards a run folder against going on with other numbers; a key without effect on them may change."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.run.steps = 1
    trainer = Trainer(recipe)
    trainer.step()
    trainer.finish()
    trainer.close()
    recipe.checkpoint.keep = 5
    Trainer(recipe).close()
    recipe.optimizer.lr = 2e-3
    with pytest.raises(InputError, match=r"cannot resume, the recipe differs: optimizer.lr: 0.001 -> 0.002"):
        Trainer(recipe)


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


def test_a_wrong_reference_stops_before_the_first_update(tmp_path, tiny_models, data):
    """Guards the known answer of step 0: a reference of another model moves nothing and ends the run."""
    trainer = Trainer(recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data)))
    before = {n: p.full_tensor().detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.reference.sums[np.array(trainer.store.tree_start[:-1])] += 1.0  # every chosen branch by one nat
    with pytest.raises(InputError, match="margin is .* not ln 2"):
        trainer.step()
    assert all(torch.equal(before[n], p.full_tensor()) for n, p in trainer.model.named_parameters())
    trainer.close()


def test_reference_sums_are_never_replaced(tmp_path, tiny_models, data):
    """Guards a resumed run's bits: what the run folder holds wins over the shared cache, and a run along other packs
    adds what is missing without touching what is there. A damaged file is named."""
    make = lambda name: recipe_of(name, tmp_path, str(tiny_models["qwen3"]), str(data))  # noqa: E731
    Trainer(make("base")).close()
    (mine,) = (tmp_path / "base" / "reference").iterdir()
    shared = tmp_path / "cache" / "reference" / mine.name
    first = np.load(shared)
    other = make("small_packs")
    other.run.steps = 6
    Trainer(other).close()
    then = np.load(shared)
    assert (
        np.array_equal(then[~np.isnan(first)], first[~np.isnan(first)]) and np.isnan(then).sum() < np.isnan(first).sum()
    )
    np.save(shared, then + 1)
    again = Trainer(make("base"))
    assert np.array_equal(again.reference.sums[:-2].numpy()[~np.isnan(first)], first[~np.isnan(first)])
    again.close()
    mine.write_bytes(mine.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{mine.name}: damaged"):
        Trainer(make("base"))


def test_a_broken_flash_attn_is_one_line(tmp_path, tiny_models, data, monkeypatch):
    """Guards a build for another torch: it is found, and its import fails. Asked for by name it is an error before
    anything runs; where torch chooses, torch's own attention runs and the reason is said."""
    from vdengine.models import attention

    (tmp_path / "broken" / "flash_attn").mkdir(parents=True)
    (tmp_path / "broken" / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    for function in (attention.flash_attn_problem, attention._has_flash_attn):
        function.cache_clear()
        monkeypatch.setattr(attention, function.__name__, function)
    try:
        recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
        recipe.kernels.attention = "flash"
        message = "flash-attn is installed but cannot be imported (ImportError: undefined symbol: _ZN3c10)"
        with pytest.raises(InputError) as error:
            Trainer(recipe)
        assert str(error.value) == f"kernels.attention = 'flash': {message}"
        with pytest.raises(ValueError, match="undefined symbol"):
            attention.attend(*[torch.zeros(1, 1, 8)] * 3, *[torch.tensor([0, 1]).int()] * 2, 1, 1, backend="flash")
        with pytest.warns(UserWarning, match="undefined symbol.*torch's varlen attention is used instead"):
            assert not attention._has_flash_attn()
    finally:
        sys.modules.pop("flash_attn", None)
        for function in (attention.flash_attn_problem, attention._has_flash_attn):
            function.cache_clear()


def test_a_backward_is_strict_only_while_it_lasts():
    """Guards attention's ordered backward on CUDA, and everything else: the switch is set back, after an error too,
    and where nobody has asked for warnings nothing is switched."""
    from vdengine.engine.parallel import ordered

    def state() -> tuple[bool, bool]:
        on = torch.are_deterministic_algorithms_enabled()
        return on, torch.is_deterministic_algorithms_warn_only_enabled()

    with ordered(True):
        assert state() == (False, False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with ordered(False):
            assert state() == (True, True)
        with pytest.raises(KeyError), ordered(True):
            assert state() == (True, False)
            raise KeyError
        assert state() == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_allocators_setting(monkeypatch):
    """Guards memory on CUDA: segments grow, unless the user has decided or CUDA runs already."""
    from vdengine.engine import parallel

    made = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", made.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    parallel.expand_segments()
    assert made == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    parallel.expand_segments()
    assert made == []
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    parallel.expand_segments()
    assert made == ["expandable_segments:True"] and os.environ["PYTORCH_ALLOC_CONF"] == made[0]
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")


def test_changed_contents_do_not_resume(tmp_path, tiny_models, data):
    """Guards a run folder against data that changed under an unchanged name."""
    copy = tmp_path / "pairs.jsonl"
    copy.write_text(data.read_text())
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(copy))
    Trainer(recipe).close()
    copy.write_text(copy.read_text().replace("law", "lie"))
    with pytest.raises(InputError, match=r"contents have changed: data.train, data.eval"):
        Trainer(recipe)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, tiny_models, data):
    """Guards resume after a crash that spoilt the newest checkpoint: the one before it, and the spoilt one set aside;
    with none left, an error that says so."""
    recipe = recipe_of("base", tmp_path, str(tiny_models["qwen3"]), str(data))
    trainer = Trainer(recipe)
    for _ in range(2):
        trainer.step()
        trainer.save()
    trainer.close()
    root = tmp_path / "base" / "checkpoints"
    (root / "step-000002" / "__0_0.distcp").write_bytes(b"")
    trainer = Trainer(recipe)
    assert trainer.step_count == 1 and sorted(p.name for p in root.iterdir()) == ["step-000001", "step-000002.damaged"]
    trainer.close()
    (root / "step-000001" / "manifest.json").unlink()
    with pytest.raises(InputError, match="no whole checkpoint: step-000001"):
        Trainer(recipe)


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


# ------------------------------------------------------------------------------------------------- answers


def test_answers_do_not_touch_the_training(one, two):
    """Guards the promise of a free reading: with answers sampled and scored along, the weights have the same bits."""
    assert same_bits(one["answers"], one["base"]) and same_bits(two["answers"], two["base"])
    assert np.array_equal(one["answers"]["drift"][1], one["base"]["drift"][1])


def test_answers_at_their_anchors(one):
    """Guards the plan: a larger first pool, an anchor at the end, those that the alarm asked for, never too many."""
    answers = one["answers"]["answers"]
    anchors = sorted({a[0] for a in answers})
    assert anchors[0] == 0 and anchors[-1] == STEPS and 2 < len(anchors) <= 4
    for k in anchors:
        assert len([a for a in answers if a[0] == k]) == 8 * (6 if k == 0 else 4)
    first = one["answers"]["readings"]
    assert all(k in first["step"][first["anchor"] == k] for k in anchors)  # each scored under its own weights
    # and the old ones too, where new ones are drawn: the weights' own error shows at every anchor
    assert all(old in first["anchor"][first["step"] == k] for old, k in zip(anchors, anchors[1:], strict=False))


def test_answers_of_a_resumed_run(one):
    """Guards rewinding: a run stopped and taken up again draws, reads and decides the same."""
    a, b = one["answers"], one["answers_resumed"]
    assert a["answers"] == b["answers"]
    assert a["readings"].tobytes() == b["readings"].tobytes()


def test_weights_of_a_model_that_stands_still(one):
    """Guards exact weights: with learning rate 0 every reading, in a training forward or alone, has the bits of the
    first, so each weight is exactly 1."""
    readings = one["answers_lr0"]["readings"]
    assert len(readings) > 3
    for r in readings[readings["anchor"] == 0]:
        assert np.array_equal(r["logp"], readings[0]["logp"])


def test_answers_on_two_ranks(one, two):
    """Guards noise keyed by prompt, and shares that meet again: two ranks draw and score what one does."""
    assert one["answers"]["answers"] == two["answers"]["answers"]
    a, b = one["answers"]["readings"], two["answers"]["readings"]
    assert np.array_equal(a["step"], b["step"]) and np.array_equal(a["anchor"], b["anchor"])
    np.testing.assert_allclose(a["logp"], b["logp"], rtol=1e-5, atol=1e-4)  # six terms around 5, rounding in fp32


def test_controls_stand_beside_the_panel(one):
    """Guards controls at both ends, none between, and the panel's own numbers left as they were."""
    base, log = one["base"]["drift"][1], one["controls"]["drift"][1]
    count = base.shape[1]
    assert np.array_equal(log[:, :count], base)
    assert np.isfinite(log[[0, -1]]).all() and np.isnan(log[1:-1, count:]).all() and log.shape[1] > 3 * count
