"""Sampling of one token per row from logits z [V], without a sort. With w = (max z - z) / temperature in fp32 and
p = exp(-w):

    log p(token) = -w - log sum p          over all tokens, also those that the filters drop
    top_k          keeps the k smallest w
    top_p          keeps, of the rest, the fewest largest p that together have top_p of its mass
    token          the first, in the order of the ids, at which the mass kept so far is above noise * the mass kept

Of equal values those with the lower ids are kept. Floats >= 0 have the order of their bits, so the value at which a
filter cuts is found in passes over the row, two bits per pass: each pass counts the tokens (top_k), or adds up the mass
(top_p), at or above three values. One more pass finds the last token of exactly this value that is kept. Sums are fp64,
in an order that only the shape decides. The number of passes does not depend on the logits, and the host never waits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vdengine.kernels._triton import arch, device_of, jit, resolve, tl
from vdengine.kernels.table import launch

AT_ONCE = 2**21  # logits that the reference processes at a time on a CPU
WIDTH = 1024  # of the blocks that the reference adds up


class Sampled(NamedTuple):
    """A token for each row."""

    tokens: Tensor  # [n] int64
    logp: Tensor  # [n] fp32, nats, over the whole vocabulary at this temperature; NaN where a logit is NaN or +inf


@jit
def load(
    row,  # a tuple: pointer to its logits, V, the maximum of the logits, 1 / temperature
    at,  # [BLOCK] int32: ids; ids past the end have w = inf, so p = 0
    kept,  # a tuple, for top_k and for top_p: the key at which it cuts, and the last id that it keeps at this key
    BY_MASS: tl.constexpr,
    TOP_K: tl.constexpr,  # whether the filter is on
    TOP_P: tl.constexpr,
):
    """The key of each token of a block, uint32 and larger for likelier tokens, and its term in a sum. By default the
    key is in the order of w and the term is 1. With BY_MASS the key is in the order of p and the term is p, or 0 for a
    token that a filter drops. Equal bits in every pass."""
    z, vocab, top, c = row
    k_cut, k_last, p_cut, p_last = kept
    w = tl.abs((top - tl.load(z + at, mask=at < vocab, other=-float("inf"))) * c)  # 0 - 0 may be -0
    key = (~w.to(tl.int32, bitcast=True)).to(tl.uint32, bitcast=True)
    x = 1
    if BY_MASS:
        p = tl.exp(-w)
        if TOP_K:
            p = tl.where((key > k_cut) | ((key == k_cut) & (at <= k_last)), p, 0.0)
        key = p.to(tl.uint32, bitcast=True)
        if TOP_P:
            p = tl.where((key > p_cut) | ((key == p_cut) & (at <= p_last)), p, 0.0)
        x = p.to(tl.float64)
    return key, x


@jit
def mass_of(row, kept, TOP_K: tl.constexpr, TOP_P: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of p. Each lane adds up its own terms, and the lanes are reduced once, in a tree of fixed shape."""
    lanes = tl.arange(0, BLOCK)
    sums = tl.full([BLOCK], 0, tl.float64)
    for start in range(0, row[1], BLOCK):
        _, p = load(row, start + lanes, kept, True, TOP_K, TOP_P)
        sums += p
    return tl.sum(sums, 0)


