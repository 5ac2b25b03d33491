"""`PanelScorer`: its run folder, what it refuses, and several ranks."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from helpers.causal_lms import causal_lm
from helpers.launch import torchrun
from torch import nn

import vdengine as vd
from vdengine.drift.load import load_run
from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError
from vdengine.integrations.scorer import PanelScorer


def test_a_run_folder_in_any_loop(tok, panel, tmp_path):
    """Guards the plain way: score, step, score; a step that goes back is refused before anything is computed, and a run
    is taken up again where it stood."""
    model = causal_lm("qwen2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scorer = vd.PanelScorer(panel, tok, run=tmp_path / "run", total_steps=3, tokens=1024)
    tokens = torch.arange(40)[None]
    for step in range(3):
        sample = scorer.score(model, step)
        assert (
            sample.step == step
            and sample.seconds > 0
            and set(sample.live.text) == set(sample.live.lead) == set(panel.topics)
        )
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(InputError, match="step 2: the last sample is of step 2; steps must ascend"):
        scorer.score(model, 2)
    last = scorer.score(model, 3)
    assert set(last.scalars) >= {f"lead/{panel.topics[0]}", f"text_likelihood/{panel.topics[0]}", "value/probe_seconds"}
    scorer.close()
    run = load_run(tmp_path / "run")
    assert run.total_steps == 3 and run.log is not None and run.log.steps.tolist() == [0, 1, 2, 3]
    assert np.array_equal(run.log.samples()[-1], last.logp)

    again = vd.PanelScorer(panel, tok, run=tmp_path / "run", tokens=1024)
    again.open(3)  # as a loop does that goes on from its checkpoint of step 3
    with pytest.raises(InputError, match="the scorer is open already"):
        again.open(2)
    retaken = again.score(model, 3, controls=True)
    assert np.array_equal(retaken.logp, last.logp) and retaken.live == last.live
    assert DriftLog.open(tmp_path / "run").steps.tolist() == [0, 1, 2, 3]
    run = load_run(tmp_path / "run")
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3] and run.total_steps == 3  # what it did not say stays


def test_our_own_model_is_scored_as_it_is(tiny_models, panel, tmp_path):
    """Guards `vd.load_model` in somebody's loop: the same call, the same log, the bits of a probe forward."""
    folder = str(tiny_models["qwen3"])
    model = vd.load_model(folder)
    found = PanelScorer(panel, folder, tmp_path, tokens=1024).score(model, 0)
    model.requires_grad_(True)
    packs = vd.PanelScorer(panel, folder, tokens=1024).packs
    assert np.array_equal(found.logp, packs.score(model).numpy())
    with pytest.raises(InputError, match="layout 'rows': a model of vdengine takes trees"):
        PanelScorer(panel, folder, layout="rows").score(model, 0)


def test_a_folder_of_another_run_is_refused(tok, panel, tmp_path):
    """Guards a log against another run's samples."""
    model = causal_lm("llama")
    scorer = PanelScorer(panel, tok, tmp_path, controls=False)
    scorer.score(model, 4)
    with pytest.raises(InputError, match="drift is already being written .* by this process"):
        PanelScorer(panel, tok, tmp_path, controls=False).score(model, 5)
    scorer.close()
    with pytest.raises(InputError, match="holds a run of its own, up to step 4; go on from a checkpoint of it"):
        PanelScorer(panel, tok, tmp_path, controls=False).score(model, 0)
    with pytest.raises(InputError, match="holds the log of another panel or tokenizer"):
        PanelScorer("values-mini", tok, tmp_path, controls=False).open(5)
    with pytest.raises(InputError, match="holds the log of another panel or tokenizer"):
        PanelScorer(panel, tok, tmp_path).open(5)  # with controls
    PanelScorer(panel, tok, tmp_path, controls=False).open(5)  # the refused ones hold no lock


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "padded"}, "layout 'padded': allowed are auto, trees, rows"),
        ({"total_steps": 0}, "total_steps = 0: at least 1"),
        ({"tokens": 64}, "has 482 tokens with its openings; a pack has at most 64"),
        ({"template": "none.jinja"}, "none.jinja"),
        ({"tokenizer": object()}, "a object is not a tokenizer"),
        ({"panel": "valuse"}, "no built-in panel has this name (nearest: values"),
    ],
)
def test_bad_arguments_are_said_before_anything_runs(options, message, tok, panel):
    """Guards the first line that a user sees."""
    arguments = {"panel": panel, "tokenizer": tok} | options
    with pytest.raises(InputError, match=re.escape(message)):
        PanelScorer(**arguments)


def test_models_that_cannot_be_scored_are_refused_by_name(tok, panel, real_tokenizer):
    """Guards against scores of something else than the model says."""
    scorer = PanelScorer(panel, tok, controls=False)
    with pytest.raises(InputError, match="Linear has no output head"):
        scorer.score(nn.Linear(3, 3), 0)
    model = causal_lm("llama")
    model.lm_head.weight = nn.Parameter(torch.zeros(259, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"head is quantised \(torch.int8\)"):
        scorer.score(model, 0)
    other = PanelScorer(panel, str(real_tokenizer("qwen3")), controls=False)
    with pytest.raises(InputError, match="the tokenizer has ids up to 1516.., the model's embedding 259 rows"):
        other.score(causal_lm("llama"), 0)
    model = causal_lm("llama")
    model.forward = lambda input_ids, **more: model.model(input_ids)
    with pytest.raises(InputError, match="gives no logits, but a BaseModelOutputWithPast"):
        scorer.score(model, 0)
    model = causal_lm("qwen3")
    weight = model.lm_head.weight
    model.forward = lambda input_ids, **more: model.model(input_ids).last_hidden_state @ weight.T
    with pytest.raises(InputError, match="calls its head 0 times"):
        scorer.score(model, 0)


def test_prompt_learning_is_refused(tok, panel):
    """Guards against openings that follow virtual tokens, whose rows would be others."""
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match="adds tokens to the prompt"):
        PanelScorer(panel, tok, controls=False).score(peft.get_peft_model(causal_lm("llama"), config), 0)


