"""Trainers of TRL and transformers on a small random model, with and without the drift callback; as a module, a process
of several ranks that trains both ways and compares."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from helpers.causal_lms import causal_lm, small_panel, tokenizer

WORDS = "the a value of people think that law is right wrong free world very many few".split()


def pairs(n: int = 16) -> Any:
    from datasets import Dataset

    g = torch.Generator().manual_seed(0)

    def text(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (1,), generator=g))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=g).tolist())

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return Dataset.from_list(
        [
            {"prompt": turn("user", text(2, 9)), "chosen": turn("assistant", text(1, 9)),
             "rejected": turn("assistant", text(1, 9))}
            for _ in range(n)
        ]
    )  # fmt: skip


def make(kind: str, folder: Path, tok: Any, *, lora: bool = False, model: Any = None, **options: Any) -> Any:
    """A trainer: "sft" | "dpo". Options: of its arguments, and `callbacks`."""
    import trl

    torch.manual_seed(0)
    model = causal_lm("llama") if model is None else model
    defaults: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "max_length": 256,
        "save_strategy": "no", "gradient_accumulation_steps": 2, "seed": 3,
    }  # fmt: skip
    callbacks = options.pop("callbacks", [])
    rows, peft = pairs(), None
    held_out = {"eval_dataset": pairs(4)} if "eval_strategy" in options else {}
    if lora:
        from peft import LoraConfig

        peft = LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "sft":
            messages = rows.map(lambda r: {"messages": r["prompt"] + r["chosen"]}, remove_columns=rows.column_names)
            args = trl.SFTConfig(**defaults | options)
            return trl.SFTTrainer(model, args, train_dataset=messages, processing_class=tok, peft_config=peft,
                                  callbacks=callbacks)  # fmt: skip
        args = trl.DPOConfig(**defaults | options)
        reference = None if lora else copy.deepcopy(model)  # TRL would read it from the hub, by the model's name
        return trl.DPOTrainer(model, reference, args=args, train_dataset=rows, processing_class=tok, peft_config=peft,
                              callbacks=callbacks, **held_out)  # fmt: skip


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """All of them, gathered where they are sharded."""
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in named}


def train(kind: str, folder: Path, tok: Any, drift: bool, **options: Any) -> Any:
    """A trainer that has trained; with `drift` every second step is scored to folder / "drift"."""
    from vdengine.integrations.transformers import DriftCallback

    callback = DriftCallback(small_panel(), run=folder / "run", every=2, tokens=1024)
    trainer = make(kind, folder, tok, callbacks=[callback] if drift else [], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return trainer


FSDP2 = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
         "use_cpu": False}  # fmt: skip


def main(folder: str, source: str, how: str) -> None:
    """Of each rank: DDP, or FSDP2 on GPUs; with and without the callback."""
    tok, more = tokenizer(Path(source)), FSDP2 if how == "fsdp2" else {}
    for kind, lora in (("sft", False), ("dpo", True)):
        own = Path(folder) / f"{kind}"
        plain = weights(train(kind, own / "plain", tok, False, lora=lora, **more))
        scored = weights(train(kind, own / "scored", tok, True, lora=lora, **more))
        assert plain.keys() == scored.keys() and all(torch.equal(plain[n], scored[n]) for n in plain), kind
    from helpers.workers import leave

    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
