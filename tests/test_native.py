"""The C++ extension against fp64 and plain-Python references."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vdengine import _native
from vdengine.trees import tree_cost

LEVELS = _native.simd_levels()
ODD_SIZES = [1, 2, 7, 33, 64, 4096, 4097, 49152 + 3]


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Nearest-even float32 -> bfloat16 bits, written with integers wider than the kernel's."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def rows(
    logits: np.ndarray,  # [n, v] float32, or uint16 as bfloat16; rows may be strided
    targets: np.ndarray,
    *,
    inv_temperature: float = 1.0,
    p: np.ndarray | None = None,
    threads: int = 1,
    simd: str = "auto",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def dtype(x: np.ndarray) -> str:
        return "float32" if x.dtype == np.float32 else "bfloat16"

    n, v = logits.shape
    logp, lse, entropy = (np.full(n, 777, np.float32) for _ in range(3))
    _native.log_softmax_rows(
        logits.ctypes.data,
        dtype(logits),
        n,
        v,
        logits.strides[0] // logits.itemsize,
        targets.ctypes.data,
        inv_temperature,
        logp.ctypes.data,
        lse.ctypes.data,
        entropy.ctypes.data,
        0 if p is None else p.ctypes.data,
        "float32" if p is None else dtype(p),
        0 if p is None else p.strides[0] // p.itemsize,
        threads,
        simd,
    )
    return logp, lse, entropy


def reference(logits: np.ndarray, targets: np.ndarray, inv_temperature: float = 1.0) -> tuple[np.ndarray, ...]:
    """The definitions, in fp64."""
    z = (logits if logits.dtype == np.float32 else from_bf16(logits)).astype(np.float64) * inv_temperature
    top = z.max(1)
    shifted = z - top[:, None]  # before the logarithm: fp64 too would lose it beside 3e38
    log_sum = np.log(np.exp(shifted).sum(1))
    logps = shifted - log_sum[:, None]
    p = np.exp(logps)
    entropy = -np.where(p > 0, p * np.where(p > 0, logps, 0), 0).sum(1)
    logp = logps[np.arange(len(z)), targets]
    p[np.arange(len(z)), targets] = np.expm1(logp)
    return logp, top + log_sum, entropy, p


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    error = np.abs(found.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    assert error.max(initial=0) <= tolerance


# 1e-6 is sixteen fp32 roundings: exp is good to about one, d = x - max to half a one at up to |d| = 20 or so where it
# still has weight, and each result is rounded once.
TOLERANCE = 1e-6


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("v", ODD_SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_match_fp64(dtype: str, v: int, simd: str) -> None:
    """Wrong lanes at the end of a row whose length is no multiple of a vector; a wrong exp on one instruction set."""
    rng = np.random.default_rng(v)
    x = (rng.standard_normal((5, v)) * 4).astype(np.float32)
    logits = x if dtype == "float32" else to_bf16(x)
    targets = rng.integers(0, v, 5)
    p32, p16 = np.empty((5, v), np.float32), np.empty((5, v), np.uint16)
    for inv_temperature in (1.0, 1 / 0.7):
        logp, lse, entropy, p = reference(logits, targets, inv_temperature)
        found = rows(logits, targets, inv_temperature=inv_temperature, p=p32, simd=simd)
        for value, expected in zip(found, (logp, lse, entropy), strict=True):
            assert_close(value, expected, TOLERANCE)
        assert np.abs(p32 - p).max() <= 1e-6 * np.abs(p).max()
        # fp32 error of P is a few roundings at up to |d| = 40: relative, so that the small entries count too.
        assert (np.abs(p32 - p) <= 1e-5 * np.abs(p) + 1e-37).all()
        again = rows(logits, targets, inv_temperature=inv_temperature, p=p16, simd=simd)
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
        assert np.array_equal(p16, to_bf16(p32)), "bf16 P is the fp32 P rounded to nearest even"


@pytest.mark.parametrize("simd", LEVELS)
def test_rows_extreme_values(simd: str) -> None:
    """Overflow, 0 * inf and lost mass: -inf and huge logits, equal logits, one token with all the mass."""
    v = 4099  # the second block holds three
    cases = np.zeros((10, v), np.float32)
    cases[1] = 1e4
    cases[2] = -1e4
    cases[3, :] = -1e4
    cases[3, 17] = 1e4  # peaked
    cases[4, ::2] = -np.inf
    cases[5, :4097] = -np.inf  # nothing finite before the last block
    cases[6] = np.linspace(-200, 200, v)  # the maximum rises block by block
    cases[7] = cases[6, ::-1]
    cases[8, :] = -np.inf
    cases[8, 5] = 3.5  # one finite logit
    cases[9] = np.where(np.arange(v) % 2, 3e38, -3e38)
    targets = np.array([0, v - 1, 7, 17, 1, v - 1, v - 2, 0, 5, 1])
    logp, lse, entropy, p = reference(cases, targets)
    out = np.empty_like(cases)
    found = rows(cases, targets, p=out, simd=simd)
    for value, expected in zip(found, (logp, lse, entropy), strict=True):
        assert np.isfinite(expected).all()
        assert_close(value, expected, TOLERANCE)
    assert (np.abs(out - p) <= 1e-5 * np.abs(p) + 1e-37).all()
    assert (out[4, ::2] == 0).all(), "a masked logit has no probability at all"

    # A target without probability, and a peaked row's other targets, as fp64 has them.
    logp, *_ = rows(cases[[4, 3]], np.array([0, 0]), p=out[:2], simd=simd)
    assert logp[0] == -np.inf and logp[1] == -2e4
    assert out[0, 0] == -1 and out[1, 0] == -1 and out[1, 17] == 1


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_non_finite_logits_spoil_their_row_only(bad: float, simd: str) -> None:
    """A NaN that is swallowed by a maximum or clamp: the trainer must see it; its neighbours must not."""
    x = np.random.default_rng(0).standard_normal((3, 5000)).astype(np.float32)
    for position in (0, 4095, 4096, 4999):
        y = x.copy()
        y[1, position] = bad
        for p in (np.empty_like(y), np.empty(y.shape, np.uint16)):
            logp, lse, entropy = rows(y, np.array([1, 2, 3]), p=p, simd=simd)
            assert np.isnan(logp[1]) and np.isnan(entropy[1]) and not np.isfinite(lse[1])
            values = p if p.dtype == np.float32 else from_bf16(p)
            assert np.isnan(values[1]).all() and np.isfinite(values[[0, 2]]).all()
            assert np.isfinite(logp[[0, 2]]).all()
    all_masked = np.full((1, 40), -np.inf, np.float32)
    assert np.isnan(rows(all_masked, np.array([0]), simd=simd)[0]).all(), "as log_softmax: there is no distribution"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_in_place_and_strided(dtype: str) -> None:
    """Reading a logit after P has replaced it; writing outside a row of a wider buffer."""
    rng = np.random.default_rng(1)
    n, v, stride = 6, 1003, 1100
    x = rng.standard_normal((n, stride)).astype(np.float32)
    wide = x if dtype == "float32" else to_bf16(x)
    targets = rng.integers(0, v, n)
    dense = np.ascontiguousarray(wide[:, :v])
    p = np.empty_like(dense)
    expected = rows(dense, targets, p=p)

    kept = wide.copy()
    found = rows(wide[:, :v], targets, p=wide[:, :v])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert np.array_equal(wide[:, :v], p)
    assert np.array_equal(wide[:, v:], kept[:, v:])


@pytest.mark.parametrize("simd", LEVELS)
def test_rows_do_not_depend_on_threads_or_neighbours(simd: str) -> None:
    """Bitwise promises (resume, probes on = probes off) that a split by threads or by n would break."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((9, 5001)).astype(np.float32)
    targets = rng.integers(0, 5001, 9)
    p1, p2 = np.empty_like(x), np.empty_like(x)
    one = rows(x, targets, p=p1, threads=1, simd=simd)
    two = rows(x, targets, p=p2, threads=2, simd=simd)
    alone = rows(x[4:5], targets[4:5], p=p2[4:5], simd=simd)
    for a, b, c in zip(one, two, alone, strict=True):
        assert np.array_equal(a, b) and a[4] == c[0]
    assert np.array_equal(p1, p2)


