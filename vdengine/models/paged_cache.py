"""The paged key-value cache (arXiv 2309.06180): its blocks, and the tensors of the rows that decode with it.

Keys and values are in one pool of blocks of BLOCK tokens:

    prompt | block | block | tail          computed once, packed with other prompts through the normal attention
    row 0  |   "   |   "   | tail' | block | block       full blocks of the prompt are shared, its tail is copied, and
    row 1  |   "   |   "   | tail" | block | block       all blocks that a row may need are reserved when it starts

so no row ever stops for want of memory. The last token of a prompt is not part of this: it is the first input of each
row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch

from vdengine.models.sharded import forward_dtype
from vdengine.models.transformer import Transformer

BLOCK = 16  # tokens of a block


@dataclass(eq=False)
class Prompt:
    """A prompt whose samples are being drawn, and the blocks that hold its keys: those of all its tokens but the
    last."""

    index: int  # of the prompt in its call
    tokens: list[int]
    waiting: int  # samples that have no row yet
    unfinished: int = 0  # samples that the blocks are kept for
    blocks: list[int] = field(default_factory=list)  # the full ones, which all its rows read
    tail: list[int] = field(default_factory=list)  # the partly filled one, if there is one; the last row takes it over

    @property
    def num_keys(self) -> int:
        """Tokens of the prompt that are in the cache."""
        return len(self.tokens) - 1

    @property
    def num_full(self) -> int:
        """Full blocks."""
        return self.num_keys // BLOCK

    @property
    def has_tail(self) -> bool:
        """Whether the last block is partly filled."""
        return self.num_keys % BLOCK > 0

    def row_blocks(self, max_tokens: int) -> int:
        """Blocks of a row of `max_tokens` tokens, those of the prompt included. A row's last token is never an input,
        so it has no key."""
        return -(-(self.num_keys + max_tokens) // BLOCK)

    def needs(self, max_tokens: int) -> int:
        """Free blocks that the prompt's next row needs: the row's own, and the prompt's if it is its first row."""
        blocks = self.row_blocks(max_tokens) - self.num_full
        if self.unfinished == 0:
            blocks += self.num_full + self.has_tail
        return blocks - (self.has_tail and self.waiting == 1)


class BlockPool:
    """Numbers of the free blocks. Block 0 is never given out: idle rows write to it."""

    def __init__(self, num_blocks: int) -> None:
        self.free = list(range(num_blocks - 1, 0, -1))

    def take(self, count: int) -> list[int]:
        """Reserve blocks.

        Raises:
            IndexError: there are too few.
        """
        return [self.free.pop() for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        """Free blocks."""
        self.free.extend(blocks)


class RowMemory:
    """The cache, and the state of `slots` rows as tensors on the device.

    There are at least two rows: torch scans a single row in no fixed order on CUDA. The first rows of every tensor are
    the running ones; those behind them are idle, that is, done and with only block 0.

    Args:
        width: blocks of the longest row.
        max_tokens: most tokens that a row may be given.
    """

    def __init__(self, model: Transformer, slots: int, num_blocks: int, width: int, max_tokens: int) -> None:
        self.sizes = num_blocks, width, max_tokens
        self.num_blocks, self.slots = num_blocks, slots
        c, device = model.config, model.model.norm.weight.device
        self.device = device
        shape = (c.num_hidden_layers, num_blocks, BLOCK, c.num_key_value_heads, c.head_dim)
        self.cache = torch.zeros((2, *shape), dtype=forward_dtype(model), device=device)  # of keys, of values
        # keys and values of each layer: [num_blocks, BLOCK, kv_heads, head_dim]
        self.layers = list(zip(self.cache[0].unbind(), self.cache[1].unbind(), strict=True))

        num_rows = max(2, slots)
        make = partial(torch.zeros, device=device, dtype=torch.int64)
        self.tokens = make(num_rows)  # [rows], the next input
        self.lengths = make(num_rows)  # [rows], keys in the cache; the position of the next input
        self.counts = make(num_rows)  # [rows], tokens sampled so far
        self.noise = make(num_rows)  # [rows], key of the noise
        self.table = make(num_rows, width, dtype=torch.int32)  # [rows, width], numbers of the blocks
        # [rows, max_tokens + 1], the sampled tokens and their log-probs; the last column takes those of done rows
        self.given = make(num_rows, max_tokens + 1)
        self.logp = make(num_rows, max_tokens + 1, dtype=torch.float32)
        self.done = torch.ones(num_rows, dtype=torch.bool, device=device)  # [rows]
        self.state = (
            self.tokens,
            self.lengths,
            self.counts,
            self.noise,
            self.table,
            self.given,
            self.logp,
            self.done,
        )

    def reset(self) -> None:
        """Make all rows idle and clear the cache."""
        for tensor in (self.cache, *self.state):
            tensor.zero_()
        self.done.fill_(True)
