"""What rows bring to their losses beside the model's own scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vdengine.data.store import Store
from vdengine.trees import Pack


@dataclass(frozen=True, eq=False)
class RowExtras:
    """Functions of a pack, and what is known of the whole batch."""

    reference: Callable[[Pack], Tensor] | None  # branch sums of the reference model, [B] fp32
    row_margins: Callable[[Pack], Tensor] | None  # of a pack's trees, [n] fp32
    row_labels: Callable[[Pack], Tensor] | None = None  # of a pack's trees, [n] bool
    batch_kl: Tensor | None = None  # [] fp32, of the step or of the held-out rows

    @classmethod
    def of(cls, store: Store, reference: Callable[[Pack], Tensor] | None, device: torch.device) -> Self:
        """Of the rows of a store, by the ids of a pack's trees. Those of the idle pack are another row's, and count
        nothing."""

        def by_id(values: np.ndarray) -> Callable[[Pack], Tensor]:
            of_rows = torch.from_numpy(np.array(values)).to(device)  # [rows of the store]
            return lambda pack: of_rows[pack.tree_ids]

        return cls(
            reference,
            row_margins=by_id(store.margin) if store.kind == "preference" else None,
            row_labels=by_id(store.wanted.astype(bool)) if store.kind == "unpaired" else None,
        )

    @classmethod
    def of_given(cls, reference: Callable[[Pack], Tensor] | None, device: torch.device) -> Self:
        """Of rows that a step was given: every margin is 1."""
        return cls(reference, row_margins=lambda pack: torch.ones(pack.num_trees, device=device))