def test_rows_optional_outputs_and_no_rows() -> None:
    """Writing through a null pointer; a pack without scored tokens."""
    x = np.zeros((2, 8), np.float32)
    targets, logp = np.array([1, 2]), np.empty(2, np.float32)
    _native.log_softmax_rows(x.ctypes.data, "float32", 2, 8, 8, targets.ctypes.data, 1.0, logp.ctypes.data, 0)
    assert_close(logp, np.full(2, -np.log(8)), TOLERANCE)
    assert rows(np.empty((0, 8), np.float32), np.empty(0, np.int64))[0].shape == (0,)


def test_rows_errors() -> None:
    """A target outside the vocabulary would read foreign memory; a temperature of 0 would divide by it."""
    x = np.zeros((3, 8), np.float32)
    for bad in (-1, 8):
        with pytest.raises(ValueError, match=rf"targets\[2\] is {bad}, outside 0..7 \(V = 8\)"):
            rows(x, np.array([0, 7, bad]))
    for bad_temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="inv_temperature must be between"):
            rows(x, np.zeros(3, np.int64), inv_temperature=bad_temperature)
    with pytest.raises(ValueError, match="same dtype and row stride"):
        rows(x, np.zeros(3, np.int64), p=x.view(np.uint16)[:, :8])
    with pytest.raises(ValueError, match="'float32' or 'bfloat16', got 'float64'"):
        _native.log_softmax_rows(0, "float64", 0, 8, 8, 0, 1.0, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="simd level 'mmx'"):
        rows(x, np.zeros(3, np.int64), simd="mmx")
    with pytest.raises(ValueError, match="threads must be >= 0"):
        rows(x, np.zeros(3, np.int64), threads=-1)


