"""A plain FSDP2 loop with `use_linear_logprob`, and one without it in one process, as a module of torchrun.

`torchrun ... -m helpers.fused_heads OUT`: the head is a unit of its own; each rank has other rows. Leaves the loss of
every rank and the full gradients.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from helpers.causal_lms import causal_lm
from helpers.workers import leave

KIND = "gemma2"  # a soft cap


def batch(rank: int) -> dict[str, Tensor]:
    """Rows of a rank; the second has none to score in its first row."""
    g = torch.Generator().manual_seed(rank)
    ids = torch.randint(3, 250, (2, 13), generator=g)
    labels = ids.clone()
    labels[0, : 13 if rank else 4] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model: Any) -> dict[str, Tensor]:
    return {
        name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def main(out: str) -> None:
    from torch.distributed.fsdp import fully_shard

    from vdengine.integrations.fused_head import use_linear_logprob
    from vdengine.kernels import linear_logprob

    rank = dist.get_rank()
    model = causal_lm(KIND)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # tied units do not shard apart
    handle = use_linear_logprob(model, saved_bytes=0)  # backward recomputes, and so reads the weight
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model.lm_head, reshard_after_forward=True)
    fully_shard(model)
    loss = model(**batch(rank)).loss
    loss.backward()
    found = {"loss": loss.detach(), "gradients": gradients(model)}
    handle.remove()
    with torch.no_grad():
        found["logits"] = model(input_ids=batch(rank)["input_ids"]).logits
    # the weight outside of its module's forward, a DTensor
    weight = model.lm_head.weight
    weight.grad = None
    hidden = torch.randn(7, weight.shape[1], generator=torch.Generator().manual_seed(rank))
    targets = torch.arange(7)
    linear_logprob(hidden, weight, targets).sum().backward()
    found["outside"] = weight.grad.full_tensor()
    torch.save(found, f"{out}/{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    main(sys.argv[1])
    leave()