def test_what_is_known_of_the_run_is_read_like_a_recipe(tok, panel, tmp_path):
    """Guards the report's first lines for a run of another trainer."""
    about = {"model": {"source": "org/name"}, "objective": {"name": "grpo"}, "optimizer": {"lr": 1e-6}}
    PanelScorer(panel, tok, tmp_path, total_steps=9, about=about).open()
    assert json.loads((tmp_path / "trainer.json").read_text()) == about | {"run": {"steps": 9}}
    run = load_run(tmp_path)
    assert run.total_steps == 9 and run.describe()["model"] == "org/name" and run.describe()["objective"] == "grpo"


@pytest.mark.slow
def test_fsdp2_and_ddp_of_two_ranks(tiny_models, tmp_path):
    """Guards sharded models: bit-equal weights in loops that call the callback's hooks, panels that leave a rank
    without a probe, an error of one rank that is one of all, and what is refused (helpers/sharded_scores.py)."""
    torchrun(2, "sharded_scores", "fsdp", tmp_path, tiny_models["llama"])


@pytest.mark.slow
def test_zero3_of_two_ranks(tiny_models, tmp_path):
    """Guards DeepSpeed's ZeRO-3, whose weights are gathered by hooks of the modules."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (DS_BUILD_OPS=0 pip install deepspeed)")
    torchrun(2, "sharded_scores", "zero3", tmp_path, tiny_models["llama"])


def test_numbers_that_are_not_finite_are_said(tok, panel, tmp_path):
    """Guards a run that diverges: its samples are not "not sampled" without a word, and a first one is refused."""
    model = causal_lm("llama")
    scorer = PanelScorer(panel, tok, tmp_path, controls=False, tokens=1024)
    scorer.score(model, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    found = scorer.score(model, 1)
    count = len(scorer.packs.requests)
    assert found.note == f"step 1: {count} of {count} log-probs are not finite, and count as not sampled"
    with pytest.raises(InputError, match="its log-probs are not finite: there is nothing to score"):
        PanelScorer(panel, tok).score(model, 0)


def test_special_tokens_beyond_the_embedding_are_no_other_vocabulary(tok, panel):
    """Guards Gemma-3's text models, whose tokenizer has a token for images that their embedding lacks."""
    import copy

    more = copy.deepcopy(tok)
    more.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model = causal_lm("llama")
    assert len(more) == 260 and model.config.vocab_size == 259
    assert np.isfinite(PanelScorer(panel, more, controls=False).score(model, 0).logp).all()
    more.add_tokens(["word"])
    with pytest.raises(InputError, match="the two do not belong together"):
        PanelScorer(panel, more, controls=False).score(model, 0)


def test_answers_of_saved_checkpoints_are_judged_in_the_same_folder(tok, panel, tmp_path):
    """Guards the way from a curve to what the models say: nothing is sampled in another trainer, but its checkpoints
    can answer, and the run folder then has both."""
    from vdengine.cli.judge import main

    run, models = tmp_path / "run", []
    panel.save(tmp_path / "small.jsonl")
    scorer = PanelScorer(panel, tok, run, controls=False, tokens=1024)
    for step in (0, 2):
        model = causal_lm("llama", seed=step)
        scorer.score(model, step)
        models.append(tmp_path / f"checkpoint-{step}")
        model.save_pretrained(models[-1])
        tok.save_pretrained(models[-1])
    scorer.close()
    options = ["--panel", str(tmp_path / "small.jsonl"), "--samples", "1", "--max-tokens", "4"]
    assert main(["--models", *map(str, models), "--out", str(run), *options]) == 0
    found = load_run(run)
    assert found.answers is not None and found.answers.anchors == [0, 2] and found.log is not None
    assert found.log.steps.tolist() == [0, 2] and (run / "drift" / "judgements" / "rule.jsonl").exists()


def test_tasks_beside_the_panel(tiny_models, tmp_path):
    """Guards tasks in a loop of one's own: on the first sample, every n-th step and the last, with the numbers of their
    own packs, in a log of their own; a panel's numbers are those without them."""
    from helpers.causal_lms import small_panel
    from helpers.task_rows import write_tasks

    from vdengine.drift.capability_log import CapabilityLog

    source, files = str(tiny_models["qwen3"]), write_tasks(tmp_path / "tasks")
    model, tasks = vd.load_model(source, device="cpu"), [vd.Task.load(files["goals"], 4)]
    panel = small_panel()
    options = {"total_steps": 6, "readouts": ["lead"], "controls": False}
    with_tasks = vd.PanelScorer(panel, source, tmp_path / "run", tasks=tasks, tasks_every=4, **options)
    without = vd.PanelScorer(panel, source, **options)
    expected = with_tasks.task_packs.score(model).numpy()
    for step in (0, 2, 4, 6):
        sample, plain = with_tasks.score(model, step), without.score(model, step)
        count = len(plain.logp)
        assert np.array_equal(sample.logp[:count], plain.logp, equal_nan=True)
        assert (sample.check is None) == (step == 2) and ("capability/goals/acc" in sample.scalars) == (step != 2)
        if step != 2:
            assert np.allclose(sample.logp[count:], expected, atol=1e-3)  # the same packs: fp32 on a CPU
    with_tasks.close()
    log = CapabilityLog.open(tmp_path / "run")
    assert log.steps.tolist() == [0, 4, 6] and log.checks()[-1].changes["goals", "acc"].mean == 0
