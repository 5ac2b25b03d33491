"""`DriftCallback` in trainers of TRL: training is as without it, and the log says what the weights were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.causal_lms import by_its_own_logits, sampled, small_panel
from helpers.launch import torchrun
from helpers.trainers import make, train, weights
from transformers import TrainerCallback

from vdengine.drift.load import load_run
from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError
from vdengine.integrations.transformers import DriftCallback

NATS = 64 * 2.0**-23 * 512  # see test_foreign.py


@pytest.mark.parametrize(("kind", "lora"), [("sft", False), ("dpo", False), ("dpo", True), ("sft", True)])
def test_weights_are_bit_equal_with_and_without_it(kind, lora, tok, tmp_path):
    """Guards the one promise that everything else needs: with dropout, accumulation and adapters too."""
    plain = weights(train(kind, tmp_path / "plain", tok, False, lora=lora))
    trainer = train(kind, tmp_path / "scored", tok, True, lora=lora)
    scored = weights(trainer)
    assert plain.keys() == scored.keys() and all(torch.equal(plain[name], scored[name]) for name in plain)
    log = DriftLog.open(tmp_path / "scored" / "run")
    assert log.steps.tolist() == [0, 2, 4]
    logp = log.samples()
    controls = np.ones(logp.shape[1], bool)
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, DriftCallback))
    controls[sampled(callback.scorer)] = False
    assert (
        np.isfinite(logp[[0, 2]]).all() and np.isnan(logp[1, controls]).all() and np.isfinite(logp[1, ~controls]).all()
    )
    last = by_its_own_logits(trainer.model, small_panel(), tok)
    assert np.abs(logp[2, ~controls] - last).max() < NATS
    assert np.abs(logp[2] - logp[0]).max() > 1  # something has moved


def test_the_run_folder_is_read_as_any_other(tok, tmp_path):
    """Guards that report and load_run know the run: its length, its model, its seconds."""
    from vdengine.report import report

    train("dpo", tmp_path, tok, True)
    run = load_run(tmp_path / "run")
    assert run.total_steps == 4 and run.describe()["objective"] == "dpo" and not run.notes
    assert run.analysis().values.steps.tolist() == [0, 2, 4]
    assert [row["step"] for row in run.metrics] == [0, 2, 4] and all(row["probe_seconds"] > 0 for row in run.metrics)
    assert report([tmp_path / "run"]).exists()


def test_a_run_is_resumed_from_a_checkpoint_with_its_log(tok, tmp_path):
    """Guards a resumed run: samples after the checkpoint are taken again, with the same bits, and none twice."""
    whole = train("sft", tmp_path / "whole", tok, True, save_strategy="steps", save_steps=2)
    expected = DriftLog.open(tmp_path / "whole" / "run")
    callback = DriftCallback(small_panel(), run=tmp_path / "whole" / "run", every=2, tokens=1024)
    resumed = make("sft", tmp_path / "again", tok, callbacks=[callback])
    steps, logp = expected.steps.copy(), expected.samples()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    log = DriftLog.open(tmp_path / "whole" / "run")
    assert log.steps.tolist() == steps.tolist() == [0, 2, 4]
    assert np.array_equal(log.samples(), logp, equal_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


def test_one_callback_trains_again(tok, tmp_path):
    """Guards a notebook: a training that was broken off is taken up with the same callback object, whose last sample
    must be taken again though it remembers that step."""

    class Stop(TrainerCallback):
        on = True

        def on_step_end(self, args, state, control, **more):
            if self.on and state.global_step == 2:
                raise KeyboardInterrupt

        def on_save(self, args, state, control, **more):
            pass

    callback, stop = DriftCallback(small_panel(), run=tmp_path / "run", every=1, controls=False, tokens=1024), Stop()
    trainer = make("sft", tmp_path, tok, callbacks=[callback, stop], save_strategy="steps", save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    stop.on = False
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert DriftLog.open(tmp_path / "run").steps.tolist() == [0, 1, 2, 3, 4]


def test_a_run_that_is_stopped_early_has_its_last_sample(tok, tmp_path):
    """Guards early stopping with `load_best_model_at_end`: the last weights are scored before the best are loaded."""

    class Stop(TrainerCallback):
        def on_evaluate(self, args, state, control, **more):
            control.should_training_stop = state.global_step == 3

    callback = DriftCallback(small_panel(), run=tmp_path / "run", every=10, controls=False, tokens=1024)
    trainer = make("dpo", tmp_path, tok, callbacks=[callback, Stop()], eval_strategy="steps", eval_steps=1,
                   save_steps=1, save_strategy="steps", load_best_model_at_end=True, metric_for_best_model="loss",
                   greater_is_better=True)  # fmt: skip
    trainer.train()
    assert DriftLog.open(tmp_path / "run").steps.tolist() == [0, 3]


def test_a_resume_without_its_log_says_where_drift_is_counted_from(tok, tmp_path, capsys):
    """Guards the baseline: a log that begins in the middle of a run has another one."""
    make("sft", tmp_path, tok, save_strategy="steps", save_steps=2).train()
    callback = DriftCallback(small_panel(), run=tmp_path / "run", every=2, controls=False, tokens=1024)
    trainer = make("sft", tmp_path, tok, callbacks=[callback])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "drift: no sample before step 2: drift is counted from there" in capsys.readouterr().out
    assert DriftLog.open(tmp_path / "run").steps.tolist() == [2, 4]


def test_what_is_refused_is_said_in_one_line(tok, tmp_path):
    """Guards a log against being overwritten or written twice."""
    train("sft", tmp_path, tok, True)
    with pytest.raises(InputError, match=r"run: holds a run of its own, up to step 4; go on from a checkpoint of it"):
        train("sft", tmp_path, tok, True)
    twice = [DriftCallback(small_panel(), run=tmp_path / "twice", every=2) for _ in range(2)]
    with pytest.raises(InputError, match="twice: drift is already being written .add a callback once.* this process"):
        make("sft", tmp_path, tok, callbacks=twice).train()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "recipe.toml").write_text("[run]\n")
    own = DriftCallback(small_panel(), run=tmp_path / "own", every=2)
    with pytest.raises(InputError, match="the folder of a run of vdengine's own trainer"):
        make("sft", tmp_path, tok, callbacks=[own]).train()
    with pytest.raises(InputError, match="every = 0: at least 1 step"):
        DriftCallback(run=tmp_path, every=0)


def test_the_last_weights_are_scored_where_others_are_loaded_at_the_end(tok, tmp_path):
    """Guards `load_best_model_at_end`: the last sample is of the last update, not of the best checkpoint."""
    callback = DriftCallback(small_panel(), run=tmp_path / "run", every=3, controls=False, tokens=1024)
    trainer = make("dpo", tmp_path, tok, callbacks=[callback], eval_strategy="steps", eval_steps=1, save_steps=1,
                   save_strategy="steps", load_best_model_at_end=True, metric_for_best_model="loss",
                   greater_is_better=True)  # fmt: skip
    trainer.train()
    log = DriftLog.open(tmp_path / "run")
    assert log.steps.tolist() == [0, 3, 4]
    from transformers import LlamaForCausalLM

    saved = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert np.abs(log.samples()[-1] - by_its_own_logits(saved, small_panel(), tok)).max() < NATS
    best = Path(trainer.state.best_model_checkpoint).name
    assert best != "checkpoint-4", "the test means nothing if the last one was the best"


@pytest.mark.slow
def test_ddp_of_two_ranks(tiny_models, tok, tmp_path):
    """Guards DDP: weights with and without are bit-equal on both ranks (in helpers/trainers.py), and the panel is
    whole."""
    torchrun(2, "trainers", tmp_path, tiny_models["llama"], "ddp")
    for kind in ("sft", "dpo"):
        log = DriftLog.open(tmp_path / kind / "scored" / "run")
        assert log.steps.tolist() == [0, 2, 4] and np.isfinite(log.samples()[[0, 2]]).all()


@pytest.mark.gpu
def test_trl_under_fsdp2(cuda, tiny_models, tmp_path):
    """Guards accelerate's FSDP2, which is for GPUs only: SFT and DPO with LoRA, weights bit-equal on all ranks."""
    for package in ("trl", "peft", "datasets"):
        pytest.importorskip(package)
    torchrun(torch.cuda.device_count(), "trainers", tmp_path, tiny_models["llama"], "fsdp2")
    for kind in ("sft", "dpo"):
        log = DriftLog.open(tmp_path / kind / "scored" / "run")
        assert log.steps.tolist() == [0, 2, 4] and np.isfinite(log.samples()[[0, 2]]).all()
