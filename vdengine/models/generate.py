"""Sampling with a paged key-value cache, many rows side by side.

A row is one completion of one prompt. `slots` rows decode together; where one ends, the next (prompt, sample) takes its
place at once. Keys and values live in one pool of blocks:

    prompt | block | block | tail          computed once, packed with other prompts through the normal attention
    row 0  |   "   |   "   | tail' | block | block       the full blocks are shared, the tail is copied,
    row 1  |   "   |   "   | tail" | block | block       and all that a row may come to need is its own from the start

so no row is ever stopped for want of memory. A prompt's last token is not computed with it: it is the first input of
each row.

Noise is counted, not consumed: the uniform number behind a token is a hash of (seed, step, prompt, sample, position).
It is the same in every batch, slot and rank, so samples are too, but where rounding (a GEMM of another shape) moves a
probability across it.

Rows are tensors of fixed size on the device, and a step changes them there: no host in the loop, which on CUDA is a
captured graph. The host looks every few steps. Until it does, rows that have ended go on without effect.

A `Generator` keeps rows, cache and graphs from call to call; `generate` is one call of one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from vdengine.errors import InputError
from vdengine.kernels.sample import sample
from vdengine.kernels.thin_linear import thin_linear
from vdengine.models.head import Draw, Drawn
from vdengine.models.transformer import Cache, Stream, Transformer
from vdengine.noise import sample_keys, uniform
from vdengine.trees import Lengths

BLOCK = 16  # keys to a block of the cache
POLL = 8  # steps between two looks of the host, on CUDA


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the temperature first, then of what is left the `top_k` likeliest, then of these the
    fewest that together have `top_p`. Of equally likely tokens those with the lower ids are kept, so exactly k are.

    ValueError, naming the field: a value out of range.
    """

    max_tokens: int = 256
    temperature: float = 1.0  # 0: greedy, the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"Sampling: max_tokens must be >= 1; got {self.max_tokens}")
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"Sampling: temperature must be 0 (greedy) or in [1e-6, 1e6]; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p must be in (0, 1]; got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"Sampling: top_k must be >= 0 (0: all); got {self.top_k}")


class Completion(NamedTuple):
    """What one row gave."""

    tokens: list[int]  # with the stop token, if one ended it; never empty
    logp: list[float]  # log p of each, at the sampling temperature (1 when greedy) over the whole vocabulary
    stopped: bool  # a stop id ended it, not max_tokens


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    samples: int = 1,  # completions of each prompt
    seed: int = 0,
    step: int = 0,
    prompt_ids: Sequence[int] | None = None,  # what names a prompt in the noise; default: its index
    slots: int = 64,
    prefill_tokens: int = 8192,
    cache_bytes: int | None = None,
    backend: str = "auto",
) -> list[list[Completion]]:  # [prompts][samples]
    """Samples from the model: a `Generator` made for one call, which says what the arguments are and what it raises."""
    generator = Generator(model, slots=slots, prefill_tokens=prefill_tokens, cache_bytes=cache_bytes, backend=backend)
    return generator(prompts, sampling, samples=samples, seed=seed, step=step, prompt_ids=prompt_ids)


