"""Trees and packs against a plain-Python layout written from the definitions."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from vdengine.errors import InputError
from vdengine.trees import Inverse, Pack, Tree, pack, pack_store, tree_cost


def random_forest(rng: random.Random, n: int, *, most_branches: int = 5, masks: bool = True) -> list[Tree]:
    trees = []
    for i in range(n):
        branches = [
            [rng.randrange(1000) for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(1, most_branches))
        ]
        scored = None
        if masks and rng.random() < 0.7:
            scored = [[rng.random() < 0.6 for _ in branch] for branch in branches]
            if rng.random() < 0.3:
                scored[0] = [False] * len(branches[0])
            scored[-1][-1] = True
        trees.append(Tree([rng.randrange(1000) for _ in range(rng.randint(1, 7))], branches, scored, id=10 * i))
    return trees


def reference_pack(trees: list[Tree]) -> dict[str, Any]:
    """Every field from its definition, token by token."""
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[tuple[list[int], list[int]]] = []  # query rows, key rows
    rows: list[int] = []
    targets: list[int] = []
    per_branch: list[int] = []
    tree_of_branch: list[int] = []
    for t, tree in enumerate(trees):
        prompt_rows = list(range(len(tokens), len(tokens) + len(tree.prompt)))
        tokens += tree.prompt
        positions += range(len(tree.prompt))
        if len(tree.branches) > 1:
            segments.append((prompt_rows, prompt_rows))
        for b, branch in enumerate(tree.branches):
            branch_rows = list(range(len(tokens), len(tokens) + len(branch)))
            tokens += branch
            positions += range(len(tree.prompt), len(tree.prompt) + len(branch))
            path = prompt_rows + branch_rows
            segments.append((path if len(tree.branches) == 1 else branch_rows, path))
            count = 0
            for i, token in enumerate(branch):
                if tree.scored is None or tree.scored[b][i]:
                    rows.append(path[len(prompt_rows) + i - 1])
                    targets.append(token)
                    count += 1
            per_branch.append(count)
            tree_of_branch.append(t)
    shared = any(len(tree.branches) > 1 for tree in trees)
    return {
        "tokens": tokens,
        "positions": positions,
        "cu_seqlens_q": np.cumsum([0] + [len(q) for q, _ in segments]),
        "cu_seqlens_k": np.cumsum([0] + [len(k) for _, k in segments]),
        "kv_index": [row for _, keys in segments for row in keys] if shared else None,
        "max_q": max((len(q) for q, _ in segments), default=0),
        "max_k": max((len(k) for _, k in segments), default=0),
        "rows": rows,
        "targets": targets,
        "branch_offsets": np.cumsum([0] + per_branch),
        "tree_of_branch": tree_of_branch,
        "tree_ids": [tree.id for tree in trees],
        "queries": [row for q, _ in segments for row in q],
    }


DTYPES = {"positions": torch.int32, "cu_seqlens_q": torch.int32, "cu_seqlens_k": torch.int32}


def check_pack(found: Pack, trees: list[Tree]) -> None:
    expected = reference_pack(trees)
    assert expected.pop("queries") == list(range(found.num_tokens)), "each row is a query once, in order"
    for name, value in expected.items():
        got = getattr(found, name)
        if isinstance(got, torch.Tensor):
            assert got.dtype == DTYPES.get(name, torch.int64), name
            assert got.tolist() == list(value), name
        else:
            assert got == value, name
    assert found.num_tokens == len(expected["tokens"])
    assert found.num_scored == len(expected["rows"])
    assert found.num_branches == len(expected["tree_of_branch"])
    assert found.num_trees == len(trees)
    assert found.branch_lengths.tolist() == np.diff(expected["branch_offsets"]).tolist()

    check_inverse(found.rows_inverse, found.rows, found.num_tokens)
    if found.kv_index is None:
        assert found.kv_inverse is None
    else:
        assert found.kv_inverse is not None
        check_inverse(found.kv_inverse, found.kv_index, found.num_tokens)
    unique, inverse = found.token_inverse
    assert unique.tolist() == sorted(set(found.tokens.tolist()))
    check_inverse(inverse, torch.searchsorted(unique, found.tokens), len(unique))


def check_inverse(inverse: Inverse, index: torch.Tensor, m: int) -> None:
    assert inverse.order.dtype == inverse.offsets.dtype == torch.int64
    assert len(inverse.offsets) == m + 1 and len(inverse.order) == len(index)
    for j in range(m):
        used_by = inverse.order[inverse.offsets[j] : inverse.offsets[j + 1]].tolist()
        assert used_by == [i for i, row in enumerate(index.tolist()) if row == j], "all uses, ascending"


@pytest.mark.parametrize("seed", range(8))
def test_pack_matches_reference(seed: int) -> None:
    """A wrong row, position, segment or inverse anywhere in the layout, over mixes of one and many branches."""
    rng = random.Random(seed)
    trees = random_forest(rng, rng.randint(1, 12))
    check_pack(pack(trees), trees)


@pytest.mark.parametrize("seed", range(3))
def test_pack_of_one_branch_trees_needs_no_gather(seed: int) -> None:
    """SFT paying for a gather of keys: with one branch each, keys are the rows themselves."""
    trees = random_forest(random.Random(seed), 6, most_branches=1)
    found = pack(trees)
    assert found.kv_index is None and found.kv_inverse is None
    assert torch.equal(found.cu_seqlens_q, found.cu_seqlens_k)
    check_pack(found, trees)


def test_pack_by_hand() -> None:
    """The reference repeating the code's mistake: one small pack written out."""
    found = pack([Tree([1, 2, 3], [[4, 5], [6]], id=8), Tree([7], [[8, 9]], [[False, True]], id=3)])
    assert found.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert found.cu_seqlens_q.tolist() == [0, 3, 5, 6, 9]
    assert found.cu_seqlens_k.tolist() == [0, 3, 8, 12, 15]
    assert found.kv_index is not None
    assert found.kv_index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8]
    assert (found.max_q, found.max_k) == (3, 5)
    assert found.rows.tolist() == [2, 3, 2, 7]
    assert found.targets.tolist() == [4, 5, 6, 9]
    assert found.branch_offsets.tolist() == [0, 2, 3, 4]
    assert found.tree_of_branch.tolist() == [0, 0, 1]
    assert found.tree_ids.tolist() == [8, 3]


