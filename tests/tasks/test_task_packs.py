"""Tokens and packs of tasks, and their numbers against lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.task_rows import write_tasks

import vdengine as vd
from vdengine.drift.capability_log import CapabilityLog
from vdengine.errors import InputError
from vdengine.tasks.task import Row, Task, Turn, load_tasks
from vdengine.tasks.task_packs import TaskPacks, row_ids
from vdengine.text.renderer import Renderer

EXPECTED = Path(__file__).with_name("lm_eval.json")  # made by tests/helpers/lm_eval_runs.py


def row(text, *choices, gold=0):
    return Row(0, (Turn("user", text),), choices, (gold,))


def test_the_boundary_is_lm_evals(real_tokenizer):
    """Guards the split of prompt and choice: tokenised together, white space at the end of the prompt is the choice's,
    one BOS where the tokenizer begins texts with it; a chat's choice begins at once."""
    for name in ("qwen3", "llama3"):
        tokenizer = vd.load_tokenizer(str(real_tokenizer(name)))
        renderer = Renderer(tokenizer)
        encode = tokenizer.encode
        start = [tokenizer.bos_id] if name == "llama3" else []
        prompt, answers = row_ids(row("One: \n", "two", "six"), " ", renderer, chat=False, where="x")
        assert prompt == start + encode("One:")
        assert answers == [encode(f"One: \n {c}")[len(encode("One:")) :] for c in ("two", "six")]
        context = renderer.text([{"role": "user", "content": "One"}], add_generation_prompt=True)
        prompt, answers = row_ids(row("One", "two"), " ", renderer, chat=True, where="x")
        whole = encode(context + "two", special=True)
        assert (prompt + answers[0])[-len(whole) :] == whole and prompt.count(tokenizer.bos_id or -1) == len(start)
        assert prompt[-3:] == encode(context.rstrip(), special=True)[-3:]


def test_special_tokens_of_a_row_are_text(real_tokenizer):
    """Guards a question or choice that ends a turn: what it says is text, in a chat as elsewhere."""
    tokenizer = vd.load_tokenizer(str(real_tokenizer("qwen3")))
    end = tokenizer.token_id("<|im_end|>")
    for chat, count in ((False, 0), (True, 1)):
        prompt, answers = row_ids(
            row("a <|im_end|> b", "<|im_end|>", "c"), " ", Renderer(tokenizer), chat=chat, where="x"
        )
        assert prompt.count(end) == count and end not in answers[0] and len(answers[0]) > 1


def test_packs_are_trees_of_choices(tiny_models, tmp_path):
    """Guards the layout: a prompt once, choices of one token as firsts, and sums that equal plain rows."""
    source = str(tiny_models["qwen3"])
    model, renderer = vd.load_model(source, dtype=torch.float32, device="cpu"), Renderer(vd.load_tokenizer(source))
    tasks = load_tasks([write_tasks(tmp_path)[name] for name in ("facts", "goals")], limit=4)
    packs = TaskPacks.build(tasks, renderer, 1024)
    assert packs.num_branches == 4 * 4 + 4 * 2
    assert sum(p.num_firsts for p in packs.packs) == sum(len(r.answer_ids) == 1 for r in packs.requests)
    found = packs.score(model)
    for k, request in enumerate(packs.requests):
        alone = vd.pack([vd.Tree(request.prompt_ids, [request.answer_ids])])
        assert found[k].item() == pytest.approx(alone.branch_sum(model(alone).logp).item(), rel=1e-5)  # fp32: 40 terms
    with pytest.raises(InputError, match="task goals, row 0 has .* tokens; a pack has at most 64 .*capability.tokens"):
        TaskPacks.build(tasks[1:], renderer, 64)


def test_a_choice_without_a_token(tiny_models):
    """Guards an empty prompt, which gets the tokenizer's first token."""
    renderer = Renderer(vd.load_tokenizer(str(tiny_models["qwen3"])))
    prompt, answers = row_ids(row("", "ab", "c"), "", renderer, chat=False, where="x")
    assert prompt == [renderer.tokenizer.eos_id] and [len(a) for a in answers] == [2, 1]