# ---- gather_sum ---------------------------------------------------------------------------------------------


def gather(src: np.ndarray, order: np.ndarray, offsets: np.ndarray, out: np.ndarray, threads: int = 1) -> np.ndarray:
    names = {np.dtype(np.float32): "float32", np.dtype(np.uint16): "bfloat16"}
    _native.gather_sum(
        src.ctypes.data,
        names[src.dtype],
        *src.shape,
        src.strides[0] // src.itemsize,
        order.ctypes.data,
        len(order),
        offsets.ctypes.data,
        len(offsets) - 1,
        out.ctypes.data,
        names[out.dtype],
        out.strides[0] // out.itemsize,
        threads,
    )
    return out


def groups(rng: np.random.Generator, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """A random inverse: n source rows over m groups, one of them large, some empty."""
    group = np.where(rng.random(n) < 0.4, 0, rng.integers(0, m, n))
    return np.argsort(group, kind="stable"), np.searchsorted(np.sort(group), np.arange(m + 1))


@pytest.mark.parametrize("width", [1, 3, 256, 576, 700])
@pytest.mark.parametrize("dtypes", ["float32 float32", "bfloat16 float32", "float32 bfloat16", "bfloat16 bfloat16"])
def test_gather_sum_matches_fp64(dtypes: str, width: int) -> None:
    """Tiles that miss columns, empty groups left unwritten, rows of a wider buffer overwritten."""
    rng = np.random.default_rng(width)
    order, offsets = groups(rng, 500, 90)
    assert (np.diff(offsets) == 0).any() and np.diff(offsets).max() > 100
    wide = rng.standard_normal((500, width + 5)).astype(np.float32)
    wide = to_bf16(wide) if dtypes.startswith("bf") else wide
    src = wide[:, :width]
    values = src if src.dtype == np.float32 else from_bf16(src)
    expected = np.stack(
        [values[order[a:b]].astype(np.float64).sum(0) for a, b in zip(offsets, offsets[1:], strict=False)]
    )
    out_dtype = np.uint16 if dtypes.endswith("bfloat16") else np.float32
    out = np.full((90, width + 2), 7, out_dtype)
    gather(src, order, offsets, out[:, :width])
    assert (out[:, width:] == 7).all()
    found = out[:, :width] if out_dtype == np.float32 else from_bf16(out[:, :width])
    # 250 fp32 additions of numbers of size 1 lose some 250^1.5 * 2^-24 = 2e-4 at the very most; bf16 rounds to 2^-9.
    assert_close(found, expected, 2e-5 if out_dtype == np.float32 else 2**-8)


def test_gather_sum_is_bitwise_the_sequential_sum() -> None:
    """A tree reduction or a split of a group by threads: the promise is ascending order in fp32."""
    rng = np.random.default_rng(3)
    order, offsets = groups(rng, 2000, 64)
    src = rng.standard_normal((2000, 300)).astype(np.float32)
    expected = np.zeros((64, 300), np.float32)
    for j in range(64):
        for i in order[offsets[j] : offsets[j + 1]]:
            expected[j] += src[i]
    for threads in (1, 2, 3):
        assert np.array_equal(gather(src, order, offsets, np.empty_like(expected), threads), expected)


def test_gather_sum_empty_and_errors() -> None:
    """No rows, no groups; offsets that would read backwards."""
    none = np.empty((0, 4), np.float32)
    zeros = gather(none, np.empty(0, np.int64), np.zeros(4, np.int64), np.full((3, 4), 7, np.float32))
    assert (zeros == 0).all()
    gather(none, np.empty(0, np.int64), np.zeros(1, np.int64), none)
    with pytest.raises(ValueError, match=r"offsets\[1\]"):
        gather(none, np.empty(0, np.int64), np.array([0, 2, 1]), np.empty((2, 4), np.float32))


# ---- plan_packs ---------------------------------------------------------------------------------------------


def plan(num_tokens: np.ndarray, cost: np.ndarray, ranks: int, budget: int) -> tuple[np.ndarray, int]:
    """plan_packs, with what it promises for every input checked."""
    num_tokens, cost = num_tokens.astype(np.int64), cost.astype(np.float64)
    bins, micro_steps = _native.plan_packs(num_tokens, cost, ranks, budget)
    assert bins.dtype == np.int32 and bins.shape == num_tokens.shape
    size = ranks * micro_steps
    assert ((bins >= 0) & (bins < size)).all()
    assert np.bincount(bins, weights=num_tokens, minlength=size).max(initial=0) <= budget
    if len(bins) >= size:
        assert np.bincount(bins, minlength=size).min(initial=1) > 0
    assert micro_steps * ranks * budget >= num_tokens.sum()
    again, _ = _native.plan_packs(num_tokens, cost, ranks, budget)
    assert np.array_equal(bins, again)
    return bins, micro_steps


def waiting(bins: np.ndarray, micro_steps: int, cost: np.ndarray, ranks: int) -> float:
    """Time of the step over its ideal: ranks wait for the slowest in every micro step."""
    per_pack = np.bincount(bins, weights=cost, minlength=ranks * micro_steps).reshape(micro_steps, ranks)
    return per_pack.max(1).sum() / per_pack.mean(1).sum()


def test_plan_packs_properties() -> None:
    """A tree lost or a budget broken on some mix of sizes: whatever the distribution, the promises hold."""
    rng = np.random.default_rng(4)
    for _ in range(300):
        n, ranks = int(rng.integers(0, 80)), int(rng.integers(1, 10))
        budget = int(rng.integers(1, 300))
        shape = rng.integers(0, 4)
        if shape == 0:
            tokens = rng.integers(1, budget + 1, n)
        elif shape == 1:
            tokens = np.clip(rng.lognormal(np.log(max(budget / 8, 1)), 1, n).astype(int), 1, budget)
        elif shape == 2:
            tokens = np.full(n, max(1, budget // 2 + 1))
        else:
            tokens = np.full(n, max(1, budget // 3))
        cost = rng.choice([tokens + tokens**2 / 100.0, rng.random(n), np.zeros(n)][rng.integers(0, 3)][None])
        bins, micro_steps = plan(tokens, cost, ranks, budget)
        assert micro_steps <= max(0, n)
        if n:  # never above first-fit decreasing, a baseline written here
            assert micro_steps <= -(-first_fit_decreasing(tokens, budget) // ranks)


def first_fit_decreasing(tokens: np.ndarray, budget: int) -> int:
    room: list[int] = []
    for size in sorted(tokens.tolist(), reverse=True):
        for b, free in enumerate(room):
            if free >= size:
                room[b] -= size
                break
        else:
            room.append(budget - size)
    return len(room)


def test_plan_packs_finds_perfect_fits() -> None:
    """A micro step more than needed: the cost of a whole forward and backward. Packs are cut up 99% full."""
    rng = np.random.default_rng(5)
    for ranks, micro_steps, parts in ((1, 2, 8), (4, 1, 8), (2, 3, 8), (8, 2, 8)):
        for _ in range(20):
            cuts = np.sort(rng.choice(np.arange(1, 990), (ranks * micro_steps, parts - 1)), axis=1)
            tokens = np.diff(cuts, axis=1, prepend=0, append=990).ravel()
            tokens = rng.permutation(tokens[tokens > 0])
            assert plan(tokens, tokens, ranks, 1000)[1] == micro_steps


def test_plan_packs_small_cases() -> None:
    """The edges: nothing to plan, fewer trees than ranks, trees that fill a pack alone, one rank."""
    assert plan(np.array([]), np.array([]), 4, 10)[1] == 0
    bins, micro_steps = plan(np.array([3, 9]), np.array([1, 5]), 8, 10)
    assert micro_steps == 1 and sorted(bins) == [0, 1], "two ranks work, six get an empty pack"
    assert plan(np.full(9, 10), np.ones(9), 4, 10)[1] == 3
    assert plan(np.full(8, 10), np.ones(8), 1, 80)[1] == 1, "no micro step more than the budget asks for"
    assert plan(np.full(8, 10), np.ones(8), 1, 79)[1] == 2


def test_plan_packs_puts_the_costliest_micro_step_first() -> None:
    """A budget that does not fit the memory should fail in the first micro step, not after an hour."""
    rng = np.random.default_rng(6)
    tokens = rng.integers(10, 1000, 200)
    bins, micro_steps = plan(tokens, tokens**2.0, 4, 2000)
    per_pack = np.bincount(bins, weights=tokens**2.0, minlength=4 * micro_steps).reshape(micro_steps, 4)
    assert micro_steps > 5
    assert (np.diff(per_pack.max(1)) <= 1e-6).all()


def test_plan_packs_balances_lognormal_lengths() -> None:
    """Ranks that wait: quadratic attention makes equal token counts unequal work."""
    rng = np.random.default_rng(7)
    for _ in range(20):
        tokens = np.clip(rng.lognormal(5.2, 0.7, 128).astype(int), 16, 2048)
        cost = tokens + tokens**2 / 4000
        for budget in (4096, 16384):
            assert waiting(*plan(tokens, cost, 8, budget), cost, 8) < 1.05


def test_plan_packs_fills_the_wait_for_a_long_tree() -> None:
    """Ranks that idle beside a tree nothing can shorten, while later micro steps carry what they could have done.

    One tree costs 16, sixty cost 1; four ranks, packs of 11. Even packs take 16 + 9; full ones beside the long tree
    leave 27 for the second micro step: 16 + 7.
    """
    tokens, cost = np.ones(61), np.array([16.0] + [1.0] * 60)
    bins, micro_steps = plan(tokens, cost, 4, 11)
    per_pack = np.bincount(bins, weights=cost, minlength=8).reshape(2, 4)
    assert micro_steps == 2 and per_pack.max(1).tolist() == [16, 7]


def test_plan_packs_balances_hh_rlhf(shared_data: Path) -> None:
    """The promise for real preference data: 128 examples, 8 ranks, the slowest within 5% of the mean."""

    def length(text: str) -> int:
        return max(1, len(text) // 4)  # characters to tokens, about: the shape of the distribution is what counts

    prompts, branches = [], []
    with gzip.open(shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            cut = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
            prompts.append(length(row["chosen"][:cut]))
            branches += [length(row["chosen"][cut:]), length(row["rejected"][cut:])]
    prompt_len, branch_len = np.array(prompts), np.array(branches)
    tokens = prompt_len + branch_len.reshape(-1, 2).sum(1)
    cost = tree_cost(prompt_len, branch_len, np.arange(len(prompts) + 1) * 2, linear=1.0, quadratic=1 / 6144)
    rng = np.random.default_rng(8)
    for _ in range(10):
        take = rng.permutation(len(tokens))[:128]
        for budget in (2048, 4096, 8192):
            assert waiting(*plan(tokens[take], cost[take], 8, budget), cost[take], 8) < 1.05


def test_plan_packs_large() -> None:
    """A path only large inputs take: 100,000 trees, packs nearly full."""
    rng = np.random.default_rng(9)
    tokens = np.clip(rng.lognormal(5.3, 0.7, 100_000).astype(int) + 20, 1, 2048)
    cost = tokens + tokens**2 / 4000
    bins, micro_steps = plan(tokens, cost, 8, 8192)
    assert micro_steps <= 1.003 * tokens.sum() / (8 * 8192) + 1
    assert waiting(bins, micro_steps, cost, 8) < 1.01


def test_plan_packs_errors() -> None:
    """Each input that has no plan, with what is allowed."""
    ones = np.ones(3)
    with pytest.raises(ValueError, match="tree 1 has 11 tokens; allowed are 1 to the budget of one pack, 10"):
        _native.plan_packs(np.array([3, 11, 2]), ones, 2, 10)
    with pytest.raises(ValueError, match="tree 2 has 0 tokens"):
        _native.plan_packs(np.array([3, 1, 0]), ones, 2, 10)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="the cost of tree 1"):
            _native.plan_packs(np.array([3, 1, 2]), np.array([1, bad, 1]), 2, 10)
    with pytest.raises(ValueError, match="ranks must be >= 1, got 0"):
        _native.plan_packs(np.array([3]), np.ones(1), 0, 10)
    with pytest.raises(ValueError, match="budget must be >= 1, got 0"):
        _native.plan_packs(np.array([3]), np.ones(1), 1, 0)
    with pytest.raises(ValueError, match="cost must have 1 elements, has 3"):
        _native.plan_packs(np.array([3]), ones, 1, 10)
    with pytest.raises(TypeError, match="num_tokens must be a one-dimensional contiguous array of dtype int64"):
        _native.plan_packs(np.array([3], np.int32), np.ones(1), 1, 10)  # type: ignore[arg-type]


# ---- threads ------------------------------------------------------------------------------------------------


def test_calls_from_several_threads() -> None:
    """State shared between calls: packs are planned and assembled beside the training loop."""
    rng = np.random.default_rng(10)
    tokens = rng.integers(1, 2048, 20_000)
    expected = _native.plan_packs(tokens, tokens**2.0, 8, 8192)[0]
    found: list[np.ndarray] = []
    workers = [
        threading.Thread(target=lambda: found.append(_native.plan_packs(tokens, tokens**2.0, 8, 8192)[0]))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 and all(np.array_equal(f, expected) for f in found)


def test_set_num_threads() -> None:
    """The default for calls that name no number; a negative one is refused."""
    with pytest.raises(ValueError, match="threads must be >= 0 and at most 1024, got -1"):
        _native.set_num_threads(-1)
    x = np.zeros((4, 10), np.float32)
    _native.set_num_threads(2)
    try:
        assert_close(rows(x, np.zeros(4, np.int64), threads=0)[0], np.full(4, -np.log(10)), TOLERANCE)
    finally:
        _native.set_num_threads(0)


# ---- invalid arguments --------------------------------------------------------------------------------------


def test_no_invalid_argument_is_taken() -> None:
    """Memory of others read or written, or the process ended, for a size, stride, address, index or offset that is out
    of range: every such call of every entry point is a ValueError or a TypeError. In a process of its own, which such a
    fault would end; benchmarks/sanitize.py does the same under sanitizers."""
    script = Path(__file__).parent.parent / "benchmarks" / "sanitize.py"
    command = [sys.executable, script, "--drive", Path(_native.__file__).parent, "--rounds", "9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = [line.split()[0] for line in done.stdout.splitlines() if " refused " in line]
    public = {name for name in dir(_native) if not name.startswith("_")} - {"simd_levels", "has_openmp"}
    assert set(refused) == public, "an entry point that is not driven"
