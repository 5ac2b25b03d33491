"""One step of decoding: a token for each row, computed on the device alone and captured as a CUDA graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from vdengine.models.head import Draw
from vdengine.models.paged_cache import BLOCK, RowMemory
from vdengine.models.sampling import Sampling, draw
from vdengine.models.transformer import Cache, Stream, Transformer
from vdengine.noise import uniform


class DecodeStep:
    """A token for each of the first n rows of `memory`, under one `Sampling`. On CUDA each n has a captured graph.

    The first step of each n runs uncaptured: its set-up, and the kernels that it compiles, must not be in a capture.
    Other threads continue during a capture (the data loader pins memory), so only this thread is checked for calls that
    a capture forbids.
    """

    def __init__(self, model: Transformer, memory: RowMemory, sampling: Sampling, backend: str) -> None:
        self.model, self.memory, self.sampling, self.backend = model, memory, sampling, backend
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=memory.device)  # [stop ids]
        self.captures = memory.device.type == "cuda" and not isinstance(model, FSDPModule)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, n: int) -> None:
        """Run the step, from its graph if there is one."""
        if n in self.graphs:
            self.graphs[n].replay()
            return
        self.run(n)
        if self.captures:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.graphs.values())).pool() if self.graphs else None
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.run(n)
            self.graphs[n] = graph

    def run(self, n: int) -> None:
        """Sample and update the rows' state in place. The host does not wait for the device, and no shape depends on
        computed values."""
        tokens, lengths, counts, noise, table, given, logp, done = (x[:n] for x in self.memory.state)
        # where the key of each row's input goes: [n] int64
        places = table.gather(1, (lengths // BLOCK)[:, None])[:, 0] * BLOCK + lengths % BLOCK
        empty = lengths.new_empty(0, dtype=torch.int32)
        stream = Stream(self.model.angles(lengths), empty, empty, 0, 0, None, None, None, None)
        drawn = self.decode(
            tokens,
            stream,
            places,
            table,
            (lengths + 1).int(),
            partial(draw, noise=uniform(noise, lengths + 1), s=self.sampling, backend=self.backend),
        )
        # A row that is done does not advance, and its blocks stay its own. Its tokens go to the last column.
        column = torch.where(done, given.shape[1] - 1, counts)[:, None]  # [n, 1]
        given.scatter_(1, column, drawn.tokens[:, None])
        logp.scatter_(1, column, drawn.logp[:, None])
        tokens.copy_(drawn.tokens)
        counts += ~done
        done |= (drawn.tokens[:, None] == self.stop).any(1) | (counts >= self.sampling.max_tokens)
        lengths += ~done

    def decode(
        self,
        tokens: Tensor,  # [T] int64
        stream: Stream,
        places: Tensor,  # [T] int64, where their keys go in the cache
        table: Tensor | None,  # [T, width] int32, blocks of each row; None: tokens of packed prompts
        lengths: Tensor | None,  # [T] int32, keys of each row
        draw: Draw | None,
    ) -> Any:
        """`Transformer.decode` with the memory's cache."""
        caches = [Cache(keys, values, places, table, lengths, self.backend) for keys, values in self.memory.layers]
        return self.model.decode(tokens, stream, caches, draw)
