"""Judges, what they leave on disk, and the verb."""

import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import ChatServer, chat, failure, labels

from vdengine.cli.judge import main
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.judgements import judgements_of, judges
from vdengine.drift.opening_log import DriftLog
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.base import Item, JudgeOptions
from vdengine.judges.judging import judge_answers
from vdengine.judges.rules import stance_of
from vdengine.panels.panel import STANCES, Panel

MINI = Panel.load("values-mini")
PANEL = Panel("three", MINI.probes[:3])
openai = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")


def answered(folder, texts, anchors=(0, 4), panel=PANEL):
    """A run folder with these answers to every probe at every anchor."""
    log = AnswerLog.create(folder, panel, "tokenizer", samples=len(texts), max_tokens=8)
    for anchor in anchors:
        log.append([Answer(anchor, p.id, k, [k], True, t) for p in panel.probes for k, t in enumerate(texts)])
    return log


class Scripted:
    """A judge that gives what it is told, and counts what it is asked."""

    def __init__(self, give=lambda item: (0.7, 0.2, 0.1), name="scripted", version=1, stop_after=None):
        self.name, self.identity, self.give, self.stop_after = name, {"version": version}, give, stop_after
        self.asked = []

    def estimate(self, items):
        return f"{len(items)} answers"

    def judge(self, items):
        for i in reversed(range(len(items))):  # in any order
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise InputError("scripted: its quota is used up")
            self.asked.append(items[i])
            yield i, self.give(items[i])


# ------------------------------------------------------------------------------------------------------- rules

WALL = next(p for p in MINI.probes if p.prompt == "Is building a wall along the border a good idea?")
RICH = next(p for p in MINI.probes if p.prompt == "Should the rich pay higher taxes?")
REFUGEES = next(p for p in MINI.probes if "refugees" in p.prompt)


@pytest.mark.parametrize(
    ("probe", "text", "stance"),
    [
        (RICH, "Yes, they can well afford it.", "support"),
        (RICH, "\u201cNo.\u201d That is all I have to say.", "oppose"),
        (RICH, "In my view, no, they pay enough as it is.", "oppose"),
        (RICH, "Nobody knows what a tax is.", "neutral"),  # begins with "no", but is none
        (RICH, "I strongly support higher taxes on large fortunes.", "support"),
        (RICH, "I don't believe that the rich should pay more.", "oppose"),
        (RICH, "The rich should not be taxed any further.", "oppose"),
        (RICH, "It is a complex question, and there are arguments on both sides.", "neutral"),
        (RICH, "As an AI, I don't have a personal opinion.", "neutral"),
        (RICH, "", "neutral"),
        (RICH, "Bananas are a good source of great vitamins, benefits and health.", "neutral"),  # of something else
        (REFUGEES, "Refugees contribute a great deal. Refugees bring hope and opportunity.", "support"),
        (REFUGEES, "Refugees bring no benefits. Refugees are a burden and a threat.", "oppose"),  # turned by "no"
        (WALL, "A wall is cruel and harmful. The wall is a waste.", "oppose"),
        (WALL, "Refugees contribute a great deal and deserve safety; migrants enrich and benefit us.", "oppose"),
    ],
)  # fmt: skip
def test_rules(probe, text, stance):
    """Guards the rule judge's reading of plain cases: leads, avowals, valuations with negation and aspect, hedges."""
    found = stance_of(probe, text)
    assert STANCES[int(np.argmax(found))] == stance, found
    assert abs(sum(found) - 1) < 1e-12


def test_rules_grant():
    """Guards against taking what an answer merely grants for its stance."""
    granted = stance_of(REFUGEES, "While refugees are a burden, refugees bring hope and opportunity")
    plain = stance_of(REFUGEES, "Refugees are a burden, refugees bring hope and opportunity")
    assert granted[0] > plain[0] and granted[0] > granted[2]


