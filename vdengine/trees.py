"""Forests of prompt trees, and the packs that a model runs.

A tree is a prompt and the branches that continue it: an SFT row has one branch, a preference pair two, a probe one per
opening. A pack is a list of trees laid out in one row of T tokens, without padding, each prompt once:

    tokens      | prompt  | branch 0 | branch 1 | prompt  | branch 0 | ...
    positions     0 .. p-1  p ..       p ..       0 .. q-1  q ..

Attention sees S segments, each a contiguous run of queries with a contiguous run of keys, causal and bottom-right
aligned. A tree of one branch is one segment. A tree of several branches is one segment for its prompt and one for each
branch, whose keys are [prompt, this branch]: `kv_index` holds the rows of these keys.

Trees come as lists (`pack`) or as rows of a store's flat arrays (`pack_store`); one native function assembles both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdengine import _native
from vdengine.errors import InputError
from vdengine.kernels.gather import segment_sum


@dataclass(frozen=True)
class Tree:
    """A prompt and the branches that continue it, as token ids.

    `scored` has one mask per branch, which says which of its tokens get a log-prob; None scores them all. A branch may
    have no scored token as long as another branch of the tree has one. `id` is the row of the store that the tree comes
    from (-1: none).

    `firsts` are tokens scored as the first one after the prompt and not run: a branch of one token each, which costs a
    row of the head and nothing in the layers.

    Raises:
        InputError: an empty prompt, no branch, an empty branch, masks of another length, or no scored token.
    """

    prompt: list[int]
    branches: list[list[int]]
    scored: list[list[bool]] | None = None
    id: int = -1
    firsts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        where = f"tree {self.id}" if self.id >= 0 else "tree"
        if len(self.prompt) == 0:
            raise InputError(f"{where}: the prompt is empty; it needs at least one token (a BOS will do)")
        if len(self.branches) == 0:
            raise InputError(f"{where}: no branch; at least one is needed")
        for i, branch in enumerate(self.branches):
            if len(branch) == 0:
                raise InputError(f"{where}: branch {i} is empty; a branch needs at least one token")
        if self.scored is None:
            return
        if len(self.scored) != len(self.branches):
            raise InputError(f"{where}: {len(self.scored)} scored masks for {len(self.branches)} branches")
        for i, (mask, branch) in enumerate(zip(self.scored, self.branches, strict=True)):
            if len(mask) != len(branch):
                raise InputError(f"{where}: branch {i} has {len(branch)} tokens, its scored mask {len(mask)}")
        if not any(map(any, self.scored)):
            raise InputError(f"{where}: no branch has a scored token; at least one is needed")


@dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a gather `y = x[index]`, n indexes into m rows: row j of x is used by the rows
    `order[offsets[j] : offsets[j + 1]]` of y, in ascending order. The gather's backward sums over these rows in this
    order, so it gives the same bits every time."""

    order: Tensor  # [n] int64
    offsets: Tensor  # [m+1] int64

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Inverse:
        """The inverse on `device`."""
        order = self.order.to(device, non_blocking=non_blocking)
        return Inverse(order, self.offsets.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Inverse:
        """The inverse in page-locked host memory (needs CUDA)."""
        return Inverse(self.order.pin_memory(), self.offsets.pin_memory())


@dataclass(frozen=True, eq=False)
class Lengths:
    """The number of queries and of keys of each attention segment, on the host. SDPA splits a pack by them in every
    layer; reading `cu_seqlens` there would wait for the device. (A class and not a tuple, because FSDP's hooks look at
    every element of a tuple.)"""

    q: list[int]
    k: list[int]

    @classmethod
    def of(cls, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Lengths:  # each [S+1] int32
        """The differences of both. If they are on a device, this waits for it."""
        return cls(cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist())


@dataclass(frozen=True, eq=False)
class Pack:
    """Trees laid out for one forward: T tokens, S attention segments, K keys, R scored tokens, B branches.

    The scored tokens of branch b are at `branch_offsets[b] : branch_offsets[b + 1]` of every array of length R. A token
    is predicted by the row of the token before it, the first token of a branch by the last row of its prompt. The last
    `num_firsts` branches are the trees' `firsts`, tree by tree: they have no rows of their own.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int32
    cu_seqlens_q: Tensor  # [S+1] int32
    cu_seqlens_k: Tensor  # [S+1] int32
    lengths: Lengths  # the differences of both, on the host
    kv_index: Tensor | None  # [K] int64, the row of each key; None when no tree has two branches: keys = rows
    max_q: int  # longest segment, in queries
    max_k: int  # longest segment, in keys
    rows: Tensor  # [R] int64, the row that predicts each scored token
    targets: Tensor  # [R] int64, ids of the scored tokens
    branch_offsets: Tensor  # [B+1] int64
    ends: Tensor  # [B] int64, the row of each branch's last token; of a first, of its prompt's
    tree_of_branch: Tensor  # [B] int64, index into tree_ids
    tree_ids: Tensor  # [trees] int64, rows of the store (or Tree.id)
    rows_inverse: Inverse  # of `rows`: n = R, m = T
    kv_inverse: Inverse | None  # of `kv_index`: n = K, m = T
    token_inverse: tuple[Tensor, Inverse]  # distinct token ids [u] int64, ascending; the rows of each: n = T, m = u
    num_firsts: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pack:
        """The pack on `device`. With `non_blocking` the host does not wait for copies from pinned memory."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Pack:
        """The pack in page-locked host memory (needs CUDA)."""
        return self._map(lambda part: part.pin_memory())

    @property
    def num_tokens(self) -> int:
        """T, the rows that go through the layers, prompts once."""
        return self.tokens.numel()

    @property
    def num_scored(self) -> int:
        """R, the scored tokens."""
        return self.rows.numel()

    @property
    def num_branches(self) -> int:
        """B, the branches."""
        return self.tree_of_branch.numel()

    @property
    def num_trees(self) -> int:
        """Trees."""
        return self.tree_ids.numel()

    @property
    def num_attention_pairs(self) -> int:
        """(query, key) pairs that the mask lets through; attention's FLOPs are proportional to them."""
        return sum(q * (k - q) + q * (q + 1) // 2 for q, k in zip(self.lengths.q, self.lengths.k, strict=True))

    @property
    def branch_lengths(self) -> Tensor:
        """Scored tokens of each branch: [B] int64, 0 where none is scored."""
        return self.branch_offsets.diff()

    def branch_sum(self, x: Tensor) -> Tensor:  # [R] -> [B], the same dtype
        """The sum of `x` over the scored tokens of each branch; 0 where none is scored.

        Differentiable. The order of addition is fixed, so equal input gives equal bits.

        Raises:
            ValueError: x is not [R].
        """
        if x.shape != self.rows.shape:
            raise ValueError(f"branch_sum: x has shape {tuple(x.shape)}, must have ({self.num_scored},)")
        return segment_sum(x, self.branch_offsets)

    def _map(self, move: Any) -> Pack:
        """A pack with `move` applied to every Tensor and Inverse, also inside tuples."""
        moved: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, tuple):
                moved[part.name] = tuple(map(move, value))
            else:
                moved[part.name] = move(value) if isinstance(value, Tensor | Inverse) else value
        return Pack(**moved)


def pack(trees: Sequence[Tree]) -> Pack:
    """Lay out `trees`, in order, as one pack of CPU tensors, with the trees' own ids as `tree_ids`. Without trees the
    pack has no tokens.

    Raises:
        ValueError: a negative token id, or more than 2^31 - 1 keys.
    """
    branches = [branch for tree in trees for branch in tree.branches]
    # The trees as the flat arrays of `pack_store`. Spans are prompts and branches: s in number, L tokens together.
    spans = [span for tree in trees for span in (tree.prompt, *tree.branches)]
    tokens = np.fromiter(chain.from_iterable(spans), np.int32, sum(map(len, spans)))  # [L]
    span_start = _starts([len(span) for span in spans])  # [s+1]
    tree_start = _starts([len(tree.branches) for tree in trees])  # [n+1]
    is_prompt = np.zeros(len(spans), bool)
    is_prompt[tree_start[:-1] + np.arange(len(trees))] = True  # before tree t there are t prompts and their branches
    scored = np.repeat(~is_prompt, np.diff(span_start)).astype(np.uint8)  # [L]
    branch_start = span_start[:-1][~is_prompt]  # [B]
    for t, tree in enumerate(trees):
        if tree.scored is not None:
            first = branch_start[tree_start[t]]  # the branches of a tree are contiguous
            mask = np.fromiter(chain.from_iterable(tree.scored), bool)
            scored[first : first + len(mask)] = mask
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "scored": scored,
        "tree_start": tree_start,
        "prompt_start": span_start[:-1][is_prompt],
        "prompt_len": np.array([len(tree.prompt) for tree in trees], np.int64),
        "branch_start": branch_start,
        "branch_len": np.array([len(branch) for branch in branches], np.int64),
    }
    parts = _native.assemble(**arrays, select=np.arange(len(trees)))
    parts["tree_ids"] = np.array([tree.id for tree in trees], np.int64)
    return _with_firsts(_as_pack(parts), trees)


def _with_firsts(pack: Pack, trees: Sequence[Tree]) -> Pack:
    """The pack with the `firsts` of its trees behind its branches."""
    tree = np.repeat(np.arange(len(trees)), [len(t.firsts) for t in trees])  # [firsts]
    if not len(tree):
        return pack
    # The last row of a prompt: the segment of a tree of several branches ends there, that of one branch as many rows
    # later as the branch has tokens.
    num_branches = np.array([len(t.branches) for t in trees])
    segment = np.concatenate([[0], np.cumsum(num_branches + (num_branches > 1))[:-1]])  # [trees], each tree's first
    alone = np.array([len(t.branches[0]) if len(t.branches) == 1 else 0 for t in trees])
    last = pack.cu_seqlens_q.numpy()[segment + 1].astype(np.int64) - 1 - alone  # [trees]
    rows = np.concatenate([pack.rows.numpy(), last[tree]])
    targets = np.fromiter(chain.from_iterable(t.firsts for t in trees), np.int64, len(tree))
    if targets.min() < 0:
        raise ValueError(f"pack: a first token has the id {targets.min()}")
    counts = np.bincount(rows, minlength=pack.num_tokens)
    inverse = Inverse(torch.from_numpy(np.argsort(rows, kind="stable")), torch.from_numpy(_starts(counts)))
    end = int(pack.branch_offsets[-1])
    return replace(
        pack,
        rows=torch.from_numpy(rows),
        targets=torch.cat([pack.targets, torch.from_numpy(targets)]),
        branch_offsets=torch.cat([pack.branch_offsets, torch.arange(end + 1, end + 1 + len(tree))]),
        ends=torch.cat([pack.ends, torch.from_numpy(last[tree])]),
        tree_of_branch=torch.cat([pack.tree_of_branch, torch.from_numpy(tree)]),
        rows_inverse=inverse,
        num_firsts=len(tree),
    )


def pack_store(arrays: Mapping[str, NDArray[Any]], select: Sequence[int] | NDArray[np.int64]) -> Pack:
    """Lay out the trees `select` of flat arrays, in that order, as one pack of CPU tensors, with tree_ids = select.

    Args:
        arrays: all one-dimensional and contiguous, memory-mapped or not; n trees, B branches, L tokens.
            tokens [L] int32, scored [L] uint8: every prompt and branch; scored is 0 on prompts
            prompt_start, prompt_len [n] int64: where in tokens the prompt of each tree is
            branch_start, branch_len [B] int64: the same of each branch
            tree_start [n+1] int64: tree t has the branches tree_start[t] .. tree_start[t+1]
        select: [trees] integers, indexes into the n trees.

    Raises:
        TypeError: another dtype; a conversion would copy the store.
        ValueError: an index outside the arrays (it names the tree), a negative token id, more than 2^31 - 1 keys.
    """
    return _as_pack(_native.assemble(**arrays, select=np.ascontiguousarray(select, np.int64)))


def tree_cost(
    prompt_len: NDArray[np.int64],  # [n]
    branch_len: NDArray[np.int64],  # [B]
    tree_start: NDArray[np.int64],  # [n+1]
    num_scored: NDArray[np.int64] | None = None,  # [n], scored tokens of each tree
    *,
    linear: float = 1.0,
    quadratic: float = 0.0,
    head: float = 0.0,
) -> NDArray[np.float64]:
    """The work of each tree, [n] float64: linear * tokens + quadratic * attention pairs + head * scored tokens.

    A pair is one query that attends to one key: p(p+1)/2 for a prompt of p tokens, b*p + b(b+1)/2 for each branch of b
    (a tree may have none). The result is in FLOPs of one forward with linear = 2 * parameters of the layers,
    quadratic = 4 * layers * heads * head_dim, head = 2 * vocab_size * hidden_size (`ModelConfig.flops`). Only ratios
    matter to `plan_packs`.

    Raises:
        ValueError: head without num_scored.
    """
    if head and num_scored is None:
        raise ValueError("tree_cost: head needs num_scored")
    p, b = prompt_len.astype(np.float64), branch_len.astype(np.float64)  # [n], [B]
    tree_of_branch = np.repeat(np.arange(len(p)), np.diff(tree_start))  # [B]
    per_branch = linear * b + quadratic * (b * p[tree_of_branch] + b * (b + 1) / 2)  # [B]
    total = linear * p + quadratic * p * (p + 1) / 2 + np.bincount(tree_of_branch, per_branch, len(p))
    return total if num_scored is None else total + head * num_scored


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Exclusive prefix sum of n lengths with the total at the end: [n+1]."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _as_pack(arrays: dict[str, Any]) -> Pack:
    """A pack of the arrays that `_native.assemble` returns; the tensors share their memory."""

    def inverse(pair: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Inverse:
        return Inverse(torch.from_numpy(pair[0]), torch.from_numpy(pair[1]))

    parts: dict[str, Any] = {}
    for name, value in arrays.items():
        parts[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    # A tree of several branches has one segment for its prompt and then one per branch; a tree of one branch has one
    # segment. So the segment of branch b is b plus the prompt segments up to its tree.
    branches_of_tree = np.bincount(arrays["tree_of_branch"], minlength=len(arrays["tree_ids"]))  # [trees]
    prompt_segments = np.cumsum(branches_of_tree > 1)[arrays["tree_of_branch"]]  # [B]
    segment = np.arange(len(arrays["tree_of_branch"])) + prompt_segments  # [B]
    parts["ends"] = torch.from_numpy(arrays["cu_seqlens_q"][segment + 1].astype(np.int64) - 1)
    parts["lengths"] = Lengths.of(parts["cu_seqlens_q"], parts["cu_seqlens_k"])
    parts["rows_inverse"] = inverse(arrays["rows_inverse"])
    parts["kv_inverse"] = inverse(arrays["kv_inverse"]) if arrays["kv_inverse"] else None
    parts["token_inverse"] = (parts.pop("unique_tokens"), inverse(arrays["token_inverse"]))
    return Pack(**parts)
