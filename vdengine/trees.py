"""Forests of prompt trees, and the packs that a model runs.

A tree is a prompt and the branches that continue it: an SFT row has one branch, a preference pair two, a
probe one per opening. A pack is a list of trees laid out in one row of T tokens, without padding, each
prompt once:

    tokens      | prompt  | branch 0 | branch 1 | prompt  | branch 0 | ...
    positions     0 .. p-1  p ..       p ..       0 .. q-1  q ..

Attention sees S segments, each a run of queries with a run of keys, causal and bottom-right aligned. A tree
of one branch is one segment. A tree of several is a segment for its prompt and one for each branch, whose
keys are [prompt, own branch]: `kv_index` says which rows those are.

Trees come as lists (`pack`) or as rows of a store's flat arrays (`pack_store`); one native call assembles
both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
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

    `scored` has one mask per branch and says which of its tokens get a log-prob; None scores them all. A
    branch may have no scored token as long as another branch of the tree has one. `id` is the row of the
    store that the tree comes from (-1: none).

    InputError: an empty prompt, no branch, an empty branch, masks that do not fit, or no scored token.
    """

    prompt: list[int]
    branches: list[list[int]]
    scored: list[list[bool]] | None = None
    id: int = -1

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
    `order[offsets[j] : offsets[j + 1]]` of y, in ascending order. The gather's backward sums over those
    rows, so it gives the same bits every time."""

    order: Tensor  # [n] int64
    offsets: Tensor  # [m+1] int64

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Inverse:
        order = self.order.to(device, non_blocking=non_blocking)
        return Inverse(order, self.offsets.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Inverse:
        return Inverse(self.order.pin_memory(), self.offsets.pin_memory())


@dataclass(frozen=True, eq=False)
class Lengths:
    """Queries and keys of each attention segment, on the host: SDPA cuts a pack into segments by them, in every layer,
    and would otherwise have to wait for the device to read `cu_seqlens`. (Not a tuple: FSDP's hooks would look at every
    number of it.)"""

    q: list[int]
    k: list[int]

    @classmethod
    def of(cls, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Lengths:
        """Of tensors anywhere; where they are on a device, this waits for it."""
        return cls(cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist())


@dataclass(frozen=True, eq=False)
class Pack:
    """Trees laid out for one forward: T tokens, S attention segments, K keys, R scored tokens, B branches.

    Branch b's scored tokens are `branch_offsets[b] : branch_offsets[b + 1]` of everything of length R. A
    token is predicted by the row of the token before it; a branch's first token by its prompt's last row.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int32
    cu_seqlens_q: Tensor  # [S+1] int32
    cu_seqlens_k: Tensor  # [S+1] int32
    lengths: Lengths  # the differences of both
    kv_index: Tensor | None  # [K] int64, rows; None when no tree has two branches: keys = rows
    max_q: int  # longest segment, in queries
    max_k: int  # and in keys
    rows: Tensor  # [R] int64, the row that predicts each scored token
    targets: Tensor  # [R] int64, the scored tokens
    branch_offsets: Tensor  # [B+1] int64
    ends: Tensor  # [B] int64, the row of each branch's last token
    tree_of_branch: Tensor  # [B] int64, index into tree_ids
    tree_ids: Tensor  # [trees] int64, store rows (or Tree.id)
    rows_inverse: Inverse  # of rows: m = T
    kv_inverse: Inverse | None  # of kv_index: m = T
    token_inverse: tuple[Tensor, Inverse]  # distinct token ids [u] int64, ascending; where each stands: m = u

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Pack:
        """The pack on `device`. With `non_blocking` the host does not wait for copies out of pinned
        memory."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Pack:
        """The pack in page-locked host memory (needs CUDA)."""
        return self._map(lambda part: part.pin_memory())

    @property
    def num_tokens(self) -> int:
        """T: rows of the trunk, prompts once."""
        return self.tokens.numel()

    @property
    def num_scored(self) -> int:
        """R: scored branch tokens."""
        return self.rows.numel()

    @property
    def num_branches(self) -> int:
        """B."""
        return self.tree_of_branch.numel()

    @property
    def num_trees(self) -> int:
        return self.tree_ids.numel()

    @property
    def num_attention_pairs(self) -> int:
        """(query, key) pairs that attend: what attention's FLOPs are proportional to."""
        return sum(q * (k - q) + q * (q + 1) // 2 for q, k in zip(self.lengths.q, self.lengths.k, strict=True))

    @property
    def branch_lengths(self) -> Tensor:
        """[B] int64: scored tokens of each branch (may be 0)."""
        return self.branch_offsets.diff()

    def branch_sum(self, x: Tensor) -> Tensor:
        """Sums `x` [R] over the scored tokens of each branch: [B], in x's dtype; 0 where none is scored.

        Differentiable. The order of addition is fixed, so equal input gives equal bits.
        """
        if x.shape != self.rows.shape:
            raise ValueError(f"branch_sum: x has shape {tuple(x.shape)}, must have ({self.num_scored},)")
        return segment_sum(x, self.branch_offsets)

    def _map(self, move: Any) -> Pack:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                moved[field.name] = tuple(map(move, value))
            else:
                moved[field.name] = move(value) if isinstance(value, Tensor | Inverse) else value
        return Pack(**moved)


def pack(trees: Sequence[Tree]) -> Pack:
    """Lays out `trees`, in order, as one pack of CPU tensors. `tree_ids` are the trees' own ids.

    No trees give a pack of no tokens. ValueError: a negative token id, or more than 2^31 - 1 keys.
    """
    branches = [branch for tree in trees for branch in tree.branches]
    spans = [span for tree in trees for span in (tree.prompt, *tree.branches)]
    tokens = np.fromiter(chain.from_iterable(spans), np.int32, sum(map(len, spans)))
    start = _starts([len(span) for span in spans])
    tree_start = _starts([len(tree.branches) for tree in trees])
    is_prompt = np.zeros(len(spans), bool)
    is_prompt[tree_start[:-1] + np.arange(len(trees))] = True  # t prompts and all their branches before
    scored = np.repeat(~is_prompt, np.diff(start)).astype(np.uint8)
    branch_start = start[:-1][~is_prompt]
    for t, tree in enumerate(trees):
        if tree.scored is not None:
            first = branch_start[tree_start[t]]  # the branches of a tree lie together
            mask = np.fromiter(chain.from_iterable(tree.scored), bool)
            scored[first : first + len(mask)] = mask
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "scored": scored,
        "tree_start": tree_start,
        "prompt_start": start[:-1][is_prompt],
        "prompt_len": np.array([len(tree.prompt) for tree in trees], np.int64),
        "branch_start": branch_start,
        "branch_len": np.array([len(branch) for branch in branches], np.int64),
    }
    parts = _native.assemble(**arrays, select=np.arange(len(trees)))
    parts["tree_ids"] = np.array([tree.id for tree in trees], np.int64)
    return _as_pack(parts)