@pytest.mark.parametrize("seed", range(6))
def test_firsts_are_branches_of_one_token_that_are_not_run(seed: int) -> None:
    """Guards leads: each is scored by the last row of its prompt, and nothing else of the pack changes."""
    rng = random.Random(seed)
    trees = random_forest(rng, 5, most_branches=1 if seed == 0 else 3)
    firsts = [[rng.randrange(1000) for _ in range(rng.randrange(4))] for _ in trees]
    firsts[2] = [1, 2]
    bare = pack(trees)
    full = pack([dataclasses.replace(tree, firsts=own) for tree, own in zip(trees, firsts, strict=True)])
    flat = [(t, token) for t, own in enumerate(firsts) for token in own]
    count, end = full.num_firsts, bare.num_scored
    assert count == len(flat) == full.num_branches - bare.num_branches
    for name in ("tokens", "positions", "cu_seqlens_q", "cu_seqlens_k", "tree_ids"):
        assert getattr(full, name).equal(getattr(bare, name))
    assert full.rows[:end].equal(bare.rows) and full.targets[:end].equal(bare.targets)
    assert full.targets[end:].tolist() == [token for _, token in flat]
    assert full.branch_offsets.tolist() == [*bare.branch_offsets.tolist(), *range(end + 1, end + 1 + count)]
    assert full.tree_of_branch[-count:].tolist() == [t for t, _ in flat]
    starts = np.cumsum([0, *(len(t.prompt) + sum(map(len, t.branches)) for t in trees)])
    last = [int(starts[t]) + len(trees[t].prompt) - 1 for t, _ in flat]
    assert full.rows[end:].tolist() == full.ends[-count:].tolist() == last
    inverse = full.rows_inverse
    for row in range(full.num_tokens):
        uses = inverse.order[inverse.offsets[row] : inverse.offsets[row + 1]].tolist()
        assert uses == [i for i, r in enumerate(full.rows.tolist()) if r == row]
    with pytest.raises(ValueError, match="a first token has the id -1"):
        pack([dataclasses.replace(trees[0], firsts=[-1])])


def test_pack_of_nothing() -> None:
    """A rank with fewer trees than packs runs an empty one: every length is zero, nothing is None that was not."""
    check_pack(pack([]), [])
    assert pack([]).branch_sum(torch.empty(0)).shape == (0,)


def test_large_token_ids_sort() -> None:
    """The radix sort's later digits: ids from one bit to thirty-one."""
    rng = random.Random(0)
    ids = [rng.randrange(2 ** rng.randint(1, 31)) for _ in range(400)] + [0, 2**31 - 1]
    trees = [Tree(ids[:100], [ids[100:250], ids[250:]])]
    check_pack(pack(trees), trees)


