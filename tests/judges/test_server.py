"""A model behind an HTTP server as a judge: our own small server, and two that are not ours."""

import gzip
import importlib.util
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from helpers.chat_server import ChatServer, chat, failure, labels
from helpers.judging import PANEL, answered

from vdengine.cli.judge import main
from vdengine.drift.judgements import Verdict
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.base import Item, JudgeOptions
from vdengine.judges.cache import VerdictCache

openai = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")


def server_judge(server, tmp_path, **options):
    settings = {"retries": 0, "timeout_seconds": 5.0, "cache": tmp_path / "cache"} | options
    return open_judge(f"server:m@{server.url}", JudgeOptions(**settings))


@pytest.mark.slow
@openai
def test_server_reads_label_log_probs(tmp_path, monkeypatch):
    """Guards the stance: masses of tokens that begin one word, softmaxed, in both orders, with the mean and both labels
    for a verdict; and that requests run side by side."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    # "n" begins No and Neither, "yesterday" and "not" no word: they are of no label.
    first = labels(**{" Yes": math.log(0.4), "y": math.log(0.2), "Neither": math.log(0.2), "n": math.log(0.1),
                      "yesterday": math.log(0.05), "not": math.log(0.05)})  # fmt: skip
    other = labels(**{"No": math.log(0.5), "Nei": math.log(0.5)})

    def script(i, text):
        return first if "one word: Yes, Neither or No." in text else other

    with ChatServer(script, seconds=0.05) as server:
        judge = server_judge(server, tmp_path, concurrency=4)
        items = [Item(p, t) for p in PANEL.probes for t in "abcd"]
        assert "12 questions in both orders of the words: 24 requests to m" in judge.estimate(items)
        found = dict(judge.judge(items))
        assert len(server.texts) == 24 and 2 <= server.most_at_once <= 4 and server.keys == {"Bearer secret-key"}
        for stance, orders in found.values():
            np.testing.assert_allclose(stance, [0.375, 0.375, 0.25], atol=1e-9)  # means of (3/4, 1/4, 0), (0, 1/2, 1/2)
            assert orders == "sn"
        again = server_judge(server, tmp_path)
        assert "0 requests to m" in again.estimate(items) and "(24 more are in the cache)" in again.estimate(items)
        assert dict(again.judge(items)) == found and len(server.texts) == 24  # from the cache
        # What is in the cache does not come before what is not: common answers would be judged sooner than rare ones.
        more = [Item(PANEL.probes[0], "new"), *items[:4], Item(PANEL.probes[1], "new"), *items[4:]]
        assert [i for i, _ in again.judge(more)] == list(range(len(more)))
    assert all(b"secret-key" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.slow
@openai
def test_server_retries(tmp_path):
    """Guards against losing a verdict to a busy or failing server: asked again until it answers."""
    good = labels(no=-0.01)

    def script(i, text):
        return [failure(429, "slow down"), failure(500, "oops"), good][min(i, 2)]

    with ChatServer(script) as server:
        judge = server_judge(server, tmp_path, retries=3, concurrency=1)
        assert dict(judge.judge([Item(PANEL.probes[0], "a")])) == {0: Verdict((0.0, 0.0, 1.0), "oo")}
        assert len(server.texts) == 4


@pytest.mark.slow
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
    bare = 2 * len(PANEL.probes)  # questions on bare leads come first; each question is two requests

    def script(i, text):
        return labels(yes=-0.1, neither=-3.0) if i < 2 * (bare + good) * bool(good) else reply

    with ChatServer(script) as server:
        command = [str(tmp_path / "run"), "--judge", f"server:m@{server.url}", "--retries", "0", "--concurrency", "1"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{good} of 36 answers are judged and kept" in error
        assert re.search(message, error), error
        asked = len(server.texts)
        script_was, good = good, 99
        if not nonsense:
            assert main(command) == 0
            assert "26 judged now, 10 before" in capsys.readouterr().out
            assert len(server.texts) - asked == 2 * (36 - script_was)


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
    replies = {"a": "No.", "b": "<think>yes?</think> neither", "c": "Yes or no", "d": "nothing"}

    def script(i, text):
        return chat(next(r for k, r in replies.items() if f"Answer: {k}\nIn favour:" in text))

    with ChatServer(script) as server:
        judge = server_judge(server, tmp_path, labels="text")
        found = dict(judge.judge([Item(PANEL.probes[0], t) for t in replies]))
    assert found[0] == ((0, 0, 1), "oo") and found[1] == ((0, 1, 0), "nn")
    assert math.isnan(found[2].stance[0]) and math.isnan(found[3].stance[0])


@pytest.mark.slow
@openai
def test_a_server_that_takes_the_first_word_is_refused(tmp_path, capsys, monkeypatch):
    """Guards the whole way: a server that always gives the word that is named first is stopped, with figures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answered(tmp_path / "run", [f"answer {k}" for k in range(12)], anchors=(0,))

    def script(i, text):
        return labels(yes=-0.1, no=-3.0) if "one word: Yes" in text else labels(no=-0.1, yes=-3.0)

    with ChatServer(script) as server:
        assert main([str(tmp_path / "run"), "--judge", f"server:m@{server.url}"]) == 2
    error = capsys.readouterr().err
    assert "judge server:m: its labels follow the order in which they are named" in error and error.count("\n") == 1
    assert "kappa 0.00" in error and "on 42 questions" in error


