"""Sampling with a paged key-value cache, many rows side by side.

A row is one completion of one prompt. `slots` rows decode together; where one ends, the next (prompt, sample) takes its
slot at once (continuous batching). Keys and values are in the blocks of `models.paged_cache`, so that rows of one
prompt share its keys. A prompt is computed once, packed with others, through the attention of training.

The noise behind a token is a hash of (seed, step, prompt, sample, position) and not the next number of a generator's
state. It is the same in every batch, slot and rank. So samples are too, unless rounding (a GEMM of another shape) moves
a probability across the noise.

Rows are tensors of fixed size on the device, and a step changes them there without the host (`models.decode_step`). The
host reads them every few steps. Until then, rows that have ended go on without effect.

A `Generator` keeps rows, cache and graphs from call to call; `generate` makes one for a single call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from vdengine.errors import InputError
from vdengine.models.decode_step import DecodeStep
from vdengine.models.paged_cache import BLOCK, BlockPool, Prompt, RowMemory
from vdengine.models.sampling import Completion, Sampling
from vdengine.models.sharded import Agree, agreement, forward_dtype, gather_model
from vdengine.models.transformer import Stream, Transformer
from vdengine.noise import sample_keys
from vdengine.trees import Lengths

__all__ = ["BLOCK", "Completion", "Generator", "Sampling", "gather_model", "generate"]

POLL = 8  # steps on CUDA from one look of the host at the rows to the next


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
    step: int = 0,
    prompt_ids: Sequence[int] | None = None,
    slots: int = 64,
    prefill_tokens: int = 8192,
    cache_bytes: int | None = None,
    backend: str = "auto",
) -> list[list[Completion]]:  # [prompts][samples]
    """Sample completions of the prompts with a `Generator` made for this call. Arguments and errors are those of
    `Generator` and of its call."""
    generator = Generator(model, slots=slots, prefill_tokens=prefill_tokens, cache_bytes=cache_bytes, backend=backend)
    return generator(prompts, sampling, samples=samples, seed=seed, step=step, prompt_ids=prompt_ids)


class Generator:
    """Samples from one model, call after call. The cache, the rows' tensors and on CUDA the captured graphs are kept.

    The weights may change in place between two calls; they may not be replaced by other tensors.

    Args:
        slots: rows that decode together.
        prefill_tokens: most tokens of one pack of prompts; a longer prompt is a pack of its own.
        cache_bytes: size of the key-value cache; default: enough for `slots` rows, and on CUDA at most 80% of the
            free memory.
        backend: of the kernels that only decoding uses: auto | triton | native | reference.
        longest: tokens of the longest prompt to come. Memory for it is allocated at once. A longer prompt makes the
            memory anew, and the graphs are captured again.

    Raises:
        ValueError: an argument out of range, or a scalar model.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        slots: int = 64,
        prefill_tokens: int = 8192,
        cache_bytes: int | None = None,
        backend: str = "auto",
        longest: int = 0,
    ) -> None:
        for name, value in (("slots", slots), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ValueError(f"generate: {name} must be >= 1; got {value}")
        if model.config.head != "causal":
            raise ValueError("generate: a scalar model has no tokens to give")
        self.model, self.slots, self.prefill_tokens, self.backend = model, slots, prefill_tokens, backend
        self.cache_bytes, self.longest = cache_bytes, longest
        self.memory: RowMemory | None = None
        self.steps: dict[Sampling, DecodeStep] = {}  # on `memory`
        if isinstance(model, FSDPModule) and "decode" not in vars(model):
            # `decode` gathers the root's weights, as `forward` does
            register_fsdp_forward_method(model, "decode")

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,
    ) -> list[list[Completion]]:  # [prompts][samples]
        """Sample completions of the prompts.

        If FSDP2 has sharded the model, this is a collective, and so is every forward in it: all ranks call it, each
        with its own prompts, and a rank without prompts runs the same number of forwards. With a plain model nothing is
        communicated.

        Args:
            prompts: token ids.
            samples: completions of each prompt.
            seed, step: part of the noise.
            prompt_ids: the number of each prompt in the noise; default: its index.

        Raises:
            InputError: an empty prompt, a token id out of range, a prompt too long for the model's positions, or a
                cache that is too small for one row.
            ValueError: other arguments out of range.
        """
        if samples < 1:
            raise ValueError(f"generate: samples must be >= 1; got {samples}")
        if prompt_ids is not None and len(prompt_ids) != len(prompts):
            raise ValueError(f"generate: {len(prompt_ids)} prompt_ids for {len(prompts)} prompts")
        agree = agreement(self.model)
        queue = [Prompt(i, list(tokens), samples) for i, tokens in enumerate(prompts)]
        problem = _bad_prompt(self.model, queue, sampling)
        num_blocks, cache_problem = self._num_blocks(queue, sampling)
        problem = problem or cache_problem
        most_prompts, any_problem = agree(len(prompts), problem is not None)
        if any_problem:  # an error on every rank: the others would wait for this one
            raise InputError(problem or "generate: another rank's prompts cannot be used; see its message")
        if not most_prompts:
            return []
        keys = sample_keys(seed, step, range(len(prompts)) if prompt_ids is None else prompt_ids, samples)
        with torch.no_grad(), _without_deterministic_switch():
            return _Call(self._step(queue, sampling, num_blocks), keys, queue, self.prefill_tokens, agree).run()

    def _num_blocks(self, queue: list[Prompt], sampling: Sampling) -> tuple[int, str | None]:
        """Blocks of the pool, block 0 included; and an error message if they are too few for a row."""
        model, max_tokens = self.model, sampling.max_tokens
        c, device = model.config, model.model.norm.weight.device
        # bytes of a block: keys and values of all layers
        size = 2 * c.num_hidden_layers * BLOCK * c.num_key_value_heads * c.head_dim * forward_dtype(model).itemsize
        rows = min(self.slots, sum(prompt.waiting for prompt in queue))
        # as if no two rows shared a prompt and each were the longest; and one more for a prompt whose next row waits
        blocks = 1 + (rows + 1) * (self._width(queue, sampling) + 1)
        held_blocks = 0 if self.memory is None else self.memory.num_blocks
        cache_bytes = self.cache_bytes
        if cache_bytes is None and device.type == "cuda":
            # what torch holds but does not use, and what the present cache takes, counts as free
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) + held_blocks * size
            cache_bytes = int(0.8 * (torch.cuda.mem_get_info(device)[0] + unused))  # the rest is for activations
        if cache_bytes is not None:
            blocks = max(1, min(blocks, cache_bytes // size))
        blocks = max(blocks, held_blocks)
        for prompt in queue:
            if prompt.needs(max_tokens) >= blocks:
                return blocks, (
                    f"generate: cache_bytes = {cache_bytes} holds {blocks - 1} blocks beside an idle one, of {size} "
                    f"bytes and {BLOCK} tokens each; prompts[{prompt.index}] of {len(prompt.tokens)} tokens, with "
                    f"max_tokens = {max_tokens}, needs {prompt.needs(max_tokens)}"
                )
        return blocks, None

    def _width(self, queue: list[Prompt], sampling: Sampling) -> int:
        """Blocks of the longest row, of this call or expected later."""
        expected = -(-(max(1, self.longest) - 1 + sampling.max_tokens) // BLOCK)
        return max([expected, *(prompt.row_blocks(sampling.max_tokens) for prompt in queue)])

    def _step(self, queue: list[Prompt], sampling: Sampling, num_blocks: int) -> DecodeStep:
        """The step under `sampling`, with memory that is large enough and reset."""
        needed = (num_blocks, self._width(queue, sampling), sampling.max_tokens)
        held = (0, 0, 0) if self.memory is None else self.memory.sizes
        memory, self.memory = self.memory, None
        if memory is None or any(x > y for x, y in zip(needed, held, strict=True)):
            memory = None  # freed before the new memory is allocated
            self.steps.clear()  # their graphs hold addresses of the old memory
            blocks, width, max_tokens = (max(x, y) for x, y in zip(needed, held, strict=True))
            memory = RowMemory(self.model, self.slots, blocks, width, max_tokens)
        self.memory = memory
        memory.reset()
        if sampling not in self.steps:
            self.steps[sampling] = DecodeStep(self.model, memory, sampling, self.backend)
        return self.steps[sampling]


def _bad_prompt(model: Transformer, queue: list[Prompt], sampling: Sampling) -> str | None:
    """An error message for the first prompt that cannot be used."""
    c = model.config
    longest = c.max_position_embeddings - sampling.max_tokens
    for i, prompt in enumerate(queue):
        if not prompt.tokens:
            return f"generate: prompts[{i}] is empty; it needs at least one token (a BOS will do)"
        if not 0 <= min(prompt.tokens) <= max(prompt.tokens) < c.vocab_size:
            bad = next(token for token in prompt.tokens if not 0 <= token < c.vocab_size)
            return f"generate: prompts[{i}] has the token id {bad}; the model's are 0 to {c.vocab_size - 1}"
        if len(prompt.tokens) > longest:
            return (
                f"generate: prompts[{i}] has {len(prompt.tokens)} tokens; with max_tokens = {sampling.max_tokens} at "
                f"most {longest} fit into the model's {c.max_position_embeddings} positions"
            )
    return None


@contextmanager
def _without_deterministic_switch() -> Iterator[None]:
    """With torch's deterministic algorithms switched off, which is a switch of the whole process. Every op of sampling
    has a fixed order as it is used here, but under the switch index_copy sorts its indexes and cumsum warns."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if enabled:
            torch.use_deterministic_algorithms(True, warn_only=warn_only)


# --------------------------------------------------------------------------------------------- scheduling of the rows

_Pack = list[tuple[list[int], list[int]]]  # prompts that are computed together: tokens, and the blocks for their keys


@dataclass(eq=False)
class _Row:
    """The host's record of a row."""

    prompt: Prompt
    sample: int  # index among the prompt's samples
    blocks: list[int]  # those that it does not share
    count: int = 0  # tokens sampled when the host last looked


class _Call:
    """The queue of prompts and the rows of one call.

    Args:
        keys: [prompts, samples] int64, of the noise.
    """

    def __init__(self, step: DecodeStep, keys: Tensor, queue: list[Prompt], prefill_tokens: int, agree: Agree) -> None:
        self.step, self.memory, self.sampling = step, step.memory, step.sampling
        self.keys, self.slots, self.device = keys, step.memory.slots, step.memory.device
        self.prefill_tokens, self.agree = prefill_tokens, agree
        self.queue = deque(queue)
        self.results: list[list[Completion]] = [[Completion([], [], False)] * prompt.waiting for prompt in queue]
        self.rows: list[_Row] = []  # row i is at index i of the memory's tensors
        self.pool = BlockPool(self.memory.num_blocks)

    def run(self) -> list[list[Completion]]:  # [prompts][samples]
        """Sample all completions. Every rank makes the same forwards: as many packs and steps as the rank with most."""
        while True:
            new_rows, packs, copies = self._admit()
            self.rows += new_rows
            num_packs, num_steps = self.agree(len(packs), self._steps())
            if num_steps == 0:
                return self.results
            for i in range(num_packs):
                self._prefill(packs[i] if i < len(packs) else [])
            for source, target in copies:
                self.memory.cache[:, :, target] = self.memory.cache[:, :, source]
            self._start(new_rows)
            for _ in range(num_steps):
                self.step(self._size())
            self._collect()

    def _steps(self) -> int:
        """Steps until the host looks at the rows again: one on a CPU, where looking is free. 0 if no row is left."""
        remaining = max((self.sampling.max_tokens - row.count for row in self.rows), default=0)
        return min(remaining, POLL if self.device.type == "cuda" else 1)

    def _size(self) -> int:
        """Rows that a step computes. On CUDA only some sizes have a graph. A rank without rows, while other ranks have
        some, computes one."""
        if self.device.type != "cuda":
            return max(1, len(self.rows))
        size = max(2, self.slots)
        while size >= 8 and size // 4 >= len(self.rows):
            size //= 4
        return size

    def _admit(self) -> tuple[list[_Row], list[_Pack], list[tuple[int, int]]]:
        """Make rows for waiting samples, in order, while there are slots and blocks.

        Returns:
            The rows; the packs of prompts to compute; after that, the blocks to copy, as (source, target).
        """
        max_tokens = self.sampling.max_tokens
        new_rows: list[_Row] = []
        packs: list[_Pack] = []
        copies: list[tuple[int, int]] = []
        room = 0  # tokens that still fit in the last pack
        while self.queue and len(self.rows) + len(new_rows) < self.slots:
            prompt = self.queue[0]
            if prompt.needs(max_tokens) > len(self.pool.free):
                break
            if prompt.unfinished == 0:  # its first row: reserve its blocks and compute it
                prompt.unfinished = prompt.waiting
                prompt.blocks = self.pool.take(prompt.num_full)
                if prompt.has_tail:
                    prompt.tail = self.pool.take(1)
                if prompt.num_keys > room:
                    packs.append([])
                    room = self.prefill_tokens
                if prompt.num_keys:
                    packs[-1].append((prompt.tokens[:-1], prompt.blocks + prompt.tail))
                    room -= prompt.num_keys
            num_own = prompt.row_blocks(max_tokens) - prompt.num_full
            sample, prompt.waiting = len(self.results[prompt.index]) - prompt.waiting, prompt.waiting - 1
            if prompt.waiting == 0:  # its last row takes the tail over
                self.queue.popleft()
                blocks, prompt.tail = prompt.tail + self.pool.take(num_own - len(prompt.tail)), []
            else:
                blocks = self.pool.take(num_own)
                copies += zip(prompt.tail, blocks, strict=False)  # the tail, if there is one, to the first block
            new_rows.append(_Row(prompt, sample, blocks))
        return new_rows, packs, copies

    def _prefill(self, pack: _Pack) -> None:
        """Compute keys and values of a pack's tokens. An empty pack, where other ranks have more packs, is a token for
        block 0."""
        pack = pack or [([0], [0])]
        lengths = [len(tokens) for tokens, _ in pack]
        # for each prompt, where its keys go: [tokens] int64
        places = [
            (torch.tensor(blocks)[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[: len(tokens)]
            for tokens, blocks in pack
        ]
        positions = torch.cat([torch.arange(n) for n in lengths]).to(self.device)  # [T]
        cu_seqlens, longest = torch.tensor([0, *lengths]).cumsum(0).int().to(self.device), max(lengths)
        angles = self.step.model.angles(positions)
        stream = Stream(angles, cu_seqlens, cu_seqlens, longest, longest, Lengths(lengths, lengths), None, None, None)
        flat = torch.tensor([token for tokens, _ in pack for token in tokens]).to(self.device)  # [T]
        self.step.decode(flat, stream, torch.cat(places).to(self.device), None, None, None)

    def _start(self, new_rows: list[_Row]) -> None:
        """Write the new rows, the last of `self.rows`, to the memory's tensors."""
        if not new_rows:
            return
        m = self.memory
        indexes = slice(len(self.rows) - len(new_rows), len(self.rows))
        tables = [row.prompt.blocks + row.blocks for row in new_rows]
        width = m.table.shape[1]
        m.table[indexes] = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32).to(self.device)
        m.tokens[indexes] = torch.tensor([row.prompt.tokens[-1] for row in new_rows]).to(self.device)
        m.lengths[indexes] = torch.tensor([row.prompt.num_keys for row in new_rows]).to(self.device)
        m.noise[indexes] = torch.stack([self.keys[row.prompt.index, row.sample] for row in new_rows]).to(self.device)
        m.counts[indexes] = 0
        m.done[indexes] = False

    def _collect(self) -> None:
        """Take the tokens of rows that are done, free their blocks, and move the other rows together."""
        n, memory = len(self.rows), self.memory
        done, counts = torch.stack((memory.done[:n].long(), memory.counts[:n])).tolist()  # waits for the device
        for row, count in zip(self.rows, counts, strict=True):
            row.count = count
        ended = [i for i in range(n) if done[i]]
        if not ended:
            return
        indexes = torch.tensor(ended, device=self.device)
        given, logp = memory.given[indexes].tolist(), memory.logp[indexes].tolist()
        for i, tokens, logps in zip(ended, given, logp, strict=True):
            row, count = self.rows[i], counts[i]
            stopped = tokens[count - 1] in self.sampling.stop_ids
            self.results[row.prompt.index][row.sample] = Completion(tokens[:count], logps[:count], stopped)
            self.pool.give(row.blocks)
            row.prompt.unfinished -= 1
            if row.prompt.unfinished == 0:
                self.pool.give(row.prompt.blocks)
        running = [i for i in range(n) if not done[i]]
        self.rows, m = [self.rows[i] for i in running], len(running)
        indexes = torch.tensor(running, dtype=torch.int64, device=self.device)
        for tensor in memory.state:
            tensor[:m] = tensor[indexes]
        for tensor in (memory.tokens, memory.lengths, memory.table):  # rows m .. n are idle now, with block 0
            tensor[m:n] = 0
        memory.done[m:n] = True