def flat_store(trees: list[Tree], rng: random.Random) -> dict[str, np.ndarray]:
    """The trees in a flat store whose spans lie in no order, with gaps between."""
    branches = [(t, b) for t, tree in enumerate(trees) for b in range(len(tree.branches))]
    spans = [(t, -1) for t in range(len(trees))] + branches
    rng.shuffle(spans)
    tokens: list[int] = []
    scored: list[bool] = []
    start = {}
    for t, b in spans:
        gap = rng.randint(0, 2)
        tokens += [5] * gap
        scored += [False] * gap
        start[t, b] = len(tokens)
        tree = trees[t]
        span = tree.prompt if b < 0 else tree.branches[b]
        tokens += span
        mask = [False] * len(span) if b < 0 else [True] * len(span) if tree.scored is None else tree.scored[b]
        scored += mask
    return {
        "tokens": np.array(tokens, np.int32),
        "scored": np.array(scored, np.uint8),
        "tree_start": np.cumsum([0] + [len(tree.branches) for tree in trees]),
        "prompt_start": np.array([start[t, -1] for t in range(len(trees))]),
        "prompt_len": np.array([len(tree.prompt) for tree in trees]),
        "branch_start": np.array([start[key] for key in branches]),
        "branch_len": np.array([len(trees[t].branches[b]) for t, b in branches]),
    }


def test_pack_store_equals_pack(tmp_path: Any) -> None:
    """The loader's path differing from the one users and tests build by hand; a memory-mapped, read-only store."""
    rng = random.Random(5)
    trees = [dataclasses.replace(tree, id=i) for i, tree in enumerate(random_forest(rng, 9))]
    arrays = flat_store(trees, rng)
    np.save(tmp_path / "tokens.npy", arrays["tokens"])
    arrays["tokens"] = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    for select in ([4], [8, 0, 3], [2, 2], np.arange(9), []):
        check_pack(pack_store(arrays, select), [trees[int(i)] for i in select])


def test_pack_store_rejects_what_it_cannot_read() -> None:
    """A damaged store read out of bounds; a silent copy of a store of another dtype."""
    trees = random_forest(random.Random(1), 3)
    good = flat_store(trees, random.Random(1))

    def broken(name: str, index: int, value: int) -> dict[str, np.ndarray]:
        array = good[name].copy()
        array[index] = value
        return good | {name: array}

    n, nb = len(good["tokens"]), len(good["branch_len"])
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=rf"select\[1\] is {bad}, outside 0..2"):
            pack_store(good, [0, bad])
    for name, index, value, message in (
        ("prompt_start", 1, -1, "tree 1: prompt .* lies outside"),
        ("prompt_start", 1, n, "tree 1: prompt .* lies outside"),
        ("prompt_len", 1, n + 1, "tree 1: prompt .* lies outside"),
        ("prompt_len", 1, 2**63 - 1, "tree 1: prompt .* lies outside"),
        ("prompt_len", 1, 0, "tree 1: prompt is empty"),
        ("branch_start", nb - 1, n, "tree 2: branch .* lies outside"),
        ("branch_len", nb - 1, -4, "tree 2: branch is empty"),
        ("tree_start", 3, nb + 1, "tree 2: tree_start .* outside"),
        ("tree_start", 1, 0, "tree 0: tree_start 0..0 is empty"),
        ("tokens", int(good["prompt_start"][1]), -7, "tree 1: token id -7 is negative"),
    ):
        with pytest.raises(ValueError, match=message):
            pack_store(broken(name, index, value), [0, 1, 2])
    with pytest.raises(TypeError, match="tokens must be .* dtype int32, got 1 dimensions of dtype int64"):
        pack_store(good | {"tokens": good["tokens"].astype(np.int64)}, [0])
    with pytest.raises(ValueError, match=f"scored must have {n} elements"):
        pack_store(good | {"scored": good["scored"][1:]}, [0])