@openai
def test_no_key(monkeypatch):
    """Guards the first mistake that everybody makes."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        open_judge("server:gpt-4o")


SECRETS = (
    "server:m@http://user:PASSWORD@host/v1", "server:m@https://PASSWORD@host", "server:m@HTTPS://u:PASSWORD@host",
    "server:m@user:PASSWORD@host", "server:m@host:8000/PASSWORD", "server:m@http://host/v1?key=PASSWORD",
    "server:m@http://host/#PASSWORD", "server:m@http://u:PASSWORD@[::1", "server:m@http://u:PASSWORD@host:port",
    "server:m@ftp://u:PASSWORD@host", "http://u:PASSWORD@host", "servr:m@http://u:PASSWORD@host", "server:@http://host",
    "server:m@http://", "server:m@http://host:99999", "server:m@http://ho st", "server:m@http://host/\u0430",
    "server:a\nb",
)  # fmt: skip


@openai
@pytest.mark.parametrize("name", SECRETS)
def test_a_url_with_a_secret_is_refused_and_not_shown(name, tmp_path, monkeypatch, capsys):
    """Guards passwords: no message, no file and no name of a file has what stood in a URL; and addresses that are
    none are refused before anything is asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answered(tmp_path / "run", ["a"], anchors=(0,))
    assert main([str(tmp_path / "run"), "--judge", name]) == 2
    output = "".join(capsys.readouterr())
    assert "PASSWORD" not in output and output.count("\n") == 1
    assert all(
        "PASSWORD" not in p.name and b"PASSWORD" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    )
    if name.startswith("server:m@http"):
        monkeypatch.setenv("OPENAI_BASE_URL", name.removeprefix("server:m@"))
        with pytest.raises(InputError) as error:
            open_judge("server:m")
        assert "PASSWORD" not in str(error.value)


@openai
@pytest.mark.parametrize("name", ["@cf/meta/llama", "claude@20240620", "org/name", "a:b"])
def test_models_whose_names_have_signs(name, monkeypatch):
    """Guards names of models against being taken for URLs."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert open_judge(f"server:{name}").name == f"server:{name}"
    with_url = open_judge(f"server:{name}@http://127.0.0.1:8/v1")
    assert (with_url.model, with_url.url) == (name, "http://127.0.0.1:8/v1")


@openai
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "--concurrency 0: allowed are 1 to 1024"),
        ({"timeout_seconds": math.nan}, "--timeout nan"),
        ({"timeout_seconds": -1.0}, "--timeout -1"),
        ({"retries": -1}, "--retries -1"),
        ({"labels": "words"}, "labels: 'words'"),
    ],
)
def test_options_out_of_range(options, message, tmp_path):
    """Guards the threads and the waits of a judge."""
    with pytest.raises(InputError, match=message):
        open_judge("server:m@http://127.0.0.1:9/v1", JudgeOptions(cache=tmp_path, **options))


@openai
def test_a_key_that_is_none_is_not_shown(monkeypatch, tmp_path):
    """Guards the key: with a line end in it the http library would show it; and a server that repeats it."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key\n")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a space") as error:
        open_judge("server:m@http://127.0.0.1:9/v1")
    assert "secret" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with ChatServer(lambda i, text: failure(400, "bad key secret-key\x1b[31m")) as server:
        with pytest.raises(InputError, match=r"status 400: bad key \*\*\*") as error:
            list(server_judge(server, tmp_path).judge([Item(PANEL.probes[0], "a")]))
    assert "secret" not in str(error.value) and str(error.value).isprintable()


def first_token(top):
    return chat("support", {"content": [{"token": "support", "logprob": 0.0, "top_logprobs": top}]})


HOSTILE = {
    "nested": (200, b'{"choices":' + b"[" * 10**5), "not UTF-8": (200, b"\xff"), "a list": (200, []),
    "a number of 5,000 digits": (200, b'{"choices": ' + b"9" * 5000 + b"}"), "choices": (200, {"choices": {"0": 1}}),
    "a choice": (200, {"choices": ["x"]}), "no message": (200, {"choices": [{"message": None}]}),
    "content": (200, {"choices": [{"message": {"content": 7}}]}), "endless": (200, b" " * (5 * 2**20)),
    "compressed": (200, {"gzip": gzip.compress(b" " * 2**20)}), "a huge error": (404, b"x" * (5 * 2**20)),
    "a redirect": (307, {"location": "http://127.0.0.1:9/"}), "an error that is nested": (400, b"[" * 10**5),
    "NaN": first_token([{"token": "support", "logprob": math.nan}]),
    "log-probs above 0": first_token([{"token": "support", "logprob": 1e9}]),
    "a log-prob in words": first_token([{"token": "support", "logprob": "0"}]),
    "a log-prob of 400 digits": first_token([{"token": "support", "logprob": 10**400}]),
    "a token that is none": first_token([{"token": 7, "logprob": -1.0}]), "candidates": first_token(["x"]),
    "log-probs": chat("support", {"content": "x"}), "log-probs of nothing": chat("support", [1]),
}  # fmt: skip


