"""The engine in a program of one's own: rows, trees and runs for tests, and a loop under torchrun:
`torchrun ... -m helpers.embedding OUT MODEL`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import vdengine as vd
from helpers.workers import leave

ROWS = [
    {"prompt": f"What of {word}?", "chosen": f"{word} is good, {i}.", "rejected": f"no {word}" + "!" * (i % 3)}
    for i, word in enumerate("law art tea war sea oil ice sun".split())
]
STEPS = 4


def tables(out: Path, folder: str = "run", **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A recipe that names neither model nor data."""
    t: dict[str, dict[str, Any]] = {
        "run": {"folder": str(out / folder), "steps": STEPS, "seed": 3},
        "model": {"dtype": "float32"},
        "data": {"cache": str(out / "cache"), "max_tokens": 200},
        "objective": {"name": "simpo", "beta": 2.0},
        "batch": {"examples": 4, "tokens": 400},
        "optimizer": {"lr": 1e-3, "eps": 1e-3, "warmup": 0.0},  # eps: see helpers.runs
        "probes": {"every": 0},
        "checkpoint": {"export": False},
    }
    for name, keys in sections.items():
        t[name] = t.get(name, {}) | keys
    return t


def trees(tokenizer: Any, rows: list[dict[str, str]] = ROWS) -> list[vd.Tree]:
    """The rows as a store would hold them."""
    found = []
    for i, row in enumerate(rows):
        ids = tokenizer.renderer.response_tree(
            [{"role": "user", "content": row["prompt"]}], [row["chosen"], row["rejected"]]
        )
        found.append(vd.Tree(ids.prompt, ids.branches, ids.scored, id=i))
    return found


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a sharded model. A collective."""
    return {n: p.full_tensor().detach().clone() for n, p in model.named_parameters()}


def own_batches(out: Path, source: str, folder: str) -> dict[str, Any]:
    """A run whose batches are given: rank 0 has the odd rows, rank 1 the even ones but none in the second step. A part
    of the model is frozen."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tokenizer = vd.load_tokenizer(source)
    every = trees(tokenizer)
    probe = vd.pack([vd.Tree(every[0].prompt, every[0].branches)])
    model = vd.load_model(source)
    for frozen in (model.model.embed_tokens.weight, model.blocks[1].mlp.up_proj.weight):  # a unit, a part of one
        frozen.requires_grad_(False)
    trainer = vd.Trainer(tables(out, folder), model=model, tokenizer=tokenizer)
    losses, scores = [], []
    for step in range(STEPS):
        rows = every[: 3 + step]
        mine = rows[rank::ranks] if step != 1 else (rows if rank == 0 else [])
        row = trainer.step(mine, probes=probe if rank == ranks - 1 else None)
        losses.append(row["loss"])
        scores.append(None if trainer.probe_logp is None else trainer.probe_logp.tolist())
    errors, weights = [], whole(trainer.model)
    trainer.total_steps += 1
    for batch in ([vd.Tree([1], [[2]])] if rank == ranks - 1 else every[:2], []):
        try:
            trainer.step(batch)
        except vd.InputError as error:
            errors.append(str(error))
    found = {"losses": losses, "scores": scores, "errors": errors, "weights": weights}
    trainer.close()
    return found


def own_loop(source: str) -> dict[str, Any]:
    """`vd.shard` in a loop: the weights are kept, and gradients are means or sums over the ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    every, found = trees(vd.load_tokenizer(source))[:4], {}
    for gradients in ("mean", "sum"):
        model = vd.shard(vd.load_model(source), gradients=gradients)
        found["weights"] = whole(model)
        pack = vd.pack(every[rank::ranks])
        scores = model(pack, probes=vd.pack(every))
        (-pack.branch_sum(scores.logp)).sum().backward()
        found[gradients] = {n: p.grad.full_tensor().clone() for n, p in model.named_parameters()}
        found["probes"] = scores.probe_logp.clone()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    out, source = Path(sys.argv[1]), sys.argv[2]
    found = {"batches": own_batches(out, source, f"ranks{dist.get_world_size()}"), "loop": own_loop(source)}
    torch.save(found, out / f"{dist.get_world_size()}-{dist.get_rank()}.pt")
    leave()