@jit
def find_cut(
    row,
    kept,
    target,  # of tokens, or of mass
    BY_MASS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key such that the sum of the terms at or above it reaches `target`; and the sum above this key. A sum
    in a fixed order does not decrease when terms are added to it, so there is exactly one such key, with any rounding.

    No id past the end has a larger key than a token, so these ids have no effect if V > target."""
    lanes = tl.arange(0, BLOCK)
    digits: tl.constexpr = 15 if BY_MASS else 16  # p <= 1: its highest two bits are 0
    step = tl.full([], 4 ** (digits - 1), tl.uint32)
    cut = tl.full([], 0, tl.uint32)
    none = tl.full([BLOCK], 0, tl.float64 if BY_MASS else tl.int32)
    above = tl.full([], 0, tl.float64 if BY_MASS else tl.int32)
    for _ in range(digits):
        cut_1, cut_2, cut_3 = cut + step, cut + 2 * step, cut + 3 * step
        sums_1, sums_2, sums_3 = none, none, none
        for start in range(0, row[1], BLOCK):
            key, x = load(row, start + lanes, kept, BY_MASS, TOP_K, False)
            sums_1 += tl.where(key >= cut_1, x, 0)
            sums_2 += tl.where(key >= cut_2, x, 0)
            sums_3 += tl.where(key >= cut_3, x, 0)
        m_1, m_2, m_3 = tl.sum(sums_1, 0), tl.sum(sums_2, 0), tl.sum(sums_3, 0)
        # of all keys whose sum is below target the lowest has the largest sum; in the end it is the next above the cut
        above = tl.maximum(above, tl.where(m_1 < target, m_1, 0))
        above = tl.maximum(above, tl.where(m_2 < target, m_2, 0))
        above = tl.maximum(above, tl.where(m_3 < target, m_3, 0))
        cut = tl.where(m_3 >= target, cut_3, tl.where(m_2 >= target, cut_2, tl.where(m_1 >= target, cut_1, cut)))
        step = step >> 2
    return cut, above


@jit
def load_terms(
    row, at, kept, cut, AT_CUT: tl.constexpr, BY_MASS: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr
):
    """The terms that `find_id` adds up, fp64: p, or with AT_CUT 1 for each token whose key is `cut`."""
    key, x = load(row, at, kept, BY_MASS, TOP_K, TOP_P)
    return (key == cut).to(tl.float64) if AT_CUT else x


@jit
def find_id(
    row,
    kept,
    cut,
    target,
    AT_CUT: tl.constexpr,
    BY_MASS: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first id at which the running sum of terms is above `target` >= 0; if it never is, the last id with a term
    that is not 0."""
    lanes = tl.arange(0, BLOCK)
    # first id of the block that has the result: the last block with terms before which the sum is at or below target
    first = tl.full([], 0, tl.int32)
    before = tl.full([], 0, tl.float64)
    total = tl.full([], 0, tl.float64)
    for start in range(0, row[1], BLOCK):
        mass = tl.sum(load_terms(row, start + lanes, kept, cut, AT_CUT, BY_MASS, TOP_K, TOP_P), 0)
        found = (mass > 0) & (total <= target)
        first = tl.where(found, start, first)
        before = tl.where(found, total, before)
        total += mass
    x = load_terms(row, first + lanes, kept, cut, AT_CUT, BY_MASS, TOP_K, TOP_P)
    # the largest lane such that the terms below it do not exceed target, by bisection: a scan would not add in the
    # order in which the block was added up
    lane = tl.full([], 0, tl.int32)
    step = tl.full([], BLOCK // 2, tl.int32)
    while step > 0:
        up_to = before + tl.sum(tl.where(lanes < lane + step, x, 0.0), 0)
        lane = tl.where(up_to <= target, lane + step, lane)
        step = step >> 1
    return first + tl.minimum(lane, tl.max(tl.where(x > 0, lanes, 0), 0))


@jit
def sample_kernel(
    logits,  # [n, V] fp32
    noise,  # [n] fp64
    top_p,  # [1] fp64, because a float argument would be rounded to fp32
    tokens,  # [n] int64, out
    logp,  # [n] fp32, out
    stride,
    vocab,
    top_k,
    c,  # 1 / temperature
    GREEDY: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row. A row without probabilities (with NaN or +inf, or all -inf) is processed like the others:
    its sums are NaN, and its token is an arbitrary id of the vocabulary."""
    n = tl.program_id(0).to(tl.int64)
    z = logits + n * stride
    lanes = tl.arange(0, BLOCK)
    high = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, vocab, BLOCK):
        at = start + lanes
        high = tl.maximum(high, tl.load(z + at, mask=at < vocab, other=-float("inf")))
    row = (z, vocab, tl.max(high, 0), c)
    k_cut = tl.full([], 0xFFFFFFFF, tl.uint32)  # the key of w = 0
    k_last = tl.full([], 0, tl.int32)
    p_cut, p_last = k_cut, k_last
    kept = (k_cut, k_last, p_cut, p_last)
    if TOP_K:
        k_cut, above = find_cut(row, kept, top_k, False, False, BLOCK)
        k_last = find_id(row, kept, k_cut, (top_k - above - 1).to(tl.float64), True, False, False, False, BLOCK)
        kept = (k_cut, k_last, p_cut, p_last)
    total = mass_of(row, kept, TOP_K, False, BLOCK)
    if GREEDY:
        token = find_id(row, kept, k_cut, 0.0, True, False, False, False, BLOCK)
    else:
        mass = total
        if TOP_P:
            target = tl.load(top_p) * mass
            p_cut, above = find_cut(row, kept, target, True, TOP_K, BLOCK)
            each = p_cut.to(tl.float32, bitcast=True).to(tl.float64)
            needed = tl.ceil((target - above) / each)
            p_last = find_id(row, kept, p_cut, needed - 1, True, True, TOP_K, False, BLOCK)
            kept = (k_cut, k_last, p_cut, p_last)
            mass = mass_of(row, kept, TOP_K, True, BLOCK)
        token = find_id(row, kept, p_cut, tl.load(noise + n) * mass, False, True, TOP_K, TOP_P, BLOCK)
    if TOP_K:  # only here, so that it takes no registers before
        total = mass_of(row, kept, False, False, BLOCK)
    w = (row[2] - tl.load(z + token)) * c
    tl.store(tokens + n, token.to(tl.int64))
    tl.store(logp + n, (0.0 - w.to(tl.float64) - tl.log(total)).to(tl.float32))


def sample(
    logits: Tensor,  # [n, V] fp32
    noise: Tensor,  # [n] fp64 in [0, 1)
    *,
    temperature: float = 1.0,  # 0: greedy, the likeliest token; log-probs are then at temperature 1
    top_k: int = 0,  # 0: all
    top_p: float = 1.0,
    backend: str = "auto",  # triton | reference
) -> Sampled:
    """A token for each row: the inverse of its cumulative distribution, in the order of the ids, at `noise`.

    First the logits are divided by the temperature, then the `top_k` likeliest tokens are kept, then of these (nucleus
    sampling, arXiv 1904.09751) the fewest that together have probability `top_p`. Of equally likely tokens those with
    the lower ids are kept, so exactly k are.

    A row with a logit of NaN or +inf, or of -inf only, gets some token, with a log-prob of NaN. Equal input gives equal
    bits. Not differentiable.

    Raises:
        ValueError: shapes, dtypes, devices, a backend or numbers that do not fit; the message names the argument.
    """
    if logits.ndim != 2 or logits.shape[1] == 0 or logits.dtype != torch.float32:
        raise ValueError(f"sample: logits must be [n, V] float32, V > 0; got {list(logits.shape)} {logits.dtype}")
    if noise.shape != logits.shape[:1] or noise.dtype != torch.float64:
        raise ValueError(f"sample: noise must be [n] float64, n = {len(logits)}; got {list(noise.shape)} {noise.dtype}")
    if noise.device != logits.device:
        raise ValueError(f"sample: noise is on {noise.device}, logits on {logits.device}")
    if temperature != 0 and not 1e-6 <= temperature <= 1e6:
        raise ValueError(f"sample: temperature must be 0 (greedy) or in [1e-6, 1e6]; got {temperature}")
    if top_k < 0:
        raise ValueError(f"sample: top_k must be >= 0 (0: all); got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"sample: top_p must be in (0, 1]; got {top_p}")
    if resolve("sample", backend, logits.device) == "reference":
        return sample_reference(logits, noise, temperature, top_k, top_p)
    return Sampled(*_sample_op(logits, noise, temperature, top_k, top_p))


def sample_reference(
    logits: Tensor,  # [n, V] fp32
    noise: Tensor,  # [n] fp64
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sampled:
    """`sample` in plain torch. On a CPU it takes some rows at a time, because memory that is used again is faster than
    new memory."""
    rows = max(1, AT_ONCE // logits.shape[1] if logits.device.type == "cpu" else len(logits))
    parts = [
        _sample_rows(z, u, temperature, top_k, top_p)
        for z, u in zip(logits.split(rows), noise.split(rows), strict=True)
    ]
    return Sampled(*(torch.cat(x) for x in zip(*parts, strict=True)))


def _sample_rows(
    logits: Tensor,  # [n, V] fp32
    noise: Tensor,  # [n] fp64
    temperature: float,
    top_k: int,
    top_p: float,
) -> Sampled:
    """`sample_reference` of a few rows."""
    z = (logits - logits.amax(-1, keepdim=True)).mul_(1 / temperature if temperature else 1.0)  # [n, V], -w
    p = z.exp()  # [n, V], unnormalised; 1 for the likeliest token
    sums = _sums(p)  # [n, blocks]
    total = sums.sum(1)  # [n]
    if temperature == 0:
        tokens = z.argmax(-1)
    else:
        if 0 < top_k < z.shape[1]:
            p = p * _largest(z, z.topk(top_k).values[:, -1:], top_k)
            sums = _sums(p)
        if top_p < 1:
            mass = top_p * sums.sum(1, keepdim=True)  # [n, 1]
            ordered = _ordered(p, mass)  # [n, m]
            before = ordered.cumsum(-1, dtype=torch.float64) - ordered  # [n, m], mass of the likelier tokens
            count = (before < mass).sum(-1, keepdim=True)  # [n, 1], tokens that are kept
            p = p * _largest(p, ordered.gather(1, count.clamp(min=1) - 1), count)
            sums = _sums(p)
        tokens = _pick(p, sums, noise)
    return Sampled(tokens, (z.gather(1, tokens[:, None])[:, 0] - total.log()).float())


def _sums(
    p: Tensor,  # [n, V] fp32
) -> Tensor:  # [n, blocks] fp64
    """The sum of each block of WIDTH tokens of a row. Running sums over all of V in fp64 would take longer than
    everything else."""
    in_blocks = p.shape[1] // WIDTH * WIDTH  # tokens in whole blocks
    parts = (p[:, :in_blocks].unflatten(1, (-1, WIDTH)), p[:, None, in_blocks:]) if in_blocks else (p[:, None],)
    return torch.cat([x.sum(-1, dtype=torch.float64) for x in parts], 1)


def _pick(
    p: Tensor,  # [n, V] fp32
    sums: Tensor,  # [n, blocks] fp64
    noise: Tensor,  # [n] fp64
) -> Tensor:  # [n] int64
    """The first id of each row at which the running sum of p is above noise * the total.

    It is in the last block with any p before which the running sum is not above. The sum of a block and the running
    sums within it are added in different orders; if by rounding none of these is above, it is the last id with any p.
    """
    block_ends = sums.cumsum(1)  # [n, blocks], running sum through each block
    target = noise[:, None] * block_ends[:, -1:]  # [n, 1]
    block_starts = F.pad(block_ends[:, :-1], (1, 0))  # [n, blocks], running sum before each block
    block_ids = torch.arange(sums.shape[1], device=p.device)
    block = torch.where((sums > 0) & (block_starts <= target), block_ids, 0).amax(1, True)  # [n, 1]
    ids = block * WIDTH + torch.arange(WIDTH, device=p.device)  # [n, WIDTH]
    block_p = torch.where(ids < p.shape[1], p.gather(1, ids.clamp(max=p.shape[1] - 1)), 0.0)  # [n, WIDTH]
    running = block_starts.gather(1, block) + block_p.cumsum(1, dtype=torch.float64)  # [n, WIDTH]
    first = torch.where((block_p > 0) & (running > target), ids, p.shape[1]).amin(1)  # [n]
    return torch.minimum(first, torch.where(block_p > 0, ids, 0).amax(1))


def _ordered(
    p: Tensor,  # [n, V] fp32
    mass: Tensor,  # [n, 1] fp64
) -> Tensor:  # [n, m], m <= V
    """The largest values of each row in descending order: all, or as many as have `mass` together."""
    if p.device.type == "cpu":  # reading the values is free there, and to sort a vocabulary takes as long as a step
        largest = p.topk(min(1024, p.shape[1])).values
        if bool((largest.sum(-1, keepdim=True, dtype=torch.float64) >= mass).all()):
            return largest
    return p.sort(descending=True).values


def _largest(
    x: Tensor,  # [n, V]
    least: Tensor,  # [n, 1]
    count: Tensor | int,  # [n, 1], or one for all rows
) -> Tensor:  # [n, V] bool
    """Mask of the `count` largest values of each row, of which `least` is the smallest; of equal values the first."""
    above, equal = x > least, x == least
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= count - above.sum(-1, keepdim=True)))


@torch.library.custom_op(
    "vdengine::sample",
    mutates_args=(),
    schema="(Tensor logits, Tensor noise, float temperature, int top_k, float top_p) -> (Tensor, Tensor)",
)
def _sample_op(
    logits: Tensor,  # [n, V] fp32
    noise: Tensor,  # [n] fp64
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:  # tokens [n] int64, logp [n] fp32
    n, vocab = logits.shape
    tokens, logp = noise.new_empty(n, dtype=torch.int64), logits.new_empty(n)
    if n == 0:
        return tokens, logp
    greedy, k_on, p_on = temperature == 0, temperature != 0 and 0 < top_k < vocab, temperature != 0 and top_p < 1
    top_p_tensor = noise.new_full((1,), top_p) if p_on else noise
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    config = launch("sample", torch.float32, vocab, arch(logits.device))
    with device_of(logits):
        sample_kernel[(n,)](
            logits,
            noise.contiguous(),
            top_p_tensor,
            tokens,
            logp,
            logits.stride(0),
            vocab,
            top_k,
            1.0 if greedy else 1 / temperature,
            GREEDY=greedy,
            TOP_K=k_on,
            TOP_P=p_on,
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=False,  # every operation rounds, as in the reference
        )
    return tokens, logp


@_sample_op.register_fake
def _(logits, noise, temperature, top_k, top_p):
    return noise.new_empty(len(noise), dtype=torch.int64), logits.new_empty(len(noise))