@openai
@pytest.mark.parametrize(
    ("mode", "reply"),
    [pytest.param("logprobs", reply, id=name) for name, reply in HOSTILE.items()]
    + [pytest.param("text", HOSTILE[name], id=f"{name}, text") for name in ("nested", "content", "log-probs")],
)
def test_hostile_replies(reply, mode, tmp_path):
    """Guards the judge: whatever a server answers, the end is verdicts that are probabilities, or one line, soon."""
    status, body = reply
    headers = {}
    if isinstance(body, dict) and "gzip" in body:
        body, headers = body["gzip"], {"Content-Encoding": "gzip"}
    if isinstance(body, dict) and "location" in body:
        headers = {"Location": body["location"]}
    with ChatServer(lambda i, text: (status, body), headers=headers) as server:
        judge = server_judge(server, tmp_path, labels=mode, concurrency=1)
        try:
            found = dict(judge.judge([Item(p, "a") for p in PANEL.probes]))
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            assert mode == "text" and all(math.isnan(verdict.stance[0]) for verdict in found.values())
    assert all(json.loads(line) for p in tmp_path.rglob("*.jsonl") for line in p.read_text().split("\n") if line)


@openai
def test_a_reply_without_end(tmp_path):
    """Guards time: a server that sends a byte now and then never lets a read time out."""
    with ChatServer(lambda i, text: (200, b" " * 40), drip=0.05) as server:
        judge = server_judge(server, tmp_path, timeout_seconds=0.3, concurrency=3)
        with pytest.raises(InputError, match=r"no reply within 0\.3 s"):
            list(judge.judge([Item(p, "a") for p in PANEL.probes]))


def test_a_cache_that_others_wrote_to(tmp_path):
    """Guards against verdicts that are none: lines that cannot be read, or are no probabilities, are asked again."""
    cache = VerdictCache(tmp_path, "server:m", {"a": 1})
    cache.add("q", (0.5, 0.25, 0.25))
    cache.close()
    good = cache.path.read_text()
    key = json.loads(good)["asked"]
    for value in (
        "[2, -1, 0]",
        "[NaN, 0, 1]",
        "[1, 0]",
        '"abc"',
        "{}",
        "[" * 10**5,
        "9" * 5000,
        "[true, 0, 0]",
        "[1e400, 0, 0]",
    ):
        cache.path.write_text(f'{{"asked": "{key}", "stance": {value}}}\n[1]\n7\n{{"asked": [], "stance": null}}\n')
        assert VerdictCache(tmp_path, "server:m", {"a": 1}).get("q") is None
    cache.path.write_bytes(b"\xff\n" + good.encode() + b'{"asked": "\xc3')
    assert VerdictCache(tmp_path, "server:m", {"a": 1}).get("q") == (0.5, 0.25, 0.25)
    assert len(VerdictCache(tmp_path, "server:" + "m" * 5000, {"a": 1}).path.name) < 200


@pytest.mark.slow
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
        assert main([*arguments, "--labels", "text", "--timeout", "900", "--max-calls", "7"]) == 0
        out = capsys.readouterr().out
        assert "1 judged now, 0 before, 1 without a verdict, 23 left" in out
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.mark.slow
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
    list(judge.judge([item]))
    renderer, model = Renderer(load_tokenizer(str(smollm2_gguf))), load_model(str(smollm2_gguf), torch.float32, "cpu")
    prompt = renderer.prompt_ids([{"role": "user", "content": judge._texts(item)[0]}], opening=True)
    top, _ = seen  # one for each order
    tree = Tree(prompt, [renderer.opening_ids(word)[:1] for word in top], id=0)
    forest = Forest.plant([tree], [list(range(len(top)))], 4096)
    ours = torch.full((len(top),), torch.nan)
    with torch.no_grad():
        forest.collect(ours, [0], model(None, forest.packs[0]).probe_logp)
    assert len(top) == module.TOP_LOGPROBS
    torch.testing.assert_close(ours, torch.tensor(list(top.values())), atol=0.3, rtol=0)

    # what it gives has to be counted for the right word
    monkeypatch.setattr(module, "LEAST_MASS", 0.0)
    monkeypatch.setattr(module, "task", lambda question, answer, order: f"Repeat the word and nothing else: {answer}")
    found = dict(judge.judge([Item(PANEL.probes[0], word) for word in ("Yes", "No")]))
    assert np.argmax(found[0].stance) == 0 and np.argmax(found[1].stance) == 2