class Generator:
    """Sampling from one model, call after call: the cache, the rows' tensors and on CUDA the captured graphs stay.

    The weights may change between two calls, in place; they may not be replaced by others.

    Args:
        slots: rows that decode together.
        prefill_tokens: of one pack of prompts; a longer prompt is a pack of its own.
        cache_bytes: of the key-value cache; default: enough for `slots` rows, on CUDA of what is free.
        backend: of the kernels that only decoding uses: triton | native | reference.
        longest: tokens of the longest prompt that is to come. Room for it is made at once; a longer one makes new
            room, for which graphs are captured anew.
    """

    def __init__(
        self, model: Transformer, *, slots: int = 64, prefill_tokens: int = 8192, cache_bytes: int | None = None,
        backend: str = "auto", longest: int = 0,
    ) -> None:  # fmt: skip
        for name, value in (("slots", slots), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ValueError(f"generate: {name} must be >= 1; got {value}")
        if model.config.head != "causal":
            raise ValueError("generate: a scalar model has no tokens to give")
        self.model, self.slots, self.prefill_tokens, self.backend = model, slots, prefill_tokens, backend
        self.cache_bytes, self.longest = cache_bytes, longest
        self.memory: _Memory | None = None
        self.steps: dict[Sampling, _Step] = {}  # on `memory`
        if isinstance(model, FSDPModule) and "decode" not in vars(model):
            # gathers the root's weights, as for `forward`
            register_fsdp_forward_method(model, "decode")

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        samples: int = 1,  # completions of each prompt
        seed: int = 0,
        step: int = 0,
        prompt_ids: Sequence[int] | None = None,  # what names a prompt in the noise; default: its index
    ) -> list[list[Completion]]:  # [prompts][samples]
        """Samples from the model. Where FSDP2 has sharded it every forward is a collective: all ranks must call this,
        each with its own prompts, and a rank without prompts keeps step with the others. A plain model communicates
        nothing.

        Raises:
            InputError: an empty prompt, a token id out of range, a prompt too long for the model's positions, or a
                cache in which not even one row fits.
            ValueError: other arguments out of range.
        """
        if samples < 1:
            raise ValueError(f"generate: samples must be >= 1; got {samples}")
        if prompt_ids is not None and len(prompt_ids) != len(prompts):
            raise ValueError(f"generate: {len(prompt_ids)} prompt_ids for {len(prompts)} prompts")
        agree = _agreement(self.model)
        queue = [_Prompt(i, list(p), samples) for i, p in enumerate(prompts)]
        problem = _bad_prompt(self.model, queue, sampling)
        num_blocks, cache_problem = self._num_blocks(queue, sampling)
        problem = problem or cache_problem
        some, bad = agree(len(prompts), problem is not None)
        if bad:  # on all ranks: the others would wait for this one
            raise InputError(problem or "generate: another rank's prompts cannot be used; see its message")
        if not some:
            return []
        keys = sample_keys(seed, step, range(len(prompts)) if prompt_ids is None else prompt_ids, samples)
        with torch.no_grad(), _as_is():
            return _Call(self._step(queue, sampling, num_blocks), keys, queue, self.prefill_tokens, agree).run()

    def _num_blocks(self, queue: list[_Prompt], sampling: Sampling) -> tuple[int, str | None]:
        """Blocks of the pool, block 0 included; and what is wrong where they are too few for one row."""
        model, most = self.model, sampling.max_tokens
        c, device = model.config, model.model.norm.weight.device
        size = 2 * c.num_hidden_layers * BLOCK * c.num_key_value_heads * c.head_dim * _compute_dtype(model).itemsize
        rows = min(self.slots, sum(p.waiting for p in queue))
        # every row alone with its prompt, the longest; and a prompt that waits for its next row
        blocks = 1 + (rows + 1) * (self._width(queue, sampling) + 1)
        held = 0 if self.memory is None else self.memory.num_blocks
        cache_bytes = self.cache_bytes
        if cache_bytes is None and device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) + held * size
            cache_bytes = int(0.8 * (torch.cuda.mem_get_info(device)[0] + unused))  # the rest is for activations
        if cache_bytes is not None:
            blocks = max(1, min(blocks, cache_bytes // size))
        blocks = max(blocks, held)
        for p in queue:
            if p.needs(most) >= blocks:
                return blocks, (
                    f"generate: cache_bytes = {cache_bytes} holds {blocks - 1} blocks beside an idle one, of {size} "
                    f"bytes and {BLOCK} tokens each; prompts[{p.index}] of {len(p.tokens)} tokens, with max_tokens = "
                    f"{most}, needs {p.needs(most)}"
                )
        return blocks, None

    def _width(self, queue: list[_Prompt], sampling: Sampling) -> int:
        """Blocks of the longest row, of this call or to come."""
        to_come = -(-(max(1, self.longest) - 1 + sampling.max_tokens) // BLOCK)
        return max([to_come, *(p.row_blocks(sampling.max_tokens) for p in queue)])

    def _step(self, queue: list[_Prompt], sampling: Sampling, num_blocks: int) -> _Step:
        """What computes a step under `sampling`, on memory that is large enough."""
        need = (num_blocks, self._width(queue, sampling), sampling.max_tokens)
        held = (0, 0, 0) if self.memory is None else self.memory.sizes
        memory, self.memory = self.memory, None
        if memory is None or any(x > y for x, y in zip(need, held, strict=True)):
            memory = None  # freed before the new one is taken; graphs know the old one
            self.steps.clear()
            blocks, width, most = (max(x, y) for x, y in zip(need, held, strict=True))
            memory = _Memory(self.model, self.slots, blocks, width, most)
        self.memory = memory
        memory.reset()
        if sampling not in self.steps:
            self.steps[sampling] = _Step(self.model, memory, sampling, self.backend)
        return self.steps[sampling]


def gather_model(model: Transformer, dtype: torch.dtype, into: Transformer | None = None) -> Transformer:
    """A plain, whole copy of an FSDP2-sharded model in `dtype`, to sample from. A collective. On one rank, and with the
    model's own dtype, it shares the weights instead of copying them. The copy takes no gradient.

    into: an earlier copy of the same model, which takes the weights as they are now, where it is.
    """
    plain = into
    if plain is None:
        with torch.device("meta"):
            plain = Transformer(model.config, kernels=model.kernels)
    for name, p in model.named_parameters():  # a tied weight once
        module, _, leaf = name.rpartition(".")
        whole = _whole(p.detach().to(dtype) if p.dtype != dtype else p.detach())
        held = getattr(plain.get_submodule(module), leaf)
        if into is None:
            setattr(plain.get_submodule(module), leaf, nn.Parameter(whole, requires_grad=False))
        elif held.data_ptr() != whole.data_ptr():
            held.data.copy_(whole)
    if plain.config.tie_word_embeddings:
        plain.lm_head.weight = plain.model.embed_tokens.weight
    return plain


def _whole(p: Tensor) -> Tensor:
    if not isinstance(p, DTensor):
        return p
    ranks = math.prod(p.device_mesh.size(i) for i, where in enumerate(p.placements) if isinstance(where, Shard))
    return p.to_local() if ranks == 1 else p.full_tensor()


# -------------------------------------------------------------------------------------------- one token, and its noise


def draw(hidden: Tensor, weight: Tensor, noise: Tensor, s: Sampling, backend: str) -> Drawn:
    """The head's part of a step: fp32 logits of the rows `hidden` [n, H], and a token for each."""
    backend = "reference" if backend == "reference" else "auto"
    (logits,) = thin_linear(hidden, weight, dtype=torch.float32, backend=backend)
    return Drawn(*sample(logits, noise, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, backend=backend))


# ----------------------------------------------------------------------------------------------------------- the cache


@dataclass(eq=False)
class _Prompt:
    """A prompt on its way through. Its keys are those of all its tokens but the last."""

    index: int
    tokens: list[int]
    waiting: int  # samples that have no row yet
    unfinished: int = 0  # samples that the blocks are kept for
    blocks: list[int] = field(default_factory=list)  # the full ones, which all its rows read
    tail: list[int] = field(default_factory=list)  # the one after them, if there is one; the last row takes it

    @property
    def num_keys(self) -> int:
        return len(self.tokens) - 1

    @property
    def num_full(self) -> int:
        return self.num_keys // BLOCK

    @property
    def has_tail(self) -> bool:
        return self.num_keys % BLOCK > 0

    def row_blocks(self, max_tokens: int) -> int:
        """Blocks of a row that runs to its end. Its last token is never an input."""
        return -(-(self.num_keys + max_tokens) // BLOCK)

    def needs(self, max_tokens: int) -> int:
        """Free blocks that its next row needs: the row's own, and the prompt's if it is the first."""
        blocks = self.row_blocks(max_tokens) - self.num_full
        if self.unfinished == 0:
            blocks += self.num_full + self.has_tail
        return blocks - (self.has_tail and self.waiting == 1)


class _Pool:
    """Numbers of free blocks. Block 0 is never given out: rows that are idle write there."""

    def __init__(self, num_blocks: int) -> None:
        self.free = list(range(num_blocks - 1, 0, -1))

    def take(self, count: int) -> list[int]:
        return [self.free.pop() for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        self.free.extend(blocks)


def _bad_prompt(model: Transformer, queue: list[_Prompt], sampling: Sampling) -> str | None:
    """What is wrong with the first prompt that cannot be used."""
    c = model.config
    longest = c.max_position_embeddings - sampling.max_tokens
    for i, p in enumerate(queue):
        if not p.tokens:
            return f"generate: prompts[{i}] is empty; it needs at least one token (a BOS will do)"
        if not 0 <= min(p.tokens) <= max(p.tokens) < c.vocab_size:
            bad = next(t for t in p.tokens if not 0 <= t < c.vocab_size)
            return f"generate: prompts[{i}] has the token id {bad}; the model's are 0 to {c.vocab_size - 1}"
        if len(p.tokens) > longest:
            return (
                f"generate: prompts[{i}] has {len(p.tokens)} tokens; with max_tokens = {sampling.max_tokens} at most "
                f"{longest} fit into the model's {c.max_position_embeddings} positions"
            )
    return None


# ------------------------------------------------------------------------------------------------- where the model is

Agree = Callable[..., Sequence[int]]  # the largest of each value, over the ranks that run forwards together


def _agreement(model: Transformer) -> Agree:
    weight = model.model.norm.weight
    if not isinstance(weight, DTensor):
        return lambda *values: values
    sharded = next(i for i, where in enumerate(weight.placements) if isinstance(where, Shard))
    group, device = weight.device_mesh.get_group(sharded), weight.device

    def agree(*values: int) -> Sequence[int]:
        largest = torch.tensor(values, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        return largest.tolist()

    return agree


def _compute_dtype(model: Transformer) -> torch.dtype:
    """Of the keys: FSDP2 computes in another dtype than its shards have."""
    computed = model._get_fsdp_state()._mp_policy.param_dtype if isinstance(model, FSDPModule) else None
    return computed or model.model.norm.weight.dtype


@contextmanager
def _as_is() -> Iterator[None]:
    """Without torch's deterministic algorithms, where they are on (a switch of the whole process): every op here has a
    fixed order as it is used, but under the switch index_copy sorts, and cumsum warns."""
    switched = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    if switched:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if switched:
            torch.use_deterministic_algorithms(True, warn_only=warns)


# ------------------------------------------------------------------------------------------------------------ the rows


_Pack = list[tuple[list[int], list[int]]]  # prompts that are computed together: their tokens, and blocks for these


@dataclass(eq=False)
class _Row:
    """The host's side of a row."""

    prompt: _Prompt
    sample: int
    blocks: list[int]  # its own
    count: int = 0  # tokens it had given when the host last looked


class _Memory:
    """The cache, and the tensors of `slots` rows, at least two: torch scans a single row in no fixed order on CUDA.

    The first rows of every tensor are those that run, in the order of their `_Row`s. Behind them rows are idle: done,
    on block 0.
    """

    def __init__(self, model: Transformer, slots: int, num_blocks: int, width: int, max_tokens: int) -> None:
        self.sizes = num_blocks, width, max_tokens
        self.num_blocks, self.slots = num_blocks, slots
        c, device = model.config, model.model.norm.weight.device
        self.device = device
        shape = (c.num_hidden_layers, num_blocks, BLOCK, c.num_key_value_heads, c.head_dim)
        self.cache = torch.zeros((2, *shape), dtype=_compute_dtype(model), device=device)
        self.layers = list(zip(self.cache[0].unbind(), self.cache[1].unbind(), strict=True))

        size = max(2, slots)
        make = partial(torch.zeros, device=device, dtype=torch.int64)
        self.tokens = make(size)  # the next input of each row
        self.lengths = make(size)  # its keys: the position of that input
        self.counts = make(size)  # tokens it has given
        self.noise = make(size)  # its key
        self.table = make(size, width, dtype=torch.int32)
        self.given = make(size, max_tokens + 1)  # its tokens; the last column is for what nobody wants
        self.logp = make(size, max_tokens + 1, dtype=torch.float32)
        self.done = torch.ones(size, dtype=torch.bool, device=device)
        self.state = (
            self.tokens, self.lengths, self.counts, self.noise, self.table, self.given, self.logp, self.done
        )  # fmt: skip

    def reset(self) -> None:
        """All rows idle, nothing left of another call."""
        for x in (self.cache, *self.state):
            x.zero_()
        self.done.fill_(True)


class _Step:
    """One token for each of the first n rows, under one `Sampling`: on CUDA a captured graph for each size.

    The first step of a size runs by itself: what it sets up, and kernels that it compiles, must not be in a capture.
    Other threads go on meanwhile (the loader's pins memory), so only this one is watched for what a capture forbids.
    """

    def __init__(self, model: Transformer, memory: _Memory, sampling: Sampling, backend: str) -> None:
        self.model, self.memory, self.sampling, self.backend = model, memory, sampling, backend
        self.stop = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=memory.device)
        self.captures = memory.device.type == "cuda" and not isinstance(model, FSDPModule)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, n: int) -> None:
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
        """On the device alone; no shape depends on what is computed."""
        tokens, lengths, counts, noise, table, given, logp, done = (x[:n] for x in self.memory.state)
        places = table.gather(1, (lengths // BLOCK)[:, None])[:, 0] * BLOCK + lengths % BLOCK
        nothing = lengths.new_empty(0, dtype=torch.int32)
        stream = Stream(*self.model.angles(lengths), nothing, nothing, 0, 0, None, None, None, None)
        drawn = self.decode(
            tokens, stream, places, table, (lengths + 1).int(),
            partial(draw, noise=uniform(noise, lengths + 1), s=self.sampling, backend=self.backend),
        )  # fmt: skip
        # A row that is done stays where it is, on blocks that are still its own; its tokens go to the last column.
        column = torch.where(done, given.shape[1] - 1, counts)[:, None]
        given.scatter_(1, column, drawn.tokens[:, None])
        logp.scatter_(1, column, drawn.logp[:, None])
        tokens.copy_(drawn.tokens)
        counts += ~done
        done |= (drawn.tokens[:, None] == self.stop).any(1) | (counts >= self.sampling.max_tokens)
        lengths += ~done

    def decode(
        self, tokens: Tensor, stream: Stream, places: Tensor, table: Tensor | None, lengths: Tensor | None,
        draw: Draw | None,
    ) -> Any:  # fmt: skip
        """Of tokens in a row each, or with no `table` of prompts."""
        caches = [Cache(k, v, places, table, lengths, self.backend) for k, v in self.memory.layers]
        return self.model.decode(tokens, stream, caches, draw)


class _Call:
    """Rows and queue of one call."""

    def __init__(
        self, step: _Step, keys: Tensor, queue: list[_Prompt], prefill_tokens: int, agree: Agree
    ) -> None:  # fmt: skip
        self.step, self.memory, self.sampling = step, step.memory, step.sampling
        self.keys, self.slots, self.device = keys, step.memory.slots, step.memory.device
        self.prefill_tokens, self.agree = prefill_tokens, agree
        self.queue = deque(queue)
        self.results: list[list[Completion]] = [[Completion([], [], False)] * p.waiting for p in queue]
        self.rows: list[_Row] = []
        self.pool = _Pool(self.memory.num_blocks)

    def run(self) -> list[list[Completion]]:
        """All completions. Every rank makes the same forwards: as many packs and steps as the one with most to do."""
        while True:
            new, packs, copies = self._admit()
            self.rows += new
            num_packs, num_steps = self.agree(len(packs), self._steps())
            if num_steps == 0:
                return self.results
            for i in range(num_packs):
                self._prefill(packs[i] if i < len(packs) else [])
            for source, target in copies:
                self.memory.cache[:, :, target] = self.memory.cache[:, :, source]
            self._start(new)
            for _ in range(num_steps):
                self.step(self._size())
            self._collect()

    def _steps(self) -> int:
        """Until the host looks again: one on a CPU, where looking is free. 0: there is no row."""
        left = max((self.sampling.max_tokens - row.count for row in self.rows), default=0)
        return min(left, POLL if self.device.type == "cuda" else 1)

    def _size(self) -> int:
        """Rows that a step computes. A graph is captured for some sizes only; an idle rank of several computes one."""
        if self.device.type != "cuda":
            return max(1, len(self.rows))
        size = max(2, self.slots)
        while size >= 8 and size // 4 >= len(self.rows):
            size //= 4
        return size

    def _admit(self) -> tuple[list[_Row], list[_Pack], list[tuple[int, int]]]:
        """Rows for what waits, as far as there are slots and blocks: (rows, packs to compute, blocks to copy then)."""
        most = self.sampling.max_tokens
        new: list[_Row] = []
        packs: list[_Pack] = []
        copies: list[tuple[int, int]] = []
        room = 0  # in the last pack
        while self.queue and len(self.rows) + len(new) < self.slots:
            prompt = self.queue[0]
            if prompt.needs(most) > len(self.pool.free):
                break
            if prompt.unfinished == 0:
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
            own = prompt.row_blocks(most) - prompt.num_full
            sample, prompt.waiting = len(self.results[prompt.index]) - prompt.waiting, prompt.waiting - 1
            if prompt.waiting == 0:
                self.queue.popleft()
                blocks, prompt.tail = prompt.tail + self.pool.take(own - len(prompt.tail)), []
            else:
                blocks = self.pool.take(own)
                copies += zip(prompt.tail, blocks, strict=False)
            new.append(_Row(prompt, sample, blocks))
        return new, packs, copies

    def _prefill(self, pack: _Pack) -> None:
        """Keys and values of a pack's tokens. An empty one, where other ranks have more, is a token for block 0."""
        pack = pack or [([0], [0])]
        lengths = [len(tokens) for tokens, _ in pack]
        places = [
            (torch.tensor(blocks)[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[: len(tokens)]
            for tokens, blocks in pack
        ]
        positions = torch.cat([torch.arange(n) for n in lengths]).to(self.device)
        ends, most = torch.tensor([0, *lengths]).cumsum(0).int().to(self.device), max(lengths)
        angles = self.step.model.angles(positions)
        stream = Stream(*angles, ends, ends, most, most, Lengths(lengths, lengths), None, None, None)
        flat = torch.tensor([token for tokens, _ in pack for token in tokens]).to(self.device)
        self.step.decode(flat, stream, torch.cat(places).to(self.device), None, None, None)

    def _start(self, new: list[_Row]) -> None:
        """Write the rows that were admitted, behind the others."""
        if not new:
            return
        m = self.memory
        here = slice(len(self.rows) - len(new), len(self.rows))
        tables = [row.prompt.blocks + row.blocks for row in new]
        width = m.table.shape[1]
        m.table[here] = torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32).to(self.device)
        m.tokens[here] = torch.tensor([row.prompt.tokens[-1] for row in new]).to(self.device)
        m.lengths[here] = torch.tensor([row.prompt.num_keys for row in new]).to(self.device)
        m.noise[here] = torch.stack([self.keys[row.prompt.index, row.sample] for row in new]).to(self.device)
        m.counts[here] = 0
        m.done[here] = False

    def _collect(self) -> None:
        """Take what rows that are done have given, free their blocks, and move the others together."""
        n, memory = len(self.rows), self.memory
        done, counts = torch.stack((memory.done[:n].long(), memory.counts[:n])).tolist()  # waits for the device
        for row, count in zip(self.rows, counts, strict=True):
            row.count = count
        ended = [i for i in range(n) if done[i]]
        if not ended:
            return
        which = torch.tensor(ended, device=self.device)
        given, logp = memory.given[which].tolist(), memory.logp[which].tolist()
        for i, tokens, logps in zip(ended, given, logp, strict=True):
            row, count = self.rows[i], counts[i]
            stopped = tokens[count - 1] in self.sampling.stop_ids
            self.results[row.prompt.index][row.sample] = Completion(tokens[:count], logps[:count], stopped)
            self.pool.give(row.blocks)
            row.prompt.unfinished -= 1
            if row.prompt.unfinished == 0:
                self.pool.give(row.prompt.blocks)
        going = [i for i in range(n) if not done[i]]
        self.rows, m = [self.rows[i] for i in going], len(going)
        which = torch.tensor(going, dtype=torch.int64, device=self.device)
        for x in memory.state:
            x[:m] = x[which]
        for x in (memory.tokens, memory.lengths, memory.table):
            x[m:n] = 0
        memory.done[m:n] = True