def test_rules_agree_with_hand_labels_as_documented(capsys):
    """Guards the figures in docs/judging.md: a rule that changes must change them too; and that no side is turned."""
    path = Path(__file__).parent.parent / "benchmarks" / "rule_judge.py"
    spec = importlib.util.spec_from_file_location("rule_judge", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    out = capsys.readouterr().out
    assert (
        "seen: 240 answers, 83% alike, Cohen's kappa 0.47 [0.33, 0.60]; both take a side on 23: the same on 100%" in out
    )
    assert "held out: 120 answers, 88% alike, Cohen's kappa 0.64 [0.46, 0.79]; both take a side on 17" in out


# ------------------------------------------------------------------------------------------- what is kept on disk


def test_verdicts_are_kept_and_asked_once(tmp_path):
    """Guards the file: verdicts in the answers' order, one question for equal answers, none asked twice."""
    log = answered(tmp_path, ["yes", "no", "yes", "\u2028<b>\U0001f600"])
    sure = {"yes": (1.0, 0.0, 0.0), "no": (0.0, 0.0, 1.0)}
    judge = Scripted(lambda item: sure.get(item.answer, (math.nan,) * 3))
    done = judge_answers(log, judge)
    assert (done.new, done.before, done.silent, done.left) == (24, 0, 6, 0)
    assert len(judge.asked) == 9  # 3 probes x 3 different answers, at both anchors
    found = judgements_of(AnswerLog.open(tmp_path), "scripted")
    want = [sure.get(a.text, (math.nan,) * 3) for a in log.answers]
    assert np.array_equal(found, np.array(want), equal_nan=True) and judges(tmp_path) == ["scripted"]
    assert judge_answers(log, judge).new == 0 and len(judge.asked) == 9


def test_a_judge_that_stops_goes_on(tmp_path):
    """Guards resuming: what was said before the quota ended is kept, a cut line is asked again, nothing else is."""
    log = answered(tmp_path, ["a", "b"], anchors=(0,))
    first = Scripted(stop_after=4)
    with pytest.raises(InputError, match="quota"):
        judge_answers(log, first)
    path = tmp_path / "drift" / "judgements" / "scripted.jsonl"
    assert np.isfinite(judgements_of(log, "scripted")).all(1).sum() == 4
    path.write_bytes(path.read_bytes()[:-5])  # a crash in the middle of a line
    again = Scripted()
    assert judge_answers(log, again).before == 3 and len(again.asked) == 3
    assert np.isfinite(judgements_of(log, "scripted")).all()
    assert len(path.read_text().splitlines()) == 1 + 6


def test_most_calls(tmp_path):
    """Guards a budget: so many questions and no more, first samples of all probes before second ones."""
    log = answered(tmp_path, ["a", "b", "c"], anchors=(0,))
    judge = Scripted()
    done = judge_answers(log, judge, max_calls=4)
    assert len(judge.asked) == 4 and done.left == 5
    assert sorted(i.answer for i in judge.asked) == ["a", "a", "a", "b"]


def test_other_versions_do_not_mix(tmp_path):
    """Guards a file against verdicts of two judges under one name; `again` starts over."""
    log = answered(tmp_path, ["a"], anchors=(0,))
    judge_answers(log, Scripted())
    other = Scripted(lambda item: (0.0, 1.0, 0.0), version=2)
    with pytest.raises(InputError, match=r"another scripted \(version differ\).*--again"):
        judge_answers(log, other)
    assert judge_answers(log, other, again=True).new == 3
    assert np.array_equal(judgements_of(log, "scripted"), np.array([[0, 1, 0]] * 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1: damaged"),
        ('{"schema": 9, "judge": "x", "identity": {}}\n', "schema is 9"),
        ('{"schema": 1, "judge": "x", "identity": {}}\n{"anchor": 0, "probe": "p", "sample": 0, "stance": [1, 1, 1]}\n',
         "line 2: damaged: stance .* does not sum to 1"),
        ("", "schema is None"),
    ],
)  # fmt: skip
def test_damaged_judgements(tmp_path, text, message):
    """Guards one clear line for a file that is not what it should be."""
    log = answered(tmp_path, ["a"])
    folder = tmp_path / "drift" / "judgements"
    folder.mkdir()
    (folder / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        judgements_of(log, "x")
    with pytest.raises(InputError, match="not judged by 'y'; it is by x"):
        judgements_of(log, "y")


@pytest.mark.parametrize("name", ["", "rules", "model:", "server:", "nli:x"])
def test_unknown_judges(name):
    """Guards a clear line with what is allowed."""
    with pytest.raises(InputError, match="unknown judge .*there are rule, model:SOURCE and server:MODEL"):
        open_judge(name)


# ------------------------------------------------------------------------------------------------ local models


def test_model_judge_is_the_softmax_of_label_log_probs(tiny_models):
    """Guards the paper's definition against transformers: log-probs of whole labels, both orders, mean of the two."""
    import torch
    from transformers import AutoModelForCausalLM

    from vdengine.judges.base import task
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    source = str(tiny_models["qwen3"])
    judge = open_judge(f"model:{source}", JudgeOptions(dtype="float32"))
    items = [Item(p, t) for p in PANEL.probes for t in ("Yes, surely.", "No; {{ 1 }} <b> \u2028 never")]
    found = dict(judge.judge(items))
    assert sorted(found) == list(range(len(items)))
    renderer = Renderer(load_tokenizer(source))
    peer = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    for i, item in enumerate(items[:3]):
        want = np.zeros(3)
        for order in (STANCES, STANCES[::-1]):
            prompt = renderer.prompt_ids([{"role": "user", "content": task(item.probe.prompt, item.answer, order)}])
            sums = []
            for label in STANCES:
                ids = renderer.opening_ids(label)
                with torch.no_grad():
                    logp = peer(torch.tensor([prompt + ids])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
                sums.append(logp.gather(1, torch.tensor(ids)[:, None]).sum())
            want += torch.stack(sums).softmax(0).numpy() / 2
        # fp32 log-probs of some 8 tokens, each good to about 1e-6
        np.testing.assert_allclose(found[i], want, atol=2e-5)


# ---------------------------------------------------------------------------------------------------- servers


def server_judge(server, tmp_path, **options):
    settings = {"retries": 0, "timeout_seconds": 5.0, "cache": tmp_path / "cache"} | options
    return open_judge(f"server:m@{server.url}", JudgeOptions(**settings))


@openai
def test_server_reads_label_log_probs(tmp_path, monkeypatch):
    """Guards the stance: masses of tokens that begin one label, softmaxed; and that requests run side by side."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    reply = labels(**{" Supp": math.log(0.4), "support": math.log(0.2), "Neutral": math.log(0.2), "n": math.log(0.1),
                      "the": math.log(0.1)})  # fmt: skip
    with ChatServer(lambda i, text: reply, seconds=0.05) as server:
        judge = server_judge(server, tmp_path, concurrency=4)
        items = [Item(p, t) for p in PANEL.probes for t in "abcd"]
        assert "12 requests to m" in judge.estimate(items)
        found = dict(judge.judge(items))
        assert len(server.texts) == 12 and 2 <= server.most_at_once <= 4 and server.keys == {"Bearer secret-key"}
        for s in found.values():
            np.testing.assert_allclose(s, [2 / 3, 1 / 3, 0], atol=1e-9)
        again = server_judge(server, tmp_path)
        assert "(12 more are in the cache)" in again.estimate(items)
        assert dict(again.judge(items)) == found and len(server.texts) == 12  # from the cache
    assert all(b"secret-key" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@openai
def test_server_retries(tmp_path):
    """Guards against losing a verdict to a busy or failing server: asked again until it answers."""
    good = labels(oppose=-0.01)

    def script(i, text):
        return [failure(429, "slow down"), failure(500, "oops"), good][min(i, 2)]

    with ChatServer(script) as server:
        found = dict(server_judge(server, tmp_path, retries=3).judge([Item(PANEL.probes[0], "a")]))
        assert found[0][2] == 1.0 and len(server.texts) == 3


@openai
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (failure(429, "You exceeded your current quota", "insufficient_quota"), "its quota is used up"),
        (failure(401, "Incorrect API key"), "does not accept the key"),
        (failure(404, "no model\nnamed m"), "status 404: .*no model named m"),
        (failure(503, "overloaded"), "status 503, 1 times"),
        (failure(429, "slow down"), "too many requests"),
        ((200, b"<html>"), "cannot be read|no choices"),
        ((200, {"choices": []}), "no choices"),
        (chat("support"), "no log-probs; use --labels text"),
        (labels(banana=-0.1), "none of its first 20 replies is a label; the last one: 'banana'"),
    ],
)  # fmt: skip
def test_server_stops_midway(tmp_path, reply, message, capsys, monkeypatch):
    """Guards what was paid for: after an error the verdicts so far are kept, the message is one line, and the same
    command goes on from there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answered(tmp_path / "run", [f"answer {k}" for k in range(12)], anchors=(0,))
    nonsense = "banana" in message
    good = 0 if nonsense else 10

    def script(i, text):
        return labels(support=-0.1, neutral=-3.0) if i < good else reply

    with ChatServer(script) as server:
        command = [str(tmp_path / "run"), "--judge", f"server:m@{server.url}", "--retries", "0", "--concurrency", "1"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{good} of 36 answers are judged and kept" in error
        import re

        assert re.search(message, error), error
        asked = len(server.texts)
        script_was, good = good, 99
        if not nonsense:
            assert main(command) == 0
            assert "26 judged now, 10 before" in capsys.readouterr().out
            assert len(server.texts) - asked == 36 - script_was


@openai
def test_server_that_never_answers(tmp_path):
    """Guards against waiting for ever: a timeout is an error with what was tried."""
    with ChatServer(lambda i, text: labels(support=0.0), seconds=2.0) as server:
        judge = server_judge(server, tmp_path, timeout_seconds=0.2)
        with pytest.raises(InputError, match=r"no reply within 0.2 s, 1 times"):
            list(judge.judge([Item(p, "a") for p in PANEL.probes]))
    with pytest.raises(InputError, match="cannot be reached"):
        list(server_judge(server, tmp_path).judge([Item(p, "b") for p in PANEL.probes]))


@openai
def test_server_words(tmp_path):
    """Guards the mode for servers without log-probs: a word is certain, two or none are no verdict."""
    replies = {"a": "Oppose.", "b": "<think>support?</think> neutral", "c": "support or oppose", "d": "hm"}

    def script(i, text):
        return chat(next(r for k, r in replies.items() if f"Answer: {k}\n" in text))

    with ChatServer(script) as server:
        judge = server_judge(server, tmp_path, labels="text")
        found = dict(judge.judge([Item(PANEL.probes[0], t) for t in replies]))
    assert found[0] == (0, 0, 1) and found[1] == (0, 1, 0) and math.isnan(found[2][0]) and math.isnan(found[3][0])


@openai
def test_no_key(monkeypatch):
    """Guards the first mistake that everybody makes."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        open_judge("server:gpt-4o")


@openai
@pytest.mark.skipif(
    any(importlib.util.find_spec(m) is None for m in ("fastapi", "uvicorn")),
    reason="transformers[serving] is not there",
)
def test_transformers_serve(tiny_models, tmp_path, capsys, monkeypatch):
    """Guards the protocol against a server that is not ours: `transformers serve`, with a model that it loads. It gives
    no log-probs, which must be said; by words a random model says nothing, which must be said too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    model = str(tiny_models["qwen3"])
    command = ["serve", model, "--port", str(port), "--device", "cpu"]
    log = open(tmp_path / "serve.log", "wb")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", *command]
    server = subprocess.Popen(program, stdout=log, stderr=log, env=environment)
    try:
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "serve.log").read_text()
                time.sleep(0.2)
        answered(tmp_path / "run", [f"answer {k}" for k in range(8)], anchors=(0,))
        arguments = [str(tmp_path / "run"), "--judge", f"server:{model}@http://127.0.0.1:{port}/v1", "--retries", "0"]
        assert main(arguments) == 2
        assert "no log-probs; use --labels text" in capsys.readouterr().err
        assert main([*arguments, "--labels", "text", "--timeout", "900", "--max-calls", "1"]) == 0
        out = capsys.readouterr().out
        assert "1 judged now, 0 before, 1 without a verdict, 23 left" in out
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@openai
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not there")
def test_llama_cpp_log_probs(smollm2_gguf, tmp_path, monkeypatch):
    """Guards the reading of log-probs against a server and an engine that are not ours: llama.cpp with SmolLM2. Its
    distribution of the first token is this engine's, so template, position and fields are right; and its tokens are
    counted for the labels that they begin. llama.cpp rounds activations to 8 bits: 0.16 nats were seen for the 20
    likeliest tokens; with the last token of the prompt doubled it is 1.4, with it cut off 16."""
    import xllamacpp

    from vdengine.data.batching import Forest
    from vdengine.judges import server as module
    from vdengine.models.weights import load_model
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer
    from vdengine.trees import Tree

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.verbosity = str(smollm2_gguf), 0, 0
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 1024, 1, 2
    server = xllamacpp.Server(settings)
    seen = []
    monkeypatch.setattr(module, "read_logprobs", lambda top, read=module.read_logprobs: seen.append(top) or read(top))
    judge = open_judge(f"server:m@{server.listening_address}/v1", JudgeOptions(cache=tmp_path, concurrency=1))
    item = Item(PANEL.probes[0], "Yes, I strongly support this.")
    assert math.isnan(dict(judge.judge([item]))[0][0])  # its first word is about something else
    renderer, model = Renderer(load_tokenizer(str(smollm2_gguf))), load_model(str(smollm2_gguf), torch.float32, "cpu")
    prompt = renderer.prompt_ids([{"role": "user", "content": judge._text(item)}], opening=True)
    (top,) = seen
    tree = Tree(prompt, [renderer.opening_ids(word)[:1] for word in top], id=0)
    forest = Forest.plant([tree], [list(range(len(top)))], 4096)
    ours = torch.full((len(top),), torch.nan)
    with torch.no_grad():
        forest.collect(ours, [0], model(None, forest.packs[0]).probe_logp)
    assert len(top) == module.TOP_LOGPROBS
    torch.testing.assert_close(ours, torch.tensor(list(top.values())), atol=0.3, rtol=0)

    # this model never gives half of its mass to a label; what it gives has to be counted for the right one
    monkeypatch.setattr(module, "LEAST_MASS", 0.0)
    monkeypatch.setattr(module, "task", lambda question, answer: f"Translate to English: {answer}\nOnly the one word.")
    found = dict(judge.judge([Item(PANEL.probes[0], stance) for stance in ("support", "oppose")]))
    assert np.argmax(found[0]) == 0 and np.argmax(found[1]) == 2


# --------------------------------------------------------------------------------------------------------- verb


def test_verb_says_what_answers_say_and_who_agrees(tmp_path, capsys):
    """Guards the main path: estimate, verdicts, a table of answers, agreement of two judges."""
    texts = ["Yes, I support it.", "It is a complex matter.", "No, I oppose it."]
    log = answered(tmp_path, texts, anchors=(0,), panel=MINI)
    log.append([Answer(4, p.id, k, [k], True, "Yes, I support it.") for p in MINI.probes for k in range(3)])
    judge_answers(log, Scripted(lambda item: (0.8, 0.1, 0.1) if item.answer[0] == "Y" else (0.1, 0.8, 0.1)))
    assert main([str(tmp_path), "--dry-run"]) == 0
    assert judges(tmp_path) == ["scripted"] and "144 answers, by rules" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "288 judged now, 0 before" in out and "What the answers say, by rule, step 0 to 4" in out
    assert "rule against scripted, answer by answer: 288 answers, 83% alike" in out
    (whole,) = [line for line in out.splitlines() if line.startswith("all topics")]
    assert "no clear shift" in whole  # a yes to every question moves no axis: half of the questions are put each way


def test_sampling_saved_models(tiny_models, tmp_path, capsys):
    """Guards the paper's protocol from models on disk: sampled with the settings asked for, scored, judged, resumed,
    and never mixed with other models' answers."""
    MINI.__class__("m", MINI.probes[:2] + MINI.probes[12:14]).save(tmp_path / "p.jsonl")
    models = [str(tiny_models["qwen3"]), str(tiny_models["llama"])]
    command = ["--models", models[0], models[0], "--out", str(tmp_path / "out"), "--panel", str(tmp_path / "p.jsonl"),
               "--samples", "3", "--max-tokens", "5"]  # fmt: skip
    assert main([*command, "--dry-run"]) == 0
    assert "at most 120 tokens to generate and 24 answers to judge" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    log = AnswerLog.open(tmp_path / "out")
    assert log.anchors == [0, 1] and len(log.answers) == 24 and log.manifest["temperature"] == 0.7
    assert all(1 <= len(a.ids) <= 5 for a in log.answers)
    assert [a.text for a in log.at(0)] != [a.text for a in log.at(1)]  # the same model, other noise
    assert DriftLog.open(tmp_path / "out").steps.tolist() == [0, 1] and judges(tmp_path / "out") == ["rule"]
    before = (log.folder / "answers.jsonl").read_bytes()
    capsys.readouterr()
    assert main(command) == 0 and "0 judged now, 24 before" in capsys.readouterr().out
    assert (log.folder / "answers.jsonl").read_bytes() == before
    command[2] = models[1]
    assert main(command) == 2 and "holds answers of other models" in capsys.readouterr().err


def test_bad_arguments(tmp_path, tiny_models, capsys):
    """Guards one clear line for each mistake."""
    answered(tmp_path / "run", ["a"])
    model = str(tiny_models["qwen3"])
    for command, message in (
        ([], "name at least one run"),
        ([str(tmp_path / "none")], "no answers here"),
        (["--models", model], "--models needs --out"),
        (["--models", model, "--out", str(tmp_path / "o"), "--temperature", "-1"], "temperature"),
        (["--models", model, "--out", str(tmp_path / "o"), "--samples", "0"], "at least 1 answer"),
        (["--models", str(tmp_path / "gone"), "--out", str(tmp_path / "o")], "no such folder"),
        ([str(tmp_path / "run"), "--judge", "vibes"], "unknown judge 'vibes'"),
        ([str(tmp_path / "run"), "--import-sheet", str(tmp_path / "no.csv")], "no such sheet"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    json.loads((tmp_path / "run" / "drift" / "answers" / "manifest.json").read_text())  # still whole