def test_tree_errors() -> None:
    """Each tree that has no meaning, named by its row."""
    for arguments, message in (
        (([], [[1]]), "tree: the prompt is empty"),
        (([1], []), "tree: no branch"),
        (([1], [[2], []]), "tree: branch 1 is empty"),
        (([1], [[2]], [[True], [True]]), "tree: 2 scored masks for 1 branches"),
        (([1], [[2, 3]], [[True]]), "tree: branch 0 has 2 tokens, its scored mask 1"),
        (([1], [[2], [3]], [[False], [False]]), "tree: no branch has a scored token"),
        (([], [[1]], None, 12), "tree 12: the prompt is empty"),
    ):
        with pytest.raises(InputError, match=message) as error:
            Tree(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    Tree([1], [[2], [3]], [[False], [True]])  # one branch may go unscored


def test_branch_sum() -> None:
    """A token counted to the wrong branch; a wrong or undefined gradient, also for branches with nothing scored."""
    found = pack([Tree([1], [[2, 3], [4, 5]], [[False, False], [True, True]]), Tree([1], [[2, 3, 4]])])
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], requires_grad=True)
    sums = found.branch_sum(x)
    assert sums.tolist() == [0, 3, 12]
    (sums * torch.tensor([7.0, -1.0, 0.5])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [-1, -1, 0.5, 0.5, 0.5]
    assert torch.autograd.gradcheck(found.branch_sum, x.detach().double().requires_grad_())
    with pytest.raises(ValueError, match=r"x has shape \(4,\), must have \(5,\)"):
        found.branch_sum(torch.zeros(4))


def test_branch_sum_repeats_bitwise() -> None:
    """Sums that differ by thread timing, which would break exact resume: forward and backward, twice."""
    rng = random.Random(2)
    found = pack([Tree([1], [[1] * rng.randint(1, 900) for _ in range(3)]) for _ in range(40)])
    x = torch.randn(found.num_scored, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(found.num_branches, generator=torch.Generator().manual_seed(1))
    results = []
    for _ in range(2):
        y = x.clone().requires_grad_()
        sums = found.branch_sum(y)
        (sums * weight).sum().backward()
        results.append((sums.detach(), y.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    parts = x.double().split(found.branch_lengths.tolist())
    expected = torch.stack([part.sum() for part in parts])
    torch.testing.assert_close(results[0][0].double(), expected, rtol=1e-5, atol=1e-4)  # 900 fp32 additions


def test_pack_moves_whole() -> None:
    """A field left behind on the old device, the inverses inside containers among them."""
    found = pack(random_forest(random.Random(3), 4))
    moved = found.to("meta")

    def tensors(value: Any) -> list[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, Inverse):
            return [value.order, value.offsets]
        return [t for part in value for t in tensors(part)] if isinstance(value, tuple) else []

    for field in dataclasses.fields(Pack):
        before, after = getattr(found, field.name), getattr(moved, field.name)
        assert [t.shape for t in tensors(before)] == [t.shape for t in tensors(after)], field.name
        assert all(t.device.type == "meta" for t in tensors(after)), field.name
        if isinstance(before, int) or before is None:
            assert after == before


def test_tree_cost_counts_attention_pairs() -> None:
    """A cost that misses pairs would leave ranks waiting: counted one by one against the formula."""
    rng = random.Random(4)
    trees = random_forest(rng, 20, masks=False)
    prompt_len = np.array([len(tree.prompt) for tree in trees])
    branch_len = np.array([len(branch) for tree in trees for branch in tree.branches])
    tree_start = np.cumsum([0] + [len(tree.branches) for tree in trees])
    pairs, tokens = [], []
    for tree in trees:
        p = len(tree.prompt)
        pairs.append(sum(range(1, p + 1)) + sum(sum(range(p + 1, p + len(b) + 1)) for b in tree.branches))
        tokens.append(p + sum(map(len, tree.branches)))
    assert pack(trees).num_attention_pairs == sum(pairs)
    scored = np.arange(20)
    assert np.array_equal(tree_cost(prompt_len, branch_len, tree_start), tokens)
    found = tree_cost(prompt_len, branch_len, tree_start, scored, linear=2, quadratic=0.5, head=3)
    assert np.array_equal(found, 2 * np.array(tokens) + 0.5 * np.array(pairs) + 3 * scored)
    assert tree_cost(prompt_len[:0], branch_len[:0], tree_start[:1]).shape == (0,)
    # Trees without branches, first, last and two in a row: each costs its prompt, and no other costs less for it.
    sparse = np.array([0, 0, 2, 2, 2, 3, 3])
    costs = tree_cost(np.array([1, 2, 3, 4, 5, 6]), np.array([10, 20, 30]), sparse, linear=2, quadratic=1)
    pairs = [1, 3 + (20 + 55) + (40 + 210), 6, 10, 15 + (150 + 465), 21]
    assert np.array_equal(costs, 2 * np.array([1, 32, 3, 4, 35, 6]) + pairs)
    assert np.array_equal(tree_cost(prompt_len, branch_len[:0], np.zeros(21, np.int64)), prompt_len)
    with pytest.raises(ValueError, match="head needs num_scored"):
        tree_cost(prompt_len, branch_len, tree_start, head=1)
