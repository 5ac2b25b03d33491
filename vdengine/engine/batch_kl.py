"""How far the policy is from the reference, of a whole batch: KTO's point of reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from vdengine.data.mismatched import Mismatched
from vdengine.engine.parallel import World
from vdengine.models.transformer import Transformer
from vdengine.trees import Pack


class BatchKL:
    """max(0, mean of log p - log p_reference) over a batch's mismatched answers (`data.mismatched`), before the update
    that the batch is learned in. One forward of them without gradient; nothing is computed that depends on packs or on
    ranks beyond rounding.

    Args:
        reference: branch sums of the reference model for a pack, [B] fp32.
        idle: the pack that a rank runs where it has none.
        budget: tokens of a pack.
    """

    def __init__(
        self, mismatched: Mismatched, reference: Callable[[Pack], Tensor], idle: Pack, world: World, budget: int
    ) -> None:
        self.mismatched, self.reference, self.idle = mismatched, reference, idle
        self.world, self.budget = world, budget

    @torch.no_grad()
    def __call__(self, model: Transformer, k: int) -> Tensor:  # [] fp32, nats of an answer
        """Of batch k. A collective."""
        w, first = self.world, self.mismatched.start(k)
        of_rows = torch.zeros(len(self.mismatched.rows(k)), device=w.device)
        for share in self.mismatched.packs(k, w.size, w.rank, self.budget):
            pack = (self.idle if share is None else share).to(w.device, non_blocking=True)
            ratios = pack.branch_sum(model(pack).logp) - self.reference(pack)  # idle ranks take part in both
            if share is not None:
                of_rows[pack.tree_ids - first] = ratios
        if w.size > 1:  # each row is one rank's, the others hold zeros: the sum is exact
            dist.all_reduce(of_rows)
        return of_rows.mean().clamp(min=0)