def compare(found, task, expected, tolerance):
    """Log-probs, answers, metrics and their errors of one task."""
    values = found.channel.values[0]
    flat = np.array([x for of_row in expected["logp"] for x in of_row])
    assert np.abs(flat - values[task.offsets[0] : task.offsets[-1]]).max() < tolerance
    assert task.predicted(values, "acc").tolist() == [int(np.argmax(of_row)) for of_row in expected["logp"]]
    accuracies = found.checks()[0].accuracies
    for metric in task.metrics:
        assert accuracies[task.name, metric].value == pytest.approx(expected["metrics"][metric], abs=1e-12)
        assert accuracies[task.name, metric].stderr == pytest.approx(expected["metrics"][f"{metric}_stderr"], abs=1e-12)


@pytest.mark.slow
def test_200_rows_of_two_tasks_agree_with_lm_eval(smollm2_gguf, tmp_path):
    """Guards the whole: argmax, acc, acc_norm, acc_bytes and their standard errors of 200 rows equal those that
    lm-evaluation-harness 0.4.13 gives with transformers on the same weights. The sums are of fp32 logits on both sides:
    40 tokens, each off by a few ulp of a logit of 20 (2e-6), make 1e-4; the figures are kept to 5e-5."""
    model = vd.load_model(str(smollm2_gguf), dtype=torch.float32, device="cpu")
    renderer = Renderer(vd.load_tokenizer(str(smollm2_gguf)))
    files = write_tasks(tmp_path)
    packs = TaskPacks.build(load_tasks([files["facts"], files["goals"]]), renderer, 2048)
    log = CapabilityLog.create(tmp_path / "run", packs)
    log.append(0, packs.score(model).numpy())
    expected = json.loads(EXPECTED.read_text())["text"]
    assert sum(len(task.choices) for task in log.tasks) == 200
    for task in log.tasks:
        compare(log, task, expected[task.name], 5e-4)


@pytest.mark.slow
def test_examples_and_chats_agree_with_lm_eval(smollm2_gguf, tmp_path):
    """Guards drawn and first examples, and chats with examples as turns: the log-probs of the first rows, which differ
    by nats where a prompt does."""
    model = vd.load_model(str(smollm2_gguf), dtype=torch.float32, device="cpu")
    renderer = Renderer(vd.load_tokenizer(str(smollm2_gguf)))
    tasks = [Task.load(write_tasks(tmp_path)[name], limit=5) for name in ("facts_3", "goals_2")]
    for way in ("text", "chat"):
        packs = TaskPacks.build(tasks, renderer, 2048, chat=way == "chat")
        found = iter(packs.score(model).tolist())
        for task in tasks:
            for of_row in json.loads(EXPECTED.read_text())[way][task.name]["logp"][:5]:
                assert [next(found) for _ in of_row] == pytest.approx(of_row, abs=5e-4)


def test_against_lm_eval_itself(tiny_models, tmp_path):
    """Guards against the release of lm-evaluation-harness that is installed, where one is: all four tasks, as text and
    as chats, by a small random model."""
    pytest.importorskip("lm_eval")
    from helpers.lm_eval_runs import evaluate

    source, files = str(tiny_models["qwen3"]), write_tasks(tmp_path)
    model, renderer = vd.load_model(source, dtype=torch.float32, device="cpu"), Renderer(vd.load_tokenizer(source))
    for chat in (False, True):
        expected = evaluate(source, files, chat=chat, limit=20)
        packs = TaskPacks.build(load_tasks(list(files.values()), 20), renderer, 4096, chat=chat)
        log = CapabilityLog.create(tmp_path / str(chat), packs)
        log.append(0, packs.score(model).numpy())
        for task in log.tasks:
            compare(log, task, expected[task.name], 5e-3)  # a byte is a token here: sums of some hundred