def pack_store(arrays: Mapping[str, NDArray[Any]], select: Sequence[int] | NDArray[np.int64]) -> Pack:
    """Lays out the trees `select` of flat arrays, in that order, as one pack of CPU tensors; tree_ids =
    select.

    arrays, all one-dimensional and contiguous, memory-mapped or not (n trees, B branches, L tokens):
        tokens [L] int32, scored [L] uint8: every prompt and branch; scored is 0 on prompts
        prompt_start, prompt_len [n] int64: where in tokens the prompt of each tree lies
        branch_start, branch_len [B] int64: the same of each branch
        tree_start [n+1] int64: tree t has the branches tree_start[t] .. tree_start[t+1]

    TypeError: another dtype (a conversion would copy the store). ValueError: an index outside the arrays,
    naming the tree; a negative token id; more than 2^31 - 1 keys.
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
    """Work of each tree, [n]: linear * tokens + quadratic * attention pairs + head * scored tokens.

    A pair is one query that sees one key: p(p+1)/2 for a prompt of p tokens, b*p + b(b+1)/2 for each branch
    of b (a tree may have none). In FLOPs of one forward: linear = 2 * parameters of the layers, quadratic =
    4 * layers * heads * head_dim, head = 2 * vocab_size * hidden_size. Only ratios matter to `plan_packs`.
    """
    if head and num_scored is None:
        raise ValueError("tree_cost: head needs num_scored")
    p, b = prompt_len.astype(np.float64), branch_len.astype(np.float64)
    tree_of_branch = np.repeat(np.arange(len(p)), np.diff(tree_start))
    per_branch = linear * b + quadratic * (b * p[tree_of_branch] + b * (b + 1) / 2)
    total = linear * p + quadratic * p * (p + 1) / 2 + np.bincount(tree_of_branch, per_branch, len(p))
    return total if num_scored is None else total + head * num_scored


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Exclusive prefix sum, with the total at the end."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _as_pack(arrays: dict[str, Any]) -> Pack:
    """The native call's arrays as tensors that share their memory."""

    def inverse(pair: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Inverse:
        return Inverse(torch.from_numpy(pair[0]), torch.from_numpy(pair[1]))

    parts: dict[str, Any] = {}
    for name, value in arrays.items():
        parts[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    # a tree of several branches has a segment for its prompt, then one for each; a tree of one branch just one
    of_tree = np.bincount(arrays["tree_of_branch"], minlength=len(arrays["tree_ids"]))
    prompts_before = np.cumsum(of_tree > 1)[arrays["tree_of_branch"]]
    segment = np.arange(len(arrays["tree_of_branch"])) + prompts_before
    parts["ends"] = torch.from_numpy(arrays["cu_seqlens_q"][segment + 1].astype(np.int64) - 1)
    parts["lengths"] = Lengths.of(parts["cu_seqlens_q"], parts["cu_seqlens_k"])
    parts["rows_inverse"] = inverse(arrays["rows_inverse"])
    parts["kv_inverse"] = inverse(arrays["kv_inverse"]) if arrays["kv_inverse"] else None
    parts["token_inverse"] = (parts.pop("unique_tokens"), inverse(arrays["token_inverse"]))
    return Pack(**parts)
